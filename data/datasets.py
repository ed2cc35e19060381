"""A data set by name -> uint8 images and labels, split into train, validation and test."""

import os
from dataclasses import dataclass
from pathlib import Path

import torch

from data.sources import DataError as DataError
from data.sources import ImageArrays, read_cifar10, read_digits, read_folder

# The validation images are chosen by this seed alone, never by a recipe's, so that no recipe trains on an image
# that another one is chosen by.
SPLIT_SEED = 20_200


@dataclass(frozen=True)
class Split:
    """Images `[N, C, H, W]` uint8 and labels `[N]` int64."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))


@dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    `mean` and `std` are per channel, of the training images scaled to 0..1. `flip` says whether a mirrored image
    keeps its label. Every choice is made on `validation`; `test` gives the reported number, once.
    """

    name: str
    train: Split
    validation: Split
    test: Split
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    flip: bool

    @property
    def shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.train.images.shape[1:]
        return channels, height, width


def load(name: str) -> Dataset:
    """Load a data set into memory.

    Args:
        name: `digits` (embedded), `cifar10` (from data/raw/ or $CIFAR10_ROOT, else downloaded to data/raw/), or
            `folder:PATH` with one's own images as PATH/train/CLASS/*.png and PATH/test/CLASS/*.png, cropped and
            resized to 32x32 RGB.

    Raises:
        DataError: the name is unknown, or a file is missing, truncated or corrupt.
    """
    check_dataset(name)
    if name == "digits":
        return _split(name, read_digits(), validation_share=0.1, flip=False)
    if name == "cifar10":
        root = Path(os.environ.get("CIFAR10_ROOT", Path(__file__).parent / "raw"))
        return _split(name, read_cifar10(root), validation_share=0.1, flip=True)
    return _split(name, read_folder(Path(name.removeprefix("folder:"))), validation_share=0.1, flip=True)


def check_dataset(name: str) -> None:
    """Raise DataError where no data set has that name, before anything is looked for or trained under it."""
    if name not in ("digits", "cifar10") and not str(name).startswith("folder:"):
        raise DataError(f"unknown data set {name!r}: use 'digits', 'cifar10' or 'folder:PATH'")


def _split(name: str, arrays: ImageArrays, validation_share: float, flip: bool) -> Dataset:
    order = torch.randperm(len(arrays.train_labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    held_out = max(1, round(validation_share * len(order)))
    validation, train = order[:held_out], order[held_out:]
    images = arrays.train_images[train]
    # Integer sums: exact, so that the numbers do not depend on threads or on the machine.
    pixels = images.numel() // images.shape[1]
    sums = images.sum(dim=(0, 2, 3), dtype=torch.int64)
    squares = torch.stack([(images[:, c].to(torch.int32) ** 2).sum(dtype=torch.int64) for c in range(images.shape[1])])
    mean = sums.double() / pixels
    std = (squares.double() / pixels - mean**2).clamp(min=1e-8).sqrt()
    return Dataset(
        name=name,
        train=Split(images, arrays.train_labels[train]),
        validation=Split(arrays.train_images[validation], arrays.train_labels[validation]),
        test=Split(arrays.test_images, arrays.test_labels),
        classes=arrays.classes,
        mean=tuple((mean / 255).tolist()),
        std=tuple((std / 255).tolist()),
        flip=flip,
    )
