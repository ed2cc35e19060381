"""Quantization noise: the signal-to-noise ratio of every weight and activation of an integer network."""

import contextlib
import math
from functools import partial

import torch
from torch import fx, nn

from models.quantized import QuantizedConv2d, QuantizedLinear, Quantizer, folded


@torch.no_grad()
def signal_to_noise(model: nn.Module, integer: nn.Module, images: torch.Tensor) -> list[dict]:
    """Return 10 log10(|float|^2 / |float - rounded|^2), in dB, of each layer's weight and each rounded activation.

    Args:
        model: the float network.
        integer: the same network quantized without training, which would count changes of the weights as noise.
        images: normalized, `[B, C, H, W]`.

    Returns rows of `layer`, `what` ("weights" or "activations") and `db`, in the order of the forward pass. The noise
    of an activation includes that of all roundings before it. Exact values have infinite dB.
    """
    floats = folded(model)
    weights = dict(floats.named_parameters())
    signals = _Outputs(floats)
    signals.run(images)
    rounded: dict[str, torch.Tensor] = {}
    with contextlib.ExitStack() as hooks:
        for name, quantizer in integer.named_modules():
            if isinstance(quantizer, Quantizer):
                hooks.enter_context(quantizer.register_forward_hook(partial(_note, rounded, name)))
        integer(images)
    rows = []
    for name, layer in integer.named_modules():
        if isinstance(layer, QuantizedConv2d | QuantizedLinear):
            db = decibels(weights[f"{name}.weight"], layer.dequantized())
            rows.append({"layer": name, "what": "weights", "db": db})
    for name, output in rounded.items():
        signal = signals.seen[name.removeprefix("quantizer_")]
        rows.append({"layer": name.removeprefix("quantizer_"), "what": "activations", "db": decibels(signal, output)})
    return rows


def _note(seen: dict[str, torch.Tensor], name: str, _: nn.Module, inputs: tuple, output: torch.Tensor) -> None:
    seen[name] = output


def decibels(signal: torch.Tensor, rounded: torch.Tensor) -> float:
    """Return the ratio of the signal's power to the power of the rounding error, in dB."""
    noise = (signal - rounded).double().square().sum().item()
    power = signal.double().square().sum().item()
    return 10 * math.log10(power / noise) if power and noise else math.inf


class _Outputs(fx.Interpreter):
    """Runs a graph and keeps every node's output, by the node's name."""

    def __init__(self, module: fx.GraphModule):
        super().__init__(module)
        self.seen: dict[str, torch.Tensor] = {}

    def run_node(self, n: fx.Node) -> object:
        self.seen[n.name] = super().run_node(n)
        return self.seen[n.name]
