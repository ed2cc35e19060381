"""Files that are there whole or not at all."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from recipe import CompressionError

os.umask(_UMASK := os.umask(0o077))  # it can only be read by setting it


class StorageError(CompressionError):
    """A file that cannot be written, or is not what it should be; the message says what to do."""


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`; what was written there replaces `path` in one step, or vanishes.

    Raises:
        StorageError: the folder cannot be written to, or the disk is full.
    """
    if path.is_dir():
        raise StorageError(f"{path} is a folder, and a file is to be written there: remove it, or choose another name")
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # safetensors leaves its files to their owner alone, and folders may be shared
        temporary.chmod(0o666 & ~_UMASK)
        os.replace(temporary, path)
    except OSError as error:
        reason = error.strerror or str(error)
        raise StorageError(
            f"cannot write {path} ({reason}): free some space or choose a folder you may write to"
        ) from error
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def sha256(path: Path) -> str:
    """The file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
