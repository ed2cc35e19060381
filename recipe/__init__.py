"""How a model is made, as a value: `Recipe("digits", (Train("resnet20"),))`, and what its steps are. Without torch."""

from recipe.chain import Recipe, Unknown, identity_of, letters_of, recipe_of, recipes_of, step_of, steps_of, words_of
from recipe.checks import (
    check_training,
    check_whole,
    is_number,
    refuse_unused,
    training_fields,
)
from recipe.errors import CompressionError, DataError, StepError
from recipe.names import check_dataset, folder_of, identity, readable
from recipe.step import STEPS, Step, traits

__all__ = [
    "STEPS",
    "CompressionError",
    "DataError",
    "Recipe",
    "Step",
    "StepError",
    "Unknown",
    "check_dataset",
    "check_training",
    "check_whole",
    "folder_of",
    "identity",
    "identity_of",
    "is_number",
    "letters_of",
    "readable",
    "recipe_of",
    "recipes_of",
    "refuse_unused",
    "step_of",
    "steps_of",
    "training_fields",
    "traits",
    "words_of",
]
