"""What notebook 0 makes of any network: a recipe per method, with settings that fit the network and the images."""

import time
from collections.abc import Iterable
from pathlib import Path

import pandas as pd
from PIL import Image
from torch import nn
from torch.nn.functional import cross_entropy

from data import load, normalize
from distillation import Distill
from experiment import run
from experiment.freshness import dataset_at_hand
from experiment.records import read_record, told_apart
from experiment.store import Store, artifacts_root
from models import allow, build
from pruning import Prune, PruneChannels
from quantization import Quantize
from recipe import CompressionError, Recipe, StepError, Training
from training import Pretrained, Train

Case = tuple[dict, Recipe]
SEEN = 20_000  # images that a training sees, at least, in 5 to 30 epochs
SHORT = 3  # how many times shorter the trainings after the first one are
TIMED = 3  # updates


def digits_as_pictures() -> str:
    """The embedded digits as a folder of PNG files, and the name of that data set: images for a first try."""
    root = artifacts_root() / "digits as pictures"
    digits = load("digits")
    parts = {"train": digits.train, "val": digits.validation, "test": digits.test}
    for part, split in parts.items():
        for index, (image, label) in enumerate(zip(split.images, split.labels.tolist(), strict=True)):
            path = root / part / digits.classes[label] / f"{index}.png"
            if not path.exists():
                path.parent.mkdir(parents=True, exist_ok=True)
                Image.fromarray(image[0].numpy()).resize((32, 32), Image.Resampling.NEAREST).save(path)
    return f"folder:{root}?colours=grey&mirror=no"


def base_recipe(dataset: str, network: str, weights: str | Path = "", pixels: str | None = None, **fields) -> Recipe:
    """The FP32 network: trained from fresh weights, or for a third as long from those in a file.

    `pixels` is the scale of a file's network (see `Pretrained`); `fields` are settings of `Train` that are to differ.
    """
    settings = usual(dataset, network)
    if not weights:
        return Recipe(dataset, (Train(network, **settings | fields),))
    start = Recipe(dataset, (Pretrained(network, weights=weights, pixels=pixels),))
    return Recipe(dataset, (Train(network, start=start, **shorter(settings) | fields),))


def usual(dataset: str, network: str) -> dict:
    """Settings of a training: SGD if the network has batch norm, else AdamW; as many epochs as the images need."""
    images, model = dataset_at_hand(dataset), _network(dataset, network)
    count = len(images.train)
    epochs = min(30, max(5, round(SEEN / count)))
    norms = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    best = {"learning_rate": 0.05} if norms else {"learning_rate": 1e-3, "optimizer": "adamw"}
    return best | {"epochs": epochs, "batch_size": 128 if count > 5000 else 32}


def shorter(settings: dict) -> dict:
    """The settings of a training that goes on from trained weights."""
    return settings | {
        "epochs": max(1, settings["epochs"] // SHORT),
        "learning_rate": settings["learning_rate"] / 5,
    }


def methods(base: Recipe, student: str) -> list[Case]:
    """The base as it is, and by each method, alone and before INT8."""
    network = str(base.model)
    training = {"teacher": base} | shorter(usual(base.dataset, network))
    sparse = base.then(Prune(sparsity=0.8, **training))
    narrow = base.then(PruneChannels(0.5, **training))
    small = base.then(Distill(student, **usual(base.dataset, student)))
    return [
        ({"method": "as it is"}, base),
        ({"method": "INT8"}, base.then(Quantize())),
        ({"method": "4 bits, trained"}, base.then(Quantize("qat", 4, **training | {"learning_rate": 0.01}))),
        ({"method": "80 % of the weights pruned"}, sparse),
        ({"method": "80 % pruned, INT8"}, sparse.then(Quantize())),
        ({"method": "half of the MACs, channels pruned"}, narrow),
        ({"method": "half of the MACs, INT8"}, narrow.then(Quantize())),
        ({"method": f"distilled into {student}"}, small),
        ({"method": f"distilled into {student}, INT8"}, small.then(Quantize())),
    ]


def seconds_left(cases: Iterable[Case]) -> float:
    """About how long the trainings take that are still to be done, by a few updates of each network."""
    chains = [recipe.prefix(length) for _, recipe in cases for length in range(1, len(recipe.steps) + 1)]
    missing = {part.id: part for part in chains if read_record(Store.of(part).record) is None}
    pace: dict[str, float] = {}
    seconds = 0.0
    for part in missing.values():
        step, name = part.steps[-1], str(part.model)
        if isinstance(step, Training) and not (isinstance(step, Quantize) and step.mode == "static"):
            pace[name] = pace.get(name) or _seconds_per_image(part.dataset, name)
            seconds += pace[name] * step.epochs * len(dataset_at_hand(part.dataset).train)
    return seconds


def check_time(cases: Iterable[Case], minutes: float) -> str:
    """How long the trainings will take, in words. Raises StepError if that is more than so many minutes."""
    found = seconds_left(cases) / 60
    if found > minutes:
        raise StepError(
            f"these trainings would take about {found:.0f} minutes here, and MINUTES allows {minutes:g}: raise it, or "
            "take a smaller network, smaller images or fewer epochs"
        )
    return f"trainings still to be done: about {max(1, round(found))} min" if found else "everything is read back"


def records(cases: Iterable[Case]) -> tuple[pd.DataFrame, pd.DataFrame]:
    """One row per method that the network bears, with its record; and one per method that it does not, and why."""
    made, refused = [], []
    for words, recipe in cases:
        try:
            made.append((words, run(recipe)))
        except CompressionError as error:
            refused.append(words | {"why": str(error)})
    table = pd.concat([pd.DataFrame([words for words, _ in made]), told_apart([own for _, own in made])], axis=1)
    return table, pd.DataFrame(refused, columns=["method", "why"])


def figures(table: pd.DataFrame) -> pd.DataFrame:
    """One row per method: test accuracy, points to the base, size of the archive, speed against the base."""
    base = table.iloc[0]
    columns = {
        "method": table["method"],
        "accuracy %": 100 * table["accuracy"],
        "points": 100 * (table["accuracy"] - base["accuracy"]),
        "archive KB": table["archive_bytes"] / 1e3,
        "x smaller": base["onnx_bytes"] / table["archive_bytes"],
        "ms, one image": table["latency_ms.batch1_one_thread.median"],
        "x faster": table["latency_ms.batch1_one_thread.speedup"],
        "left in floats": table["float_layers"].map(len),
    }
    return pd.DataFrame(columns).round({"accuracy %": 2, "points": 2, "archive KB": 1, "x smaller": 1}).round(3)


def _network(dataset: str, network: str) -> nn.Module:
    allow([network])
    images = dataset_at_hand(dataset)
    return build(network, shape=images.shape, classes=len(images.classes))


def _seconds_per_image(dataset: str, network: str) -> float:
    images, model = dataset_at_hand(dataset), _network(dataset, network)
    count = min(32, len(images.train))
    x, labels = normalize(images.train.images[:count], images), images.train.labels[:count]
    cross_entropy(model(x), labels).backward()  # the first one is slow
    started = time.perf_counter()
    for _ in range(TIMED):
        cross_entropy(model(x), labels).backward()
    return (time.perf_counter() - started) / (TIMED * count)
