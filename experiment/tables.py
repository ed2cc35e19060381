"""Tables with one row per case: its description, and the record or the validation accuracy of its recipe."""

import warnings
from collections.abc import Callable, Iterable
from typing import TypeVar

import pandas as pd
from tqdm.auto import tqdm

from data import load
from experiment.plan import Plan, missing, plan
from experiment.records import kept_table, told_apart
from experiment.runner import make, run
from experiment.spread import make_all
from recipe import Recipe
from training import TrainingDiverged, evaluate

T = TypeVar("T")


def run_table(cases: Iterable[tuple[dict, Recipe]], *, whole: bool = False) -> pd.DataFrame:
    """Return one row per case: its description, then its record.

    A case whose training diverged is left out with a warning, so that a study can go on. Set `whole` if every row is
    needed: then it is an error.

    Raises:
        TrainingDiverged: the training of one case diverged, if `whole`; else those of all cases.
    """
    made = without_diverged(run, cases, whole, missing)
    records = told_apart([record for _, record in made])
    return pd.concat([pd.DataFrame([words for words, _ in made]), records], axis=1)


def without_diverged(
    make: Callable[[Recipe], T],
    cases: Iterable[tuple[dict, Recipe]],
    whole: bool = False,
    needed: Callable[[Iterable[Recipe]], Plan] = plan,
) -> list[tuple[dict, T]]:
    """Return each case's description with the result of `make`; if a training diverges, do as `run_table`.

    What is `needed` is made before on the workers that $RAY names, if it does.
    """
    cases, made, error = list(cases), [], None
    failures = make_all((recipe for _, recipe in cases), needed=needed)
    for words, recipe in tqdm(cases, desc="recipes", unit="recipe", leave=False):
        try:
            if recipe.id in failures:
                raise failures[recipe.id]
            made.append((words, make(recipe)))
        except TrainingDiverged as diverged:
            if whole:
                raise
            error = diverged
            warnings.warn(f"left out: {recipe.label} (seed {recipe.seed}), {diverged}", stacklevel=3)
    if error is not None and not made:
        raise error
    return made


def validated(name: str, cases: Iterable[tuple[dict, Recipe]]) -> pd.DataFrame:
    """Return one row per case, kept as a table: its description, and `accuracy` (0..1) on the validation images.

    Cases whose training diverged are left out, as in `run_table`.
    """
    cases = list(cases)
    dataset = cases[0][1].dataset

    def rows() -> list[dict]:
        data = load(dataset)
        found = without_diverged(lambda recipe: evaluate(make(recipe), data, data.validation), cases)
        return [words | {"accuracy": accuracy} for words, accuracy in found]

    asked = [{"words": words, "recipe": recipe.id} for words, recipe in cases]
    return kept_table(name, dataset, rows, {"cases": asked})
