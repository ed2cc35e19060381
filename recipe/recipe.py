"""How a model is made, as a value: a data set, a seed, and a chain of steps; and what a step is given."""

import dataclasses
import hashlib
import json
import reprlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Protocol, TypeVar

import torch
from torch import nn

from data import Dataset, check_dataset, folder_of, identity
from recipe.checks import StepError, plain
from storage import Checkpoint


@dataclass(frozen=True)
class Context:
    """What a step may use besides the model: the data, the seed, the device, and a place to keep a training's state.

    `make` gives the model of another recipe, a teacher for instance; `cache` is a folder for what can be made again.
    `log` is what the step tells the record of its making: curves, seconds, images per second.
    """

    dataset: Dataset
    seed: int
    device: torch.device
    checkpoint: Checkpoint
    make: Callable[["Recipe"], nn.Module]
    cache: Path
    log: dict = dataclasses.field(default_factory=dict)


class Step(Protocol):
    """A frozen dataclass whose fields are the hyperparameters. It raises StepError where one is out of range."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def follows(self, previous: "Step | None") -> None:
        """Raise StepError where this step cannot come after `previous` (None: at the start of a chain)."""

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        """Turn a model into a model. `model` may be changed in place; it is None at the start of a chain."""


S = TypeVar("S", bound=Step)


@dataclass(frozen=True)
class Recipe:
    """A data set by name, the steps that make the model, and the seed of all that is random in them.

    `Recipe("digits", (Train("resnet20", epochs=10),)).then(Quantize())`. It is checked when it is written down: a
    step that cannot follow the one before it raises StepError, and so does one whose teachers, members or earlier
    weights are of another data set; an unknown data set raises DataError.
    """

    dataset: str
    steps: tuple[Step, ...]
    seed: int = 0

    def __post_init__(self):
        check_dataset(self.dataset)
        if self.dataset.startswith("folder:"):  # the same wherever it is written down
            object.__setattr__(self, "dataset", f"folder:{folder_of(self.dataset)}")
        object.__setattr__(self, "seed", _seed(self.seed))
        if isinstance(self.steps, list):
            object.__setattr__(self, "steps", tuple(self.steps))
        if not isinstance(self.steps, tuple):
            raise StepError(f"steps must be a tuple of steps, (a,) or (a, b), not {reprlib.repr(self.steps)}")
        if not self.steps:
            raise ValueError("a recipe needs at least one step, such as Train('resnet20')")
        for previous, step in zip((None, *self.steps), self.steps, strict=False):
            if isinstance(step, type) or not hasattr(step, "follows"):
                raise StepError(f"a step is a value such as Train('resnet20') or Quantize(), not {reprlib.repr(step)}")
            step.follows(previous)
            for field, recipe in _nested(step):
                if recipe.dataset != self.dataset:
                    raise StepError(
                        f"{field} of {type(step).__name__} must be of {self.dataset}, as the recipe is, not of "
                        f"{recipe.dataset}"
                    )

    def then(self, step: Step) -> "Recipe":
        """This recipe with one more step."""
        return dataclasses.replace(self, steps=(*self.steps, step))

    def with_seed(self, seed: int) -> "Recipe":
        """The same chain from another seed; teachers and members too."""
        steps = tuple(_reseeded(step, seed) for step in self.steps)
        return dataclasses.replace(self, steps=steps, seed=seed)

    @property
    def base(self) -> "Recipe":
        """What the model is compared with: the network that the chain starts from.

        Of an ensemble or of teachers that start it, the one that the first of them starts from.
        """
        first = self.steps[0]
        others = getattr(first, "members", ()) or getattr(first, "teachers", ())
        return others[0].base if others else self.prefix(1)

    @property
    def model(self) -> str | None:
        """The network's name, as the last step that starts one gives it; None for an ensemble."""
        return next((step.model for step in reversed(self.steps) if hasattr(step, "model")), None)

    def last(self, kind: type[S]) -> S:
        """The last step, which is of this kind: `recipe.last(Joint).bits`."""
        step = self.steps[-1]
        if not isinstance(step, kind):
            raise StepError(f"{self.label} does not end in {kind.__name__}")
        return step

    def prefix(self, length: int) -> "Recipe":
        """The recipe of the first `length` steps alone. Raises StepError where the chain has not so many."""
        if not 1 <= length <= len(self.steps):
            raise StepError(f"{self.label} has {len(self.steps)} step(s): a prefix of {length} is none")
        return dataclasses.replace(self, steps=self.steps[:length])

    def describe(self) -> dict:
        """The recipe as JSON values, fields at their default left out; of a folder of images, its name alone."""
        return _describe(self, whole=False)

    def resolved(self) -> dict:
        """The recipe as JSON values with every field, also those at their default: what `id` does not say."""
        return _describe(self, whole=True)

    @property
    def id(self) -> str:
        """Twelve hexadecimal digits of the SHA-256 of the canonical JSON.

        Fields that have their default are left out of it, so that a field added later leaves old identities alone.
        """
        return identity_of(self.describe())

    def networks(self) -> list[tuple[str, float]]:
        """Name and width of each network that is built for this recipe, its teachers and members, each once."""
        found: list[tuple[str, float]] = []
        for step in self.steps:
            if hasattr(step, "model"):
                found.append((step.model, float(getattr(step, "width", 1.0))))
            for _, recipe in _nested(step):
                found += recipe.networks()
        return list(dict.fromkeys(found))

    def files(self) -> dict[str, Path]:
        """The files that fields of the steps name, by what is written there: what they hold is part of the recipe."""
        found: dict[str, Path] = {}
        for step in self.steps:
            for own in dataclasses.fields(step):
                value = getattr(step, own.name)
                if isinstance(value, str | Path) and _is_file(value):
                    found[str(value)] = Path(value)
            for _, recipe in _nested(step):
                found |= recipe.files()
        return found

    @property
    def label(self) -> str:
        """For people: `resnet20 > Quantize`, `resnet18 > Distill(resnet20, epochs=60)`."""
        return " > ".join(_label(step, self.prefix(place) if place else None) for place, step in enumerate(self.steps))


