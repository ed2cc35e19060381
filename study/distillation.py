"""Cases of notebook 4, each a description and a recipe, and its tables."""

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
from torch import nn

from data import Dataset, Split, load
from distillation.distill import Distill
from distillation.ensemble import Ensemble
from distillation.loss import SoftTargets
from experiment import kept_table, make, training_device, validated
from measurement import cost
from models import build
from recipe import TRAINING_FIELDS, Recipe
from storage import Checkpoint
from study.baseline import batch_size
from training import Context, Labels, Teacher, Train, fit, fresh

Case = tuple[dict, Recipe]
Trainings = Mapping[str, Mapping[str, Any]]  # by network, settings of its training that differ from the usual ones
USUAL: Trainings = {}
EPOCHS = {"cifar10": 20, "digits": 3}  # of a student's training, as in the published study
LONGER = {"cifar10": 30}  # for networks that are not in the published study
RATES = {"cifar10": 0.1}  # learning rates: networks this small do worse at the 0.2 that suits a ResNet-18
VIEWS = {"cifar10": 10}  # distinct epochs: the teacher's forward pass takes longer than most students' training
# The students of the published study (Shettiwar and Shankar): its name for each, and the idea of its design.
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
TIMED_BATCHES, TIMED_ROUNDS = 40, 3  # batches of a timed epoch, and rounds of such epochs


def student(base: Recipe, model: str, trainings: Trainings = USUAL, **fields) -> Recipe:
    """Return a student of the base, trained as `trainings` says, else for `EPOCHS` or `LONGER`."""
    return base.then(Distill(model, **student_training(base, model, trainings) | fields))


def patient(base: Recipe, model: str, trainings: Trainings = USUAL, times: int = 2) -> Recipe:
    """Return a student of the base trained for `times` as many epochs, with `times` as many views.

    Beyer et al., "Knowledge distillation: a good teacher is patient and consistent" (CVPR 2022).
    """
    usual = student_training(base, model, trainings)
    longer = {name: times * usual[name] for name in ("epochs", "views") if usual[name]}
    return student(base, model, trainings, **longer)


def long_student(base: Recipe, model: str, width: float = 1.0, seed: int = 0, **fields) -> Recipe:
    """Return a student of the base, trained with `fields` and otherwise as usual.

    The base is one of its `teachers`, not its first step, so that `seed` applies only to the student.
    """
    training = student_training(base, model) | fields
    return Recipe(base.dataset, (Distill(model, teachers=(base,), width=width, **training),), seed)


def twice_as_long(base: Recipe, models: Iterable[str], trainings: Trainings = USUAL) -> list[Case]:
    """Return each network as a student of the base, trained as long as usual and twice as long."""
    models = list(models)
    usual = [(_words(model, "as long as usual"), student(base, model, trainings)) for model in models]
    return usual + [(_words(model, "twice as long"), patient(base, model, trainings)) for model in models]


def alone(base: Recipe, model: str, trainings: Trainings = USUAL) -> Recipe:
    """Return the network trained equally long on labels alone. Without a teacher, augmented views do not repeat."""
    training = student_training(base, model, trainings)
    fields = {name: training[name] for name in TRAINING_FIELDS if name in training and name != "views"}
    return Recipe(base.dataset, (Train(model, label_smoothing=0.0, **fields),), base.seed)


def with_and_without(
    base: Recipe, models: Iterable[str], without: Iterable[str], trainings: Trainings = USUAL
) -> list[Case]:
    """Return each of `models` distilled from the base, and those in `without` trained on labels alone."""
    cases = [(_words(model, "with a teacher"), student(base, model, trainings)) for model in models]
    return cases + [(_words(model, "without"), alone(base, model, trainings)) for model in without]


def ensemble(base: Recipe, models: Sequence[str], trainings: Trainings = USUAL, **fields) -> Recipe:
    """Return the students of a base as an ensemble."""
    members = tuple(student(base, model, trainings) for model in models)
    return Recipe(base.dataset, (Ensemble(members, **fields),), base.seed)


def taught_by_ensemble(base: Recipe, members: Sequence[str], model: str, trainings: Trainings = USUAL) -> Recipe:
    """Return a student of the ensemble."""
    return ensemble(base, members, trainings).then(Distill(model, **student_training(base, model, trainings)))


def by_teacher(base: Recipe, model: str, assistants: Iterable[str], trainings: Trainings = USUAL) -> list[Case]:
    """Return a student of the base; then, for each assistant, itself a student of the base, one of it and one of both.

    Mirzadeh et al., "Improved knowledge distillation via teacher assistant" (AAAI 2020); You et al., "Learning from
    multiple teacher networks" (KDD 2017).
    """
    cases = [(_words(model, f"of {base.model}"), student(base, model, trainings))]
    for name in assistants:
        assistant = student(base, name, trainings)
        both = Distill(model, teachers=(base, assistant), **student_training(base, model, trainings))
        cases.append((_words(model, f"of {name}, a student of {base.model}"), student(assistant, model, trainings)))
        cases.append((_words(model, f"of {base.model} and {name}"), Recipe(base.dataset, (both,), base.seed)))
    return cases


def weak_and_right(base: Recipe, model: str, trainings: Trainings = USUAL) -> list[Case]:
    """Return a student with the published study's loss, up to its scale (see `too_weak`), and one with Hinton's."""
    counted = kept_table("classes", base.dataset, lambda: [{"classes": len(load(base.dataset).classes)}])
    classes = int(counted["classes"][0])
    alpha, right = too_weak(classes), student(base, model, trainings)
    return [
        ({"loss": f"soft part {classes} times too weak", "alpha": alpha}, student(base, model, trainings, alpha=alpha)),
        ({"loss": "as it should be", "alpha": right.last(Distill).alpha}, right),
    ]


