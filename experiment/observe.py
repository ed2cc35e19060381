"""Measures how the deployed files of all records behave: by class, on corrupted images, and how sure they are."""

import json
import time
from importlib.metadata import version
from pathlib import Path

from tqdm.auto import tqdm

from experiment.behaviour import is_whole, read_behaviour, write_behaviour
from experiment.freshness import dataset_at_hand, fingerprint
from experiment.records import read_record
from experiment.runner import PACKAGES, deployed_file
from experiment.store import Store, results_folder
from measurement.behaviour import Corrupted, behaviour, corrupted_splits
from measurement.kept_answers import SETTINGS
from measurement.timing import hardware
from storage import open_onnx, sha256


def observe(dataset: str) -> list[str]:
    """Measure the behaviour of every record that lacks it, bases first, and keep it; return the ids that still lack it.

    These are records whose weights are neither among the artifacts nor committed as an archive: run their recipes. If
    the images are not at hand, nothing is measured. Each file is kept as soon as it is measured, so that a killed run
    goes on where it was. 100 networks on CIFAR-10 take about half an hour on two cores.

    Raises:
        DataError: $SVHN_ROOT is set, and has no readable test_32x32.mat.
        StorageError: a file cannot be written, or a network's logits differ from its file's.
    """
    records = filter(None, map(read_record, sorted(results_folder(dataset).glob("*.json"))))
    now = fingerprint(dataset)
    lacking = [own for own in records if not is_whole(read_behaviour(Store(dataset, own["id"]), own))]
    if now is None or not lacking:
        return [record["id"] for record in lacking]
    lacking = [own for own in lacking if own["data"] == now]
    lacking.sort(key=lambda own: (own["id"] != own["base"], own["macs"]))
    missing, corrupt = [], None
    for record in tqdm(lacking, desc="behaviour", unit="record", leave=False):
        file = deployed_file(record, dataset)
        if file is None:
            missing.append(record["id"])
            continue
        corrupt = corrupt or corrupted_splits(dataset_at_hand(dataset))
        write_behaviour(Store(dataset, record["id"]), record, _observed(file, dataset, corrupt))
    return missing


def _observed(file: Path, dataset: str, corrupt: dict[str, Corrupted]) -> dict:
    session = open_onnx(file)
    written = session.get_modelmeta().custom_metadata_map
    images = dataset_at_hand(dataset).on_scale({name: json.loads(written[name]) for name in ("mean", "std")})
    return behaviour(session, images, corrupt) | {
        "settings": SETTINGS,
        "onnx_sha256": sha256(file),
        "hardware": hardware(),
        "versions": {package: version(package) for package in PACKAGES},
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }
