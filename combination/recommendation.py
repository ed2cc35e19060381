"""Finds the best model for a budget: `recommend(load_records("cifar10"), size_kb=100, latency_ms=1)`."""

import contextlib
import math
import os
import reprlib
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Real

import numpy as np
import pandas as pd

from experiment.records import archive_path
from experiment.store import ROOT
from recipe import CompressionError

# Column and unit of each budget. Models are selected by validation accuracy; test accuracy is only reported.
BUDGETS = {
    "accuracy": ("validation_accuracy", 1.0),
    "size_kb": ("archive_bytes", 1e3),
    "latency_ms": ("latency_ms.batch1_one_thread.median", 1.0),
    "macs": ("macs", 1.0),
    "worst_class": ("validation_worst_class_accuracy", 1.0),
    "robustness": ("validation_robustness", 1.0),
}
COLUMNS = {name: column for name, (column, _) in BUDGETS.items()}
LEAST = ("accuracy", "worst_class", "robustness")  # shares of right answers, of which a budget is the least
COSTS = tuple(column for name, column in COLUMNS.items() if name not in LEAST)
ALWAYS = (COLUMNS["accuracy"], *COSTS)  # what every complete record has
BEST = {
    "accuracy": "most accurate on validation",
    "size_kb": "smallest archive",
    "latency_ms": "fastest",
    "macs": "fewest multiply-accumulates",
}

AT_LEAST = {
    "accuracy": "validation accuracy",
    "worst_class": "validation accuracy of the worst class",
    "robustness": "accuracy on corrupted validation images",
}


class BudgetError(CompressionError):
    """A budget is invalid, or there are no records to choose from."""


@dataclass(frozen=True)
class Recommendation:
    """The selected record, and why.

    `model` and `next_better` are rows of `candidates`. The latter is the cheapest of the more accurate ones by the
    bounded costs (by archive size if no cost is bounded), or None if nothing is more accurate. `missed` names the
    budgets that `model` exceeds; it is empty if any record keeps all of them.
    """

    model: pd.Series
    missed: tuple[str, ...]
    next_better: pd.Series | None
    reason: str

    @property
    def name(self) -> str:
        """Either "recommended" or, if the model misses a budget, "nearest"."""
        return "nearest" if self.missed else "recommended"

    def table(self) -> pd.DataFrame:
        """Return one row for the selected model and one for the next better."""
        rows = {self.name: self.model} | ({} if self.next_better is None else {"next better": self.next_better})
        behaviour = {
            f"{words} %": [round(100 * row[column], 2) for row in rows.values()]
            for column, words in (("worst_class_accuracy", "worst class"), ("robustness", "corrupted"))
            if column in self.model
        }
        return pd.DataFrame(
            {
                "": list(rows),
                "model": [row["words"] for row in rows.values()],
                "validation %": [round(100 * row["validation_accuracy"], 2) for row in rows.values()],
                "accuracy %": [round(100 * row["accuracy"], 2) for row in rows.values()],
                **behaviour,
                "archive KB": [round(row["archive_bytes"] / 1e3, 1) for row in rows.values()],
                "latency ms": [round(row["latency_ms.batch1_one_thread.median"], 3) for row in rows.values()],
                "MACs M": [round(row["macs"] / 1e6, 2) for row in rows.values()],
                "record": [row["id"] for row in rows.values()],
                "file": [_file(row) for row in rows.values()],
            }
        )


