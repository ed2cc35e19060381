"""Networks by name, and networks from their description, as a weight file carries it."""

import math
from collections.abc import Callable
from functools import partial

from torch import nn

from models.channels import cut
from models.ensemble import Ensemble
from models.errors import ModelError
from models.quantized import insert_quantizers
from models.resnet import Shape, resnet8, resnet14, resnet18, resnet20
from models.spec import Spec, set_spec, spec_of
from models.students import PLAIN, PlainStudent, ds_cnn, tiny_mixer

# Each takes an image's shape, the number of classes, and a width that its numbers of channels are multiplied with.
ARCHITECTURES: dict[str, Callable[[Shape, int, float], nn.Module]] = {
    "resnet18": resnet18,
    "resnet20": resnet20,
    "resnet14": resnet14,
    "resnet8": resnet8,
    "ds_cnn": ds_cnn,
    "tiny_mixer": tiny_mixer,
    **{name: partial(PlainStudent, name) for name in PLAIN},
}


def build(name: str, *, shape: Shape, classes: int, width: float = 1.0) -> nn.Module:
    """Build a network with fresh weights from torch's global random state.

    Args:
        name: one of `ARCHITECTURES`.
        shape: channels, height and width of an image.
        classes: number of classes; the network maps `[B, C, H, W]` to logits `[B, classes]`.
        width: factor of the number of channels.

    Raises:
        ModelError: the name is unknown, or the width not above 0 and finite.
    """
    check_model(name, width)
    model = ARCHITECTURES[name](shape, classes, width)
    spec = {"architecture": name, "shape": list(shape), "classes": classes}
    set_spec(model, spec if width == 1 else spec | {"width": width})
    return model


def check_model(name: str, width: float) -> None:
    """Raise ModelError where there is no such network."""
    if not isinstance(name, str) or name not in ARCHITECTURES:
        raise ModelError(f"unknown model {name!r}: use one of {', '.join(sorted(ARCHITECTURES))}")
    if not isinstance(width, int | float) or isinstance(width, bool) or not 0 < width < math.inf:
        raise ModelError(f"width, the factor of the number of channels, must be above 0 and finite, not {width!r}")


def combine(members: list[nn.Module]) -> nn.Module:
    """The ensemble of networks of the same images and classes, all weighted alike."""
    model = Ensemble(members)
    specs = [spec_of(member) for member in members]
    of_images = {key: specs[0][key] for key in ("shape", "classes")}
    set_spec(model, {"architecture": "ensemble", **of_images, "members": specs})
    return model


def rebuild(spec: Spec) -> nn.Module:
    """Build the network that a `model.spec` describes, quantizers included; its weights are to be loaded into it."""
    if "members" in spec:
        return combine([rebuild(member) for member in spec["members"]])
    shape, width = tuple(spec["shape"]), spec.get("width", 1.0)
    model = build(spec["architecture"], shape=shape, classes=spec["classes"], width=width)
    if "channels" in spec:
        spec_of(cut(model, spec["channels"]))["channels"] = spec["channels"]
    return insert_quantizers(model) if spec.get("quantized") else model
