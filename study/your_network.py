"""Cases of notebook 0: what each method makes of any network, with settings by the size of network and images."""

import copy
import dataclasses
import math
import tempfile
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd
from PIL import Image
from torch import nn
from tqdm.auto import tqdm

from data import Dataset, load
from distillation import Distill
from experiment import run, training_device
from experiment.freshness import dataset_at_hand
from experiment.records import read_record, told_apart
from experiment.store import Store, artifacts_root, graphs_folder
from measurement import cost
from measurement.timing import BATCHES, measuring_seconds
from models import allow, build, check_network, spec_of
from pruning import Prune, PruneChannels
from quantization import Quantize
from recipe import TRAINING_FIELDS, CompressionError, Recipe, Step, StepError, Training, folder_of, is_of_pictures
from storage import Checkpoint, export_with_scale, read_tensors, save_archive
from study.distillation import first_images
from training import Context, Pretrained, Train, round_weights
from training.pretrained import load_into

Case = tuple[dict, Recipe]
DIGITS, DIGITS_SIDE, DIGITS_EPOCHS = "digits as pictures", 16, 4  # few epochs: they only demonstrate the methods
SEEN, EPOCHS = 20_000, (5, 30)  # images that a first training sees; the least and most epochs for it
BATCH, UPDATES = (32, 128), 20  # images in a batch, at least and at most; updates in an epoch, if the images suffice
SPARSITY = {1_000_000: 0.9, 100_000: 0.7, 0: 0.5}  # by the least parameters: large networks can spare more of them
LARGE_SIDE = 64  # from this side on, a student needs to see more of an image at once
STUDENTS = {"small": ("resnet20", "resnet14", "resnet8"), "large": ("student_6",)}
WIDTHS = (1.0, 0.5, 0.25, 0.125)
TIMED = 2  # updates in a timed epoch


def digits_as_pictures() -> str:
    """Write the embedded digits as a folder of PNG files, if it is not there; return that data set's name."""
    root = artifacts_root() / DIGITS
    digits = load("digits")
    for part, split in (("train", digits.train), ("val", digits.validation), ("test", digits.test)):
        for index, (image, label) in enumerate(zip(split.images, split.labels.tolist(), strict=True)):
            path = root / part / digits.classes[label] / f"{index}.png"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[0].numpy()).save(path)
    return f"folder:{root}?side={DIGITS_SIDE}&colours=grey&mirror=no"


def base_recipe(dataset: str, network: str, weights: str | Path = "", pixels: str | None = None, **fields) -> Recipe:
    """Return the FP32 network: that in a file of weights, trained first if its last layer fits other classes.

    Without a file, it is trained from fresh weights. `pixels` is the scale of the file's network (see `Pretrained`);
    `fields` of `Training` override `usual`.

    Raises:
        DataError, ModelError, StorageError: there is no such folder, network or file, or they do not fit.
        StepError: not every training has such a field.
    """
    if unknown := sorted(fields.keys() - set(TRAINING_FIELDS)):
        raise StepError(f"{unknown[0]!r} is no setting of every training: use some of {', '.join(TRAINING_FIELDS)}")
    settings = usual(dataset, network) | fields
    if not weights:
        return Recipe(dataset, (Train(network, **settings),))
    start = Recipe(dataset, (Pretrained(network, weights=weights, pixels=pixels),))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it is said again when the weights are loaded
        unfit = load_into(_network(dataset, network), read_tensors(Path(weights).expanduser()), str(weights))
    return Recipe(dataset, (Train(network, start=start, **further(settings)),)) if unfit else start


def usual(dataset: str, network: str) -> dict:
    """Return settings of a first training: SGD if the network has batch norm, else AdamW; epochs by the images.

    Raises:
        DataError, ModelError: there is no such folder or network, or the network does not take the images.
    """
    images, model = dataset_at_hand(dataset), _network(dataset, network)
    check_network(model, images.shape, len(images.classes))
    norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    count, (least, most) = len(images.train), EPOCHS
    demonstration = is_of_pictures(dataset) and folder_of(dataset).name == DIGITS
    epochs = DIGITS_EPOCHS if demonstration else min(most, max(least, round(SEEN / count)))
    batch = 2 ** int(math.log2(max(1, count / UPDATES)))
    settings = {"learning_rate": 0.05} if norms else {"learning_rate": 1e-3, "optimizer": "adamw"}
    return settings | {"epochs": epochs, "batch_size": min(BATCH[1], max(BATCH[0], batch))}


