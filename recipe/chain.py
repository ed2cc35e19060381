"""How a model is made, as a value: a data set, a seed, and a chain of steps."""

import dataclasses
import hashlib
import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from recipe.checks import default_of, fields_of, in_identity, plain
from recipe.errors import CompressionError, StepError
from recipe.names import check_dataset, identity, written
from recipe.part import PARTS, Part
from recipe.step import STEPS, Step

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
        object.__setattr__(self, "dataset", written(self.dataset))
        check_dataset(self.dataset)
        object.__setattr__(self, "seed", _seed(self.seed))
        if isinstance(self.steps, list):
            object.__setattr__(self, "steps", tuple(self.steps))
        if not isinstance(self.steps, tuple):
            raise StepError(f"steps must be a tuple of steps, (a,) or (a, b), not {reprlib.repr(self.steps)}")
        if not self.steps:
            raise StepError("a recipe needs at least one step, such as Train('resnet20')")
        for place, step in enumerate(self.steps):
            if not isinstance(step, Step):
                raise StepError(f"a step is a value such as Train('resnet20') or Quantize(), not {reprlib.repr(step)}")
            step.check_after(self.steps[:place])
            for field, recipe in recipes_of(step):
                if recipe.dataset != self.dataset:
                    raise StepError(
                        f"{field} of {step.name} must be of {self.dataset}, as the recipe is, not of {recipe.dataset}"
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
        other = self.steps[0].base
        return self.prefix(1) if other is None else other.base

    @property
    def model(self) -> str | None:
        """The network's name, as the last step that starts one gives it; None for an ensemble."""
        return next((step.network[0] for step in reversed(self.steps) if step.network is not None), None)

    @property
    def letters(self) -> str:
        """The methods in order of use, a letter each; empty for a network that was only trained."""
        return "".join(step.letters for step in self.steps)

    @property
    def words(self) -> str:
        """For readers who do not want the recipe: `resnet20, distilled, pruned 72 %, ternary`."""
        return _words(self.steps)

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
            if step.network is not None:
                found.append(step.network)
            for _, recipe in recipes_of(step):
                found += recipe.networks()
        return list(dict.fromkeys(found))

    def files(self) -> dict[str, Path]:
        """The files that fields of the steps name, by what is written there: what they hold is part of the recipe."""
        found: dict[str, Path] = {}
        for step in self.steps:
            for _, value in _values(step):
                if isinstance(value, str | Path) and _is_file(value):
                    found[str(value)] = Path(value)
                elif isinstance(value, Recipe):
                    found |= value.files()
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
    if before is None and step.network is not None and step.base is None and not step.techniques:
        return step.network[0]
    return _written(step, before)


def _written(step: Part, before: Recipe | None) -> str:
    words = []
    for field in fields_of(step):
        value = getattr(step, field.name)
        if value == default_of(field):
            continue
        if isinstance(value, tuple) and value and isinstance(value[0], Recipe):
            words.append(" + ".join(recipe.label for recipe in value))
        elif isinstance(value, tuple) and value and isinstance(value[0], Part):
            words.append(" + ".join(_written(part, before) for part in value))
        elif isinstance(value, Part):
            words.append(_written(value, before))
        elif field.name == "layer_bits":  # a pair a layer: too long for people
            words.append("bits by layer")
        else:
            named = default_of(field) is not dataclasses.MISSING
            value = "itself" if value == before else value.label if isinstance(value, Recipe) else value
            words.append(f"{field.name}={value}" if named else str(value))
    return step.name + (f"({', '.join(words)})" if words else "")


def _words(steps: Sequence[Step]) -> str:
    words: list[str] = []
    for step in steps:
        if step.network is not None:  # another one than before
            name, width = step.network
            words = [name if width == 1 else f"{name} of width {width:g}"]
        words += step.words()
    return ", ".join(words)


def recipes_of(step: Step) -> Iterator[tuple[str, Recipe]]:
    """The recipes that a step's fields hold, teachers for instance, each behind the field's name."""
    return ((field, value) for field, value in _values(step) if isinstance(value, Recipe))


def _values(part: Part) -> Iterator[tuple[str, Any]]:
    """Each value that a step's fields hold, those of its parts and of tuples singly, behind the field's name."""
    for field in dataclasses.fields(part):
        value = getattr(part, field.name) if in_identity(field) else None
        for item in value if isinstance(value, tuple) else (value,):
            yield from _values(item) if isinstance(item, Part) else [(field.name, item)]


def _reseeded(value: Any, seed: int) -> Any:
    if isinstance(value, Recipe):
        return value.with_seed(seed)
    if isinstance(value, tuple):
        return tuple(_reseeded(item, seed) for item in value)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        changed = {field.name: _reseeded(getattr(value, field.name), seed) for field in dataclasses.fields(value)}
        return dataclasses.replace(value, **changed)
    return value


def _describe(value: Any, whole: bool) -> Any:
    if isinstance(value, Recipe):
        steps = [_describe(step, whole) for step in value.steps]
        return {"dataset": identity(value.dataset), "seed": value.seed, "steps": steps}
    if isinstance(value, Part):
        changed = value.changed  # once: it compares every field, recipes that are held among them
        fields = [field for field in dataclasses.fields(value) if in_identity(field)]
        named = [field.name for field in fields if whole or field.name in changed]
        called = {"step" if isinstance(value, Step) else "part": value.name}
        return called | {name: _describe(getattr(value, name), whole) for name in named}
    value = plain(value)
    if isinstance(value, tuple):
        return [_describe(item, whole) for item in value]
    return str(value) if isinstance(value, Path) else value


# --- From a record's JSON ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unknown(Step):
    """In place of a step that a record names, and that no module at hand defines, or that would be refused now."""

    letter: ClassVar[str] = "?"
    kind: ClassVar[str] = "another method"

    called: str

    def words(self) -> list[str]:
        return [self.called]

    def check_after(self, before: tuple[Step, ...]) -> None:
        pass


def step_of(description: Mapping, dataset: str) -> Step:
    """The step that a record's JSON describes; `Unknown` where there is none such."""
    kind = STEPS.get(description["step"], Unknown)
    try:
        return Unknown(description["step"]) if kind is Unknown else kind(**_fields(description, dataset))
    except (CompressionError, TypeError, KeyError):  # KeyError: a part that no module at hand defines
        return Unknown(description["step"])


def steps_of(record: Mapping) -> tuple[Step, ...]:
    """The steps of a record, or of the part of one that has `dataset` and `recipe.steps` as columns."""
    described = record["recipe"]["steps"] if "recipe" in record else record["recipe.steps"]
    return tuple(step_of(step, record["dataset"]) for step in described)


def recipe_of(record: Mapping, dataset: str) -> Recipe | None:
    """The recipe of a record; None where a step of it is not known here any more. `dataset` says where its images are.

    A record's own name of a folder leaves out where it lies.
    """
    try:
        recipe = Recipe(dataset, steps_of({**record, "dataset": dataset}), record["seed"])
    except CompressionError:
        return None
    return recipe if recipe.id == record["id"] else None


def words_of(record: Mapping) -> str:
    """`Recipe.words` of a record: `resnet20, distilled, pruned 72 %, ternary`."""
    return _words(steps_of(record))


def label_of(record: Mapping) -> str:
    """`Recipe.label` of a record: as it would be written today, since words may have changed, or else as it was."""
    recipe = recipe_of(record, record["dataset"])
    return record["label"] if recipe is None else recipe.label


def letters_of(record: Mapping) -> str:
    """`Recipe.letters` of a record."""
    return "".join(step.letters for step in steps_of(record))


def _fields(description: Mapping, dataset: str) -> dict[str, Any]:
    return {name: _read(value, dataset) for name, value in description.items() if name not in ("step", "part")}


def _read(value: Any, dataset: str) -> Any:
    if isinstance(value, list):
        return tuple(_read(item, dataset) for item in value)
    if isinstance(value, dict) and "steps" in value:
        return Recipe(dataset, tuple(step_of(step, dataset) for step in value["steps"]), value["seed"])
    if isinstance(value, dict) and "part" in value:
        return PARTS[value["part"]](**_fields(value, dataset))
    return value
