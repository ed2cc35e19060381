"""Corrupted images, after Hendrycks and Dietterich, "Benchmarking Neural Network Robustness", ICLR 2019.

Eight of their kinds in three severities, which follow the first, third and fifth of their CIFAR-10-C. What is random is
drawn from the kind's name and the image's index: the same on every machine, and in every severity.
"""

import hashlib
from collections.abc import Callable

import torch
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional

from measurement.kept_answers import STRENGTHS

SMOOTH = 0.1  # of an elastic displacement: standard deviation of the Gaussian that smooths it, as a share of the side


def corrupted(images: torch.Tensor, indices: list[int], kind: str, severity: int) -> torch.Tensor:
    """Return images `[N, C, H, W]` uint8 corrupted; `indices` are theirs in the data set. Severity 0 changes nothing.

    Raises:
        KeyError: no kind has that name.
    """
    corrupt = KINDS[kind]
    if severity == 0:
        return images.clone()
    strength, results = STRENGTHS[kind][severity - 1], []
    if corrupt not in DRAWN:
        return corrupt(images, strength)
    with torch.random.fork_rng(devices=[]):  # torchvision draws from torch's global generator
        for image, index in zip(images, indices, strict=True):
            torch.manual_seed(int.from_bytes(hashlib.sha256(f"{kind} {index}".encode()).digest()[:7], "big"))
            results.append(corrupt(image, strength))
    return torch.stack(results)


def noise(image: torch.Tensor, strength: float) -> torch.Tensor:
    """Add Gaussian noise."""
    return functional.gaussian_noise(image, sigma=strength)


def blur(image: torch.Tensor, strength: float) -> torch.Tensor:
    """Blur by a Gaussian, cut off at four standard deviations."""
    sigma = strength * _scale(image)
    reach = min(max(1, round(4 * sigma)), min(image.shape[-2:]) - 1)  # the border is a reflection, not beyond the image
    return functional.gaussian_blur(image, [2 * reach + 1] * 2, [sigma] * 2)


def contrast(image: torch.Tensor, strength: float) -> torch.Tensor:
    """Move each pixel towards the image's mean grey."""
    return functional.adjust_contrast(image, strength)


def brightness(image: torch.Tensor, strength: float) -> torch.Tensor:
    """Multiply each pixel."""
    return functional.adjust_brightness(image, strength)


def jpeg(image: torch.Tensor, strength: float) -> torch.Tensor:
    """Compress as JPEG."""
    return functional.jpeg(image, int(strength))


def pixelation(image: torch.Tensor, strength: float) -> torch.Tensor:
    """Show fewer and larger pixels."""
    sides = [max(1, round(strength * side)) for side in image.shape[-2:]]
    nearest = functional.InterpolationMode.NEAREST
    return functional.resize(functional.resize(image, sides, antialias=True), list(image.shape[-2:]), nearest)


def elastic(image: torch.Tensor, strength: float) -> torch.Tensor:
    """Move each pixel by a smooth random field, over a reflected border."""
    height, width = image.shape[-2:]
    sigma, margin = SMOOTH * min(height, width), min(height, width) // 4
    padded = functional.pad(image, [margin] * 4, padding_mode="reflect")
    # Uniform numbers in -1..1 have a deviation of 1 / sqrt(3), the smoothed ones 2 sqrt(pi) sigma times less.
    alpha = strength * _scale(image) * 2 * (3**0.5 * 2 * torch.pi**0.5 * sigma)  # the grid's side is 2
    return functional.center_crop(v2.ElasticTransform(alpha, sigma)(padded), [height, width])


def haze(image: torch.Tensor, strength: float) -> torch.Tensor:
    """Mix with white, by a share that varies smoothly between half the strength and all of it."""
    field = functional.resize(torch.rand(1, 5, 5), list(image.shape[-2:]), antialias=False)
    share = strength * (0.5 + 0.5 * field)
    return ((1 - share) * image + share * 255).round().to(torch.uint8)


def _scale(image: torch.Tensor) -> float:
    """Return what a distance in pixels is multiplied by: it grows with images larger than 32, and stays below."""
    return max(1.0, min(image.shape[-2:]) / 32)


DRAWN = (noise, elastic, haze)  # one image at a time; the others take a batch
KINDS: dict[str, Callable[[torch.Tensor, float], torch.Tensor]] = {
    kind.__name__: kind for kind in (noise, blur, contrast, brightness, jpeg, pixelation, elastic, haze)
}
