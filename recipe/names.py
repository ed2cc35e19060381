"""Names of data sets: which there are, and how records write them."""

import dataclasses
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import TypeGuard

from recipe.errors import DataError

KINDS = ("folder:", "parquet:")  # of a user's own images, in front of a path
OPTIONS = re.compile(r"(?P<path>.*)\?(?P<options>\w+=[^/?&]*(?:&\w+=[^/?&]*)*)", re.DOTALL)


@dataclass(frozen=True)
class NamedSet:
    """A published data set: where its files come from, and what holds of its images.

    torchvision: its class in `torchvision.datasets`; stored: what that keeps below the root, a file or a folder.
    hub, folder: its repository on the Hugging Face hub, and the folder of its Parquet files there.
    images: how many there are for training and for testing; shape: channels, height and width of each.
    classes: their names, if the files do not hold them; label: the Parquet files' column of labels.
    mirror: whether a mirrored image keeps its label; by_class: whether each class gives its share to validation.
    """

    torchvision: str = ""
    stored: str = ""
    hub: str = ""
    folder: str = ""
    images: tuple[int, int] = (0, 0)
    shape: tuple[int, int, int] = (3, 32, 32)
    classes: tuple[str, ...] = ()
    label: str = "label"
    mirror: bool = True
    by_class: bool = True


_OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
DATASETS = {
    "digits": NamedSet(mirror=False, by_class=False),  # comes with scikit-learn
    "cifar10": NamedSet(
        "CIFAR10", "cifar-10-batches-py", "uoft-cs/cifar10", "plain_text", (50_000, 10_000), classes=_OBJECTS,
        by_class=False,
    ),
    "cifar100": NamedSet(
        "CIFAR100", "cifar-100-python", "uoft-cs/cifar100", "cifar100", (50_000, 10_000), label="fine_label"
    ),
    "svhn": NamedSet(
        "SVHN", "train_32x32.mat", "ufldl-stanford/svhn", "cropped_digits", (73_257, 26_032),
        classes=tuple("0123456789"), mirror=False,
    ),
    "fashionmnist": NamedSet(
        "FashionMNIST", "FashionMNIST", "zalando-datasets/fashion_mnist", "fashion_mnist", (60_000, 10_000),
        (1, 28, 28), _CLOTHES,
    ),
}  # fmt: skip


@dataclass(frozen=True)
class FolderOptions:
    """How a user's own pictures are read: `folder:PATH?side=96&colours=grey&mirror=no`.

    side: of the square that they are cropped and resized to, in pixels; colours: "rgb" or "grey"; mirror: whether a
    mirrored picture keeps its label, "yes" or "no"; label: the column of labels in Parquet files, if it is not found.
    """

    side: int = 32
    colours: str = "rgb"
    mirror: str = "yes"
    label: str = ""

    @property
    def grey(self) -> bool:
        return self.colours == "grey"

    @property
    def flip(self) -> bool:
        return self.mirror == "yes"

    def __str__(self) -> str:
        """As they stand behind a path: those that are not at their default."""
        changed = [f"{own.name}={getattr(self, own.name)}" for own in dataclasses.fields(self)]
        plain = [f"{own.name}={own.default}" for own in dataclasses.fields(self)]
        given = "&".join(option for option in changed if option not in plain)
        return f"?{given}" if given else ""


def check_dataset(name: str) -> None:
    """Raise DataError if no data set has that name. Reads no files."""
    if isinstance(name, str) and name in DATASETS:
        return
    if not is_of_pictures(name):
        known = ", ".join(map(repr, DATASETS))
        raise DataError(f"unknown data set {name!r}: use {known}, 'folder:PATH' or 'parquet:PATH'")
    folder_options(name)
    if not _path(name).strip() or not folder_of(name).name:
        raise DataError(f"{name!r} names no folder: write '{kind_of(name)}PATH' with the folder of the images")


def is_of_pictures(name: object) -> TypeGuard[str]:
    """Return whether a name is that of a user's own images."""
    return isinstance(name, str) and name.startswith(KINDS)


def kind_of(name: str) -> str:
    """Return which of `KINDS` the images of a name are."""
    return name[: name.index(":") + 1]


def root_variable(name: str) -> str:
    """Return the environment variable with the folder of a published data set's files."""
    return f"{name.upper()}_ROOT"


def written(name: object) -> object:
    """The name of a data set in one form, wherever it was written down; a `Path` is that of a folder of images."""
    if isinstance(name, Path):
        name = f"folder:{name}"
    if is_of_pictures(name):
        check_dataset(name)
        return f"{kind_of(name)}{folder_of(name)}{folder_options(name)}"
    return name


def folder_of(name: str) -> Path:
    """The absolute path of a `folder:PATH` or `parquet:PATH`; `~` is the home folder. Links stay: their names count."""
    return Path(os.path.abspath(os.path.expanduser(_path(name))))


def folder_options(name: str) -> FolderOptions:
    """What stands behind the path of a `folder:PATH?side=96`. Raises DataError if that is nothing known."""
    found = OPTIONS.fullmatch(name)
    given = dict(option.split("=") for option in found["options"].split("&")) if found else {}
    known = {own.name for own in dataclasses.fields(FolderOptions)}
    if unknown := given.keys() - known:
        raise DataError(f"{name!r} has an option {min(unknown)!r}: use side=96, colours=grey or mirror=no")
    if "label" in given and kind_of(name) == "folder:":
        raise DataError(f"{name!r} has an option 'label', but the folders of the pictures are their labels: remove it")
    side = given.pop("side", "32")
    if not side.isdecimal() or not 1 <= int(side) <= 1024:
        raise DataError(f"side is a whole number of pixels from 1 to 1024, not {side!r}")
    for option, choices in (("colours", ("rgb", "grey")), ("mirror", ("yes", "no"))):
        if given.get(option, choices[0]) not in choices:
            raise DataError(f"{option} is {' or '.join(choices)}, not {given[option]!r}")
    return FolderOptions(int(side), **given)


def identity(name: str) -> str:
    """The name under which records know a data set: of a folder its last part, the same wherever it lies."""
    if not is_of_pictures(name):
        return name
    return f"{kind_of(name)}{unicodedata.normalize('NFC', readable(folder_of(name).name))}{folder_options(name)}"


def readable(name: str | Path) -> str:
    """Return a file name as text that can be printed and stored; bytes that are not UTF-8 become `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _path(name: str) -> str:
    found = OPTIONS.fullmatch(name)
    return (found["path"] if found else name).removeprefix(kind_of(name))
