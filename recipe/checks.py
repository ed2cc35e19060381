"""Normalization and checks of hyperparameters."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from pathlib import PurePath
from typing import Any

import numpy as np

from recipe.errors import StepError

PLAIN = (bool, int, float, str, tuple, PurePath)  # what a field may hold, besides None, parts and recipes


def plain_fields(step: Any) -> None:
    """Turn the fields of a frozen dataclass into plain Python values: loops over arrays and tables give other types.

    numpy numbers become Python numbers, lists become tuples, and a mapping becomes its sorted pairs. Integers become
    floats if the field's default is a float, and the reverse, so that `width=2` and `width=2.0` are the same recipe.
    """
    for field in dataclasses.fields(step):
        value = plain(getattr(step, field.name))
        if isinstance(field.default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif type(field.default) is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        object.__setattr__(step, field.name, value)


def check_plain(part: Any) -> None:
    """Raise StepError unless each field of a part can be written to a recipe's JSON and compared again."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name)
        if isinstance(value, float) and math.isnan(value):
            raise StepError(f"{field.name} of {part.name} is NaN, which equals nothing: give a number")
        if not (value is None or dataclasses.is_dataclass(value) or isinstance(value, PLAIN)):
            raise StepError(
                f"{field.name} of {part.name} is a {type(value).__name__}, which a recipe cannot hold: give a number, "
                "text, tuple, recipe or part"
            )


def plain(value: Any) -> Any:
    """Convert a value to plain Python: `np.int64(3)` to 3, a list to a tuple, a mapping to a tuple of sorted pairs."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return tuple(sorted((plain(key), plain(item)) for key, item in value.items()))
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(plain(item) for item in value)
    return value


def fields_of(step: Any) -> list[dataclasses.Field]:
    """Return the fields of a step or its class: first those of the class itself, in its order, then inherited ones."""
    own = list((step if isinstance(step, type) else type(step)).__annotations__)
    order = {name: index for index, name in enumerate(own)}
    return sorted(dataclasses.fields(step), key=lambda field: order.get(field.name, len(own)))


def default_of(field: dataclasses.Field) -> Any:
    """Return a field's default, calling its factory if it has one; MISSING if there is no default."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def identity_fields(part: Any) -> list[dataclasses.Field]:
    """Return the fields that are part of a recipe's identity; those that say where something lies are not."""
    return [field for field in dataclasses.fields(part) if field.metadata.get("identity", True)]


def shared_fields(part: Any, kind: type) -> dict[str, Any]:
    """Return the values of a part's fields that a `kind` has under the same names."""
    own = {field.name for field in dataclasses.fields(part)}
    return {field.name: getattr(part, field.name) for field in dataclasses.fields(kind) if field.name in own}


def check_whole(name: str, value: Any) -> None:
    """Raise StepError unless `value` is an integer >= 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise StepError(f"{name} must be a whole number and at least 1, not {value!r}")


def is_number(value: Any) -> bool:
    """Return whether a value is a finite int or float; strings and booleans are not numbers."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def check_fields(kind: type, names: Collection[str]) -> None:
    """Raise StepError if a class of steps has no field of one of these names."""
    known = [field.name for field in fields_of(kind)]
    if unknown := [name for name in names if name not in known]:
        raise StepError(f"{kind.__name__} has no field {unknown[0]!r}: use some of {', '.join(known)}")


def refuse_unused(step: Any, names: Collection[str], why: str) -> None:
    """Raise StepError if a field in `names` is set although it has no effect here."""
    for field in dataclasses.fields(step):
        if field.name in names and getattr(step, field.name) != default_of(field):
            raise StepError(f"{field.name} would change nothing: {why}, or leave it out")
