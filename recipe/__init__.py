"""How a model is made, as a value: `Recipe("digits", (Train("resnet20"),))`, and what its steps are."""

from recipe.checks import (
    StepError,
    check_training,
    check_whole,
    is_number,
    plain_fields,
    refuse_unused,
    training_fields,
)
from recipe.recipe import Context, Recipe, Step, identity_of

__all__ = [
    "Context",
    "Recipe",
    "Step",
    "StepError",
    "check_training",
    "check_whole",
    "identity_of",
    "is_number",
    "plain_fields",
    "refuse_unused",
    "training_fields",
]
