"""Accuracy of an ONNX file, with its confidence interval."""

import numpy as np
import onnxruntime
import torch
from torch import nn

from data import Dataset, Split, normalize
from storage import run_onnx


def logits(session: onnxruntime.InferenceSession, dataset: Dataset, split: Split, batch_size: int = 100) -> np.ndarray:
    """Return the file's logits `[N, classes]` of the images of `split`, on the data set's scale of pixels."""
    parts = (images for images, _ in split.parts(batch_size))
    return np.concatenate([run_onnx(session, normalize(images, dataset).numpy()) for images in parts])


def answers(session: onnxruntime.InferenceSession, dataset: Dataset, split: Split) -> np.ndarray:
    """Return the class `[N]` that the file predicts for each image of `split`."""
    return logits(session, dataset, split).argmax(1)


def accuracy(session: onnxruntime.InferenceSession, dataset: Dataset, split: Split) -> float:
    """Return the accuracy (0..1) of the file on `split`."""
    return float((answers(session, dataset, split) == split.labels.numpy()).mean())


@torch.no_grad()
def agreement(model: nn.Module, answered: np.ndarray, dataset: Dataset, split: Split, batch_size: int = 100) -> float:
    """Return the share (0..1) of images for which `model` in PyTorch predicts the class that its file `answered`."""
    predicted = [model(normalize(images, dataset)).argmax(1) for images, _ in split.parts(batch_size)]
    return float((torch.cat(predicted).numpy() == answered).mean())


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """Return the 95 % confidence interval of a share measured on `count` images (Wilson 1927)."""
    from scipy.stats import binomtest  # takes half a second to import, which reading records does not need

    interval = binomtest(round(share * count), count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
