"""`Train`: a network from fresh weights."""

from dataclasses import dataclass

import torch
from torch import nn

from models import build, check_model
from training.context import Context, Step, StepError, check_training
from training.loop import fit, smoothed_cross_entropy


@dataclass(frozen=True)
class Train:
    """Train a network on labels from fresh weights: `Train("resnet20", epochs=30)`; `width` scales its channels.

    Convolution and linear weights end rounded to bfloat16, the precision that training multiplies them in where the
    hardware can: the loss is far below what another seed changes, and the model restores exactly from half the bytes.
    """

    model: str
    epochs: int = 15
    learning_rate: float = 0.2
    batch_size: int = 128
    weight_decay: float = 5e-4
    label_smoothing: float = 0.1
    width: float = 1.0

    def __post_init__(self):
        check_model(self.model, self.width)
        check_training(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
        )
        if not 0 <= self.label_smoothing < 1:
            raise StepError(f"label_smoothing must be in [0, 1), not {self.label_smoothing}")

    def follows(self, previous: Step | None) -> None:
        if previous is not None:
            raise StepError("Train starts a recipe: it makes fresh weights, so nothing can come before it")

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        model = fresh(self.model, self.width, context)
        fit(
            model,
            context,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            loss=smoothed_cross_entropy(self.label_smoothing),
            title=f"{self.model} on {context.dataset.name}, seed {context.seed}",
        )
        return round_weights(model)


def fresh(name: str, width: float, context: Context) -> nn.Module:
    """A network for the data set at hand, its weights drawn from the seed."""
    torch.manual_seed(context.seed)
    return build(name, shape=context.dataset.shape, classes=len(context.dataset.classes), width=width)


@torch.no_grad()
def round_weights(model: nn.Module) -> nn.Module:
    """Round convolution and linear weights to bfloat16, as every training in floats ends."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.copy_(module.weight.bfloat16())
    return model
