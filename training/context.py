"""`Context`: what a step gets besides the model."""

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import nn

from data import Dataset
from recipe import Recipe
from storage import Checkpoint


@dataclass(frozen=True)
class Context:
    """What a step may use besides the model: data, seed, device, and a checkpoint of the training.

    `make` returns the model of another recipe, such as a teacher. `cache` is a folder for results that can be
    recomputed. What a step puts in `log` goes to the record: curves, seconds, images per second.
    """

    dataset: Dataset
    seed: int
    device: torch.device
    checkpoint: Checkpoint
    make: Callable[[Recipe], nn.Module]
    cache: Path
    log: dict = field(default_factory=dict)
