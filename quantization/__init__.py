"""Quantization: `Quantize`, the step that turns a float model into an integer one."""

from quantization.quantize import Quantize
from quantization.static import calibrate

__all__ = ["Quantize", "calibrate"]
