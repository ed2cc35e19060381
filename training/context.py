"""What a step is, and what it is given."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from data import Dataset
from storage import Checkpoint


class StepError(Exception):
    """A step that cannot be taken: a hyperparameter out of range, or a step that cannot follow the one before."""


@dataclass(frozen=True)
class Context:
    """What a step may use besides the model: the data, the seed, the device, and a place to keep a training's state.

    `make` gives the model of another recipe, a teacher for instance; `cache` is a folder for what can be made again.
    `log` is what the step tells the record of its making: curves, seconds, images per second.
    """

    dataset: Dataset
    seed: int
    device: torch.device
    checkpoint: Checkpoint
    make: Callable[[Any], nn.Module]
    cache: Path
    log: dict = field(default_factory=dict)


class Step(Protocol):
    """A frozen dataclass whose fields are the hyperparameters. It raises StepError where one is out of range."""

    def follows(self, previous: "Step | None") -> None:
        """Raise StepError where this step cannot come after `previous` (None: at the start of a chain)."""

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        """Turn a model into a model. `model` may be changed in place."""


def training_fields(step: Step) -> dict:
    """The four fields that every step that trains has, by name, as `check_training` and `fit` take them."""
    return {name: getattr(step, name) for name in ("epochs", "learning_rate", "batch_size", "weight_decay")}


def check_training(*, epochs: int, learning_rate: float, batch_size: int, weight_decay: float) -> None:
    """Raise StepError where a training's hyperparameters are out of range; every step that trains asks it."""
    if epochs < 1 or batch_size < 1:
        raise StepError(f"epochs and batch_size must be at least 1, not {epochs} and {batch_size}")
    if not learning_rate > 0 or not weight_decay >= 0:
        raise StepError("learning_rate must be above 0 and weight_decay not below 0")
