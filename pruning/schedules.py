"""How much is pruned when: the sparsity to have after a share of the training."""

from collections.abc import Callable

END = 0.6  # share of the training after which the gradual schedule prunes no more
UPDATES = 30  # times that it prunes until then


def one_shot(done: float, sparsity: float, rounds: int) -> float:
    """All at once, at the start."""
    return sparsity


def iterative(done: float, sparsity: float, rounds: int) -> float:
    """The same share of what is left in each of `rounds` rounds of equal length (Han et al., NeurIPS 2015)."""
    now = min(int(done * rounds + 1e-9) + 1, rounds)
    return 1 - (1 - sparsity) ** (now / rounds)


def gradual(done: float, sparsity: float, rounds: int) -> float:
    """Fast at first, slower and slower towards the end: a cubic (Zhu and Gupta, 2017), in steps."""
    step = min(int(done / END * UPDATES + 1e-9), UPDATES)
    return sparsity * (1 - (1 - step / UPDATES) ** 3)


SCHEDULES: dict[str, Callable[[float, float, int], float]] = {
    "one_shot": one_shot,
    "iterative": iterative,
    "gradual": gradual,
}
