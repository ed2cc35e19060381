"""Charts of trainings."""

from itertools import cycle

import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from plots.style import PALETTE


def training_curves(records: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Plot accuracy (%) on training batches (dashed) and on validation (solid) over epochs, one colour per model.

    Seeds of one model share its colour. Records without curves are left out.
    """
    ax = ax or plt.gca()
    with_curves = records[records["curves"].map(lambda value: isinstance(value, list))]
    for color, (label, runs) in zip(cycle(PALETTE), with_curves.groupby("label", sort=False), strict=False):
        for index, curves in enumerate(runs["curves"]):
            points = pd.DataFrame(curves)
            for column, style, what in (("accuracy", "--", "training"), ("validation_accuracy", "-", "validation")):
                name = f"{label}, {what}" if index == 0 else None
                ax.plot(points["epoch"], 100 * points[column], style, color=color, label=name, linewidth=1.5)
    ax.xaxis.set_major_locator(MaxNLocator(integer=True))
    ax.set_xlabel("epoch")
    ax.set_ylabel("accuracy (%)")
    if ax.lines:
        ax.legend(loc="lower right")
    return ax
