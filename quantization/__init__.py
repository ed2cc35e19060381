"""Quantization to integers: after training by `Quantize`, or during training by `Round`."""

import data.telemetry  # noqa: F401 (before ONNX Runtime is imported)
from quantization.quantize import Quantize
from quantization.rounding import Round
from quantization.static import calibrate

__all__ = ["Quantize", "Round", "calibrate"]
