"""`Distill`: a large model in, a small one out that learned from it."""

from dataclasses import dataclass
from typing import Any

from torch import nn

from distillation.teacher import Teacher, taught
from models import check_model
from training import Context, Step, StepError, check_training, fit, fresh, round_weights


@dataclass(frozen=True)
class Distill:
    """Train a fresh student under a teacher: `base.then(Distill("resnet20", epochs=60))`.

    The teacher is the model that the chain has made so far, or the recipes in `teachers`, whose probabilities are
    averaged. The loss is that of Hinton et al. (2015): see `distillation_loss`. The student sees the very images that
    its teacher sees.
    """

    model: str
    epochs: int = 30
    learning_rate: float = 0.2
    batch_size: int = 128
    weight_decay: float = 5e-4
    temperature: float = 4.0
    alpha: float = 0.9
    width: float = 1.0
    teachers: tuple[Any, ...] = ()

    def __post_init__(self):
        check_model(self.model, self.width)
        check_training(
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
        )
        check_teaching(self.temperature, self.alpha)

    def follows(self, previous: Step | None) -> None:
        if previous is None:
            raise StepError("Distill needs a teacher: start the recipe with Train or Ensemble")

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        teacher = Teacher([context.make(recipe) for recipe in self.teachers] or [model], context)
        student = fresh(self.model, self.width, context)
        fit(
            student,
            context,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            batch_size=self.batch_size,
            weight_decay=self.weight_decay,
            loss=taught(teacher, self.temperature, self.alpha),
            title=f"{self.model} under its teacher on {context.dataset.name}, seed {context.seed}",
        )
        return round_weights(student)


def check_teaching(temperature: float, alpha: float) -> None:
    """Raise StepError where the loss cannot be."""
    if not temperature > 0:
        raise StepError(f"temperature must be above 0, not {temperature}")
    if not 0 <= alpha <= 1:
        raise StepError(f"alpha, the teacher's share of the loss, must be from 0 to 1, not {alpha}")
