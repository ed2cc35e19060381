"""A user's pictures, decoded once into a file that is mapped into memory: they may take more room than memory has."""

import contextlib
import dataclasses
import hashlib
import io
import math
import mmap
import os
import shutil
import sys
import uuid
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from weakref import WeakValueDictionary

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image, ImageOps, UnidentifiedImageError
from tqdm.auto import tqdm

from recipe import DataError, FolderOptions, artifacts_root, readable, slug

VERSION = 1  # of `read_picture` and of the file; another one lets all pictures be decoded anew
AT_ONCE = 64  # pictures being decoded
NAMED = 5  # unreadable pictures that one message names; the rest are only counted
PATIENCE = 5  # seconds of waiting for another process before saying so
TEST_SHARE, SPLIT_SEED = 0.2, 20_201  # for pictures none of which are for testing
DEEP = {"I", "I;16", "I;16B", "I;16L", "F"}  # Pillow's modes of more than 8 bits per channel
# What Pillow raises for damaged files and for decompression bombs.
BROKEN = (UnidentifiedImageError, OSError, SyntaxError, ValueError, Image.DecompressionBombError)
# Of mmap(2) on Linux: no memory is set aside for pages that might be written, so that a file may be larger than memory.
NO_RESERVE = 0x4000 if sys.platform == "linux" else 0
_maps: WeakValueDictionary[int, mmap.mmap] = WeakValueDictionary()  # by the address of the first image
Encoded = tuple[int, str, Path | bytes | None]  # a picture's place, what to call it, and its file or bytes


@dataclass(frozen=True)
class Pictures:
    """Pictures that are not decoded yet, and their labels.

    root: the folder or file that they come from; files: all files that are read.
    labels: of each part (train, test and, if there is one, validation), `[N]` int64.
    rows: where the pictures of each part stand in the order of `encoded`, `[N]` int64.
    encoded: returns, for every picture, what to call it in a message, and its file or the bytes of one.
    """

    root: Path
    options: FolderOptions
    files: list[Path]
    classes: tuple[str, ...]
    labels: dict[str, torch.Tensor]
    rows: dict[str, torch.Tensor]
    encoded: Callable[[], Iterator[tuple[str, Path | bytes | None]]]


def decoded(pictures: Pictures, rows: torch.Tensor) -> torch.Tensor:
    """Return the pictures at `rows` `[N]` of `encoded`, in that order: `[N, C, side, side]`, uint8, mapped from a file.

    The file is among the artifacts, and made anew if the pictures' files, their order or the options change. What is
    written to the tensor is not written to the file.

    Raises:
        DataError: pictures cannot be read (the message counts them and names the first `NAMED`), or the file cannot be
            written.
    """
    side, channels = pictures.options.side, 1 if pictures.options.grey else 3
    shape = (len(rows), channels, side, side)
    place, content = _keys(pictures, rows)
    path = artifacts_root() / "images" / f"{place}-{content}.images"
    with _alone(path.with_name(f"{place}.lock")):
        if not path.is_file() or path.stat().st_size != math.prod(shape):
            _remove(path.parent.glob(f".{place}-*.tmp"))  # left by processes that were killed
            _remove(path.parent.glob(f"{place}-*.images"))  # of what the pictures were before: it may make room
            _decode(pictures, rows, path, shape)
            if _keys(pictures, rows) != (place, content):
                _remove([path])
                raise DataError(f"{readable(pictures.root)} was changed while its pictures were decoded: run again")
        return _mapped(path, shape)


def release(images: torch.Tensor) -> None:
    """Take the images of a mapped file out of this process's memory, until they are read again."""
    mapped = _maps.get(images.untyped_storage().data_ptr())
    if mapped is not None and hasattr(mapped, "madvise"):  # Windows has none
        mapped.madvise(mmap.MADV_DONTNEED)


