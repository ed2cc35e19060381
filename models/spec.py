"""Specs: plain values that describe a network, so that a file can say how to rebuild it."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import nn

from models.errors import ModelError

Spec = dict[str, Any]
Transform = TypeVar("Transform", bound=Callable[[nn.Module, Any], nn.Module])

# Transformations by name: each takes a network and a JSON value, and changes the network's structure. Weights are
# loaded after all of them. Register your own with `@transformation("low_rank")`.
TRANSFORMATIONS: dict[str, Callable[[nn.Module, Any], nn.Module]] = {}
OWN_KEYS = ("channels", "quantized")  # have their own keys in a spec if done in this order; all others are in a list


def spec_of(model: nn.Module) -> Spec:
    """Return the spec from which `rebuild` builds the network, without its weights.

    Raises:
        ModelError: the network has no spec, since it was not made by this package.
    """
    spec = getattr(model, "spec", None)
    if not isinstance(spec, dict):
        raise ModelError(f"this {type(model).__name__} does not say how to build it: create it with models.build")
    return spec


def set_spec(model: nn.Module, spec: Spec) -> None:
    """Set the spec of a network."""
    vars(model)["spec"] = spec


def transformation(name: str) -> Callable[[Transform], Transform]:
    """Register a function that changes a network's structure, under the name used in its `spec`."""

    def register(function: Transform) -> Transform:
        other = TRANSFORMATIONS.get(name)
        if other is not None and other.__module__ != function.__module__:
            raise ModelError(f"{other.__module__} has a transformation {name!r} already: choose another name")
        TRANSFORMATIONS[name] = function
        return function

    return register


def with_done(spec: Spec, name: str, value: Any = True) -> Spec:
    """Return the spec with one more transformation, of that name and value."""
    if name not in TRANSFORMATIONS:
        raise ModelError(f"{name!r} is not a transformation of a network: use one of {', '.join(TRANSFORMATIONS)}")
    later = OWN_KEYS[OWN_KEYS.index(name) + 1 :] if name in OWN_KEYS else ()
    if name in OWN_KEYS and "done" not in spec and not any(key in spec for key in later):
        return spec | {name: value}
    return spec | {"done": [*spec.get("done", []), [name, value]]}


def was_done(spec: Spec, name: str) -> bool:
    """Return whether the transformation of that name was applied to the network or to a member of an ensemble."""
    return name in dict(done_to(spec)) or any(was_done(member, name) for member in spec.get("members", ()))


def done_to(spec: Spec) -> Iterator[tuple[str, Any]]:
    """Yield the name and value of each transformation of a network, in order."""
    yield from ((key, spec[key]) for key in OWN_KEYS if spec.get(key))
    yield from ((name, value) for name, value in spec.get("done", ()))
