"""Quantization: `Quantize`, the step that turns a float model into an integer one."""

import data.telemetry  # noqa: F401 (before ONNX Runtime is imported)
from quantization.quantize import Quantize
from quantization.rounding import Round
from quantization.static import calibrate

__all__ = ["Quantize", "Round", "calibrate"]
