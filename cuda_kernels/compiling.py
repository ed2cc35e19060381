"""From the graph of an integer network to the layers that our kernels launch.

Every layer computes what the deployed model's does: exact integer sums, one float32 product, rounding to even (Jacob et
al., CVPR 2018; ONNX Runtime's operators). So the bytes after every layer are the same ones.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from torch import fx, nn

from models import ModelError, spec_of
from models.operators import called, operator_of
from models.quantized import QuantizedConv2d, QuantizedLinear, Quantizer, holds_integers

from . import layers
from .launch import Launch
from .layers import Residual, Rounding, Window, padded
from .sparse import CSR, prepare_spmm

EXACT = 2**24  # float32 holds every whole number up to this
ANY = (-np.inf, np.inf)
Buffers = dict[str, torch.Tensor]
Shape = tuple[int, int, int]  # of an image: channels, height, width


@dataclass(frozen=True)
class Activation:
    """A rounded tensor of the network, named after its quantizer: step, and zero point in 0..255."""

    name: str
    shape: Shape
    scale: np.float32
    zero_point: int

    @property
    def stored(self) -> tuple[int, int, int]:
        """The shape in memory: height, width, channels filled up."""
        return (*self.shape[1:], padded(self.shape[0]))

    @property
    def reals(self) -> torch.Tensor:
        """The values (256,) that the bytes 0..255 stand for."""
        return torch.from_numpy((np.arange(256) - self.zero_point).astype(np.float32) * self.scale)

    def level(self, real: float) -> int:
        """Return the byte of a real value, before it is clipped to 0..255. Infinity is beyond every byte."""
        return int(np.clip(np.rint(np.float32(real) / self.scale) + self.zero_point, -1, 256))

    def table(self, reals: torch.Tensor, device: torch.device) -> torch.Tensor:
        """Return the bytes (256,) int8, less 128, of real values."""
        levels = np.clip(np.rint(reals.numpy() / self.scale) + self.zero_point, 0, 255)
        return torch.from_numpy((levels - 128).astype(np.int8)).to(device)


@dataclass(frozen=True)
class Layer:
    """A layer to launch, which fills the buffer `output`. name: the module or call that it stands for.

    prepare(layer, buffers): its launches. product: rows, outputs and inputs per output for one image, without filling;
    density: the share of its weights that are not zero. addition: the other input of an addition that its epilogue
    computes, and how. result: None for the logits, which stay in floats.
    """

    name: str
    kind: str
    inputs: tuple[str, ...]
    output: str
    prepare: Callable[[Layer, Buffers], list[Launch]]
    result: Activation | None
    product: tuple[int, int, int] = (0, 0, 0)
    density: float = 1.0
    weight_bytes: int = 0
    addition: tuple[str, Residual] | None = None

    @property
    def macs(self) -> int:
        """Multiply-accumulates for one image, those with zeros too."""
        return int(np.prod(self.product))

    def with_addition(self, rounding: Rounding, buffers: Buffers) -> Rounding:
        """Return the layer's rounding with the addition, if its epilogue computes one."""
        if self.addition is None:
            return rounding
        name, how = self.addition
        return replace(rounding, residual=replace(how, tensor=buffers[name]))


@dataclass(frozen=True)
class Pending:
    """A result that is not rounded yet. make(result, low, high): its layer, once the rounding is known.

    bounds: in real units, by the activations that clip it. logits: makes the layer whose output stays in floats.
    """

    make: Callable[[Activation, int, int], Layer]
    shape: Shape
    bounds: tuple[float, float] = ANY
    logits: Callable[[], Layer] | None = None


@dataclass(frozen=True)
class Program:
    """The layers of a network in order, for any batch. shape: of an image; classes: logits of an image."""

    layers: tuple[Layer, ...]
    shape: Shape
    classes: int

    def buffers(self, batch: int, device: torch.device) -> Buffers:
        """Return the images, every activation and the logits, not yet filled."""
        found = {"images": torch.empty(batch, *self.shape, device=device)}
        for layer in self.layers:
            if layer.result is not None:
                found[layer.output] = torch.empty(batch, *layer.result.stored, dtype=torch.int8, device=device)
        found["logits"] = torch.empty(batch, 1, 1, self.classes, device=device)
        return found

    def launches(self, buffers: Buffers) -> list[Launch]:
        """Return every launch that fills the buffers, in order."""
        return [launch for layer in self.layers for launch in layer.prepare(layer, buffers)]


