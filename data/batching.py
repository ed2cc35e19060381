"""Batches that live on the device: no worker processes, and the same for the same (seed, epoch) everywhere."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from data.augmentation import Draw
from data.datasets import Dataset, Split
from recipe import AUGMENTATIONS, Training


@dataclass(frozen=True)
class Batch:
    """Normalized images `[B, C, H, W]` float32, labels `[B]`, and which batch of which epoch this is, how drawn."""

    images: torch.Tensor
    labels: torch.Tensor
    epoch: int
    index: int
    seed: int = 0
    augmentation: tuple[str, ...] = Training.augmentation


def normalize(images: torch.Tensor, dataset: Dataset) -> torch.Tensor:
    """uint8 `[B, C, H, W]` -> float32 with zero mean and unit variance over the training images."""
    mean = torch.tensor(dataset.mean, device=images.device)[None, :, None, None]
    std = torch.tensor(dataset.std, device=images.device)[None, :, None, None]
    return images.float().sub_(255 * mean).div_(255 * std)


def epoch_seed(seed: int, epoch: int) -> int:
    """What all that is random in an epoch is drawn from: another for every epoch of every seed."""
    return (1_000_003 * seed + epoch) % 2**63


def batches(
    dataset: Dataset,
    split: Split,
    batch_size: int,
    *,
    seed: int,
    epoch: int,
    augmentation: tuple[str, ...] = Training.augmentation,
) -> Iterator[Batch]:
    """One epoch of shuffled training batches, augmented as `data.augmentation` has it, one after the other.

    Order and augmentation follow from (seed, epoch) alone, on every device, so a teacher can label an epoch once for
    all of its students. The images left over after the last full batch wait for another epoch.
    """
    draws = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    count, device = len(split), split.images.device
    order = torch.randperm(count, generator=draws)
    height, width = split.images.shape[2:]
    draw = Draw(count, height, width, draws, seed, epoch, dataset.flip, dataset.mean, device)
    views = [AUGMENTATIONS[name](draw) for name in augmentation]
    order = order.to(device)
    size = min(batch_size, count)
    for index in range(count // size):
        part = slice(index * size, (index + 1) * size)
        chosen = order[part]
        images = split.images[chosen]
        for view in views:
            images = view(images, part, chosen)
        yield Batch(normalize(images, dataset), split.labels[chosen], epoch, index, seed, augmentation)
