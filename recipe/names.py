"""Data sets by name: which names there are, and what records call them."""

import os
import unicodedata
from pathlib import Path

from recipe.errors import DataError


def check_dataset(name: str) -> None:
    """Raise DataError where no data set has that name, before anything is looked for or trained under it."""
    if name in ("digits", "cifar10"):
        return
    if not isinstance(name, str) or not name.startswith("folder:"):
        raise DataError(f"unknown data set {name!r}: use 'digits', 'cifar10' or 'folder:PATH'")
    if not name.removeprefix("folder:").strip() or not folder_of(name).name:
        raise DataError(f"{name!r} names no folder: write 'folder:PATH' with the folder of the images")


def folder_of(name: str) -> Path:
    """The absolute path of a `folder:PATH`; `~` is the home folder. Links stay: their names count."""
    return Path(os.path.abspath(os.path.expanduser(name.removeprefix("folder:"))))


def identity(name: str) -> str:
    """The name under which records know a data set: of a folder its last part, the same wherever it lies."""
    return (
        f"folder:{unicodedata.normalize('NFC', readable(folder_of(name).name))}" if name.startswith("folder:") else name
    )


def readable(name: str | Path) -> str:
    """A file's name as text that can be printed and stored: bytes that are no UTF-8 stand as `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
