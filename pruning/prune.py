"""`Prune`: a model in, the same model with most of its weights at zero out."""

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import nn

from distillation import check_teaching, guided_loss
from distillation.ensemble import check_recipe, check_teacher
from models import spec_of
from pruning.criteria import BY_ITSELF, COMPARABLE, CRITERIA, LOOKS_AROUND
from pruning.graph import LAYERS, is_layer, layer_graph, layers_of
from pruning.masks import largest, layer_shares, select
from pruning.schedules import SCHEDULES
from recipe import (
    TRAINING_FIELDS,
    Recipe,
    Step,
    StepError,
    Training,
    check_whole,
    is_number,
    refuse_unused,
)
from training import Callback, Context, fit, fresh, round_weights


@dataclass(frozen=True)
class Prune(Step, Training):
    """Set the weights that matter least to zero: `base.then(Prune("lookahead", sparsity=0.9))`.

    criterion: one of `pruning.criteria.CRITERIA`; scope: "global" or "layer" (see `pruning.masks.select`).
    sparsity: share of the weights of convolutions and linear layers that is zero in the end, 0 <= sparsity < 1.
    schedule: "one_shot" prunes, then trains on; "iterative" in `rounds` rounds, "gradual" along a cubic, both inside
        the training; "rewind" takes the mask back to earlier weights and trains those: the fresh ones of the seed
        (Frankle and Carbin, ICLR 2019), or those of the recipe `rewind_to`, the same network after a few epochs
        (Renda et al., ICLR 2020).
    order: "together"; or layer by layer, "forward" or "backward", each scored with those before it pruned already (Park
        et al.'s LAP-forward and LAP-backward). Each layer loses as many weights as it would have lost together. Not
        for criteria that score a layer by itself.
    skip: names of layers to leave alone; the others make up for them. may_empty: whether a layer may lose all weights.
    epochs: of training; 0 only prunes (one_shot). `teacher` (a recipe) guides it by its logits.
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
        for what, name, known in (
            ("criterion", self.criterion, CRITERIA),
            ("scope", self.scope, ("global", "layer")),
            ("schedule", self.schedule, SCHEDULES),
            ("order", self.order, ("together", "forward", "backward")),
        ):
            if not isinstance(name, str) or name not in known:
                raise StepError(f"unknown {what} {name!r}: use one of {', '.join(known)}")
        if not (is_number(self.sparsity) and 0 <= self.sparsity < 1):
            raise StepError(f"sparsity is a share from 0 to below 1, not {self.sparsity!r}: write 0.9 for 90 %")
        if not isinstance(self.skip, tuple) or not all(isinstance(name, str) for name in self.skip):
            raise StepError(f"skip is a tuple of layers' names, such as skip=('conv',), not {self.skip!r}")
        if self.order != "together" and self.criterion in BY_ITSELF:
            raise StepError(f"{self.criterion} scores a layer by itself: an order changes nothing, leave it out")
        if self.schedule != "rewind":
            refuse_unused(self, ("rewind_to",), f"the schedule {self.schedule} does not rewind; use 'rewind'")
        check_recipe("rewind_to", self.rewind_to)
        if self.skip and self.scope == "layer":
            raise StepError(
                "scope 'layer' has its own rule for the first and last layer: skip goes with scope 'global'"
            )
        check_whole("rounds", self.rounds)
        if self.schedule != "iterative":
            refuse_unused(self, ("rounds",), f"the schedule {self.schedule} has none; use 'iterative'")
        if self.epochs == 0 and self.schedule != "one_shot":
            raise StepError(f"the schedule {self.schedule} needs epochs: only one_shot prunes without training")
        if self.epochs == 0:
            refuse_unused(self, {*TRAINING_FIELDS, "teacher"} - {"epochs"}, "nothing is trained; give it epochs")
        self.check_training()
        check_teaching(self.temperature, self.alpha)
        check_teacher(self)

    def words(self) -> list[str]:
        by = "" if self.criterion == Prune.criterion else f" by {self.criterion}"
        return [f"pruned {100 * self.sparsity:g} %{by}"]

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        assert model is not None  # `check_after` saw to it
        model.to(context.device)
        if self.schedule == "rewind" and self.rewind_to is None and "channels" in spec_of(model):
            raise StepError("a network without some of its channels has no fresh weights: name a recipe in rewind_to")
        pruner = Pruner(model, context, self)
        pruner.before_epoch(0.0)
        if self.schedule == "rewind":
            pruner.rewind()
        if self.epochs:
            fit(
                model,
                context,
                self,
                loss=guided_loss(self, context),
                callbacks=[pruner],
                title=f"{self.criterion} {self.sparsity:.0%} on {context.dataset.name}, seed {context.seed}",
            )
        return round_weights(model)


class Pruner(Callback):
    """Keeps pruned weights at zero through a training, and prunes more as the schedule asks.

    What is pruned is known from the zeros alone, so that a training that was killed goes on as it was.
    """

    def __init__(self, model: nn.Module, context: Context, step: Prune):
        self.model, self.context, self.step = model, context, step
        for name, module in model.named_modules():
            if isinstance(module, LAYERS) and not is_layer(module):
                raise StepError(f"the weight of {name} is computed from others, as weight norm does: it cannot be zero")
        self.graph = (layer_graph if step.criterion in LOOKS_AROUND else layers_of)(model)
        unknown = [name for name in step.skip if name not in self.graph]
        if unknown:
            raise StepError(f"skip names {unknown[0]!r}, which is no layer: use some of {', '.join(self.graph)}")
        sizes = {name: layer.module.weight.numel() for name, layer in self.graph.items()}
        self._free = [name for name in self.graph if name not in step.skip]
        self._total = sum(sizes.values())
        left = sum(sizes[name] for name in self._free) / self._total
        if step.sparsity >= left:
            raise StepError(f"a sparsity of {step.sparsity} is more than skip leaves, {left:.3f}: skip fewer layers")
        if step.scope == "layer":
            layer_shares(sizes, step.sparsity)  # now, and not where a long training first asks for too much
        self.masks: dict[str, torch.Tensor] = {}
        self._asked = 0

    def before_epoch(self, done: float) -> None:
        """Take up the zeros that there are, and prune what is due; all was asked that is due after the start."""
        self.masks = {name: layer.module.weight.detach() != 0 for name, layer in self.graph.items()}
        if done > 0:
            self._asked = max(self._asked, self._due(done))
        else:
            self._refuse_sparser()
        self._advance(done)

    def after_step(self, done: float) -> None:
        """Undo what the update did to pruned weights, and prune what is due."""
        self._hold()
        self._advance(done)

    def rewind(self) -> None:
        """Earlier weights, fresh ones from the seed or those of `rewind_to`, with the masks."""
        spec = spec_of(self.model)
        if self.step.rewind_to is None:
            earlier = fresh(spec["architecture"], spec.get("width", 1.0), self.context)
        else:
            earlier = self.context.make(self.step.rewind_to)
            if spec_of(earlier) | {"pixels": None} != spec | {"pixels": None}:  # networks from before have none
                raise StepError(f"rewind_to makes another network ({self.step.rewind_to.label}) than the one it prunes")
        self.model.load_state_dict(earlier.state_dict())
        self._hold()

    def _refuse_sparser(self) -> None:
        zeros = self._zeros(self.masks)
        if zeros > round(self.step.sparsity * self._total):
            share = f"{100 * zeros / self._total:.1f} % of the weights are zero already"
            raise StepError(f"{share}: a sparsity of {self.step.sparsity} cannot bring them back, ask for more")

    @torch.no_grad()
    def _hold(self) -> None:
        for name, mask in self.masks.items():
            self.graph[name].module.weight.masked_fill_(~mask, 0)  # not a product, which would leave negative zeros

    def _due(self, done: float) -> int:
        """How many weights of the layers that are not skipped are to be zero."""
        share = SCHEDULES[self.step.schedule](done, self.step.sparsity, self.step.rounds)
        return round(share * self._total) - self._zeros(self.step.skip)

    def _zeros(self, names: Iterable[str]) -> int:
        return sum(int((~self.masks[name]).sum()) for name in names)

    def _advance(self, done: float) -> None:
        due, step = self._due(done), self.step
        if due <= self._asked or due <= self._zeros(self._free):  # counting last: this runs after every step
            return
        self._asked = due  # fewer go where a layer keeps its last weight: not to be tried again
        sparsity = due / sum(self.masks[name].numel() for name in self._free)
        masks = select(self._scores(), sparsity, step.scope, step.criterion in COMPARABLE, step.may_empty)
        if step.order == "together":
            self.masks |= masks
        for name in {"forward": list(masks), "backward": list(masks)[::-1]}.get(step.order, ()):
            self.masks[name] = largest(self._scores()[name], int(masks[name].sum()))
            self._hold()
        self._hold()

    def _scores(self) -> dict[str, torch.Tensor]:
        """Of every layer's weights as they are; what is pruned stays so: it ranks below everything else."""
        scores = CRITERIA[self.step.criterion](self.model, self.graph, self.context)
        return {name: torch.where(self.masks[name], scores[name], -1.0) for name in self._free}
