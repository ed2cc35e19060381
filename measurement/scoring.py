"""Accuracy of an ONNX file, with its interval."""

import numpy as np
import onnxruntime
import torch
from torch import nn

from data import Dataset, Split, normalize
from storage import run_onnx


def answers(session: onnxruntime.InferenceSession, dataset: Dataset, split: Split, batch_size: int = 100) -> np.ndarray:
    """The class that the file puts each image of `split` into, `[N]`."""
    return np.concatenate(
        [run_onnx(session, normalize(images, dataset).numpy()).argmax(1) for images in split.images.split(batch_size)]
    )


def accuracy(session: onnxruntime.InferenceSession, dataset: Dataset, split: Split) -> float:
    """Share (0..1) of the images of `split` that the file puts into their class."""
    return float((answers(session, dataset, split) == split.labels.numpy()).mean())


@torch.no_grad()
def agreement(model: nn.Module, answered: np.ndarray, dataset: Dataset, split: Split, batch_size: int = 100) -> float:
    """Share (0..1) of the images of `split` that `model` in PyTorch puts into the class that its file `answered`."""
    own = [model(normalize(images, dataset)).argmax(1) for images in split.images.split(batch_size)]
    return float((torch.cat(own).numpy() == answered).mean())


def wilson_interval(share: float, count: int) -> tuple[float, float]:
    """The 95 % interval of a share measured on `count` images (Wilson 1927)."""
    from scipy.stats import binomtest  # half a second of import, which reading records back does without

    interval = binomtest(round(share * count), count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
