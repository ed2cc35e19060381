"""`run`: a recipe's record, read back or made."""

import shutil
import time
import warnings
from collections.abc import Iterable
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn
from tqdm.auto import tqdm

from data import Dataset
from experiment.freshness import RecordError, dataset_at_hand, made_of, outdated, outdated_record, refusal
from experiment.records import current_commit, read_record, write_record
from experiment.store import Store, graphs_folder
from measurement import accuracy, agreement, answers, cost, latency, operator_counts, wilson_interval
from measurement.timing import hardware, measuring_seconds
from models import allow, spec_of
from models.quantized import holds_integers, left_in_floats
from recipe import Recipe, StepError
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
    weights_of,
)
from training import Context

PACKAGES = ("torch", "onnxruntime", "numpy")
# Bytes of an archive that is kept beside its record, at most; a base's too, since everything else is made from it.
COMMITTED, COMMITTED_BASE = 1_000_000, 25_000_000
AGREEMENT = 0.99  # share of the test images on which a file answers as its model does, at least
# The fields of a record that `_measure` makes; the others are the model's log.
MEASURED = frozenset(
    (
        "id", "label", "model", "method", "dataset", "seed", "recipe", "made_of", "data", "base", "accuracy",
        "accuracy_low", "accuracy_high", "validation_accuracy", "test_images", "agreement", "parameters",
        "nonzero_parameters", "macs", "nonzero_macs", "onnx_bytes", "base_onnx_bytes", "archive_bytes",
        "archive_sha256", "operators", "float_layers", "latency_ms", "hardware", "versions", "weights_sha256",
        "onnx_sha256", "commit", "time", "seal",
    )
)  # fmt: skip


def run(recipe: Recipe, *, remeasure: bool = False) -> dict:
    """The record of a recipe: from results/ if it is there, else made, measured and written there.

    The model is made from the longest part of the chain whose weights are at hand. A run that is killed at any
    moment goes on where it stopped when called again; two that want the same recipe make it once. `remeasure` takes
    the measurements anew, of the same model: also on other images than before, if they are of the same classes.

    Raises:
        RecordError: the record is not of the images, the code or the settings at hand.
        DataError, ModelError, StepError, StorageError, TrainingDiverged: with what to do about it.
    """
    if not isinstance(recipe, Recipe):
        raise StepError(f"run takes a recipe, such as Recipe('digits', (Train('resnet20'),)), not {recipe!r}")
    allow(name for name, _ in recipe.networks())
    store = Store.of(recipe)
    if not remeasure and (record := _current(recipe)) is not None:
        return record
    with store.locked():
        record = _current(recipe, images=not remeasure)  # perhaps another process wrote it while this one waited
        if record is None or remeasure:
            record = write_record(store.record, _measure(recipe, record))
    return record


def run_all(recipes: Iterable[Recipe]) -> list[dict]:
    """The records of several recipes, in their order, behind one progress bar."""
    return [run(recipe) for recipe in tqdm(list(recipes), desc="recipes", unit="recipe", leave=False)]


def make(recipe: Recipe) -> nn.Module:
    """The model of a recipe, in evaluation mode on the CPU: its weights from disk, or made and kept there.

    Never are files of other recipes touched. Weights that come out otherwise than those of the recipe's record are
    kept, with a warning: see `set_aside`.

    Raises:
        RecordError: the recipe's record is not of the images, the code or the settings at hand.
    """
    allow(name for name, _ in recipe.networks())
    return _make(recipe)[0]


def _current(recipe: Recipe, *, images: bool = True) -> dict | None:
    """The recipe's record, or None where there is none; RecordError if it is not of what is at hand."""
    record = read_record(Store.of(recipe).record)
    if record is not None and (why := outdated_record(record, recipe.dataset, recipe, images=images)):
        raise refusal(recipe, why)
    return record


def _make(recipe: Recipe, *, images: bool = True) -> tuple[nn.Module, dict]:
    """The model, and the log of how it was made, which its weight file carries.

    Without `images`, weights are taken that were trained on other images than those at hand, to measure them.
    """
    store = Store.of(recipe)
    with store.locked():
        record = _current(recipe, images=images)
        restored = _restore(recipe, images=images)
        if restored is not None:
            store.checkpoint.unlink(missing_ok=True)  # of a process that was killed before it could
            return restored
        if record is not None:
            _current(recipe)  # made again, it must be of the same images
        return _made(recipe, record)


