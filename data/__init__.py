"""Data sets by name, as tensors: `load("digits")`, `load("cifar10")`, `load("folder:PATH")`, `load("parquet:PATH")`."""

import data.telemetry  # noqa: F401 (before huggingface_hub is imported)
from data.augmentation import Draw
from data.batching import Batch, batches, epoch_seed, normalize
from data.datasets import (
    PIXELS,
    Dataset,
    Split,
    changes,
    load,
    signature,
)

__all__ = [
    "PIXELS",
    "Batch",
    "Dataset",
    "Draw",
    "Split",
    "batches",
    "changes",
    "epoch_seed",
    "load",
    "normalize",
    "signature",
]
