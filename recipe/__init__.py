"""Recipes and their steps as plain values: `Recipe("digits", (Train("resnet20"),))`. Needs no torch."""

from recipe.chain import (
    Recipe,
    Unknown,
    identity_of,
    label_of,
    letters_of,
    recipe_of,
    recipes_of,
    step_of,
    steps_of,
    words_of,
)
from recipe.checks import (
    check_fields,
    check_whole,
    fields_of,
    is_number,
    refuse_unused,
    shared_fields,
)
from recipe.errors import CompressionError, DataError, StepError
from recipe.names import FolderOptions, check_dataset, folder_of, folder_options, identity, readable, written
from recipe.part import PARTS, Objective, Part, Technique, returned
from recipe.step import STEPS, Step, traits
from recipe.training import AUGMENTATIONS, OPTIMIZERS, SCHEDULES, TRAINING_FIELDS, Training, training_of

__all__ = [
    "AUGMENTATIONS",
    "OPTIMIZERS",
    "PARTS",
    "SCHEDULES",
    "STEPS",
    "TRAINING_FIELDS",
    "CompressionError",
    "DataError",
    "FolderOptions",
    "Objective",
    "Part",
    "Recipe",
    "Step",
    "StepError",
    "Technique",
    "Training",
    "Unknown",
    "check_dataset",
    "check_fields",
    "check_whole",
    "fields_of",
    "folder_of",
    "folder_options",
    "identity",
    "identity_of",
    "is_number",
    "label_of",
    "letters_of",
    "readable",
    "recipe_of",
    "recipes_of",
    "refuse_unused",
    "returned",
    "shared_fields",
    "step_of",
    "steps_of",
    "training_of",
    "traits",
    "words_of",
    "written",
]
