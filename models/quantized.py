"""Integer networks: the layers and quantizers of a deployed INT8 model.

Quantizers are placed for ONNX Runtime's integer operators (see `models.placement`). Jacob et al., CVPR 2018, describe
the arithmetic.
"""

import copy
from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.nn import functional

from models.ensemble import Ensemble
from models.errors import ModelError
from models.folding import fold_norms
from models.operators import Tracer, has_integer_form, integer_layers, trace
from models.placement import Placement, place_quantizers, ready_for_quantizers
from models.spec import set_spec, spec_of, transformation, was_done, with_done

LARGEST_BIAS = 2**29  # in quantization steps: the runtime adds it to a 32-bit sum
OPSET = 21  # ONNX opset in which QuantizeLinear and DequantizeLinear are exported


class Quantizer(nn.Module):
    """Rounds a float32 tensor to 256 levels, `scale * (q - zero_point)` with q in 0..255 and one scale per tensor.

    If `enabled` is False, it returns its input unchanged, for calibration.
    """

    scale: torch.Tensor
    zero_point: torch.Tensor

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.uint8))
        self.enabled = True

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.enabled:
            return x
        if torch.onnx.is_in_onnx_export():
            onnx = torch.onnx.ops.symbolic
            pair = (self.scale, self.zero_point)
            q = onnx("QuantizeLinear", (x, *pair), {}, dtype=torch.uint8, shape=x.shape, version=OPSET)
            return onnx("DequantizeLinear", (q, *pair), {}, dtype=torch.float32, shape=x.shape, version=OPSET)
        zero_point = self.zero_point.float()
        q = (torch.round(x / self.scale) + zero_point).clamp(0, 255)
        return (q - zero_point) * self.scale


Rounding = Callable[[str, nn.Conv2d | nn.Linear], tuple[torch.Tensor, torch.Tensor]]


