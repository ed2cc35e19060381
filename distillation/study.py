"""What notebook 4 compares: lists of cases, each some words about it and its recipe, and tables beside them."""

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from data import Dataset, Split, load, normalize
from distillation.distill import Distill
from distillation.ensemble import Ensemble
from distillation.teacher import Teacher, taught
from experiment import Recipe, batch_size, beside_published, kept_table, make, validated
from models import build
from storage import Checkpoint
from training import Context, Train, fit, fresh, smoothed_cross_entropy, training_fields

Case = tuple[dict, Recipe]
EPOCHS = {"cifar10": 20, "digits": 3}  # of a student's training, as long as the published study's
LONGER = {"cifar10": 30}  # of the networks that are not the study's
RATES = {"cifar10": 0.1}  # learning rates: networks as small as these reach less at the 0.2 that a ResNet-18 bears
VIEWS = {"cifar10": 10}  # epochs that differ: the teacher's forward pass takes longer than most students' training
# The published study's loss divided by the number of classes too: the soft part ten times too weak, as if alpha were
# this share. 0.9 / 10 against 0.1, scaled to one.
TOO_WEAK = 0.09 / (0.09 + 0.1)
# The published study's students: its name for each, and how it was thought of.
STUDENTS = {
    "student_baseline": ("Baseline student", "where the study starts"),
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
    """A student of the base, for as long as the study gives it."""
    return base.then(Distill(model, **student_training(base, model) | fields))


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


def against_ensembles(base: Recipe, members: Sequence[str], parameters: int) -> list[Case]:
    """Members, their ensembles (of so many parameters), the first member widened to as many, and taught by them all."""
    first, together = members[0], "ensemble of " + " ".join(name.removeprefix("student_") for name in members)
    wide = student(base, first, width=width_of(base.dataset, first, parameters))
    return [
        *((_words(model, "a member"), student(base, model)) for model in members),
        (_words(together, "ensemble"), ensemble(base, members)),
        (_words("weighted ensemble", "ensemble"), ensemble(base, members, optimize_weights=True)),
        (_words(f"{first}, widened", "one network of its size"), wide),
        (_words(f"{first} of the ensemble", "taught by the ensemble"), taught_by_ensemble(base, members, first)),
    ]


def width_of(dataset: str, model: str, parameters: int) -> float:
    """The width, in hundredths, at which a network comes nearest to so many parameters."""

    def rows() -> list[dict]:
        data = load(dataset)
        low, high = 1, 10_000  # hundredths: parameters only grow with them
        with torch.device("meta"):
            while high - low > 1:
                middle = (low + high) // 2
                low, high = (middle, high) if _parameters(model, data, middle) <= parameters else (low, middle)
            nearest = min((low, high), key=lambda width: abs(_parameters(model, data, width) - parameters))
        return [{"width": nearest / 100}]

    return float(kept_table(f"width-{model}-{parameters}", dataset, rows)["width"][0])


def losses(base: Recipe, model: str, temperatures: Iterable[float], alphas: Iterable[float], **fields) -> pd.DataFrame:
    """Validation accuracy (0..1) of a student over a grid: columns temperature, alpha, accuracy."""
    grid = [{"temperature": temperature, "alpha": alpha} for temperature in temperatures for alpha in alphas]
    return _validated("losses", base, model, grid, **fields)


def with_features(base: Recipe, model: str, kinds: Iterable[str | None], **fields) -> pd.DataFrame:
    """Validation accuracy (0..1) of a student by what it learns from beside answers: columns features, accuracy."""
    return _validated("features", base, model, [{"features": kind} for kind in kinds], **fields)


def _validated(name: str, base: Recipe, model: str, choices: list[dict], **fields) -> pd.DataFrame:
    return validated(name, [(choice, student(base, model, **fields, **choice)) for choice in choices])


def diversity(members: Sequence[Recipe]) -> pd.DataFrame:
    """How differently each pair errs on the test images: columns one, other, disagreement, correlation.

    Disagreement is the share of images on which they answer differently; correlation that of being wrong, None where
    one of them never is. Nothing is chosen by it.
    """

    def rows() -> list[dict]:
        labels = load(members[0].dataset).test.labels.numpy()
        answers = [_answers(member) for member in members]
        wrong = [(answer != labels).astype(float) for answer in answers]
        return [
            {
                "one": members[i].label.rpartition(" > ")[2],
                "other": members[j].label.rpartition(" > ")[2],
                "disagreement": float((answers[i] != answers[j]).mean()),
                "correlation": float(np.corrcoef(wrong[i], wrong[j])[0, 1])
                if wrong[i].any() and wrong[j].any()
                else None,
            }
            for i in range(len(members))
            for j in range(i)
        ]

    return kept_table(f"diversity-{'-'.join(member.id for member in members)}", members[0].dataset, rows)


def confusions(recipes: Mapping[str, Recipe]) -> pd.DataFrame:
    """What each model answers to the test images of each class: columns model, actual, answer, images.

    It takes the reported accuracy apart; nothing is chosen by it.
    """
    first = next(iter(recipes.values()))

    def rows() -> list[dict]:
        dataset = load(first.dataset)
        actual, names = dataset.test.labels.numpy(), dataset.classes
        found = []
        for model, recipe in recipes.items():
            counts = np.zeros((len(names), len(names)), dtype=int)
            np.add.at(counts, (actual, _answers(recipe)), 1)
            found += [
                {"model": model, "actual": names[row], "answer": names[column], "images": int(counts[row, column])}
                for row, column in np.ndindex(counts.shape)
            ]
        return found

    words = "-".join(f"{model}-{recipe.id}" for model, recipe in recipes.items())
    return kept_table(f"confusions-{words}", first.dataset, rows)


def epoch_costs(base: Recipe, model: str) -> pd.DataFrame:
    """Seconds of a student's epoch alone, under its teacher's forward pass, and with its kept logits, by turns.

    Columns epoch, seconds (median), ratio to the epoch alone (median over rounds). An epoch is cut to 40 batches; the
    ones with kept logits read and check their file.
    """

    def rows() -> list[dict]:
        step, teacher, whole = student(base, model).steps[-1], make(base), load(base.dataset)
        first = slice(TIMED_BATCHES * step.batch_size)
        cut = dataclasses.replace(whole, train=Split(whole.train.images[first], whole.train.labels[first]))
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")

        def seconds(folder: Path, turn: int, kind: str, cache: str) -> float:
            state = Checkpoint(folder / f"{kind}-{turn}")
            context = Context(cut, base.seed, device, state, make=make, cache=folder / cache)
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

    return kept_table(f"epoch-costs-{base.id}-{model}", base.dataset, rows)


def beside_the_study(records: pd.DataFrame) -> pd.DataFrame:
    """Our records (columns student, and those of a record) beside the published study's figures for the same model."""
    names = {"resnet18": "ResNet-18 teacher", "ensemble of 4 5 6": "ensemble of 4 5 6"}
    names |= {name: own for name, (own, _) in STUDENTS.items()}
    ours = records[records["student"].isin(names)].drop_duplicates("student")
    return beside_published(ours, ours["student"].map(names))


def _timed_epoch(step: Distill, context: Context, teacher: nn.Module | None) -> float:
    """Seconds of a student's first epoch, from the first batch to the last, without its validation."""
    loss = smoothed_cross_entropy(0.0)
    if teacher is not None:
        loss = taught(Teacher([teacher], context), step.temperature, step.alpha)
    fit(
        fresh(step.model, step.width, context),
        context,
        **training_fields(step) | {"epochs": 1},
        loss=loss,
    )
    return context.log["train_seconds"]


@torch.no_grad()
def _answers(recipe: Recipe) -> np.ndarray:
    """The classes that a model gives to the test images."""
    dataset, model = load(recipe.dataset), make(recipe)
    parts = normalize(dataset.test.images, dataset).split(500)
    return torch.cat([model(part).argmax(1) for part in parts]).numpy()


def _parameters(model: str, dataset: Dataset, hundredths: int) -> int:
    network = build(model, shape=dataset.shape, classes=len(dataset.classes), width=hundredths / 100)
    return sum(parameter.numel() for parameter in network.parameters())


def _words(name: str, kind: str) -> dict:
    return {"student": name, "kind": kind, "strategy": STUDENTS.get(name, ("", "another design"))[1]}


def student_training(base: Recipe, model: str) -> dict:
    """The fields of a training under a teacher, as the study has it."""
    return _length(base, model) | {"views": VIEWS.get(base.dataset)}


def _length(base: Recipe, model: str) -> dict:
    kind = base.dataset.partition(":")[0]
    epochs = EPOCHS if model in STUDENTS else EPOCHS | LONGER
    rate = {"learning_rate": RATES[kind]} if kind in RATES else {}
    return {"epochs": epochs.get(kind, EPOCHS["digits"]), "batch_size": batch_size(base.dataset)} | rate
