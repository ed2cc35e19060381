"""Every record in one chart: accuracy against bytes, latency or MACs; and what is recommended for a budget in it."""

from collections.abc import Mapping

import ipywidgets
import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import Markdown, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from combination import Recommendation, compared, pareto_front, recommend
from combination.recommend import BUDGETS
from plots.style import FAILED, PALETTE, REPORTED, log_scale

AXES = {
    "archive_bytes": ("archive (KB, log scale)", 1e3),
    "latency_ms.batch1_one_thread.median": ("latency at batch 1 on one thread (ms, log scale)", 1.0),
    "macs": ("multiply-accumulates an image (millions, log scale)", 1e6),
}
GROUPS = {
    "": ("FP32", PALETTE[6], "o"),
    "Q": ("quantized", PALETTE[1], "s"),
    "P": ("pruned", PALETTE[2], "^"),
    "D": ("distilled", PALETTE[0], "D"),
    "E": ("ensemble", PALETTE[4], "P"),
    "J": ("joint training", PALETTE[5], "v"),
}
CHAIN = ("chain of methods", PALETTE[3], "X")
BELOW = {"marker": "v", "linestyle": "none", "markerfacecolor": "none"}


def pareto_chart(
    records: pd.DataFrame,
    column: str = "archive_bytes",
    *,
    reported: pd.DataFrame | None = None,
    budget: Mapping[str, float] | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Test accuracy (%) with its 95 % interval against `column`, a mark a record, coloured by method.

    Args:
        records: with the column `kinds` (letters of the methods, from `combination.compared`).
        column: one of `AXES`.
        reported: hollow marks for figures of others: columns `accuracy` (%) and `x` (in the unit of the axis).
        budget: bounds as `recommend` takes them; drawn in are that of `column`, and that of validation accuracy at as
            much test accuracy.

    The front joins the records that no other beats on validation accuracy and `column`: validation chooses. A record
    far below the best is a hollow mark at the lower edge, with its accuracy; a front that it is on leaves the chart.
    """
    ax = ax or plt.subplots(figsize=(9, 4.5))[1]
    title, unit = AXES[column]
    near = records["accuracy"] >= records["accuracy"].max() - FAILED  # the others would squeeze these together
    _marks(records[near], column, unit, ax)
    if reported is not None:
        ax.plot(reported["x"], reported["accuracy"], **REPORTED)
    window = ax.get_ylim()
    below = 100 * records["accuracy"] < window[0]
    _marks(records[~near & ~below], column, unit, ax)
    _marks_at_the_edge(records[below], column, unit, window[0], ax)
    front = records[pareto_front(records, (column,))].drop_duplicates([column, "validation_accuracy"])
    front = front.sort_values(column)
    style = {"color": "0.35", "linewidth": 1, "zorder": 1}
    ax.plot(front[column] / unit, 100 * front["accuracy"], **style, label="front by validation")
    ax.set_ylim(window)
    for name, value in (budget or {}).items():
        bounded, own = BUDGETS[name]
        if name == "accuracy":
            ax.axhline(100 * value, color="0.2", linestyle="--", linewidth=1.2, label="bound of validation accuracy")
        elif bounded == column:
            ax.axvline(value * own / unit, color="0.2", linestyle=":", linewidth=1.2, label=f"bound of {name}")
    log_scale(ax)
    ax.set_xlabel(title)
    ax.set_ylabel("test accuracy (%), 95 % interval")
    _legend(ax)
    return ax


def budget_charts(records: pd.DataFrame, choice: Recommendation, budget: Mapping[str, float]) -> Figure:
    """A `pareto_chart` beside another for each bound of a cost (or one of the archives), what is recommended ringed.

    `records` as there; `choice` is what `recommend` answers to `budget`.
    """
    columns = [BUDGETS[name][0] for name in budget if name != "accuracy"] or ["archive_bytes"]
    figure, axes = plt.subplots(1, len(columns), figsize=(9 * len(columns), 4.5), sharey=True, squeeze=False)
    for column, ax in zip(columns, axes[0], strict=True):
        pareto_chart(records, column, budget=budget, ax=ax)
        place = choice.model[column] / AXES[column][1], 100 * choice.model["accuracy"]
        ring = {"markersize": 16, "markerfacecolor": "none", "color": PALETTE[6], "markeredgewidth": 1.5}
        ax.plot(*place, "o", **ring, label=choice.name)
        _legend(ax)
    return figure


def show_recommendation(records: pd.DataFrame, **budget: float) -> None:
    """In a notebook: what is recommended for a budget and why, in `budget_charts` and as a table.

    Raises:
        BudgetError: see `recommend`.
    """
    choice = recommend(records, **budget)
    budget_charts(compared(records), choice, budget)
    plt.show()
    display(Markdown(choice.reason), choice.table())


def budget_sliders(records: pd.DataFrame) -> dict[str, ipywidgets.FloatSlider]:
    """A slider a budget over what the records have, each at its loosest: `interact(..., **budget_sliders(records))`."""
    sliders = {}
    for name, (column, unit) in BUDGETS.items():
        low, high = records[column].min() / unit, records[column].max() / unit
        if name == "accuracy":
            high = min(high, 0.999)  # nothing is asked to be right every time
        span = {"min": low, "max": high, "step": (high - low) / 100 or 1, "readout_format": ".3g"}
        sliders[name] = ipywidgets.FloatSlider(low if name == "accuracy" else high, description=name, **span)
    return sliders


def _legend(ax: Axes) -> None:
    handles, labels = ax.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))  # chains of several kinds share one name
    ax.legend(unique.values(), unique.keys(), fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))


def _marks(records: pd.DataFrame, column: str, unit: float, ax: Axes) -> None:
    for kinds, group in records.groupby("kinds", sort=False):
        name, color, marker = GROUPS.get(kinds, CHAIN)
        y = 100 * group["accuracy"]
        bars = [y - 100 * group["accuracy_low"], 100 * group["accuracy_high"] - y]
        style = {"fmt": marker, "color": color, "markersize": 6, "capsize": 2, "elinewidth": 0.8, "label": name}
        ax.errorbar(group[column] / unit, y, yerr=bars, **style)


def _marks_at_the_edge(records: pd.DataFrame, column: str, unit: float, floor: float, ax: Axes) -> None:
    if len(records):
        ax.plot([], [], **BELOW, color="0.35", label="below the chart, at so many %")  # each has its method's colour
    for index, row in enumerate(records.sort_values(column).to_dict("records")):
        color, place = GROUPS.get(row["kinds"], CHAIN)[1], (row[column] / unit, floor)
        ax.plot(*place, **BELOW, color=color, clip_on=False)
        height = 6 + 10 * (index % 3)  # neighbours' words would overlap
        style = {"xytext": (0, height), "textcoords": "offset points", "ha": "center", "fontsize": 8, "color": color}
        ax.annotate(f"{100 * row['accuracy']:.0f} %", place, **style)
