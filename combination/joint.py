"""`Joint`: distils, prunes and quantizes a student in one training."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import nn

from distillation import Distill
from pruning import Sparsify
from quantization import Round
from quantization.weights import Bits
from recipe import Recipe, Step, StepError, Training, shared_fields
from training import Context, check_start, first_epoch


@dataclass(frozen=True)
class Joint(Step, Training):
    """Train a fresh student, pruned and quantized, at once: `base.then(Joint("resnet20", sparsity=0.5, bits=4))`.

    Short for `Distill` with `Sparsify`, starting at the share `prune_from` of the training, and `Round`, starting at
    `quantize_from`; the other fields are theirs. Kim et al., "PQK: model compression via pruning, quantization, and
    knowledge distillation" (Interspeech 2021), do the same in two phases.
    """

    letter: ClassVar[str] = "J"
    kind: ClassVar[str] = "joint training"
    gives: ClassVar[frozenset[str]] = frozenset({"integers", "zeros"})

    model: str
    sparsity: float = 0.5
    bits: Bits = 4
    _: KW_ONLY
    epochs: int = 30
    prune_from: float = 0.0
    quantize_from: float = 0.6
    criterion: str = "lookahead"
    first_last_bits: int | None = 8
    images: int = 512
    percentile: float = 99.99
    temperature: float = 4.0
    alpha: float = 0.9
    width: float = 1.0
    layer_bits: tuple[tuple[str, Bits], ...] = ()
    teachers: tuple[Recipe, ...] = ()

    def check(self) -> None:
        self.check_training()
        check_start("prune_from", self.prune_from, self.epochs, "prune and recover in")
        check_start("quantize_from", self.quantize_from, self.epochs, "train with rounding")
        self.composed()  # checks all other fields

    @property
    def first_rounded(self) -> int:
        """The first epoch, counted from 0, with rounded weights and activations."""
        return first_epoch(self.quantize_from, self.epochs)

    def composed(self) -> Distill:
        """Return the same step as a `Distill` with techniques."""
        sparsify = Sparsify(**shared_fields(self, Sparsify), start=self.prune_from)
        rounding = Round(**shared_fields(self, Round), start=self.quantize_from)
        return Distill(**shared_fields(self, Distill), during=(sparsify, rounding))

    @property
    def network(self) -> tuple[str, float]:
        return self.model, self.width

    @property
    def base(self) -> Recipe | None:
        return self.composed().base

    def taught_by(self, before: Recipe | None) -> tuple[Recipe, ...]:
        return self.composed().taught_by(before)

    def words(self) -> list[str]:
        return [*self.composed().words(), f"in one training of {self.epochs} epochs"]

    def check_after(self, before: tuple[Step, ...]) -> None:
        if not before and not self.teachers:
            raise StepError("Joint needs a teacher: start the recipe with Train or Ensemble, or give it teachers")

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        return self.composed().apply(model, context)
