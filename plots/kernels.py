"""Charts of kernel measurements: the roofline, time against density, and bars. Records in, matplotlib Axes out."""

from __future__ import annotations

from collections.abc import Mapping

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes

from plots.style import PALETTE, line_style, log_scale


def roofline(frame: pd.DataFrame, bandwidth: float, rates: Mapping[str, float], ax: Axes | None = None) -> Axes:
    """Plot the achieved rate against operations per byte, below the hardware's limits.

    frame: columns kernel, operations, bytes and time_ms; bandwidth: GB/s, the slope; rates: name -> Gop/s, the roofs.
    """
    ax = ax or plt.subplots(figsize=(7.5, 4.8))[1]
    frame = frame[frame.operations > 0]
    intensity = frame.operations / frame.bytes
    low, high = intensity.min() / 3, max(intensity.max() * 3, 2 * max(rates.values()) / bandwidth)
    x = np.geomspace(low, high, 200)
    for (name, rate), style in zip(rates.items(), ("-", "--", ":"), strict=False):
        ax.plot(x, np.minimum(x * bandwidth, rate), style, color="#444", lw=1.2)
        ax.annotate(f"{name}: {rate:,.0f} Gop/s", (high, rate), ha="right", va="bottom", fontsize=8)
    at = np.sqrt(low * min(rates.values()) / bandwidth)
    ax.annotate(f"{bandwidth:,.0f} GB/s", (at, at * bandwidth), ha="right", va="bottom", fontsize=8)
    for i, (kernel, rows) in enumerate(frame.groupby("kernel", sort=False)):
        rate = rows.operations / rows.time_ms / 1e6
        marks = line_style(i) | {"linestyle": "none"}
        ax.plot(rows.operations / rows.bytes, rate, **marks, markersize=5, zorder=3, label=kernel)
    log_scale(ax, "xy")
    ax.set(xlabel="operations a byte (least bytes)", ylabel="Gop/s")
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def layer_roofline(
    layers: pd.DataFrame, bandwidth: float, rate: float, measured: pd.DataFrame, ax: Axes | None = None
) -> Axes:
    """Mark each layer of networks on the roofline, at the rate that it cannot exceed, and at the measured ones.

    layers: columns network, operations and bytes, one row per layer; bandwidth: GB/s; rate: Gop/s; measured: columns
    kernel, operations, bytes and time_ms, may be empty.
    """
    ax = ax or plt.subplots(figsize=(7.5, 4.8))[1]
    intensity = layers.operations / layers.bytes
    low, high = intensity.min() / 3, max(intensity.max() * 3, 2 * rate / bandwidth)
    x = np.geomspace(low, high, 200)
    ax.plot(x, np.minimum(x * bandwidth, rate), color="#444", lw=1.2)
    ax.annotate(f"{rate:,.0f} Gop/s", (high, rate), ha="right", va="bottom", fontsize=8)
    for i, (network, rows) in enumerate(layers.groupby("network", sort=False)):
        at = rows.operations / rows.bytes
        marks = line_style(i) | {"linestyle": "none", "fillstyle": "none"}
        label = f"{network}: the bound of each layer"
        ax.plot(at, np.minimum(at * bandwidth, rate), **marks, markersize=6, zorder=3, label=label)
    for i, (kernel, rows) in enumerate(measured.groupby("kernel", sort=False) if len(measured) else ()):
        marks = line_style(i) | {"linestyle": "none"}
        ax.plot(rows.operations / rows.bytes, rows.operations / rows.time_ms / 1e6, **marks, markersize=4, label=kernel)
    log_scale(ax, "xy")
    ax.set(xlabel="operations a byte (least bytes)", ylabel="Gop/s")
    ax.legend(fontsize=7, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def time_over_density(
    frame: pd.DataFrame, dense_ms: float, crossovers: Mapping[str, float | None], ax: Axes | None = None
) -> Axes:
    """Plot the time of each sparse kernel against density, with the dense product's time and the crossovers.

    frame: columns kernel, density, time_ms, time_ms_p25 and time_ms_p75; crossovers: kernel -> density or None.
    """
    ax = ax or plt.subplots(figsize=(9, 4.5))[1]
    for i, (kernel, rows) in enumerate(frame.groupby("kernel", sort=False)):
        rows = rows.sort_values("density")
        meets = crossovers.get(kernel)
        label = f"{kernel}, as fast as dense at {meets:.1%}" if meets else kernel
        style = line_style(i)
        color = style["color"]
        ax.plot(rows.density, rows.time_ms, **style, markersize=4, label=label)
        ax.fill_between(rows.density, rows.time_ms_p25, rows.time_ms_p75, color=color, alpha=0.2, lw=0)
        if meets:
            ax.plot(meets, dense_ms, "o", ms=9, mfc="none", color=color)
    ax.axhline(dense_ms, color="#444", ls="--", lw=1.2, label="dense")
    log_scale(ax, "xy")
    ax.set(xlabel="density (non-zeros / all)", ylabel="time (ms)")
    ax.xaxis.set_major_formatter(lambda value, _: f"{100 * value:.3g} %")
    ax.legend(fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
    return ax


def kernel_bars(frame: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the time of each kernel as a bar, with its interquartile range as an error bar; libraries in grey.

    frame: columns label, maker, time_ms, time_ms_p25 and time_ms_p75; one row per bar, drawn from the top.
    """
    ax = ax or plt.subplots(figsize=(7.5, 0.6 + 0.32 * len(frame)))[1]
    frame = frame.iloc[::-1]
    colors = [PALETTE[0] if maker == "ours" else "0.7" for maker in frame.maker]
    spread = [frame.time_ms - frame.time_ms_p25, frame.time_ms_p75 - frame.time_ms]
    ax.barh(frame.label, frame.time_ms, color=colors, xerr=spread, ecolor="#444", capsize=2)
    for row, value in enumerate(frame.time_ms):
        ax.annotate(f" {value:.3g}", (frame.time_ms_p75.iloc[row], row), va="center", fontsize=8)
    ax.set_xlabel("time (ms)")
    ax.margins(x=0.12)
    ax.grid(axis="y", visible=False)
    return ax
