"""`run`: a recipe's record, read back or made."""

import contextlib
import shutil
import time
import warnings
from collections.abc import Iterable, Iterator
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from torch import nn
from tqdm.auto import tqdm

from data import Dataset, load
from experiment.records import artifacts_folder, current_commit, read_record, results_folder, write_record
from measurement import accuracy, agreement, answers, cost, latency, operator_counts, wilson_interval
from measurement.timing import hardware
from models import spec_of
from recipe import Context, Recipe
from storage import (
    Checkpoint,
    StorageError,
    atomic_write,
    export_with_scale,
    load_archive,
    load_weights,
    open_onnx,
    save_archive,
    save_weights,
    sha256,
    weights_checksum,
)

PACKAGES = ("torch", "onnxruntime", "numpy")
# Bytes of an archive that is kept beside its record, at most; a base's too, since everything else is made from it.
COMMITTED, COMMITTED_BASE = 1_000_000, 25_000_000
# The fields of a record that `_measure` makes; the others are the model's log.
MEASURED = frozenset(
    (
        "id", "label", "model", "method", "dataset", "seed", "recipe", "base", "accuracy", "accuracy_low",
        "accuracy_high", "validation_accuracy", "test_images", "agreement", "parameters", "nonzero_parameters", "macs",
        "nonzero_macs", "onnx_bytes", "base_onnx_bytes", "archive_bytes", "archive_sha256", "operators", "latency_ms",
        "hardware", "versions", "weights_sha256", "onnx_sha256", "commit", "time",
    )
)  # fmt: skip


def run(recipe: Recipe, *, remeasure: bool = False) -> dict:
    """The record of a recipe: from results/ if it is there, else made, measured and written there.

    The model is made from the longest part of the chain whose weights are at hand. A run that is killed at any
    moment goes on where it stopped when called again; two that want the same recipe make it once. `remeasure` takes
    the measurements anew, of the same model.

    Raises:
        DataError, ModelError, StepError, StorageError, TrainingDiverged: with what to do about it.
    """
    path = results_folder(recipe.dataset) / f"{recipe.id}.json"
    if not remeasure and (record := read_record(path)) is not None and "archive_bytes" in record:
        return record
    with _locked(recipe, "record"):
        record = read_record(path)  # perhaps another process wrote it while this one waited
        if record is None or remeasure:
            record = _measure(recipe)
            write_record(path, record)
        elif "archive_bytes" not in record and (restored := _restore(recipe)) is not None:
            record |= _archive(recipe, restored[0])  # a record from before there were archives
            write_record(path, record)
    return record


def run_all(recipes: Iterable[Recipe]) -> list[dict]:
    """The records of several recipes, in their order, behind one progress bar."""
    return [run(recipe) for recipe in tqdm(list(recipes), desc="recipes", unit="recipe", leave=False)]


def make(recipe: Recipe) -> nn.Module:
    """The model of a recipe, in evaluation mode on the CPU: its weights from disk, or made and kept there."""
    return _make(recipe)[0]


def _make(recipe: Recipe) -> tuple[nn.Module, dict]:
    """The model and the log of how it was made, which its weight file carries."""
    folder = artifacts_folder(recipe.dataset)
    with _locked(recipe, "weights"):
        restored = _restore(recipe)
        if restored is not None:
            return restored
        model: nn.Module | None = None
        earlier: dict = {}
        if len(recipe.steps) > 1:
            model, earlier = _make(recipe.prefix(len(recipe.steps) - 1))
        checkpoint = Checkpoint(folder / f"{recipe.id}.checkpoint")
        context = Context(
            _dataset(recipe.dataset), recipe.seed, training_device(), checkpoint, make=make, cache=folder / "cache"
        )
        started = time.perf_counter()
        model = recipe.steps[-1].apply(model, context).cpu().eval()
        if (start := getattr(recipe.steps[-1], "start", None)) is not None:
            _, earlier = _make(start)
        log = {"train_seconds": time.perf_counter() - started, "made_on": _device_name()} | context.log
        log["train_seconds"] += earlier.get("train_seconds", 0)  # of the whole chain, not of teachers and members
        save_weights(model, folder / f"{recipe.id}.safetensors", log)
        checkpoint.clear()
        _set_aside_other_weights(recipe, model)
        return model, log


def _set_aside_other_weights(recipe: Recipe, model: nn.Module) -> None:
    """A record of other weights, lost since, goes: it would have the model made again and again.

    Models made from the lost weights cannot stand beside the new ones: their files move to folders named `set_aside`.
    """
    results = results_folder(recipe.dataset)
    path = results / f"{recipe.id}.json"
    record = read_record(path)
    if record is None or record["weights_sha256"] == weights_checksum(model):
        return
    others = [other for other in map(read_record, sorted(results.glob("*.json"))) if other and other["id"] != recipe.id]
    heirs = [other["id"] for other in others if _holds(other["recipe"], recipe.describe())]
    warnings.warn(
        f"{recipe.label} was made again and has other weights than its record (another machine or version rounds "
        f"otherwise): {path.name} is removed, run the recipe to measure it anew; {len(heirs)} records of what was "
        f"made from the lost weights are in {results / 'set_aside'} now",
        stacklevel=2,
    )
    path.unlink(missing_ok=True)
    _committed_archive(recipe).unlink(missing_ok=True)
    artifacts = artifacts_folder(recipe.dataset)
    for heir in heirs:
        for file in (results / f"{heir}.json", results / "models" / f"{heir}.nna", artifacts / f"{heir}.safetensors"):
            aside = (artifacts if file.parent == artifacts else results) / "set_aside" / file.name
            aside.parent.mkdir(exist_ok=True)
            with contextlib.suppress(FileNotFoundError):
                file.replace(aside)


