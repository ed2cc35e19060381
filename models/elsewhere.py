"""Networks of other people and of the user: `torchvision:NAME`, `timm:NAME` and `MODULE:FUNCTION`.

`torchvision:convnext_tiny(stochastic_depth_prob=0.2)` names one with an argument; `named` writes such a name. The code
of `MODULE:FUNCTION` runs only if the user named it, in a recipe for instance: see `allow`.
"""

import ast
import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any

import torch
from torch import nn

from models.errors import ModelError
from models.resnet import Shape

Factory = Callable[[Shape, int, float], nn.Module]
NAME = re.compile(r"(?P<source>\w[\w.]*):(?P<name>\w[\w.]*)(?:\((?P<arguments>.*)\))?", re.DOTALL)
# Torchvision's networks that give several outputs in training unless they are told not to.
PLAIN_OUTPUT = {"googlenet": {"aux_logits": False}, "inception_v3": {"aux_logits": False}}
_allowed: set[str] = set()  # networks of MODULE:FUNCTION that a recipe or a reader named


def named(name: str, **arguments: Any) -> str:
    """The name of a network with arguments: `named("timm:resnet18d", drop_rate=0.1)`. They must be plain values."""
    given = ", ".join(f"{key}={value!r}" for key, value in sorted(arguments.items()))
    return f"{name}({given})" if given else name


def is_elsewhere(name: object) -> bool:
    """Whether a network's name is one of this module's."""
    return isinstance(name, str) and ":" in name


def allow(names: Iterable[str]) -> None:
    """Say that the code of these networks may run: what a file or record names alone is not enough for that."""
    _allowed.update(name for name in names if is_elsewhere(name))


def is_allowed(name: str) -> bool:
    """Whether the code of a network may run: ours, torchvision's and timm's may, and what the user named."""
    return not is_elsewhere(name) or name in _allowed or _parts(name)[0] in SOURCES


def check_allowed(name: str) -> None:
    """Raise ModelError if only a file names a network, and so its code must not run."""
    if not is_allowed(name):
        raise ModelError(
            f"the network {name!r} is code of yours, which is only run if you name it: as network={name!r}, or "
            f"--network {name} on the command line"
        )


def check_name(name: str, width: float) -> None:
    """Raise ModelError if a name is not of the form, or names no network; code of the user is not run."""
    source, function, _ = _parts(name)
    if source in SOURCES:
        known = SOURCES[source][0]()
        if function not in known:
            raise ModelError(f"{source} has no network {function!r}{near(function, known)}")
        if width != 1:
            raise ModelError(f"{name} has no width to scale: leave width out, or name a network of another size")


def factory(name: str) -> Factory:
    """What builds a network from an image's shape, the number of classes and a width.

    Raises:
        ModelError: there is no such network.
    """
    source, function, arguments = _parts(name)
    if source in SOURCES:
        return partial(SOURCES[source][1], function, arguments)
    return partial(_call, name, _function(source, function), arguments)


def near(name: object, known: Iterable[str]) -> str:
    """`: did you mean resnet18 or resnet34?` of names like this one; how many there are, if none is."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
    if close:
        return f": did you mean {' or '.join(close)}?"
    return f": use one of {', '.join(sorted(known))}" if len(known) < 40 else f", of {len(known)} that it has"


def _parts(name: str) -> tuple[str, str, dict[str, Any]]:
    found = NAME.fullmatch(name)
    if found is None:
        raise ModelError(
            f"{name!r} names no network: write 'torchvision:NAME', 'timm:NAME' or 'MODULE:FUNCTION', with arguments as "
            "in 'torchvision:convnext_tiny(stochastic_depth_prob=0.2)'"
        )
    try:
        call = ast.parse(f"f({found['arguments'] or ''})", mode="eval").body
        assert isinstance(call, ast.Call) and not call.args
        arguments = {str(given.arg): ast.literal_eval(given.value) for given in call.keywords}
    except (SyntaxError, ValueError, AssertionError):
        raise ModelError(f"the arguments of {name!r} are no plain values by name, such as (dropout=0.1)") from None
    return found["source"], found["name"], arguments


# --- Libraries --------------------------------------------------------------------------------------------------------


def _torchvision_names() -> list[str]:
    from torchvision import models

    return models.list_models(module=models)  # classification


def _torchvision(name: str, arguments: dict[str, Any], shape: Shape, classes: int, width: float) -> nn.Module:
    from torchvision import models

    fields = {**PLAIN_OUTPUT.get(name, {}), "weights": None, "num_classes": classes, **arguments}
    if name in PLAIN_OUTPUT:
        fields.setdefault("init_weights", True)
    return with_channels(_built(f"torchvision:{name}", partial(models.get_model, name), fields), shape[0])


def _timm_names() -> list[str]:
    return _timm_module().list_models()


def _timm(name: str, arguments: dict[str, Any], shape: Shape, classes: int, width: float) -> nn.Module:
    fields = {"pretrained": False, "num_classes": classes, "in_chans": shape[0], **arguments}
    return _built(f"timm:{name}", partial(_timm_module().create_model, name), fields)


def _timm_module() -> Any:
    try:
        return importlib.import_module("timm")
    except ImportError:
        raise ModelError("timm is not installed: `.venv/bin/python -m pip install -e '.[timm]'`") from None


# Names of a library's networks, and what builds one of them.
SOURCES: dict[str, tuple[Callable[[], list[str]], Callable[..., nn.Module]]] = {
    "torchvision": (_torchvision_names, _torchvision),
    "timm": (_timm_names, _timm),
}


def with_channels(model: nn.Module, channels: int) -> nn.Module:
    """The network for images of so many channels: its first convolution takes these, with fresh weights."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels != channels and layer.groups == 1:
                fields = ("out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
                own = {field: getattr(layer, field) for field in fields}
                model.set_submodule(name, nn.Conv2d(channels, **own, bias=layer.bias is not None))
            break
    return model


# --- A function of the user's -----------------------------------------------------------------------------------------


def _function(module: str, name: str) -> Callable[..., object]:
    try:
        found = importlib.import_module(module)
    except ImportError as error:
        raise ModelError(
            f"the module {module!r} cannot be imported ({error}): put {module}.py beside the notebook, or into the "
            "folder where the command runs"
        ) from None
    function = getattr(found, name, None)
    if not callable(function):
        functions = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
        raise ModelError(f"{module} has no function {name!r}{near(name, functions)}")
    return function


def _call(
    name: str, function: Callable, arguments: dict[str, Any], shape: Shape, classes: int, width: float
) -> nn.Module:
    """Call it with those of the usual arguments that it takes by name."""
    known = {"shape": shape, "in_channels": shape[0], "classes": classes, "num_classes": classes, "width": width}
    takes = inspect.signature(function).parameters
    if width != 1 and "width" not in takes:
        raise ModelError(f"{name} takes no width: leave width out, or give the function an argument width")
    fields = {key: value for key, value in known.items() if key in takes} | arguments
    return _built(name, function, fields)


def _built(name: str, function: Callable[..., object], fields: dict[str, Any]) -> nn.Module:
    try:
        model = function(**fields)
    except TypeError as error:  # an argument that it has not, or one that it needs
        raise ModelError(f"{name} cannot be called with {', '.join(fields)} ({error})") from None
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} gives a {type(model).__name__}: return a torch.nn.Module")
    if any(isinstance(parameter, nn.UninitializedParameter) for parameter in model.parameters()):
        raise ModelError(f"{name} has lazy layers, whose sizes are not known yet: give them sizes")
    return model.to(torch.float32)
