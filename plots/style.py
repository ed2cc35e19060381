"""Colours and sizes shared by all charts: the Okabe-Ito palette, which colour-blind readers can tell apart."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, NullFormatter

from experiment.store import figures_folder, slug
from storage import atomic_write

Style = dict[str, Any]  # what matplotlib takes as keywords
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FAILED = 0.25  # of accuracy under the best: from there on it stands at the chart's edge
REPORTED: Style = {  # hollow marks of others' figures
    "marker": "o",
    "linestyle": "none",
    "markerfacecolor": "none",
    "color": "0.45",
    "label": "published study (as reported)",
}


class _Cycle(dict):
    """A colour and a marker for each method, the same wherever it is drawn, in the order of first use."""

    def __missing__(self, method: str) -> tuple[str, str]:
        index = len(self)
        self[method] = (PALETTE[index % len(PALETTE)], MARKERS[index % len(MARKERS)])
        return self[method]


METHOD_COLORS = _Cycle({"Train": (PALETTE[0], MARKERS[0]), "Train > Quantize": (PALETTE[1], MARKERS[1])})


def line_style(index: int) -> Style:
    """Colour, marker and line of the index-th line of a chart: once round the palette they pair otherwise, dashed."""
    cycle, place = divmod(index, len(PALETTE))
    marker = MARKERS[(place + cycle) % len(MARKERS)]
    return {"color": PALETTE[place], "marker": marker, "linestyle": "--" if cycle % 2 else "-"}


def log_scale(ax: Axes, names: str = "x") -> None:
    """Make the axes of these names logarithmic, ticks at 1, 2 and 5, the more decades the fewer, as plain numbers."""
    for name in names:
        ax.set(**{f"{name}scale": "log"})
        axis: Axis = getattr(ax, f"{name}axis")
        low, high = axis.get_view_interval()
        ticks = (1, 2, 5) if high < 300 * low else (1, 3) if high < 1e5 * low else (1,)
        axis.set_major_locator(LogLocator(subs=ticks))
        axis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.set_minor_formatter(NullFormatter())


def figure_of(ax: Axes) -> Figure:
    """The whole figure that the axes stand in."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def legible_on(image: AxesImage, value: float) -> str:
    """Black or white, for a number that is written over its own colour in a heat map."""
    return "black" if np.asarray(image.norm(np.asarray(value))).item() > 0.6 else "white"


def save_figure(ax: Axes, name: str) -> None:
    """Write the chart as PNG and SVG into results/figures."""
    for ending in ("png", "svg"):
        metadata = {"Date": None} if ending == "svg" else None  # the same chart is the same file
        with atomic_write(figures_folder() / f"{slug(name)}.{ending}") as temporary:
            figure_of(ax).savefig(temporary, format=ending, metadata=metadata)


def use_style() -> None:
    """Set matplotlib up for the charts of the notebooks."""
    plt.rcParams.update(
        {
            "figure.figsize": (7.5, 4.5),
            "figure.dpi": 110,
            "figure.constrained_layout.use": True,
            "savefig.bbox": "tight",
            "svg.hashsalt": "compression study",
            "font.size": 11,
            "axes.grid": True,
            "grid.alpha": 0.3,
            "axes.axisbelow": True,
            "axes.spines.top": False,
            "axes.spines.right": False,
            "legend.frameon": False,
        }
    )
