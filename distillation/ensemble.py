"""`Ensemble`: several models as one."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from scipy.optimize import minimize
from torch import nn

from data import Dataset, normalize
from models import combine
from training import Context, Step, StepError


@dataclass(frozen=True)
class Ensemble:
    """The mean of the members' probabilities, deployed as one file: `Recipe("cifar10", (Ensemble((a, b, c)),))`.

    With `optimize_weights` the mean is weighted so that the cross-entropy on the validation images is least.
    """

    members: tuple[Any, ...]
    optimize_weights: bool = False

    def __post_init__(self):
        if not self.members:
            raise StepError("an ensemble needs members: give it recipes")
        datasets = sorted({recipe.dataset for recipe in self.members})
        if len(datasets) > 1:
            raise StepError(f"an ensemble's members must be of one data set, not of {' and '.join(datasets)}")

    def follows(self, previous: Step | None) -> None:
        if previous is not None:
            raise StepError("Ensemble starts a recipe: what its members are made of stands in their own recipes")

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        if self.members[0].dataset != context.dataset.name:
            raise StepError(f"the members are of {self.members[0].dataset}, the recipe of {context.dataset.name}")
        ensemble = combine([context.make(recipe) for recipe in self.members])
        if self.optimize_weights:
            ensemble.weights.copy_(torch.from_numpy(best_weights(ensemble, context.dataset)))
        return ensemble


@torch.no_grad()
def best_weights(ensemble: nn.Module, dataset: Dataset) -> np.ndarray:
    """Weights `[members]`, not negative and of sum one, with the least cross-entropy on the validation images."""
    images = normalize(dataset.validation.images, dataset).split(500)
    labels = dataset.validation.labels
    each = [torch.cat([member(part) for part in images]).softmax(1) for member in ensemble.eval().members]
    right = torch.stack([p[torch.arange(len(labels)), labels] for p in each]).double().numpy()  # [members, images]

    def loss(weights: np.ndarray) -> float:
        return -float(np.log(weights @ right + 1e-12).mean())

    even = np.full(len(right), 1 / len(right))
    found = minimize(
        loss,
        even,
        bounds=[(0, 1)] * len(even),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
    )
    return (found.x if found.success and found.fun <= loss(even) else even).astype(np.float32)
