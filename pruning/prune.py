"""`Prune`: sets most of a model's weights to zero."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import nn

from distillation import guided_loss
from distillation.ensemble import check_recipe, check_teacher
from models import done_to, spec_of
from pruning.schedules import SCHEDULES
from pruning.sparsify import Pruner, Sparsify
from recipe import TRAINING_FIELDS, Recipe, Step, StepError, Training, refuse_unused, shared_fields
from training import Context, fit, fresh, round_weights


@dataclass(frozen=True)
class Prune(Step, Training):
    """Set the least important weights to zero: `base.then(Prune("lookahead", sparsity=0.9))`.

    criterion, sparsity, scope, rounds, order, skip, may_empty: as in `Sparsify`.
    schedule: as in `Sparsify`; or "rewind", which applies the mask to earlier weights and trains those: the seed's
        fresh weights (Frankle and Carbin, ICLR 2019), or those of the recipe `rewind_to`, the same network after a few
        epochs (Renda et al., ICLR 2020).
    epochs: epochs of training; 0 only prunes (one_shot).
    teacher: a recipe whose logits guide the training.
    """

    letter: ClassVar[str] = "P"
    kind: ClassVar[str] = "pruned"
    gives: ClassVar[frozenset[str]] = frozenset({"zeros"})
    least_epochs: ClassVar[int] = 0
    forbids: ClassVar[dict[str, str]] = {
        "integers": "its weights are integers; prune first",
        "members": "prune its members, and make an ensemble of those",
    }

    criterion: str = "lookahead"
    sparsity: float = 0.9
    scope: str = "global"
    schedule: str = "gradual"
    rounds: int = 5
    _: KW_ONLY
    epochs: int = 5
    learning_rate: float = 0.05
    teacher: Recipe | None = None
    temperature: float = 4.0
    alpha: float = 0.9
    order: str = "together"
    skip: tuple[str, ...] = ()
    may_empty: bool = False
    rewind_to: Recipe | None = None

    def check(self) -> None:
        if self.schedule == "rewind":
            refuse_unused(self, ("rounds",), "the schedule rewind has none; use 'iterative'")
        elif self.schedule in SCHEDULES:
            refuse_unused(self, ("rewind_to",), f"the schedule {self.schedule} does not rewind; use 'rewind'")
        else:
            raise StepError(f"unknown schedule {self.schedule!r}: use one of {', '.join(SCHEDULES)}, rewind")
        check_recipe("rewind_to", self.rewind_to)
        self.sparsify()  # checks the fields of `Sparsify`
        if self.epochs == 0 and self.schedule != "one_shot":
            raise StepError(f"the schedule {self.schedule} needs epochs: only one_shot prunes without training")
        if self.epochs == 0:
            refuse_unused(self, {*TRAINING_FIELDS, "teacher"} - {"epochs"}, "nothing is trained; give it epochs")
        self.check_training()
        check_teacher(self)

    def sparsify(self) -> Sparsify:
        """Return what is done during the training."""
        schedule = "one_shot" if self.schedule == "rewind" else self.schedule
        return Sparsify(**shared_fields(self, Sparsify) | {"schedule": schedule})

    def words(self) -> list[str]:
        return self.sparsify().words()

    def taught_by(self, before: Recipe | None) -> tuple[Recipe, ...]:
        return () if self.teacher is None else (self.teacher,)

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        assert model is not None  # ensured by `check_after`
        model.to(context.device)
        pruner = Pruner(model, context, self.sparsify())
        pruner.before_epoch(0.0)
        if self.schedule == "rewind":
            model.load_state_dict(self._earlier(model, context).state_dict())
            pruner.hold()
        if self.epochs:
            title = f"{self.criterion} {self.sparsity:.0%} on {context.dataset.name}, seed {context.seed}"
            fit(model, context, self, loss=guided_loss(self, context), callbacks=[pruner], title=title)
        return round_weights(model)

    def _earlier(self, model: nn.Module, context: Context) -> nn.Module:
        """Return the network with earlier weights: fresh ones from the seed, or those of `rewind_to`."""
        spec = spec_of(model)
        if self.rewind_to is not None:
            earlier = context.make(self.rewind_to)
            if spec_of(earlier) | {"pixels": None} != spec | {"pixels": None}:  # older files have no pixels
                raise StepError(f"rewind_to makes another network ({self.rewind_to.label}) than the one it prunes")
            return earlier
        if any(done_to(spec)):
            raise StepError(
                "a network that was changed, such as in its channels, has no fresh weights: set rewind_to to a recipe"
            )
        return fresh(spec["architecture"], spec.get("width", 1.0), context)
