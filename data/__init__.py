"""Data sets by name, as tensors: `load("digits")`, `load("cifar10")`, `load("folder:PATH")`."""

import data.telemetry  # noqa: F401 (before huggingface_hub is imported)
from data.batching import Batch, batches, epoch_seed, normalize
from data.datasets import DataError, Dataset, Split, check_dataset, load

__all__ = ["Batch", "DataError", "Dataset", "Split", "batches", "check_dataset", "epoch_seed", "load", "normalize"]
