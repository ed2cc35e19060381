"""`Distill`: a large model in, a small one out that learned from it."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Protocol

from torch import nn

from distillation.ensemble import check_recipes
from distillation.features import KINDS, Guided
from distillation.teacher import Teacher, taught
from models import check_model
from recipe import Recipe, Step, StepError, Training, is_number, traits
from training import Context, fit, fresh, round_weights


@dataclass(frozen=True)
class Distill(Step, Training):
    """Train a fresh student under a teacher: `base.then(Distill("resnet20", epochs=60))`.

    The teacher is the model that the chain has made so far, or the recipes in `teachers`, whose probabilities are
    averaged; with those it may start a recipe: `Recipe("cifar10", (Distill("resnet20", teachers=(a, b)),))`. The loss
    is that of Hinton et al. (2015): see `distillation_loss`. The student sees the very images that its teacher sees.
    With `features`, "attention" or "hints", its feature maps come near the teacher's too, with a loss of weight
    `features_weight`: see `distillation.features`. That takes one teacher, and its forward pass.
    """

    letter: ClassVar[str] = "D"
    kind: ClassVar[str] = "distilled"

    model: str
    _: KW_ONLY
    epochs: int = 30
    temperature: float = 4.0
    alpha: float = 0.9
    width: float = 1.0
    teachers: tuple[Recipe, ...] = ()
    features: str | None = None
    features_weight: float = 1.0

    def check(self) -> None:
        check_model(self.model, self.width)
        check_recipes("teachers", self.teachers)
        self.check_training()
        check_teaching(self.temperature, self.alpha)
        if self.features not in (None, *KINDS):
            raise StepError(f"features are one of {', '.join(KINDS)} or None, not {self.features!r}")
        weighted = is_number(self.features_weight) and self.features_weight > 0
        if not weighted or (self.features is None and self.features_weight != 1):
            raise StepError(
                "features_weight must be above 0 and finite, and means nothing without features: set both or none"
            )

    @property
    def network(self) -> tuple[str, float]:
        return self.model, self.width

    @property
    def base(self) -> Recipe | None:
        return self.teachers[0] if self.teachers else None

    def check_after(self, before: tuple[Step, ...]) -> None:
        check_taught(self, before)
        taught_by = [recipe.steps for recipe in self.teachers] or [before]
        if self.features and (len(taught_by) > 1 or "members" in traits(taught_by[0])):
            raise StepError("feature maps are those of one network: with features, give one teacher, no ensemble")

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        teacher = teacher_of(self, model, context)
        student = fresh(self.model, self.width, context)
        trained, loss = student, taught(teacher, self.temperature, self.alpha)
        if self.features:
            trained = Guided(student, teacher.models[0], self.features)
            loss = trained.loss(self.temperature, self.alpha, self.features_weight)
        fit(
            trained,
            context,
            self,
            loss=loss,
            title=f"{self.model} under its teacher on {context.dataset.name}, seed {context.seed}",
        )
        return round_weights(student)


class HasTeachers(Protocol):
    """A step that learns from the recipes that it names, or else from the model that it follows."""

    @property
    def teachers(self) -> tuple[Recipe, ...]: ...
    @property
    def name(self) -> str: ...


def check_taught(step: HasTeachers, before: tuple[Step, ...]) -> None:
    """Raise StepError where a step that needs a teacher neither follows a model nor names one in its `teachers`."""
    if not before and not step.teachers:
        raise StepError(f"{step.name} needs a teacher: start the recipe with Train or Ensemble, or give it teachers")


def teacher_of(step: HasTeachers, model: nn.Module | None, context: Context) -> Teacher:
    """The `teachers` that a step names, or else the model that it follows."""
    followed = [] if model is None else [model]
    return Teacher([context.make(recipe) for recipe in step.teachers] or followed, context)


def check_teaching(temperature: float, alpha: float) -> None:
    """Raise StepError where the loss cannot be."""
    if not (is_number(temperature) and temperature > 0):
        raise StepError(f"temperature must be above 0 and finite, not {temperature!r}")
    if not (is_number(alpha) and 0 <= alpha <= 1):
        raise StepError(f"alpha, the teacher's share of the loss, must be from 0 to 1, not {alpha!r}")
