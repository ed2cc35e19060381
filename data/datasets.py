"""Load a data set by name: uint8 images and labels, split into train, validation and test."""

import dataclasses
import hashlib
import importlib.metadata
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from data.folders import read_folder
from data.parquet import parquet_files, read_parquet
from data.pictures import Pictures, decoded, release
from data.sources import READERS, ImageArrays, published_files, read_published
from recipe import DATASETS, DataError, check_dataset, folder_of, folder_options, kind_of, root_variable, written

VALIDATION_SHARE = 0.1  # of the training images, for data sets without validation images of their own

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
    """Images `[N, C, H, W]` uint8 and labels `[N]` int64.

    Images may lie in a file that is mapped into memory. To read all of them in little memory, use `parts`.
    """

    images: torch.Tensor
    labels: torch.Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def to(self, device: torch.device | str) -> "Split":
        """Move the labels and, if they leave half of a GPU's free memory, the images."""
        device = torch.device(device)
        fit = device.type != "cuda" or self.images.nbytes < torch.cuda.mem_get_info(device)[0] // 2
        return Split(self.images.to(device) if fit else self.images, self.labels.to(device))

    def at(self, places: torch.Tensor) -> torch.Tensor:
        """Return the images at `places` `[B]`, on the device of the labels."""
        images = self.images[places.to(self.images.device)].to(self.labels.device)
        release(self.images)
        return images

    def parts(self, size: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield all images and labels in order, on the device of the labels.

        `size` is how many at once, if they are of up to 32x32; of larger images, fewer have as many pixels.
        """
        height, width = self.images.shape[2:]
        size = max(8, min(size, size * 32 * 32 // (height * width)))
        for start in range(0, len(self), size):
            yield self.images[start : start + size].to(self.labels.device), self.labels[start : start + size]
            release(self.images)

    @cached_property
    def fingerprint(self) -> dict:
        """`count`, and the first digits of the SHA-256 of `images` and of `labels`."""
        return {"count": len(self), "images": _digest(self.images), "labels": _digest(self.labels)}


@dataclass(frozen=True)
class Dataset:
    """A data set.

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
    """Load a data set.

    Args:
        name: one of `recipe.DATASETS`: `digits` (embedded), or `cifar10` and others, whose files are in data/raw/ or
            $CIFAR10_ROOT and the like, or else are downloaded there. Or `folder:PATH` with your own images as
            PATH/train/CLASS/*.png and PATH/test/CLASS/*.png, 32x32 RGB if nothing else stands behind it, as in
            `folder:PATH?side=96&colours=grey&mirror=no`: see `read_folder`. Or `parquet:PATH`, with the same options
            and `label=COLUMN`: see `read_parquet`. Your own are decoded once, to a file among the artifacts.

    Raises:
        DataError: the name is unknown, a file is missing, truncated or corrupt, or the disk is full.
    """
    name = str(written(name))
    check_dataset(name)
    if name in DATASETS:
        root, row = _root(name), DATASETS[name]
        arrays = READERS[name](root) if name in READERS else read_published(name, root)
        return _dataset(name, arrays.classes, _splits_of_arrays(arrays, row.by_class), row.mirror)
    options = folder_options(name)
    pictures = (read_folder if kind_of(name) == "folder:" else read_parquet)(folder_of(name), options)
    return _dataset(name, pictures.classes, _splits_of_pictures(pictures), options.flip)


def signature(name: str) -> str | None:
    """Return a string that changes when a data set's files change, without reading them; None if there are no files.

    It is a hash of paths, sizes and modification times. For digits it is the version of scikit-learn, which ships them.
    """
    if name == "digits":
        return f"scikit-learn {importlib.metadata.version('scikit-learn')}"
    root = _root(name) if name in DATASETS else folder_of(name)
    if name in DATASETS:
        files = published_files(name, root)
    elif kind_of(name) == "parquet:":
        files = parquet_files(root)
    else:
        files = [path for path in root.rglob("*") if path.is_file()]
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
    for part in tensor.split(64):  # little at a time of what lies in a file
        digest.update(part.cpu().contiguous().numpy().data)
        release(tensor)
    return digest.hexdigest()[:16]


def _root(name: str) -> Path:
    """Return the folder of a published data set's files."""
    return Path(os.environ.get(root_variable(name)) or Path(__file__).parent / "raw")


def _dataset(name: str, classes: tuple[str, ...], splits: list[Split], flip: bool) -> Dataset:
    train, validation, test = splits
    channels, height, width = train.images.shape[1:]
    # Counts are exact, so that the result does not depend on the number of threads or the machine.
    counts = np.zeros((channels, 256), np.int64)
    for images, _ in train.parts(64):
        counts += [np.bincount(channel.flatten().numpy(), minlength=256) for channel in images.unbind(1)]
    values = torch.arange(256)
    sums, squares = ((torch.from_numpy(counts) * of).sum(1) for of in (values, values**2))
    pixels = len(train) * height * width
    mean = sums.double() / pixels
    std = (squares.double() / pixels - mean**2).clamp(min=1e-8).sqrt()
    scale = {"mean": tuple((mean / 255).tolist()), "std": tuple((std / 255).tolist())}
    return Dataset(name, train, validation, test, classes, flip=flip, **scale)


def _splits_of_arrays(arrays: ImageArrays, by_class: bool) -> list[Split]:
    """Return the splits for training, validation and testing."""
    parts = _held_out(arrays.train_labels, len(arrays.classes), by_class)
    splits = [Split(arrays.train_images[part], arrays.train_labels[part]) for part in parts]
    return [*splits, Split(arrays.test_images, arrays.test_labels)]


def _splits_of_pictures(pictures: Pictures) -> list[Split]:
    """Do the same with pictures, which are decoded in the order of the splits: each is then a part of one file."""
    labels, rows = dict(pictures.labels), dict(pictures.rows)
    if "validation" in labels:
        shuffled = torch.randperm(len(labels["train"]), generator=torch.Generator().manual_seed(SPLIT_SEED))
        labels["train"], rows["train"] = labels["train"][shuffled], rows["train"][shuffled]
    else:
        train, validation = _held_out(labels["train"], len(pictures.classes), by_class=True)
        for of in (labels, rows):
            of["train"], of["validation"] = of["train"][train], of["train"][validation]
    order = ("train", "validation", "test")
    images = decoded(pictures, torch.cat([rows[part] for part in order]))
    splits = images.split([len(labels[part]) for part in order])
    return [Split(own, labels[part]) for own, part in zip(splits, order, strict=True)]


def _held_out(labels: torch.Tensor, classes: int, by_class: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """Places of the images for training and for validation: so many of each class, or of all together."""
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(SPLIT_SEED))
    if not by_class:
        held = max(1, round(VALIDATION_SHARE * len(order)))
        return order[held:], order[:held]
    chosen = torch.zeros(len(order), dtype=torch.bool)
    for label in range(classes):
        own = order[labels[order] == label]
        held = min(len(own) - 1, max(1, round(VALIDATION_SHARE * len(own))))  # a class of one image is trained on
        chosen[own[: max(0, held)]] = True
    if not bool(chosen.any()):
        raise DataError("no class has two training images, one for training and one for validation: add some")
    return order[~chosen[order]], order[chosen[order]]
