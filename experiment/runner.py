"""Runs recipes: `run` returns a recipe's record, read from disk or made, and `make` its model."""

import shutil
import time
import warnings
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn

from data import Dataset
from experiment.behaviour import keep_answers
from experiment.freshness import RecordError, dataset_at_hand, fingerprint, made_of, outdated, outdated_record, refusal
from experiment.records import archive_path, current_commit, read_record, write_record
from experiment.store import Store, graphs_folder
from measurement import accuracy, agreement, answers, cost, latency, operator_counts, wilson_interval
from measurement.kept_answers import answers_kept
from measurement.timing import hardware, measuring_seconds
from models import ModelError, allow, spec_of
from models.quantized import holds_integers, left_in_floats
from recipe import Recipe, StepError, returned, training_of
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
from training import Context, Teacher, scaled_for
from training.teacher import checksum_of, logits_name

PACKAGES = ("torch", "onnxruntime", "numpy")
# Largest archive, in bytes, that is committed with its record. Higher for a base, since all other models start from it.
COMMITTED, COMMITTED_BASE = 1_000_000, 25_000_000
AGREEMENT = 0.99  # smallest share of the test images on which file and model must agree
# The fields of a record that `_measure` makes; all others are from the model's log.
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
    """Return the record of a recipe: from results/ if it is there, else make and measure the model, and write it there.

    The model is made from the longest part of the chain whose weights are at hand. A killed run resumes when called
    again; two runs of the same recipe make it only once. `remeasure` repeats the measurements on the same model, also
    if the images have changed, as long as the classes are the same.

    Raises:
        RecordError: the record does not match the images, code or settings at hand.
        DataError, ModelError, StepError, StorageError, TrainingDiverged: the message says what to do.
    """
    if not isinstance(recipe, Recipe):
        raise StepError(f"run takes a recipe, such as Recipe('digits', (Train('resnet20'),)), not {recipe!r}")
    allow(name for name, _ in recipe.networks())
    store = Store.of(recipe)
    if not remeasure and (record := _current(recipe)) is not None:
        return record
    with store.locked():
        record = _current(recipe, images=not remeasure)  # another process may have written it while this one waited
        if record is None or remeasure:
            record, answered = _measure(recipe, record)
            keep_answers(store, record, answered)
            record = write_record(store.record, record)
    return record


def make(recipe: Recipe) -> nn.Module:
    """Return the model of a recipe, in evaluation mode on the CPU. Its weights are read from disk, or made and saved.

    Files of recipes that it does not depend on are never touched. If the weights differ from those of the recipe's
    record, they are saved anyway, with a warning: see `set_aside`.

    Raises:
        RecordError: the recipe's record does not match the images, code or settings at hand.
    """
    allow(name for name, _ in recipe.networks())
    return _make(recipe)[0]


def deployed_file(record: Mapping, dataset: str) -> Path | None:
    """Return the path of a record's ONNX file, exported again from its weights or archive if it is not there.

    None if neither is at hand, or with a warning if they cannot be read. `dataset` is as for `run`.
    """
    store, weights = Store(dataset, record["id"]), record["weights_sha256"]
    path = store.onnx(weights, record["onnx_sha256"])
    if path.exists() and sha256(path) == record["onnx_sha256"]:
        return path
    archive = archive_path(record, dataset)
    try:
        if archive.exists():
            model = load_archive(archive)
        elif store.weights.exists() and weights_of(store.weights)["sha256"] == weights:
            model = load_weights(store.weights, weights)[0]
        else:
            return None
        return _onnx(store, model, dataset_at_hand(dataset)) if weights_checksum(model) == weights else None
    except (StorageError, ModelError) as error:
        warnings.warn(f"{record['label']} ({record['id']}) cannot be measured: {error}", stacklevel=2)
        return None


def _current(recipe: Recipe, *, images: bool = True) -> dict | None:
    """Return the recipe's record, or None if there is none. Raises RecordError if it is outdated."""
    record = read_record(Store.of(recipe).record)
    if record is not None and (why := outdated_record(record, recipe.dataset, recipe, images=images)):
        raise refusal(recipe, why)
    return record


def _make(recipe: Recipe, *, images: bool = True) -> tuple[nn.Module, dict]:
    """Return the model and the log of its making, which is saved with the weights.

    Without `images`, weights that were trained on other images than those at hand are accepted, to be measured again.
    """
    store = Store.of(recipe)
    with store.locked():
        record = _current(recipe, images=images)
        restored = _restore(recipe, images=images)
        if restored is not None:
            store.checkpoint.unlink(missing_ok=True)  # left by a process that was killed before removing it
            return restored
        if record is not None:
            _current(recipe)  # to make the model again, the images must be the same
        return _made(recipe, record)


