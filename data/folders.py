"""Finds the pictures in a folder of the user's, and their classes."""

import unicodedata
import warnings
from collections import Counter
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import torch
from PIL import Image

from data.pictures import Pictures, split_classes
from recipe import DataError, FolderOptions, readable

# Formats that Pillow recognizes but does not decode itself: scientific data (BUFR, GRIB, HDF5), video (MPEG), and
# vector graphics that it passes to Ghostscript (EPS, PostScript) or to Windows (WMF, EMF).
NO_PICTURES = {"BUFR", "GRIB", "HDF5", "MPEG", "EPS", "WMF"}
# What the folders of a split may be called, in any case.
PARTS = {
    "train": ("train", "training"),
    "validation": ("val", "valid", "validation"),
    "test": ("test", "testing"),
}
Files = dict[str, list[Path]]  # the pictures of each class


def read_folder(root: Path, options: FolderOptions) -> Pictures:
    """Return the pictures below root/train/CLASS, root/test/CLASS and, if it exists, root/val/CLASS.

    Without test/, val/ takes its place. Without train/, each class root/CLASS is split by a fixed seed, with a warning.
    Pictures are rotated as their EXIF data says, transparent parts become black, and they are centre-cropped to a
    square and resized. A picture of more than 8 bits is scaled by its largest value.

    Pictures are files with one of the `picture_endings`, except hidden ones; all other files are skipped and counted
    in a warning. A class is called after its folder, with composed accents (NFC), since macOS stores them decomposed.

    Raises:
        DataError: there are fewer than two classes, or a class has no picture.
    """
    if not root.is_dir():
        raise DataError(f"{readable(root)} is not a folder: put images there as train/CLASS/*.png and test/CLASS/*.png")
    parts = _parts(root)
    classes = tuple(sorted(parts["train"]))
    _check_classes(root, classes, parts)
    _warn_of_others(root, {file for files in parts.values() for own in files.values() for file in own})
    files, labels = {}, {}
    for part, by_class in parts.items():
        owners = [(label, file) for label, name in enumerate(classes) for file in by_class.get(name, [])]
        if owners:  # an empty val/ is as none
            labels[part] = torch.tensor([label for label, _ in owners])
            files[part] = [file for _, file in owners]
    every = [file for own in files.values() for file in own]
    rows = dict(zip(files, torch.arange(len(every)).split([len(own) for own in files.values()]), strict=True))
    return Pictures(root, options, every, classes, labels, rows, lambda: ((readable(file), file) for file in every))


def _parts(root: Path) -> dict[str, Files]:
    """Return the pictures for training, for testing and, if they have a folder, for validation."""
    folders = {part: found for part, names in PARTS.items() if (found := _folders_named(root, names))}
    if "train" not in folders:
        return _split(root)
    if "test" not in folders and "validation" in folders:
        folders["test"] = folders.pop("validation")
    if "test" not in folders:
        raise DataError(
            f"{readable(root)} has train/ and no test/ or val/: put images there as test/CLASS/*.png, or remove the "
            "folder train/ around the classes, and they are split"
        )
    parts = {part: _pictures_by_class(found) for part, found in folders.items()}
    for part in ("train", "test"):
        for name in parts["train"]:
            if not parts[part].get(name):
                where = readable(folders[part][0] / name)
                raise DataError(f"{where} holds no image: add some, or remove the class from train/ and test/")
    return parts


def _folders_named(root: Path, names: tuple[str, ...]) -> list[Path]:
    return [path for path in sorted(root.iterdir()) if path.is_dir() and path.name.lower() in names]


def _split(root: Path) -> dict[str, Files]:
    """Split the classes of a folder without train/ and test/: a fifth of each for testing, never its only picture."""
    classes = _pictures_by_class([root])
    parts: dict[str, Files] = {"train": {}, "test": {}}
    split = split_classes([len(files) for files in classes.values()])
    for (name, files), (test, train) in zip(classes.items(), split, strict=True):
        parts["test"][name], parts["train"][name] = [files[i] for i in test], [files[i] for i in train]
    counts = {part: sum(map(len, files.values())) for part, files in parts.items()}
    warnings.warn(
        f"{readable(root)} has no folders train/ and test/: its {sum(counts.values())} pictures are split by a fixed "
        f"seed, {counts['train']} for training and {counts['test']} for testing",
        stacklevel=4,
    )
    return parts


def _pictures_by_class(folders: Iterable[Path]) -> Files:
    """Return the pictures of each class, from all folders of its name and their subfolders.

    A class may have two folders whose names are stored differently, one copied from macOS and one from elsewhere.
    """
    found: Files = {}
    for folder in folders:
        for path in sorted(folder.iterdir()):
            if path.is_dir() and not _is_hidden(path):
                files = found.setdefault(unicodedata.normalize("NFC", readable(path.name)), [])
                files += (file for file in sorted(path.rglob("*")) if _is_picture(file, path))
    return found


def _is_hidden(path: Path) -> bool:
    """Return whether a file or folder is one that file managers, archives and editors leave behind."""
    return path.name.startswith(".") or path.name == "__MACOSX"


def _is_picture(file: Path, folder: Path) -> bool:
    hidden = any(_is_hidden(Path(part)) for part in file.relative_to(folder).parts)
    return not hidden and file.suffix.lower() in picture_endings() and file.is_file()


@cache
def picture_endings() -> frozenset[str]:
    """Return the file endings of formats that Pillow reads as a still picture, in lower case: `.png`, `.jpg`."""
    endings = Image.registered_extensions()  # includes formats that Pillow only writes, such as PDF
    readers = (set(Image.OPEN) | {"MPO"}) - NO_PICTURES  # an MPO file is opened as the JPEG that it begins with
    return frozenset(ending for ending, form in endings.items() if form in readers)


def _check_classes(root: Path, classes: tuple[str, ...], parts: dict[str, Files]) -> None:
    if len(classes) < 2:
        raise DataError(
            f"{readable(root)} holds {len(classes)} class folder(s): give two or more, as in train/CLASS/*.jpg and "
            "test/CLASS/*.jpg, or CLASS/*.jpg"
        )
    for part, files in parts.items():
        if unknown := sorted(files.keys() - set(classes)):
            raise DataError(f"the {part} folder of {readable(root)} has classes that train lacks: {', '.join(unknown)}")
    if empty := [name for name in classes if not parts["train"][name]]:
        raise DataError(f"{readable(root / empty[0])} holds no image: add some, or remove the class")
    if not any(parts["test"].values()):
        raise DataError(f"{readable(root)} has a single picture of each class, so none is left to test on: add some")


def _warn_of_others(root: Path, pictures: set[Path]) -> None:
    """Warn, with a count, of files in the folder that are not among the pictures."""
    others = sorted(file for file in root.rglob("*") if file not in pictures and file.is_file())
    if others:
        endings = Counter(file.suffix.lower() or "no ending" for file in others)
        kinds = ", ".join(f"{count} of {ending}" for ending, count in endings.most_common(3))
        warnings.warn(
            f"{len(others)} file(s) in {readable(root)} are skipped ({kinds}), such as "
            f"{readable(others[0].relative_to(root))}: pictures are in train/CLASS and test/CLASS, are not hidden, and "
            "have a format that Pillow decodes",
            stacklevel=3,
        )
