"""Charts of the time that a study takes on several machines."""

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import ScalarFormatter

from plots.style import PALETTE


def makespans(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot the hours of a study, and the least possible, against the number of machines: a table of `scaling`."""
    ax = ax or plt.gca()
    ax.plot(table["machines"], table["hours"], "o-", color=PALETTE[0], label="longest chain of steps first")
    ax.plot(table["machines"], table["least hours"], "--", color=PALETTE[1], label="no schedule can beat")
    ax.set_xscale("log", base=2)
    ax.set_yscale("log", base=2)
    for axis in (ax.xaxis, ax.yaxis):
        axis.set_major_formatter(ScalarFormatter())
    ax.set_xticks(table["machines"])
    ax.set_xlabel("machines (log scale)")
    ax.set_ylabel("hours (log scale)")
    ax.legend()
    return ax
