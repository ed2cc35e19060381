"""`Round`: rounds weights and activations during a training."""

import copy
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

from torch import fx, nn

from models.quantized import insert_quantizers
from quantization import qat
from quantization.static import METHODS, calibrate
from quantization.weights import Bits, bits_by_layer, bits_in_words, check_layer_bits
from recipe import StepError, Technique, Training, check_whole, is_number, refuse_unused
from training import Callback, Context, Since, check_start, first_epoch


@dataclass(frozen=True)
class Round(Technique):
    """Train with rounded weights and activations: `Train("resnet20", during=(Round(4, start=0.6),))`.

    bits: bits of the weights, 2 to 8, or "ternary" (-1, 0, 1). `first_last_bits`: those of the first and the last
        layer, None for the same. `layer_bits`: those of single layers, as pairs of name and bits.
    calibration: how the initial ranges of activations are chosen on `images` training images: "percentile" (the range
        contains `percentile` % of the values), "minmax", or "mse" (the range with the least mean squared error).
    start: share of the training after which rounding starts, at the next whole epoch. From then on the steps of weights
        and activations are learned (Esser et al., ICLR 2020).
    """

    letter: ClassVar[str] = "Q"
    kind: ClassVar[str] = "quantized"
    gives: ClassVar[frozenset[str]] = frozenset({"integers"})

    bits: Bits = 8
    _: KW_ONLY
    first_last_bits: int | None = 8
    layer_bits: tuple[tuple[str, Bits], ...] = ()
    images: int = 512
    percentile: float = 99.99
    calibration: str = "percentile"
    start: float = 0.0

    def check(self) -> None:
        check_layer_bits(self.layer_bits)
        first_last = self.bits if self.first_last_bits is None else self.first_last_bits
        for bits in (self.bits, first_last, *(bits for _, bits in self.layer_bits)):
            if bits != "ternary" and not (isinstance(bits, int) and 2 <= bits <= 8):
                raise StepError(f"weights take 2 to 8 bits or 'ternary', not {bits!r}")
        check_whole("images", self.images)
        if self.calibration not in METHODS:
            raise StepError(f"unknown calibration {self.calibration!r}: use {', '.join(METHODS)}")
        if not (is_number(self.percentile) and 50 < self.percentile <= 100):
            raise StepError(f"percentile must be above 50 and at most 100, not {self.percentile!r}")
        if self.calibration != "percentile":
            refuse_unused(self, ("percentile",), f"the calibration {self.calibration} has none; use 'percentile'")

    def check_in(self, training: Training) -> None:
        check_start("start", self.start, training.epochs, "train with rounding")

    def words(self) -> list[str]:
        return [bits_in_words(self.bits, self.layer_bits)]

    def by_layer(self, model: nn.Module) -> dict[str, Bits]:
        """Return the bits of each layer's weight, by the layer's name."""
        return bits_by_layer(model, self.bits, self.first_last_bits, self.layer_bits)

    def calibrate(self, integer: fx.GraphModule, context: Context) -> None:
        """Set the ranges of an integer network's activations."""
        calibrate(integer, context.dataset, self.images, self.percentile, context.seed, self.calibration)

    def form(self, model: nn.Module, context: Context) -> nn.Module:
        trained = qat.prepare(model, self.by_layer(model))
        _share(model, trained)
        return trained

    def callback(self, model: nn.Module, trained: nn.Module, context: Context, training: Training) -> Callback:
        return _DelayedRounding(self, model, trained, context, training)

    def deployed(self, model: nn.Module, trained: nn.Module) -> nn.Module:
        assert isinstance(trained, fx.GraphModule)
        return qat.finish(trained, model)


class Rounding(Callback):
    """Keeps the steps of quantization-aware training above zero, and freezes batch norm late in the training."""

    def __init__(self, trained: nn.Module):
        self.trained = trained

    def before_epoch(self, done: float) -> None:
        qat.before_epoch(self.trained, done)

    def after_step(self, done: float) -> None:
        qat.after_step(self.trained, done)


class _DelayedRounding(Callback):
    """Starts rounding, after a calibration, at the first whole epoch after a share of the training."""

    def __init__(self, step: Round, model: nn.Module, trained: nn.Module, context: Context, training: Training):
        self.step, self.model, self.trained, self.context, self.training = step, model, trained, context, training
        self.first = first_epoch(step.start, training.epochs)
        self.rounding = Since(step.start, Rounding(trained))

    def before_epoch(self, done: float) -> None:
        epoch = round(done * self.training.epochs)
        if epoch < self.first:
            return
        if epoch == self.first:  # later epochs keep the learned steps
            calibrated = insert_quantizers(copy.deepcopy(self.model))
            self.step.calibrate(calibrated, self.context)
            qat.start(self.trained, calibrated)
        qat.enable(self.trained)
        self.rounding.before_epoch(done)

    def after_step(self, done: float) -> None:
        self.rounding.after_step(done)


def _share(model: nn.Module, trained: nn.Module) -> None:
    """Let a float `model` share the tensors of `trained`, as a view without quantizers for the layer graph."""
    for name, module in list(model.named_modules()):
        if isinstance(module, nn.Conv2d | nn.Linear):
            shared = trained.get_submodule(name)
            assert isinstance(shared, nn.Conv2d | nn.Linear)
            module.weight, module.bias = shared.weight, shared.bias
        elif isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            model.set_submodule(name, trained.get_submodule(name))
