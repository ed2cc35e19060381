"""`Step`: what turns a model into a model, and says of itself all that others want to know of it."""

from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Optional

from recipe.errors import StepError
from recipe.part import Part, Technique, require_names

if TYPE_CHECKING:  # this room is of values, and does without torch
    from torch import nn

    from recipe.chain import Recipe
    from training.context import Context

STEPS: dict[str, type["Step"]] = {}  # every step there is, by its name


class Step(Part):
    """The base class of steps: frozen dataclasses whose fields are the hyperparameters.

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

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        require_names(cls)
        STEPS[cls.__name__] = cls

    def apply(self, model: "nn.Module | None", context: "Context") -> "nn.Module":
        """Turn a model into a model. `model` may be changed in place; it is None at the start of a chain."""
        raise NotImplementedError

    @property
    def techniques(self) -> tuple[Technique, ...]:
        """What is done in the course of the step's training."""
        return ()

    @property
    def letters(self) -> str:
        """The letters of the methods at work here: the step's own, and those of its techniques."""
        return self.letter + "".join(technique.letter for technique in self.techniques)

    @property
    def given(self) -> frozenset[str]:
        """The traits that the model has from here on."""
        return self.gives.union(*(technique.gives for technique in self.techniques))

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
        found |= dict.fromkeys(step.given, step)
    return found
