"""One way to measure, for every method: accuracy, size, operations and latency of the same ONNX file."""

from measurement.accuracy import accuracy, wilson_interval
from measurement.cost import cost, operator_counts
from measurement.latency import latency

__all__ = ["accuracy", "cost", "latency", "operator_counts", "wilson_interval"]
