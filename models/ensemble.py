"""Several networks as one."""

import functools
from collections.abc import Iterable

import torch
from torch import nn


class Ensemble(nn.Module):
    """The logarithm of the weighted mean of its members' probabilities: logits `[B, classes]` of one network."""

    weights: torch.Tensor

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("weights", torch.full((len(members),), 1 / len(members)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return mean_logits((member(x) for member in self.members), self.weights)


def mean_logits(logits: Iterable[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """The logarithm of the weighted mean of probabilities, from logits `[B, classes]` of each network.

    Kept above log(1e-12): where all are sure enough to round a class to nothing it would be minus infinity, under
    which a student's loss is no number. In float32 also where the networks compute in less.
    """
    weighted = (weights[index] * own.float().softmax(1) for index, own in enumerate(logits))
    return functools.reduce(torch.add, weighted).clamp(min=1e-12).log()
