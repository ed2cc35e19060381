"""Calibration: the scale of every activation, from images."""

import torch
from torch import nn
from tqdm.auto import tqdm

from data import Dataset, normalize
from models.quantized import Quantizer

BATCH = 64


@torch.no_grad()
def calibrate(model: nn.Module, dataset: Dataset, images: int, seed: int) -> None:
    """Set every quantizer of `model` to the range (0 included) that it sees on `images` random training images."""
    quantizers = [module for module in model.modules() if isinstance(module, Quantizer)]
    ranges = {quantizer: (0.0, 0.0) for quantizer in quantizers}

    def observe(quantizer: Quantizer, inputs: tuple[torch.Tensor], output: torch.Tensor) -> None:
        low, high = torch.aminmax(inputs[0])
        ranges[quantizer] = (min(ranges[quantizer][0], low.item()), max(ranges[quantizer][1], high.item()))

    hooks = [quantizer.register_forward_hook(observe) for quantizer in quantizers]
    _enable(quantizers, False)
    order = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed))[:images]
    for chosen in tqdm(order.split(BATCH), desc="calibration", unit="batch", leave=False):
        model(normalize(dataset.train.images[chosen], dataset))
    _enable(quantizers, True)
    for hook in hooks:
        hook.remove()
    for quantizer, (low, high) in ranges.items():
        scale, zero_point = scale_and_zero_point(low, high)
        quantizer.scale.fill_(scale)
        quantizer.zero_point.fill_(zero_point)


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
