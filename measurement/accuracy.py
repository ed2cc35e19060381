"""Accuracy of an ONNX file, with its interval."""

import onnxruntime
from scipy.stats import binomtest

from data import Dataset, Split, normalize
from storage import run_onnx


def accuracy(session: onnxruntime.InferenceSession, dataset: Dataset, split: Split, batch_size: int = 100) -> float:
    """Share (0..1) of the images of `split` that the file puts into their class."""
    correct = 0
    for start in range(0, len(split), batch_size):
        images = normalize(split.images[start : start + batch_size], dataset).numpy()
        predicted = run_onnx(session, images).argmax(1)
        correct += int((predicted == split.labels[start : start + batch_size].numpy()).sum())
    return correct / len(split)


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share measured on `count` images (Wilson 1927)."""
    interval = binomtest(round(share * count), count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
