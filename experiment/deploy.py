"""Writes a folder to deploy: the model as an ONNX file that takes unnormalized pictures, and a script to run it."""

import json
import shutil
import warnings
from collections.abc import Mapping
from pathlib import Path

from data import PIXELS
from experiment.freshness import outdated_record
from experiment.records import archive_path, read_record
from experiment.store import graphs_folder
from models import allow, spec_of
from storage import StorageError, atomic_write, export_onnx, load_archive, pixel_scale, sha256


def deploy(record: Mapping, folder: Path, network: str | None = None, archive: Path | None = None) -> list[Path]:
    """Write model.onnx, labels.txt, predict.py, the archive and the record into a folder; return their paths.

    The model normalizes uint8 images itself. predict.py needs only onnxruntime, numpy and Pillow. `network` is the
    `MODULE:FUNCTION` that builds the model, if it is the user's own; `archive` is the record's, if it lies elsewhere.

    Raises:
        StorageError: the archive is missing or damaged, the network's code was changed, or the folder is not writable.
    """
    archive = archive or archive_path(record)
    if network is not None:
        allow([network])
    if why := outdated_record(record, record["dataset"], images=False):
        raise StorageError(f"the record of {record['label']} is not of what is at hand ({why}): restore that first")
    if not archive.exists():
        raise StorageError(f"the archive of {record['label']} is missing: run the recipe with remeasure=True")
    classes = record.get("made_of", {}).get("data", {}).get("classes")
    if classes is None:
        raise StorageError(f"the record of {record['label']} does not name its classes: run the recipe again")
    model = load_archive(archive, network=network)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(f"cannot write to {folder} ({error.strerror}): name another folder") from None
    scale = pixel_scale(spec_of(model) | {"pixels": spec_of(model).get("pixels") or PIXELS.get(record["dataset"])})
    export_onnx(model, folder / "model.onnx", {"classes": classes}, raw_scale=scale, graphs=graphs_folder())
    texts = {"labels.txt": "\n".join(classes) + "\n", "record.json": json.dumps(dict(record), indent=1) + "\n"}
    for name, text in texts.items():
        with atomic_write(folder / name) as temporary:
            temporary.write_text(text, "utf-8")
    shutil.copyfile(Path(__file__).parent / "deployed" / "predict.py", folder / "predict.py")
    shutil.copyfile(archive, folder / "model.nna")
    return [folder / name for name in ("model.onnx", "labels.txt", "predict.py", "model.nna", "record.json")]


def deploy_file(path: Path, folder: Path, network: str | None = None) -> list[Path]:
    """Call `deploy` with the record in a file. Raises StorageError if the file holds no record."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what it would say is in the error
        record = read_record(path)
    if record is None:
        raise StorageError(f"{path} is not a record: give one of results/DATASET/*.json")
    beside = path.parent / "models" / f"{record['id']}.nna"
    found = beside.exists() and sha256(beside) == record["archive_sha256"]
    return deploy(record, folder, network, beside if found else None)