def compile_network(model: nn.Module, device: torch.device, sparse_below: float = 0.0, fuse: bool = True) -> Program:
    """Return the layers of an integer network, with their weights on `device`.

    sparse_below: layers with a smaller share of non-zero weights become sparse products. fuse: whether an addition is
    computed by the layer before it, whose own bytes are then never written.

    Raises:
        ModelError: the network is in floats, an ensemble, or has an operator without a kernel, which is named.
    """
    spec = spec_of(model)
    if "members" in spec:
        raise ModelError("an ensemble's mean of probabilities has no kernel: give one of its members instead")
    if not holds_integers(spec) or not isinstance(model, fx.GraphModule):
        raise ModelError("the network is in floats, and its kernels take integers: quantize it first (Quantize)")
    on_cpu = copy.deepcopy(model).cpu()
    return _Compiler(on_cpu, device, sparse_below, fuse).program(tuple(spec["shape"]))


class _Compiler:
    """Goes through a traced network once. `values` holds what each node has become."""

    def __init__(self, model: fx.GraphModule, device: torch.device, sparse_below: float, fuse: bool):
        self.model, self.device, self.sparse_below, self.fuse = model, device, sparse_below, fuse
        self.modules = dict(model.named_modules())
        self.values: dict[fx.Node, Activation | Pending] = {}
        self.layers: list[Layer] = []

    @torch.no_grad()
    def program(self, shape: Shape) -> Program:
        for node in self.model.graph.nodes:
            if node.op == "output":
                self.layers.append(self.logits(node))
            elif node.op == "placeholder":
                self.values[node] = Pending(_images, shape)
            elif isinstance(module := called(node, self.modules), Quantizer):
                self.values[node] = self.rounded(node, module)
            else:
                self.values[node] = self.result(node)
        return Program(tuple(self.layers), shape, self.layers[-1].product[1])

    def result(self, node: fx.Node) -> Activation | Pending:
        kind = operator_of(node, self.modules).name
        if kind not in HANDLERS:
            raise no_kernel(node, "nothing is known about it" if kind == "unknown" else f"it is a {kind}")
        return HANDLERS[kind](self, node)

    def input(self, node: fx.Node, index: int = 0) -> Activation:
        """Return an input of a node, which must be rounded."""
        value = self.values.get(node.all_input_nodes[index]) if node.all_input_nodes else None
        if not isinstance(value, Activation):
            raise no_kernel(node, "its input is not rounded to integers")
        return value

    def rounded(self, node: fx.Node, quantizer: Quantizer) -> Activation:
        value = self.values[node.all_input_nodes[0]]
        scale, zero_point = np.float32(quantizer.scale), int(quantizer.zero_point)
        if isinstance(value, Activation):
            if (value.scale, value.zero_point) == (scale, zero_point):
                return value  # a quantizer that is repeated after values were moved
            value = self.table(value, value.reals, str(node.target))
        result = Activation(str(node.target), value.shape, scale, zero_point)
        low, high = (result.level(bound) for bound in value.bounds)
        self.layers.append(value.make(result, max(low, 0), min(high, 255)))
        return result

    def logits(self, node: fx.Node) -> Layer:
        source = node.all_input_nodes[0]
        value = self.values[source]
        if not isinstance(value, Pending) or value.logits is None or value.bounds != ANY:
            raise no_kernel(source, "only a linear layer or a convolution to one pixel gives logits")
        return value.logits()

    # Kinds of operators

    def layer(self, node: fx.Node) -> Pending:
        x, module = self.input(node), called(node, self.modules)
        if not isinstance(module, QuantizedConv2d | QuantizedLinear):
            raise no_kernel(node, "its weight is not in integers")
        weights = Weights.of(node, module, x)
        is_sparse = weights.density < self.sparse_below and not weights.depthwise and weights.largest < EXACT
        make = weights.sparse if is_sparse else weights.dense

        def logits() -> Layer:
            return weights.dense(self.device, None, 0, 0)

        shape = (len(weights.weight), *weights.window.output)
        can_be_logits = not weights.depthwise and weights.window.output == (1, 1)
        return Pending(partial(make, self.device), shape, logits=logits if can_be_logits else None)

    def addition(self, node: fx.Node) -> Pending:
        a, b = self.input(node), self.input(node, -1)
        if a.shape != b.shape:
            raise no_kernel(node, f"it adds tensors of different shapes, {a.shape} and {b.shape}")

        def make(result: Activation, low: int, high: int) -> Layer:
            how = _sum(a, b, result, (low, high))
            return self.fused(node, a, b, how, result) or _addition(node.name, a, b, how, result)

        return Pending(make, a.shape)

    def fused(self, node: fx.Node, a: Activation, b: Activation, how: Residual, result: Activation) -> Layer | None:
        """Return the layer that computes the later input, with the addition in its epilogue; None if it has none."""
        made = {layer.output: index for index, layer in enumerate(self.layers)}
        first = made[a.name] > made[b.name]
        late, early = (a, b) if first else (b, a)
        layer, source = self.layers[made[late.name]], node.all_input_nodes[0 if first else -1]
        if not self.fuse or not layer.macs or layer.addition or len(source.users) > 1:
            return None
        if not first:
            how = replace(how, ratio=how.residual_ratio, residual_ratio=how.ratio, first=False)
        del self.layers[made[late.name]]
        inputs = (*layer.inputs, early.name)
        return replace(layer, output=result.name, result=result, inputs=inputs, addition=(early.name, how))

    def clipped(self, node: fx.Node) -> Activation | Pending:
        """A ReLU or ReLU6: bounds of what it follows, or a table if that is already rounded."""
        value, high = (
            self.values[node.all_input_nodes[0]],
            6.0 if "6" in operator_of(node, self.modules).name else np.inf,
        )
        if isinstance(value, Activation):
            return self.table(value, value.reals.clamp(0, high), node.name)
        return replace(value, bounds=(max(value.bounds[0], 0.0), min(value.bounds[1], high)))

    def function(self, node: fx.Node) -> Pending:
        """Any function of single values: evaluated once, on the 256 values that there are."""
        x, module = self.input(node), called(node, self.modules)
        if isinstance(module, nn.PReLU) and module.num_parameters > 1:
            raise no_kernel(node, "it has a slope for each channel")
        if module is not None:
            return self.table(x, module(x.reals), node.name)
        source = node.all_input_nodes[0]
        if len(node.all_input_nodes) > 1:
            raise no_kernel(node, "it takes more than one tensor")
        args = fx.node.map_arg(node.args, lambda given: x.reals if given is source else given)
        kwargs = fx.node.map_arg(node.kwargs, lambda given: x.reals if given is source else given)
        call: Any = getattr(torch.Tensor, str(node.target)) if node.op == "call_method" else node.target
        return self.table(x, call(*args, **kwargs), node.name)

    def table(self, x: Activation, reals: torch.Tensor, name: str) -> Pending:
        def make(result: Activation, low: int, high: int) -> Layer:
            table = result.table(reals, self.device).clamp(low - 128, high - 128)

            def prepare(layer: Layer, buffers: Buffers) -> list[Launch]:
                return [layers.prepare_table(buffers[x.name], table, out=buffers[layer.output])]

            return Layer(name, "table_int8", (x.name,), result.name, prepare, result)

        return Pending(make, x.shape)

    def max_pool(self, node: fx.Node) -> Pending:
        x, pool = self.input(node), _pool(node, self.modules)
        window = _pool_window(node, pool, x.shape)

        def make(result: Activation, low: int, high: int) -> Layer:
            table = result.table(x.reals, self.device).clamp(low - 128, high - 128)

            def prepare(layer: Layer, buffers: Buffers) -> list[Launch]:
                return [layers.prepare_max_pool(buffers[x.name], table, window, out=buffers[layer.output])]

            return Layer(str(node.target), "max_pool_int8", (x.name,), result.name, prepare, result)

        return Pending(make, (x.shape[0], *window.output))

    def average_pool(self, node: fx.Node) -> Pending:
        x = self.input(node)
        pool = nn.AdaptiveAvgPool2d(1) if node.target == "mean" else _pool(node, self.modules)
        window = _pool_window(node, pool, x.shape)
        pixels = np.float32(window.kernel[0] * window.kernel[1])

        def make(result: Activation, low: int, high: int) -> Layer:
            rounding = float(x.scale / (result.scale * pixels)), x.zero_point, result.zero_point, (low, high)

            def prepare(layer: Layer, buffers: Buffers) -> list[Launch]:
                out = buffers[layer.output]
                return [layers.prepare_average_pool(buffers[x.name], window, *rounding, out=out)]

            return Layer(str(node.target), "average_pool_int8", (x.name,), result.name, prepare, result)

        return Pending(make, (x.shape[0], *window.output))

    def moved(self, node: fx.Node) -> Activation | Pending:
        """Dropout, flatten and the like: the next layer's weights are laid out for what comes before."""
        return self.values[node.all_input_nodes[0]]


