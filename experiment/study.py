"""What the notebooks share: the base recipes, the table of records, and the published study's figures."""

import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
from tqdm.auto import tqdm

from data import load
from experiment.records import kept_table, told_apart
from experiment.runner import make, run
from experiment.store import ROOT, figures_folder, slug
from recipe import Recipe, check_dataset
from storage import atomic_write
from training import Train, TrainingDiverged, evaluate

T = TypeVar("T")
# Epochs that a laptop bears; every notebook starts from these, so that what one has trained the next reads back.
TRAINING: dict[str | tuple[str, str], dict[str, Any]] = {
    ("cifar10", "resnet18"): {"epochs": 15, "learning_rate": 0.1, "start": {"epochs": 15}},  # an hour each on two cores
    "cifar10": {"epochs": 40, "learning_rate": 0.1, "label_smoothing": 0.0},  # networks too small to overfit
    "digits": {"epochs": 10, "batch_size": 64},
    "folder": {"epochs": 20, "batch_size": 32},
}


def base_recipe(dataset: str, model: str, seed: int = 0) -> Recipe:
    """The FP32 network that a study of `dataset` compresses."""
    check_dataset(dataset)
    fields = TRAINING.get((dataset, model)) or TRAINING[dataset.partition(":")[0]]
    start = Recipe(dataset, (Train(model, **fields["start"]),), seed) if "start" in fields else None
    return Recipe(dataset, (Train(model, **fields | {"start": start}),), seed)


def batch_size(dataset: str) -> int:
    """Images in a batch of every training of a study: few where there are few in all."""
    return TRAINING.get(dataset.partition(":")[0], {}).get("batch_size", 128)


def run_table(cases: Iterable[tuple[dict, Recipe]], *, whole: bool = False) -> pd.DataFrame:
    """A row a case: some words about it, and then its record.

    A case whose training diverged is left out with a warning, so that a study goes on; with `whole`, where every row
    is needed, that is an error.

    Raises:
        TrainingDiverged: the training of a case, if `whole`; or that of every case.
    """
    made = without_diverged(run, cases, whole)
    records = told_apart([record for _, record in made])
    return pd.concat([pd.DataFrame([words for words, _ in made]), records], axis=1)


def without_diverged(
    make: Callable[[Recipe], T], cases: Iterable[tuple[dict, Recipe]], whole: bool = False
) -> list[tuple[dict, T]]:
    """The words of each case with what is made of its recipe; see `run_table` for those whose training diverged."""
    made, error = [], None
    for words, recipe in tqdm(list(cases), desc="recipes", unit="recipe", leave=False):
        try:
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
    """A row a case, kept as a table: some words about it, and the `accuracy` (0..1) on the images that choose.

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


def percent(record: Mapping) -> str:
    """A record's test accuracy with its 95 % interval: `89.09 % (88.46 - 89.69)`."""
    return f"{100 * record['accuracy']:.2f} % ({interval(record)})"


def interval(record: Mapping) -> str:
    """The 95 % interval of a record's test accuracy, in %: `88.46 - 89.69`."""
    return f"{100 * record['accuracy_low']:.2f} - {100 * record['accuracy_high']:.2f}"


def summary(records: pd.DataFrame) -> pd.DataFrame:
    """A row a recipe, seeds averaged: accuracy in % with its 95 % interval, size, MACs, latency at batch 1.

    The interval is that of one seed: it covers the choice of test images, not that
    of the seed, whose spread stands beside it (standard deviation in points; empty for one seed).
    """
    rows = []
    for label, group in records.groupby("label", sort=False):
        first = group.iloc[0]
        rows.append(
            {
                "recipe": label,
                "seeds": len(group),
                "accuracy %": round(100 * group["accuracy"].mean(), 2),
                "interval": interval(group[["accuracy_low", "accuracy_high"]].mean()),
                "spread": round(100 * group["accuracy"].std(), 2),
                "parameters K": round(first["parameters"] / 1e3, 1),
                "MACs M": round(first["macs"] / 1e6, 1),
                "size MB": round(first["onnx_bytes"] / 1e6, 3),
                "x smaller": round(first["base_onnx_bytes"] / first["onnx_bytes"], 2),
                "archive KB": round(first["archive_bytes"] / 1e3, 1),
                "x smaller as archive": round(first["base_onnx_bytes"] / first["archive_bytes"], 1),
                "latency ms": round(group["latency_ms.batch1_one_thread.median"].median(), 3),
                "x faster": round(group["latency_ms.batch1_one_thread.speedup"].median(), 2),
                "x faster than eager": round(group["latency_ms.batch1_one_thread.speedup_over_eager"].median(), 1),
                "agrees with PyTorch %": round(100 * group["agreement"].mean(), 2),
                "integer convolutions": f"{first['operators.integer_convolutions']}/{first['operators.convolutions']}",
                "integer additions": f"{first['operators.integer_additions']}/{first['operators.additions']}",
            }
        )
    return pd.DataFrame(rows)


def seeds_in_words(count: int) -> str:
    """`one seed`, `mean of 3 seeds`."""
    return "one seed" if count == 1 else f"mean of {count} seeds"


def export_table(table: pd.DataFrame, name: str) -> list[Path]:
    """Write a table as CSV and as LaTeX into results/figures; returns the paths."""
    csv, latex = (figures_folder() / f"{slug(name)}.{ending}" for ending in ("csv", "tex"))
    with atomic_write(csv) as temporary:
        table.to_csv(temporary, index=False)
    escape = str.maketrans({sign: rf"\{sign}" for sign in "_%#&"} | {">": "$>$"})
    escaped = table.rename(columns=lambda column: column.translate(escape))
    escaped = escaped.map(lambda value: value.translate(escape) if isinstance(value, str) else value)
    with atomic_write(latex) as temporary:
        temporary.write_text(escaped.to_latex(index=False, float_format="%.6g", na_rep=""))
    return [csv, latex]


def published_study() -> pd.DataFrame:
    """The published study's figures, as reported: technique, label, accuracy (%), size_mb, latency_ms, parameters_k.

    Shettiwar and Shankar, "An Analysis of Compression Methods for Deep Learning Networks", a course project.
    """
    return pd.read_csv(ROOT / "results" / "published_study.csv")


def beside_published(records: pd.DataFrame, labels: Iterable[str]) -> pd.DataFrame:
    """Our records, a row each, beside the figures that the published study reports under `labels`, as many.

    Its parameters are those that are not zero; its sizes are of files that it does not describe, or counted from
    those parameters. Columns that it leaves out altogether are left out, and so are records without such a label.
    """
    study = published_study().set_index("label")
    named = pd.Series(list(labels), index=records.index, dtype=object)
    known = named.isin(study.index)
    ours, reported = records[known].reset_index(drop=True), study.loc[named[known]].reset_index()
    pairs = {
        "accuracy %": (100 * ours["accuracy"], reported["accuracy"]),
        "parameters K": (ours["nonzero_parameters"] / 1e3, reported["parameters_k"]),
        "file MB": (ours["onnx_bytes"] / 1e6, reported["size_mb"]),
        "latency ms": (ours["latency_ms.batch1_one_thread.median"], reported["latency_ms"]),
    }
    table = pd.DataFrame({"recipe": ours["label"], "its name there": reported["label"]})
    for name, (own, other) in pairs.items():
        table[name], table[f"reported {name.rpartition(' ')[2]}"] = own, other.astype(float)
        if name == "file MB":
            table["archive MB"] = ours["archive_bytes"] / 1e6
    return table.dropna(axis="columns", how="all").round(3)
