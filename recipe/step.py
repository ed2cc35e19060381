"""`Step`: what turns a model into a model, and says of itself all that others want to know of it."""

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, Optional

from recipe.checks import default_of, plain_fields
from recipe.errors import StepError

if TYPE_CHECKING:  # this room is of values, and does without torch
    from torch import nn

    from recipe.chain import Recipe
    from training.context import Context

STEPS: dict[str, type["Step"]] = {}  # every step there is, by its name


class Step:
    """The base class of steps: frozen dataclasses whose fields are the hyperparameters, all checked at once.

    Charts, tables, the README and the checks of a chain know a step by what it says here and by nothing else.

    letter: stands for the method in tables; empty for what is no compression, as training is.
    kind: the method in a word or two, as a chart's legend has it: "pruned".
    gives: traits of the model from here on: "integers" (its weights are), "zeros" (weights that stay zero), "members"
        (it is several networks), or any other word.
    forbids: traits that the model must not have, each with what to do instead.
    begins: whether the step starts a chain, and never follows another one.
    """

    letter: ClassVar[str]
    kind: ClassVar[str]
    gives: ClassVar[frozenset[str]] = frozenset()
    forbids: ClassVar[Mapping[str, str]] = {}
    begins: ClassVar[bool] = False

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init_subclass__(cls) -> None:
        for name in ("letter", "kind"):
            if not hasattr(cls, name):
                raise TypeError(f"{cls.__name__} is a step without a {name}: charts and tables would not know it")
        STEPS[cls.__name__] = cls

    def __post_init__(self) -> None:
        plain_fields(self)
        self.check()

    def check(self) -> None:
        """Raise StepError where a field is out of range. Fields are plain Python values by then."""

    def apply(self, model: "nn.Module | None", context: "Context") -> "nn.Module":
        """Turn a model into a model. `model` may be changed in place; it is None at the start of a chain."""
        raise NotImplementedError

    @property
    def name(self) -> str:
        """The name of its class, by which a recipe's JSON calls it."""
        return type(self).__name__

    @property
    def changed(self) -> set[str]:
        """The names of the fields that are not at their default."""
        fields = dataclasses.fields(self)
        return {field.name for field in fields if getattr(self, field.name) != default_of(field)}

    @property
    def network(self) -> tuple[str, float] | None:
        """Name and width of the network that is built here, with fresh weights; None where the one before goes on."""
        return None

    @property
    def base(self) -> Optional["Recipe"]:
        """Of a step that can start a chain by other recipes: the one whose base its model is compared with."""
        return None

    @property
    def continued(self) -> Optional["Recipe"]:
        """The recipe whose training this one goes on with, so that its time counts as well."""
        return None

    def words(self) -> list[str]:
        """What is done here, for readers: `["pruned 72 %"]`. The network that is built, if any, is named before."""
        return [self.kind]

    def check_after(self, before: tuple["Step", ...]) -> None:
        """Raise StepError where this step cannot come after those `before` it in a chain."""
        if self.begins and before:
            raise StepError(f"{self.name} starts a recipe: it cannot follow {before[-1].name}")
        if not self.begins and not before and self.base is None:
            raise StepError(f"{self.name} needs a model: start the recipe with Train")
        for trait, by in traits(before).items():
            if trait in self.forbids:
                raise StepError(f"{self.name} cannot follow {by.name}: {self.forbids[trait]}")


def traits(steps: tuple[Step, ...]) -> dict[str, Step]:
    """The traits of the model that a chain makes, and the step that each came from. A new network has none of old."""
    found: dict[str, Step] = {}
    for step in steps:
        if step.network is not None:
            found = {}
        found |= dict.fromkeys(step.gives, step)
    return found
