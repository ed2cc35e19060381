"""Comparisons of two models on the same images: far sharper than intervals of each, since most answers are the same."""

import numpy as np

LEVEL = 0.05


def mcnemar(one: np.ndarray, other: np.ndarray) -> float:
    """Return the exact two-sided p-value of McNemar's test (1947) for two arrays of right answers `[N]`.

    Only images that just one of the two answers right count: at equal accuracy they are as likely to be either's.
    """
    from scipy.stats import binomtest  # half a second to import

    ours, theirs = int((one & ~other).sum()), int((other & ~one).sum())
    return float(binomtest(ours, ours + theirs).pvalue) if ours + theirs else 1.0


def paired_interval(difference: np.ndarray, level: float = LEVEL) -> tuple[float, float, float]:
    """Return the mean of differences `[N]`, one per image, and the ends of its interval by Student's t (1 - `level`).

    One image says nothing about the others: its interval is infinite.
    """
    from scipy.stats import t

    count = len(difference)
    mean = float(difference.mean())
    if count < 2:
        return mean, -np.inf, np.inf
    reach = float(t.ppf(1 - level / 2, count - 1)) * float(difference.std(ddof=1)) / count**0.5
    return mean, mean - reach, mean + reach
