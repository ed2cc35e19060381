"""Integer networks: the layers of a deployed INT8 model, and where its quantizers stand.

The placement is the one that ONNX Runtime's integer operators want: a tensor that leaves a layer is quantized once,
after the ReLU that follows a convolution or an addition, so that convolution and addition both see integers on all
sides. Jacob et al., CVPR 2018, describe the arithmetic.
"""

from collections.abc import Callable
from typing import Any

import torch
from torch import fx, nn
from torch.fx.experimental.optimization import fuse
from torch.nn import functional

from models.ensemble import Ensemble
from models.errors import ModelError
from models.spec import set_spec, spec_of

OPSET = 21  # of ONNX: the first that the exporter's QuantizeLinear and DequantizeLinear are asked for in


class Quantizer(nn.Module):
    """Rounds a float32 tensor to 256 levels: `scale * (q - zero_point)` with q in 0..255, one scale a tensor.

    With `enabled` False it passes its input on, for calibration.
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
    """The layer's weight as int8 with one scale per output channel, symmetric: -127..127, so that zero is exactly zero.

    Returns the integers in the weight's shape and the scales `[O]`; their product is the rounded weight.
    """
    largest = layer.weight.detach().flatten(1).abs().amax(1)
    scale = torch.where(largest > 0, largest / 127, 1.0)  # the weight of a channel that is all zero takes any
    integers = torch.round(layer.weight.detach() / by_channel(scale, layer.weight)).clamp(-127, 127)
    return integers.to(torch.int8), scale


def bias_safe(integers: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """The scales `[O]`, where a channel of `integers` `[O, ...]` is all zero replaced by the median of the others.

    Its weight is zero at any scale, but ONNX Runtime rounds the bias, all that such a channel gives, to multiples of
    the scales of weight and input. Batch norm over a dead channel divides by nearly zero: its scale may be thousands.
    """
    live = torch.where(integers.flatten(1).ne(0).any(1), scale, torch.nan)
    return torch.where(live.isnan(), live.nanmedian().nan_to_num(1.0), live)


def by_channel(scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """`[O]` in a shape that multiplies `[O, ...]`."""
    return scale.reshape(-1, *[1] * (weight.ndim - 1))


class _IntegerWeight(nn.Module):
    """An int8 weight with one scale per output channel."""

    weight: torch.Tensor
    weight_scale: torch.Tensor

    def take(self, layer: nn.Conv2d | nn.Linear, integers: torch.Tensor, scale: torch.Tensor) -> None:
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
    """The arguments that make another convolution of the same shape."""
    names = ("in_channels", "out_channels", "kernel_size", "stride", "padding", "dilation", "groups")
    return {name: getattr(layer, name) for name in names} | {"bias": layer.bias is not None}


class QuantizedConv2d(_IntegerWeight, nn.Conv2d):
    """A convolution with an int8 weight `[O, I / groups, h, w]`, made from a float one."""

    def __init__(self, layer: nn.Conv2d, integers: torch.Tensor, scale: torch.Tensor):
        super().__init__(**geometry(layer))
        self.take(layer, integers, scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.dequantized(), self.bias)


class QuantizedLinear(_IntegerWeight, nn.Linear):
    """A linear layer with an int8 weight `[O, I]`, made from a float one."""

    def __init__(self, layer: nn.Linear, integers: torch.Tensor, scale: torch.Tensor):
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.take(layer, integers, scale)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return functional.linear(x, self.dequantized(), self.bias)


def insert_quantizers(model: nn.Module, rounding: Rounding = int8_rounding) -> fx.GraphModule:
    """The integer form of a float model: batch norm folded, integer weights, quantizers yet to be calibrated.

    `rounding` gives the integers and scales of the weight of a layer, by its name and with batch norm folded in.
    """
    spec = spec_of(model) | {"quantized": True}
    graph_module = folded(model)
    for name, layer in list(graph_module.named_modules()):
        if isinstance(layer, nn.Conv2d | nn.Linear):
            _check_finite(name, layer)
        if type(layer) is nn.Conv2d:
            graph_module.set_submodule(name, QuantizedConv2d(layer, *rounding(name, layer)))
        elif type(layer) is nn.Linear:
            graph_module.set_submodule(name, QuantizedLinear(layer, *rounding(name, layer)))
        elif any(True for _ in layer.parameters(recurse=False)):
            kind = type(layer).__name__
            raise ModelError(
                f"{name} ({kind}) has no integer form: a network to quantize is made of 2-d convolutions, linear "
                "layers, and batch norm right behind a convolution"
            )
    place_quantizers(graph_module, Quantizer)
    set_spec(graph_module, spec)
    return graph_module.eval()


def holds_integers(spec: dict) -> bool:
    """Whether the network that a `model.spec` describes is an integer one, or an ensemble with such a member."""
    return bool(spec.get("quantized")) or any(map(holds_integers, spec.get("members", ())))


class _Tracer(fx.Tracer):
    """Looks into the members of an ensemble, and not into their integer layers, which are not made to be traced."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        return isinstance(module, Quantizer | _IntegerWeight) or super().is_leaf_module(module, name)


