"""Atomic writes: a file is complete or does not exist."""

import contextlib
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path

from recipe import CompressionError

os.umask(_UMASK := os.umask(0o077))  # the umask can only be read by setting it


class StorageError(CompressionError):
    """A file cannot be written, or its content is wrong; the message says what to do."""


@contextlib.contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which replaces `path` in one step, or is deleted after an error.

    Raises:
        StorageError: the folder cannot be written to, or the disk is full.
    """
    if path.is_dir():
        raise StorageError(f"{path} is a folder, where a file must be written: remove it or choose another name")
    temporary = path.with_name(f".{path.stem}-{uuid.uuid4().hex[:8]}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        yield temporary
        with open(temporary, "rb") as file:
            os.fsync(file.fileno())
        # safetensors makes files that only their owner can read, but folders may be shared
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
    """Return the file's SHA-256 in hexadecimal."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