def _holds(value: Any, recipe: dict) -> bool:
    """Whether a recipe's JSON starts with another's, or has a teacher, a member or earlier weights that do."""
    if isinstance(value, list):
        return any(_holds(own, recipe) for own in value)
    if not isinstance(value, dict):
        return False
    start = value | {"steps": value.get("steps", [])[: len(recipe["steps"])]}
    return start == recipe or any(_holds(own, recipe) for own in value.values())


def _restore(recipe: Recipe) -> tuple[nn.Module, dict] | None:
    """A model from its weight file, else from the archive beside its record; that has its log."""
    record = read_record(results_folder(recipe.dataset) / f"{recipe.id}.json") or {}
    checksum = record.get("weights_sha256")
    weights = artifacts_folder(recipe.dataset) / f"{recipe.id}.safetensors"
    archive = _committed_archive(recipe)
    try:
        if weights.exists():
            return load_weights(weights, checksum)
    except StorageError as error:
        warnings.warn(str(error), stacklevel=2)
    if not archive.exists() or checksum is None:
        return None
    try:
        model = load_archive(archive)
        if weights_checksum(model) == checksum:
            return model, {key: value for key, value in record.items() if key not in MEASURED}
        warnings.warn(f"{archive} holds other weights than its record says: delete it", stacklevel=2)
    except StorageError as error:
        warnings.warn(str(error), stacklevel=2)
    return None


def _committed_archive(recipe: Recipe) -> Path:
    return results_folder(recipe.dataset) / "models" / f"{recipe.id}.nna"


def _archive(recipe: Recipe, model: nn.Module) -> dict:
    """Length and checksum of the archive from which the same model comes back; small ones are kept beside records.

    Raises:
        StorageError: the archive's model computes other logits.
    """
    path = artifacts_folder(recipe.dataset) / f"{recipe.id}-{weights_checksum(model)[:12]}.nna"
    save_archive(model, path)
    images = torch.randn(8, *spec_of(model)["shape"], generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        own = model.to(memory_format=torch.contiguous_format)(images)  # the order of a sum may depend on the layout
        if not torch.equal(own, load_archive(path)(images)):
            raise StorageError(f"{path} computes other logits than its model: this is a fault to report")
    if path.stat().st_size < (COMMITTED_BASE if recipe == recipe.base else COMMITTED):
        with atomic_write(_committed_archive(recipe)) as temporary:
            shutil.copyfile(path, temporary)
    else:  # one of other weights may lie there
        _committed_archive(recipe).unlink(missing_ok=True)
    return {"archive_bytes": path.stat().st_size, "archive_sha256": sha256(path)}


def _measure(recipe: Recipe) -> dict:
    base_recipe = recipe.base
    base, log = _make(base_recipe)  # first, since a base that has to be made again sets aside what was made from it
    model, log = (base, log) if recipe == base_recipe else _make(recipe)
    dataset = _dataset(recipe.dataset)
    file, base_file = _onnx(recipe, model, dataset), _onnx(base_recipe, base, dataset)
    session = open_onnx(file)
    operators = operator_counts(file)
    if spec_of(model).get("quantized") and operators["convolutions"] and not operators["integer_convolutions"]:
        raise StorageError(
            f"no convolution of {file} runs on integers in this ONNX Runtime: its figures would be those of a float "
            "model; update onnxruntime"
        )
    answered = answers(session, dataset, dataset.test)
    test_accuracy = float((answered == dataset.test.labels.numpy()).mean())
    low, high = wilson_interval(test_accuracy, len(dataset.test))
    return {
        "id": recipe.id,
        "label": recipe.label,
        "model": spec_of(model)["architecture"],
        "method": " > ".join(type(step).__name__ for step in recipe.steps),
        "dataset": recipe.dataset,
        "seed": recipe.seed,
        "recipe": recipe.describe(),
        "base": base_recipe.id,
        "accuracy": test_accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "validation_accuracy": accuracy(session, dataset, dataset.validation),
        "test_images": len(dataset.test),
        "agreement": agreement(model, answered, dataset, dataset.test),
        **cost(model),
        "onnx_bytes": file.stat().st_size,
        "base_onnx_bytes": base_file.stat().st_size,
        **_archive(recipe, model),
        "operators": operators,
        "latency_ms": latency(file, base_file, base),
        **log,
        "hardware": hardware(),
        "versions": {package: version(package) for package in PACKAGES},
        "weights_sha256": weights_checksum(model),
        "onnx_sha256": sha256(file),
        "commit": current_commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _onnx(recipe: Recipe, model: nn.Module, dataset: Dataset) -> Path:
    """The model's ONNX file, named by the weights in it so that a file of other weights is never taken for it."""
    path = artifacts_folder(recipe.dataset) / f"{recipe.id}-{weights_checksum(model)[:12]}.onnx"
    with _locked(recipe, "onnx"):
        if not path.exists():
            export_with_scale(model, path, dataset)
    return path


@contextlib.contextmanager
def _locked(recipe: Recipe, what: str) -> Iterator[None]:
    """One process at a time; the lock goes with the process that holds it, however that ends."""
    folder = artifacts_folder(recipe.dataset)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = FileLock(folder / f"{recipe.id}.{what}.lock")
        lock.acquire()
    except OSError as error:
        raise StorageError(
            f"cannot write to {folder} ({error.strerror or error}): free some space, or set ARTIFACTS_DIR"
        ) from error
    try:
        yield
    finally:
        lock.release()


@lru_cache(maxsize=2)
def _dataset(name: str) -> Dataset:
    return load(name)


def training_device() -> torch.device:
    """Where models are trained: the GPU, if torch sees one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else hardware()["cpu"]