def too_weak(classes: int) -> float:
    """Return the alpha for which our loss is proportional to the published study's.

    That study also divides the soft part by the number of classes: 0.9 / classes of it plus 0.1 of the cross-entropy.
    This is our loss with this alpha, times 0.9 / classes + 0.1.
    """
    soft = 0.9 / classes
    return soft / (soft + 0.1)


def against_ensembles(
    base: Recipe, members: Sequence[str], parameters: int, macs: int, trainings: Trainings = USUAL
) -> list[Case]:
    """Return the members, their ensembles (with `parameters` and `macs` in total), and three forms of the first member.

    These are widened to as many parameters, widened to as many MACs, and taught by the ensemble.
    """
    first, together = members[0], "ensemble of " + " ".join(name.removeprefix("student_") for name in members)
    wide = student(base, first, trainings, width=width_of(base.dataset, first, parameters))
    busy = student(base, first, trainings, width=width_of_macs(base.dataset, first, macs))
    return [
        *((_words(model, "a member"), student(base, model, trainings)) for model in members),
        (_words(together, "ensemble"), ensemble(base, members, trainings)),
        (_words("weighted ensemble", "ensemble"), ensemble(base, members, trainings, optimize_weights=True)),
        (_words(f"{first}, widened", "one network of its size"), wide),
        (_words(f"{first}, equal MACs", "one network of its MACs"), busy),
        (
            _words(f"{first} of the ensemble", "taught by the ensemble"),
            taught_by_ensemble(base, members, first, trainings),
        ),
    ]


def width_of(dataset: str, model: str, parameters: int) -> float:
    """Return the width, a multiple of 0.01, at which a network's size is nearest to `parameters`."""
    return _width(dataset, model, "parameters", parameters)


def width_of_macs(dataset: str, model: str, macs: int) -> float:
    """Return the width, a multiple of 0.01, at which a network's MACs per image are nearest to `macs`."""
    return _width(dataset, model, "macs", macs)


def _width(dataset: str, model: str, what: str, target: int) -> float:
    def rows() -> list[dict]:
        data = load(dataset)

        def found(hundredths: int) -> int:
            network = build(model, shape=data.shape, classes=len(data.classes), width=hundredths / 100)
            return cost(network.eval())[what]

        low, high = 1, 2  # hundredths; the cost grows with the width
        while found(high) <= target:
            low, high = high, 2 * high
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (middle, high) if found(middle) <= target else (low, middle)
        return [{"width": min((low, high), key=lambda width: abs(found(width) - target)) / 100}]

    return float(kept_table("width", dataset, rows, {"model": model, what: target})["width"][0])


def losses(
    base: Recipe,
    model: str,
    temperatures: Iterable[float],
    alphas: Iterable[float],
    trainings: Trainings = USUAL,
    **fields,
) -> pd.DataFrame:
    """Return a student's validation accuracy (0..1) over a grid: columns temperature, alpha, accuracy."""
    grid = [{"temperature": temperature, "alpha": alpha} for temperature in temperatures for alpha in alphas]
    return validated("losses", [(choice, student(base, model, trainings, **fields, **choice)) for choice in grid])


def with_features(base: Recipe, model: str, kinds: Iterable[str | None], trainings: Trainings = USUAL) -> pd.DataFrame:
    """Return a student's validation accuracy (0..1) for each loss on feature maps: columns features, accuracy."""
    cases = [  # None would become NaN in pandas
        ({"features": kind or "answers alone"}, student(base, model, trainings, features=kind)) for kind in kinds
    ]
    return validated("features", cases)


def epoch_costs(base: Recipe, model: str, trainings: Trainings = USUAL) -> pd.DataFrame:
    """Time a student's epoch without a teacher, with the teacher's forward pass, and with cached logits, in turn.

    Columns: epoch, seconds (median), and ratio to the epoch without a teacher (median over rounds). Epochs are cut to
    40 batches; those with cached logits include reading and checking the file. Kept as a table of this machine's times.
    """

    def rows() -> list[dict]:
        step, teacher = student(base, model, trainings).last(Distill), make(base)
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
        times = pd.DataFrame(rounds[1:])  # the first round warms up and caches the logits
        ratios = times.div(times["alone"], axis=0).median()
        return [{"epoch": kind, "seconds": times[kind].median(), "ratio": ratios[kind]} for kind in caches]

    arguments = {"student": student(base, model, trainings).id, "batches": TIMED_BATCHES, "rounds": TIMED_ROUNDS}
    return kept_table("epoch-costs", base.dataset, rows, arguments, timed=True)


def first_images(dataset: Dataset, images: int) -> Dataset:
    """Return the data set with only `images` training images and a tenth as many for validation, for timed epochs."""

    def first(split: Split, images: int) -> Split:
        return Split(split.images[:images], split.labels[:images])

    return dataclasses.replace(
        dataset, train=first(dataset.train, images), validation=first(dataset.validation, images // 10)
    )


def _timed_epoch(step: Distill, context: Context, teacher: nn.Module | None) -> float:
    """Return the seconds of a student's first epoch, from the first batch to the last, without validation."""
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


def student_training(base: Recipe, model: str, trainings: Trainings = USUAL) -> dict[str, Any]:
    """Return the fields of a training under a teacher."""
    kind = base.dataset.partition(":")[0]
    epochs = EPOCHS if model in STUDENTS else EPOCHS | LONGER
    rate = {"learning_rate": RATES[kind]} if kind in RATES else {}
    usual = {"epochs": epochs.get(kind, EPOCHS["digits"]), "batch_size": batch_size(base.dataset)} | rate
    return usual | {"views": VIEWS.get(base.dataset)} | dict(trainings.get(model, {}))
