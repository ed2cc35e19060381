"""Charts of pruning: accuracy against sparsity, what each layer bears, and where the weights are left."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from plots.style import MARKERS, PALETTE


def accuracy_by_sparsity(table: pd.DataFrame, base_accuracy: float, ax: Axes | None = None) -> Axes:
    """Accuracy (%) against sparsity (%), a line a criterion: the mean over seeds, a bar of one standard deviation.

    `table`: columns `criterion`, `sparsity` (0..1), `accuracy` (0..1) and, for bars, several seeds.
    """
    ax = ax or plt.gca()
    for index, (criterion, group) in enumerate(table.groupby("criterion", sort=False)):
        points = 100 * group.groupby("sparsity")["accuracy"].agg(["mean", "std"])
        style = {"color": PALETTE[index % len(PALETTE)], "marker": MARKERS[index % len(MARKERS)]}
        line = "-" if index < len(PALETTE) else "--"
        x = 100 * points.index.to_numpy() + 0.25 * (index - table["criterion"].nunique() / 2) / 10
        ax.errorbar(
            x, points["mean"], yerr=points["std"].fillna(0), linestyle=line, capsize=2, label=criterion, **style
        )
    ax.axhline(100 * base_accuracy, color="0.3", linestyle="--", linewidth=1, label="not pruned")
    ax.set_xlabel("weights that are zero (%)")
    ax.set_ylabel("accuracy (%)")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def sensitivity_heat_map(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Accuracy (%) with one layer alone pruned: a row a layer, a column a sparsity.

    `table`: columns `layer`, `sparsity` (0..1) and `accuracy` (0..1).
    """
    ax = ax or plt.subplots(figsize=(6, 0.6 + 0.27 * table["layer"].nunique()))[1]
    grid = 100 * table.pivot(index="layer", columns="sparsity", values="accuracy").loc[table["layer"].drop_duplicates()]
    image = ax.imshow(grid, aspect="auto", cmap="cividis")
    for row, column in np.ndindex(grid.shape):
        shade = "black" if image.norm(grid.iloc[row, column]) > 0.6 else "white"
        ax.text(column, row, f"{grid.iloc[row, column]:.1f}", ha="center", va="center", fontsize=7, color=shade)
    ax.set_xticks(range(len(grid.columns)), [f"{100 * value:.0f}" for value in grid.columns])
    ax.set_yticks(range(len(grid)), grid.index, fontsize=8)
    ax.set_xlabel("weights of this layer that are zero (%)")
    ax.grid(visible=False)
    ax.figure.colorbar(image, ax=ax, label="accuracy (%)")
    return ax


def density_bars(tables: dict[str, pd.DataFrame], ax: Axes | None = None) -> Axes:
    """Weights left in each layer (%), log axis, a bar a criterion beside each other.

    `tables`: by criterion, with columns `layer` and `density` (0..1).
    """
    count = len(next(iter(tables.values())))
    ax = ax or plt.subplots(figsize=(7.5, 0.8 + 0.3 * count))[1]
    height = 0.8 / len(tables)
    for index, (criterion, table) in enumerate(tables.items()):
        positions = np.arange(count) + (index - (len(tables) - 1) / 2) * height
        ax.barh(positions, 100 * table["density"], height=height, color=PALETTE[index], label=criterion)
    ax.set_yticks(range(count), table["layer"], fontsize=8)
    ax.invert_yaxis()
    ax.set_xscale("log")
    ax.xaxis.set_major_formatter(lambda value, _: f"{value:g}")
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("weights left in the layer (%, log scale)")
    ax.legend(fontsize=9)
    return ax
