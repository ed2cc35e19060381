"""`Part`: base class of what a recipe consists of: steps, and the techniques and objectives inside them."""

import dataclasses
from abc import abstractmethod
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar

from recipe.checks import check_plain, default_of, fields_of, plain_fields
from recipe.errors import StepError

if TYPE_CHECKING:  # this package does not import torch
    from torch import nn

    from recipe.training import Training
    from training.callbacks import Callback
    from training.context import Context
    from training.loop import Logits, Loss


T = TypeVar("T")


class Part:
    """Base class of frozen dataclasses whose fields are hyperparameters, checked on construction."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def __init_subclass__(cls) -> None:
        cls.__repr__ = Part.__repr__  # type: ignore[method-assign]  # a dataclass would print every field

    def __init__(self, *_: Any, **__: Any) -> None:
        raise StepError(f"{self.name} is no dataclass: write @dataclass(frozen=True) above its class")

    def __post_init__(self) -> None:
        if not type(self).__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise StepError(
                f"{self.name} must not change once it is made: write @dataclass(frozen=True) above its class"
            )
        for method in dir(type(self)):
            if getattr(getattr(type(self), method, None), "__isabstractmethod__", False):
                raise StepError(f"{self.name} does not define {method}, as its base class describes: add it")
        plain_fields(self)
        self.check()
        check_plain(self)

    def check(self) -> None:
        """Raise StepError if a field is out of range. Fields are already plain Python values."""

    @property
    def name(self) -> str:
        """The class name, which a recipe's JSON uses."""
        return type(self).__name__

    def __repr__(self) -> str:
        """Return the constructor call without fields at their default."""
        changed = [field for field in fields_of(self) if field.name in self.changed]
        return f"{self.name}({', '.join(f'{field.name}={getattr(self, field.name)!r}' for field in changed)})"

    @property
    def changed(self) -> set[str]:
        """The names of the fields that are not at their default."""
        fields = dataclasses.fields(self)
        return {field.name for field in fields if getattr(self, field.name) != default_of(field)}


PARTS: dict[str, type["Technique"] | type["Objective"]] = {}  # all techniques and objectives, by name


class Technique(Part):
    """A compression method applied during training: `Train("resnet20", during=(Sparsify(sparsity=0.9),))`.

    letter, kind: how charts and tables name the method, as for a step.
    gives: traits of the resulting model, as for a step.
    """

    letter: ClassVar[str]
    kind: ClassVar[str]
    gives: ClassVar[frozenset[str]] = frozenset()

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        require_names(cls)
        register(cls, PARTS)

    def __post_init__(self) -> None:
        super().__post_init__()
        check_words(self)

    def words(self) -> list[str]:
        """Return what the technique does, for readers: `["pruned 72 %"]`."""
        return [self.kind]

    def check_in(self, training: "Training") -> None:
        """Raise StepError if the training is too short for this technique."""

    def form(self, model: "nn.Module", context: "Context") -> "nn.Module":
        """Return the network to train: the float `model` itself, or another network that shares its weights."""
        return model

    @abstractmethod
    def callback(
        self, model: "nn.Module", trained: "nn.Module", context: "Context", training: "Training"
    ) -> "Callback":
        """Return the callback of the training. `trained` is the network that is trained in place of `model`."""
        raise NotImplementedError

    def deployed(self, model: "nn.Module", trained: "nn.Module") -> "nn.Module":
        """Return the model to deploy after `trained` was trained."""
        return model


class Objective(Part):
    """What training minimizes: `Train("resnet20", objective=Labels(smoothing=0.2))`."""

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        register(cls, PARTS)

    @abstractmethod
    def loss(self, teacher: "Logits | None") -> "Loss":
        """Return the loss that `training.fit` takes; `teacher` (None if there is none) gives logits `[B, classes]`."""
        raise NotImplementedError


def returned(part: Part, method: str, value: object, kind: type[T]) -> T:
    """Return what a method of a part returned. Raises StepError if it is of another kind, such as None."""
    if not isinstance(value, kind):
        raise StepError(f"{method} of {part.name} returned a {type(value).__name__}: let it return a {kind.__name__}")
    return value


def register(cls: type, known: dict[str, Any]) -> None:
    """Add a class to those of its kind. Raise TypeError if another module has one of the same name.

    Recipes know it by that name alone. A notebook may define its own anew.
    """
    other = known.get(cls.__name__)
    if other is not None and other.__module__ != cls.__module__:
        raise TypeError(f"{other.__module__} has a {cls.__name__} already, as recipes call it: choose another name")
    known[cls.__name__] = cls


def require_names(cls: Any) -> None:
    """Raise TypeError unless a step or technique has a letter and a kind, and traits of the right type."""
    for name in ("letter", "kind"):
        if not hasattr(cls, name):
            raise TypeError(f"{cls.__name__} is a step or technique without a {name}, which charts need")
    if not (isinstance(cls.letter, str) and len(cls.letter) <= 1 and isinstance(cls.kind, str)):
        raise TypeError(f"{cls.__name__} needs a letter of one character or none, and a kind in words, for charts")
    if not isinstance(cls.gives, frozenset) or not isinstance(getattr(cls, "forbids", {}), Mapping):
        raise TypeError(f"{cls.__name__} needs gives as a frozenset of words, and forbids as a dict of words by trait")


def check_words(part: Any) -> None:
    """Raise StepError unless the words of a step or technique are a list of texts: tables join them."""
    words = part.words()
    if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
        raise StepError(f"words of {part.name} must return a list of texts, such as ['pruned 72 %'], not {words!r}")
