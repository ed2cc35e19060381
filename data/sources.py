"""Readers of published data sets. Each returns the official train and test images, after checks."""

import hashlib
import io
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from data.parquet import DAMAGED, Columns, find_columns, read_encoded, read_labels
from data.pictures import first_line
from recipe import DATASETS, DataError, NamedSet, root_variable


@dataclass(frozen=True)
class ImageArrays:
    """Images `[N, C, H, W]` uint8 and labels `[N]` int64, for training and for testing."""

    train_images: torch.Tensor
    train_labels: torch.Tensor
    test_images: torch.Tensor
    test_labels: torch.Tensor
    classes: tuple[str, ...]


def read_digits(root: Path) -> ImageArrays:
    """Read scikit-learn's 1,797 handwritten digits, 8x8; every fifth is a test image (Alpaydin and Kaynak 1998)."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    images = torch.from_numpy(np.round(digits.images * (255 / 16)).astype(np.uint8))[:, None]
    labels = torch.from_numpy(digits.target.astype(np.int64))
    test = torch.arange(len(labels)) % 5 == 4
    return ImageArrays(images[~test], labels[~test], images[test], labels[test], tuple(map(str, range(10))))


# Readers of data sets that neither torchvision nor the hub holds. Each takes the folder of the files.
READERS: dict[str, Callable[[Path], ImageArrays]] = {"digits": read_digits}


def read_published(name: str, root: Path) -> ImageArrays:
    """Read a data set from torchvision's files or the hub's Parquet files below `root`; download it if missing.

    Raises:
        DataError: files are missing and cannot be downloaded, or are damaged.
    """
    row = DATASETS[name]
    if not (root / row.stored).exists() and not parquet_files(name, root)[0]:
        _download(name, row, root)
    if (root / row.stored).exists():
        return _read_torchvision(row, root)
    train, test = parquet_files(name, root)
    classes = row.classes or (find_columns(train[0], row.label).classes if train else ())
    count = row.images
    return ImageArrays(
        *_read_parquet(train, count[0], name, classes), *_read_parquet(test, count[1], name, classes), classes
    )


def published_files(name: str, root: Path) -> list[Path]:
    """Return the files that a data set would be read from: torchvision's, or else the Parquet files."""
    row = DATASETS[name]
    stored = root / row.stored
    if stored.is_dir():
        return [path for path in stored.rglob("*") if path.is_file()]
    if stored.exists():
        return sorted(root.glob(f"*{stored.suffix}"))
    return [file for files in parquet_files(name, root) for file in files]


def parquet_files(name: str, root: Path) -> tuple[list[Path], list[Path]]:
    """Return the hub's files for training and for testing below `root`, except those of another data set."""
    others = DATASETS.keys() - {name} | {row.folder for row in DATASETS.values()} - {DATASETS[name].folder}
    train, test = (
        [file for file in sorted(root.rglob(f"{kind}-*.parquet")) if not others & {*file.relative_to(root).parts[:-1]}]
        for kind in ("train", "test")
    )
    return train, test


def _read_torchvision(row: NamedSet, root: Path) -> ImageArrays:
    import torchvision.datasets

    read = getattr(torchvision.datasets, row.torchvision)
    try:  # torchvision compares files' MD5 with the official ones before it reads any of them
        if row.torchvision == "SVHN":
            parts = [read(str(root), split=split, download=False) for split in ("train", "test")]
        else:
            parts = [read(str(root), train=train, download=False) for train in (True, False)]
    except Exception:  # RuntimeError of a checksum, or what a damaged file without one raises
        raise DataError(
            f"{root / row.stored} or a file beside it is missing, damaged, or has another checksum than the official "
            "one: delete what there is and run again to download it again"
        ) from None
    (images, labels), (test_images, test_labels) = (
        (_as_images(part.data, row), torch.as_tensor(part.labels if hasattr(part, "labels") else part.targets))
        for part in parts
    )
    return ImageArrays(images, labels, test_images, test_labels, row.classes or tuple(parts[0].classes))


