"""Networks by name, and networks from their description, as a weight file carries it."""

from collections.abc import Callable

from torch import nn

from models.quantized import insert_quantizers
from models.resnet import resnet18, resnet20

# Each takes the number of input channels and of classes. The networks end in a global average, so that any image
# side that their strides leave a pixel of will do.
ARCHITECTURES: dict[str, Callable[[int, int], nn.Module]] = {"resnet18": resnet18, "resnet20": resnet20}


class ModelError(Exception):
    """A network that cannot be built."""


def build(name: str, *, shape: tuple[int, int, int], classes: int) -> nn.Module:
    """Build a network with fresh weights from torch's global random state.

    Args:
        name: one of `ARCHITECTURES`.
        shape: channels, height and width of an image.
        classes: number of classes; the network maps `[B, C, H, W]` to logits `[B, classes]`.

    Raises:
        ModelError: the name is unknown.
    """
    if name not in ARCHITECTURES:
        raise ModelError(f"unknown model {name!r}: use one of {', '.join(sorted(ARCHITECTURES))}")
    model = ARCHITECTURES[name](shape[0], classes)
    model.spec = {"architecture": name, "shape": list(shape), "classes": classes}
    return model


def rebuild(spec: dict) -> nn.Module:
    """Build the network that a `model.spec` describes, quantizers included; its weights are to be loaded into it."""
    model = build(spec["architecture"], shape=tuple(spec["shape"]), classes=spec["classes"])
    return insert_quantizers(model) if spec.get("quantized") else model
