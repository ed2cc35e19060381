"""Work elsewhere: the files that go to a worker and come back, and workers that are processes on this machine."""

import importlib
import importlib.util
import os
import pickle
import sys
from collections.abc import Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import get_context
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Protocol

import torch

from data import Dataset
from experiment.freshness import give_dataset
from experiment.plan import Job, Plan, longest_first
from experiment.runner import logits_at_hand
from experiment.store import Store, artifacts_folder, results_folder
from recipe import PARTS, STEPS, Recipe
from storage import StorageError, atomic_write
from training.devices import WorkerError

Files = dict[tuple[str, str], bytes]  # by folder (results, artifacts or modules) and path in it
LIBRARIES = ("torchvision", "timm")  # networks of theirs are installed everywhere
Outcome = tuple[Job, Exception | None]


class Workers(Protocol):
    """Workers that make jobs, each as soon as what it needs is made."""

    size: int  # jobs that can run at once
    own_store: bool  # whether files come back here, rather than lie in folders that the workers lock themselves

    def add(self, jobs: Plan) -> None:
        """Add jobs; what they need is among them, was added before, or is at hand."""

    def next(self) -> Outcome:
        """Wait for a job to end; return it, with its error or that of a job it needed. Its files are at hand then."""

    def close(self) -> None:
        """Give up the jobs that have not ended."""


# --- Files ------------------------------------------------------------------------------------------------------------


def pack(recipe: Recipe) -> Files:
    """Return the files from which `make` restores a recipe's model."""
    store = Store.of(recipe)
    return _read(recipe.dataset, (store.record, store.committed_archive, store.weights))


def pack_logits(recipe: Recipe) -> Files:
    """Return the cached logits that teach the recipe's last step, if all of them are at hand."""
    return _read(recipe.dataset, logits_at_hand(recipe))


def pack_modules(recipe: Recipe) -> Files:
    """Return the files of the user's own modules, single files, whose networks and steps the recipe has.

    Raises:
        WorkerError: a step was defined in a notebook or a script, from which nothing can be imported elsewhere.
    """
    names = {name.partition(":")[0] for name, _ in recipe.networks() if ":" in name} - set(LIBRARIES)
    for kind in _kinds(recipe.resolved()):
        if kind.__module__ == "__main__":
            raise WorkerError(f"workers cannot import {kind.__name__}: move it from the notebook to a file of yours")
        names |= set() if "." in kind.__module__ else {kind.__module__}
    specs = [(name, importlib.util.find_spec(name)) for name in names]
    return {("modules", f"{name}.py"): Path(spec.origin).read_bytes() for name, spec in specs if spec and spec.origin}


def _kinds(described: object) -> Iterator[type]:
    """Yield the classes of all steps, techniques and objectives in the JSON of a recipe."""
    if isinstance(described, dict):
        if "step" in described or "part" in described:
            yield STEPS[described["step"]] if "step" in described else PARTS[described["part"]]
        described = list(described.values())
    for value in described if isinstance(described, list) else ():
        yield from _kinds(value)


def unpack(files: Files, dataset: str) -> None:
    """Write files of the results and artifacts into the folders of this process."""
    folders = _folders(dataset)
    for (folder, name), content in files.items():
        if folder in folders:
            with atomic_write(folders[folder] / name) as temporary:
                temporary.write_bytes(content)


def _folders(dataset: str) -> dict[str, Path]:
    return {"results": results_folder(dataset), "artifacts": artifacts_folder(dataset)}


def _read(dataset: str, paths: Iterable[Path]) -> Files:
    found: Files = {}
    for path in paths:
        for name, folder in _folders(dataset).items():
            if folder in path.parents and path.exists():
                found[name, str(path.relative_to(folder))] = path.read_bytes()
    return found


# --- On a worker ------------------------------------------------------------------------------------------------------


def work(pickled: bytes, threads: int, dataset: Dataset, shared: str | None, *given: Files) -> Files:
    """Make a pickled job on a machine that has no files of its reader but those `given`; return what it made.

    With a `shared` folder of artifacts, the files are made there and nothing is returned.
    """
    torch.set_num_threads(threads)
    give_dataset(dataset)
    with _own_folders(shared) as folder:
        for files in given:
            unpack(files, dataset.name)
            _import_modules(files, folder)
        before = {path: path.stat().st_mtime_ns for path in _made(dataset.name)}
        pickle.loads(pickled).run()  # only now can the user's modules be imported
        made = [path for path in _made(dataset.name) if path.stat().st_mtime_ns != before.get(path)]
        return {} if shared else _read(dataset.name, made)


def _made(dataset: str) -> list[Path]:
    folder = artifacts_folder(dataset)
    return [*folder.glob("*.safetensors"), *folder.glob("cache/logits-*")]


@contextmanager
def _own_folders(shared: str | None) -> Iterator[Path]:
    if shared and not Path(shared).is_dir():
        raise StorageError(f"{shared}, the folder STORE, is not on {os.uname().nodename}: mount it, or leave STORE out")
    with TemporaryDirectory(prefix="compression-study-") as folder:
        os.environ |= {
            "RESULTS_DIR": f"{folder}/results",
            "ARTIFACTS_DIR": f"{folder}/artifacts",
            "STORE": shared or "",
        }
        yield Path(folder)


def _import_modules(files: Files, folder: Path) -> None:
    """Make the user's modules importable, as they are now."""
    for (kind, name), content in files.items():
        if kind == "modules":
            (folder / name).write_bytes(content)
            sys.modules.pop(Path(name).stem, None)
            sys.path[:] = [str(folder), *(path for path in sys.path if "compression-study-" not in path)]
    importlib.invalidate_caches()


# --- Processes on this machine ----------------------------------------------------------------------------------------


class Processes:
    """As many processes as cores, of one thread each, which use the reader's own folders."""

    own_store = False

    def __init__(self) -> None:
        self.size = os.cpu_count() or 1
        self.pool = ProcessPoolExecutor(self.size, get_context("spawn"), torch.set_num_threads, (1,))
        self.waiting: Plan = {}
        self.running: dict[Future, Job] = {}
        self.failed: dict[str, Exception] = {}

    def add(self, jobs: Plan) -> None:
        self.waiting |= longest_first(jobs)
        self._start()

    def next(self) -> Outcome:
        for key, job in self.waiting.items():
            if failed := [self.failed[need] for need in job.needs if need in self.failed]:
                del self.waiting[key]
                self.failed[key] = failed[0]
                return job, failed[0]
        ended = next(iter(wait(self.running, return_when=FIRST_COMPLETED).done))
        job, error = self.running.pop(ended), ended.exception()
        if isinstance(error, BrokenProcessPool):
            raise WorkerError(f"a process was killed while it made {job.words}: run again, which goes on from there")
        if isinstance(error, Exception):
            self.failed[job.key] = error
        self._start()
        return job, self.failed.get(job.key)

    def _start(self) -> None:
        """Start the jobs that wait for no other."""
        open_ones = {*self.waiting, *(job.key for job in self.running.values()), *self.failed}
        for job in [job for job in self.waiting.values() if not open_ones.intersection(job.needs)]:
            del self.waiting[job.key]
            self.running[self.pool.submit(job.run)] = job

    def close(self) -> None:
        self.pool.shutdown(wait=True, cancel_futures=True)
