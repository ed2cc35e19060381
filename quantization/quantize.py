"""`Quantize`: a float model in, an integer model out."""

from dataclasses import dataclass

from torch import nn

from models.quantized import insert_quantizers
from quantization.static import calibrate
from training import Context, Step, StepError


@dataclass(frozen=True)
class Quantize:
    """Static post-training quantization: `base.then(Quantize())`.

    Weights become int8 with one symmetric scale per output channel, activations uint8 with one scale per tensor,
    found on `images` training images so that it spans `percentile` % of the values seen. Batch norm is folded into the
    convolutions first (Jacob et al., CVPR 2018).
    """

    mode: str = "static"
    bits: int = 8
    images: int = 512
    percentile: float = 99.99

    def __post_init__(self):
        if self.mode != "static":
            raise StepError(f"unknown quantization mode {self.mode!r}: use 'static'")
        if self.bits != 8:
            raise StepError(f"static quantization is to 8 bits, not {self.bits}")
        if self.images < 1:
            raise StepError(f"calibration needs at least one image, not {self.images}")
        if not 50 < self.percentile <= 100:
            raise StepError(f"percentile must be above 50 and at most 100, not {self.percentile}")

    def follows(self, previous: Step | None) -> None:
        if previous is None:
            raise StepError("Quantize needs a model to quantize: start the recipe with Train")
        if isinstance(previous, Quantize):
            raise StepError("Quantize cannot follow Quantize: the model is made of integers already")

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        integer = insert_quantizers(model)
        calibrate(integer, context.dataset, self.images, self.percentile, context.seed)
        return integer
