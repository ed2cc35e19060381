"""Weights to few bits: the levels of a width, and the scales that lose least."""

import reprlib
from collections.abc import Iterable
from typing import Any, Literal

import torch
from torch import nn

from models.operators import integer_layers, trace
from models.quantized import by_channel
from recipe import StepError

Bits = int | Literal["ternary"]
FRACTIONS = torch.linspace(0.2, 1.0, 41)  # of the scale at which the largest weight is the last level


def levels(bits: Bits) -> tuple[int, int]:
    """The least and the greatest integer of a weight: -2..1 for 2 bits, -1..1 for "ternary", -127..127 for 8.

    8 bits leave out -128, which nothing needs and some integer kernels do not bear.
    """
    if bits == "ternary":
        return -1, 1
    return -(2 ** (bits - 1)) + (bits == 8), 2 ** (bits - 1) - 1


def best_scale(weight: torch.Tensor, bits: Bits, per_channel: bool = True, largest: bool = False) -> torch.Tensor:
    """The scale `[O]` of each output channel of `[O, ...]` with the least mean squared rounding error.

    Tried are fractions of the scale that just holds the largest weight, or that one alone where `largest`; one for
    all channels where not `per_channel`. A channel of zeros gets the scale 1.
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
    """int8 integers nearest to `weight / scale`, within the levels of so many bits."""
    return torch.round(weight.detach() / by_channel(scale, weight)).clamp(*levels(bits)).to(torch.int8)


def check_layer_bits(layer_bits: Any) -> None:
    """Raise StepError where bits of single layers are no tuple of pairs, or name a layer twice."""
    pairs = isinstance(layer_bits, tuple) and all(isinstance(pair, tuple) and len(pair) == 2 for pair in layer_bits)
    if not pairs or not all(isinstance(name, str) for name, _ in layer_bits):
        raise StepError(
            f"layer_bits is a tuple of pairs of name and bits, not {reprlib.repr(layer_bits)}: write (('conv', 2),)"
        )
    names = [name for name, _ in layer_bits]
    if twice := [name for name in names if names.count(name) > 1]:
        raise StepError(f"layer_bits names {twice[0]!r} twice: give each layer one pair")


def bits_by_layer(
    model: nn.Module, bits: Bits, first_last_bits: Bits | None, layer_bits: Iterable[tuple[str, Bits]] = ()
) -> dict[str, Bits]:
    """Bits of each convolution and linear layer by name, in the order of their use.

    The first and the last have their own, None for the same; and so have those that `layer_bits` names.

    Raises:
        StepError: `layer_bits` names what is no layer.
    """
    names = list(integer_layers(trace(model)))
    unknown = [name for name, _ in layer_bits if name not in names]
    if unknown:
        raise StepError(f"layer_bits names {unknown[0]!r}, which is no layer: use some of {', '.join(names)}")
    first_last = bits if first_last_bits is None else first_last_bits
    return {name: first_last if name in (names[0], names[-1]) else bits for name in names} | dict(layer_bits)


def bits_in_words(bits: Bits, layer_bits: Iterable[tuple[str, Bits]] = ()) -> str:
    """`3 bits`; where layers have their own, `ternary and 4 bits`."""
    widths = {bits, *dict(layer_bits).values()}
    numbers = sorted(width for width in widths if isinstance(width, int))
    parts = ["ternary"] * ("ternary" in widths) + [f"{' and '.join(map(str, numbers))} bits"] * bool(numbers)
    return " and ".join(parts)
