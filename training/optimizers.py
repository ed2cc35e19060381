"""Optimizers by name: each makes one for a model, and gives weight decay to weights, not to biases and norms.

One of your own is a row: `recipe.OPTIMIZERS["mine"] = lambda model, training: ...`. A group of parameters may have a
`scale`, by which the training's learning rate is multiplied there. Its `state` is kept with the training, for after a
kill: tensors and numbers.
"""

import torch
from torch import nn

from recipe import OPTIMIZERS, Training

SCALE = 0.5  # of Muon's learning rate for what SGD updates there


def sgd(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """SGD with Nesterov's momentum of 0.9."""
    groups = _groups(model, training.weight_decay)
    return torch.optim.SGD(groups, lr=training.learning_rate, momentum=0.9, nesterov=True)


def adamw(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """Adam with decoupled weight decay (Loshchilov and Hutter, ICLR 2019)."""
    return torch.optim.AdamW(_groups(model, training.weight_decay), lr=training.learning_rate)


def muon(model: nn.Module, training: Training) -> torch.optim.Optimizer:
    """`Muon` for kernels and hidden matrices; SGD for biases, norms and the last layer, which it is not made for."""
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
    """Momentum whose updates of weights are made orthogonal: Jordan et al., "Muon" (2024).

    A weight `[O, I, ...]` counts as a matrix `[O, I * ...]`. Its update has singular values near one, whatever those of
    the gradient, and is scaled so that its elements are of a size that the matrix's shape does not change. Groups that
    are not `orthogonal` are updated by SGD with Nesterov's momentum.
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
    """The nearest matrix with singular values near one, by Newton and Schulz's iteration in bfloat16, as Jordan has it.

    Its polynomial drives them to somewhere from 0.7 to 1.2 within a few steps, which is near enough.
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
    """Biases and batch norm's two vectors are left out of weight decay, as is customary: they hold scales."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    return [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]


OPTIMIZERS |= {own.__name__: own for own in (sgd, adamw, muon)}
