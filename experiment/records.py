"""Records, one JSON file each under results/, read back as a DataFrame; and tables that belong to no single recipe."""

import hashlib
import importlib
import json
import os
import subprocess
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from data import changes
from experiment.freshness import fingerprint, outdated_record
from experiment.store import ROOT, Store, results_folder, slug, write_json
from measurement import machine
from recipe import check_dataset, identity, identity_of, label_of, letters_of, words_of
from storage import sha256

NEEDED = {
    "label",
    "model",
    "dataset",
    "seed",
    "recipe",
    "accuracy",
    "archive_bytes",
    "onnx_bytes",
    "weights_sha256",
    "made_of",
}


def archive_path(record: Mapping, dataset: str | None = None) -> Path:
    """Return the path of the archive of a record's model: in the results folder if it is small, else in the artifacts.

    An archive in the results folder that is not the file that was measured is ignored with a warning.
    """
    store = Store(dataset or record["dataset"], record["id"])
    if not store.committed_archive.exists():
        return store.archive(record["weights_sha256"])
    if sha256(store.committed_archive) == record["archive_sha256"]:
        return store.committed_archive
    warnings.warn(
        f"{store.committed_archive} is not the archive that its record was measured with: restore it, or delete it and "
        "run the recipe with remeasure=True",
        stacklevel=2,
    )
    return store.archive(record["weights_sha256"])


def read_record(path: Path) -> dict | None:
    """Return a record, or None if there is none. A damaged one is ignored with a warning, and will be made again."""
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict) or record.get("id") != path.stem or not record.keys() >= NEEDED:
            raise ValueError("not a complete record of that name")
        if identity_of(record["recipe"]) != path.stem:
            raise ValueError("its recipe does not match its name")
        if record.get("seal") != seal(record):
            raise ValueError("it was changed since it was written")
        return record
    except FileNotFoundError:
        return None
    except (ValueError, OSError, RecursionError) as error:
        warnings.warn(f"{path} is not a readable record ({error}): ignored", stacklevel=2)
        return None


def write_record(path: Path, record: dict) -> dict:
    """Write a record, completely or not at all; return it with its seal."""
    sealed = {key: value for key, value in record.items() if key != "seal"}
    sealed["seal"] = seal(sealed)
    write_json(path, sealed)
    return sealed


def seal(written: Mapping) -> str:
    """Return the checksum of a record or table, without its seal."""
    return _digest({key: value for key, value in written.items() if key != "seal"})


def load_records(dataset: str) -> pd.DataFrame:
    """Return all records of a data set, one row each; nested values become columns such as `latency_ms.batch1.median`.

    Rows are sorted by model and size. Records that differ only in seeds share a label. If different recipes have the
    same label (networks trained for different times, for instance), part of a hash is appended. Damaged files are
    ignored with a warning, and so are records that do not match the images and networks at hand. The table is empty if
    there are no records.

    Raises:
        DataError: no data set has that name.
    """
    check_dataset(dataset)
    import_steps()
    found = [read_record(path) for path in sorted(results_folder(dataset).glob("*.json"))]
    records = [record for record in found if record is not None and record["dataset"] == identity(dataset)]
    reasons = {record["id"]: outdated_record(record, dataset) for record in records}
    if left_out := [f"{key} ({why})" for key, why in reasons.items() if why]:
        warnings.warn(
            f"{len(left_out)} of {len(records)} records of {dataset} are outdated and left out: "
            f"{', '.join(left_out[:3])}{', ...' if len(left_out) > 3 else ''}; `python -m experiment set-aside "
            f"{dataset}` puts them away",
            stacklevel=2,
        )
    records = [record for record in records if not reasons[record["id"]]]
    if not records:
        return pd.DataFrame(columns=["id", "label", "seed", "accuracy", "onnx_bytes"])
    frame = told_apart(records)
    return frame.sort_values(["model", "onnx_bytes", "seed"], ascending=[True, False, True], ignore_index=True)


def import_steps() -> None:
    """Import the rooms of steps, which are built on this one, so that recipes in files find the steps they name."""
    for room in ("quantization", "pruning", "distillation", "combination"):
        importlib.import_module(room)


