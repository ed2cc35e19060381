"""`Quantize`: turns a float model into an integer model."""

from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
from torch import nn

from distillation import guided_loss
from distillation.ensemble import check_teacher
from models.quantized import insert_quantizers
from quantization import qat
from quantization.rounding import Round, Rounding
from quantization.static import check_integer_form
from quantization.weights import Bits, best_scale, round_weight
from recipe import TRAINING_FIELDS, Recipe, Step, StepError, Training, refuse_unused, shared_fields
from training import Context, fit


@dataclass(frozen=True)
class Quantize(Step, Training):
    """Integer weights and activations: `base.then(Quantize())`, `base.then(Quantize(mode="qat", bits=4))`.

    Weights get one symmetric scale per output channel. Activations get 8 bits with one scale per tensor, calibrated on
    `images` training images, or on all if there are fewer. Batch norm is folded into the convolutions (Jacob et al.,
    CVPR 2018).

    mode: "static" rounds the trained weights; "qat" continues training for `epochs` with everything rounded (learned
        step sizes, Esser et al., ICLR 2020). Weights that are zero, for instance pruned, stay zero.
    bits, first_last_bits, layer_bits, calibration, percentile: as in `Round`.
    teacher: a recipe whose logits guide the training, such as the float base itself (see `distillation_loss`).
    """

    letter: ClassVar[str] = "Q"
    kind: ClassVar[str] = "quantized"
    gives: ClassVar[frozenset[str]] = frozenset({"integers"})
    forbids: ClassVar[dict[str, str]] = {
        "integers": "the model is quantized already",
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
        self.round()  # checks the fields of `Round`
        if self.mode == "qat" and not self.per_channel:
            raise StepError("quantization-aware training learns one step per output channel: leave per_channel at True")
        self.check_training()
        if self.mode == "static":
            training = (*TRAINING_FIELDS, "teacher", "temperature", "alpha")
            refuse_unused(self, training, "static quantization does not train; use mode='qat'")
        check_teacher(self)

    def round(self) -> Round:
        """Return how weights and activations are rounded."""
        return Round(**shared_fields(self, Round))

    @property
    def trained_epochs(self) -> int:
        return self.epochs if self.mode == "qat" else 0

    def words(self) -> list[str]:
        return [f"{bits}{'' if self.mode == 'qat' else ' without training'}" for bits in self.round().words()]

    def taught_by(self, before: Recipe | None) -> tuple[Recipe, ...]:
        return () if self.teacher is None else (self.teacher,)

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        assert model is not None  # ensured by `check_after`
        bits = self.round().by_layer(model)

        def rounding(name: str, layer: nn.Conv2d | nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
            scale = best_scale(layer.weight, bits[name], self.per_channel, largest=bits[name] == 8)
            return round_weight(layer.weight, scale, bits[name]), scale

        integer = insert_quantizers(model, rounding)
        if self.per_channel and set(bits.values()) == {8}:
            check_integer_form(model, integer, context.dataset)
        self.round().calibrate(integer, context)
        return integer if self.mode == "static" else self._train(model, integer, bits, context)

    def _train(self, model: nn.Module, calibrated: nn.Module, bits: dict[str, Bits], context: Context) -> nn.Module:
        trained = qat.prepare(model, bits)
        qat.start(trained, calibrated)
        title = f"{self.bits} bits on {context.dataset.name}, seed {context.seed}"
        fit(trained, context, self, loss=guided_loss(self, context), callbacks=[Rounding(trained)], title=title)
        return qat.finish(trained, model)
