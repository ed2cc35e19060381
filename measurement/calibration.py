"""How far a model's probabilities can be believed: calibration error, likelihood, Brier score, temperature scaling."""

import numpy as np
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax

BINS = 15  # of the top probability, equally wide, as in Guo et al., ICML 2017
TEMPERATURES = (0.05, 20.0)


def calibration(logits: np.ndarray, labels: np.ndarray) -> dict:
    """Return `ece`, `nll` and `brier` of logits `[N, classes]` for labels `[N]`, and the `bins` of the first.

    `ece` is the expected calibration error (Naeini et al. 2015), `nll` the mean negative log-likelihood in nats, and
    `brier` the mean squared distance of the probabilities from the label (0 to 2; Brier 1950). `bins` holds, for each
    bin of the top probability, its `count` of images, how many of them are `right`, and their mean `confidence`.
    """
    logs = log_softmax(logits.astype(np.float64), axis=1)
    probabilities = np.exp(logs)
    confidence, right = probabilities.max(1), logits.argmax(1) == labels
    place = np.minimum((confidence * BINS).astype(int), BINS - 1)
    count, hits, sums = (
        np.bincount(place, weights, minlength=BINS) for weights in (None, right.astype(float), confidence)
    )
    target = np.eye(logits.shape[1])[labels]
    return {
        "ece": float(np.abs(hits - sums).sum() / len(labels)),
        "nll": float(-logs[np.arange(len(labels)), labels].mean()),
        "brier": float(((probabilities - target) ** 2).sum(1).mean()),
        "bins": {
            "count": count.astype(int).tolist(),
            "right": hits.astype(int).tolist(),
            "confidence": np.round(sums / np.maximum(count, 1), 6).tolist(),
        },
    }


def temperature(logits: np.ndarray, labels: np.ndarray) -> float:
    """Return the temperature that these logits, divided by it, are most likely with (Guo et al., ICML 2017).

    It lies between `TEMPERATURES`; logits without any error, or without any meaning, have it at an end of them.
    """
    rows, double = np.arange(len(labels)), logits.astype(np.float64)

    def loss(logarithm: float) -> float:
        return float(-log_softmax(double / np.exp(logarithm), axis=1)[rows, labels].mean())

    return float(np.exp(minimize_scalar(loss, bounds=np.log(TEMPERATURES), method="bounded").x))
