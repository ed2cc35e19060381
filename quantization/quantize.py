"""`Quantize`: a float model in, an integer model out."""

import functools
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import nn

from distillation import check_teaching, guided_loss
from distillation.ensemble import check_teacher
from models.quantized import insert_quantizers
from quantization import qat
from quantization.static import METHODS, calibrate, check_integer_form
from quantization.weights import Bits, best_scale, bits_by_layer, check_layer_bits, round_weight
from recipe import (
    Context,
    Recipe,
    Step,
    StepError,
    check_training,
    check_whole,
    is_number,
    plain_fields,
    refuse_unused,
    training_fields,
)
from training import fit


@dataclass(frozen=True)
class Quantize:
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

    mode: str = "static"
    bits: Bits = 8
    images: int = 512
    percentile: float = 99.99
    calibration: str = "percentile"
    per_channel: bool = True
    first_last_bits: int | None = 8
    layer_bits: tuple[tuple[str, Bits], ...] = ()
    epochs: int = 3
    learning_rate: float = 0.01
    batch_size: int = 128
    weight_decay: float = 1e-4
    teacher: Recipe | None = None
    temperature: float = 4.0
    alpha: float = 0.9

    makes_integers: ClassVar[bool] = True  # so no step that changes weights can follow

    def __post_init__(self):
        plain_fields(self)
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
        check_training(**training_fields(self))
        if self.mode == "static":
            training = (*training_fields(self), "teacher", "temperature", "alpha")
            refuse_unused(self, training, "static quantization does not train; use mode='qat'")
        check_teacher(self)

    def follows(self, previous: Step | None) -> None:
        if previous is None:
            raise StepError("Quantize needs a model to quantize: start the recipe with Train")
        if hasattr(previous, "members"):
            raise StepError("an ensemble has no integer form: quantize its members, and make an ensemble of those")
        if getattr(previous, "makes_integers", False):
            name = type(previous).__name__
            raise StepError(f"Quantize cannot follow {name}: the model is made of integers already")

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        assert model is not None  # `follows` saw to it
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
            **training_fields(self),
            loss=guided_loss(self, context),
            before_epoch=functools.partial(qat.before_epoch, trained),
            after_step=functools.partial(qat.after_step, trained),
            title=f"{self.bits} bits on {context.dataset.name}, seed {context.seed}",
        )
        return qat.finish(trained, model)
