"""`Part`: what recipes are written in: steps, and the techniques and objectives that steps hold."""

import dataclasses
from typing import TYPE_CHECKING, Any, ClassVar

from recipe.checks import default_of, fields_of, plain_fields

if TYPE_CHECKING:  # this room is of values, and does without torch
    from torch import nn

    from recipe.training import Training
    from training.callbacks import Callback
    from training.context import Context
    from training.loop import Logits, Loss


class Part:
    """The base class of frozen dataclasses whose fields are hyperparameters, all checked when one is written down."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init_subclass__(cls) -> None:
        cls.__repr__ = Part.__repr__  # type: ignore[method-assign]  # else a dataclass has one of every field

    def __post_init__(self) -> None:
        plain_fields(self)
        self.check()

    def check(self) -> None:
        """Raise StepError if a field is out of range. Fields are plain Python values by then."""

    @property
    def name(self) -> str:
        """The name of its class, by which a recipe's JSON calls it."""
        return type(self).__name__

    def __repr__(self) -> str:
        """As it would be written down: fields at their default are left out."""
        given = [field for field in fields_of(self) if field.name in self.changed]
        return f"{self.name}({', '.join(f'{field.name}={getattr(self, field.name)!r}' for field in given)})"

    @property
    def changed(self) -> set[str]:
        """The names of the fields that are not at their default."""
        fields = dataclasses.fields(self)
        return {field.name for field in fields if getattr(self, field.name) != default_of(field)}


PARTS: dict[str, type["Technique"] | type["Objective"]] = {}  # the parts of steps that there are, by name


class Technique(Part):
    """What is done to a network in the course of its training: `Train("resnet20", during=(Sparsify(sparsity=0.9),))`.

    letter, kind: as those of a step, under which charts and tables know the method.
    gives: traits of the model that comes out, as those of a step.
    """

    letter: ClassVar[str]
    kind: ClassVar[str]
    gives: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        require_names(cls)
        PARTS[cls.__name__] = cls

    def words(self) -> list[str]:
        """What is done, for readers: `["pruned 72 %"]`."""
        return [self.kind]

    def check_in(self, training: "Training") -> None:
        """Raise StepError if the training leaves no room for it."""

    def form(self, model: "nn.Module", context: "Context") -> "nn.Module":
        """The form of a float model in which it is trained: itself, or another network that shares its weights."""
        return model

    def callback(
        self, model: "nn.Module", trained: "nn.Module", context: "Context", training: "Training"
    ) -> "Callback":
        """What happens in the course of the training. `trained` is the form of the float `model` that is trained."""
        raise NotImplementedError

    def deployed(self, model: "nn.Module", trained: "nn.Module") -> "nn.Module":
        """What is deployed of the model, once it was trained in the form `trained`."""
        return model


class Objective(Part):
    """What a training makes small: `Train("resnet20", objective=Labels(smoothing=0.2))`."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        PARTS[cls.__name__] = cls

    def loss(self, teacher: "Logits | None") -> "Loss":
        """The loss, as `training.fit` takes it; `teacher`, if there is one, gives its logits `[B, classes]`."""
        raise NotImplementedError


def require_names(cls: type) -> None:
    """Raise TypeError if a step or technique has no letter or kind."""
    for name in ("letter", "kind"):
        if not hasattr(cls, name):
            raise TypeError(f"{cls.__name__} is a step or technique without a {name}: charts would not know it")