def _made(recipe: Recipe, record: dict | None) -> tuple[nn.Module, dict]:
    store, step, models = Store.of(recipe), recipe.steps[-1], {}

    def other(wanted: Recipe) -> nn.Module:
        model = make(wanted)
        models[wanted.id] = weights_checksum(model)
        return model

    model: nn.Module | None = None
    earlier: dict = {}
    if len(recipe.steps) > 1:
        before = recipe.prefix(len(recipe.steps) - 1)
        model, earlier = _make(before)
        models[before.id] = weights_checksum(model)
    dataset = dataset_at_hand(recipe.dataset)
    scaled = dataset.on_scale(spec_of(model).get("pixels") if model is not None else None)
    made = made_of(recipe, dataset, models)
    checkpoint = Checkpoint(store.checkpoint, made)
    context = Context(scaled, recipe.seed, training_device(), checkpoint, make=other, cache=store.artifacts / "cache")
    started = time.perf_counter()
    model = step.apply(model, context).cpu().eval()
    if step.continued is not None:
        _, earlier = _make(step.continued)
    log = {"train_seconds": time.perf_counter() - started, "made_on": _device_name()}
    log |= {"threads": torch.get_num_threads()} | context.log
    log["train_seconds"] += earlier.get("train_seconds", 0)  # of the whole chain, not of teachers and members
    save_weights(model, store.weights, log, made | {"described": recipe.describe()})
    checkpoint.clear()
    own = weights_checksum(model)
    if record is not None and record["weights_sha256"] != own:
        warnings.warn(_other_weights(recipe, record, own), stacklevel=2)
    return model, log | {"made_of": made}


def _other_weights(recipe: Recipe, record: dict, own: str) -> str:
    return (
        f"{recipe.label} has weights {own[:12]} here, and {record['weights_sha256'][:12]} in its record {recipe.id} "
        "(another machine or version rounds otherwise): what is made from it is of the weights here; to measure them, "
        "put the record and what was made from it away with experiment.set_aside(recipe), and run again"
    )


def _restore(recipe: Recipe, *, images: bool = True) -> tuple[nn.Module, dict] | None:
    """A model from its weight file, or from the archive beside its record, and its log.

    The weights of the record are looked for first; weights of another checksum count if they say that they are of this
    recipe, its data and its code.
    """
    store = Store.of(recipe)
    record = read_record(store.record) or {}
    checksum = record.get("weights_sha256")
    found = _described(store.weights) if store.weights.exists() else None
    if found is not None and found["sha256"] == checksum:
        if loaded := _loaded(store.weights, found):
            return loaded
        found = None  # damaged
    if checksum is not None and store.committed_archive.exists() and (model := _from_archive(store, checksum)):
        return model, {key: value for key, value in record.items() if key not in MEASURED - {"made_of"}}
    if found is None:
        return None
    if why := _not_of(found, recipe, images):
        warnings.warn(f"{store.weights} is passed over, and made again: {why}", stacklevel=2)
        return None
    if checksum is not None:
        warnings.warn(_other_weights(recipe, record, found["sha256"]), stacklevel=2)
    return _loaded(store.weights, found)


def _not_of(found: dict, recipe: Recipe, images: bool) -> str | None:
    """Why weights that are of no record are not those of the recipe, in words; None if they are."""
    if "id" not in found:
        return "it does not say what it is of"
    if why := outdated(found, recipe.dataset, recipe, images=images):
        return why
    for key, weights in found["models"].items():
        source = Store(recipe.dataset, key)
        now = _described(source.weights) if source.weights.exists() else None
        known = {now["sha256"]} if now else set()
        if (record := read_record(source.record)) is not None:
            known.add(record["weights_sha256"])
        if known and weights not in known:
            return f"it was made from other weights of {key} than there are now"
    return None


def _described(path: Path) -> dict | None:
    try:
        return weights_of(path)
    except StorageError as error:
        warnings.warn(str(error), stacklevel=2)
        return None


def _loaded(path: Path, found: dict) -> tuple[nn.Module, dict] | None:
    try:
        model, log = load_weights(path, found["sha256"])
    except StorageError as error:
        warnings.warn(str(error), stacklevel=2)
        return None
    made = {key: value for key, value in found.items() if key not in ("sha256", "described")}
    return model, log | ({"made_of": made} if made else {})


def _from_archive(store: Store, checksum: str) -> nn.Module | None:
    try:
        model = load_archive(store.committed_archive)
        if weights_checksum(model) == checksum:
            return model
        warnings.warn(f"{store.committed_archive} holds other weights than its record says: delete it", stacklevel=2)
    except StorageError as error:
        warnings.warn(str(error), stacklevel=2)
    return None