def _made(recipe: Recipe, record: dict | None) -> tuple[nn.Module, dict]:
    store, step = Store.of(recipe), recipe.steps[-1]
    model, earlier = (None, {}) if recipe.before is None else _make(recipe.before)
    context = _context(recipe, model)
    checkpoint, made = context.checkpoint, context.checkpoint.of
    started = time.perf_counter()
    model = returned(step, "apply", step.apply(model, context), nn.Module).cpu().eval()
    if step.continued is not None:
        _, earlier = _make(step.continued)
    log = {"train_seconds": time.perf_counter() - started, "made_on": _device_name()}
    log |= {"threads": torch.get_num_threads()} | context.log
    log["train_seconds"] += earlier.get("train_seconds", 0)  # the whole chain, without teachers and members
    save_weights(model, store.weights, log, {**made, "described": recipe.describe()})
    checkpoint.clear()
    weights = weights_checksum(model)
    if record is not None and record["weights_sha256"] != weights:
        warnings.warn(_other_weights(recipe, record, weights), stacklevel=2)
    return model, log | {"made_of": made}


def _context(recipe: Recipe, model: nn.Module | None) -> Context:
    """Return what the recipe's last step gets besides `model`, the one before it."""
    store, dataset = Store.of(recipe), dataset_at_hand(recipe.dataset)
    models = {} if model is None or recipe.before is None else {recipe.before.id: weights_checksum(model)}

    def other(wanted: Recipe) -> nn.Module:
        made = make(wanted)
        models[wanted.id] = weights_checksum(made)
        return made

    scaled = dataset if model is None else scaled_for(model, dataset)
    checkpoint = Checkpoint(store.checkpoint, made_of(recipe, dataset, models))
    return Context(scaled, recipe.seed, training_device(), checkpoint, make=other, cache=store.artifacts / "cache")


def keep_logits(recipe: Recipe, epochs: Iterable[int]) -> None:
    """Cache the logits that teach the recipe's last step in these epochs, counted from 0."""
    models = [make(teacher) for teacher in recipe.steps[-1].taught_by(recipe.before)]
    Teacher(models, _context(recipe, models[0])).keep(training_of(recipe.steps[-1]), epochs)


def logits_at_hand(recipe: Recipe) -> list[Path]:
    """Return the cached files of the logits that teach the recipe's last step, of all of its epochs or of none."""
    teachers, data = recipe.steps[-1].taught_by(recipe.before), fingerprint(recipe.dataset)
    known = [_checksum_at_hand(teacher) for teacher in teachers]
    if not known or data is None or None in known:
        return []
    step = training_of(recipe.steps[-1])
    seed = recipe.seed if step.view_seed is None else step.view_seed
    teacher, images = checksum_of(filter(None, known)), data["train"]["images"]
    names = [logits_name(teacher, images, seed, epoch, step.augmentation) for epoch in range(step.distinct_epochs)]
    paths = [Store.of(recipe).artifacts / "cache" / name for name in names]
    return paths if all(path.exists() for path in paths) else []


def _checksum_at_hand(recipe: Recipe) -> str | None:
    store = Store.of(recipe)
    if store.weights.exists() and (found := _described(store.weights)):
        return found["sha256"]
    return (read_record(store.record) or {}).get("weights_sha256")


def at_hand(recipe: Recipe) -> bool:
    """Return whether `make` would find the recipe's weights, and not make them."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # `make` warns of what it does not use
        return _restore(recipe) is not None


def _other_weights(recipe: Recipe, record: dict, weights: str) -> str:
    return (
        f"{recipe.label} has weights {weights[:12]} here, and {record['weights_sha256'][:12]} in its record "
        f"{recipe.id} (another machine or version rounds differently): models made from it use the weights here; to "
        "measure them, put the record and what was made from it away with experiment.set_aside(recipe), and run again"
    )


def _restore(recipe: Recipe, *, images: bool = True) -> tuple[nn.Module, dict] | None:
    """Return a model and its log from its weight file, or from the archive committed with its record; None if neither.

    The weights of the record are preferred. Weights with another checksum are accepted if they are marked as made by
    this recipe, from its data and its code.
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
        warnings.warn(f"{store.weights} is ignored, and made again: {why}", stacklevel=2)
        return None
    if checksum is not None:
        warnings.warn(_other_weights(recipe, record, found["sha256"]), stacklevel=2)
    return _loaded(store.weights, found)


