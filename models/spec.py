"""What a network is, as plain values: with them a file says how its network is built again."""

from typing import Any

from torch import nn

from models.errors import ModelError

Spec = dict[str, Any]


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
