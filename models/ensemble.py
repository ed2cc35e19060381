"""Several networks as one."""

import functools
from collections.abc import Iterable

import torch
from torch import nn


class Ensemble(nn.Module):
    """Average of its members: logits `[B, classes]` are the logarithm of the weighted mean of their probabilities."""

    weights: torch.Tensor

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("weights", torch.full((len(members),), 1 / len(members)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return mean_logits((member(x) for member in self.members), self.weights)


def mean_logits(logits: Iterable[torch.Tensor], weights: torch.Tensor) -> torch.Tensor:
    """Return the logarithm of the weighted mean of probabilities, from the logits `[B, classes]` of each network.

    Values are at least log(1e-12): a class whose probability all networks round to zero would give minus infinity, and
    a student's loss would be NaN. Computed in float32 even if the networks use a lower precision.
    """
    weighted = (weights[index] * each.float().softmax(1) for index, each in enumerate(logits))
    return functools.reduce(torch.add, weighted).clamp(min=1e-12).log()
