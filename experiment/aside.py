"""Putting files away: the one place where those of a recipe are moved, and only when it is asked for."""

import re
from pathlib import Path
from typing import Any

from experiment.freshness import outdated_record
from experiment.records import read_record
from experiment.store import Store, artifacts_folder, results_folder
from recipe import Recipe
from storage import StorageError, weights_of


def set_aside(recipe: Recipe) -> list[str]:
    """Move everything of a recipe, and of what was made from it, to folders named `set_aside`; returns the ids.

    Records, archives, weights, ONNX files and the tables that name one of the ids: beside the folders that they were
    in, where they can be had again. After that the recipe is made anew.
    """
    return set_ids_aside(recipe.dataset, [recipe.id])


def set_ids_aside(dataset: str, ids: list[str]) -> list[str]:
    """As `set_aside`, of several recipes by their ids.

    Raises:
        StorageError: one of them is no id, or nothing is kept of it: nothing is moved.
    """
    ids = list(dict.fromkeys(ids))
    if wrong := [key for key in ids if not re.fullmatch("[0-9a-f]{12}", key)]:
        raise StorageError(f"{wrong[0]!r} is no id of a record: give its twelve hexadecimal digits")
    if absent := [key for key in ids if not Store(dataset, key).files()]:
        raise StorageError(
            f"nothing is kept of {absent[0]} under {dataset}: its records lie in {results_folder(dataset)}"
        )
    known = _recipes(dataset)
    others = {key: own for key, own in known.items() if key not in ids}
    heirs = [key for key, own in others.items() if any(_holds(own, known.get(wanted)) for wanted in ids)]
    for path in sorted((results_folder(dataset) / "tables").glob("*.json")):
        if any(key in path.read_text() for key in (*heirs, *ids)):
            _move(path, results_folder(dataset))
    for key in (*heirs, *ids):  # heirs first: if this is killed, what they were made from is still there to name them
        store = Store(dataset, key)
        with store.locked():
            for path in store.files():
                _move(path, results_folder(dataset) if store.results in path.parents else artifacts_folder(dataset))
    return [*heirs, *ids]


def outdated_ids(dataset: str) -> dict[str, str]:
    """The ids of records that are not of the images or networks at hand, and why."""
    records = filter(None, map(read_record, sorted(results_folder(dataset).glob("*.json"))))
    reasons = {record["id"]: outdated_record(record, dataset) for record in records}
    return {key: why for key, why in reasons.items() if why}


def _move(path: Path, folder: Path) -> None:
    aside = folder / "set_aside" / path.relative_to(folder)
    aside.parent.mkdir(parents=True, exist_ok=True)
    path.replace(aside)


def _recipes(dataset: str) -> dict[str, Any]:
    """The JSON of every recipe that has a record or weights, by its id."""
    found = {}
    for path in sorted(results_folder(dataset).glob("*.json")):
        if (record := read_record(path)) is not None:
            found[path.stem] = record["recipe"]
    for path in sorted(artifacts_folder(dataset).glob("*.safetensors")):
        try:
            found.setdefault(path.stem, weights_of(path)["described"])
        except (StorageError, KeyError):
            continue  # damaged, or of before: the next run passes it over
    return found


def _holds(value: Any, recipe: dict | None) -> bool:
    """Whether a recipe's JSON starts with another's, or has a teacher, a member or earlier weights that do."""
    if recipe is None:
        return False
    if isinstance(value, list):
        return any(_holds(own, recipe) for own in value)
    if not isinstance(value, dict):
        return False
    start = value | {"steps": value.get("steps", [])[: len(recipe["steps"])]}
    return start == recipe or any(_holds(own, recipe) for own in value.values())
