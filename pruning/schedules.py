"""Pruning schedules: the target sparsity at each point of a training (`done`: progress, 0..1)."""

from collections.abc import Callable

END = 0.6  # share of the training at which the gradual schedule is complete
UPDATES = 30  # number of times that it prunes until then


def one_shot(done: float, sparsity: float, rounds: int) -> float:
    """Prune everything at the start."""
    return sparsity


def iterative(done: float, sparsity: float, rounds: int) -> float:
    """Prune the same share of the remaining weights in each of `rounds` equal rounds (Han et al., NeurIPS 2015)."""
    now = min(int(done * rounds + 1e-9) + 1, rounds)
    return 1 - (1 - sparsity) ** (now / rounds)


def gradual(done: float, sparsity: float, rounds: int) -> float:
    """Prune along a cubic, fast at first and slower towards the end (Zhu and Gupta, 2017), in `UPDATES` steps."""
    step = min(int(done / END * UPDATES + 1e-9), UPDATES)
    return sparsity * (1 - (1 - step / UPDATES) ** 3)


SCHEDULES: dict[str, Callable[[float, float, int], float]] = {
    "one_shot": one_shot,
    "iterative": iterative,
    "gradual": gradual,
}
