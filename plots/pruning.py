"""Charts of pruning: accuracy and speed by sparsity, sensitivity and density of layers, and the layer graph."""

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Arc

from plots.style import PALETTE, Style, legible_on, line_style, log_scale


def accuracy_by_sparsity(table: pd.DataFrame, base_accuracy: float, ax: Axes | None = None) -> Axes:
    """Plot accuracy (%) against sparsity (%), one line per criterion: mean and standard deviation over seeds.

    `table`: columns `criterion`, `sparsity` and `accuracy` (0..1). For records of a single seed, bars are the 95 %
    intervals.
    """
    ax = ax or plt.gca()
    count = table["criterion"].nunique()
    barred = "accuracy_low" in table or table.groupby(["criterion", "sparsity"]).size().max() > 1
    apart = 0.6 * np.ptp(table["sparsity"]) if barred else 0  # so that bars do not overlap
    for index, (criterion, group) in enumerate(table.groupby("criterion", sort=False)):
        points = 100 * group.groupby("sparsity")["accuracy"].agg(["mean", "std"])
        bars = points["std"].fillna(0).to_numpy()
        if "accuracy_low" in table and group["sparsity"].is_unique:
            ends = 100 * group.set_index("sparsity").loc[points.index, ["accuracy_low", "accuracy_high"]]
            bars = ends.sub(points["mean"], axis="index").abs().to_numpy().T
        x = 100 * points.index + (index - (count - 1) / 2) * apart
        ax.errorbar(x, points["mean"], yerr=bars, capsize=2, label=criterion, **line_style(index))
    ax.axhline(100 * base_accuracy, color="0.3", linestyle="--", linewidth=1, label="not pruned")
    ax.set_xlabel("weights that are zero (%)")
    ax.set_ylabel("accuracy (%)")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def sensitivity_heat_map(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the validation accuracy (%) with one layer pruned: one row per layer, one column per sparsity.

    `table`: columns `layer`, `sparsity` (0..1) and `accuracy` (0..1).
    """
    ax = ax or plt.subplots(figsize=(6, 0.6 + 0.27 * table["layer"].nunique()))[1]
    grid = 100 * table.pivot(index="layer", columns="sparsity", values="accuracy").loc[table["layer"].drop_duplicates()]
    image = ax.imshow(grid, aspect="auto", cmap="cividis")
    for row, column in np.ndindex(grid.shape):
        shade = legible_on(image, grid.iloc[row, column])
        ax.text(column, row, f"{grid.iloc[row, column]:.1f}", ha="center", va="center", fontsize=7, color=shade)
    ax.set_xticks(range(len(grid.columns)), [f"{100 * value:.0f}" for value in grid.columns])
    ax.set_yticks(range(len(grid)), grid.index, fontsize=8)
    ax.set_xlabel("weights of this layer that are zero (%)")
    ax.grid(visible=False)
    ax.figure.colorbar(image, ax=ax, label="validation accuracy (%)")
    return ax


def density_bars(tables: dict[str, pd.DataFrame], ax: Axes | None = None) -> Axes:
    """Plot the weights left in each layer (%, log axis), one mark per criterion.

    `tables`: by criterion, with columns `layer` and `density` (0..1).
    """
    count = len(next(iter(tables.values())))
    ax = ax or plt.subplots(figsize=(7.5, 0.8 + 0.3 * count))[1]
    for index, (criterion, table) in enumerate(tables.items()):
        style = line_style(index) | {"linestyle": "none"}
        ax.plot(100 * table["density"], np.arange(count), label=criterion, **style)
    ax.set_yticks(range(count), table["layer"], fontsize=8)
    ax.invert_yaxis()
    log_scale(ax)
    ax.grid(axis="y", visible=False)
    ax.set_xlabel("weights left in the layer (%, log scale)")
    ax.legend(fontsize=9)
    return ax


def accuracy_and_speed(table: pd.DataFrame, base: Mapping) -> Figure:
    """Plot test accuracy (%) with its interval, and speed, against the parameters left; one colour per kind.

    `table`: columns `kind`, `nonzero_parameters`, `accuracy`, `accuracy_low`, `accuracy_high` (0..1) and `speedup` over
    the FP32 base. `base`: the record of the unpruned model.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(10, 4.3))
    kinds = table.groupby("kind", sort=False)
    for index, (kind, group) in enumerate(kinds):
        group = group.sort_values("nonzero_parameters")
        apart = 1.04 ** (index - (len(kinds) - 1) / 2)  # so that bars do not overlap
        kept = apart * group["nonzero_parameters"] / 1e3
        accuracy = 100 * group[["accuracy", "accuracy_low", "accuracy_high"]].to_numpy().T
        bars = [accuracy[0] - accuracy[1], accuracy[2] - accuracy[0]]
        left.errorbar(kept, accuracy[0], yerr=bars, capsize=2, linewidth=1, label=kind, **line_style(index))
        right.plot(kept, group["speedup"], linewidth=1, **line_style(index))
    for ax, value in ((left, 100 * base["accuracy"]), (right, 1)):
        star: Style = {"marker": "*", "markersize": 12, "color": "0.3", "linestyle": "none"}
        ax.plot(base["parameters"] / 1e3, value, **star, label="not pruned")
        log_scale(ax)
        ax.set_xlabel("parameters that are not zero (thousands, log scale)")
    left.set_ylabel("test accuracy (%), 95 % interval")
    right.set_ylabel("speed, batch 64 (x the FP32 base)")
    right.set_ylim(0)
    figure.legend(*left.get_legend_handles_labels(), fontsize=9, loc="outside lower center", ncols=4)
    return figure