def _not_of(found: dict, recipe: Recipe, images: bool) -> str | None:
    """Return why weights without a record are not those of the recipe, in words; None if they are."""
    if "id" not in found:
        return "it does not say what it was made from"
    if why := outdated(found, recipe.dataset, recipe, images=images):
        return why
    for key, weights in found["models"].items():
        source = Store(recipe.dataset, key)
        now = _described(source.weights) if source.weights.exists() else None
        known = {now["sha256"]} if now else set()
        if (record := read_record(source.record)) is not None:
            known.add(record["weights_sha256"])
        if known and weights not in known:
            return f"the weights of {key}, from which it was made, have changed"
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
    """Write the archive of a model and return its length and checksum; copy it beside the record if it is small.

    Raises:
        StorageError: the archived model computes other logits.
    """
    store = Store.of(recipe)
    path, committed = store.archive(weights_checksum(model)), store.committed_archive
    save_archive(model, path)
    images = torch.randn(8, *spec_of(model)["shape"], generator=torch.Generator().manual_seed(0))
    for tensor in (*model.parameters(), *model.buffers()):  # the order of summation may depend on the memory layout
        tensor.data = tensor.data.contiguous()
    with torch.no_grad():
        if not torch.equal(model(images), load_archive(path)(images)):
            raise StorageError(f"{path} computes other logits than its model: report this bug")
    if path.stat().st_size < (COMMITTED_BASE if recipe == recipe.base else COMMITTED):
        with atomic_write(committed) as temporary:
            shutil.copyfile(path, temporary)
    else:  # an archive of other weights may be there
        committed.unlink(missing_ok=True)
    return {"archive_bytes": path.stat().st_size, "archive_sha256": sha256(path)}


def _measure(recipe: Recipe, earlier: dict | None) -> tuple[dict, dict[str, str]]:
    """Return the record of a recipe, and its `answers_kept`.

    `earlier` is the record with the same weights that it replaces, if any.
    """
    base_recipe, images = recipe.base, earlier is None
    measuring_seconds()  # raises an error for an invalid setting before anything is trained
    base, log = _make(base_recipe, images=images)
    model, log = (base, log) if recipe == base_recipe else _make(recipe, images=images)
    weights = weights_checksum(model)
    if earlier is not None and earlier["weights_sha256"] != weights:
        raise RecordError(_other_weights(recipe, earlier, weights))
    dataset = dataset_at_hand(recipe.dataset)
    scaled = scaled_for(model, dataset)
    file, base_file = _onnx(Store.of(recipe), model, dataset), _base_onnx(base_recipe, base, dataset)
    session = open_onnx(file)
    operators = operator_counts(file)
    if holds_integers(spec_of(model)) and operators["convolutions"] and not operators["integer_convolutions"]:
        raise StorageError(
            f"no convolution of {file} runs on integers in this ONNX Runtime, so a float model would be measured: "
            "update onnxruntime"
        )
    answered = answers(session, scaled, dataset.test)
    agreed = agreement(model, answered, scaled, dataset.test)
    if agreed < AGREEMENT:
        raise StorageError(
            f"{file} and its model disagree on {1 - agreed:.1%} of the test images, so nothing is recorded: report "
            "this bug"
        )
    test_accuracy = float((answered == dataset.test.labels.numpy()).mean())
    low, high = wilson_interval(test_accuracy, len(dataset.test))
    record = log | {
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
    return record, answers_kept(answered, dataset.test.labels.numpy())


def _onnx(store: Store, model: nn.Module, dataset: Dataset) -> Path:
    """Export the model to ONNX, checked against the model, and return the path, which contains the checksum."""
    weights = weights_checksum(model)
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
    """Return the base's ONNX file: the one recorded, else one whose checksum matches its name, else a new one."""
    store, weights = Store.of(recipe), weights_checksum(model)
    expected = (read_record(store.record) or {}).get("onnx_sha256")
    for path in sorted(store.artifacts.glob(store.onnx(weights, "*").name)):
        content = sha256(path)
        if content == expected or (expected is None and path == store.onnx(weights, content)):
            return path
    return _onnx(store, model, dataset)


def training_device() -> torch.device:
    """Return the device that models are trained on: the GPU, if torch sees one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _device_name() -> str:
    return torch.cuda.get_device_name() if torch.cuda.is_available() else hardware()["cpu"]
