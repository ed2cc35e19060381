"""Readers of data sets. Each returns the official train and test images, after checks."""

import hashlib
import io
import unicodedata
import warnings
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from recipe import DataError, readable

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_HUB = "uoft-cs/cifar10"
CIFAR10_IMAGES = {"train": 50_000, "test": 10_000}
FOLDER_SIDE = 32
# Formats that Pillow recognizes but does not decode itself: scientific data (BUFR, GRIB, HDF5), video (MPEG), and
# vector graphics that it passes to Ghostscript (EPS, PostScript) or to Windows (WMF, EMF).
NO_PICTURES = {"BUFR", "GRIB", "HDF5", "MPEG", "EPS", "WMF"}
NAMED = 5  # unreadable files that one message names; the rest are only counted
# What Pillow raises for damaged files and for decompression bombs.
BROKEN = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageArrays:
    """Images `[N, C, H, W]` uint8 and labels `[N]` int64, for training and for testing."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    classes: tuple[str, ...]


def read_digits() -> ImageArrays:
    """Read scikit-learn's 1,797 handwritten digits, 8x8; every fifth is a test image (Alpaydin and Kaynak 1998)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(np.round(digits.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    test = torch.arange(len(labels)) % 5 == 4
    return ImageArrays(images[~test], labels[~test], images[test], labels[test], tuple(map(str, range(10))))


def read_cifar10(root: Path) -> ImageArrays:
    """Read CIFAR-10 (Krizhevsky 2009) from torchvision's batches or the hub's Parquet files; download it if missing."""
    if (root / "cifar-10-batches-py").is_dir():
        return _read_cifar10_batches(root)
    if not sorted(root.rglob("train-*.parquet")):
        _download_cifar10(root)
        if (root / "cifar-10-batches-py").is_dir():
            return _read_cifar10_batches(root)
    train_images, train_labels = _read_parquet(sorted(root.rglob("train-*.parquet")), CIFAR10_IMAGES["train"])
    test_images, test_labels = _read_parquet(sorted(root.rglob("test-*.parquet")), CIFAR10_IMAGES["test"])
    return ImageArrays(train_images, train_labels, test_images, test_labels, CIFAR10_CLASSES)


def cifar10_files(root: Path) -> list[Path]:
    """Return the files that CIFAR-10 would be read from: torchvision's batches, or else the Parquet files."""
    batches = root / "cifar-10-batches-py"
    if batches.is_dir():
        return [path for path in batches.iterdir() if path.is_file()]
    return [path for kind in ("train", "test") for path in root.rglob(f"{kind}-*.parquet")]


def _read_cifar10_batches(root: Path) -> ImageArrays:
    from torchvision.datasets import CIFAR10

    try:  # torchvision compares every file's MD5 with the official one before it unpickles any of them.
        splits = [CIFAR10(str(root), train=train, download=False) for train in (True, False)]
    except RuntimeError:
        raise DataError(
            f"{root / 'cifar-10-batches-py'} is incomplete or its checksums differ from the official ones: "
            "delete that folder and run again to download it again"
        ) from None
    images = [torch.from_numpy(s.data).permute(0, 3, 1, 2).contiguous() for s in splits]
    labels = [torch.tensor(s.targets) for s in splits]
    return ImageArrays(images[0], labels[0], images[1], labels[1], CIFAR10_CLASSES)


def _read_parquet(files: list[Path], expected: int) -> tuple[torch.Tensor, torch.Tensor]:
    with ThreadPoolExecutor() as pool:
        parts = [_read_shard(file, pool) for file in files]
    images = np.concatenate([part[0] for part in parts]) if parts else np.empty((0,))
    labels = np.concatenate([part[1] for part in parts]) if parts else np.empty((0,))
    if len(images) != expected:
        folder = files[0].parent if files else "the data folder"
        raise DataError(
            f"{folder} holds {len(images)} of {expected} CIFAR-10 images: a shard is missing, download it again"
        )
    if labels.min() < 0 or labels.max() >= len(CIFAR10_CLASSES):
        raise DataError(f"{files[0].parent} holds a label outside 0..9: the Parquet files are not CIFAR-10")
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels.astype(np.int64))


def _read_shard(file: Path, pool: ThreadPoolExecutor) -> tuple[np.ndarray, np.ndarray]:
    try:
        table = pyarrow.parquet.read_table(file, columns=["img", "label"]).combine_chunks()
        encoded = table["img"].combine_chunks().field("bytes").to_pylist()
        labels = table["label"].to_numpy()
        if not np.issubdtype(labels.dtype, np.integer):  # strings, or missing values
            raise ValueError("labels are not whole numbers")
        images = np.stack(list(pool.map(_decode, encoded)))
    except (pyarrow.ArrowException, AttributeError, KeyError, *BROKEN) as error:
        raise DataError(f"{file} is truncated or corrupt ({_first_line(error)}): fetch it again") from None
    return images, labels


def _decode(encoded: bytes) -> np.ndarray:
    image = np.asarray(Image.open(io.BytesIO(encoded)).convert("RGB"))
    if image.shape != (32, 32, 3):
        raise ValueError(f"an image of shape {image.shape} instead of 32x32x3")
    return image


def _download_cifar10(root: Path) -> None:
    """Download the hub's Parquet files or, if the hub cannot be reached, torchvision's archive from its slow server."""
    from torchvision.datasets import CIFAR10

    try:
        _download_from_hub(root)
    except Exception as hub_error:  # any of the many network errors of huggingface_hub
        try:
            CIFAR10(str(root), train=True, download=True)  # checks the archive's MD5, shows progress
        except Exception as origin_error:
            raise DataError(
                f"CIFAR-10 is not under {root} and cannot be downloaded (hub: {_first_line(hub_error)}; origin: "
                f"{_first_line(origin_error)}): put cifar-10-batches-py or the Parquet files there, or set CIFAR10_ROOT"
            ) from None


