"""`Joint`: distil, prune and quantize a student in one training."""

import copy
import math
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import fx, nn

from distillation import check_taught, check_teaching, taught, teacher_of
from distillation.ensemble import check_recipes
from models import check_model
from models.quantized import insert_quantizers
from pruning import Prune, Pruner
from quantization import Quantize, calibrate, qat
from quantization.quantize import Rounding
from quantization.weights import Bits, bits_by_layer
from recipe import Recipe, Step, StepError, Training, is_number
from training import Callback, Context, Since, fit, fresh


@dataclass(frozen=True)
class Joint(Step, Training):
    """A fresh student, small in every way, from one training: `base.then(Joint("resnet20", sparsity=0.5, bits=4))`.

    It learns from the model that the chain has made so far, or from the recipes in `teachers` as Distill does, is
    pruned along a cubic after the share `prune_from` of the training, and from the first whole epoch after the share
    `quantize_from` on computes with rounded weights and activations, whose steps it learns. Kim et al., "PQK: model
    compression via pruning, quantization, and knowledge distillation" (Interspeech 2021), go the same way in two
    phases. `bits`, `first_last_bits`, `layer_bits`, `images` and `percentile` are those of Quantize, `criterion` and
    `sparsity` those of Prune, the others those of Distill.
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
        check_model(self.model, self.width)
        check_recipes("teachers", self.teachers)
        check_teaching(self.temperature, self.alpha)
        self.check_training()
        self._pruning(), self._rounding()  # which check their own fields
        for what, left_for in (("prune_from", "prune and recover in"), ("quantize_from", "train with rounding")):
            share = getattr(self, what)
            if not (is_number(share) and 0 <= share < 1):
                raise StepError(f"{what} is a share of the training, 0 to below 1, not {share!r}")
            if _first_epoch(share, self.epochs) == self.epochs:
                most = math.floor(1000 * (1 - 1 / self.epochs) + 1e-9) / 1000
                raise StepError(
                    f"{what} leaves no whole epoch to {left_for}: of {self.epochs} epochs it is at most {most:g}, "
                    f"not {share}"
                )

    @property
    def first_rounded(self) -> int:
        """The first epoch, from 0, that computes with rounded weights and activations."""
        return _first_epoch(self.quantize_from, self.epochs)

    def _pruning(self) -> Prune:
        return Prune(self.criterion, self.sparsity, epochs=self.epochs)

    def _rounding(self) -> Quantize:
        first_last, own = self.first_last_bits, self.layer_bits
        return Quantize("qat", self.bits, self.images, self.percentile, first_last_bits=first_last, layer_bits=own)

    @property
    def network(self) -> tuple[str, float]:
        return self.model, self.width

    @property
    def base(self) -> Recipe | None:
        return self.teachers[0] if self.teachers else None

    def words(self) -> list[str]:
        once = f"in one training of {self.epochs} epochs"
        return ["distilled", *self._pruning().words(), *self._rounding().words(), once]

    def check_after(self, before: tuple[Step, ...]) -> None:
        check_taught(self, before)

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        teacher = teacher_of(self, model, context)
        student = fresh(self.model, self.width, context)
        trained = qat.prepare(student, bits_by_layer(student, self.bits, self.first_last_bits, self.layer_bits))
        _share(student, trained)
        pruner = Pruner(student, context, self._pruning())
        fit(
            trained,
            context,
            self,
            loss=taught(teacher, self.temperature, self.alpha),
            callbacks=[_AtOnce(self, trained, student, pruner, context)],
            title=f"{self.model} in one training on {context.dataset.name}, seed {context.seed}",
        )
        return qat.finish(trained, student)


class _AtOnce(Callback):
    """Pruning from the share `prune_from` of a training on, and rounding from the first whole epoch after another."""

    def __init__(self, step: Joint, trained: fx.GraphModule, student: nn.Module, pruner: Pruner, context: Context):
        self.step, self.trained, self.student, self.context = step, trained, student, context
        self.pruning = Since(step.prune_from, pruner)
        self.rounding = Since(step.quantize_from, Rounding(trained))

    def before_epoch(self, done: float) -> None:
        self.pruning.before_epoch(done)
        epoch = round(done * self.step.epochs)
        if epoch < self.step.first_rounded:
            return
        if epoch == self.step.first_rounded:  # later the steps are those learned
            calibrated = insert_quantizers(copy.deepcopy(self.student))
            calibrate(calibrated, self.context.dataset, self.step.images, self.step.percentile, self.context.seed)
            qat.start(self.trained, calibrated)
        qat.enable(self.trained)
        self.rounding.before_epoch(done)

    def after_step(self, done: float) -> None:
        self.pruning.after_step(done)
        self.rounding.after_step(done)


def _first_epoch(share: float, epochs: int) -> int:
    """The first whole epoch, from 0, after a share of so many; 0.1 + 0.1 + 0.1 of ten is the fourth."""
    return math.ceil(share * epochs - 1e-9)


def _share(student: nn.Module, trained: fx.GraphModule) -> None:
    """Make `student` the float view of `trained`: the same tensors without the quantizers, for the layer graph."""
    for name, module in list(student.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            shared = trained.get_submodule(name)
            assert isinstance(shared, nn.Conv2d | nn.Linear)
            module.weight, module.bias = shared.weight, shared.bias
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            student.set_submodule(name, trained.get_submodule(name))
