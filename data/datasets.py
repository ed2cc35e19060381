"""Load a data set by name: uint8 images and labels, split into train, validation and test."""

import dataclasses
import hashlib
import importlib.metadata
import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from data.folders import read_folder
from data.sources import ImageArrays, cifar10_files, read_cifar10, read_digits
from recipe import DataError, check_dataset, folder_of, folder_options, written

# The validation split depends on this seed alone, never on a recipe's: no recipe trains on an image that is used to
# select another one.
SPLIT_SEED = 20_200
# Pixel mean and std of the data sets whose images never change; archives refer to them by name.
PIXELS = {
    "digits": {
        "mean": [0.3058705620965542],
        "std": [0.37617315546155417],
    },
    "cifar10": {
        "mean": [0.4915714898216231, 0.4824110714528867, 0.4470551088473584],
        "std": [0.24717282326305265, 0.24365689329574428, 0.2617880625149469],
    },
}


@dataclass(frozen=True)
class Split:
    """Images `[N, C, H, W]` uint8 and labels `[N]` int64."""

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        return Split(self.images.to(device), self.labels.to(device))

    @cached_property
    def fingerprint(self) -> dict:
        """`count`, and the first digits of the SHA-256 of `images` and of `labels`."""
        return {"count": len(self), "images": _digest(self.images), "labels": _digest(self.labels)}


@dataclass(frozen=True)
class Dataset:
    """A data set in memory.

    `mean` and `std` are per channel, over the training images scaled to 0..1. `flip` says whether a mirrored image
    keeps its label. All selection uses `validation`; `test` is used only for the reported numbers.
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

    @property
    def pixels(self) -> dict:
        """`mean` and `std` per channel, in the form that a network's spec holds them."""
        return {"mean": list(self.mean), "std": list(self.std)}

    def on_scale(self, pixels: Mapping | None) -> "Dataset":
        """Return this data set with the `mean` and `std` in a network's `pixels`; unchanged if that is None."""
        if pixels is None:
            return self
        return dataclasses.replace(self, mean=tuple(pixels["mean"]), std=tuple(pixels["std"]))

    @cached_property
    def fingerprint(self) -> dict:
        """Checksums of images and labels, which records keep and `changes` compares."""
        splits = {"train": self.train, "validation": self.validation, "test": self.test}
        of_splits = {name: split.fingerprint for name, split in splits.items()}
        return {"shape": list(self.shape), "classes": list(self.classes), **of_splits}


def load(name: str) -> Dataset:
    """Load a data set into memory.

    Args:
        name: `digits` (embedded), `cifar10` (from data/raw/ or $CIFAR10_ROOT, else downloaded to data/raw/), or
            `folder:PATH` with your own images as PATH/train/CLASS/*.png and PATH/test/CLASS/*.png, 32x32 RGB if
            nothing else stands behind it, as in `folder:PATH?side=96&colours=grey&mirror=no`: see `read_folder`.

    Raises:
        DataError: the name is unknown, or a file is missing, truncated or corrupt.
    """
    name = str(written(name))
    check_dataset(name)
    if name == "digits":
        return _split(name, read_digits(), validation_share=0.1, flip=False)
    if name == "cifar10":
        return _split(name, read_cifar10(_cifar10_root()), validation_share=0.1, flip=True)
    options = folder_options(name)
    return _split(name, read_folder(folder_of(name), options), validation_share=0.1, flip=options.flip)


def signature(name: str) -> str | None:
    """Return a string that changes when a data set's files change, without reading them; None if there are no files.

    It is a hash of paths, sizes and modification times. For digits it is the version of scikit-learn, which ships them.
    """
    if name == "digits":
        return f"scikit-learn {importlib.metadata.version('scikit-learn')}"
    root = _cifar10_root() if name == "cifar10" else folder_of(name)
    files = cifar10_files(root) if name == "cifar10" else [path for path in root.rglob("*") if path.is_file()]
    if not files:
        return None
    digest = hashlib.sha256()
    for path in sorted(files):
        stat = path.stat()
        digest.update(os.fsencode(path.relative_to(root)) + f" {stat.st_size} {stat.st_mtime_ns}\n".encode())
    return digest.hexdigest()


def changes(then: Mapping, now: Mapping, parts: tuple[str, ...] = ("train", "validation", "test")) -> str | None:
    """Describe how two fingerprints differ; None if they do not.

    Examples: `120 test images now, 30 then`; `other training images`; `the classes are cat, dog now, they were dog,
    cat`.
    """
    names = {"train": "training", "validation": "validation", "test": "test"}
    if list(then["shape"]) != list(now["shape"]):
        return f"images of shape {tuple(now['shape'])} now, {tuple(then['shape'])} then"
    if list(then["classes"]) != list(now["classes"]):
        return f"the classes are {_short(now['classes'])} now, they were {_short(then['classes'])}"
    found = []
    for part in parts:
        old, new = then[part], now[part]
        if old["count"] != new["count"]:
            found.append(f"{new['count']:,} {names[part]} images now, {old['count']:,} then")
        elif old["images"] != new["images"]:
            found.append(f"other {names[part]} images")
        elif old["labels"] != new["labels"]:
            found.append(f"other labels of {names[part]} images")
    return "; ".join(found) or None


def _short(classes: list[str]) -> str:
    return ", ".join(classes[:6]) + (f" and {len(classes) - 6} more" if len(classes) > 6 else "")


def _digest(tensor: torch.Tensor) -> str:
    digest = hashlib.sha256(f"{tensor.dtype} {list(tensor.shape)}".encode())
    digest.update(tensor.cpu().contiguous().numpy().data)
    return digest.hexdigest()[:16]


def _cifar10_root() -> Path:
    return Path(os.environ.get("CIFAR10_ROOT") or Path(__file__).parent / "raw")


def _split(name: str, arrays: ImageArrays, validation_share: float, flip: bool) -> Dataset:
    train, validation = _held_out(arrays, validation_share, by_class=name.startswith("folder:"))
    images = arrays.train_images[train]
    # Integer sums are exact, so that the result does not depend on the number of threads or the machine.
    pixels = images.numel() // images.shape[1]
    sums = images.sum(dim=(0, 2, 3), dtype=torch.int64)
    squares = torch.stack([(images[:, c].to(torch.int32) ** 2).sum(dtype=torch.int64) for c in range(images.shape[1])])
    mean = sums.double() / pixels
    std = (squares.double() / pixels - mean**2).clamp(min=1e-8).sqrt()
    return Dataset(
        name=name,
        train=Split(images, arrays.train_labels[train]),
        validation=Split(*(arrays.validation or (arrays.train_images[validation], arrays.train_labels[validation]))),
        test=Split(arrays.test_images, arrays.test_labels),
        classes=arrays.classes,
        mean=tuple((mean / 255).tolist()),
        std=tuple((std / 255).tolist()),
        flip=flip,
    )


def _held_out(arrays: ImageArrays, share: float, by_class: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of the images for training and for validation: so many of each class, or of all together."""
    labels = arrays.train_labels
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    if arrays.validation is not None:
        return order, order[:0]
    if not by_class:
        held = max(1, round(share * len(order)))
        return order[held:], order[:held]
    chosen = torch.zeros(len(order), dtype=torch.bool)
    for label in range(len(arrays.classes)):
        own = order[labels[order] == label]
        held = min(len(own) - 1, max(1, round(share * len(own))))  # a class of one image is trained on
        chosen[own[:held]] = True
    if not bool(chosen.any()):
        raise DataError("no class has two training images, one to train on and one to choose by: add some")
    return order[~chosen[order]], order[chosen[order]]
