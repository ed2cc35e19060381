"""The deployed model's integers after every layer, written out in numpy: what the kernels are compared with.

The arithmetic is that of ONNX Runtime's integer operators on x86: exact sums, one float32 product, rounding to even. It
was found equal to the runtime's own bytes on ResNet-20, ResNet-18 and tiny_mixer (tests/test_cuda_networks.py).
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import fx, nn
from torch.nn import functional

from models.operators import operator_of
from models.quantized import QuantizedConv2d, QuantizedLinear, Quantizer


@dataclass(frozen=True)
class Levels:
    """Rounded values: levels (b, c, h, w) or (b, n) in 0..255, their step and zero point."""

    levels: np.ndarray
    scale: np.float32
    zero_point: int

    @property
    def reals(self) -> torch.Tensor:
        return torch.from_numpy((self.levels.astype(np.int64) - self.zero_point).astype(np.float32) * self.scale)


@dataclass(frozen=True)
class Sums:
    """Exact sums (b, n, ...) and their steps; pixels: how many were averaged. bounds: what an activation clips to."""

    sums: np.ndarray
    scale: np.ndarray | np.float32
    pixels: int = 1
    bounds: tuple[float, float] = (-np.inf, np.inf)

    def rounded(self, scale: np.float32, zero_point: int) -> np.ndarray:
        ratio = self.scale / scale if self.pixels == 1 else self.scale / (scale * np.float32(self.pixels))
        return np.rint(self.sums.astype(np.float32) * np.asarray(ratio, np.float32)) + zero_point


@dataclass(frozen=True)
class Addition:
    """The sum of two rounded tensors."""

    a: Levels
    b: Levels
    bounds: tuple[float, float] = (-np.inf, np.inf)

    def rounded(self, scale: np.float32, zero_point: int) -> np.ndarray:
        a, b = self.a.scale / scale, self.b.scale / scale
        fixed = np.float32(zero_point) - (a * np.float32(self.a.zero_point) + b * np.float32(self.b.zero_point))
        inner = self.b.levels * np.float64(b) + np.float64(fixed)  # two fused multiply-adds, each rounded once
        whole = self.a.levels * np.float64(a) + inner.astype(np.float32).astype(np.float64)
        return np.rint(whole.astype(np.float32))


class Reference(fx.Interpreter):
    """Runs an integer network on the CPU and keeps the levels after every quantizer in `seen`, by its name."""

    def __init__(self, model: fx.GraphModule):
        super().__init__(model)
        self.seen: dict[str, np.ndarray] = {}
        self.modules = dict(model.named_modules())

    @torch.no_grad()
    def logits(self, images: torch.Tensor) -> np.ndarray:
        """Return the logits (b, classes), float32, of normalized images (b, c, h, w)."""
        last = self.run(images)
        return last.sums.astype(np.float32) * last.scale

    def run_node(self, node: fx.Node) -> Any:
        if node.op in ("placeholder", "output"):
            return super().run_node(node)
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        module, kind = self.modules.get(str(node.target)), operator_of(node, self.modules).name
        if node.op == "call_module" and isinstance(module, Quantizer):
            return self.quantized(str(node.target), module, args[0])
        if isinstance(module, QuantizedConv2d | QuantizedLinear) and node.op == "call_module":
            return _sums(module, args[0])
        if kind == "addition":
            return Addition(*args)
        if kind in ("ReLU", "ReLU6") and isinstance(args[0], Sums | Addition):
            return replace(args[0], bounds=(0.0, 6.0 if kind == "ReLU6" else np.inf))
        if kind in ("average pooling", "mean over pixels") and args[0].levels.ndim == 4:
            return self.averaged(node, args, kwargs)
        return self.moved_or_in_floats(node, args, kwargs)

    def quantized(self, name: str, quantizer: Quantizer, value: Any) -> Levels:
        scale, zero_point = np.float32(quantizer.scale), int(quantizer.zero_point)
        if isinstance(value, Levels):
            value = value.reals
        if isinstance(value, torch.Tensor):
            levels = np.rint(value.numpy() / scale) + zero_point
        else:
            levels = value.rounded(scale, zero_point)
            low, high = (np.rint(np.float32(bound) / scale) + zero_point for bound in value.bounds)
            levels = np.clip(levels, low, high)
        result = Levels(np.clip(levels, 0, 255).astype(np.uint8), scale, zero_point)
        self.seen[name] = result.levels
        return result

    def averaged(self, node: fx.Node, args: tuple, kwargs: dict) -> Sums:
        """Return the exact sums over the windows of an average."""
        x, module = args[0], self.modules.get(str(node.target))
        mean = self.call(node, torch.from_numpy(x.levels).double() - x.zero_point, args, kwargs)
        pixels = x.levels[0, 0].size * x.levels.shape[1] // mean[0].numel()
        if isinstance(module, nn.AvgPool2d):
            size = module.kernel_size
            pixels = size * size if isinstance(size, int) else size[0] * size[1]
        return Sums(torch.round(mean * pixels).numpy().astype(np.int64), x.scale, pixels)

    def moved_or_in_floats(self, node: fx.Node, args: tuple, kwargs: dict) -> Any:
        """Apply an operator to levels if it only moves them, else to the values that they stand for."""
        x = args[0]
        if operator_of(node, self.modules).quantizer == "none":
            return replace(x, levels=self.call(node, torch.from_numpy(x.levels), args, kwargs).numpy())
        return self.call(node, x.reals, args, kwargs)

    def call(self, node: fx.Node, x: torch.Tensor, args: tuple, kwargs: dict) -> torch.Tensor:
        """Call a node's operator with another first input."""
        kinds: dict[str, Any] = {"call_module": self.call_module, "call_method": self.call_method}
        return kinds.get(node.op, self.call_function)(node.target, (x, *args[1:]), kwargs)


def _sums(module: QuantizedConv2d | QuantizedLinear, x: Levels) -> Sums:
    """Return the exact sums of a layer and its bias. float64 holds them exactly."""
    given, weight = torch.from_numpy(x.levels).double() - x.zero_point, module.weight.double()
    if isinstance(module, QuantizedConv2d):
        sums = module._conv_forward(given, weight, None)
    else:
        sums = functional.linear(given, weight)
    shape = (1, -1, *[1] * (sums.ndim - 2))
    scale = (x.scale * module.weight_scale.numpy()).astype(np.float32)
    bias = np.zeros(1, np.int64)
    if module.bias is not None:
        bias = np.rint(module.bias.detach().numpy() / scale).astype(np.int64)
    return Sums(sums.numpy().astype(np.int64) + bias.reshape(shape), scale.reshape(shape))


def deployed_integers(model: nn.Module, images: torch.Tensor) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Return the logits and, by quantizer, the levels (b, c, h, w) of an integer network for normalized images."""
    assert isinstance(model, fx.GraphModule)
    reference = Reference(model)
    return reference.logits(images), reference.seen
