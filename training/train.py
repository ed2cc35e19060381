"""`Train`: train a network on labels, from fresh weights or those of another recipe."""

import dataclasses
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import nn

from data import epoch_seed
from models import build, check_model, check_network, spec_of
from recipe import Objective, Recipe, Step, StepError, Technique, Training, refuse_unused
from training.context import Context
from training.objectives import Labels
from training.techniques import check_techniques, fit_with


@dataclass(frozen=True)
class Train(Step, Training):
    """Train a network on labels from fresh weights: `Train("resnet20", epochs=30)`; `width` scales its channels.

    After training, the weights of convolutions and linear layers are rounded to bfloat16, the precision in which
    training multiplies them if the hardware can. This costs far less accuracy than a change of seed, and halves the
    bytes needed to restore the model exactly.

    `start` is a recipe of the same network whose weights are trained further. The learning rate rises again: a warm
    restart (Loshchilov and Hutter, "SGDR", 2017). The batches differ from those of the earlier epochs.

    `during` holds techniques applied in the training: `Train("resnet20", during=(Sparsify(0.9), Round(4)))` makes a
    small network in one training. `objective` replaces the cross-entropy with `label_smoothing`.
    """

    letter: ClassVar[str] = ""
    kind: ClassVar[str] = "FP32"
    begins: ClassVar[bool] = True

    model: str
    _: KW_ONLY
    label_smoothing: float = 0.1
    width: float = 1.0
    start: Recipe | None = None
    during: tuple[Technique, ...] = ()
    objective: Objective | None = None

    def check(self) -> None:
        check_model(self.model, self.width)
        self.check_training()
        check_techniques(self, self.during)
        Labels(self.label_smoothing)  # checks it
        if self.objective is not None:
            check_objective(self.objective)
            refuse_unused(self, ("label_smoothing",), "the objective has its own labels")

    @property
    def techniques(self) -> tuple[Technique, ...]:
        return self.during

    @property
    def network(self) -> tuple[str, float]:
        return self.model, self.width

    @property
    def continued(self) -> Recipe | None:
        return self.start

    def words(self) -> list[str]:
        return [word for technique in self.during for word in technique.words()]

    def check_after(self, before: tuple[Step, ...]) -> None:
        if before:
            raise StepError("Train starts a recipe: to continue another recipe, pass it as start")
        if self.start is None:
            return
        first = self.start.steps[-1] if isinstance(self.start, Recipe) else None
        if first is None or first.network is None or first.letter:
            what = getattr(self.start, "label", self.start)
            raise StepError(f"start is a recipe that ends in Train or Pretrained, not {what!r}")
        if "integers" in first.given:
            raise StepError(
                f"{self.start.label} has integer weights, and Train trains floats: start from it without Round"
            )
        if self.network != first.network:
            raise StepError(f"{self.model} cannot start from {self.start.label}, which is another network")

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        model = fresh(self.model, self.width, context)
        if self.start is not None:
            model, context = _continued(model, self.start, context)
        objective = self.objective or Labels(self.label_smoothing)
        title = f"{self.model} on {context.dataset.name}, seed {context.seed}"
        return round_weights(fit_with(model, context, self, self.during, loss=objective.loss(None), title=title))


def check_objective(value: object) -> None:
    """Raise StepError unless `value` is an objective."""
    if not isinstance(value, Objective):
        raise StepError(f"objective is a value such as Labels(smoothing=0.1), not {value!r}")


def _continued(model: nn.Module, start: Recipe, context: Context) -> tuple[nn.Module, Context]:
    """Return the model with the weights of `start`, and a context whose batches those weights have not seen."""
    if start.dataset != context.dataset.name:
        raise StepError(
            f"start was trained on {start.dataset}, the recipe uses {context.dataset.name}: use the same data set"
        )
    begun = context.make(start)
    model.load_state_dict(begun.state_dict())
    pixels = spec_of(begun).get("pixels", context.dataset.pixels)
    spec_of(model)["pixels"] = pixels
    seen: int = 0
    earlier: Step | None = start.steps[-1]
    while isinstance(earlier, Train):
        seen += earlier.epochs
        earlier = earlier.start.steps[-1] if earlier.start is not None else None
    seed = epoch_seed(context.seed, seen) if seen else context.seed
    return model, dataclasses.replace(context, dataset=context.dataset.on_scale(pixels), seed=seed)


def fresh(name: str, width: float, context: Context) -> nn.Module:
    """Build a network for the context's data set, with weights drawn from its seed."""
    torch.manual_seed(context.seed)
    model = build(name, shape=context.dataset.shape, classes=len(context.dataset.classes), width=width)
    check_network(model, context.dataset.shape, len(context.dataset.classes))
    spec_of(model)["pixels"] = context.dataset.pixels
    return model


@torch.no_grad()
def round_weights(model: nn.Module) -> nn.Module:
    """Round convolution and linear weights to bfloat16, the last act of every float training, and return the model."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.copy_(module.weight.bfloat16())
    return model
