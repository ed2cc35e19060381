"""Charts that compare methods."""

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from plots.names import write_names
from plots.style import REPORTED, log_scale, method_style


def accuracy_against_size(records: pd.DataFrame, reported: pd.DataFrame | None = None, ax: Axes | None = None) -> Axes:
    """Plot test accuracy (%) with its 95 % interval against archive size (MB, log axis), one mark per record.

    `reported`, drawn as hollow marks, has the columns `label`, `accuracy` (%) and `size_mb`.
    """
    ax, named = ax or plt.gca(), []
    for kinds, group in records.groupby("kinds", sort=False):
        method, color, marker = method_style(str(kinds))
        for index, (model, points) in enumerate(group.groupby("model")):
            y = 100 * points["accuracy"]
            bars = [y - 100 * points["accuracy_low"], 100 * points["accuracy_high"] - y]
            size = points["archive_bytes"] / 1e6
            name = method if index == 0 else None
            ax.errorbar(size, y, yerr=bars, fmt=marker, color=color, capsize=3, markersize=7, label=name)
            named.append((model, size.iloc[0], y.max(), "black"))
    if reported is not None:
        ax.plot(reported["size_mb"], reported["accuracy"], **REPORTED)
    log_scale(ax)
    ax.margins(x=0.2, y=0.12)
    ax.set_xlabel("archive, from which the model is restored (MB, log scale)")
    ax.set_ylabel("test accuracy (%), 95 % interval")
    ax.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=3)
    write_names(named, ax)
    return ax


def latency_bars(records: pd.DataFrame, setting: str = "batch1_one_thread", ax: Axes | None = None) -> Axes:
    """Plot the median latency (ms) of each record in ONNX Runtime, a whisker to the 95th percentile, and the speedup.

    `setting` is `batch1`, `batch64`, or either with `_one_thread`.
    """
    ax = ax or plt.gca()
    medians = records[f"latency_ms.{setting}.median"].to_numpy()
    p95 = records[f"latency_ms.{setting}.p95"].to_numpy()
    positions = np.arange(len(records))
    colors = [method_style(kinds)[1] for kinds in records["kinds"]]
    ax.barh(positions, medians, xerr=[np.zeros_like(medians), p95 - medians], color=colors, capsize=3, height=0.6)
    speedups = records[f"latency_ms.{setting}.speedup"]
    for position, end, median, speedup in zip(positions, p95, medians, speedups, strict=True):
        ax.text(float(end), float(position), f"  {median:.2f} ms, {speedup:.2f}x", va="center", fontsize=9)
    ax.set_yticks(positions, [words.replace(", ", "\n", 1) for words in records["words"]])
    ax.invert_yaxis()
    ax.grid(axis="y", visible=False)
    ax.set_xlim(0, 1.35 * p95.max())
    batch, _, threads = setting.partition("_")
    ax.set_xlabel(f"latency (ms), {batch.replace('batch', 'batch ')}, {'one thread' if threads else 'all threads'}")
    return ax