def identity_of(description: dict) -> str:
    """The `id` of a recipe from its `describe()`, as records hold it."""
    canonical = json.dumps(description, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(canonical.encode()).hexdigest()[:12]


def _seed(value: Any) -> int:
    seed = plain(value)
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**64:
        raise StepError(f"a seed is a whole number from 0 to 2^64 - 1, not {reprlib.repr(value)}")
    return seed


def _is_file(name: str | Path) -> bool:
    try:
        return Path(name).is_file()
    except (OSError, ValueError):  # too long, or with a null character
        return False


def _label(step: Step, before: Recipe | None) -> str:
    if before is None and hasattr(step, "model") and not getattr(step, "teachers", ()):
        return step.model
    words = []
    for field in dataclasses.fields(step):
        value = getattr(step, field.name)
        if value == _default(field):
            continue
        if isinstance(value, tuple) and value and isinstance(value[0], Recipe):
            words.append(" + ".join(recipe.label for recipe in value))
        elif field.name == "layer_bits":  # a pair a layer: too long for people
            words.append("bits by layer")
        else:
            named = _default(field) is not dataclasses.MISSING
            value = "itself" if value == before else value.label if isinstance(value, Recipe) else value
            words.append(f"{field.name}={value}" if named else str(value))
    return type(step).__name__ + (f"({', '.join(words)})" if words else "")


def _nested(step: Step) -> Iterator[tuple[str, Recipe]]:
    """The recipes that a step's fields hold, each behind the field's name."""
    for field in dataclasses.fields(step):
        value = getattr(step, field.name)
        for item in value if isinstance(value, tuple) else (value,):
            if isinstance(item, Recipe):
                yield field.name, item


def _reseeded(value: Any, seed: int) -> Any:
    if isinstance(value, Recipe):
        return value.with_seed(seed)
    if isinstance(value, tuple):
        return tuple(_reseeded(item, seed) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: _reseeded(getattr(value, field.name), seed) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    return value


def _default(field: dataclasses.Field) -> Any:
    """A field's default, made by its factory where it has one; MISSING where it has none."""
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    return field.default


def _describe(value: Any, whole: bool) -> Any:
    if isinstance(value, Recipe):
        steps = [_describe(step, whole) for step in value.steps]
        return {"dataset": identity(value.dataset), "seed": value.seed, "steps": steps}
    if dataclasses.is_dataclass(value):
        fields = {
            field.name: _describe(getattr(value, field.name), whole)
            for field in dataclasses.fields(value)
            if whole or getattr(value, field.name) != _default(field)
        }
        return {"step": type(value).__name__} | fields
    value = plain(value)
    if isinstance(value, tuple):
        return [_describe(item, whole) for item in value]
    return str(value) if isinstance(value, Path) else value
