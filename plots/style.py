"""Colours and sizes shared by all charts: the Okabe-Ito palette, which colour-blind readers can tell apart."""

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.image import AxesImage
from matplotlib.ticker import LogLocator, NullFormatter

from experiment.store import ROOT, figures_folder, slug
from recipe import PARTS, STEPS, Technique, Unknown
from storage import atomic_write

Style = dict[str, Any]  # keyword arguments for matplotlib
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
FAILED = 0.25  # accuracies this far below the best are shown at the chart's edge
REPORTED: Style = {  # hollow marks of published figures
    "marker": "o",
    "linestyle": "none",
    "markerfacecolor": "none",
    "color": "0.45",
    "label": "published study (as reported)",
}


METHOD_MARKERS = ("D", "P", "v", "^", "s", "<", ">", "p", "h", "*")
ALONE, CHAIN = ("FP32", PALETTE[6], "o"), ("chain of methods", PALETTE[5], "X")


def method_style(kinds: str) -> tuple[str, str, str]:
    """Return name, colour and marker for models made by the methods of these letters, the same in every chart."""
    letters = _letters()
    if len(kinds) != 1 or kinds not in letters:
        return CHAIN if kinds else ALONE
    place = list(letters).index(kinds)
    return letters[kinds], PALETTE[place % 5], METHOD_MARKERS[place % len(METHOD_MARKERS)]


def method_names() -> list[str]:
    """Return the names of `method_style` in the order of a legend."""
    return [ALONE[0], *_letters().values(), CHAIN[0]]


def _letters() -> dict[str, str]:
    """Return the name of each method by its letter: first this project's, then those defined elsewhere."""
    rooms = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    named: list[Any] = [*STEPS.values(), *(part for part in PARTS.values() if issubclass(part, Technique))]
    foreign = {step: step.__module__.partition(".")[0] not in rooms for step in named if step.letter}
    ordered = sorted(foreign, key=lambda step: (step is Unknown, foreign[step], "" if foreign[step] else step.letter))
    found: dict[str, str] = {}
    for step in ordered:
        found.setdefault(step.letter, step.kind)
    return found


def line_style(index: int) -> Style:
    """Return colour, marker and line style of a chart's line by its index; lines beyond the palette are dashed."""
    cycle, place = divmod(index, len(PALETTE))
    marker = MARKERS[(place + cycle) % len(MARKERS)]
    return {"color": PALETTE[place], "marker": marker, "linestyle": "--" if cycle % 2 else "-"}


def log_scale(ax: Axes, names: str = "x") -> None:
    """Make the axes of these names logarithmic, with plain numbers at 1, 2 and 5, or fewer for many decades."""
    for name in names:
        ax.set(**{f"{name}scale": "log"})
        axis: Axis = getattr(ax, f"{name}axis")
        low, high = axis.get_view_interval()
        ticks = (1, 2, 5) if high < 300 * low else (1, 3) if high < 1e5 * low else (1,)
        axis.set_major_locator(LogLocator(subs=ticks))
        axis.set_major_formatter(lambda value, _: f"{value:,g}")
        axis.set_minor_formatter(NullFormatter())


def figure_of(ax: Axes) -> Figure:
    """Return the top-level figure of the axes."""
    figure = ax.get_figure(root=True)
    assert figure is not None
    return figure


def legible_on(image: AxesImage, value: float) -> str:
    """Return black or white, for legible text on the colour of `value` in a heat map."""
    return "black" if np.asarray(image.norm(np.asarray(value))).item() > 0.6 else "white"


def save_figure(ax: Axes, name: str) -> None:
    """Write the chart as PNG and SVG into results/figures."""
    for ending in ("png", "svg"):
        metadata = {"Date": None} if ending == "svg" else None  # so that equal charts are equal files
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
