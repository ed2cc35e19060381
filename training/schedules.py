"""How the learning rate goes: its share of the peak after `progress` (0..1) of a training.

One of your own is a row: `recipe.SCHEDULES["mine"] = mine`.
"""

import math

from recipe import SCHEDULES

WARMUP = 0.2  # share of the training during which the learning rate rises


def one_cycle(progress: float) -> float:
    """Up and down along cosines: Smith and Topin, "Super-Convergence" (2019), in the form of torch's OneCycleLR."""
    start, end = 1 / 25, 1 / 25e4
    if progress < WARMUP:
        return 1 - (1 - start) * (1 + math.cos(math.pi * progress / WARMUP)) / 2
    return end + (1 - end) * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP))) / 2


def triangle(progress: float) -> float:
    """Up and down along straight lines, from a fifth of the peak to nothing."""
    return 0.2 + 0.8 * progress / WARMUP if progress < WARMUP else (1 - progress) / (1 - WARMUP)


def linear(progress: float) -> float:
    """Down along a straight line, from the peak to nothing."""
    return 1 - progress


def cosine(progress: float) -> float:
    """Down along half a cosine, from the peak to nothing (Loshchilov and Hutter, ICLR 2017)."""
    return (1 + math.cos(math.pi * progress)) / 2


def constant(progress: float) -> float:
    """The peak throughout."""
    return 1.0


SCHEDULES |= {own.__name__: own for own in (one_cycle, triangle, linear, cosine, constant)}
