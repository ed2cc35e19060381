"""`Train`: a network on labels, from fresh weights or another recipe's."""

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

    Convolution and linear weights end rounded to bfloat16, the precision that training multiplies them in where the
    hardware can: the loss is far below what another seed changes, and the model restores exactly from half the bytes.

    `start` is a recipe of the same network to train on from: with a learning rate that rises again, a warm restart
    (Loshchilov and Hutter, "SGDR", 2017), whose epochs show other batches than those before.

    `during` are techniques at work in the training: `Train("resnet20", during=(Sparsify(0.9), Round(4)))` makes a small
    network at once. `objective` takes the place of the cross-entropy with `label_smoothing`.
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
        Labels(self.label_smoothing)  # which checks it
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
            raise StepError("Train starts a recipe: to train on from one, give it as start")
        if self.start is None:
            return
        first = self.start.steps[-1] if isinstance(self.start, Recipe) else None
        if first is None or first.network is None or first.letter:
            what = getattr(self.start, "label", self.start)
            raise StepError(f"start is a recipe that ends in Train or Pretrained, not {what!r}")
        if self.network != first.network:
            raise StepError(f"{self.model} cannot start from {self.start.label}, which is another network")

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        model = fresh(self.model, self.width, context)
        if self.start is not None:
            model, context = _further(model, self.start, context)
        objective = self.objective or Labels(self.label_smoothing)
        title = f"{self.model} on {context.dataset.name}, seed {context.seed}"
        return round_weights(fit_with(model, context, self, self.during, loss=objective.loss(None), title=title))


def check_objective(value: object) -> None:
    """Raise StepError unless a field holds an objective."""
    if not isinstance(value, Objective):
        raise StepError(f"objective is a value such as Labels(smoothing=0.1), not {value!r}")


def _further(model: nn.Module, start: Recipe, context: Context) -> tuple[nn.Module, Context]:
    """The model with the weights of `start`, and a context whose batches those weights have not seen."""
    if start.dataset != context.dataset.name:
        raise StepError(
            f"start is of {start.dataset}, the recipe of {context.dataset.name}: train on the same data set"
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
    """A network for the data set at hand, its weights drawn from the seed."""
    torch.manual_seed(context.seed)
    model = build(name, shape=context.dataset.shape, classes=len(context.dataset.classes), width=width)
    check_network(model, context.dataset.shape, len(context.dataset.classes))
    spec_of(model)["pixels"] = context.dataset.pixels
    return model


@torch.no_grad()
def round_weights(model: nn.Module) -> nn.Module:
    """Round convolution and linear weights to bfloat16, as every training in floats ends; integers stay as they are."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d | nn.Linear):
            module.weight.copy_(module.weight.bfloat16())
    return model
