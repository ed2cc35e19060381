"""Charts of quantization: accuracy by calibration and by bits, sensitivity and noise of layers, and latency."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from plots.style import FAILED, PALETTE, Style, legible_on, line_style


def accuracy_by_calibration(
    table: pd.DataFrame, base_accuracy: float, interval: tuple[float, float], ax: Axes | None = None
) -> Axes:
    """Plot validation accuracy (%) of static INT8 against calibration images, one line per method; FP32 base dashed.

    `table`: columns `calibration`, `images`, `weights` and `validation_accuracy`. `interval`: the 95 % interval of
    `base_accuracy` (0..1), drawn shaded; differences within it may be due to chance.
    """
    ax = ax or plt.gca()
    for index, ((method, weights), group) in enumerate(table.groupby(["calibration", "weights"], sort=False)):
        group = group.sort_values("images")
        name = method if weights == "per channel" else f"{method}, weights {weights}"
        ax.plot(group["images"], 100 * group["validation_accuracy"], label=name, **line_style(index))
    ax.axhline(100 * base_accuracy, color="0.3", linestyle="--", linewidth=1, label="FP32")
    ax.axhspan(*np.multiply(100, interval), color="0.5", alpha=0.15, linewidth=0, label="its 95 % interval")
    ax.set_xscale("log", base=2)
    ax.set_xticks(sorted(table["images"].unique()), [str(n) for n in sorted(table["images"].unique())])
    ax.set_xlabel("calibration images (log scale)")
    ax.set_ylabel("validation accuracy (%)")
    ax.legend(fontsize=9, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def accuracy_by_bits(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot test accuracy (%), averaged over seeds, against the bits of the weights, rounded only and trained.

    `table`: columns `bits` (32 for float, 2 to 8, "ternary"), `how` ("float", "static", "trained"), `accuracy` and
    its interval. Bars are the 95 % interval of a single seed. Accuracies far below the base are off the chart, and are
    written at its lower edge.
    """
    ax = ax or plt.gca()
    present = set(table["bits"]) - {32}
    order = sorted(present - {"ternary"}, reverse=True) + sorted(present & {"ternary"})
    for index, how in enumerate(("static", "trained")):
        group = table[table["how"] == how].groupby("bits")[["accuracy", "accuracy_low", "accuracy_high"]].mean()
        tried = [b for b in order if b in group.index]
        rows = 100 * group.loc[tried]
        bars = [rows["accuracy"] - rows["accuracy_low"], rows["accuracy_high"] - rows["accuracy"]]
        x = np.array([order.index(b) for b in tried]) + 0.06 * (index - 0.5)
        name = {"static": "rounded only", "trained": "quantization-aware training"}[how]
        ax.errorbar(x, rows["accuracy"], yerr=bars, capsize=3, label=name, **line_style(index))
    base = 100 * table.loc[table["how"] == "float", "accuracy"].mean()
    ax.axhline(base, color="0.3", linestyle="--", linewidth=1, label="FP32")
    near = table["accuracy"] >= base / 100 - FAILED  # the others would compress the axis
    low, high = (100 * table.loc[near, column] for column in ("accuracy_low", "accuracy_high"))
    room = 0.15 * (high.max() - low.min())
    floor = low.min() - room
    ax.set_ylim(floor, high.max() + room)
    for bits, accuracy in table[~near].groupby("bits")["accuracy"].mean().items():
        place = order.index(bits), floor
        ax.annotate(f"{100 * accuracy:.0f} %", place, (0, 6), textcoords="offset points", ha="center", fontsize=9)
    ax.set_xticks(range(len(order)), [str(b) for b in order])
    ax.set_xlabel("bits of the inner layers' weights (activations 8 bits)")
    ax.set_ylabel("test accuracy (%), 95 % interval")
    ax.legend(fontsize=9, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=3)
    return ax


def layer_heat_map(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the cross-entropy added by rounding a single layer's weights: one row per layer, one column per bits.

    `table`: columns `layer`, `bits` and `added_loss`.
    """
    ax = ax or plt.subplots(figsize=(5.5, 0.6 + 0.27 * table["layer"].nunique()))[1]
    grid = table.pivot(index="layer", columns="bits", values="added_loss").loc[table["layer"].drop_duplicates()]
    grid = grid[sorted(grid.columns, reverse=True)]
    image = ax.imshow(grid.clip(lower=1e-4), aspect="auto", cmap="cividis", norm="log")
    for row, column in np.ndindex(grid.shape):
        value = grid.iloc[row, column]
        shade = legible_on(image, max(value, 1e-4))
        ax.text(column, row, f"{value:+.3f}", ha="center", va="center", fontsize=7, color=shade)
    ax.set_xticks(range(len(grid.columns)), grid.columns)
    ax.set_yticks(range(len(grid)), grid.index, fontsize=8)
    ax.set_xlabel("bits of this layer alone")
    ax.grid(visible=False)
    ax.figure.colorbar(image, ax=ax, label="added cross-entropy (log scale)")
    return ax


def noise_by_layer(table: pd.DataFrame) -> Figure:
    """Plot the signal-to-noise ratio (dB) of every weight and every activation, from the first layer to the last.

    `table`: columns `layer`, `what` ("weights" or "activations") and `db`. Exact values have no mark.
    """
    rows = table.groupby("what")["layer"].size()
    figure, axes = plt.subplots(1, len(rows), figsize=(9, 0.8 + 0.2 * rows.max()), sharex=True, squeeze=False)
    for index, ((what, group), ax) in enumerate(zip(table.groupby("what", sort=False), axes[0], strict=True)):
        decibels = group["db"].where(np.isfinite(group["db"]))
        ax.plot(decibels, range(len(group)), **line_style(index))
        ax.set_yticks(range(len(group)), group["layer"], fontsize=8)
        ax.set_ylim(len(group) - 0.5, -0.5)
        ax.set_xlabel(f"{what}: signal-to-noise ratio (dB)")
    ax.set_xlim(0)
    return figure


def latency_by_path(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the median latency (ms) of each path to an INT8 file, with its speedup over FP32 and integer operators.

    `table`: columns `path`, `latency_ms`, `speedup`, `integer_operators` and `operators`.
    """
    ax = ax or plt.subplots(figsize=(7.5, 1.2 + 0.4 * len(table)))[1]
    whole = table["integer_operators"] == table["operators"]
    none = table["integer_operators"] == 0
    kinds = (
        (whole, PALETTE[0], "all of them on integers"),
        (~whole & ~none, PALETTE[5], "some of them"),
        (none, PALETTE[4], "none of them"),
    )
    positions = np.arange(len(table))
    for chosen, color, name in kinds:
        if chosen.any():
            ax.barh(positions[chosen], table.loc[chosen, "latency_ms"], color=color, height=0.6, label=name)
    for position, row in enumerate(table.itertuples()):
        text = f" {row.latency_ms:.2f} ms, {row.speedup:.2f}x, {row.integer_operators} of {row.operators} integer"
        ax.text(row.latency_ms, position, text, va="center", fontsize=9)
    ax.set_yticks(range(len(table)), table["path"], fontsize=9)
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlim(0, 1.75 * table["latency_ms"].max())
    ax.set_xlabel("latency (ms), batch 1, all threads")
    below: Style = {"loc": "upper center", "bbox_to_anchor": (0.3, -0.13), "ncols": 3, "title_fontsize": 9}
    ax.legend(fontsize=9, title="convolutions and additions:", **below)
    return ax
