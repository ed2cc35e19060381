"""Rounding of weights: the levels for a number of bits, and the scales with the least error."""

import reprlib
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from models.operators import integer_layers, trace
from models.quantized import by_channel
from recipe import StepError

Bits = int | Literal["ternary"]
FRACTIONS = torch.linspace(0.2, 1.0, 41)  # of the scale that maps the largest weight to the last level


def levels(bits: Bits) -> tuple[int, int]:
    """Return the smallest and largest integer of a weight: -2..1 for 2 bits, -1..1 for "ternary", -127..127 for 8.

    -128 is left out: nothing needs it, and some integer kernels do not support it.
    """
    if bits == "ternary":
        return -1, 1
    return -(2 ** (bits - 1)) + (bits == 8), 2 ** (bits - 1) - 1


def best_scale(weight: torch.Tensor, bits: Bits, per_channel: bool = True, largest: bool = False) -> torch.Tensor:
    """Return the scales `[O]` of a weight `[O, ...]`, one per output channel, with the least mean squared error.

    The candidates are fractions of the smallest scale that does not clip the largest weight; if `largest`, only that
    scale itself. Without `per_channel`, all channels share one scale. An all-zero channel gets the scale 1.
    """
    low, high = levels(bits)
    rows = weight.detach().flatten(1) if per_channel else weight.detach().reshape(1, -1)
    whole = (rows.amax(1) / high).maximum(rows.amin(1) / low)
    best, least = whole.clone(), torch.full_like(whole, torch.inf)
    for fraction in () if largest else FRACTIONS:
        scale = whole * fraction
        step = torch.where(scale > 0, scale, 1.0)[:, None]
        error = ((rows / step).round().clamp(low, high).mul(step) - rows).square().mean(1)
        best, least = torch.where(error < least, scale, best), error.minimum(least)
    return torch.where(best > 0, best, 1.0).expand(len(weight)).clone()


def round_weight(weight: torch.Tensor, scale: torch.Tensor, bits: Bits) -> torch.Tensor:
    """Return the integers nearest to `weight / scale` within the levels of `bits`, as int8."""
    return torch.round(weight.detach() / by_channel(scale, weight)).clamp(*levels(bits)).to(torch.int8)


def check_layer_bits(layer_bits: Any) -> None:
    """Raise StepError unless `layer_bits` is a tuple of (name, bits) pairs without duplicate names."""
    pairs = isinstance(layer_bits, tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in layer_bits)
    if not pairs or not all(isinstance(name, str) for name, _ in layer_bits):
        raise StepError(
            f"layer_bits must be a tuple of (name, bits) pairs, such as (('conv', 2),), not {reprlib.repr(layer_bits)}"
        )
    names = [name for name, _ in layer_bits]
    if twice := [name for name in names if names.count(name) > 1]:
        raise StepError(f"layer_bits names {twice[0]!r} twice: give each layer one pair")


def bits_by_layer(
    model: nn.Module, bits: Bits, first_last_bits: Bits | None, layer_bits: Iterable[tuple[str, Bits]] = ()
) -> dict[str, Bits]:
    """Return the bits of each convolution and linear layer by name, in order of use.

    The first and the last layer get `first_last_bits`, unless that is None; `layer_bits` overrides single layers.

    Raises:
        StepError: `layer_bits` names a layer that does not exist.
    """
    names = list(integer_layers(trace(model)))
    unknown = [name for name, _ in layer_bits if name not in names]
    if unknown:
        raise StepError(f"layer_bits names {unknown[0]!r}, which is not a layer: use some of {', '.join(names)}")
    first_last = bits if first_last_bits is None else first_last_bits
    return {name: first_last if name in (names[0], names[-1]) else bits for name in names} | dict(layer_bits)


def bits_in_words(bits: Bits, layer_bits: Iterable[tuple[str, Bits]] = ()) -> str:
    """Return the bits in words: `3 bits`, or, if some layers have their own, `ternary and 4 bits`."""
    widths = {bits, *dict(layer_bits).values()}
    numbers = sorted(width for width in widths if isinstance(width, int))
    parts = ["ternary"] * ("ternary" in widths) + [f"{' and '.join(map(str, numbers))} bits"] * bool(numbers)
    return " and ".join(parts)
