"""Sets a recipe's files aside, on request only. No other module moves them."""

import re
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
    in the results or artifacts folder that it was in, and can be restored from there. The next run makes them again.
    """
    return set_ids_aside(recipe.dataset, [recipe.id])


def set_ids_aside(dataset: str, ids: list[str]) -> list[str]:
    """Do the same as `set_aside` for several recipes, given by their ids.

    Raises:
        StorageError: an id is malformed, or has no files; nothing is moved then.
    """
    ids = list(dict.fromkeys(ids))
    if wrong := [key for key in ids if not re.fullmatch("[0-9a-f]{12}", key)]:
        raise StorageError(f"{wrong[0]!r} is not the id of a record: give its twelve hexadecimal digits")
    if absent := [key for key in ids if not Store(dataset, key).files()]:
        raise StorageError(
            f"there are no files of {absent[0]} under {dataset}: its records are in {results_folder(dataset)}"
        )
    known = _recipes(dataset)
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
    aside = folder / "set_aside" / path.relative_to(folder)
    aside.parent.mkdir(parents=True, exist_ok=True)
    path.replace(aside)


def _recipes(dataset: str) -> dict[str, Any]:
    """Return the JSON of every recipe that has a record or weights, by its id."""
    found = {}
    for path in sorted(results_folder(dataset).glob("*.json")):
        if (record := read_record(path)) is not None:
            found[path.stem] = record["recipe"]
    for path in sorted(artifacts_folder(dataset).glob("*.safetensors")):
        try:
            found.setdefault(path.stem, weights_of(path)["described"])
        except (StorageError, KeyError):
            continue  # damaged, or of an older format: the next run ignores it
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
