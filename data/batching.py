"""Batches that live on the device: no worker processes, and the same for the same (seed, epoch) everywhere."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch

from data.datasets import Dataset, Split


@dataclass(frozen=True)
class Batch:
    """Normalized images `[B, C, H, W]` float32, labels `[B]`, and which batch of which epoch this is."""

    images: torch.Tensor
    labels: torch.Tensor
    epoch: int
    index: int


def normalize(images: torch.Tensor, dataset: Dataset) -> torch.Tensor:
    """uint8 `[B, C, H, W]` -> float32 with zero mean and unit variance over the training images."""
    mean = torch.tensor(dataset.mean, device=images.device)[None, :, None, None]
    std = torch.tensor(dataset.std, device=images.device)[None, :, None, None]
    return images.float().sub_(255 * mean).div_(255 * std)


def epoch_seed(seed: int, epoch: int) -> int:
    """What all that is random in an epoch is drawn from: another for every epoch of every seed."""
    return (1_000_003 * seed + epoch) % 2**63


def batches(dataset: Dataset, split: Split, batch_size: int, *, seed: int, epoch: int) -> Iterator[Batch]:
    """One epoch of shuffled, augmented training batches.

    Random crop after reflect padding by an eighth of the side, and random flip where the data set allows it. Order
    and augmentation follow from (seed, epoch) alone, on every device, so a teacher can label an epoch once for all
    of its students. The images left over after the last full batch wait for another epoch.
    """
    draws = torch.Generator().manual_seed(epoch_seed(seed, epoch))
    count, (_, height, width) = len(split), split.images.shape[1:]
    order = torch.randperm(count, generator=draws)
    padding = height // 8
    shift_y = torch.randint(-padding, padding + 1, (count, 1), generator=draws)
    shift_x = torch.randint(-padding, padding + 1, (count, 1), generator=draws)
    flipped = torch.rand(count, 1, generator=draws) < 0.5
    rows = _reflect(torch.arange(height) + shift_y, height)
    columns = _reflect(torch.arange(width) + shift_x, width)
    if dataset.flip:
        columns = torch.where(flipped, columns.flip(1), columns)
    order, rows, columns = (drawn.to(split.images.device) for drawn in (order, rows, columns))

    size = min(batch_size, count)
    for index in range(count // size):
        part = slice(index * size, (index + 1) * size)
        chosen = order[part]
        images = split.images[chosen].flatten(2)
        pixels = (rows[part, :, None] * width + columns[part, None, :]).flatten(1)
        where = pixels[:, None].expand(-1, images.shape[1], -1)
        images = images.gather(2, where).unflatten(2, (height, width))
        yield Batch(normalize(images, dataset), split.labels[chosen], epoch, index)


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    """Positions outside 0..size-1 mirrored back at the border, as `torch.nn.functional.pad(mode="reflect")` does."""
    return size - 1 - (size - 1 - index.abs()).abs()
