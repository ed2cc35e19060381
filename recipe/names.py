"""Names of data sets: which are valid, and how records write them."""

import os
import unicodedata
from pathlib import Path

from recipe.errors import DataError


def check_dataset(name: str) -> None:
    """Raise DataError if no data set has that name. Reads no files."""
    if name in ("digits", "cifar10"):
        return
    if not isinstance(name, str) or not name.startswith("folder:"):
        raise DataError(f"unknown data set {name!r}: use 'digits', 'cifar10' or 'folder:PATH'")
    if not name.removeprefix("folder:").strip() or not folder_of(name).name:
        raise DataError(f"{name!r} names no folder: write 'folder:PATH' with the path to the images")


def folder_of(name: str) -> Path:
    """Return the absolute path of a `folder:PATH`; `~` is the home folder. Symbolic links are not resolved."""
    return Path(os.path.abspath(os.path.expanduser(name.removeprefix("folder:"))))


def identity(name: str) -> str:
    """Return the name of a data set in records. A folder is known by its last component, wherever it is stored."""
    return (
        f"folder:{unicodedata.normalize('NFC', readable(folder_of(name).name))}" if name.startswith("folder:") else name
    )


def readable(name: str | Path) -> str:
    """Return a file name as text that can be printed and stored; bytes that are not UTF-8 become `\\xff`."""
    return os.fsencode(name).decode("utf-8", "backslashreplace")
