"""Data sets by name, as tensors: `load("digits")`, `load("cifar10")`, `load("folder:PATH")`."""

import data.telemetry  # noqa: F401 (before huggingface_hub is imported)
from data.batching import Batch, batches, epoch_seed, normalize
from data.datasets import (
    PIXELS,
    DataError,
    Dataset,
    Split,
    changes,
    check_dataset,
    folder_of,
    identity,
    load,
    signature,
)

__all__ = [
    "PIXELS",
    "Batch",
    "DataError",
    "Dataset",
    "Split",
    "batches",
    "changes",
    "check_dataset",
    "epoch_seed",
    "folder_of",
    "identity",
    "load",
    "normalize",
    "signature",
]
