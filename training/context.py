"""What a step is given besides the model."""

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
    """What a step may use besides the model: the data, the seed, the device, and a place to keep a training's state.

    `make` gives the model of another recipe, a teacher for instance; `cache` is a folder for what can be made again.
    `log` is what the step tells the record of its making: curves, seconds, images per second.
    """

    dataset: Dataset
    seed: int
    device: torch.device
    checkpoint: Checkpoint
    make: Callable[[Recipe], nn.Module]
    cache: Path
    log: dict = field(default_factory=dict)
