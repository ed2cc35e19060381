"""Recipes and their records: `run(Recipe("digits", (Train("resnet20"),)))`."""

from experiment.aside import set_aside
from experiment.freshness import RecordError
from experiment.records import archive_path, kept_table, load_records, measured_on
from experiment.runner import make, run, run_all, training_device
from experiment.study import (
    base_recipe,
    batch_size,
    beside_published,
    export_table,
    interval,
    percent,
    published_study,
    run_table,
    seeds_in_words,
    summary,
    validated,
)
from recipe import Recipe

__all__ = [
    "Recipe",
    "RecordError",
    "archive_path",
    "base_recipe",
    "batch_size",
    "beside_published",
    "export_table",
    "interval",
    "kept_table",
    "load_records",
    "make",
    "measured_on",
    "percent",
    "published_study",
    "run",
    "run_all",
    "run_table",
    "seeds_in_words",
    "set_aside",
    "summary",
    "training_device",
    "validated",
]
