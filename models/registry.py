"""Build networks by name, or from the spec that a weight file holds."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import nn

from models.elsewhere import allow, check_allowed, check_name, factory, in_words, is_elsewhere, near
from models.ensemble import Ensemble
from models.errors import ModelError
from models.operators import trace
from models.resnet import Shape, resnet8, resnet14, resnet18, resnet20
from models.spec import TRANSFORMATIONS, Spec, done_to, set_spec, spec_of, with_done
from models.students import PLAIN, PlainStudent, ds_cnn, tiny_mixer

# Each takes an image's shape, the number of classes, and a width that multiplies its numbers of channels.
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

    Its `spec` describes it. Training adds `pixels` to the spec: the `mean` and `std` per channel (of pixels scaled to
    0..1) that normalize its images, which belong to the network as its weights do.

    Args:
        name: one of `ARCHITECTURES`, or of another's: see `models.elsewhere`.
        shape: channels, height and width of an image.
        classes: number of classes; the network maps `[B, C, H, W]` to logits `[B, classes]`.
        width: factor of the number of channels.

    Raises:
        ModelError: the name is unknown, or the width is not above 0 and finite.
    """
    check_model(name, width)
    allow([name])
    model = (factory(name) if is_elsewhere(name) else ARCHITECTURES[name])(shape, classes, width)
    spec = {"architecture": name, "shape": list(shape), "classes": classes}
    set_spec(model, spec if width == 1 else spec | {"width": width})
    return model


def check_model(name: str, width: float) -> None:
    """Raise ModelError unless there is such a network."""
    if not is_elsewhere(name) and (not isinstance(name, str) or name not in ARCHITECTURES):
        raise ModelError(f"unknown model {name!r}{near(name, ARCHITECTURES)}")
    if not isinstance(width, int | float) or isinstance(width, bool) or not 0 < width < math.inf:
        raise ModelError(f"width, the factor of the number of channels, must be above 0 and finite, not {width!r}")
    if is_elsewhere(name):
        check_name(name, width)


@torch.no_grad()
def check_network(model: nn.Module, shape: Shape, classes: int) -> None:
    """Raise ModelError unless a network maps images `[B, *shape]` to logits `[B, classes]`, can be traced and trained.

    This runs a forward pass of two images: call it once, before training.
    """
    name, training = getattr(model, "spec", {}).get("architecture", type(model).__name__), model.training
    first = next(model.parameters(), None)
    if first is None:
        raise ModelError(f"{name} has no parameters, so there is nothing to train: give it a layer with weights")
    images = torch.zeros(2, *shape, device=first.device)
    reached = [""]
    hooks = [
        module.register_forward_pre_hook(lambda *_, path=path: reached.append(path))
        for path, module in model.named_modules()
    ]
    try:
        logits = model.eval()(images)
    except Exception as error:  # the network's code may raise anything
        where = f" at {reached[-1]}" if reached[-1] else ""
        raise ModelError(
            f"{name} does not take images {tuple(shape)} ({in_words(error)}{where}): correct its forward, or give it "
            "images as large as it was made for (?side= behind the path of a folder)"
        ) from error
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    if not isinstance(logits, torch.Tensor):
        raise ModelError(f"{name} returns a {type(logits).__name__} in evaluation mode: return the logits alone")
    if logits.shape != (2, classes):
        raise ModelError(
            f"{name} returns a tensor {list(logits.shape)} for 2 images of {classes} classes: return one logit per "
            f"class, [2, {classes}]"
        )
    trace(model)


def combine(members: list[nn.Module]) -> nn.Module:
    """Return an ensemble with equal weights of networks for the same images and classes.

    Raises:
        ModelError: the members differ in image shape, number of classes or normalization of pixels.
    """
    model = Ensemble(members)
    first = spec_of(members[0])
    for member in members:
        if (images := _images_of(spec_of(member))) != (expected := _images_of(first)):
            raise ModelError(f"an ensemble's members need the same images: one takes {images}, another {expected}")
        if spec_of(member).get("pixels") != first.get("pixels"):
            raise ModelError("an ensemble's members were trained with different mean and std of pixels: use the same")
    specs = [{key: value for key, value in spec_of(member).items() if key != "pixels"} for member in members]
    of_images: Spec = {key: first[key] for key in ("shape", "classes", "pixels") if key in first}
    set_spec(model, {"architecture": "ensemble", **of_images, "members": specs})
    return model


def _images_of(spec: Spec) -> str:
    """Return the input of a network: `images (3, 32, 32) of 10 classes`."""
    return f"images {tuple(spec['shape'])} of {spec['classes']} classes"


def rebuild(spec: Spec) -> nn.Module:
    """Build the network that a `model.spec` describes, transformations included; weights must be loaded afterwards.

    Raises:
        ModelError: the network or one of its transformations is unknown.
    """
    pixels = {"pixels": spec["pixels"]} if "pixels" in spec else {}
    if "members" in spec:
        model = combine([rebuild(member) for member in spec["members"]])
        spec_of(model).update(pixels)
        return model
    check_allowed(spec["architecture"])
    shape, width = tuple(spec["shape"]), spec.get("width", 1.0)
    model = build(spec["architecture"], shape=shape, classes=spec["classes"], width=width)
    spec_of(model).update(pixels)
    for transform, value in done_to(spec):
        if transform not in TRANSFORMATIONS:
            raise ModelError(
                f"unknown transformation {transform!r} of the network: import the module that defines it (as "
                "--import MODULE on the command line)"
            )
        before = spec_of(model)
        model = TRANSFORMATIONS[transform](model, value)
        set_spec(model, with_done(before, transform, value))
    return model
