"""Checksum of what a network computes, to notice when the code behind a name changes."""

import hashlib
import json
from collections.abc import Callable
from functools import lru_cache
from typing import Any

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from models.registry import ARCHITECTURES, build
from models.resnet import Shape

OURS: dict[str, Callable] = dict(ARCHITECTURES)  # built-in ones, before a user adds or replaces any


class OnPaper(TorchFunctionMode):
    """Lets networks be built inside `torch.device("meta")`, without memory and without drawing random weights."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function is torch.Tensor.cpu or function.__name__ in ("normal_", "uniform_", "trunc_normal_"):
            return args[0] if args else kwargs["tensor"]
        return function(*args, **kwargs)


def on_paper(make: Callable[[], nn.Module]) -> nn.Module:
    """Return the network that `make` builds, on the meta device; no random weights are drawn.

    If its constructor computes with tensors, it is built in memory and its tensors are discarded.
    """
    try:
        with torch.device("meta"), OnPaper():
            return make()
    except (RuntimeError, NotImplementedError, TypeError):
        with torch.random.fork_rng(devices=[]):
            return make().to("meta")


def structure(name: str, *, shape: Shape, classes: int, width: float = 1.0) -> str:
    """Return twelve hexadecimal digits that change if the network of that name computes something else.

    They cover its traced graph (operators, their settings and inputs) and the names, types and shapes of its tensors.
    If a network cannot be traced, its modules stand for the graph. Raises ModelError as `build` does.
    """
    built_in = name in OURS and ARCHITECTURES.get(name) is OURS[name]
    find = _cached_structure if built_in else _structure  # a user's network may be redefined in a notebook
    channels, height, side = shape
    return find(name, (channels, height, side), classes, float(width))


def _structure(name: str, shape: Shape, classes: int, width: float) -> str:
    model = on_paper(lambda: build(name, shape=shape, classes=classes, width=width))
    table = [[key, str(value.dtype), list(value.shape)] for key, value in model.state_dict().items()]
    return hashlib.sha256(json.dumps([_operators(model), table]).encode()).hexdigest()[:12]


_cached_structure = lru_cache(maxsize=256)(_structure)


def _operators(model: nn.Module) -> list:
    try:
        nodes = fx.Tracer().trace(model.eval()).nodes
    except Exception:  # tracing a forward that depends on its input may raise anything
        return [[name, *_settings(module)] for name, module in model.named_modules()]
    rows = []
    for node in nodes:
        given = fx.node.map_arg((node.args, node.kwargs), lambda other: f"%{other.name}")
        what = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
        settings = _settings(model.get_submodule(node.target)) if node.op == "call_module" else []
        rows.append([node.op, what, repr(given), settings])
    return rows


def _settings(module: nn.Module) -> list[Any]:
    """Return a module's class and its public settings, which do not change between versions of torch."""
    kinds = (bool, int, float, str, tuple, list, type(None))
    own = {key: value for key, value in vars(module).items() if isinstance(value, kinds) and not key.startswith("_")}
    return [type(module).__name__, sorted((k, repr(v)) for k, v in own.items() if k not in ("training", "inplace"))]
