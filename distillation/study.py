"""What notebook 4 compares: lists of cases, each some words about it and its recipe, and tables beside them."""

from collections.abc import Iterable, Sequence

import numpy as np
import pandas as pd
import torch

from data import load, normalize
from distillation.distill import Distill
from distillation.ensemble import Ensemble
from experiment import Recipe, kept_table, make
from training import Train, evaluate

Case = tuple[dict, Recipe]
EPOCHS = {"cifar10": 10, "digits": 5}  # of a student's training: what two cores bear
BATCH = {"digits": 32}
# The published study's loss divided by the number of classes too: the soft part ten times too weak, as if alpha were
# this share. 0.9 / 10 against 0.1, scaled to one.
TOO_WEAK = 0.09 / (0.09 + 0.1)


def student(base: Recipe, model: str, **fields) -> Recipe:
    """A student of the base, for as long as the study gives it."""
    return base.then(Distill(model, **_training(base), **fields))


def alone(base: Recipe, model: str) -> Recipe:
    """The same network without a teacher, on the labels, for as long."""
    return Recipe(base.dataset, (Train(model, label_smoothing=0.0, **_training(base)),), base.seed)


def with_and_without(base: Recipe, models: Iterable[str]) -> list[Case]:
    """Each network under the base as its teacher, and alone."""
    cases = []
    for model in models:
        cases.append(({"student": model, "teacher": "yes"}, student(base, model)))
        cases.append(({"student": model, "teacher": "no"}, alone(base, model)))
    return cases


def ensemble(base: Recipe, models: Sequence[str]) -> Recipe:
    """The students of a base as one model."""
    return Recipe(base.dataset, (Ensemble(tuple(student(base, model) for model in models)),), base.seed)


def taught_by_ensemble(base: Recipe, members: Sequence[str], model: str) -> Recipe:
    """The ensemble distilled back into one student."""
    return ensemble(base, members).then(Distill(model, **_training(base)))


def losses(base: Recipe, model: str, temperatures: Iterable[float], alphas: Iterable[float]) -> pd.DataFrame:
    """Validation accuracy (0..1) of a student over a grid of temperature and alpha."""
    temperatures, alphas = list(temperatures), list(alphas)

    def rows() -> list[dict]:
        dataset, found = load(base.dataset), []
        for temperature in temperatures:
            for alpha in alphas:
                trained = make(student(base, model, temperature=temperature, alpha=alpha))
                accuracy = evaluate(trained, dataset, dataset.validation)
                found.append({"temperature": temperature, "alpha": alpha, "accuracy": accuracy})
        return found

    words = "-".join(map(str, (*temperatures, "a", *alphas)))
    return kept_table(f"losses-{student(base, model).id}-{words}", base.dataset, rows)


@torch.no_grad()
def diversity(members: Sequence[Recipe]) -> pd.DataFrame:
    """How differently each pair errs on the validation images: columns one, other, disagreement, correlation.

    Disagreement is the share of images on which they answer differently; correlation that of being wrong.
    """

    def rows() -> list[dict]:
        dataset = load(members[0].dataset)
        images, labels = normalize(dataset.validation.images, dataset), dataset.validation.labels
        answers = [torch.cat([make(r)(part).argmax(1) for part in images.split(500)]).numpy() for r in members]
        wrong = [(answer != labels.numpy()).astype(float) for answer in answers]
        return [
            {
                "one": members[i].label.rpartition(" > ")[2],
                "other": members[j].label.rpartition(" > ")[2],
                "disagreement": float((answers[i] != answers[j]).mean()),
                "correlation": float(np.corrcoef(wrong[i], wrong[j])[0, 1]),
            }
            for i in range(len(members))
            for j in range(i)
        ]

    return kept_table(f"diversity-{'-'.join(member.id for member in members)}", members[0].dataset, rows)


def _training(base: Recipe) -> dict:
    kind = base.dataset.partition(":")[0]
    return {"epochs": EPOCHS.get(kind, EPOCHS["digits"]), "batch_size": BATCH.get(kind, 128)}