def sparse_against_dense(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the speedup of each layer's CSR product over the dense one against density (%), on logarithmic axes.

    `table`: columns `layer`, `rows`, `inner`, `density` (0..1), `dense_ms` and `csr_ms`.
    """
    ax = ax or plt.gca()
    for index, (layer, group) in enumerate(table.groupby("layer", sort=False)):
        first = group.iloc[0]
        label = f"{layer} ({first['rows']} x {first['inner']})"
        ax.plot(100 * group["density"], group["dense_ms"] / group["csr_ms"], label=label, **line_style(index))
    ax.axhline(1, color="0.3", linestyle="--", linewidth=1, label="dense")
    log_scale(ax, "xy")
    ax.set_xlabel("weights that are not zero (%, log scale)")
    ax.set_ylabel("speed of the CSR product (times dense)")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def layer_graph_arcs(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the layer graph: layers from top to bottom, arcs to the layers that they feed, rings for identity inputs.

    `table`: columns `layer`, `fed by` and `feeds`, names separated by commas.
    """
    ax = ax or plt.subplots(figsize=(6, 0.6 + 0.24 * len(table)))[1]
    rows = {name: index for index, name in enumerate(table["layer"])}
    for name, feeds in zip(table["layer"], table["feeds"], strict=True):
        for other in filter(rows.__contains__, feeds.split(", ")):
            start, end = rows[name], rows[other]
            color = "0.4" if end - start == 1 else PALETTE[0]
            span = end - start
            ax.add_patch(Arc((0, (start + end) / 2), 0.35 * span, span, theta1=-90, theta2=90, color=color))
    joined = ["identity" in fed.split(", ") for fed in table["fed by"]]
    ax.scatter(np.zeros(len(rows)), range(len(rows)), s=14, color="0.2", zorder=3)
    ax.scatter(
        np.zeros(sum(joined)), np.flatnonzero(joined), s=90, facecolors="none", edgecolors=PALETTE[1], zorder=3,
        label="fed by the identity too",
    )  # fmt: skip
    ax.set_yticks(range(len(rows)), rows, fontsize=8)
    ax.set_ylim(len(rows) - 0.3, -0.7)
    longest = max((arc.width for arc in ax.patches if isinstance(arc, Arc)), default=1)
    ax.set_xlim(-0.05 * longest, 0.55 * longest)
    ax.xaxis.set_visible(False)
    ax.grid(visible=False)
    ax.spines[["top", "right", "bottom", "left"]].set_visible(False)
    ax.legend(fontsize=8, loc="lower right")
    return ax
