"""Formats accuracies, summarizes records and settings as tables, and exports tables."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from experiment.store import figures_folder, slug
from recipe import Recipe
from storage import atomic_write


def percent(record: Mapping) -> str:
    """Return a record's test accuracy with its 95 % interval: `89.09 % (88.46 - 89.69)`."""
    return f"{100 * record['accuracy']:.2f} % ({interval(record)})"


def interval(record: Mapping) -> str:
    """Return the 95 % interval of a record's test accuracy, in %: `88.46 - 89.69`."""
    return f"{100 * record['accuracy_low']:.2f} - {100 * record['accuracy_high']:.2f}"


def summary(records: pd.DataFrame) -> pd.DataFrame:
    """Return one row per recipe, averaged over seeds: accuracy in % with its 95 % interval, size, MACs, latency.

    The interval is that of a single seed: it covers the choice of test images, not that of the seed. `spread` is the
    standard deviation over seeds, in points; empty for one seed.
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


def settings(*recipes: Recipe) -> pd.DataFrame:
    """Return the settings of recipes: one column per step, one row per setting that any of the steps has.

    Steps that several recipes share at their start have one column. Each setting is a field of the step.
    """
    columns = {}
    for recipe in recipes:
        for place, step in enumerate(recipe.steps, start=1):
            values = {field.name: getattr(step, field.name) for field in dataclasses.fields(step)}
            columns[recipe.prefix(place).id] = pd.Series(values, dtype=object, name=step.name)
    table = pd.concat(columns.values(), axis="columns").map(_setting)
    return table[(table != "").any(axis="columns")]


def _setting(value: Any) -> Any:
    if isinstance(value, Recipe):
        return value.words
    if isinstance(value, tuple):
        return ", ".join(str(_setting(item)) for item in value)
    return "" if value is None or value != value else value


def export_table(table: pd.DataFrame, name: str) -> list[Path]:
    """Write a table as CSV and as LaTeX into results/figures; return the paths."""
    csv, latex = (figures_folder() / f"{slug(name)}.{ending}" for ending in ("csv", "tex"))
    with atomic_write(csv) as temporary:
        table.to_csv(temporary, index=False)
    escape = str.maketrans({sign: rf"\{sign}" for sign in "_%#&"} | {">": "$>$"})
    escaped = table.rename(columns=lambda column: column.translate(escape))
    escaped = escaped.map(lambda value: value.translate(escape) if isinstance(value, str) else value)
    with atomic_write(latex) as temporary:
        temporary.write_text(escaped.to_latex(index=False, float_format="%.6g", na_rep=""))
    return [csv, latex]
