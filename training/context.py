"""What a step is, and what it is given."""

from dataclasses import dataclass, field
from typing import Protocol

import torch
from torch import nn

from data import Dataset
from storage import Checkpoint


class StepError(Exception):
    """A step that cannot be taken: a hyperparameter out of range, or a step that cannot follow the one before."""


@dataclass(frozen=True)
class Context:
    """What a step may use besides the model: the data, the seed, the device, and a place to keep a training's state.

    `log` is what the step tells the record of its making: curves, seconds, images per second.
    """

    dataset: Dataset
    seed: int
    device: torch.device
    checkpoint: Checkpoint
    log: dict = field(default_factory=dict)


class Step(Protocol):
    """A frozen dataclass whose fields are the hyperparameters. It raises StepError where one is out of range."""

    def follows(self, previous: "Step | None") -> None:
        """Raise StepError where this step cannot come after `previous` (None: at the start of a chain)."""

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        """Turn a model into a model. `model` may be changed in place."""
