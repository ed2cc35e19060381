"""What is at hand, images and code, and whether a record, weights or a table are still of it."""

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

MAKING = ("train", "validation")  # the images that a model may be made from; the others are those that it is tested on
A_WHILE = 0.1  # seconds
_loaded: dict[str, tuple[str | None, Dataset]] = {}
_seen: dict[str, tuple[str | None, float]] = {}
_fingerprints: dict[str, tuple[str, dict]] = {}


class RecordError(StorageError):
    """A record, or weights, of other images, code or settings than those at hand; the message says which."""


def dataset_at_hand(name: str) -> Dataset:
    """The data set, read again if its files were changed. Raises DataError as `load`."""
    now = _signature(name)
    if name not in _loaded or _loaded[name][0] != now:
        while len(_loaded) > 1:
            _loaded.pop(next(iter(_loaded)))
        _loaded[name] = now, load(name)
    return _loaded[name][1]


def fingerprint(name: str) -> dict | None:
    """What the images and labels are, or None where they are not at hand.

    Kept among the artifacts beside the names, sizes and times of the files, so that it takes no reading of images.
    """
    now = _signature(name)
    if now is None:
        return None
    if _fingerprints.get(name, ("",))[0] != now:
        kept = artifacts_folder(name) / "fingerprint.json"
        found = _read_fingerprint(kept, now)
        if found is None:
            found = dataset_at_hand(name).fingerprint
            with contextlib.suppress(StorageError):  # where nothing can be kept, it is read again
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
    """`data.signature`; of a folder so large that it takes a while, looked up again only after twenty times as long."""
    value, until = _seen.get(name, (None, 0.0))
    if time.monotonic() > until:
        started = time.process_time()
        value = signature(name)
        seconds = time.process_time() - started
        _seen[name] = value, time.monotonic() + 20 * seconds if seconds > A_WHILE else 0.0
    return value


def made_of(recipe: Recipe, dataset: Dataset, models: dict[str, str]) -> dict:
    """What a model is made of, as its weights, checkpoint and record keep it.

    `recipe` with every field; `data`, the images and labels for training and validation; `networks`, the structure of
    each by name and width; `files` that the recipe names, and the `models` that it was made from, by their checksums:
    the very `models` given, to which those are added that a step asks for later.
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
    """What of that which a model was made of is another now, in words; None if nothing that is at hand is.

    made: as `made_of` gives it; what it lacks is not compared. `recipe` is the one that asks for the model. Without
    `images`, other images of the same classes and shape do not count.
    """
    now = fingerprint(dataset)
    if "data" in made and now and (why := changes(made["data"], now, MAKING if images else ())):
        return why
    if recipe is not None and "id" in made and made["id"] != recipe.id:
        return f"it is of the recipe {made['id']}"
    if recipe is not None and "recipe" in made and (why := _other_field(made["recipe"], recipe.resolved())):
        return why
    for name, width, then in made.get("networks", ()):
        known = is_allowed(name) if ":" in name else name in ARCHITECTURES  # code that a record alone names is not run
        if known and "data" in made and then != _structure_now(name, width, made["data"]):
            return f"the code of {name} builds another network now"
    for name, then in made.get("files", {}).items():
        if Path(name).is_file() and sha256(Path(name)) != then:
            return f"{name} holds something else now"
    return None


def outdated_record(record: Mapping, dataset: str, recipe: Recipe | None = None, *, images: bool = True) -> str | None:
    """As `outdated`, of a record: also whether the images that it was tested on are others now."""
    now = fingerprint(dataset) if images else None
    if "data" in record and now and (why := changes(record["data"], now)):
        return why
    return outdated(record.get("made_of", {}), dataset, recipe or recipe_of(record, dataset), images=images)


def refusal(recipe: Recipe, why: str) -> RecordError:
    """The error that says why a recipe's record is not used, and what to do."""
    return RecordError(
        f"the record of {recipe.label} ({recipe.id}) is not of what is at hand ({why}): restore that, or put it away "
        "with experiment.set_aside(recipe) or "
        f"`python -m experiment set-aside {shlex.quote(recipe.dataset)} {recipe.id}` and run again"
    )


def _structure_now(name: str, width: float, data: Mapping) -> str | None:
    try:
        return structure(name, shape=tuple(data["shape"]), classes=len(data["classes"]), width=width)
    except ModelError:
        return None
    except Exception as error:  # whatever a network's own code raises: it does not build what it did
        warnings.warn(f"{name} cannot be built ({error})", stacklevel=2)
        return None


def _other_field(then: Any, now: Any, place: str = "") -> str | None:
    """The first field of two resolved recipes that differs; a field that one of them lacks came later, and is equal."""
    if isinstance(then, dict) and isinstance(now, dict):
        place = f" of {now['step']}" if "step" in now else place
        for key in sorted(then.keys() & now.keys() - {"dataset"}):
            if why := _other_field(then[key], now[key], f"{key}{place}"):
                return why
        return None
    if isinstance(then, list) and isinstance(now, list) and len(then) == len(now):
        return next(filter(None, (_other_field(*pair, place) for pair in zip(then, now, strict=True))), None)
    return None if then == now else f"{place} is {now!r} now, it was {then!r}"
