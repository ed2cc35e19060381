"""`Distill`: trains a small model under a large one."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import nn

from distillation.ensemble import check_recipes
from distillation.features import KINDS, Guided
from distillation.loss import SoftTargets
from models import check_model
from recipe import Objective, Recipe, Step, StepError, Technique, Training, is_number, refuse_unused, traits
from training import Context, Teacher, check_objective, check_techniques, fit, fit_with, fresh, round_weights


@dataclass(frozen=True)
class Distill(Step, Training):
    """Train a fresh student under a teacher: `base.then(Distill("resnet20", epochs=60))`.

    The teacher is the model made by the previous steps, or the recipes in `teachers`, whose probabilities are averaged;
    these also let it start a recipe: `Recipe("cifar10", (Distill("resnet20", teachers=(a, b)),))`. The loss is that of
    Hinton et al. (2015): see `distillation_loss`. Student and teacher see the same augmented images. With `features`
    ("attention" or "hints"), another loss of weight `features_weight` brings the student's feature maps close to the
    teacher's: see `distillation.features`. It needs a single teacher, whose forward pass is computed every time.

    `during` are techniques applied during the training, such as `Sparsify(0.9)` and `Round(4)`. `objective` replaces
    the loss with `temperature` and `alpha`.
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
    during: tuple[Technique, ...] = ()
    objective: Objective | None = None

    def check(self) -> None:
        check_model(self.model, self.width)
        check_recipes("teachers", self.teachers)
        self.check_training()
        check_techniques(self, self.during)
        SoftTargets(self.temperature, self.alpha)  # checks them
        if self.objective is not None:
            check_objective(self.objective)
            refuse_unused(self, ("temperature", "alpha"), "the objective has its own")
        if self.features and (self.during or self.objective):
            raise StepError("features cannot be used with techniques or an objective: leave during and objective out")
        if self.features and self.devices > 1:
            raise StepError("feature maps are compared on one device: leave features or devices out")
        if self.features not in (None, *KINDS):
            raise StepError(f"features must be one of {', '.join(KINDS)} or None, not {self.features!r}")
        weighted = is_number(self.features_weight) and self.features_weight > 0
        if not weighted or (self.features is None and self.features_weight != 1):
            raise StepError(
                "features_weight must be above 0 and finite, and has no effect without features: set both or neither"
            )

    @property
    def network(self) -> tuple[str, float]:
        return self.model, self.width

    @property
    def base(self) -> Recipe | None:
        return self.teachers[0] if self.teachers else None

    @property
    def techniques(self) -> tuple[Technique, ...]:
        return self.during

    def words(self) -> list[str]:
        return ["distilled", *(word for technique in self.during for word in technique.words())]

    def taught_by(self, before: Recipe | None) -> tuple[Recipe, ...]:
        if self.features:  # those of feature maps are not kept
            return ()
        return self.teachers or ((before,) if before is not None else ())

    def check_after(self, before: tuple[Step, ...]) -> None:
        if not before and not self.teachers:
            raise StepError("Distill needs a teacher: start the recipe with Train or Ensemble, or give it teachers")
        taught_by = [recipe.steps for recipe in self.teachers] or [before]
        if self.features and (len(taught_by) > 1 or "members" in traits(taught_by[0])):
            raise StepError("features need the feature maps of a single network: give one teacher that is no ensemble")

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        previous = [] if model is None else [model]
        teacher = Teacher([context.make(recipe) for recipe in self.teachers] or previous, context)
        context.log["teacher_pflop"] = teacher.pflop(self.distinct_epochs)
        student = fresh(self.model, self.width, context)
        title = f"{self.model} under its teacher on {context.dataset.name}, seed {context.seed}"
        if self.features:
            guided = Guided(student, teacher.models[0], self.features)
            loss = guided.loss(self.temperature, self.alpha, self.features_weight)
            fit(guided, context, self, loss=loss, title=title)
        else:
            objective = self.objective or SoftTargets(self.temperature, self.alpha)
            loss = objective.loss(teacher.logits)
            student = fit_with(student, context, self, self.during, loss=loss, title=title)
        return round_weights(student)
