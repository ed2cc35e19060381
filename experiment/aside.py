"""Sets a recipe's files aside, on request only. No other module moves them."""

import itertools
import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from experiment.freshness import outdated_record
from experiment.records import read_record
from experiment.store import Store, artifacts_folder, results_folder
from recipe import Recipe
from storage import StorageError, weights_of


def set_aside(recipe: Recipe) -> list[str]:
    """Move all files of a recipe, and of recipes made from it, to folders named `set_aside`; return the ids.

    These are records, archives, weights, ONNX files, and tables that contain one of the ids. Each moves to `set_aside`
    in the results or artifacts folder that it was in, and can be restored from there. What was put there before stays:
    then the files move to `set_aside/2`, and so on. The next run makes them again.

    Raises:
        StorageError: a record is damaged, so that it might be made from the recipe; nothing is moved then.
    """
    return set_ids_aside(recipe.dataset, [recipe.id], {recipe.id: recipe.describe()})


def set_ids_aside(dataset: str, ids: list[str], recipes: Mapping[str, dict] | None = None) -> list[str]:
    """Do the same as `set_aside` for several recipes, given by their ids, and by their JSON if it is at hand.

    Raises:
        StorageError: an id is malformed or has no files, or a record is damaged; nothing is moved then.
    """
    ids = list(dict.fromkeys(ids))
    if wrong := [key for key in ids if not re.fullmatch("[0-9a-f]{12}", key)]:
        raise StorageError(f"{wrong[0]!r} is not the id of a record: give its twelve hexadecimal digits")
    if absent := [key for key in ids if not Store(dataset, key).files()]:
        raise StorageError(
            f"there are no files of {absent[0]} under {dataset}: its records are in {results_folder(dataset)}"
        )
    known = _recipes(dataset, recipes or {})
    others = {key: recipe for key, recipe in known.items() if key not in ids}
    dependents = [key for key, recipe in others.items() if any(_contains(recipe, known.get(wanted)) for wanted in ids)]
    for path in sorted((results_folder(dataset) / "tables").glob("*.json")):
        if any(key in path.read_text() for key in (*dependents, *ids)):
            _move(path, results_folder(dataset))
    for key in (*dependents, *ids):  # dependents first: after an interruption they can still be found from `ids`
        store = Store(dataset, key)
        with store.locked():
            for path in store.files():
                _move(path, results_folder(dataset) if store.results in path.parents else artifacts_folder(dataset))
    return [*dependents, *ids]


def outdated_ids(dataset: str) -> dict[str, str]:
    """Return the ids of records that do not match the images or networks at hand, each with the reason."""
    records = filter(None, map(read_record, sorted(results_folder(dataset).glob("*.json"))))
    reasons = {record["id"]: outdated_record(record, dataset) for record in records}
    return {key: why for key, why in reasons.items() if why}


def _move(path: Path, folder: Path) -> None:
    """Move a file to `set_aside` in the folder, or to `set_aside/2` and so on if one of its name is there."""
    aside, name = folder / "set_aside", path.relative_to(folder)
    places = itertools.chain([aside / name], (aside / str(number) / name for number in itertools.count(2)))
    place = next(place for place in places if not place.exists())
    place.parent.mkdir(parents=True, exist_ok=True)
    path.replace(place)


def _recipes(dataset: str, given: Mapping[str, dict]) -> dict[str, Any]:
    """Return the JSON of the recipes given and of every one that has a record or weights, by its id.

    An edited record still says what it is made from. Raises StorageError if one does not.
    """
    found, damaged = dict(given), []
    for path in sorted(results_folder(dataset).glob("*.json")):
        try:
            found[path.stem] = json.loads(path.read_text())["recipe"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            damaged.append(path)
    for path in sorted(artifacts_folder(dataset).glob("*.safetensors")):
        try:
            found.setdefault(path.stem, weights_of(path)["described"])
        except (StorageError, KeyError):
            continue  # damaged, or of an older format: the next run ignores it
    if unknown := [path for path in damaged if path.stem not in found]:
        raise StorageError(f"{unknown[0]} is damaged, so what it was made from is unknown: restore or delete it first")
    return found


def _contains(value: Any, recipe: dict | None) -> bool:
    """Return whether a recipe's JSON starts with another's, or has a teacher, member or earlier training that does."""
    if recipe is None:
        return False
    if isinstance(value, list):
        return any(_contains(item, recipe) for item in value)
    if not isinstance(value, dict):
        return False
    start = value | {"steps": value.get("steps", [])[: len(recipe["steps"])]}
    return start == recipe or any(_contains(item, recipe) for item in value.values())