def read_picture(file: Path | io.BytesIO, options: FolderOptions) -> np.ndarray:
    """Return a picture `[side, side, C]`, uint8. `experiment/deployed/predict.py` reads pictures in the same way."""
    with Image.open(file) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode in DEEP:
            values = np.asarray(image, dtype=np.float64)
            image = Image.fromarray((values.clip(min=0) * (255 / (values.max() or 1))).round().astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
        image = ImageOps.fit(image.convert("L" if options.grey else "RGB"), (options.side, options.side))
        return np.asarray(image).reshape(options.side, options.side, -1)


def split_classes(counts: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Split each class of so many pictures by a fixed seed: a fifth for testing, never its only picture, and the rest.

    Both are sorted places among the pictures of the class.
    """
    generator, split = torch.Generator().manual_seed(SPLIT_SEED), []
    for count in counts:
        order = torch.randperm(count, generator=generator).tolist()
        held = min(count - 1, max(1, round(TEST_SHARE * count))) if count else 0
        split.append((sorted(order[:held]), sorted(order[held:])))
    return split


def first_line(error: BaseException) -> str:
    """What an error says, in one line without a full stop."""
    return (str(error) or type(error).__name__).splitlines()[0].rstrip(".")


def _keys(pictures: Pictures, rows: torch.Tensor) -> tuple[str, str]:
    """Return a name for these pictures with these options, and a checksum of what they are now."""
    root, options = pictures.root, dataclasses.replace(pictures.options, mirror="yes")
    place = hashlib.sha256(os.fsencode(root) + str(options).encode()).hexdigest()[:8]
    now = hashlib.sha256(f"{VERSION} {sys.byteorder} {options}".encode())
    for file in pictures.files:
        try:
            stat = file.stat()
        except OSError as error:
            raise DataError(f"{readable(file)} cannot be read any more ({error.strerror}): run again") from None
        now.update(os.fsencode(os.path.relpath(file, root)) + f" {stat.st_size} {stat.st_mtime_ns}\n".encode())
    now.update(rows.numpy().tobytes())
    return f"{slug(readable(root.name))}-{place}", now.hexdigest()[:16]


@contextlib.contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold a lock; say so if another process has it for long."""
    lock = FileLock(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=PATIENCE)
        except Timeout:
            print(f"Waiting for another process, which decodes the same pictures ({path}) ...", file=sys.stderr)
            lock.acquire()
    except OSError as error:
        raise _cannot_write(path.parent, error) from None
    try:
        yield
    finally:
        lock.release()


def _decode(pictures: Pictures, rows: torch.Tensor, path: Path, shape: tuple[int, ...]) -> None:
    """Write the pictures to a file, whole or not at all, each at its place."""
    count, size = len(rows), math.prod(shape[1:])
    _check_room(path.parent, count * size)
    places = dict(zip(rows.tolist(), range(count), strict=True))
    named = enumerate(pictures.encoded())
    chosen = ((places[row], name, encoded) for row, (name, encoded) in named if row in places)  # all that have a label
    unreadable: list[str] = []
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        with (
            open(temporary, "wb") as file,
            ThreadPoolExecutor() as pool,
            tqdm(total=count, desc="decoding pictures", unit="picture", leave=False, delay=1) as bar,
        ):
            while some := list(islice(chosen, AT_ONCE)):
                for place, picture in pool.map(lambda one: _picture(one, pictures.options), some):
                    if isinstance(picture, str):
                        unreadable.append(picture)
                    else:
                        file.seek(place * size)
                        file.write(picture.transpose(2, 0, 1).tobytes())
                bar.update(len(some))
            file.flush()
            os.fsync(file.fileno())
        if unreadable:
            raise DataError(_named(unreadable))
        os.replace(temporary, path)
    except OSError as error:
        raise _cannot_write(path.parent, error) from None
    finally:
        _remove([temporary])


def _picture(one: Encoded, options: FolderOptions) -> tuple[int, np.ndarray | str]:
    """Return a picture's place and the picture, or what is wrong with it."""
    place, name, encoded = one
    try:
        if encoded is None:
            raise ValueError("it has no bytes")
        return place, read_picture(io.BytesIO(encoded) if isinstance(encoded, bytes) else encoded, options)
    except BROKEN as error:
        return place, f"{name} ({readable(first_line(error))})"


def _named(unreadable: list[str]) -> str:
    more = f" and {len(unreadable) - NAMED} more" if len(unreadable) > NAMED else ""
    what = "file is not a readable image" if len(unreadable) == 1 else "files are not readable images"
    return f"{len(unreadable)} {what}: replace or remove {', '.join(sorted(unreadable)[:NAMED])}{more}"


def _check_room(folder: Path, needed: int) -> None:
    if (free := shutil.disk_usage(folder).free) < needed:
        raise DataError(
            f"the decoded pictures need {needed:,} bytes in {folder}, where {free:,} are free: free some space, set "
            "ARTIFACTS_DIR to a folder on another disk, or take a smaller ?side="
        )


def _cannot_write(folder: Path, error: OSError) -> DataError:
    reason = error.strerror or first_line(error)
    return DataError(
        f"cannot write the decoded pictures to {folder} ({reason}): free some space, or set ARTIFACTS_DIR to a folder "
        "that you may write to"
    )


def _remove(files: Iterator[Path] | list[Path]) -> None:
    for file in files:
        with contextlib.suppress(OSError):  # on Windows, a file that another process has mapped
            file.unlink(missing_ok=True)


def _mapped(path: Path, shape: tuple[int, ...]) -> torch.Tensor:
    with open(path, "rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, flags=mmap.MAP_PRIVATE | NO_RESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE)
    images = torch.frombuffer(mapped, dtype=torch.uint8)
    _maps[images.data_ptr()] = mapped
    return images.reshape(shape)
