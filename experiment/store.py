"""Where everything of a recipe lies, and the lock on it. No other file spells these paths out."""

import contextlib
import hashlib
import json
import os
import platform
import re
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from recipe import Recipe, identity
from storage import StorageError, atomic_write

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 5  # seconds of waiting for a lock after which it is said who holds it


def results_root() -> Path:
    """Where all records are: results/, or $RESULTS_DIR."""
    return Path(os.environ.get("RESULTS_DIR") or ROOT / "results")


def artifacts_root() -> Path:
    """Where all that can be made again is: artifacts/, or $ARTIFACTS_DIR."""
    return Path(os.environ.get("ARTIFACTS_DIR") or ROOT / "artifacts")


def results_folder(dataset: str) -> Path:
    """Where the records of a data set are: results/NAME, or under $RESULTS_DIR."""
    return results_root() / folder_name(dataset)


def artifacts_folder(dataset: str) -> Path:
    """Where weights and ONNX files are kept: artifacts/NAME, or under $ARTIFACTS_DIR."""
    return artifacts_root() / folder_name(dataset)


def graphs_folder() -> Path:
    """Where the ONNX graphs of networks are kept, without weights."""
    return artifacts_root() / "graphs"


def figures_folder() -> Path:
    """Where charts and exported tables go."""
    return results_root() / "figures"


def slug(name: str) -> str:
    """A name as a file's name: letters of ASCII, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "unnamed"


def folder_name(dataset: str) -> str:
    """The name of a data set as a folder's name; one that loses letters ends in a piece of its hash."""
    name = identity(dataset)
    plain = name.replace(":", "-", 1)
    if slug(plain) == plain:
        return plain
    return f"{slug(plain)}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


@dataclass(frozen=True)
class Store:
    """The files of one recipe, by its data set and `id`."""

    dataset: str
    id: str

    @classmethod
    def of(cls, recipe: Recipe) -> "Store":
        return cls(recipe.dataset, recipe.id)

    @property
    def results(self) -> Path:
        return results_folder(self.dataset)

    @property
    def artifacts(self) -> Path:
        return artifacts_folder(self.dataset)

    @property
    def record(self) -> Path:
        return self.results / f"{self.id}.json"

    @property
    def committed_archive(self) -> Path:
        """Beside the record: archives that are small enough to be committed."""
        return self.results / "models" / f"{self.id}.nna"

    @property
    def weights(self) -> Path:
        return self.artifacts / f"{self.id}.safetensors"

    @property
    def checkpoint(self) -> Path:
        return self.artifacts / f"{self.id}.checkpoint"

    def archive(self, weights: str) -> Path:
        """The archive of the weights with that checksum, among the artifacts."""
        return self.artifacts / f"{self.id}-{weights[:12]}.nna"

    def onnx(self, weights: str, content: str) -> Path:
        """The ONNX file of the weights with that checksum; its own checksum is in its name, too."""
        return self.artifacts / f"{self.id}-{weights[:12]}-{content[:12]}.onnx"

    def files(self) -> list[Path]:
        """All that there is, in the order in which it may go: the record first, which makes the rest count."""
        own = [self.record, self.committed_archive, self.checkpoint, self.weights]
        return [path for path in [*own, *sorted(self.artifacts.glob(f"{self.id}-*"))] if path.exists()]

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time; the lock goes with the process that holds it, however that ends.

        Who holds it may take it again. What killed processes left half-written is removed.
        """
        path = self.artifacts / f"{self.id}.lock"
        for file in (self.record, self.weights, self.checkpoint):
            if file.is_dir():
                raise StorageError(f"{file} is a folder, and a file is to be written there: remove it")
        try:
            self.artifacts.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path, is_singleton=True)
            first = not lock.is_locked
            _acquire(lock, path)
            if first:
                self._remove_leftovers()
                _owner(path).write_text(json.dumps({"process": os.getpid(), "host": platform.node(), "time": _now()}))
        except OSError as error:
            raise StorageError(
                f"cannot write to {self.artifacts} ({error.strerror or error}): free some space, or set ARTIFACTS_DIR"
            ) from error
        try:
            yield
        finally:
            if first:
                with contextlib.suppress(OSError):
                    _owner(path).unlink(missing_ok=True)
            lock.release()

    def _remove_leftovers(self) -> None:
        for folder in (self.artifacts, self.results, self.results / "models"):
            for path in folder.glob(f".{self.id}*.tmp"):
                path.unlink(missing_ok=True)


def _acquire(lock: FileLock, path: Path) -> None:
    try:
        lock.acquire(timeout=PATIENCE)
    except Timeout:
        print(f"Waiting for {_holder(path)}, which holds {path} ...", file=sys.stderr, flush=True)
        lock.acquire()


def _owner(lock: Path) -> Path:
    return lock.with_suffix(".owner")


def _holder(lock: Path) -> str:
    try:
        owner = json.loads(_owner(lock).read_text())
        return f"process {owner['process']} on {owner['host']}, at work since {owner['time']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, whole or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")
