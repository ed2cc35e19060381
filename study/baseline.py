"""The base recipes: the FP32 networks that this repository's study compresses, and how they are trained."""

from typing import Any

from recipe import Recipe, check_dataset
from training import Train

# Epochs that a laptop can manage. All notebooks start from these, so that they share the trained networks.
TRAINING: dict[str | tuple[str, str], dict[str, Any]] = {
    ("cifar10", "resnet18"): {"epochs": 15, "learning_rate": 0.1, "start": {"epochs": 15}},  # an hour each on two cores
    "cifar10": {"epochs": 40, "learning_rate": 0.1, "label_smoothing": 0.0},  # networks too small to overfit
    "digits": {"epochs": 10, "batch_size": 64},
    "folder": {"epochs": 20, "batch_size": 32},
}


def base_recipe(dataset: str, model: str, seed: int = 0, **fields) -> Recipe:
    """Return the recipe of the FP32 network to compress on `dataset`; `fields` of `Train` override `TRAINING`."""
    check_dataset(dataset)
    usual = TRAINING.get((dataset, model)) or TRAINING[dataset.partition(":")[0]]
    start = Recipe(dataset, (Train(model, **usual["start"]),), seed) if "start" in usual else None
    return Recipe(dataset, (Train(model, **usual | {"start": start} | fields),), seed)


def batch_size(dataset: str) -> int:
    """Return the batch size of all trainings on a data set: smaller for small data sets."""
    return TRAINING.get(dataset.partition(":")[0], {}).get("batch_size", 128)