def recommend(
    records: pd.DataFrame,
    *,
    accuracy: float | None = None,
    size_kb: float | None = None,
    latency_ms: float | None = None,
    macs: float | None = None,
    worst_class: float | None = None,
    robustness: float | None = None,
    **unknown: float,
) -> Recommendation:
    """Return the Pareto-optimal model that keeps every budget given.

    Args:
        records: of one data set, as returned by `load_records`. Seeds of a recipe count as one model, with their mean.
        accuracy: least validation accuracy (0..1).
        size_kb: largest archive, in kilobytes (1,000 bytes).
        latency_ms: largest median latency at batch 1 on one thread.
        macs: most multiply-accumulates per image.
        worst_class: least validation accuracy (0..1) of the class with the least.
        robustness: least accuracy (0..1) on corrupted validation images. These two need the columns of
            `experiment.behaviour.with_behaviour`; records without them are left out.

    If no accuracy is asked for, or it and all costs are bounded, this is the most accurate model within the budgets.
    Else it is the smallest archive; the fastest if the archive is bounded; the fewest MACs if both are. If no model
    keeps all budgets, it is the one with the smallest factor by which its worst budget is exceeded (for shares of right
    answers, the factor is that of the errors).

    Raises:
        BudgetError: there is no budget, one is unknown or impossible, or there are no records or several data sets.
    """
    if unknown:
        raise BudgetError(f"unknown budget {', '.join(unknown)}: use {', '.join(BUDGETS)}")
    given = {"accuracy": accuracy, "size_kb": size_kb, "latency_ms": latency_ms, "macs": macs}
    given |= {"worst_class": worst_class, "robustness": robustness}
    budget = {name: _number(name, value) for name, value in given.items() if value is not None}
    _check(budget)
    table = candidates(records, tuple(COLUMNS[name] for name in budget))
    excess = _excess(table, budget)
    kept = excess.max(axis=1) <= 1
    front = pareto_front(table[kept] if kept.any() else table).reindex(table.index, fill_value=False)
    if kept.any():
        objective = _objective(budget)
        order = [COLUMNS[objective], COLUMNS["size_kb"]]  # of equal models the smallest
        chosen = table[front].sort_values(order, ascending=[objective != "accuracy", True]).iloc[0]
        missed: tuple[str, ...] = ()
        reason = f"The {BEST[objective]} of {kept.sum()} that keep {_say(budget)}."
    else:
        worst = excess.max(axis=1)
        nearest = (worst + ~front * 1e-9).idxmin()  # of equals, one that no other beats
        chosen = table.loc[nearest]
        missed = tuple(excess.columns[excess.loc[nearest] > 1])
        reason = f"No model keeps {_say(budget)}; this one is nearest. " + _binding(excess)
    next_better = _next_better(table, chosen, [column for name, column in COLUMNS.items() if name in budget])
    return Recommendation(chosen, missed, next_better, reason + _price(chosen, next_better))


def candidates(records: pd.DataFrame, bounded: Sequence[str] = ()) -> pd.DataFrame:
    """Return one row per completely measured recipe: numbers are means over seeds, words and `id` of the best seed.

    Recipes that lack one of the columns `bounded` in all seeds are left out.
    """
    if not isinstance(records, pd.DataFrame):
        raise BudgetError(f"records must be a table as returned by load_records, not {reprlib.repr(records)}")
    known = {*ALWAYS, *bounded} <= set(records.columns)
    whole = records.dropna(subset=list(ALWAYS)) if known else records.iloc[:0]
    if not {*bounded} <= {*ALWAYS} and (whole.empty or whole.dropna(subset=list(bounded)).empty):
        raise BudgetError(
            "no record has its worst class and robustness measured: run `python -m experiment behaviour DATASET`, and "
            "give with_behaviour(load_records(DATASET), DATASET)"
        )
    if whole.empty:
        raise BudgetError("no measured records to choose from: run the notebooks (`make study`) first")
    if "dataset" in whole and whole["dataset"].nunique() > 1:
        names = " and ".join(sorted(whole["dataset"].unique()))
        raise BudgetError(f"records of {names} cannot be compared: give those of one data set")
    whole = whole.drop_duplicates("id")  # concatenated tables may share records
    best = whole.sort_values("validation_accuracy", ascending=False).drop_duplicates("label").set_index("label")
    numbers = whole.select_dtypes("number").columns.difference(["seed"])
    means = whole.groupby("label")[list(numbers)].mean()
    return best.drop(columns=means.columns).join(means).dropna(subset=list(bounded)).reset_index()


