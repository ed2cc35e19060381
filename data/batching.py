"""Batches made on the device, without worker processes. The same (seed, epoch) gives the same batches everywhere."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from data.augmentation import Draw
from data.datasets import Dataset, Split
from recipe import AUGMENTATIONS, Training


@dataclass(frozen=True)
class Batch:
    """Normalized images `[B, C, H, W]` float32 and labels `[B]`, with the epoch, index and settings they come from."""

    images: torch.Tensor
    labels: torch.Tensor
    epoch: int
    index: int
    seed: int = 0
    augmentation: tuple[str, ...] = Training.augmentation


def normalize(images: torch.Tensor, dataset: Dataset) -> torch.Tensor:
    """Convert uint8 `[B, C, H, W]` to float32 with zero mean and unit variance over the training images."""
    mean = torch.tensor(dataset.mean, device=images.device)[None, :, None, None]
    std = torch.tensor(dataset.std, device=images.device)[None, :, None, None]
    return images.float().sub_(255 * mean).div_(255 * std)


def epoch_seed(seed: int, epoch: int) -> int:
    """Return the random seed of one epoch, different for every epoch of every seed."""
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
    """Yield the shuffled training batches of one epoch, with the named augmentations applied in order.

    Order and augmentation depend on (seed, epoch) alone, on every device, so a teacher can label an epoch once for
    all of its students. An incomplete last batch is dropped.
    """
    draws = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    count, device = len(split), split.labels.device
    order = torch.randperm(count, generator=draws)
    height, width = split.images.shape[2:]
    draw = Draw(count, height, width, draws, seed, epoch, dataset.flip, dataset.mean, device)
    views = [AUGMENTATIONS[name](draw) for name in augmentation]
    order = order.to(device)
    size = min(batch_size, count)
    for index in range(count // size):
        part = slice(index * size, (index + 1) * size)
        chosen = order[part]
        images = split.at(chosen)
        for view in views:
            images = view(images, part, chosen)
        yield Batch(normalize(images, dataset), split.labels[chosen], epoch, index, seed, augmentation)
