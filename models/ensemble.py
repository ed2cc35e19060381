"""Several networks as one."""

import torch
from torch import nn


class Ensemble(nn.Module):
    """The logarithm of the weighted mean of its members' probabilities: logits `[B, classes]` of one network."""

    def __init__(self, members: list[nn.Module]):
        super().__init__()
        self.members = nn.ModuleList(members)
        self.register_buffer("weights", torch.full((len(members),), 1 / len(members)))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        mean = 0
        for index, member in enumerate(self.members):
            mean = mean + self.weights[index] * member(x).softmax(1)
        return mean.clamp(min=1e-12).log()
