"""Names of data sets: which are valid, and how records write them."""

import dataclasses
import os
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path

from recipe.errors import DataError

OPTIONS = re.compile(r"(?P<path>.*)\?(?P<options>\w+=[^/?&]*(?:&\w+=[^/?&]*)*)", re.DOTALL)


@dataclass(frozen=True)
class FolderOptions:
    """How the pictures of a folder are read: `folder:PATH?side=96&colours=grey&mirror=no`.

    side: of the square that they are cropped and resized to, in pixels; colours: "rgb" or "grey"; mirror: whether a
    mirrored picture keeps its label, "yes" or "no".
    """

    side: int = 32
    colours: str = "rgb"
    mirror: str = "yes"

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
    if name in ("digits", "cifar10"):
        return
    if not isinstance(name, str) or not name.startswith("folder:"):
        raise DataError(f"unknown data set {name!r}: use 'digits', 'cifar10' or 'folder:PATH'")
    folder_options(name)
    if not _path(name).strip() or not folder_of(name).name:
        raise DataError(f"{name!r} names no folder: write 'folder:PATH' with the folder of the images")


def written(name: object) -> object:
    """The name of a data set in one form, wherever it was written down; a `Path` is that of a folder of images."""
    if isinstance(name, Path):
        name = f"folder:{name}"
    if isinstance(name, str) and name.startswith("folder:"):
        check_dataset(name)
        return f"folder:{folder_of(name)}{folder_options(name)}"
    return name


def folder_of(name: str) -> Path:
    """The absolute path of a `folder:PATH`; `~` is the home folder. Links stay: their names count."""
    return Path(os.path.abspath(os.path.expanduser(_path(name))))


def folder_options(name: str) -> FolderOptions:
    """What stands behind the path of a `folder:PATH?side=96`. Raises DataError if that is nothing known."""
    found = OPTIONS.fullmatch(name)
    given = dict(option.split("=") for option in found["options"].split("&")) if found else {}
    known = {own.name for own in dataclasses.fields(FolderOptions)}
    if unknown := given.keys() - known:
        raise DataError(f"{name!r} has an option {min(unknown)!r}: use side=96, colours=grey or mirror=no")
    side = given.pop("side", "32")
    if not side.isdecimal() or not 1 <= int(side) <= 1024:
        raise DataError(f"side is a whole number of pixels from 1 to 1024, not {side!r}")
    for option, choices in (("colours", ("rgb", "grey")), ("mirror", ("yes", "no"))):
        if given.get(option, choices[0]) not in choices:
            raise DataError(f"{option} is {' or '.join(choices)}, not {given[option]!r}")
    return FolderOptions(int(side), **given)


def identity(name: str) -> str:
    """The name under which records know a data set: of a folder its last part, the same wherever it lies."""
    if not name.startswith("folder:"):
        return name
    return f"folder:{unicodedata.normalize('NFC', readable(folder_of(name).name))}{folder_options(name)}"


def readable(name: str | Path) -> str:
    """Return a file name as text that can be printed and stored; bytes that are not UTF-8 become `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")


def _path(name: str) -> str:
    found = OPTIONS.fullmatch(name)
    return (found["path"] if found else name).removeprefix("folder:")
