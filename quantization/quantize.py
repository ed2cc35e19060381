"""`Quantize`: a float model in, an integer model out."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import nn

from distillation import check_teaching, guided_loss
from distillation.ensemble import check_teacher
from models.quantized import insert_quantizers
from quantization import qat
from quantization.static import METHODS, calibrate, check_integer_form
from quantization.weights import Bits, best_scale, bits_by_layer, bits_in_words, check_layer_bits, round_weight
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
from training import Callback, Context, fit


@dataclass(frozen=True)
class Quantize(Step, Training):
    """Integer weights and activations: `base.then(Quantize())`, `base.then(Quantize(mode="qat", bits=4))`.

    Weights get one symmetric scale per output channel, activations 8 bits with one scale per tensor, found on
    `images` training images, or on all where there are fewer. Batch norm is folded into the convolutions (Jacob et
    al., CVPR 2018).

    mode: "static" rounds the trained weights; "qat" trains on with everything rounded (learned step sizes, Esser et
        al., ICLR 2020), for `epochs`. Weights that are zero, as pruning leaves them, stay zero.
    bits: of the weights, 2 to 8, or "ternary" (-1, 0, 1); `first_last_bits` those of the first and the last layer,
        None for the same; `layer_bits` those of single layers, as pairs of name and bits.
    teacher: a recipe whose logits guide the training, such as the float base itself (see `distillation_loss`).
    calibration: "percentile" (the range holds `percentile` % of the values seen), "minmax", or "mse" (the range with
        the least mean squared error).
    """

    letter: ClassVar[str] = "Q"
    kind: ClassVar[str] = "quantized"
    gives: ClassVar[frozenset[str]] = frozenset({"integers"})
    forbids: ClassVar[dict[str, str]] = {
        "integers": "the model is made of integers already",
        "members": "an ensemble has no integer form; quantize its members, and make an ensemble of those",
    }

    mode: str = "static"
    bits: Bits = 8
    images: int = 512
    percentile: float = 99.99
    calibration: str = "percentile"
    per_channel: bool = True
    first_last_bits: int | None = 8
    layer_bits: tuple[tuple[str, Bits], ...] = ()
    _: KW_ONLY
    epochs: int = 3
    learning_rate: float = 0.01
    weight_decay: float = 1e-4
    teacher: Recipe | None = None
    temperature: float = 4.0
    alpha: float = 0.9

    def check(self) -> None:
        if self.mode not in ("static", "qat"):
            raise StepError(f"unknown quantization mode {self.mode!r}: use 'static' or 'qat'")
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
        if self.mode == "qat" and not self.per_channel:
            raise StepError("quantization-aware training learns a step per output channel: leave per_channel True")
        check_teaching(self.temperature, self.alpha)
        self.check_training()
        if self.mode == "static":
            training = (*TRAINING_FIELDS, "teacher", "temperature", "alpha")
            refuse_unused(self, training, "static quantization does not train; use mode='qat'")
        check_teacher(self)

    def words(self) -> list[str]:
        bits = bits_in_words(self.bits, self.layer_bits)
        return [bits if self.mode == "qat" else f"{bits} without training"]

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        assert model is not None  # `check_after` saw to it
        bits = bits_by_layer(model, self.bits, self.first_last_bits, self.layer_bits)

        def rounding(name: str, layer: nn.Conv2d | nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
            scale = best_scale(layer.weight, bits[name], self.per_channel, largest=bits[name] == 8)
            return round_weight(layer.weight, scale, bits[name]), scale

        integer = insert_quantizers(model, rounding)
        if self.per_channel and set(bits.values()) == {8}:
            check_integer_form(model, integer, context.dataset)
        calibrate(integer, context.dataset, self.images, self.percentile, context.seed, self.calibration)
        return integer if self.mode == "static" else self._train(model, integer, bits, context)

    def _train(self, model: nn.Module, calibrated: nn.Module, bits: dict[str, Bits], context: Context) -> nn.Module:
        trained = qat.prepare(model, bits)
        qat.start(trained, calibrated)
        fit(
            trained,
            context,
            self,
            loss=guided_loss(self, context),
            callbacks=[Rounding(trained)],
            title=f"{self.bits} bits on {context.dataset.name}, seed {context.seed}",
        )
        return qat.finish(trained, model)


class Rounding(Callback):
    """Keeps the steps of a network in quantization-aware training apart from zero, and freezes batch norm late."""

    def __init__(self, trained: nn.Module):
        self.trained = trained

    def before_epoch(self, done: float) -> None:
        qat.before_epoch(self.trained, done)

    def after_step(self, done: float) -> None:
        qat.after_step(self.trained, done)