def int8_rounding(name: str, layer: nn.Conv2d | nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
    """Round a layer's weight to symmetric int8, -127..127, with one scale per output channel; zero stays exactly zero.

    Returns the integers in the weight's shape and the scales `[O]`; their product is the rounded weight.
    """
    largest = layer.weight.detach().flatten(1).abs().amax(1)
    scale = torch.where(largest > 0, largest / 127, 1.0)  # any scale will do for an all-zero channel
    integers = torch.round(layer.weight.detach() / by_channel(scale, layer.weight)).clamp(-127, 127)
    return integers.to(torch.int8), scale


def bias_safe(integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Return the scales `[O]`, with those of all-zero channels of `integers` `[O, ...]` set to the median of the rest.

    The weight of such a channel is zero at any scale. But ONNX Runtime rounds its bias, which is all that it outputs,
    to multiples of weight scale times input scale, and after batch norm over a dead channel, which divides by nearly
    zero, the weight scale may be in the thousands.
    """
    live = torch.where(integers.flatten(1).ne(0).any(1), scale, torch.nan)
    return torch.where(live.isnan(), live.nanmedian().nan_to_num(1.0), live)


def by_channel(scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """Reshape scales `[O]` to broadcast over a weight `[O, ...]`."""
    return scale.reshape(-1, *[1] * (weight.ndim - 1))


class _IntegerWeight(nn.Module):
    """An int8 weight with one scale per output channel."""

    weight: torch.Tensor
    weight_scale: torch.Tensor

    def set_weight(self, layer: nn.Conv2d | nn.Linear, integers: torch.Tensor, scale: torch.Tensor) -> None:
        self.weight = nn.Parameter(integers, requires_grad=False)
        self.register_buffer("weight_scale", bias_safe(integers, scale))
        if layer.bias is not None:
            self.register_parameter("bias", nn.Parameter(layer.bias.detach().clone(), requires_grad=False))

    def dequantized(self) -> torch.Tensor:
        if torch.onnx.is_in_onnx_export():
            inputs = (self.weight, self.weight_scale, torch.zeros_like(self.weight_scale, dtype=torch.int8))
            return torch.onnx.ops.symbolic(
                "DequantizeLinear", inputs, {"axis": 0}, dtype=torch.float32, shape=self.weight.shape, version=OPSET
            )
        return self.weight * by_channel(self.weight_scale, self.weight)


def geometry(layer: nn.Conv2d) -> dict[str, Any]:
    """Return the arguments for a convolution of the same shape; non-zero padding is a separate call before it."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    padding = {} if layer.padding_mode == "zeros" else {"padding": 0}
    return {name: getattr(layer, name) for name in names} | {"bias": layer.bias is not None} | padding


class QuantizedConv2d(_IntegerWeight, nn.Conv2d):
    """A convolution with an int8 weight `[O, I / groups, h, w]`, made from a float one."""

    def __init__(self, layer: nn.Conv2d, integers: torch.Tensor, scale: torch.Tensor):
        super().__init__(**geometry(layer))
        self.set_weight(layer, integers, scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.dequantized(), self.bias)


class QuantizedLinear(_IntegerWeight, nn.Linear):
    """A linear layer with an int8 weight `[O, I]`, made from a float one."""

    def __init__(self, layer: nn.Linear, integers: torch.Tensor, scale: torch.Tensor):
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.set_weight(layer, integers, scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.dequantized(), self.bias)


def insert_quantizers(model: nn.Module, rounding: Rounding = int8_rounding) -> fx.GraphModule:
    """Return the integer form of a float model: batch norm folded, integer weights, and uncalibrated quantizers.

    `rounding` returns the integers and scales of a layer's weight, given its name and the layer with batch norm folded
    in. Operators without an integer form stay in floating point (see `left_in_floats`).

    Raises:
        ModelError: a weight is infinite or NaN, or two layers share one.
    """
    spec = with_done(spec_of(model), "quantized")
    _check_untied(model)
    traced = ready_for_quantizers(folded(model))
    layers = integer_layers(traced)
    for name, layer in layers.items():
        _check_finite(name, layer)
        traced.set_submodule(name, _quantized(layer, *rounding(name, layer)))
    for name in {str(node.target) for node in traced.graph.nodes if node.op == "call_module"} - layers.keys():
        traced.set_submodule(name, copy.deepcopy(traced.get_submodule(name)))  # not shared with the float model
    place_quantizers(traced, Quantizer)
    set_spec(traced, spec)
    return traced.eval()


@transformation("quantized")
def _integer_form(model: nn.Module, value: bool) -> fx.GraphModule:
    return insert_quantizers(model)


def holds_integers(spec: dict) -> bool:
    """Return whether a `model.spec` describes an integer network, or an ensemble with such a member."""
    return was_done(spec, "quantized")


def folded(model: nn.Module) -> fx.GraphModule:
    """Return the graph to deploy: batch norm folded into the layer before it, an integer network unchanged.

    Layers without batch norm are shared with the model. An ensemble becomes a single graph, in which the members'
    tensors keep their names.
    """
    if isinstance(model, fx.GraphModule) and holds_integers(spec_of(model)):
        return model
    if not isinstance(model, Ensemble):
        return fold_norms(trace(model.eval().cpu()))
    whole = Ensemble([folded(member) for member in model.members])
    whole.weights.copy_(model.weights)
    return fx.GraphModule(whole, _Tracer().trace(whole), "Ensemble")


class _Tracer(Tracer):
    """Traces into the members of an ensemble, but not into their integer layers, which cannot be traced."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, Quantizer | _IntegerWeight) or super().is_leaf_module(module, name)


def _check_untied(model: nn.Module) -> None:
    owners: dict[torch.Tensor, str] = {}
    for name, layer in model.named_modules():
        if has_integer_form(layer) and owners.setdefault(layer.get_parameter("weight"), name) != name:
            raise ModelError(
                f"{owners[layer.get_parameter('weight')]} and {name} share one weight, which quantization with a scale "
                "per layer would untie: give each layer its own weight before the network is quantized"
            )


def _check_finite(name: str, layer: nn.Conv2d | nn.Linear) -> None:
    if not layer.weight.is_meta and not bool(layer.weight.isfinite().all()):
        raise ModelError(
            f"{name} has a weight that is infinite or NaN, which cannot be quantized: train the network again with a "
            "lower learning rate"
        )


def round_biases(integer: fx.GraphModule) -> None:
    """Round biases as the deployed runtime does, to multiples of input scale times weight scale.

    If only the runtime did so, one activation in a thousand would fall on another level there, and up to 1 in 200 of
    ResNet-20's predictions on CIFAR-10 would differ. If a weight scale is so small that the bias would not fit the
    runtime's 32 bits (in a channel that is nearly dead), it is enlarged first.
    """
    tensors = integer.state_dict()
    for bias, (of_input, of_weight) in bias_steps(integer).items():
        scale = tensors[of_weight]
        larger = torch.maximum(scale, tensors[bias].abs() / (tensors[of_input] * LARGEST_BIAS))
        weight = tensors[f"{bias.removesuffix('bias')}weight"]
        weight.copy_(torch.round(weight * by_channel(scale / larger, weight)))
        scale.copy_(larger)
        step = tensors[of_input] * scale
        tensors[bias].copy_(torch.round(tensors[bias] / step) * step + 0.0)  # turns -0 into 0


def bias_steps(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Map each bias of an integer network, or of an ensemble's members, to its layer's input and weight scales.

    All are names in the state dict. In a calibrated network, a bias is a whole multiple of the product of its scales.
    """
    steps = {}
    for prefix, graph_module in model.named_modules():
        for node in graph_module.graph.nodes if isinstance(graph_module, fx.GraphModule) else ():
            if not _calls(graph_module, node, QuantizedConv2d, QuantizedLinear):
                continue
            source = node.args[0]
            while not _calls(graph_module, source, Quantizer):  # operators that only move values
                source = source.args[0]
            if graph_module.get_submodule(node.target).bias is not None:
                layer, quantizer = (".".join(filter(None, (prefix, name))) for name in (node.target, source.target))
                steps[f"{layer}.bias"] = f"{quantizer}.scale", f"{layer}.weight_scale"
    return steps


def _calls(graph_module: fx.GraphModule, node: fx.Node, *kinds: type[nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(graph_module.get_submodule(str(node.target)), kinds)


def _quantized(layer: nn.Conv2d | nn.Linear, integers: torch.Tensor, scale: torch.Tensor) -> nn.Module:
    if isinstance(layer, nn.Linear):
        return QuantizedLinear(layer, integers, scale)
    return QuantizedConv2d(layer, integers, scale)


def left_in_floats(model: nn.Module) -> list[str]:
    """Return the names of modules and other calls that an integer network, or an ensemble's member, runs in floats."""
    names = []
    for prefix, traced in model.named_modules():
        if isinstance(traced, fx.GraphModule):
            placement = Placement(traced)
            nodes = [node for node in traced.graph.nodes if not _calls(traced, node, Quantizer)]
            floats = [node for node in nodes if placement.computes(node) and not placement.on_integers(node)]
            found = [str(node.target) if node.op == "call_module" else node.name for node in floats]
            names += [".".join(filter(None, (prefix, name))) for name in found]
    return list(dict.fromkeys(names))