def further(settings: Mapping, slower: float = 5) -> dict:
    """Return the settings of a training that continues from trained weights: a third of the epochs, a lower rate."""
    epochs, rate = max(1, settings["epochs"] // 3), settings["learning_rate"] / slower
    return {**settings, "epochs": epochs, "learning_rate": rate}


def student_for(dataset: str, network: str) -> tuple[str, float]:
    """Return name and width of a student: the largest with at most half of a network's parameters, and no more MACs.

    If even the smallest has more, it is that one.
    """
    side = dataset_at_hand(dataset).shape[1]
    names = STUDENTS["small" if side < LARGE_SIDE else "large"]
    costs = {(name, width): _cost(dataset, name, width) for name in names for width in WIDTHS}
    ranked = sorted(costs, key=lambda student: costs[student]["macs"])
    whole = _cost(dataset, network)
    most = {"parameters": whole["parameters"] / 2, "macs": whole["macs"]}
    fit = [own for own in ranked if all(costs[own][kind] <= bound for kind, bound in most.items())]
    return [*ranked[:1], *fit][-1]


def methods(base: Recipe, student: str = "", **fields) -> list[Case]:
    """Return the base as it is, and what each method makes of it, alone and before INT8.

    `student` is the network to distil into (default: `student_for`); `fields` of trainings override `usual`.
    """
    dataset, network = base.dataset, str(base.model)
    settings = usual(dataset, network) | fields
    guided = {"teacher": base} | further(settings)
    name, width = (student, 1.0) if student else student_for(dataset, network)
    parameters = _cost(dataset, network)["parameters"]
    sparsity = next(share for least, share in SPARSITY.items() if parameters >= least)
    longer = usual(dataset, name) | fields
    longer["epochs"] *= 2
    sparse = base.then(Prune(sparsity=sparsity, **guided))
    narrow = base.then(PruneChannels(0.5, **guided))
    small = base.then(Distill(name, width=width, **longer))
    cases = {
        "FP32": base,
        "INT8": base.then(Quantize()),
        "INT8, trained": base.then(Quantize("qat", **{"teacher": base} | further(settings, slower=20))),
        f"{100 * sparsity:g} % pruned": sparse,
        f"{100 * sparsity:g} % pruned, INT8": sparse.then(Quantize()),
        "half the MACs": narrow,
        "half the MACs, INT8": narrow.then(Quantize()),
        "student": small,
        "student, INT8": small.then(Quantize()),
    }
    return [({"what": what}, recipe) for what, recipe in cases.items()]


def estimate(cases: Sequence[Case]) -> pd.DataFrame:
    """Return one row per case without a record: what, epochs, and about how many minutes it takes on this machine.

    The time of a training is that of a few updates with fresh weights, multiplied. That of a measurement, the same for
    all, is the time to export and archive the network, and what the timing of latency takes.
    """
    missing = [(words, recipe) for words, recipe in cases if read_record(Store.of(recipe).record) is None]
    rows: list[dict] = []
    if missing:
        base = cases[0][1]
        dataset = dataset_at_hand(base.dataset)
        model = round_weights(_network(base.dataset, str(base.model)))
        measuring = _measuring_seconds(model, dataset)
        for words, recipe in missing:
            epochs, seconds = _training_seconds(recipe.steps[-1], model, dataset)
            rows.append(words | {"epochs": epochs, "minutes": (seconds + measuring) / 60})
    return pd.DataFrame(rows, columns=["what", "epochs", "minutes"])


def check_minutes(expected: pd.DataFrame, minutes: float) -> str:
    """Return in words how long what `estimate` expects takes. Raises StepError if that is more than so many minutes."""
    total = expected["minutes"].sum()
    if total > minutes:
        raise StepError(
            f"this would take about {total:.0f} minutes here, and MINUTES allows {minutes:g}: raise it, or take a "
            "smaller network, smaller images or fewer epochs"
        )
    return f"{total:.1f} minutes in all" if total else "Everything is read back."


def records(cases: Sequence[Case], expected: pd.DataFrame) -> tuple[pd.DataFrame, dict[str, str]]:
    """Return one row per method with its record, and why each of the other methods does not work, in a sentence.

    The progress bar counts the seconds of `estimate`, so that it shows the time left.

    Raises:
        CompressionError: the FP32 network, which all others are made from, cannot be made.
    """
    made, refused = [], {}
    seconds = 60 * expected.set_index("what")["minutes"]
    with tqdm(total=round(seconds.sum()), desc="all methods", unit="s", leave=False) as bar:
        for words, recipe in cases:
            try:
                made.append((words, run(recipe)))
            except CompressionError as error:
                if recipe == cases[0][1]:
                    raise
                refused[words["what"]] = str(error).splitlines()[0]
            bar.update(round(seconds.get(words["what"], 0.0)))
    words = pd.DataFrame([words for words, _ in made])
    return pd.concat([words, told_apart([record for _, record in made])], axis=1), refused


def figures(table: pd.DataFrame, refused: Mapping[str, str]) -> pd.DataFrame:
    """Return one row per method: accuracy, points to the first row, size and speed; or why there is none."""
    base = table.iloc[0]
    columns = {
        "what": table["what"],
        "accuracy %": (100 * table["accuracy"]).round(2),
        "points to FP32": (100 * (table["accuracy"] - base["accuracy"])).round(2),
        "archive KB": (table["archive_bytes"] / 1e3).round(1),
        "x smaller": (base["onnx_bytes"] / table["archive_bytes"]).round(1),
        "ms, one image": table["latency_ms.batch1_one_thread.median"].round(3),
        "x faster": table["latency_ms.batch1_one_thread.speedup"].round(2),
        "million MACs": (table["macs"] / 1e6).round(2),
        "operators in floats": table["float_layers"].map(len),
    }
    others = pd.DataFrame({"what": refused.keys(), "not made, since": refused.values()})
    rows = pd.concat([pd.DataFrame(columns).astype(object), others] if refused else [pd.DataFrame(columns)])
    return rows.astype(object).where(rows.notna(), "").reset_index(drop=True)


def _training_seconds(step: Step, model: nn.Module, dataset: Dataset) -> tuple[int, float]:
    """Return the epochs of a step and about how many seconds they take: none if nothing is trained, or it is refused.

    The step is applied to a fresh network, for two epochs of `TIMED` updates, of which the first warms up.
    """
    if not isinstance(step, Training) or (isinstance(step, Quantize) and step.mode == "static"):
        return 0, 0.0
    cut = first_images(dataset, max(10, TIMED * step.batch_size))  # one of 10 is for validation
    short = dataclasses.replace(step, epochs=2, learning_rate=1e-6)
    with tempfile.TemporaryDirectory() as name, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # what is wrong is said when the step is run
        folder = Path(name)
        checkpoint = Checkpoint(folder / "checkpoint")
        context = Context(cut, 0, training_device(), checkpoint, lambda recipe: copy.deepcopy(model), folder / "cache")
        try:
            short.apply(copy.deepcopy(model), context)
        except CompressionError:
            return 0, 0.0
    updates = [max(1, len(images.train) // step.batch_size) for images in (dataset, cut)]
    return step.epochs, step.epochs * context.log["curves"][-1]["seconds"] * updates[0] / updates[1]


def _measuring_seconds(model: nn.Module, dataset: Dataset) -> float:
    """Return about how long `run` takes to export, archive and time a network; its graph is kept."""
    started = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        export_with_scale(model, Path(folder) / "model.onnx", dataset, graphs=graphs_folder())
        save_archive(model, Path(folder) / "model.nna")
    return time.perf_counter() - started + 2 * len(BATCHES) * measuring_seconds()


def _network(dataset: str, network: str, width: float = 1.0) -> nn.Module:
    """Return the network with fresh weights for the images."""
    allow([network])
    images = dataset_at_hand(dataset)
    model = build(network, shape=images.shape, classes=len(images.classes), width=width)
    spec_of(model)["pixels"] = images.pixels
    return model.eval()


def _cost(dataset: str, network: str, width: float = 1.0) -> dict[str, int]:
    return cost(_network(dataset, network, width))
