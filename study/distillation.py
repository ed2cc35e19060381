"""What notebook 4 compares: lists of cases, each some words about it and its recipe, and tables beside them."""

import dataclasses
import tempfile
from collections.abc import Iterable, Sequence
from pathlib import Path

import pandas as pd
from torch import nn

from data import Dataset, Split, load
from distillation.distill import Distill
from distillation.ensemble import Ensemble
from distillation.loss import SoftTargets
from distillation.teacher import Teacher
from experiment import kept_table, make, training_device, validated
from measurement import cost
from models import build
from recipe import Recipe
from storage import Checkpoint
from study.baseline import batch_size
from training import Context, Labels, Train, fit, fresh

Case = tuple[dict, Recipe]
EPOCHS = {"cifar10": 20, "digits": 3}  # of a student's training, as long as the published study's
LONGER = {"cifar10": 30}  # of the networks that are not the published study's
RATES = {"cifar10": 0.1}  # learning rates: networks as small as these reach less at the 0.2 that a ResNet-18 bears
# What a GPU bears: many epochs, in batches that fill it, at a rate that grows with them (Goyal et al., 2017).
ON_GPU = {"cifar10": {"batch_size": 512, "learning_rate": 0.4, "views": 20}}
VIEWS = {"cifar10": 10}  # epochs that differ: the teacher's forward pass takes longer than most students' training
# The students of the published study (Shettiwar and Shankar): its name for each, and how it was thought of.
STUDENTS = {
    "student_baseline": ("Baseline student", "where the published study starts"),
    "student_1": ("Model 1", "convolutions instead of FC"),
    "student_2": ("Model 2", "smaller filters"),
    "student_3": ("Model 3", "fewer channels, and no FC"),
    "student_4": ("Model 4", "fewer channels"),
    "student_5": ("Model 5", "fewer channels, and no FC"),
    "student_6": ("Model 6", "fewer channels, and no FC"),
    "student_3conv": ("3-conv student", "fewer convolutions"),
}
TIMED_BATCHES, TIMED_ROUNDS = 40, 3  # of an epoch whose cost is measured


def student(base: Recipe, model: str, **fields) -> Recipe:
    """A student of the base, for as long as `EPOCHS` and `LONGER` say."""
    return base.then(Distill(model, **student_training(base, model) | fields))


def patient(base: Recipe, model: str, times: int = 2) -> Recipe:
    """A student of the base for `times` as many epochs, over `times` as many views.

    Beyer et al., "Knowledge distillation: a good teacher is patient and consistent" (CVPR 2022).
    """
    usual = student_training(base, model)
    return student(base, model, **{name: times * usual[name] for name in ("epochs", "views") if usual[name]})


def long_student(base: Recipe, model: str, epochs: int, width: float = 1.0, seed: int = 0) -> Recipe:
    """A student of the base, trained on CIFAR-10 for as long as a GPU bears, elsewhere for as long as usual.

    The base is its teacher by name and not its first step, so that the seed is the student's alone.
    """
    training = student_training(base, model)
    if base.dataset in ON_GPU:
        training |= ON_GPU[base.dataset] | {"epochs": epochs}
    return Recipe(base.dataset, (Distill(model, teachers=(base,), width=width, **training),), seed)


def twice_as_long(base: Recipe, models: Iterable[str]) -> list[Case]:
    """Each network under the base for its usual epochs, and patiently."""
    models = list(models)
    usual = [(_words(model, "as long as usual"), student(base, model)) for model in models]
    return usual + [(_words(model, "twice as long"), patient(base, model)) for model in models]


def alone(base: Recipe, model: str) -> Recipe:
    """The same network without a teacher, on the labels, for as long."""
    return Recipe(base.dataset, (Train(model, label_smoothing=0.0, **_length(base, model)),), base.seed)


def with_and_without(base: Recipe, models: Iterable[str], without: Iterable[str]) -> list[Case]:
    """Each network under the base as its teacher, and those of `without` alone too."""
    cases = [(_words(model, "with a teacher"), student(base, model)) for model in models]
    return cases + [(_words(model, "without"), alone(base, model)) for model in without]


