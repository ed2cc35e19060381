"""What a network is, as plain values: with them a file says how its network is built again."""

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

from torch import nn

from models.errors import ModelError

Spec = dict[str, Any]
Transform = TypeVar("Transform", bound=Callable[[nn.Module, Any], nn.Module])

# What may be done to a network, by name: each takes the network and a value that JSON can say, and gives it another
# structure. Weights are loaded after all was done. One of your own: `@transformation("low_rank")`.
TRANSFORMATIONS: dict[str, Callable[[nn.Module, Any], nn.Module]] = {}
OWN_KEYS = ("channels", "quantized")  # in this order, under keys of their own; whatever else was done is in a list


def spec_of(model: nn.Module) -> Spec:
    """What `rebuild` builds the network from, without its weights.

    Raises:
        ModelError: the network has none, since it was made in another way.
    """
    spec = getattr(model, "spec", None)
    if not isinstance(spec, dict):
        raise ModelError(f"this {type(model).__name__} does not say how it is built: make it by models.build")
    return spec


def set_spec(model: nn.Module, spec: Spec) -> None:
    """Say of a network how it is built."""
    vars(model)["spec"] = spec


def transformation(name: str) -> Callable[[Transform], Transform]:
    """Register what turns a network into one of another structure, under the name by which its `spec` calls it."""

    def register(function: Transform) -> Transform:
        TRANSFORMATIONS[name] = function
        return function

    return register


def with_done(spec: Spec, name: str, value: Any = True) -> Spec:
    """The spec of a network to which one thing more was done: the transformation of that name, with that value."""
    if name not in TRANSFORMATIONS:
        raise ModelError(f"{name!r} is no transformation of a network: use one of {', '.join(TRANSFORMATIONS)}")
    later = OWN_KEYS[OWN_KEYS.index(name) + 1 :] if name in OWN_KEYS else ()
    if name in OWN_KEYS and "done" not in spec and not any(key in spec for key in later):
        return spec | {name: value}
    return spec | {"done": [*spec.get("done", []), [name, value]]}


def was_done(spec: Spec, name: str) -> bool:
    """Whether the transformation of that name was applied to a network, or to a member of an ensemble."""
    return name in dict(done_to(spec)) or any(was_done(member, name) for member in spec.get("members", ()))


def done_to(spec: Spec) -> Iterator[tuple[str, Any]]:
    """Names and values of all transformations of a network, in order."""
    yield from ((key, spec[key]) for key in OWN_KEYS if spec.get(key))
    yield from ((name, value) for name, value in spec.get("done", ()))
