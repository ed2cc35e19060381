"""Measure every method in the same way: accuracy, size, operations and latency of the same ONNX file."""

import data.telemetry  # noqa: F401 (before ONNX Runtime is imported)
from measurement.costs import cost, operator_counts
from measurement.paired import mcnemar, paired_interval
from measurement.scoring import accuracy, agreement, answers, wilson_interval
from measurement.timing import available_cores, hardware, latency, machine, time_by_turns

__all__ = [
    "accuracy",
    "agreement",
    "answers",
    "available_cores",
    "cost",
    "hardware",
    "latency",
    "machine",
    "mcnemar",
    "operator_counts",
    "paired_interval",
    "time_by_turns",
    "wilson_interval",
]
