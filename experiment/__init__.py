"""Runs recipes and keeps their records: `run(Recipe("digits", (Train("resnet20"),)))`."""

from experiment.aside import set_aside
from experiment.freshness import RecordError
from experiment.records import archive_path, kept_table, load_records, measured_on
from experiment.runner import make, run, training_device
from experiment.spread import make_all, run_all
from experiment.tables import run_table, validated
from recipe import Recipe

__all__ = [
    "Recipe",
    "RecordError",
    "archive_path",
    "kept_table",
    "load_records",
    "make",
    "make_all",
    "measured_on",
    "run",
    "run_all",
    "run_table",
    "set_aside",
    "training_device",
    "validated",
]
