"""Charts of all records: accuracy against bytes, latency or MACs, and the model recommended for a budget."""

import math
from collections.abc import Mapping, Sequence
from itertools import repeat
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, clear_output, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from combination import Recommendation, pareto_front, recommend
from combination.recommendation import BUDGETS, LEAST
from plots.names import write_names
from plots.style import FAILED, PALETTE, REPORTED, Style, figure_of, log_scale, method_names, method_style
from report.comparison import compared

AXES = {
    "archive_bytes": ("archive (KB, log scale)", 1e3),
    "latency_ms.batch1_one_thread.median": ("latency at batch 1 on one thread (ms, log scale)", 1.0),
    "macs": ("multiply-accumulates an image (millions, log scale)", 1e6),
}
BELOW: Style = {"marker": "v", "linestyle": "none", "markerfacecolor": "none", "markersize": 6}
MIXED = "0.35"  # colour of a label for triangles of several methods
APART = 7  # distance in points from which on two triangles do not overlap
STEP = 0.003  # of a cost's logarithm: 0.7 %, less than the distance between models on a front


def pareto_chart(
    records: pd.DataFrame,
    column: str = "archive_bytes",
    *,
    reported: pd.DataFrame | None = None,
    budget: Mapping[str, float] | None = None,
    names: str | None = None,
    ax: Axes | None = None,
) -> Axes:
    """Plot test accuracy (%) with its 95 % interval against `column`, one mark per record, coloured by method.

    Args:
        records: with the column `kinds` (letters of the methods).
        column: one of `AXES`.
        reported: published figures, drawn as hollow marks: columns `accuracy` (%) and `x` (in the unit of the axis).
        budget: bounds as for `recommend`. Those of `column` and of validation accuracy are drawn as lines, the latter
            at the same test accuracy.
        names: the column, if any, with a short name of each record, written at its mark.

    The line joins the records on the Pareto front of validation accuracy and `column`. A record far below the best is a
    hollow mark at the lower edge, with its accuracy; the line to it leaves the chart.
    """
    ax = ax or plt.subplots(figsize=(9, 4.5))[1]
    _draw(records, column, reported, budget or {}, ax)
    ax.legend(*_legend_of([ax]), fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    figure_of(ax).draw_without_rendering()  # since a constrained layout moves the axes
    _write_accuracies(records, column, ax)
    if names is not None:
        unit = AXES[column][1]
        shown = records[~_below(records, ax.get_ylim()[0])]
        write_names(zip(shown[names], shown[column] / unit, 100 * shown["accuracy"], repeat("black")), ax)
    return ax


def budget_charts(records: pd.DataFrame, choice: Recommendation, budget: Mapping[str, float]) -> Figure:
    """Draw a `pareto_chart` for each bounded cost (for archive size if none is), with the recommended model ringed.

    `records` as there; `choice` is the result of `recommend` for `budget`.
    """
    columns = [BUDGETS[name][0] for name in budget if name not in LEAST] or ["archive_bytes"]
    size: Style = {"figsize": (5 * len(columns), 5.2), "layout": "constrained"}  # makes room for the legend
    figure, axes = plt.subplots(1, len(columns), sharey=True, squeeze=False, **size)
    for column, ax in zip(columns, axes[0], strict=True):
        _draw(records, column, None, budget, ax)
        _ring(records, choice, column, ax)
        ax.label_outer()
    place: Style = {"loc": "outside lower center", "ncols": 2 * len(columns)}
    figure.legend(*_legend_of(axes[0]), fontsize=9, **place)
    figure.draw_without_rendering()
    for column, ax in zip(columns, axes[0], strict=True):
        _write_accuracies(records, column, ax)
    return figure


def show_recommendation(records: pd.DataFrame, **budget: float) -> None:
    """Display, in a notebook, the model recommended for a budget: the reason, `budget_charts` and a table.

    Raises:
        BudgetError: see `recommend`.
    """
    choice = recommend(records, **budget)
    budget_charts(compared(records), choice, budget)
    plt.show()
    display(Markdown(choice.reason), choice.table())


def explore_budgets(records: pd.DataFrame) -> ipywidgets.VBox:
    """Return sliders for the budgets; once one is moved, `show_recommendation` is drawn below them.

    Nothing is drawn before that, to save time when notebooks are executed automatically. `interact` would draw at once,
    into an output whose messages can make such a run miss the end of the cell and hang.
    """
    sliders, drawing = budget_sliders(records), ipywidgets.Output()

    def redraw(change: object) -> None:
        with drawing:
            clear_output(wait=True)
            show_recommendation(records, **{name: slider.value for name, slider in sliders.items()})

    for slider in sliders.values():
        slider.observe(redraw, "value")
    return ipywidgets.VBox([*sliders.values(), drawing])


def budget_sliders(records: pd.DataFrame) -> dict[str, ipywidgets.FloatSlider | ipywidgets.FloatLogSlider]:
    """Return one slider per budget over the range of the records, each set to its loosest value.

    Sliders of costs are logarithmic: most models are small, and would share the first steps of a linear slider.
    """
    sliders = {}
    for name, (column, unit) in BUDGETS.items():
        if column not in records:
            continue
        low, high = records[column].min() / unit, records[column].max() / unit
        style = {"description": name, "continuous_update": False}  # the charts take a second to draw
        if name in LEAST:
            high = min(high, 0.999)  # a budget must be below 1
            span = {"min": low, "max": high, "step": 0.001, "readout_format": ".3f"}
            sliders[name] = ipywidgets.FloatSlider(low, **span, **style)
        else:
            end = _step_above(high)
            span = {"min": _step_above(low), "max": end, "step": STEP}
            span["readout_format"] = ".4r"  # without commas and exponents, to be typed
            sliders[name] = ipywidgets.FloatLogSlider(10**end, **span, **style)
    return sliders


def _step_above(value: float) -> float:
    """Return the logarithm rounded up to a whole step, so that the record of that value stays within the bound."""
    return STEP * math.ceil(math.log10(value) / STEP + 1e-6)


def _draw(
    records: pd.DataFrame,
    column: str,
    reported: pd.DataFrame | None,
    budget: Mapping[str, float],
    ax: Axes,
) -> None:
    """Draw all of `pareto_chart` except texts, which are placed last, when their positions are known."""
    title, unit = AXES[column]
    near = records["accuracy"] >= records["accuracy"].max() - FAILED  # the others would compress the axis
    _marks(records[near], column, unit, ax)
    if reported is not None:
        ax.plot(reported["x"], reported["accuracy"], **REPORTED, zorder=3)  # hollow, so that marks below stay visible
    window = ax.get_ylim()
    far = records[~near]
    below = _below(far, window[0])
    _marks(far.assign(accuracy=far["accuracy"].mask(below)), column, unit, ax)  # for their methods in the legend
    _triangles(far[below], column, unit, window[0], ax)
    front = records[pareto_front(records, (column,))].drop_duplicates([column, "validation_accuracy"])
    front = front.sort_values(column)
    style: Style = {"color": "0.35", "linewidth": 1, "zorder": 1}
    ax.plot(front[column] / unit, 100 * front["accuracy"], **style, label="front by validation")
    ax.set_ylim(window)
    _bounds(budget, column, unit, ax)
    log_scale(ax)
    ax.set_xlabel(title)
    ax.set_ylabel("test accuracy (%), 95 % interval")


def _marks(records: pd.DataFrame, column: str, unit: float, ax: Axes) -> None:
    for kinds, group in records.groupby("kinds", sort=False):
        name, color, marker = method_style(str(kinds))
        y = 100 * group["accuracy"]
        bars = [y - 100 * group["accuracy_low"], 100 * group["accuracy_high"] - y]
        style: Style = {"fmt": marker, "color": color, "markersize": 6, "capsize": 2, "elinewidth": 0.8, "label": name}
        ax.errorbar(group[column] / unit, y, yerr=bars, **style)


def _below(records: pd.DataFrame, floor: float) -> pd.Series:
    return 100 * records["accuracy"] < floor


def _triangles(records: pd.DataFrame, column: str, unit: float, floor: float, ax: Axes) -> None:
    if len(records):
        ax.plot([], [], **BELOW, color=MIXED, label="off the chart (accuracy as written)")
    for kinds, x in zip(records["kinds"], records[column] / unit, strict=True):
        ax.plot(x, floor, **BELOW, color=method_style(kinds)[1], clip_on=False)


def _bounds(budget: Mapping[str, float], column: str, unit: float, ax: Axes) -> None:
    """Draw one line per bound. An accuracy outside the window is left out: it would only appear in the legend."""
    style: Style = {"color": "0.2", "linewidth": 1.2}
    low, high = ax.get_ylim()
    for name, value in budget.items():
        bounded, own = BUDGETS[name]
        if name == "accuracy" and low <= 100 * value <= high:
            ax.axhline(100 * value, **style, linestyle="--", label="bound of validation accuracy")
        elif bounded == column:
            ax.axvline(value * own / unit, **style, linestyle=":", label="bound of the cost")  # the axis says which


def _ring(records: pd.DataFrame, choice: Recommendation, column: str, ax: Axes) -> None:
    """Draw a ring around the model's mark. With several seeds, it is around their mean, which is marked too."""
    floor = ax.get_ylim()[0]
    place = choice.model[column] / AXES[column][1], max(100 * choice.model["accuracy"], floor)
    style: Style = {"markeredgewidth": 1.5, "color": PALETTE[6], "linestyle": "none", "clip_on": False}
    ax.plot(*place, marker="o", markersize=16, markerfacecolor="none", **style, label=choice.name)
    seeds = (records["label"] == choice.model["label"]).sum()
    if seeds > 1:
        ax.plot(*place, marker="+", markersize=9, **style, label=f"mean of its {seeds} seeds")


def _legend_of(axes: Sequence[Axes]) -> tuple[list, list[str]]:
    """Return the handles and labels of all axes without duplicates: methods first, as declared, the rest as drawn."""
    named: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    declared = method_names()
    order = sorted(named, key=lambda label: declared.index(label) if label in declared else len(declared))
    return [named[label] for label in order], order


def _write_accuracies(records: pd.DataFrame, column: str, ax: Axes) -> None:
    """Write the accuracies of the triangles, one text for all that overlap, without covering marks.

    Call it last, like `write_names`, when the axes are at their final position.
    """
    floor, unit = ax.get_ylim()[0], AXES[column][1]
    below = records[_below(records, floor)].dropna(subset=column).sort_values(column)
    if below.empty:
        return
    pixels = ax.transData.transform([(value / unit, floor) for value in below[column]])[:, 0]
    steps = np.diff(pixels, prepend=-np.inf) * 72 / ax.figure.dpi
    named = []
    for _, group in below.groupby((steps > APART).cumsum()):
        percents = sorted({round(100 * accuracy) for accuracy in group["accuracy"]})
        colors = {method_style(kinds)[1] for kinds in group["kinds"]}
        middle = math.sqrt(group[column].iloc[0] * group[column].iloc[-1]) / unit  # on a logarithmic axis
        color = colors.pop() if len(colors) == 1 else MIXED
        named.append((f"{', '.join(map(str, percents))} %", middle, floor, color))
    write_names(named, ax)
