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


def intervals_overlap(one: Mapping, other: Mapping) -> bool:
    """Whether the 95 % intervals of two records overlap: where they do not, chance hardly made the difference."""
    return bool(one["accuracy_low"] <= other["accuracy_high"] and other["accuracy_low"] <= one["accuracy_high"])


def near_best(accuracies: pd.Series, images: int) -> pd.Series:
    """Which accuracies (0..1), each measured on so many images, have a 95 % interval that overlaps that of the best."""
    return accuracies.map(lambda accuracy: alike(accuracy, accuracies.max(), images)).astype(bool)