def _download_from_hub(root: Path) -> None:
    from huggingface_hub import HfApi, hf_hub_download

    entries = HfApi().list_repo_tree(CIFAR10_HUB, "plain_text", repo_type="dataset")
    for entry in (e for e in entries if e.path.endswith(".parquet")):
        file = Path(hf_hub_download(CIFAR10_HUB, entry.path, repo_type="dataset", local_dir=root))
        stored = getattr(entry, "lfs", None)
        if stored is None or hashlib.sha256(file.read_bytes()).hexdigest() != stored.sha256:
            file.unlink()
            raise DataError(f"{entry.path} arrived damaged from the hub: run again")


def read_folder(root: Path) -> ImageArrays:
    """Read the images in root/train/CLASS/* and root/test/CLASS/*, centre-cropped and resized to 32x32 RGB.

    Files that are hidden or whose extension is not in `picture_endings` are skipped, and counted in one warning. A
    class is named after its folder, in Unicode form NFC: macOS stores accents as separate characters.
    """
    for part in ("train", "test"):
        if not (root / part).is_dir():
            raise DataError(f"{readable(root / part)} is not a folder: put images there as {part}/CLASS/*.png")
    train, test = _class_folders(root / "train"), _class_folders(root / "test")
    classes = tuple(sorted(train))
    if len(classes) < 2:
        raise DataError(f"{readable(root / 'train')} holds {len(classes)} class folder(s): at least two are needed")
    if unknown := test.keys() - train.keys():
        names = ", ".join(sorted(unknown))
        raise DataError(f"{readable(root / 'test')} has classes that {readable(root / 'train')} lacks: {names}")
    train_files = [_pictures(train[name]) for name in classes]
    test_files = [_pictures(test.get(name, [root / "test" / name])) for name in classes]
    _warn_of_others(root, {file for files in train_files + test_files for file in files})
    train_images, train_labels, test_images, test_labels = _read_pictures(train_files, test_files)
    return ImageArrays(train_images, train_labels, test_images, test_labels, classes)


@cache
def picture_endings() -> frozenset[str]:
    """Return the lower-case file extensions that Pillow reads as a still image, such as `.png` and `.jpg`."""
    endings = Image.registered_extensions()  # including formats that Pillow only writes, such as PDF
    readers = (set(Image.OPEN) | {"MPO"}) - NO_PICTURES  # an MPO file begins with a JPEG, which is what Pillow opens
    return frozenset(ending for ending, form in endings.items() if form in readers)


def _class_folders(folder: Path) -> dict[str, list[Path]]:
    """Return the subfolders by class, without those that file managers, archivers and editors leave behind.

    A class may have two folders whose names differ only in Unicode form, such as one copied from macOS.
    """
    found: dict[str, list[Path]] = {}
    for path in sorted(folder.iterdir()):
        if path.is_dir() and not path.name.startswith(".") and path.name != "__MACOSX":
            found.setdefault(unicodedata.normalize("NFC", readable(path.name)), []).append(path)
    return found


def _pictures(folders: list[Path]) -> list[Path]:
    """Return the image files of a class, from all of its folders."""
    files = [file for folder in folders for file in sorted(folder.glob("*")) if file.is_file()]
    pictures = [file for file in files if file.suffix.lower() in picture_endings() and not file.name.startswith(".")]
    if not pictures:
        raise DataError(f"{readable(folders[0])} holds no image: add some, or remove the class from train/ and test/")
    return pictures


def _warn_of_others(root: Path, pictures: set[Path]) -> None:
    """Warn once about all files of a data set that are not among its images."""
    others = sorted(
        file
        for part in ("train", "test")
        for file in (root / part).rglob("*")
        if file.is_file() and file not in pictures
    )
    if others:
        warnings.warn(
            f"{len(others)} file(s) in {readable(root)} are skipped, such as "
            f"{readable(others[0].relative_to(root))}: images are train/CLASS/* and test/CLASS/*, not hidden, in a "
            "format that Pillow decodes",
            stacklevel=2,
        )


def _read_pictures(*parts: list[list[Path]]) -> list[torch.Tensor]:
    """Read the images `[N, 3, H, W]` and labels `[N]` of each part, given as lists of files by class.

    Raises:
        DataError: some files cannot be read; the message names the first `NAMED` of them.
    """
    read, unreadable = [], []
    for part in parts:
        images, labels = [], []
        for label, file in ((label, file) for label, files in enumerate(part) for file in files):
            try:
                images.append(_read_picture(file))
                labels.append(label)
            except BROKEN as error:
                unreadable.append(f"{readable(file)} ({readable(_first_line(error))})")
        read.append((images, labels))
    if unreadable:
        more = f" and {len(unreadable) - NAMED} more" if len(unreadable) > NAMED else ""
        files = "file is not a readable image" if len(unreadable) == 1 else "files are not readable images"
        raise DataError(f"{len(unreadable)} {files}: replace or remove {', '.join(unreadable[:NAMED])}{more}")
    return [
        tensor
        for images, labels in read
        for tensor in (torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2).contiguous(), torch.tensor(labels))
    ]


def _read_picture(file: Path) -> np.ndarray:
    with Image.open(file) as image:
        return np.asarray(ImageOps.fit(image.convert("RGB"), (FOLDER_SIDE, FOLDER_SIDE)))


def _first_line(error: BaseException) -> str:
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