def ensemble(base: Recipe, models: Sequence[str], **fields) -> Recipe:
    """The students of a base as one model."""
    return Recipe(base.dataset, (Ensemble(tuple(student(base, model) for model in models), **fields),), base.seed)


def taught_by_ensemble(base: Recipe, members: Sequence[str], model: str) -> Recipe:
    """The ensemble distilled back into one student."""
    return ensemble(base, members).then(Distill(model, **student_training(base, model)))


def by_teacher(base: Recipe, model: str, assistants: Iterable[str]) -> list[Case]:
    """A student of the base; then of each assistant, which is a student of the base, and of both together.

    Mirzadeh et al., "Improved knowledge distillation via teacher assistant" (AAAI 2020); You et al., "Learning from
    multiple teacher networks" (KDD 2017).
    """
    cases = [(_words(model, f"of {base.model}"), student(base, model))]
    for name in assistants:
        assistant = student(base, name)
        both = Distill(model, teachers=(base, assistant), **student_training(base, model))
        cases.append((_words(model, f"of {name}, a student of {base.model}"), student(assistant, model)))
        cases.append((_words(model, f"of {base.model} and {name}"), Recipe(base.dataset, (both,), base.seed)))
    return cases


def weak_and_right(base: Recipe, model: str) -> list[Case]:
    """A student under the published study's loss, but for its scale (see `too_weak`), and under Hinton's."""
    counted = kept_table("classes", base.dataset, lambda: [{"classes": len(load(base.dataset).classes)}])
    classes = int(counted["classes"][0])
    alpha = too_weak(classes)
    return [
        ({"loss": f"soft part {classes} times too weak", "alpha": alpha}, student(base, model, alpha=alpha)),
        ({"loss": "as it should be", "alpha": Distill.alpha}, student(base, model)),
    ]


def too_weak(classes: int) -> float:
    """The alpha whose loss is the published study's but for its scale.

    That divides the soft part by the number of classes too, which leaves 0.9 / classes of it beside 0.1 of
    cross-entropy: a loss of this alpha, times 0.9 / classes + 0.1.
    """
    soft = 0.9 / classes
    return soft / (soft + 0.1)


def against_ensembles(base: Recipe, members: Sequence[str], parameters: int, macs: int) -> list[Case]:
    """Members, their ensembles (of so many parameters and MACs), and the first member in three forms beside them.

    It is widened to as many parameters, widened to as many MACs, and taught by all of them.
    """
    first, together = members[0], "ensemble of " + " ".join(name.removeprefix("student_") for name in members)
    wide = student(base, first, width=width_of(base.dataset, first, parameters))
    busy = student(base, first, width=width_of_macs(base.dataset, first, macs))
    return [
        *((_words(model, "a member"), student(base, model)) for model in members),
        (_words(together, "ensemble"), ensemble(base, members)),
        (_words("weighted ensemble", "ensemble"), ensemble(base, members, optimize_weights=True)),
        (_words(f"{first}, widened", "one network of its size"), wide),
        (_words(f"{first}, equal MACs", "one network of its MACs"), busy),
        (_words(f"{first} of the ensemble", "taught by the ensemble"), taught_by_ensemble(base, members, first)),
    ]


def width_of(dataset: str, model: str, parameters: int) -> float:
    """The width, in hundredths, at which a network comes nearest to so many parameters."""
    return _width(dataset, model, "parameters", parameters)


def width_of_macs(dataset: str, model: str, macs: int) -> float:
    """The width, in hundredths, at which a network comes nearest to so many multiply-accumulates an image."""
    return _width(dataset, model, "macs", macs)


def _width(dataset: str, model: str, what: str, target: int) -> float:
    def rows() -> list[dict]:
        data = load(dataset)

        def found(hundredths: int) -> int:
            network = build(model, shape=data.shape, classes=len(data.classes), width=hundredths / 100)
            return cost(network.eval())[what]

        low, high = 1, 2  # hundredths: what is counted only grows with them
        while found(high) <= target:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if found(middle) <= target else (low, middle)
        return [{"width": min((low, high), key=lambda width: abs(found(width) - target)) / 100}]

    return float(kept_table("width", dataset, rows, {"model": model, what: target})["width"][0])


