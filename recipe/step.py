"""`Step`: turns a model into a model, and describes itself to checks, charts and tables."""

from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, ClassVar, Optional

from recipe.errors import StepError
from recipe.part import Part, Technique, check_words, register, require_names

if TYPE_CHECKING:  # this package does not import torch
    from torch import nn

    from recipe.chain import Recipe
    from training.context import Context

STEPS: dict[str, type["Step"]] = {}  # all steps, by name


class Step(Part):
    """Base class of steps: frozen dataclasses whose fields are the hyperparameters.

    Charts, tables, the README and the checks of a chain learn about a step only from these attributes:

    letter: the method's letter in tables; empty for a step that compresses nothing, such as training.
    kind: the method in a word or two, as shown in a chart's legend: "pruned".
    gives: traits of the model from here on: "integers" (integer weights), "zeros" (weights that stay zero), "members"
        (several networks), or any other word.
    forbids: traits that the incoming model must not have, each with what to do instead.
    begins: whether the step starts a chain and can never follow another step.
    """

    letter: ClassVar[str]
    kind: ClassVar[str]
    gives: ClassVar[frozenset[str]] = frozenset()
    forbids: ClassVar[Mapping[str, str]] = {}
    begins: ClassVar[bool] = False

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        require_names(cls)
        register(cls, STEPS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_words(self)

    @abstractmethod
    def apply(self, model: "nn.Module | None", context: "Context") -> "nn.Module":
        """Turn a model into a model. `model` may be changed in place; it is None at the start of a chain."""
        raise NotImplementedError

    @property
    def techniques(self) -> tuple[Technique, ...]:
        """The techniques applied during the step's training."""
        return ()

    @property
    def letters(self) -> str:
        """The letters of the step and of its techniques."""
        return self.letter + "".join(technique.letter for technique in self.techniques)

    @property
    def given(self) -> frozenset[str]:
        """The traits that the step and its techniques give the model."""
        return self.gives.union(*(technique.gives for technique in self.techniques))

    @property
    def network(self) -> tuple[str, float] | None:
        """Name and width of the network that this step builds with fresh weights; None if it keeps the previous one."""
        return None

    @property
    def base(self) -> Optional["Recipe"]:
        """For a step that can start a chain from other recipes: the recipe whose base the model is compared with."""
        return None

    @property
    def continued(self) -> Optional["Recipe"]:
        """The recipe whose training this step continues, so that its training time counts too."""
        return None

    def taught_by(self, before: Optional["Recipe"]) -> tuple["Recipe", ...]:
        """Return the recipes whose logits for each batch guide the training, after the chain `before`; none if empty.

        The logits are computed once for all steps that ask for the same ones, which take them from files.
        """
        return ()

    def words(self) -> list[str]:
        """Return what the step does, for readers: `["pruned 72 %"]`, without the network that it builds, if any."""
        return [self.kind]

    def check_after(self, before: tuple["Step", ...]) -> None:
        """Raise StepError if this step cannot follow the steps `before` it in a chain."""
        if self.begins and before:
            raise StepError(f"{self.name} starts a recipe: it cannot follow {before[-1].name}")
        if not self.begins and not before and self.base is None:
            raise StepError(f"{self.name} needs a model: start the recipe with Train")
        for trait, by in traits(before).items():
            if trait in self.forbids:
                raise StepError(f"{self.name} cannot follow {by.name}: {self.forbids[trait]}")


def traits(steps: tuple[Step, ...]) -> dict[str, Step]:
    """Return the traits of the model that a chain makes, with the step that gave each. A new network starts without."""
    found: dict[str, Step] = {}
    for step in steps:
        if step.network is not None:
            found = {}
        found |= dict.fromkeys(step.given, step)
    return found
