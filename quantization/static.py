"""Calibration: sets the scale of every activation from images."""

import contextlib
from collections.abc import Iterator

import numpy as np
import torch
from torch import fx, nn
from tqdm.auto import tqdm

from data import Dataset, normalize
from models.quantized import Quantizer, round_biases
from recipe import StepError

BATCH = 64
SAMPLE = 100_000  # values sampled per tensor and batch
BINS = 2048  # of the histogram used by "mse"
TOLERANCE = 0.25  # largest relative error of the logits, in norm, by rounding weights to 8 bits
METHODS = ("percentile", "minmax", "mse")


@torch.no_grad()
def calibrate(
    model: fx.GraphModule, dataset: Dataset, images: int, percentile: float, seed: int, method: str = "percentile"
) -> None:
    """Set every quantizer of an integer `model` to the range of its inputs on `images` random training images.

    The biases are then rounded to the resulting steps.

    The range always contains zero. With the method "percentile" it contains `percentile` % of the values; half of the
    others are clipped at either end. "minmax" takes the extremes, so that a few outliers coarsen the step for all other
    values. "mse" takes the fraction of that range with the least mean squared error, estimated from a histogram.
    """
    percentile = 100 if method == "minmax" else percentile
    quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
    seen: dict[Quantizer, list[torch.Tensor]] = {quantizer: [] for quantizer in quantizers}

    def observe(quantizer: Quantizer, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        values = inputs[0].flatten()
        if percentile == 100:
            seen[quantizer].append(torch.stack(values.aminmax()))
        elif len(values) > SAMPLE:
            seen[quantizer].append(values[torch.randint(len(values), (SAMPLE,), generator=draws)])
        else:
            seen[quantizer].append(values.clone())

    draws = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(dataset.train), generator=draws)[:images]
    with contextlib.ExitStack() as hooks, _unrounded(quantizers):
        for quantizer in quantizers:
            hooks.enter_context(quantizer.register_forward_hook(observe))
        for chosen in tqdm(order.split(BATCH), desc="calibration", unit="batch", leave=False):
            model(normalize(dataset.train.at(chosen), dataset))
    for quantizer, samples in seen.items():
        values = torch.cat(samples).numpy()
        if method == "mse":
            low, high = least_error_range(values)
        else:
            low, high = np.percentile(values, [(100 - percentile) / 2, (100 + percentile) / 2])
        scale, zero_point = scale_and_zero_point(float(low), float(high))
        quantizer.scale.fill_(scale)
        quantizer.zero_point.fill_(zero_point)
    round_biases(model)


@torch.no_grad()
def check_integer_form(model: nn.Module, integer: fx.GraphModule, dataset: Dataset) -> None:
    """Raise StepError if an integer network with 8-bit weights does not compute what the float network does.

    Activations are not rounded here, so a large difference means that an operator was converted wrongly.
    """
    quantizers = [module for module in integer.modules() if isinstance(module, Quantizer)]
    images = normalize(dataset.train.images[:BATCH], dataset)
    with _unrounded(quantizers):
        logits, expected = integer(images), model(images)
    difference = float((logits - expected).norm() / expected.norm())
    if not difference <= TOLERANCE:
        raise StepError(
            f"the integer network computes other logits than the float one (by {difference:.0%} of their norm) even if "
            "no activation is rounded: one of its operators is converted wrongly; see models/operators.py"
        )


def least_error_range(values: np.ndarray) -> tuple[float, float]:
    """Return the range whose 256 levels have the least mean squared error, among fractions of the full range."""
    counts, edges = np.histogram(values, BINS)
    centres = (edges[:-1] + edges[1:]) / 2
    low, high = min(float(values.min()), 0.0), max(float(values.max()), 0.0)

    def error(share: float) -> float:
        scale, zero_point = scale_and_zero_point(share * low, share * high)
        rounded = (np.clip(np.rint(centres / scale) + zero_point, 0, 255) - zero_point) * scale
        return float(counts @ (rounded - centres) ** 2)

    share = min(np.linspace(0.2, 1.0, 81), key=error)
    return share * low, share * high


def scale_and_zero_point(low: float, high: float) -> tuple[float, int]:
    """Return the step and the zero point that map `low`..`high` to 0..255; zero is represented exactly.

    Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference" (2018), section 2.1.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255 or 1.0  # for a tensor that is always zero, any scale will do
    return scale, min(max(round(-low / scale), 0), 255)


@contextlib.contextmanager
def _unrounded(quantizers: list[Quantizer]) -> Iterator[None]:
    """Let quantizers return their inputs as they are."""
    for quantizer in quantizers:
        quantizer.enabled = False
    try:
        yield
    finally:
        for quantizer in quantizers:
            quantizer.enabled = True
