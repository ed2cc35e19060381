"""Calibration: the scale of every activation, from images."""

import numpy as np
import torch
from torch import fx, nn
from tqdm.auto import tqdm

from data import Dataset, normalize
from models.quantized import Quantizer, round_biases
from recipe import StepError

BATCH = 64
SAMPLE = 100_000  # values looked at of each tensor in each batch
BINS = 2048  # of the histogram that "mse" searches
TOLERANCE = 0.25  # of the norm of all logits, that rounding weights to 8 bits may change
METHODS = ("percentile", "minmax", "mse")


@torch.no_grad()
def calibrate(
    model: fx.GraphModule, dataset: Dataset, images: int, percentile: float, seed: int, method: str = "percentile"
) -> None:
    """Set every quantizer of an integer `model` to the range that it sees on `images` random training images.

    Then biases are rounded to the steps that follow.

    The range holds zero and, by the method "percentile", so many % of the values; what lies beyond is clipped, half of
    it at either end. "minmax" takes the extremes, with which a few outliers coarsen the step for all other values;
    "mse" the part of them with the least mean squared error over a histogram.
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

    hooks = [quantizer.register_forward_hook(observe) for quantizer in quantizers]
    _enable(quantizers, False)
    draws = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(dataset.train), generator=draws)[:images]
    for chosen in tqdm(order.split(BATCH), desc="calibration", unit="batch", leave=False):
        model(normalize(dataset.train.images[chosen], dataset))
    _enable(quantizers, True)
    for hook in hooks:
        hook.remove()
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
    """Raise StepError if an integer network with 8-bit weights is another network than the float one.

    Its activations are not rounded here, so that little is lost: what the float network does is what the integer one
    was made to do, whatever its operators.
    """
    quantizers = [module for module in integer.modules() if isinstance(module, Quantizer)]
    images = normalize(dataset.train.images[:BATCH], dataset)
    _enable(quantizers, False)
    logits, expected = integer(images), model(images)
    _enable(quantizers, True)
    difference = float((logits - expected).norm() / expected.norm())
    if not difference <= TOLERANCE:
        raise StepError(
            f"the integer network computes other logits than the float one (by {difference:.0%} of their norm) even "
            "where no activation is rounded: an operator of the network has another form there; see models/operators.py"
        )


def least_error_range(values: np.ndarray) -> tuple[float, float]:
    """The range, out of fractions of the extremes, whose 256 levels are nearest to the values in the mean square."""
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
    """The step and the level of zero that spread 0..255 over `low`..`high`; zero itself is met exactly.

    Krishnamoorthi, "Quantizing deep convolutional networks for efficient inference" (2018), section 2.1.
    """
    low, high = min(low, 0.0), max(high, 0.0)
    scale = (high - low) / 255 or 1.0  # a tensor that is always zero: any scale will do
    return scale, min(max(round(-low / scale), 0), 255)


def _enable(quantizers: list[Quantizer], enabled: bool) -> None:
    for quantizer in quantizers:
        quantizer.enabled = enabled
