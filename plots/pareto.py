"""Every record in one chart: accuracy against bytes, latency or MACs, with the Pareto front."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

from plots.style import PALETTE, REPORTED

AXES = {
    "archive_bytes": ("archive (KB, log scale)", 1e3),
    "latency_ms.batch1.median": ("latency at batch 1 (ms, log scale)", 1.0),
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
BELOW = 0.25  # of accuracy under the best: from there on a record is a mark at the chart's edge


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
        records: with the columns `kinds` (letters of the methods, from `combination.takeaways.compared`).
        column: one of `AXES`.
        reported: hollow marks for figures of others: columns `accuracy` (%) and `x` (in the unit of the axis).
        budget: lines to draw in: `x`, in the unit of the axis, and `accuracy`, 0..1.

    The front joins the records that no other beats on validation accuracy and `column`: validation chooses. A record
    far below the best is a hollow mark at the lower edge, with its accuracy.
    """
    ax = ax or plt.gca()
    title, unit = AXES[column]
    failed = records["accuracy"] < records["accuracy"].max() - BELOW  # they would squeeze all others together
    _marks(records[~failed], column, unit, ax)
    front = _front(records[~failed], column)
    ax.plot(front[column] / unit, 100 * front["accuracy"], color="0.35", linewidth=1, zorder=1, label="Pareto front")
    if reported is not None:
        ax.plot(reported["x"], reported["accuracy"], **REPORTED)
    _marks_at_the_edge(records[failed], column, unit, ax)
    for name, draw in (("x", ax.axvline), ("accuracy", ax.axhline)):
        if budget and name in budget:
            draw(budget[name] * (100 if name == "accuracy" else 1), color="0.2", linestyle=":", linewidth=1.2)
    _log_scale(ax)
    ax.set_xlabel(title)
    ax.set_ylabel("test accuracy (%), 95 % interval")
    handles, labels = ax.get_legend_handles_labels()
    unique = dict(zip(labels, handles, strict=True))  # chains of several kinds share one name
    ax.legend(unique.values(), unique.keys(), loc="best", fontsize=9)
    return ax


def _marks(records: pd.DataFrame, column: str, unit: float, ax: Axes) -> None:
    for kinds, group in records.groupby("kinds", sort=False):
        name, color, marker = GROUPS.get(kinds, CHAIN)
        y = 100 * group["accuracy"]
        bars = [y - 100 * group["accuracy_low"], 100 * group["accuracy_high"] - y]
        style = {"fmt": marker, "color": color, "markersize": 6, "capsize": 2, "elinewidth": 0.8, "label": name}
        ax.errorbar(group[column] / unit, y, yerr=bars, **style)


def _marks_at_the_edge(records: pd.DataFrame, column: str, unit: float, ax: Axes) -> None:
    floor = ax.get_ylim()[0]
    for index, row in enumerate(records.sort_values(column).to_dict("records")):
        color, place = GROUPS.get(row["kinds"], CHAIN)[1], (row[column] / unit, floor)
        ax.plot(*place, "v", color=color, markerfacecolor="none", clip_on=False)
        height = 6 + 10 * (index % 2)  # neighbours' words would overlap
        style = {"xytext": (0, height), "textcoords": "offset points", "ha": "center", "fontsize": 8, "color": color}
        ax.annotate(f"{100 * row['accuracy']:.0f} %", place, **style)
    ax.set_ylim(bottom=floor)


def _log_scale(ax: Axes) -> None:
    """Ticks at 1, 2 and 5, or where there are many decades at 1 and 3, in plain numbers."""
    ax.set_xscale("log")
    low, high = ax.get_xlim()
    ax.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 300 * low else (1, 3)))
    ax.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,g}"))
    ax.xaxis.set_minor_formatter(NullFormatter())


def _front(records: pd.DataFrame, column: str) -> pd.DataFrame:
    """From the left: the records that validate better than all that cost no more."""
    ordered = records.sort_values([column, "validation_accuracy"], ascending=[True, False])
    best_before = ordered["validation_accuracy"].cummax().shift(fill_value=-1.0)
    return ordered[ordered["validation_accuracy"] > best_before]
