"""Paths of a recipe's files, and the lock on them. No other module spells these paths out."""

import contextlib
import hashlib
import json
import os
import platform
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from recipe import Recipe, artifacts_root, identity, slug
from storage import StorageError, atomic_write

ROOT = Path(__file__).resolve().parents[1]
PATIENCE = 5  # seconds of waiting for a lock before saying who holds it


def results_root() -> Path:
    """Return the folder of all records: results/, or $RESULTS_DIR."""
    return Path(os.environ.get("RESULTS_DIR") or ROOT / "results")


def results_folder(dataset: str) -> Path:
    """Return the folder of a data set's records: results/NAME, or under $RESULTS_DIR."""
    return results_root() / folder_name(dataset)


def artifacts_folder(dataset: str) -> Path:
    """Return the folder of a data set's weights and ONNX files: artifacts/NAME, or under $ARTIFACTS_DIR."""
    return artifacts_root() / folder_name(dataset)


def graphs_folder() -> Path:
    """Return the folder of the networks' ONNX graphs, without weights."""
    return artifacts_root() / "graphs"


def figures_folder() -> Path:
    """Return the folder of charts and exported tables."""
    return results_root() / "figures"


def folder_name(dataset: str) -> str:
    """Return a data set's name as a folder name; if characters had to be replaced, part of a hash is appended."""
    name = identity(dataset)
    plain = name.replace(":", "-", 1)
    if slug(plain) == plain:
        return plain
    return f"{slug(plain)}-{hashlib.sha256(os.fsencode(name)).hexdigest()[:8]}"


@dataclass(frozen=True)
class Store:
    """Paths of the files of one recipe, given by its data set and `id`."""

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
        """The archive, if it is small enough to be committed with the record."""
        return self.results / "models" / f"{self.id}.nna"

    @property
    def behaviour(self) -> Path:
        """What the deployed file answers: see `experiment.behaviour`."""
        return self.results / "behaviour" / f"{self.id}.json"

    @property
    def weights(self) -> Path:
        return self.artifacts / f"{self.id}.safetensors"

    @property
    def checkpoint(self) -> Path:
        return self.artifacts / f"{self.id}.checkpoint"

    def archive(self, weights: str) -> Path:
        """Return the path, among the artifacts, of the archive of weights with that checksum."""
        return self.artifacts / f"{self.id}-{weights[:12]}.nna"

    def onnx(self, weights: str, content: str) -> Path:
        """Return the path of the ONNX file of weights with that checksum; `content` is the file's own checksum."""
        return self.artifacts / f"{self.id}-{weights[:12]}-{content[:12]}.onnx"

    def files(self) -> list[Path]:
        """Return the files that exist, in a safe order of removal: the record first, as the rest depends on it."""
        paths = [self.record, self.behaviour, self.committed_archive, self.checkpoint, self.weights]
        return [path for path in [*paths, *sorted(self.artifacts.glob(f"{self.id}-*"))] if path.exists()]

    @contextlib.contextmanager
    def locked(self, wait: bool = True) -> Iterator[bool]:
        """Hold the recipe's lock: one process at a time. It is released however the process ends.

        The holder may take it again. Half-written files left by killed processes are removed. Without `wait`, False is
        yielded if another process holds the lock.
        """
        path = self.artifacts / f"{self.id}.lock"
        for file in (self.record, self.weights, self.checkpoint):
            if file.is_dir():
                raise StorageError(f"{file} is a folder, but a file must be written there: remove it")
        try:
            self.artifacts.mkdir(parents=True, exist_ok=True)
            lock = FileLock(path, is_singleton=True)
            first = not lock.is_locked
            held = _acquire(lock, path, wait)
            if held and first:
                self._remove_leftovers()
                _owner(path).write_text(json.dumps({"process": os.getpid(), "host": platform.node(), "time": _now()}))
        except OSError as error:
            raise StorageError(
                f"cannot write to {self.artifacts} ({error.strerror or error}): free some space, or set ARTIFACTS_DIR"
            ) from error
        try:
            yield held
        finally:
            if held and first:
                with contextlib.suppress(OSError):
                    _owner(path).unlink(missing_ok=True)
            if held:
                lock.release()

    def _remove_leftovers(self) -> None:
        for folder in (self.artifacts, self.results, self.results / "models", self.results / "behaviour"):
            for path in folder.glob(f".{self.id}*.tmp"):
                path.unlink(missing_ok=True)


def _acquire(lock: FileLock, path: Path, wait: bool) -> bool:
    try:
        lock.acquire(timeout=PATIENCE if wait else 0)
    except Timeout:
        if not wait:
            return False
        print(f"Waiting for {_holder(path)}, which holds {path} ...", file=sys.stderr, flush=True)
        lock.acquire()
    return True


def _owner(lock: Path) -> Path:
    return lock.with_suffix(".owner")


def _holder(lock: Path) -> str:
    try:
        owner = json.loads(_owner(lock).read_text())
        return f"process {owner['process']} on {owner['host']}, running since {owner['time']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def write_json(path: Path, value: object) -> None:
    """Write a JSON file, completely or not at all."""
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(value, indent=1) + "\n")