HANDLERS: dict[str, Callable[[_Compiler, fx.Node], Activation | Pending]] = {
    "convolution": _Compiler.layer,
    "linear layer": _Compiler.layer,
    "addition": _Compiler.addition,
    "ReLU": _Compiler.clipped,
    "ReLU6": _Compiler.clipped,
    "max-pooling": _Compiler.max_pool,
    "average pooling": _Compiler.average_pool,
    "mean over pixels": _Compiler.average_pool,
    **dict.fromkeys(("sigmoid", "leaky ReLU", "activation", "arithmetic with a constant"), _Compiler.function),
    **dict.fromkeys(("dropout", "flatten", "view as rows", "squeeze"), _Compiler.moved),
}


@dataclass(frozen=True)
class Weights:
    """A layer's integers in the order of the kernels: (outputs, kernel height, kernel width, channels), on the CPU.

    bias: (outputs,) in steps of the sums; scale: (outputs,) float32, those steps; largest: a bound of the sums.
    """

    name: str
    x: Activation
    window: Window
    weight: torch.Tensor
    bias: np.ndarray
    scale: np.ndarray
    density: float
    depthwise: bool

    @staticmethod
    def of(node: fx.Node, module: QuantizedConv2d | QuantizedLinear, x: Activation) -> Weights:
        weight, window = module.weight.detach(), _layer_window(node, module, x.shape)
        if isinstance(module, QuantizedLinear):  # of a flattened image: a convolution as large as the image
            weight = weight.reshape(len(weight), *x.shape)
        groups = getattr(module, "groups", 1)
        depthwise = 1 < groups == len(weight) == x.shape[0]
        if not depthwise and groups > 1:
            weight = _ungrouped(weight, groups)
        scale = (x.scale * module.weight_scale.numpy()).astype(np.float32)
        bias = np.zeros(len(weight)) if module.bias is None else np.rint(module.bias.detach().numpy() / scale)
        density = float((module.weight != 0).float().mean())
        found = Weights(
            str(node.target), x, window, weight.permute(0, 2, 3, 1).contiguous(), bias.astype(np.int64), scale, density,
            depthwise,
        )  # fmt: skip
        if found.largest >= 2**31:
            raise no_kernel(node, f"its sums may reach {found.largest:,}, more than 32 bits hold")
        return found

    @property
    def largest(self) -> int:
        return int((self.weight.long().abs().flatten(1).sum(1) * 255 + torch.from_numpy(abs(self.bias))).max())

    @property
    def product(self) -> tuple[int, int, int]:
        return self.window.output[0] * self.window.output[1], len(self.weight), self.weight[0].numel()

    def rounding(self, result: Activation | None, low: int, high: int, device: torch.device, shift: int) -> Rounding:
        """Return the epilogue. shift: of the inputs' bytes in the sums, which the bias takes back."""
        outputs = padded(len(self.weight))
        bias = self.bias - shift * self.weight.long().flatten(1).sum(1).numpy()
        ratio = self.scale if result is None else self.scale / result.scale
        tensors = [torch.zeros(outputs, dtype=kind) for kind in (torch.int32, torch.float32)]
        for tensor, values in zip(tensors, (bias, ratio), strict=True):
            tensor[: len(values)] = torch.from_numpy(values)
        on, factors = (tensor.to(device) for tensor in tensors)
        if result is None:
            return Rounding(on, factors, floats=True)
        return Rounding(on, factors, result.zero_point, low, high)

    def dense(self, device: torch.device, result: Activation | None, low: int, high: int) -> Layer:
        """Return the layer as an integer convolution, depthwise or not. Without a result, its outputs are logits."""
        outputs, channels = len(self.weight), self.x.stored[2]
        rounding = self.rounding(result, low, high, device, self.x.zero_point - 128)
        stored = torch.zeros(padded(outputs), *self.weight.shape[1:3], channels, dtype=torch.int8)
        if self.depthwise:
            stored = torch.zeros(*self.weight.shape[1:3], channels, dtype=torch.int8)
            stored[..., :outputs] = self.weight[..., 0].permute(1, 2, 0)
        else:
            stored[:outputs, ..., : self.weight.shape[3]] = self.weight
        weight = stored.to(device)

        def prepare(layer: Layer, buffers: Buffers) -> list[Launch]:
            x, out, finish = buffers[self.x.name], buffers[layer.output], layer.with_addition(rounding, buffers)
            if self.depthwise:
                return [layers.prepare_depthwise(x, weight, finish, self.window, zero_point=self.x.zero_point, out=out)]
            return [
                layers.prepare_conv(
                    x, weight, finish, self.window, zero_point=self.x.zero_point, outputs=outputs, out=out
                )
            ]

        return self._layer("depthwise_int8" if self.depthwise else "conv_int8", result, prepare, weight.numel())

    def sparse(self, device: torch.device, result: Activation, low: int, high: int) -> Layer:
        """Return the layer as a product with its non-zero weights only, in FP32, whose sums are exact below 2^24."""
        rounding = self.rounding(result, low, high, device, 0)
        matrix = CSR.from_dense(self.weight.flatten(1).float().to(device))

        def prepare(layer: Layer, buffers: Buffers) -> list[Launch]:
            x, out, finish = buffers[self.x.name], buffers[layer.output], layer.with_addition(rounding, buffers)
            unfold = layers.prepare_unfold(x, self.weight.shape[3], self.window, self.x.zero_point)
            multiply = prepare_spmm(matrix, unfold.output)
            return [unfold, multiply, layers.prepare_requantize(multiply.output, finish, out=out)]

        return self._layer("spmm_csr", result, prepare, matrix.nbytes)

    def _layer(self, kind: str, result: Activation | None, prepare: Callable, weight_bytes: int) -> Layer:
        output = "logits" if result is None else result.name
        facts = self.product, self.density, weight_bytes
        return Layer(self.name, kind, (self.x.name,), output, prepare, result, *facts)