def losses(base: Recipe, model: str, temperatures: Iterable[float], alphas: Iterable[float], **fields) -> pd.DataFrame:
    """Validation accuracy (0..1) of a student over a grid: columns temperature, alpha, accuracy."""
    grid = [{"temperature": temperature, "alpha": alpha} for temperature in temperatures for alpha in alphas]
    return validated("losses", [(choice, student(base, model, **fields, **choice)) for choice in grid])


def with_features(base: Recipe, model: str, kinds: Iterable[str | None], **fields) -> pd.DataFrame:
    """Validation accuracy (0..1) of a student by what it learns from beside answers: columns features, accuracy."""
    cases = [
        ({"features": kind or "answers alone"}, student(base, model, features=kind, **fields))  # pandas makes None nan
        for kind in kinds
    ]
    return validated("features", cases)


def epoch_costs(base: Recipe, model: str) -> pd.DataFrame:
    """Seconds of a student's epoch alone, under its teacher's forward pass, and with its kept logits, by turns.

    Columns epoch, seconds (median), ratio to the epoch alone (median over rounds). An epoch is cut to 40 batches; the
    ones with kept logits read and check their file. Kept as a table of this machine's times.
    """

    def rows() -> list[dict]:
        step, teacher = student(base, model).last(Distill), make(base)
        cut = first_images(load(base.dataset), TIMED_BATCHES * step.batch_size)

        def seconds(folder: Path, turn: int, kind: str, cache: str) -> float:
            state = Checkpoint(folder / f"{kind}-{turn}")
            context = Context(cut, base.seed, training_device(), state, make=make, cache=folder / cache)
            return _timed_epoch(step, context, None if kind == "alone" else teacher)

        with tempfile.TemporaryDirectory() as folder:
            caches = {"alone": "none", "teacher forward": "cache-{}", "kept logits": "kept"}
            rounds = [
                {kind: seconds(Path(folder), turn, kind, cache.format(turn)) for kind, cache in caches.items()}
                for turn in range(1 + TIMED_ROUNDS)
            ]
        times = pd.DataFrame(rounds[1:])  # the first one warms up, and keeps the logits
        ratios = times.div(times["alone"], axis=0).median()
        return [{"epoch": kind, "seconds": times[kind].median(), "ratio": ratios[kind]} for kind in caches]

    arguments = {"student": student(base, model).id, "batches": TIMED_BATCHES, "rounds": TIMED_ROUNDS}
    return kept_table("epoch-costs", base.dataset, rows, arguments, timed=True)


def first_images(dataset: Dataset, images: int) -> Dataset:
    """The data set with only so many images to train on, and a tenth of them to validate: an epoch that is timed."""

    def first(split: Split, images: int) -> Split:
        return Split(split.images[:images], split.labels[:images])

    return dataclasses.replace(
        dataset, train=first(dataset.train, images), validation=first(dataset.validation, images // 10)
    )


def _timed_epoch(step: Distill, context: Context, teacher: nn.Module | None) -> float:
    """Seconds of a student's first epoch, from the first batch to the last, without its validation."""
    loss = Labels().loss(None)
    if teacher is not None:
        loss = SoftTargets(step.temperature, step.alpha).loss(Teacher([teacher], context).logits)
    fit(
        fresh(step.model, step.width, context),
        context,
        dataclasses.replace(step, epochs=1),
        loss=loss,
    )
    return context.log["train_seconds"]


def _words(name: str, kind: str) -> dict:
    return {"student": name, "kind": kind, "strategy": STUDENTS.get(name, ("", "another design"))[1]}


def student_training(base: Recipe, model: str) -> dict:
    """The fields of a training under a teacher."""
    return _length(base, model) | {"views": VIEWS.get(base.dataset)}


def _length(base: Recipe, model: str) -> dict:
    kind = base.dataset.partition(":")[0]
    epochs = EPOCHS if model in STUDENTS else EPOCHS | LONGER
    rate = {"learning_rate": RATES[kind]} if kind in RATES else {}
    return {"epochs": epochs.get(kind, EPOCHS["digits"]), "batch_size": batch_size(base.dataset)} | rate