def _archive(recipe: Recipe, model: nn.Module) -> dict:
    """Length and checksum of the archive from which the same model comes back; small ones are kept beside records.

    Raises:
        StorageError: the archive's model computes other logits.
    """
    store = Store.of(recipe)
    path, committed = store.archive(weights_checksum(model)), store.committed_archive
    save_archive(model, path)
    images = torch.randn(8, *spec_of(model)["shape"], generator=torch.Generator().manual_seed(0))
    for tensor in (*model.parameters(), *model.buffers()):  # the order of a sum may depend on how they lie
        tensor.data = tensor.data.contiguous()
    with torch.no_grad():
        if not torch.equal(model(images), load_archive(path)(images)):
            raise StorageError(f"{path} computes other logits than its model: this is a fault to report")
    if path.stat().st_size < (COMMITTED_BASE if recipe == recipe.base else COMMITTED):
        with atomic_write(committed) as temporary:
            shutil.copyfile(path, temporary)
    else:  # one of other weights may lie there
        committed.unlink(missing_ok=True)
    return {"archive_bytes": path.stat().st_size, "archive_sha256": sha256(path)}


def _measure(recipe: Recipe, earlier: dict | None) -> dict:
    """The record of a recipe. `earlier` is the one that it takes the place of, of the same weights."""
    base_recipe, images = recipe.base, earlier is None
    measuring_seconds()  # refused before anything is trained, if it is none
    base, log = _make(base_recipe, images=images)
    model, log = (base, log) if recipe == base_recipe else _make(recipe, images=images)
    weights = weights_checksum(model)
    if earlier is not None and earlier["weights_sha256"] != weights:
        raise RecordError(_other_weights(recipe, earlier, weights))
    dataset = dataset_at_hand(recipe.dataset)
    scaled = dataset.on_scale(spec_of(model).get("pixels"))
    file, base_file = _onnx(recipe, model, dataset), _base_onnx(base_recipe, base, dataset)
    session = open_onnx(file)
    operators = operator_counts(file)
    if holds_integers(spec_of(model)) and operators["convolutions"] and not operators["integer_convolutions"]:
        raise StorageError(
            f"no convolution of {file} runs on integers in this ONNX Runtime: its figures would be those of a float "
            "model; update onnxruntime"
        )
    answered = answers(session, scaled, dataset.test)
    agreed = agreement(model, answered, scaled, dataset.test)
    if agreed < AGREEMENT:
        raise StorageError(
            f"{file} answers otherwise than its model on {1 - agreed:.1%} of the test images: nothing is recorded; "
            "this is a fault to report"
        )
    test_accuracy = float((answered == dataset.test.labels.numpy()).mean())
    low, high = wilson_interval(test_accuracy, len(dataset.test))
    return log | {
        "id": recipe.id,
        "label": recipe.label,
        "model": spec_of(model)["architecture"],
        "method": " > ".join(step.name for step in recipe.steps),
        "dataset": recipe.describe()["dataset"],
        "seed": recipe.seed,
        "recipe": recipe.describe(),
        "made_of": log.get("made_of") or (earlier or {}).get("made_of") or made_of(recipe, dataset, {}),
        "data": dataset.fingerprint,
        "base": base_recipe.id,
        "accuracy": test_accuracy,
        "accuracy_low": low,
        "accuracy_high": high,
        "validation_accuracy": accuracy(session, scaled, dataset.validation),
        "test_images": len(dataset.test),
        "agreement": agreed,
        **cost(model),
        "onnx_bytes": file.stat().st_size,
        "base_onnx_bytes": base_file.stat().st_size,
        **_archive(recipe, model),
        "operators": operators,
        "float_layers": left_in_floats(model),
        "latency_ms": latency(file, base_file, base),
        "hardware": hardware(),
        "versions": {package: version(package) for package in PACKAGES},
        "weights_sha256": weights,
        "onnx_sha256": sha256(file),
        "commit": current_commit(),
        "time": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
    }


def _onnx(recipe: Recipe, model: nn.Module, dataset: Dataset) -> Path:
    """The model's ONNX file, exported anew and checked against the model; its name holds its checksum."""
    store, weights = Store.of(recipe), weights_checksum(model)
    with store.locked():
        draft = store.onnx(weights, "draft")
        export_with_scale(model, draft, dataset, graphs=graphs_folder())
        path = store.onnx(weights, sha256(draft))
        draft.replace(path)
        for other in store.artifacts.glob(store.onnx(weights, "*").name):
            if other != path:
                other.unlink(missing_ok=True)
    return path


def _base_onnx(recipe: Recipe, model: nn.Module, dataset: Dataset) -> Path:
    """The base's ONNX file: the one that its record was measured from, or else one that is what its name says."""
    store, weights = Store.of(recipe), weights_checksum(model)
    expected = (read_record(store.record) or {}).get("onnx_sha256")
    for path in sorted(store.artifacts.glob(store.onnx(weights, "*").name)):
        content = sha256(path)
        if content == expected or (expected is None and path == store.onnx(weights, content)):
            return path
    return _onnx(recipe, model, dataset)


def training_device() -> torch.device:
    """Where models are trained: the GPU, if torch sees one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else hardware()["cpu"]