def no_kernel(node: fx.Node, why: str) -> ModelError:
    """Return the error that names an operator without a kernel."""
    name = str(node.target) if node.op == "call_module" else node.name
    return ModelError(f"{name} has no kernel: {why}; run the network's ONNX file instead (python -m storage unpack)")


def _images(result: Activation, low: int, high: int) -> Layer:
    def prepare(layer: Layer, buffers: Buffers) -> list[Launch]:
        scale, out = float(result.scale), buffers[layer.output]
        return [layers.prepare_images(buffers["images"], scale, result.zero_point, out=out)]

    return Layer("images", "quantize_images", ("images",), result.name, prepare, result)


def _sum(a: Activation, b: Activation, result: Activation, bounds: tuple[int, int]) -> Residual:
    """Return how a + b is rounded, without the tensor: in float32, operation by operation, as the runtime does."""
    ratio, other = a.scale / result.scale, b.scale / result.scale
    fixed = np.float32(result.zero_point) - (ratio * np.float32(a.zero_point) + other * np.float32(b.zero_point))
    return Residual(torch.empty(0), float(ratio), float(other), float(fixed), *bounds)


def _addition(name: str, a: Activation, b: Activation, how: Residual, result: Activation) -> Layer:
    def prepare(layer: Layer, buffers: Buffers) -> list[Launch]:
        return [layers.prepare_add(buffers[a.name], buffers[b.name], how, out=buffers[layer.output])]

    return Layer(name, "add_int8", (a.name, b.name), result.name, prepare, result)


