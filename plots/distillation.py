"""Charts of distillation: students by their size, and the two numbers of the loss."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from plots.style import MARKERS, PALETTE


def accuracy_by_parameters(table: pd.DataFrame, reported: pd.DataFrame | None = None, ax: Axes | None = None) -> Axes:
    """Test accuracy (%) with its 95 % interval against parameters (thousands, log axis), with and without a teacher.

    `table`: columns `student`, `teacher` ("yes", "no" or "ensemble") and those of a record; `reported`, hollow marks:
    columns `parameters_k` and `accuracy` (%).
    """
    ax = ax or plt.gca()
    names = {"yes": "with a teacher", "no": "without", "ensemble": "ensemble"}
    for index, (teacher, group) in enumerate(table.groupby("teacher", sort=False)):
        y = 100 * group["accuracy"]
        bars = [y - 100 * group["accuracy_low"], 100 * group["accuracy_high"] - y]
        style = {"color": PALETTE[index], "fmt": MARKERS[index], "capsize": 3}
        ax.errorbar(group["parameters"] / 1e3, y, yerr=bars, label=names[teacher], **style)
    best = table.sort_values("accuracy").drop_duplicates("student", keep="last")
    for row in best.itertuples():
        at = (row.parameters / 1e3, 100 * row.accuracy_high)
        ax.annotate(row.student, at, xytext=(0, 4), textcoords="offset points", ha="center", fontsize=8)
    if reported is not None:
        style = {"markerfacecolor": "none", "color": "0.45", "label": "published study (as reported)"}
        ax.plot(reported["parameters_k"].astype(float), reported["accuracy"], "o", **style)
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.margins(x=0.15, y=0.15)
    ax.set_xlabel("parameters (thousands, log scale)")
    ax.set_ylabel("test accuracy (%), 95 % interval")
    ax.legend(fontsize=9, loc="lower right")
    return ax


def loss_heat_map(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Validation accuracy (%) of a student: a row a temperature, a column an alpha."""
    ax = ax or plt.subplots(figsize=(5, 3.2))[1]
    grid = 100 * table.pivot(index="temperature", columns="alpha", values="accuracy")
    image = ax.imshow(grid, aspect="auto", cmap="cividis")
    for row, column in np.ndindex(grid.shape):
        shade = "black" if image.norm(grid.iloc[row, column]) > 0.6 else "white"
        ax.text(column, row, f"{grid.iloc[row, column]:.2f}", ha="center", va="center", color=shade)
    ax.set_xticks(range(len(grid.columns)), [f"{value:g}" for value in grid.columns])
    ax.set_yticks(range(len(grid)), [f"{value:g}" for value in grid.index])
    ax.set_xlabel("alpha, the teacher's share of the loss")
    ax.set_ylabel("temperature")
    ax.grid(visible=False)
    ax.figure.colorbar(image, ax=ax, label="validation accuracy (%)")
    return ax
