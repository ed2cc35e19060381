"""Optimizers by name: functions that build one for a model, with weight decay on weights but not on biases and norms.

Add your own by `recipe.OPTIMIZERS["mine"] = lambda model, training: ...`. A parameter group may have a `scale` that
multiplies the learning rate. The optimizer's `state`, tensors and numbers, is saved with the training, so that it can
be resumed.
"""

import torch
from torch import nn

from recipe import OPTIMIZERS, Training

SCALE = 0.5  # factor of the learning rate for the parameters that Muon updates by SGD


def sgd(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """SGD with Nesterov momentum of 0.9."""
    groups = _groups(model, training.weight_decay)
    return torch.optim.SGD(groups, lr=training.learning_rate, momentum=0.9, nesterov=True)


def adamw(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019)."""
    return torch.optim.AdamW(_groups(model, training.weight_decay), lr=training.learning_rate)


def muon(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """`Muon` for kernels and hidden matrices; SGD for biases, norms and the last layer, for which Muon is not meant."""
    weights = [parameter for parameter in model.parameters() if parameter.ndim > 1]
    vectors = [parameter for parameter in model.parameters() if parameter.ndim <= 1]
    decay = {"weight_decay": training.weight_decay}
    groups = [
        {"params": weights[:-1], "orthogonal": True, "scale": 1.0, **decay},
        {"params": weights[-1:], "orthogonal": False, "scale": SCALE, **decay},
        {"params": vectors, "orthogonal": False, "scale": SCALE, "weight_decay": 0.0},
    ]
    return Muon([group for group in groups if group["params"]], training.learning_rate)


class Muon(torch.optim.Optimizer):
    """Momentum with orthogonalized updates: Jordan et al., "Muon" (2024).

    A weight `[O, I, ...]` is treated as a matrix `[O, I * ...]`. Its update has singular values near one, whatever
    those of the gradient, and is scaled so that the size of its elements does not depend on the matrix's shape. Groups
    that are not `orthogonal` are updated by SGD with Nesterov momentum.
    """

    def __init__(self, groups: list[dict], lr: float, momentum: float = 0.9):
        super().__init__(groups, {"lr": lr, "momentum": momentum})

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, parameter.grad, group)

    def _update(self, parameter: torch.Tensor, gradient: torch.Tensor, group: dict) -> None:
        state, rate, momentum = self.state[parameter], group["lr"], group["momentum"]
        if "momentum_buffer" not in state:
            state["momentum_buffer"] = torch.zeros_like(parameter)
        if not group["orthogonal"]:
            gradient = gradient.add(parameter, alpha=group["weight_decay"])
            buffer = state["momentum_buffer"].mul_(momentum).add_(gradient)
            parameter.add_(gradient.add(buffer, alpha=momentum), alpha=-rate)
            return
        buffer = state["momentum_buffer"].mul_(momentum).add_(gradient)
        direction = gradient.add(buffer, alpha=momentum)
        matrix = orthogonal(direction.reshape(len(direction), -1))
        size = max(1.0, matrix.shape[0] / matrix.shape[1]) ** 0.5
        parameter.mul_(1 - rate * group["weight_decay"])
        parameter.add_(matrix.reshape(parameter.shape), alpha=-rate * size)


def orthogonal(matrix: torch.Tensor, steps: int = 5) -> torch.Tensor:
    """Return the nearest matrix with singular values near one, by Jordan's Newton-Schulz iteration in bfloat16.

    Its polynomial brings the singular values between 0.7 and 1.2 within a few steps, which is close enough.
    """
    a, b, c = 3.4445, -4.7750, 2.0315
    x = matrix.bfloat16() / (matrix.norm() + 1e-7)
    if tall := x.shape[0] > x.shape[1]:
        x = x.T
    for _ in range(steps):
        square = x @ x.T
        x = a * x + (b * square + c * square @ square) @ x
    return (x.T if tall else x).to(matrix.dtype)


def _groups(model: nn.Module, weight_decay: float) -> list[dict]:
    """Return parameter groups without weight decay for biases and the vectors of batch norm, as is customary."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


OPTIMIZERS |= {known.__name__: known for known in (sgd, adamw, muon)}