def told_apart(records: Sequence[Mapping]) -> pd.DataFrame:
    """Return one row per record; labels that several recipes share, other than by seed, get part of a hash appended.

    Two columns come from the recipes: `kinds`, one letter per method in order of use, and `words`, for readers.
    """
    frame = pd.json_normalize(list(records), max_level=None)
    frame["label"] = [label_of(record) for record in records]
    frame["kinds"] = [letters_of(record) for record in records]
    frame["words"] = [words_of(record) for record in records]
    variant = pd.Series([_digest(_seedless(record["recipe"])) for record in records])
    ambiguous = variant.groupby(frame["label"]).transform("nunique") > 1
    frame.loc[ambiguous, "label"] += " #" + variant[ambiguous].str[:4]
    return frame


def _seedless(value: Any) -> Any:
    """Return a recipe's JSON without its seed and those of its teachers and members."""
    if isinstance(value, dict):
        return {key: _seedless(item) for key, item in value.items() if key != "seed"}
    return [_seedless(item) for item in value] if isinstance(value, list) else value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def current_commit() -> str | None:
    """Return the commit of the running code, or None outside a git checkout."""
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def kept_table(
    name: str,
    dataset: str,
    make: Callable[[], list[dict]],
    arguments: Mapping[str, Any] | None = None,
    *,
    timed: bool = False,
) -> pd.DataFrame:
    """Return a table of measurements that belong to no single recipe, cached in results/DATASET/tables.

    Args:
        name: what is measured. `arguments`, JSON values, are all that the rows depend on, besides the data set and, if
            `timed`, the machine.
        make: returns the rows, of JSON values.
        timed: the rows contain times. If there are none of this machine, those of another are returned, unless
            $MEASURE_HERE is set; `measured_on` tells which.

    A table that was made with other images than those at hand is made again.
    """
    key = {"table": name, "arguments": json.loads(json.dumps(arguments or {}))}
    folder = results_folder(dataset) / "tables"
    start = f"{slug(name)}-{_digest(key)[:10]}"
    path = folder / (f"{start}-{_digest(machine())[:6]}.json" if timed else f"{start}.json")
    kept = _read_table(path, key, dataset) if path.exists() else None
    if kept is None and timed and not os.environ.get("MEASURE_HERE"):
        others = (_read_table(other, key, dataset) for other in sorted(folder.glob(f"{start}-*.json")) if other != path)
        kept = next((table for table in others if table is not None), None)
    if kept is None:
        kept = key | {"machine": machine() if timed else None, "rows": make()}
        kept["data"] = fingerprint(dataset)
        kept["seal"] = seal(kept)
        write_json(path, kept)
    table = pd.DataFrame(kept["rows"])
    table.attrs["machine"] = kept["machine"]
    return table


def measured_on(table: pd.DataFrame) -> str:
    """Say where a kept table's times are from: `measured on this machine`, or `measured on another machine: ...`."""
    whose = table.attrs["machine"]
    return "measured on this machine" if whose == machine() else f"measured on another machine: {whose}"


def _read_table(path: Path, key: Mapping, dataset: str) -> dict | None:
    """Return a kept table, or None with a warning if it is damaged or was made with other arguments or images."""
    try:
        table = json.loads(path.read_text())
        if not isinstance(table, dict) or not table.keys() >= {"table", "arguments", "machine", "data", "rows"}:
            raise ValueError("not a complete table")
        if table.get("seal") != seal(table):
            raise ValueError("it was changed since it was written")
        if not isinstance(table["rows"], list) or not all(isinstance(row, dict) for row in table["rows"]):
            raise ValueError("its rows are malformed")
        if any(table[name] != value for name, value in key.items()):
            raise ValueError("it has other arguments")
        now = fingerprint(dataset)
        if table["data"] and now and (why := changes(table["data"], now)):
            raise ValueError(f"it was made with other images: {why}")
        return table
    except (ValueError, OSError, KeyError, TypeError, RecursionError) as error:
        warnings.warn(f"{path} cannot be used ({error}): the table is made again", stacklevel=3)
        return None
