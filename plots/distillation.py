"""Charts of distillation: accuracy by size, differences in errors, and the hyperparameters of the loss."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from plots.names import write_names
from plots.style import MARKERS, PALETTE, REPORTED, Style, legible_on, log_scale


def accuracy_by_parameters(
    table: pd.DataFrame, by: str, reported: pd.DataFrame | None = None, ax: Axes | None = None
) -> Axes:
    """Plot test accuracy (%) with its 95 % interval against parameters (thousands, log axis), naming each student once.

    `table`: columns `student` (the name), `by` (for colours and the legend) and those of a record. `reported`, drawn as
    hollow marks: columns `label` (the name), `parameters_k` and `accuracy` (%).
    """
    ax = ax or plt.gca()
    for index, (kind, group) in enumerate(table.groupby(by, sort=False)):
        y = 100 * group["accuracy"]
        bars = [y - 100 * group["accuracy_low"], 100 * group["accuracy_high"] - y]
        style: Style = {"color": PALETTE[index], "fmt": MARKERS[index], "capsize": 3, "elinewidth": 0.8}
        ax.errorbar(group["parameters"] / 1e3, y, yerr=bars, label=kind, **style)
    best = table.sort_values("accuracy").drop_duplicates("student", keep="last")
    named = [best["student"], best["parameters"] / 1e3, 100 * best["accuracy"], ["black"] * len(best)]
    if reported is not None:
        ax.plot(reported["parameters_k"].astype(float), reported["accuracy"], **REPORTED)
        others = (
            reported["label"],
            reported["parameters_k"],
            reported["accuracy"],
            [REPORTED["color"]] * len(reported),
        )
        named = [[*own, *other] for own, other in zip(named, others, strict=True)]
    log_scale(ax)
    ax.margins(x=0.15, y=0.15)
    ax.set_xlabel("parameters (thousands, log scale)")
    ax.set_ylabel("test accuracy (%), 95 % interval")
    handles, labels = ax.get_legend_handles_labels()
    order = sorted(range(len(labels)), key=lambda index: labels[index].startswith("published"))
    below: Style = {"loc": "upper center", "bbox_to_anchor": (0.5, -0.16), "ncols": 2}
    ax.legend([handles[index] for index in order], [labels[index] for index in order], fontsize=9, **below)
    write_names(zip(*named, strict=True), ax)
    return ax


def confusion_difference(table: pd.DataFrame, one: str, other: str, ax: Axes | None = None) -> Axes:
    """Plot how many more images of a class (row) `other` assigns to a class (column) than `one` does.

    `table`: columns model, actual, answer, images. Blue marks improvements: more on the diagonal, fewer off it.
    """
    ax = ax or plt.subplots(figsize=(6.2, 5.2))[1]
    order = list(table["actual"].unique())
    counts = {
        model: group.pivot(index="actual", columns="answer", values="images").loc[order, order]
        for model, group in table.groupby("model")
    }
    difference = (counts[other] - counts[one]).to_numpy()
    gain = np.where(np.eye(len(order), dtype=bool), difference, -difference)
    largest = max(1, np.abs(gain).max())
    image = ax.imshow(gain, cmap="RdBu", vmin=-largest, vmax=largest)
    for row, column in zip(*difference.nonzero(), strict=True):
        shade = "white" if abs(gain[row, column]) > 0.6 * largest else "black"
        ax.text(column, row, f"{difference[row, column]:+d}", ha="center", va="center", color=shade, fontsize=9)
    slanted: Style = {"rotation": 45, "ha": "right", "rotation_mode": "anchor"} if max(map(len, order)) > 2 else {}
    ax.set_xticks(range(len(order)), order, **slanted)
    ax.set_yticks(range(len(order)), order)
    ax.set_xlabel("answer")
    ax.set_ylabel("class")
    ax.grid(visible=False)
    ax.figure.colorbar(image, ax=ax, label="images more for the better", ticks=MaxNLocator(integer=True))
    return ax


def loss_heat_map(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot a student's validation accuracy (%): one row per temperature, one column per alpha."""
    ax = ax or plt.subplots(figsize=(5, 3.2))[1]
    grid = 100 * table.pivot(index="temperature", columns="alpha", values="accuracy")
    image = ax.imshow(grid, aspect="auto", cmap="cividis")
    for row, column in np.ndindex(grid.shape):
        shade = legible_on(image, grid.iloc[row, column])
        ax.text(column, row, f"{grid.iloc[row, column]:.2f}", ha="center", va="center", color=shade)
    ax.set_xticks(range(len(grid.columns)), [f"{value:.3g}" for value in grid.columns])
    ax.set_yticks(range(len(grid)), [f"{value:g}" for value in grid.index])
    ax.set_xlabel("alpha, the teacher's share of the loss")
    ax.set_ylabel("temperature")
    ax.grid(visible=False)
    ax.figure.colorbar(image, ax=ax, label="validation accuracy (%)")
    return ax
