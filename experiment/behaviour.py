"""What each record's file answers, kept beside the records: results/DATASET/behaviour/ID.json.

`run` writes the answers to the test images when it measures a file; `experiment.observe` adds the rest, which takes
longer.
"""

import json
import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from experiment.freshness import dataset_at_hand
from experiment.records import kept_table, seal
from experiment.store import Store, write_json
from measurement.kept_answers import SETTINGS, classes_as_text, classes_of, corrupted_bits, unpacked


def keep_answers(store: Store, record: Mapping, answers: Mapping[str, str]) -> None:
    """Write a record's `measurement.kept_answers.answers_kept`, unless they are there, with more beside them."""
    kept = read_behaviour(store, record)
    if kept is None or kept["answers"] != answers:
        write_behaviour(store, record, {"answers": dict(answers)})


def write_behaviour(store: Store, record: Mapping, found: Mapping) -> None:
    """Write what was found for a record's file, completely or not at all."""
    kept = {"id": store.id, "weights_sha256": record["weights_sha256"], "test": test_of(record), **found}
    write_json(store.behaviour, kept | {"seal": seal(kept)})


def read_behaviour(store: Store, record: Mapping) -> dict | None:
    """Return what is kept for a record, or None: it is missing, or of other weights or images, or damaged.

    The latter with a warning. What `observe` adds is left out if it was measured with other settings than today's.
    """
    try:
        kept = json.loads(store.behaviour.read_text())
        if not isinstance(kept, dict) or kept.get("seal") != seal(kept):
            raise ValueError("it was changed since it was written")
        unpacked(kept["answers"]["right"], (kept["test"]["count"],))
        classes_of(kept["answers"]["wrong"])
    except FileNotFoundError:
        return None
    except (ValueError, OSError, KeyError, TypeError, RecursionError) as error:
        warnings.warn(f"{store.behaviour} cannot be used ({error}): delete it, and it is made again", stacklevel=2)
        return None
    if kept["id"] != store.id or kept["weights_sha256"] != record["weights_sha256"] or kept["test"] != test_of(record):
        return None
    return kept if kept.get("settings") == SETTINGS else {key: kept[key] for key in ("answers", "test")}


def is_whole(kept: Mapping | None) -> bool:
    """Return whether `observe` has nothing to add to what `read_behaviour` found."""
    return kept is not None and "settings" in kept


def test_of(record: Mapping) -> dict[str, Any]:
    """Return the fingerprint of a record's test images; a row of `load_records` has it in columns."""
    if "data" in record:
        return record["data"]["test"]
    return {key: record[f"data.test.{key}"] for key in ("count", "images", "labels")}


def right_answers(record: Mapping) -> np.ndarray | None:
    """Return, for each test image, whether a record's file answers it right; None if that is not kept."""
    if "weights_sha256" not in record:
        return None
    kept = read_behaviour(Store(record["dataset"], record["id"]), record)
    return None if kept is None else unpacked(kept["answers"]["right"], (kept["test"]["count"],))


def labels_of_test(dataset: str) -> np.ndarray:
    """Return the classes `[test images]`. Kept as a table, so that they can be read without the data set."""
    kept = kept_table(
        "labels-of-test", dataset, lambda: [{"labels": classes_as_text(dataset_at_hand(dataset).test.labels.numpy())}]
    )
    return classes_of(kept["labels"][0])


def pictures_of_test(dataset: str, indices: Sequence[int]) -> np.ndarray:
    """Return a handful of test images `[N, C, H, W]` uint8, kept as a table like the labels.

    Raises:
        DataError: they are not kept, and the data set is not at hand.
    """
    indices = [int(index) for index in indices]

    def rows() -> list[dict]:
        images = dataset_at_hand(dataset).test.images[indices].numpy()
        return [{"image": index, "pixels": image.tolist()} for index, image in zip(indices, images, strict=True)]

    kept = kept_table("pictures-of-test", dataset, rows, {"images": indices})
    return np.array(kept["pixels"].tolist(), np.uint8)


def with_behaviour(records: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return the records, as from `load_records`, with what is kept for them in these columns, empty if nothing is.

    `right`: booleans `[test images]`; `wrong`: the classes answered for the others, in order.
    `class_accuracy`: the share of right answers by class, `worst_class` the class with the least, on the test images.
    `robustness`: mean share of right answers over all kinds and severities of corruption; `by_corruption` that of each
    kind and severity, and `right_corrupted` the booleans `[kind, severity, image]`. Of the test images; with
    `validation_` before it, `worst_class_accuracy` and `robustness` are on the validation images, for selection.
    `temperature`; `ece`, `nll`, `brier` and the `bins` of the calibration, with `_scaled` after scaling by it.
    `auroc_noise`, `auroc_svhn`: see `measurement.behaviour.outsiders`.
    """
    rows = [_columns(read_behaviour(Store(dataset, row["id"]), row)) for row in records.to_dict("records")]
    return pd.concat([records, pd.DataFrame(rows, records.index, columns=COLUMNS)], axis="columns")


COLUMNS = (
    "right", "wrong", "class_accuracy", "worst_class", "worst_class_accuracy", "validation_worst_class_accuracy",
    "by_corruption", "right_corrupted", "robustness", "validation_robustness", "temperature", "ece", "nll", "brier",
    "bins", "ece_scaled", "nll_scaled", "brier_scaled", "bins_scaled", "auroc_noise", "auroc_svhn",
)  # fmt: skip


def _columns(kept: Mapping | None) -> dict[str, Any]:
    if kept is None:
        return {}
    row: dict[str, Any] = {
        "right": unpacked(kept["answers"]["right"], (kept["test"]["count"],)),
        "wrong": classes_of(kept["answers"]["wrong"]),
    }
    if not is_whole(kept):
        return row
    classes = {name: share for name, share in kept["classes"]["test"].items() if share is not None}
    held = [share for share in kept["classes"]["validation"].values() if share is not None]
    corrupted, scaling = kept["corrupted"], kept["calibration"]
    row |= {
        "class_accuracy": classes,
        "worst_class": min(classes, key=lambda name: classes[name]),
        "worst_class_accuracy": min(classes.values()),
        "validation_worst_class_accuracy": min(held),
        "by_corruption": corrupted["test"]["accuracy"],
        "right_corrupted": corrupted_bits(corrupted["test"]),
        "robustness": float(np.mean(list(corrupted["test"]["accuracy"].values()))),
        "validation_robustness": float(np.mean(list(corrupted["validation"]["accuracy"].values()))),
        "temperature": scaling["temperature"],
    }
    row |= scaling["before"] | {f"{name}_scaled": value for name, value in scaling["after"].items()}
    return row | {f"auroc_{name}": own["auroc"] for name, own in kept["outsiders"].items() if own is not None}
