"""Schedules of the learning rate, as a share of its peak, by `progress` (0..1) of the training.

Add your own by `recipe.SCHEDULES["mine"] = mine`.
"""

import math

from recipe import SCHEDULES

WARMUP = 0.2  # share of the training during which the learning rate rises


def one_cycle(progress: float) -> float:
    """Rise and fall along cosines: Smith and Topin, "Super-Convergence" (2019), in the form of torch's OneCycleLR."""
    start, end = 1 / 25, 1 / 25e4
    if progress < WARMUP:
        return 1 - (1 - start) * (1 + math.cos(math.pi * progress / WARMUP)) / 2
    return end + (1 - end) * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP))) / 2


def triangle(progress: float) -> float:
    """Rise linearly from a fifth of the peak, then fall linearly to zero."""
    return 0.2 + 0.8 * progress / WARMUP if progress < WARMUP else (1 - progress) / (1 - WARMUP)


def linear(progress: float) -> float:
    """Fall linearly from the peak to zero."""
    return 1 - progress


def cosine(progress: float) -> float:
    """Fall along half a cosine from the peak to zero (Loshchilov and Hutter, ICLR 2017)."""
    return (1 + math.cos(math.pi * progress)) / 2


def constant(progress: float) -> float:
    """Stay at the peak."""
    return 1.0


SCHEDULES |= {known.__name__: known for known in (one_cycle, triangle, linear, cosine, constant)}
