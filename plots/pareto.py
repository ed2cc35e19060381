"""Every record in one chart: accuracy against bytes, latency or MACs; and what is recommended for a budget in it."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import ipywidgets
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from IPython.display import Markdown, clear_output, display
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from combination import Recommendation, pareto_front, recommend
from combination.recommendation import BUDGETS
from plots.names import write_names
from plots.style import FAILED, PALETTE, REPORTED, Style, figure_of, log_scale, method_names, method_style
from report.comparison import compared

AXES = {
    "archive_bytes": ("archive (KB, log scale)", 1e3),
    "latency_ms.batch1_one_thread.median": ("latency at batch 1 on one thread (ms, log scale)", 1.0),
    "macs": ("multiply-accumulates an image (millions, log scale)", 1e6),
}
BELOW: Style = {"marker": "v", "linestyle": "none", "markerfacecolor": "none", "markersize": 6}
MIXED = "0.35"  # of what stands for triangles of several methods
APART = 7  # points from triangle to triangle, with their outlines: from there on both are seen whole
STEP = 0.003  # of a cost's logarithm: 0.7 %, less than from one model of the fronts to the next


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
        records: with the column `kinds` (letters of the methods).
        column: one of `AXES`.
        reported: hollow marks for figures of others: columns `accuracy` (%) and `x` (in the unit of the axis).
        budget: bounds as `recommend` takes them; drawn in are that of `column`, and that of validation accuracy at as
            much test accuracy.

    The front joins the records that no other beats on validation accuracy and `column`: validation chooses. A record
    far below the best is a hollow mark at the lower edge, with its accuracy; a front that it is on leaves the chart.
    """
    ax = ax or plt.subplots(figsize=(9, 4.5))[1]
    _draw(records, column, reported, budget or {}, ax)
    ax.legend(*_legend_of([ax]), fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    figure_of(ax).draw_without_rendering()  # a constrained layout moves the axes
    _write_accuracies(records, column, ax)
    return ax


def budget_charts(records: pd.DataFrame, choice: Recommendation, budget: Mapping[str, float]) -> Figure:
    """A chart like `pareto_chart` for each bound of a cost (or one of the archives), what is recommended ringed.

    `records` as there; `choice` is what `recommend` answers to `budget`.
    """
    columns = [BUDGETS[name][0] for name in budget if name != "accuracy"] or ["archive_bytes"]
    size: Style = {"figsize": (5 * len(columns), 5.2), "layout": "constrained"}  # which makes room for the legend
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
    """In a notebook: what is recommended for a budget and why, in `budget_charts` and as a table.

    Raises:
        BudgetError: see `recommend`.
    """
    choice = recommend(records, **budget)
    budget_charts(compared(records), choice, budget)
    plt.show()
    display(Markdown(choice.reason), choice.table())


def explore_budgets(records: pd.DataFrame) -> ipywidgets.VBox:
    """Sliders with what is recommended for them below, once one has been moved: `show_recommendation`, drawn anew.

    Nothing is drawn before that: a notebook that is run without a reader would only wait for it. `interact` would draw
    at once, into an output whose messages can make such a run miss the end of its cell, and wait for ever.
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
    """A slider a budget over what the records have, each at its loosest.

    Those of costs are logarithmic: most models are small, and would share the first steps of a linear one.
    """
    sliders = {}
    for name, (column, unit) in BUDGETS.items():
        low, high = records[column].min() / unit, records[column].max() / unit
        style = {"description": name, "continuous_update": False}  # charts take a second: once it is let go
        if name == "accuracy":
            high = min(high, 0.999)  # nothing is asked to be right every time
            span = {"min": low, "max": high, "step": 0.001, "readout_format": ".3f"}
            sliders[name] = ipywidgets.FloatSlider(low, **span, **style)
        else:
            end = _step_above(high)
            span = {"min": _step_above(low), "max": end, "step": STEP}
            span["readout_format"] = ".4r"  # as one would type it: no commas, no exponent
            sliders[name] = ipywidgets.FloatLogSlider(10**end, **span, **style)
    return sliders


def _step_above(value: float) -> float:
    """The first whole step above the logarithm: a rounded bound would shut out the record that it was taken from."""
    return STEP * math.ceil(math.log10(value) / STEP + 1e-6)


def _draw(
    records: pd.DataFrame,
    column: str,
    reported: pd.DataFrame | None,
    budget: Mapping[str, float],
    ax: Axes,
) -> None:
    """All of `pareto_chart` but its words: those are placed where they hide nothing, once all is drawn."""
    title, unit = AXES[column]
    near = records["accuracy"] >= records["accuracy"].max() - FAILED  # the others would squeeze these together
    _marks(records[near], column, unit, ax)
    if reported is not None:
        ax.plot(reported["x"], reported["accuracy"], **REPORTED, zorder=3)  # hollow: a mark under one is still seen
    window = ax.get_ylim()
    far = records[~near]
    below = _below(far, window[0])
    _marks(far.assign(accuracy=far["accuracy"].mask(below)), column, unit, ax)  # the legend has their methods too
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
    """A line a bound. One of accuracy outside the window would only be in the legend."""
    style: Style = {"color": "0.2", "linewidth": 1.2}
    low, high = ax.get_ylim()
    for name, value in budget.items():
        bounded, own = BUDGETS[name]
        if name == "accuracy" and low <= 100 * value <= high:
            ax.axhline(100 * value, **style, linestyle="--", label="bound of validation accuracy")
        elif bounded == column:
            ax.axvline(value * own / unit, **style, linestyle=":", label="bound of the cost")  # the axis says which


def _ring(records: pd.DataFrame, choice: Recommendation, column: str, ax: Axes) -> None:
    """Around the model's mark; several seeds have one each, and the ring is around their mean, marked too."""
    floor = ax.get_ylim()[0]
    place = choice.model[column] / AXES[column][1], max(100 * choice.model["accuracy"], floor)
    style: Style = {"markeredgewidth": 1.5, "color": PALETTE[6], "linestyle": "none", "clip_on": False}
    ax.plot(*place, marker="o", markersize=16, markerfacecolor="none", **style, label=choice.name)
    seeds = (records["label"] == choice.model["label"]).sum()
    if seeds > 1:
        ax.plot(*place, marker="+", markersize=9, **style, label=f"mean of its {seeds} seeds")


def _legend_of(axes: Sequence[Axes]) -> tuple[list, list[str]]:
    """Handles and labels of all axes, each label once: methods first, as declared, and the rest as drawn."""
    named: dict[str, Any] = {}
    for ax in axes:
        handles, labels = ax.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    declared = method_names()
    order = sorted(named, key=lambda label: declared.index(label) if label in declared else len(declared))
    return [named[label] for label in order], order


def _write_accuracies(records: pd.DataFrame, column: str, ax: Axes) -> None:
    """How accurate the triangles are: a word for all that overlap, where it hides no mark.

    Call it last, as `write_names`, and of axes that stand where they will stay.
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
        middle = math.sqrt(group[column].iloc[0] * group[column].iloc[-1]) / unit  # of a logarithmic axis
        color = colors.pop() if len(colors) == 1 else MIXED
        named.append((f"{', '.join(map(str, percents))} %", middle, floor, color))
    write_names(named, ax)
