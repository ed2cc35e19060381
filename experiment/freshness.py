"""Checks whether records, weights and tables still match the images and the code at hand."""

import contextlib
import hashlib
import json
import shlex
import time
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from data import Dataset, changes, load, signature
from experiment.store import artifacts_folder, write_json
from models import ARCHITECTURES, ModelError, is_allowed, structure
from recipe import Recipe, recipe_of
from storage import StorageError, sha256

MAKING = ("train", "validation")  # the images that a model may be made from; the rest are for testing
A_WHILE = 0.1  # seconds
_given: dict[str, Dataset] = {}
_loaded: dict[str, tuple[str | None, Dataset]] = {}
_seen: dict[str, tuple[str | None, float]] = {}
_fingerprints: dict[str, tuple[str, dict]] = {}


class RecordError(StorageError):
    """A record or weights do not match the images, code or settings at hand; the message says which."""


def give_dataset(dataset: Dataset) -> None:
    """Use this data set by its name from now on, in a process on a machine without its files."""
    _given[dataset.name] = dataset


def dataset_at_hand(name: str) -> Dataset:
    """Return the data set, read again if its files have changed. Raises DataError like `load`."""
    if name in _given:
        return _given[name]
    now = _signature(name)
    if name not in _loaded or _loaded[name][0] != now:
        while len(_loaded) > 1:
            _loaded.pop(next(iter(_loaded)))
        _loaded[name] = now, load(name)
    return _loaded[name][1]


def fingerprint(name: str) -> dict | None:
    """Return the fingerprint of the images and labels, or None if they are not at hand.

    Stored among the artifacts with the names, sizes and times of the files, so that unchanged images are not read.
    """
    if name in _given:
        return _given[name].fingerprint
    now = _signature(name)
    if now is None:
        return None
    if _fingerprints.get(name, ("",))[0] != now:
        kept = artifacts_folder(name) / "fingerprint.json"
        found = _read_fingerprint(kept, now)
        if found is None:
            found = dataset_at_hand(name).fingerprint
            with contextlib.suppress(StorageError):  # if it cannot be written, the images are read again next time
                write_json(kept, {"files": now, "fingerprint": found, "seal": _seal(now, found)})
        _fingerprints[name] = now, found
    return _fingerprints[name][1]


def _read_fingerprint(path: Path, files: str) -> dict | None:
    try:
        kept = json.loads(path.read_text())
        found = kept["fingerprint"]
        return found if kept["files"] == files and kept["seal"] == _seal(files, found) else None
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return None


def _seal(files: str, found: dict) -> str:
    return hashlib.sha256(json.dumps([files, found], sort_keys=True).encode()).hexdigest()


def _signature(name: str) -> str | None:
    """Return `data.signature`. If that takes over `A_WHILE`, it is reused for twenty times as long."""
    value, until = _seen.get(name, (None, 0.0))
    if time.monotonic() > until:
        started = time.process_time()
        value = signature(name)
        seconds = time.process_time() - started
        _seen[name] = value, time.monotonic() + 20 * seconds if seconds > A_WHILE else 0.0
    return value


def made_of(recipe: Recipe, dataset: Dataset, models: dict[str, str]) -> dict:
    """Return what a model is made of, as stored with its weights, checkpoint and record.

    `recipe` with every field; `data`, the images and labels for training and validation; `networks`, the structure of
    each by name and width; checksums of the `files` that the recipe names and of the `models` that it is made from.
    `models` is the object given, not a copy: entries that a step adds later are included.
    """
    networks = [
        [name, width, structure(name, shape=dataset.shape, classes=len(dataset.classes), width=width)]
        for name, width in recipe.networks()
    ]
    data = {key: value for key, value in dataset.fingerprint.items() if key != "test"}
    files = {name: sha256(path) for name, path in recipe.files().items()}
    return {
        "id": recipe.id,
        "recipe": recipe.resolved(),
        "data": data,
        "networks": networks,
        "files": files,
        "models": models,
    }


def outdated(made: Mapping, dataset: str, recipe: Recipe | None = None, *, images: bool = True) -> str | None:
    """Return which part of what a model was made of has changed since, in words; None if nothing has.

    made: a value of `made_of`; parts that it lacks, or that are not at hand, are not compared. `recipe` is the one that
    asks for the model. Without `images`, different images are accepted if classes and shape are the same.
    """
    now = fingerprint(dataset)
    if "data" in made and now and (why := changes(made["data"], now, MAKING if images else ())):
        return why
    if recipe is not None and "id" in made and made["id"] != recipe.id:
        return f"it was made by the recipe {made['id']}"
    if recipe is not None and "recipe" in made and (why := _other_field(made["recipe"], recipe.resolved())):
        return why
    for name, width, then in made.get("networks", ()):
        known = is_allowed(name) if ":" in name else name in ARCHITECTURES  # code that only a record names is not run
        if known and "data" in made and then != _structure_now(name, width, made["data"]):
            return f"the code of {name} builds another network now"
    for name, then in made.get("files", {}).items():
        if Path(name).is_file() and sha256(Path(name)) != then:
            return f"{name} holds something else now"
    return None


def outdated_record(record: Mapping, dataset: str, recipe: Recipe | None = None, *, images: bool = True) -> str | None:
    """Do the same as `outdated` for a record, whose test images are compared too."""
    now = fingerprint(dataset) if images else None
    if "data" in record and now and (why := changes(record["data"], now)):
        return why
    return outdated(record.get("made_of", {}), dataset, recipe or recipe_of(record, dataset), images=images)


def refusal(recipe: Recipe, why: str) -> RecordError:
    """Return the error that says why a recipe's record is not used, and what to do."""
    return RecordError(
        f"the record of {recipe.label} ({recipe.id}) is outdated ({why}): undo the change, or put the record away with "
        "experiment.set_aside(recipe) or "
        f"`python -m experiment set-aside {shlex.quote(recipe.dataset)} {recipe.id}` and run again"
    )


def _structure_now(name: str, width: float, data: Mapping) -> str | None:
    try:
        return structure(name, shape=tuple(data["shape"]), classes=len(data["classes"]), width=width)
    except ModelError:
        return None
    except Exception as error:  # the network's own code may raise anything
        warnings.warn(f"{name} cannot be built ({error})", stacklevel=2)
        return None


def _other_field(then: Any, now: Any, place: str = "") -> str | None:
    """Return the first difference between two resolved recipes, in words.

    A field that only one of them has was added later, and counts as equal.
    """
    if isinstance(then, dict) and isinstance(now, dict):
        place = f" of {now['step']}" if "step" in now else place
        for key in sorted(then.keys() & now.keys() - {"dataset"}):
            if why := _other_field(then[key], now[key], f"{key}{place}"):
                return why
        return None
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return next(filter(None, (_other_field(*pair, place) for pair in zip(then, now, strict=True))), None)
    return None if then == now else f"{place} is {now!r} now, it was {then!r}"