def _as_images(data: np.ndarray | torch.Tensor, row: NamedSet) -> torch.Tensor:
    """Return torchvision's images, `[N, C, H, W]`, `[N, H, W, C]` or `[N, H, W]`, as `[N, C, H, W]`."""
    images = torch.as_tensor(data)
    if images.ndim == 4 and tuple(images.shape[1:]) != row.shape:
        images = images.permute(0, 3, 1, 2)
    return images.reshape(-1, *row.shape).contiguous()


def _read_parquet(
    files: list[Path], expected: int, name: str, classes: tuple[str, ...]
) -> tuple[torch.Tensor, torch.Tensor]:
    row = DATASETS[name]
    with ThreadPoolExecutor() as pool:
        parts = [_read_shard(file, row, pool) for file in files]
    images = np.concatenate([part[0] for part in parts]) if parts else np.empty((0,))
    labels = np.concatenate([part[1] for part in parts]) if parts else np.empty((0,))
    if len(images) != expected:
        folder = files[0].parent if files else "the data folder"
        raise DataError(
            f"{folder} holds {len(images)} of {expected} {row.torchvision} images: a shard is missing, download it "
            "again"
        )
    if labels.max() >= len(classes):
        raise DataError(
            f"{files[0].parent} holds a label {labels.max()}, but {len(classes)} classes have names: the Parquet files "
            f"are not {row.torchvision}"
        )
    return torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.from_numpy(labels)


def _read_shard(file: Path, row: NamedSet, pool: ThreadPoolExecutor) -> tuple[np.ndarray, np.ndarray]:
    def decode(encoded: bytes | None) -> np.ndarray:
        image = np.asarray(Image.open(io.BytesIO(encoded or b"")).convert("L" if row.shape[0] == 1 else "RGB"))
        if image.shape[:2] != row.shape[1:]:
            raise ValueError(f"an image of {image.shape[1]}x{image.shape[0]} instead of {row.shape[2]}x{row.shape[1]}")
        return image.reshape(*row.shape[1:], row.shape[0])

    try:
        columns: Columns = find_columns(file, row.label)
        labels = read_labels(file, columns)
        if columns.is_text or None in labels:
            raise ValueError("labels are not whole numbers")
        images = np.stack(list(pool.map(decode, (encoded for _, encoded in read_encoded(file, columns)))))
    except DAMAGED as error:
        raise DataError(f"{file} is truncated or corrupt ({first_line(error)}): fetch it again") from None
    return images, np.array(labels, np.int64)


def _download(name: str, row: NamedSet, root: Path) -> None:
    """Download the hub's Parquet files or, if the hub cannot be reached, torchvision's archive from its slow server."""
    import torchvision.datasets

    try:
        _download_from_hub(row, root)
    except Exception as hub_error:  # any of the many network errors of huggingface_hub
        try:
            root.mkdir(parents=True, exist_ok=True)
            fetch = getattr(torchvision.datasets, row.torchvision)
            for part in ({"split": "train"}, {"split": "test"}) if row.torchvision == "SVHN" else ({"train": True},):
                fetch(str(root), **part, download=True)  # checks the archive's MD5, shows progress
        except Exception as origin_error:
            reasons = f"hub: {first_line(hub_error)}; origin: {first_line(origin_error)}"
            raise DataError(
                f"{row.torchvision} is not under {root} and cannot be downloaded ({reasons}): put {row.stored} or the "
                f"Parquet files there, or set {root_variable(name)}"
            ) from None


def _download_from_hub(row: NamedSet, root: Path) -> None:
    from huggingface_hub import HfApi, hf_hub_download

    entries = HfApi().list_repo_tree(row.hub, row.folder, repo_type="dataset")
    wanted = ("train-", "test-")
    for entry in (e for e in entries if e.path.endswith(".parquet") and Path(e.path).name.startswith(wanted)):
        file = Path(hf_hub_download(row.hub, entry.path, repo_type="dataset", local_dir=root))
        stored = getattr(entry, "lfs", None)
        if stored is not None and hashlib.sha256(file.read_bytes()).hexdigest() != stored.sha256:
            file.unlink()
            raise DataError(f"{entry.path} arrived damaged from the hub: run again")
