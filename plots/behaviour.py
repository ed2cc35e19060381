"""Charts of what compression forgets: robustness, calibration, classes and single images."""

from collections.abc import Sequence
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots.style import Style, legible_on, log_scale, method_names, method_style
from report.forgetting import CHAIN, METHODS

LETTERS = {name: letter for letter, name in METHODS.items()} | {CHAIN: "DPQ"}
FEWEST = 10  # images in a bin of a calibration curve, for a mark


def robustness_charts(table: pd.DataFrame) -> Figure:
    """Plot right answers to corrupted images, in points to one network, against archive size and clean accuracy.

    table: of `report.forgetting.beside_largest`. Bars are 95 % intervals, paired by image with that network. Of two
    marks above each other on the right, equally accurate, the lower one forgets more.
    """
    size: Style = {"figsize": (11, 4.6), "layout": "constrained"}
    figure, (left, right) = plt.subplots(1, 2, sharey=True, **size)
    for method, rows in _by_method(table):
        name, color, marker = method_style(LETTERS[method])
        bars = [rows["points"] - rows["low"], rows["high"] - rows["points"]]
        style: Style = {"fmt": marker, "color": color, "markersize": 6, "capsize": 2, "elinewidth": 0.8, "label": name}
        left.errorbar(rows["archive_bytes"] / 1e3, rows["points"], yerr=bars, **style)
        right.errorbar(rows["clean points"], rows["points"], yerr=bars, **style)
    log_scale(left)
    for ax in (left, right):
        ax.axhline(0, color="0.35", linewidth=1, zorder=1)
    left.set_xlabel("archive (KB, log scale)")
    right.set_xlabel("test accuracy, points to the same network")
    left.set_ylabel(f"accuracy on corrupted images,\npoints to {table.attrs['largest']} (paired 95 % interval)")
    figure.legend(*left.get_legend_handles_labels(), loc="outside lower center", ncols=6, fontsize=9)
    return figure


def _by_method(table: pd.DataFrame) -> list[tuple[str, pd.DataFrame]]:
    """Return the rows of each method, in the order of legends."""
    order = method_names()
    names = sorted(table["method"].unique(), key=lambda name: order.index(method_style(LETTERS[name])[0]))
    return [(name, table[table["method"] == name]) for name in names]


def calibration_curves(table: pd.DataFrame) -> Figure:
    """Plot the share of right answers (%) against the top probability (%), before and after temperature scaling.

    table: rows of `report.forgetting.observed`, one line each. A line on the diagonal can be believed; below it, a
    model is too sure. Bins of fewer than `FEWEST` images have no mark.
    """
    size: Style = {"figsize": (10, 4.6), "layout": "constrained"}
    figure, axes = plt.subplots(1, 2, sharey=True, **size)
    for ax, ending, title in zip(axes, ("", "_scaled"), ("as trained", "after temperature scaling"), strict=True):
        ax.plot([0, 100], [0, 100], color="0.6", linewidth=1, linestyle="--")
        for method, rows in _by_method(table):
            for row in rows.to_dict("records"):
                _, color, marker = method_style(LETTERS[method])
                x, y = _curve(row[f"bins{ending}"])
                error = f"ECE {100 * row[f'ece{ending}']:.1f} %"
                ax.plot(x, y, color=color, marker=marker, markersize=5, label=f"{row['words']}: {error}")
        ax.set_title(title)
        ax.set_xlabel("top probability (%)")
        ax.legend(fontsize=8, loc="upper left")
    axes[0].set_ylabel("right answers (%)")
    return figure


def _curve(bins: dict[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    count, right, confidence = (np.array(bins[name], float) for name in ("count", "right", "confidence"))
    shown = count >= FEWEST
    return 100 * confidence[shown], 100 * right[shown] / count[shown]


def class_losses_chart(losses: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the points lost by method and class as a heat map; a star where a class loses more or less than the others.

    losses: of `report.forgetting.class_losses`.
    """
    ax = ax or plt.subplots(figsize=(9, 0.6 * losses["method"].nunique() + 1.4))[1]
    points = losses.pivot_table(index="method", columns="class", values="points", sort=False)
    beyond = (losses["low"] > 0) | (losses["high"] < 0)
    starred = losses.assign(beyond=beyond).pivot_table(index="method", columns="class", values="beyond", sort=False)
    image = ax.imshow(points, cmap="viridis", aspect="auto")
    for (row, column), value in np.ndenumerate(points.to_numpy()):
        text = f"{value:.1f}{'*' if starred.iloc[row, column] else ''}"
        ax.text(column, row, text, ha="center", va="center", fontsize=9, color=legible_on(image, value))
    ax.set_xticks(range(len(points.columns)), points.columns, rotation=30, ha="right")
    ax.set_yticks(range(len(points)), points.index)
    ax.grid(visible=False)
    ax.figure.colorbar(image, ax=ax, label="points of accuracy lost")
    return ax


def forgotten_titles(forgotten: pd.DataFrame, labels: np.ndarray, classes: Sequence[str]) -> list[str]:
    """Return, for images of `report.forgetting.forgotten_images`, what they are, and what most models take them for."""
    return [
        f"{classes[labels[image]]}, forgotten by\n{100 * share:.0f} %: {classes[answer]}"
        for image, share, answer in zip(forgotten["image"], forgotten["share"], forgotten["answer"], strict=True)
    ]


def picture_sheet(pictures: np.ndarray, titles: Sequence[str]) -> Figure:
    """Draw images `[N, C, H, W]` uint8 in rows of six, each with its title."""
    columns, rows = min(6, len(pictures)), -(-len(pictures) // 6)
    size: Style = {"figsize": (1.9 * columns, 2.3 * rows), "layout": "constrained"}
    figure, axes = plt.subplots(rows, columns, squeeze=False, **size)
    for ax in axes.flat:
        ax.axis("off")
    for ax, picture, title in zip(axes.flat, pictures, titles, strict=False):
        grey = picture.shape[0] == 1
        ax.imshow(picture[0] if grey else picture.transpose(1, 2, 0), cmap="gray" if grey else None)
        ax.set_title(title, fontsize=8)
    return figure
