"""Tells which differences in accuracy may be due to chance: by the images answered right, else by 95 % intervals."""

from collections.abc import Mapping

import pandas as pd

from data import load
from experiment.behaviour import right_answers
from experiment.records import kept_table
from measurement import mcnemar, wilson_interval


def validation_images(dataset: str) -> int:
    """Return the number of validation images. Kept as a table, so that notebooks can be rerun without the data set."""
    counted = kept_table("validation-images", dataset, lambda: [{"images": len(load(dataset).validation)}])
    return int(counted["images"][0])


def alike(one: float, other: float, images: int) -> bool:
    """Return whether the 95 % intervals of two accuracies (0..1), each measured on `images` images, overlap."""
    (low, _), (_, high) = wilson_interval(max(one, other), images), wilson_interval(min(one, other), images)
    return low <= high


def intervals_overlap(one: Mapping, other: Mapping) -> bool:
    """Return whether the 95 % intervals of two records overlap; if not, the difference is unlikely to be chance."""
    return bool(one["accuracy_low"] <= other["accuracy_high"] and other["accuracy_low"] <= one["accuracy_high"])


def difference(one: Mapping, other: Mapping) -> str:
    """Return the result of a test of whether two records have the same test accuracy, in words.

    `p = 0.012` of McNemar's exact test, if it is kept which images both answer right; else whether their 95 % intervals
    overlap, which is a weaker test.
    """
    ours, theirs = right_answers(one), right_answers(other)
    if ours is None or theirs is None or len(ours) != len(theirs):
        return "intervals overlap" if intervals_overlap(one, other) else "intervals apart"
    return p_in_words(mcnemar(ours, theirs))


def p_in_words(p: float) -> str:
    """Return `p = 0.012`, or `p < 0.001`."""
    return f"p = {p:.3f}" if p >= 0.001 else "p < 0.001"


def near_best(accuracies: pd.Series, images: int) -> pd.Series:
    """Return for which accuracies (0..1), each measured on `images` images, the 95 % interval overlaps the best's."""
    return accuracies.map(lambda accuracy: alike(accuracy, accuracies.max(), images)).astype(bool)
