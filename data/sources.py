"""Readers of data sets. Each returns the official train and test images, after checks."""

import hashlib
import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from PIL import Image, UnidentifiedImageError

from recipe import DataError

CIFAR10_CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
CIFAR10_HUB = "uoft-cs/cifar10"
CIFAR10_IMAGES = {"train": 50_000, "test": 10_000}
# What Pillow raises for damaged files and for decompression bombs.
BROKEN = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)


@dataclass(frozen=True)
class ImageArrays:
    """Images `[N, C, H, W]` uint8 and labels `[N]` int64, for training and for testing.

    `validation` holds the validation images and labels, if the data set has its own.
    """

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    classes: tuple[str, ...]
    validation: tuple[torch.Tensor, torch.Tensor] | None = None


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
        raise DataError(f"{file} is truncated or corrupt ({first_line(error)}): fetch it again") from None
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
                f"CIFAR-10 is not under {root} and cannot be downloaded (hub: {first_line(hub_error)}; origin: "
                f"{first_line(origin_error)}): put cifar-10-batches-py or the Parquet files there, or set CIFAR10_ROOT"
            ) from None


def _download_from_hub(root: Path) -> None:
    from huggingface_hub import HfApi, hf_hub_download

    entries = HfApi().list_repo_tree(CIFAR10_HUB, "plain_text", repo_type="dataset")
    for entry in (e for e in entries if e.path.endswith(".parquet")):
        file = Path(hf_hub_download(CIFAR10_HUB, entry.path, repo_type="dataset", local_dir=root))
        stored = getattr(entry, "lfs", None)
        if stored is not None and hashlib.sha256(file.read_bytes()).hexdigest() != stored.sha256:
            file.unlink()
            raise DataError(f"{entry.path} arrived damaged from the hub: run again")


def first_line(error: BaseException) -> str:
    """What an error says, in one line without a full stop."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")