def _layer_window(node: fx.Node, module: QuantizedConv2d | QuantizedLinear, shape: Shape) -> Window:
    _, height, width = shape
    if isinstance(module, QuantizedLinear):
        if module.in_features != np.prod(shape):
            raise no_kernel(node, f"it takes {module.in_features} values of an image of {shape}")
        return Window((height, width), (1, 1))
    left, right, top, bottom = module._reversed_padding_repeated_twice
    kernel, stride, dilation = (_pair(value) for value in (module.kernel_size, module.stride, module.dilation))
    rows, columns = (
        (side - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1
        for i, side in enumerate((height + top + bottom, width + left + right))
    )
    return Window(kernel, (rows, columns), stride, (top, left), dilation)


def _ungrouped(weight: torch.Tensor, groups: int) -> torch.Tensor:
    """Return the weight (o, i / groups, h, w) of a grouped convolution as (o, i, h, w), zeros between the groups."""
    outputs, inputs = weight.shape[0] // groups, weight.shape[1]
    whole = weight.new_zeros(weight.shape[0], inputs * groups, *weight.shape[2:])
    for group in range(groups):
        rows = slice(group * outputs, (group + 1) * outputs)
        whole[rows, group * inputs : (group + 1) * inputs] = weight[rows]
    return whole


POOLS: dict[str, Callable[..., nn.Module]] = {
    kind.__name__: kind for kind in (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d)
}


def _pool(node: fx.Node, modules: dict[str, nn.Module]) -> nn.Module:
    """Return the module of a pooling call, or one that does the same as a function."""
    module = called(node, modules)
    if module is None:
        kind = POOLS.get("".join(part.capitalize() for part in str(getattr(node.target, "__name__", "")).split("_")))
        names = ("kernel_size", "stride", "padding") if kind in (nn.MaxPool2d, nn.AvgPool2d) else ("output_size",)
        if kind is None or len(node.args) > 1 + len(names):
            raise no_kernel(node, "it is a pooling with options that the kernels do not have")
        module = kind(**dict(zip(names, node.args[1:], strict=False)), **node.kwargs)
    return module


def _pool_window(node: fx.Node, pool: nn.Module, shape: Shape) -> Window:
    """Return a pooling's window. Average pools must not reach over the edge, and no window may be dilated."""
    if getattr(pool, "return_indices", False):
        raise no_kernel(node, "it returns indices too")
    output = tuple(pool(torch.empty(1, *shape, device="meta")).shape[2:])
    if isinstance(pool, nn.AdaptiveAvgPool2d | nn.AdaptiveMaxPool2d):
        if shape[1] % output[0] or shape[2] % output[1]:
            raise no_kernel(node, f"it makes {output} of {shape[1:]} pixels, in windows of different sizes")
        kernel = (shape[1] // output[0], shape[2] // output[1])
        return Window(kernel, output, kernel)
    plain = type(pool) in (nn.MaxPool2d, nn.AvgPool2d)
    if not plain or _pair(getattr(pool, "dilation", 1)) != (1, 1) or getattr(pool, "divisor_override", None):
        raise no_kernel(node, "it is a pooling with options that the kernels do not have")
    if isinstance(pool, nn.AvgPool2d) and (_pair(pool.padding) != (0, 0) or pool.ceil_mode):
        raise no_kernel(node, "it averages windows that reach over the edge")
    return Window(_pair(pool.kernel_size), output, _pair(pool.stride), _pair(pool.padding))


def _pair(value: Any) -> tuple[int, int]:
    return (value, value) if isinstance(value, int) else (value[0], value[1])
