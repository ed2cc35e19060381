"""What the hyperparameters of steps may be."""

import dataclasses
import math
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np

from recipe.errors import StepError


def plain_fields(step: Any) -> None:
    """Turn the fields of a frozen dataclass into plain Python values, as loops over arrays and tables give others.

    numpy's numbers become Python's, lists tuples, a mapping its sorted pairs. Whole numbers become floats if the
    field's default is a float, and the other way round, so that `width=2` and `width=2.0` are one recipe.
    """
    for own in dataclasses.fields(step):
        value = plain(getattr(step, own.name))
        if isinstance(own.default, float) and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        elif type(own.default) is int and isinstance(value, float) and value.is_integer():
            value = int(value)
        object.__setattr__(step, own.name, value)


def plain(value: Any) -> Any:
    """A value without numpy's types: `np.int64(3)` is 3, a list a tuple, a mapping a tuple of its sorted pairs."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, Mapping):
        return tuple(sorted((plain(key), plain(own)) for key, own in value.items()))
    if isinstance(value, list | tuple | np.ndarray):
        return tuple(plain(own) for own in value)
    return value


def fields_of(step: Any) -> list[dataclasses.Field]:
    """The fields of a step or its class: those that the class names, in its order, and then what it inherits."""
    own = list((step if isinstance(step, type) else type(step)).__annotations__)
    place = {name: index for index, name in enumerate(own)}
    return sorted(dataclasses.fields(step), key=lambda field: place.get(field.name, len(own)))


def default_of(field: dataclasses.Field) -> Any:
    """A field's default, made by its factory where it has one; MISSING where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def in_identity(field: dataclasses.Field) -> bool:
    """Whether a field is part of a recipe's identity. One that says where something lies is not."""
    return field.metadata.get("identity", True)


def check_whole(name: str, value: Any) -> None:
    """Raise StepError where so many cannot be: no whole number, or one below 1."""
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise StepError(f"{name} must be a whole number and at least 1, not {value!r}")


def is_number(value: Any) -> bool:
    """Whether a value is a finite number; text that reads like one is none, nor is True."""
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def refuse_unused(step: Any, names: Collection[str], why: str) -> None:
    """Raise StepError where one of these fields is set, which change nothing here: it was meant to change something."""
    for own in dataclasses.fields(step):
        if own.name in names and getattr(step, own.name) != default_of(own):
            raise StepError(f"{own.name} would change nothing: {why}, or leave it out")
