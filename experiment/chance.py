"""How far chance alone moves an accuracy: which differences are none."""

from collections.abc import Mapping

import pandas as pd

from data import load
from experiment.records import kept_table
from measurement import wilson_interval


def validation_images(dataset: str) -> int:
    """How many images every choice is made on; kept as a table, for notebooks that are read back without a data set."""
    counted = kept_table("validation-images", dataset, lambda: [{"images": len(load(dataset).validation)}])
    return int(counted["images"][0])


def alike(one: float, other: float, images: int) -> bool:
    """Whether the 95 % intervals of two accuracies (0..1), each measured on so many images, overlap."""
    (low, _), (_, high) = wilson_interval(max(one, other), images), wilson_interval(min(one, other), images)
    return low <= high


def overlap(one: Mapping, other: Mapping) -> str:
    """Of two records, whether their intervals overlap: where they do not, chance hardly made the difference."""
    apart = one["accuracy_high"] < other["accuracy_low"] or other["accuracy_high"] < one["accuracy_low"]
    return "the intervals do not overlap" if apart else "the intervals overlap"


def best_and_alike(accuracies: pd.Series, images: int) -> str:
    """The best of some accuracies (0..1, by name), and those whose 95 % intervals on so many images overlap its own.

    `**lamp** 86.08 %, whose 95 % interval overlaps those of *lookahead* 84.28 %, *obd_hessian* 84.06 %`
    """
    ordered = accuracies.sort_values(ascending=False, kind="stable")
    best, *others = ordered.items()
    near = [f"*{name}* {100 * value:.2f} %" for name, value in others if alike(best[1], value, images)]
    return f"**{best[0]}** {100 * best[1]:.2f} %, whose 95 % interval overlaps " + (
        f"{'those' if len(near) > 1 else 'that'} of {', '.join(near)}" if near else "no other"
    )
