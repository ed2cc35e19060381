"""Records: one JSON file each under results/, read back as a DataFrame."""

import hashlib
import json
import os
import re
import subprocess
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from data import check_dataset
from storage import atomic_write

NEEDED = {"label", "model", "dataset", "seed", "recipe", "accuracy", "onnx_bytes", "weights_sha256"}
ROOT = Path(__file__).resolve().parents[1]


def results_root() -> Path:
    """Where all records are: results/, or $RESULTS_DIR."""
    return Path(os.environ.get("RESULTS_DIR", ROOT / "results"))


def results_folder(dataset: str) -> Path:
    """Where the records of a data set are: results/NAME, or under $RESULTS_DIR."""
    return results_root() / slug(dataset)


def artifacts_folder(dataset: str) -> Path:
    """Where weights and ONNX files are kept: artifacts/NAME, or under $ARTIFACTS_DIR."""
    return Path(os.environ.get("ARTIFACTS_DIR", ROOT / "artifacts")) / slug(dataset)


def figures_folder() -> Path:
    """Where charts and exported tables go."""
    return results_root() / "figures"


def archive_path(record: Mapping) -> Path:
    """The archive of a record's model: beside the record where it is small, else among the artifacts."""
    beside = results_folder(record["dataset"]) / "models" / f"{record['id']}.nna"
    if beside.exists():
        return beside
    return artifacts_folder(record["dataset"]) / f"{record['id']}-{record['weights_sha256'][:12]}.nna"


def read_record(path: Path) -> dict | None:
    """A record, or None where there is none; a damaged one is named, passed over and made again."""
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict) or record.get("id") != path.stem or not record.keys() >= NEEDED:
            raise ValueError("not a whole record of that name")
        return record
    except FileNotFoundError:
        return None
    except (ValueError, OSError) as error:
        warnings.warn(f"{path} is no readable record ({error}): passed over", stacklevel=2)
        return None


def write_record(path: Path, record: dict) -> None:
    """Write a record, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(record, indent=1) + "\n")


def load_records(dataset: str) -> pd.DataFrame:
    """Every record of a data set, a row each; nested values become columns such as `latency_ms.batch1.median`.

    Rows are sorted by model and size. Records that differ in nothing but seeds share a label; where other recipes have
    the same one (a network trained for another time, for instance), a piece of a hash tells them apart. Damaged files
    are passed over with a warning.

    Raises:
        DataError: the name is unknown; one that is known and has no records gives an empty table.
    """
    check_dataset(dataset)
    files = sorted(results_folder(dataset).glob("*.json"))
    records = [record for record in map(read_record, files) if record is not None and record["dataset"] == dataset]
    if not records:
        return pd.DataFrame(columns=["id", "label", "seed", "accuracy", "onnx_bytes"])
    frame = told_apart(records)
    return frame.sort_values(["model", "onnx_bytes", "seed"], ascending=[True, False, True], ignore_index=True)


def told_apart(records: Sequence[Mapping]) -> pd.DataFrame:
    """A row a record; where other recipes than seeds of one share a label, a piece of a hash is added to it."""
    frame = pd.json_normalize(list(records), max_level=None)
    variant = pd.Series([_digest(_seedless(record["recipe"])) for record in records])
    ambiguous = variant.groupby(frame["label"]).transform("nunique") > 1
    frame.loc[ambiguous, "label"] += " #" + variant[ambiguous].str[:4]
    return frame


def _seedless(value: Any) -> Any:
    """A recipe's JSON without its seeds, those of teachers and members included."""
    if isinstance(value, dict):
        return {key: _seedless(own) for key, own in value.items() if key != "seed"}
    return [_seedless(own) for own in value] if isinstance(value, list) else value


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def current_commit() -> str | None:
    """The commit of the code at work, None outside a git checkout."""
    try:
        command = ["git", "-C", str(ROOT), "rev-parse", "--short=12", "HEAD"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        return None


def kept_table(name: str, dataset: str, make: Callable[[], list[dict]]) -> pd.DataFrame:
    """A table of measurements that belong to no recipe, read back from results/DATASET/tables or made and kept there.

    `name` says all that the rows depend on. `make` gives the rows, of values that JSON can say.
    """
    path = results_folder(dataset) / "tables" / f"{slug(name)}.json"
    try:
        return pd.DataFrame(json.loads(path.read_text()))
    except FileNotFoundError:
        pass
    except ValueError as error:
        warnings.warn(f"{path} is no readable table ({error}): made again", stacklevel=2)
    rows = make()
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(rows, indent=1) + "\n")
    return pd.DataFrame(rows)


def slug(dataset: str) -> str:
    """The name of a data set as a file's name."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", dataset).strip("-.") or "dataset"
