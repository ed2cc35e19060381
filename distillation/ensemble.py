"""`Ensemble`: several models as one, and checks of steps with teachers."""

import reprlib
import warnings
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
import torch
from torch import nn

from data import Dataset, normalize
from distillation.loss import SoftTargets
from models import combine
from recipe import Recipe, Step, StepError, refuse_unused
from training import Context, scaled_for


@dataclass(frozen=True)
class Ensemble(Step):
    """The mean of the members' probabilities, deployed as one file: `Recipe("cifar10", (Ensemble((a, b, c)),))`.

    With `optimize_weights` the mean is weighted to minimize the cross-entropy on the validation images.
    """

    letter: ClassVar[str] = "E"
    kind: ClassVar[str] = "ensemble"
    gives: ClassVar[frozenset[str]] = frozenset({"members"})
    begins: ClassVar[bool] = True

    members: tuple[Recipe, ...]
    optimize_weights: bool = False

    def check(self) -> None:
        check_recipes("members", self.members)
        if not self.members:
            raise StepError("an ensemble needs members: give it recipes")

    @property
    def base(self) -> Recipe:
        return self.members[0]

    def words(self) -> list[str]:
        return ["ensemble of " + " and ".join(member.words for member in self.members)]

    def check_after(self, before: tuple[Step, ...]) -> None:
        if before:
            raise StepError("Ensemble starts a recipe: put the steps of its members into their own recipes")

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        ensemble = combine([context.make(recipe) for recipe in self.members])
        if self.optimize_weights:
            ensemble.get_buffer("weights").copy_(torch.from_numpy(best_weights(ensemble, context.dataset)))
        return ensemble


def check_recipes(name: str, value: object) -> None:
    """Raise StepError unless a field is a tuple of recipes."""
    if not isinstance(value, tuple) or not all(isinstance(recipe, Recipe) for recipe in value):
        raise StepError(f"{name} must be a tuple of recipes, (a,) or (a, b), not {reprlib.repr(value)}")


def check_recipe(name: str, value: object) -> None:
    """Raise StepError unless a field is a recipe or None."""
    if value is not None and not isinstance(value, Recipe):
        raise StepError(f"{name} must be a recipe or None, not {reprlib.repr(value)}")


class HasTeacher(Protocol):
    """A step with an optional `teacher`, a recipe whose logits guide its training."""

    @property
    def distinct_epochs(self) -> int: ...
    @property
    def teacher(self) -> Recipe | None: ...
    @property
    def temperature(self) -> float: ...
    @property
    def alpha(self) -> float: ...


def check_teacher(step: HasTeacher) -> None:
    """Raise StepError if a step's `teacher` is not a recipe, or if its loss is set although there is no teacher."""
    SoftTargets(step.temperature, step.alpha)  # checks them
    check_recipe("teacher", step.teacher)
    if step.teacher is None:
        refuse_unused(step, ("temperature", "alpha"), "there is no teacher; name one")


@torch.no_grad()
def best_weights(ensemble: nn.Module, dataset: Dataset) -> np.ndarray:
    """Return weights `[members]`, non-negative with sum one, that minimize the cross-entropy on the validation images.

    If the optimizer fails, the weights are equal, with a warning.
    """
    scaled, labels = scaled_for(ensemble, dataset), dataset.validation.labels
    members = list(ensemble.eval().get_submodule("members").children())
    logits: list[list[torch.Tensor]] = [[] for _ in members]
    for images, _ in dataset.validation.parts(500):
        normalized = normalize(images, scaled)
        for own, member in zip(logits, members, strict=True):
            own.append(member(normalized))
    probabilities = [torch.cat(own).softmax(1) for own in logits]
    # The probability that each member gives to the right class, `[members, images]`.
    right = torch.stack([p[torch.arange(len(labels)), labels] for p in probabilities]).double().numpy()

    def loss(weights: np.ndarray) -> float:
        return -float(np.log(weights @ right + 1e-12).mean())

    even = np.full(len(right), 1 / len(right))
    from scipy.optimize import minimize  # imported here, since it takes half a second

    found = minimize(
        loss,
        even,
        bounds=[(0, 1)] * len(even),
        constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
        method="SLSQP",
    )
    if not found.success:
        warnings.warn(f"the members get equal weights: the optimizer failed ({found.message})", stacklevel=2)
    return (found.x if found.success and found.fun <= loss(even) else even).astype(np.float32)
