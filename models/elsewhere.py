"""Networks defined elsewhere: `torchvision:NAME`, `timm:NAME`, and the user's own as `MODULE:FUNCTION`.

A name may include arguments, as in `torchvision:convnext_tiny(stochastic_depth_prob=0.2)`; `named` writes such a name.
The code of `MODULE:FUNCTION` runs only if the user named it, for instance in a recipe: see `allow`.
"""

import ast
import difflib
import importlib
import inspect
import re
from collections.abc import Callable, Iterable
from functools import partial
from types import ModuleType
from typing import Any

import torch
from torch import nn

from models.errors import ModelError
from models.resnet import Shape

Factory = Callable[[Shape, int, float], nn.Module]
NAME = re.compile(r"(?P<source>\w[\w.]*):(?P<name>\w[\w.]*)(?:\((?P<arguments>.*)\))?", re.DOTALL)
# Torchvision networks that return several outputs in training by default.
PLAIN_OUTPUT = {name: {"aux_logits": False, "init_weights": True} for name in ("googlenet", "inception_v3")}
_allowed: set[str] = set()  # the MODULE:FUNCTION names that the user gave, in a recipe or when loading a file


def named(name: str, **arguments: Any) -> str:
    """Return the name of a network with arguments, plain values: `named("timm:resnet18d", drop_rate=0.1)`."""
    given = ", ".join(f"{key}={value!r}" for key, value in sorted(arguments.items()))
    return f"{name}({given})" if given else name


def is_elsewhere(name: object) -> bool:
    """Return whether a network's name is of a form that this module handles."""
    return isinstance(name, str) and ":" in name


def allow(names: Iterable[str]) -> None:
    """Allow the code of these networks to run. A name that only a file or record gives must not run."""
    _allowed.update(name for name in names if is_elsewhere(name))


def is_allowed(name: str) -> bool:
    """Return whether the code of a network may run: ours, torchvision's, timm's, or one that the user named."""
    return not is_elsewhere(name) or name in _allowed or _parts(name)[0] in SOURCES


def check_allowed(name: str) -> None:
    """Raise ModelError if the code of a network must not run, since the user did not name it."""
    if not is_allowed(name):
        raise ModelError(
            f"the network {name!r} is code of yours, which is only run if you name it: as network={name!r}, or "
            f"--network {name} on the command line"
        )


def check_name(name: str, width: float) -> None:
    """Raise ModelError if a name is malformed or unknown. Does not run the user's code."""
    source, function, _ = _parts(name)
    if source in SOURCES:
        known = SOURCES[source][0]()
        if function not in known:
            raise ModelError(f"{source} has no network {function!r} for classification{near(function, known)}")
        if width != 1:
            raise ModelError(f"{name} has no width to scale: leave width out, or name a network of another size")


def factory(name: str) -> Factory:
    """Return the function that builds a network from an image's shape, the number of classes and a width.

    Raises:
        ModelError: there is no such network.
    """
    source, function, arguments = _parts(name)
    if source in SOURCES:
        return partial(SOURCES[source][1], function, arguments)
    return partial(_call, name, _function(source, function), arguments)


def near(name: object, known: Iterable[str]) -> str:
    """Return how to end an error message: `: did you mean resnet18?`, or the known names, or how many there are."""
    known = list(known)
    close = difflib.get_close_matches(str(name), known, n=3, cutoff=0.6)
    if close:
        return f": did you mean {' or '.join(close)}?"
    return f": use one of {', '.join(sorted(known))}" if len(known) < 40 else ""


def _parts(name: str) -> tuple[str, str, dict[str, Any]]:
    found = NAME.fullmatch(name)
    if found is None:
        raise ModelError(
            f"{name!r} names no network: write 'torchvision:NAME', 'timm:NAME' or 'MODULE:FUNCTION', with arguments as "
            "in 'torchvision:convnext_tiny(stochastic_depth_prob=0.2)'"
        )
    try:
        call = ast.parse(f"f({found['arguments'] or ''})", mode="eval").body
        if not isinstance(call, ast.Call) or call.args or not isinstance(call.func, ast.Name):
            raise ValueError(name)
        arguments = {str(given.arg): ast.literal_eval(given.value) for given in call.keywords}
    except (SyntaxError, ValueError):
        raise ModelError(f"the arguments of {name!r} must be plain values by name, such as (dropout=0.1)") from None
    return found["source"], found["name"], arguments


