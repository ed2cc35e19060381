"""Recipes and their records: `run(Recipe("digits", (Train("resnet20"),)))`."""

from experiment.records import load_records
from experiment.recipe import Recipe
from experiment.run import make, run, run_all

__all__ = ["Recipe", "load_records", "make", "run", "run_all"]