def folded(model: nn.Module) -> fx.GraphModule:
    """The graph to deploy: batch norm folded into the convolution before it, integer networks as they are.

    That of an ensemble is one graph of all of its members, whose tensors keep the names they have in the ensemble.
    """
    if isinstance(model, fx.GraphModule) and spec_of(model).get("quantized"):
        return model
    if not isinstance(model, Ensemble):
        fused = fuse(model.eval().cpu())
        assert isinstance(fused, fx.GraphModule)  # which its annotation does not say
        return fused
    whole = Ensemble([folded(member) for member in model.members])
    whole.weights.copy_(model.weights)
    return fx.GraphModule(whole, _Tracer().trace(whole), "Ensemble")


def _check_finite(name: str, layer: nn.Conv2d | nn.Linear) -> None:
    if not layer.weight.is_meta and not bool(layer.weight.isfinite().all()):
        raise ModelError(
            f"{name} has a weight that is infinite or no number, which integers cannot hold: train the network again, "
            "with a lower learning rate"
        )


def round_biases(integer: fx.GraphModule) -> None:
    """Round biases as the deployed runtime does: to multiples of the scales of input and weight, what integers add up.

    Left to it alone, one activation in a thousand falls on another level there, and of ResNet-20's answers on CIFAR-10
    as many as 1 in 200 differ.
    """
    tensors = integer.state_dict()
    for bias, scales in bias_steps(integer).items():
        step = tensors[scales[0]] * tensors[scales[1]]
        tensors[bias].copy_(torch.round(tensors[bias] / step) * step + 0.0)  # which makes -0 to 0


def bias_steps(model: nn.Module) -> dict[str, tuple[str, str]]:
    """Of each bias in an integer network, or in the members of an ensemble, the scales of its layer's input and weight.

    Names are those of the state dict. In a calibrated network a bias is a whole multiple of the product of the two.
    """
    steps = {}
    for prefix, graph_module in model.named_modules():
        for node in graph_module.graph.nodes if isinstance(graph_module, fx.GraphModule) else ():
            if not _calls(graph_module, node, QuantizedConv2d, QuantizedLinear):
                continue
            source = node.args[0]
            while not _calls(graph_module, source, Quantizer):  # what only reshapes
                source = source.args[0]
            if graph_module.get_submodule(node.target).bias is not None:
                layer, quantizer = (".".join(filter(None, (prefix, name))) for name in (node.target, source.target))
                steps[f"{layer}.bias"] = f"{quantizer}.scale", f"{layer}.weight_scale"
    return steps


def place_quantizers(graph_module: fx.GraphModule, make: Callable[[], nn.Module]) -> None:
    """Put a module of `make` behind everything that the deployed model rounds, named after what it rounds."""
    graph = graph_module.graph
    for node in list(graph.nodes):
        if _leaves_a_layer(node, graph_module):
            # Where batch norm is not folded yet, what it normalizes gives the name that the folded form will have.
            rounded = node.args[0] if _calls(graph_module, node, nn.BatchNorm2d, nn.BatchNorm1d) else node
            name = f"quantizer_{rounded.name}"
            graph_module.add_submodule(name, make())
            with graph.inserting_after(node):
                quantized = graph.call_module(name)
            node.replace_all_uses_with(quantized)
            quantized.args = (node,)
    graph_module.recompile()


def _leaves_a_layer(node: fx.Node, graph_module: fx.GraphModule) -> bool:
    """Whether the node's result is rounded: not before a ReLU or batch norm, which it takes in, nor the logits."""
    if node.op == "output" or not node.users or any(user.op == "output" for user in node.users):
        return False
    reads_shape_only = _calls(graph_module, node, nn.Flatten)
    taken_in = all(_calls(graph_module, user, nn.ReLU, nn.BatchNorm2d, nn.BatchNorm1d) for user in node.users)
    return node.op != "get_attr" and not reads_shape_only and not taken_in


def _calls(graph_module: fx.GraphModule, node: fx.Node, *kinds: type[nn.Module]) -> bool:
    return node.op == "call_module" and isinstance(graph_module.get_submodule(str(node.target)), kinds)