# --- Libraries --------------------------------------------------------------------------------------------------------


def _torchvision_names() -> list[str]:
    from torchvision import models

    return models.list_models(module=models)  # only those for classification


def _torchvision(name: str, arguments: dict[str, Any], shape: Shape, classes: int, width: float) -> nn.Module:
    from torchvision import models

    fields = {**PLAIN_OUTPUT.get(name, {}), "weights": None, "num_classes": classes, **arguments}
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


# For each library, a function that lists its networks and one that builds a network.
SOURCES: dict[str, tuple[Callable[[], list[str]], Callable[..., nn.Module]]] = {
    "torchvision": (_torchvision_names, _torchvision),
    "timm": (_timm_names, _timm),
}


def with_channels(model: nn.Module, channels: int) -> nn.Module:
    """Return the network for images with `channels` channels, replacing its first convolution if that has others."""
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            if layer.in_channels != channels and layer.groups == 1:
                fields = ("out_channels", "kernel_size", "stride", "padding", "dilation", "padding_mode")
                own = {field: getattr(layer, field) for field in fields}
                model.set_submodule(name, nn.Conv2d(channels, **own, bias=layer.bias is not None))
            break
    return model


# --- The user's functions ---------------------------------------------------------------------------------------------


def _function(module: str, name: str) -> Callable[..., object]:
    found = imported(module)
    function = getattr(found, name, None)
    if not callable(function):
        functions = [key for key, value in vars(found).items() if callable(value) and not key.startswith("_")]
        raise ModelError(f"{module} has no function {name!r}{near(name, functions)}")
    return function


def imported(module: str) -> ModuleType:
    """Return a module of the user's, whose code runs. Raises ModelError if it cannot be imported."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise ModelError(
            f"the module {module!r} cannot be imported ({error}){near(module, SOURCES) if _like(module) else ''}: put "
            f"{module}.py next to the notebook, or into the folder where the command runs"
        ) from None
    except Exception as error:  # the module's code may raise anything
        raise ModelError(f"the module {module!r} cannot be imported ({in_words(error)}): correct it") from error


def in_words(error: BaseException) -> str:
    """Return an error of the user's code in one line: `ValueError: channels must be even`."""
    return ": ".join(filter(None, [type(error).__name__, str(error).strip().partition("\n")[0]]))


def _like(module: str) -> bool:
    return bool(difflib.get_close_matches(module, SOURCES, cutoff=0.7))


def _call(
    name: str, function: Callable, arguments: dict[str, Any], shape: Shape, classes: int, width: float
) -> nn.Module:
    """Call the function with those of the usual arguments (shape, classes, width) that its signature names."""
    known = {"shape": shape, "in_channels": shape[0], "classes": classes, "num_classes": classes, "width": width}
    try:
        takes = inspect.signature(function).parameters
    except ValueError:  # a function of C
        raise ModelError(f"{name} does not say which arguments it takes: wrap it in a function of yours") from None
    if width != 1 and "width" not in takes:
        raise ModelError(f"{name} takes no width: leave width out, or give the function an argument width")
    if width != 1 and "width" in arguments:
        raise ModelError(f"width is given twice, in {name} and as {width:g}: give it once")
    fields = {key: value for key, value in known.items() if key in takes} | arguments
    return _built(name, function, fields)


def _built(name: str, function: Callable[..., object], fields: dict[str, Any]) -> nn.Module:
    try:
        model = function(**fields)
    except Exception as error:  # the network's code may raise anything
        if isinstance(error, TypeError) and "argument" in str(error):  # an unknown or a missing one
            raise ModelError(f"{name} cannot be called with {', '.join(fields) or 'no arguments'} ({error})") from None
        raise ModelError(f"{name} raises {in_words(error)}: correct it, or its arguments in the name") from error
    if not isinstance(model, nn.Module):
        raise ModelError(f"{name} returns a {type(model).__name__}: return a torch.nn.Module")
    if any(isinstance(parameter, nn.UninitializedParameter) for parameter in model.parameters()):
        raise ModelError(f"{name} has lazy layers of unknown size: give them sizes")
    return model.to(torch.float32)
