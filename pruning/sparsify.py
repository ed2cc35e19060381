"""`Sparsify`: prunes weights during a training."""

from collections.abc import Iterable
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import nn

from pruning.criteria import BY_ITSELF, COMPARABLE, CRITERIA, LOOKS_AROUND
from pruning.graph import LAYERS, is_layer, layer_graph, layers_of
from pruning.masks import largest, layer_shares, select
from pruning.schedules import SCHEDULES
from recipe import StepError, Technique, Training, check_whole, is_number, refuse_unused
from training import Callback, Context, Since, check_start


@dataclass(frozen=True)
class Sparsify(Technique):
    """Set the least important weights to zero during a training: `Train("resnet20", during=(Sparsify(0.9),))`.

    sparsity: final share of zeros among the weights of convolutions and linear layers, 0 <= sparsity < 1.
    criterion: one of `pruning.criteria.CRITERIA`.
    scope: "global" or "layer" (see `pruning.masks.select`).
    schedule: "one_shot" at the start, "iterative" in `rounds` rounds, or "gradual" along a cubic.
    order: "together"; or layer by layer, "forward" or "backward", where each layer is scored after the previous ones
        are pruned (Park et al.'s LAP-forward and LAP-backward). Each layer loses as many weights as with "together".
        Not for criteria that score each layer by itself.
    skip: names of layers not to prune; the others are pruned more to reach the sparsity.
    may_empty: whether a layer may lose all of its weights.
    start: share of the training after which pruning begins.
    """

    letter: ClassVar[str] = "P"
    kind: ClassVar[str] = "pruned"
    gives: ClassVar[frozenset[str]] = frozenset({"zeros"})

    sparsity: float = 0.9
    criterion: str = "lookahead"
    _: KW_ONLY
    scope: str = "global"
    schedule: str = "gradual"
    rounds: int = 5
    order: str = "together"
    skip: tuple[str, ...] = ()
    may_empty: bool = False
    start: float = 0.0

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
            raise StepError(f"sparsity must be from 0 to below 1, not {self.sparsity!r}: write 0.9 for 90 %")
        if not isinstance(self.skip, tuple) or not all(isinstance(name, str) for name in self.skip):
            raise StepError(f"skip must be a tuple of layer names, such as skip=('conv',), not {self.skip!r}")
        if self.order != "together" and self.criterion in BY_ITSELF:
            raise StepError(f"{self.criterion} scores each layer by itself: order has no effect, leave it out")
        if self.skip and self.scope == "layer":
            raise StepError("scope 'layer' has its own rule for the first and last layer: use skip with scope 'global'")
        check_whole("rounds", self.rounds)
        if self.schedule != "iterative":
            refuse_unused(self, ("rounds",), f"the schedule {self.schedule} has none; use 'iterative'")

    def check_in(self, training: Training) -> None:
        check_start("start", self.start, training.epochs, "prune and recover in")

    def words(self) -> list[str]:
        by = "" if self.criterion == Sparsify.criterion else f" by {self.criterion}"
        return [f"pruned {100 * self.sparsity:g} %{by}"]

    def callback(self, model: nn.Module, trained: nn.Module, context: Context, training: Training) -> Callback:
        return Since(self.start, Pruner(model, context, self))


class Pruner(Callback):
    """Keeps pruned weights at zero during a training, and prunes more as the schedule demands.

    The masks are derived from the zeros in the weights alone, so that an interrupted training resumes correctly.
    """

    def __init__(self, model: nn.Module, context: Context, step: Sparsify):
        self.model, self.context, self.step = model, context, step
        for name, module in model.named_modules():
            if isinstance(module, LAYERS) and not is_layer(module):
                raise StepError(f"the weight of {name} is computed from others, as weight norm does: it cannot be zero")
        self.graph = (layer_graph if step.criterion in LOOKS_AROUND else layers_of)(model)
        unknown = [name for name in step.skip if name not in self.graph]
        if unknown:
            raise StepError(f"skip names {unknown[0]!r}, which is not a layer: use some of {', '.join(self.graph)}")
        sizes = {name: layer.module.weight.numel() for name, layer in self.graph.items()}
        self._free = [name for name in self.graph if name not in step.skip]
        self._total = sum(sizes.values())
        left = sum(sizes[name] for name in self._free) / self._total
        if step.sparsity >= left:
            raise StepError(f"a sparsity of {step.sparsity} is more than skip leaves, {left:.3f}: skip fewer layers")
        if step.scope == "layer":
            layer_shares(sizes, step.sparsity)  # checks now that the sparsity can be reached, not late in a training
        self.masks: dict[str, torch.Tensor] = {}
        self._asked = 0

    def before_epoch(self, done: float) -> None:
        """Rebuild the masks from the zeros, then prune to the schedule's target.

        If the training resumes, the target of this point counts as met.
        """
        self.masks = {name: layer.module.weight.detach() != 0 for name, layer in self.graph.items()}
        if done > 0:
            self._asked = max(self._asked, self._due(done))
        else:
            self._refuse_sparser()
        self._advance(done)

    def after_step(self, done: float) -> None:
        """Set pruned weights back to zero after an update, then prune to the schedule's target."""
        self.hold()
        self._advance(done)

    def _refuse_sparser(self) -> None:
        zeros = self._zeros(self.masks)
        if zeros > round(self.step.sparsity * self._total):
            share = f"{100 * zeros / self._total:.1f} % of the weights are zero already"
            raise StepError(f"{share}: a sparsity of {self.step.sparsity} cannot bring them back, ask for more")

    @torch.no_grad()
    def hold(self) -> None:
        """Set pruned weights back to zero."""
        for name, mask in self.masks.items():
            self.graph[name].module.weight.masked_fill_(~mask, 0)  # multiplying would leave negative zeros

    def _due(self, done: float) -> int:
        """Return how many weights of the layers that are not skipped should be zero by now."""
        share = SCHEDULES[self.step.schedule](done, self.step.sparsity, self.step.rounds)
        return round(share * self._total) - self._zeros(self.step.skip)

    def _zeros(self, names: Iterable[str]) -> int:
        return sum(int((~self.masks[name]).sum()) for name in names)

    def _advance(self, done: float) -> None:
        due, step = self._due(done), self.step
        if due <= self._asked or due <= self._zeros(self._free):  # the count comes last, since it is slow
            return
        self._asked = due  # not tried again if fewer were pruned since a layer keeps its last weight
        sparsity = due / sum(self.masks[name].numel() for name in self._free)
        masks = select(self._scores(), sparsity, step.scope, step.criterion in COMPARABLE, step.may_empty)
        if step.order == "together":
            self.masks |= masks
        for name in {"forward": list(masks), "backward": list(masks)[::-1]}.get(step.order, ()):
            self.masks[name] = largest(self._scores()[name], int(masks[name].sum()))
            self.hold()
        self.hold()

    def _scores(self) -> dict[str, torch.Tensor]:
        """Return the scores of the current weights; pruned ones get -1, so that they stay pruned."""
        scores = CRITERIA[self.step.criterion](self.model, self.graph, self.context)
        return {name: torch.where(self.masks[name], scores[name], -1.0) for name in self._free}
