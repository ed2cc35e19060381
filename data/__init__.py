"""Data sets by name, as tensors: `load("digits")`, `load("cifar10")`, `load("folder:PATH")`."""

from data.batches import Batch, batches, normalize
from data.datasets import DataError, Dataset, Split, load

__all__ = ["Batch", "DataError", "Dataset", "Split", "batches", "load", "normalize"]