def pareto_front(table: pd.DataFrame, costs: Sequence[str] = COSTS) -> pd.Series:
    """Return which rows are on the Pareto front of validation accuracy and `costs`.

    `costs` are columns for which less is better. A row with a missing value is not on the front.
    """
    figures = table[[COLUMNS["accuracy"], *costs]].to_numpy(float) * (
        [-1] + [1] * len(costs)
    )  # accuracy: more is better
    no_worse = (figures[:, None] <= figures[None]).all(axis=2)
    better = (figures[:, None] < figures[None]).any(axis=2)
    return pd.Series(~(no_worse & better).any(axis=0) & ~np.isnan(figures).any(axis=1), index=table.index)


def _check(budget: dict[str, float]) -> None:
    if not budget:
        raise BudgetError(f"no budget given: bound at least one of {', '.join(BUDGETS)}")
    for name, value in budget.items():
        if name in LEAST and not 0 <= value < 1:
            raise BudgetError(f"{name} must be from 0 to below 1, not {value:g}: write 0.9 for 90 %")
        if name not in LEAST and not value > 0:
            raise BudgetError(f"{name} must be above 0, not {value:g}: nothing could keep it")


def _number(name: str, value: float) -> float:
    number = math.nan
    if isinstance(value, Real) and not isinstance(value, bool):
        with contextlib.suppress(OverflowError):
            number = float(value)
    if not math.isfinite(number):
        raise BudgetError(f"{name} must be a finite number in the unit in its name, not {reprlib.repr(value)}")
    return number


def _next_better(table: pd.DataFrame, chosen: pd.Series, bounded: Sequence[str]) -> pd.Series | None:
    """Return the more accurate model whose bounded costs grow by the least factor, taking the worst of them."""
    better = table[table["validation_accuracy"] > chosen["validation_accuracy"]]
    if better.empty:
        return None
    costs = [column for column in bounded if column in COSTS] or [COLUMNS["size_kb"]]
    factor = (better[costs] / chosen[costs].astype(float)).max(axis=1)
    order = better.assign(factor=factor).sort_values(["factor", "validation_accuracy"], ascending=[True, False])
    return better.loc[order.index[0]]


def _file(row: pd.Series) -> str:
    """Return the path of a model's archive, relative to the repository; a large one may not be there."""
    if "weights_sha256" not in row:
        return ""
    path = archive_path(row)
    return os.path.relpath(path, ROOT) if path.exists() else "not here: run its recipe"


def _excess(table: pd.DataFrame, budget: dict[str, float]) -> pd.DataFrame:
    """Return the factor by which each row exceeds each budget; at most 1 if it keeps it."""
    factors = {}
    for name, value in budget.items():
        column, unit = BUDGETS[name]
        factors[name] = (1 - table[column]) / (1 - value) if name in LEAST else table[column] / unit / value
    return pd.DataFrame(factors)


def _objective(budget: dict[str, float]) -> str:
    if "accuracy" not in budget:
        return "accuracy"
    return next((name for name in ("size_kb", "latency_ms", "macs") if name not in budget), "accuracy")


def _binding(excess: pd.DataFrame) -> str:
    """Name the budgets that prevent a solution: without one of them, some model would keep the rest."""
    alone = [name for name in excess if (excess.drop(columns=name) <= 1).all(axis=1).any()]
    if len(excess.columns) == 1:
        return f"What binds: {excess.columns[0]}."
    if alone:
        return f"What binds: {' or '.join(alone)}; without it the rest can be kept."
    return "No single budget binds: several would have to give."


def _price(chosen: pd.Series, better: pd.Series | None) -> str:
    if better is None:
        return " Nothing measured is more accurate."
    points = 100 * (better["validation_accuracy"] - chosen["validation_accuracy"])
    size, time = (better[column] / chosen[column] for column in (COLUMNS["size_kb"], COLUMNS["latency_ms"]))
    return (
        f" Next better: {better['words']}, +{points:.2f} validation points for {size:.2f}x the bytes and "
        f"{time:.2f}x the time."
    )


def _say(budget: dict[str, float]) -> str:
    return ", ".join(
        f"{AT_LEAST[name]} >= {value:g}" if name in LEAST else f"{name} <= {value:g}" for name, value in budget.items()
    )
