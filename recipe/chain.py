"""`Recipe`: a data set, a seed and a chain of steps, as a value."""

import dataclasses
import hashlib
import json
import reprlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, TypeVar

from recipe.checks import default_of, fields_of, identity_fields, plain
from recipe.errors import CompressionError, StepError
from recipe.names import check_dataset, identity, written
from recipe.part import PARTS, Part
from recipe.step import STEPS, Step

S = TypeVar("S", bound=Step)


@dataclass(frozen=True)
class Recipe:
    """The name of a data set, the steps that make the model, and the random seed.

    Example: `Recipe("digits", (Train("resnet20", epochs=10),)).then(Quantize())`.

    Raises:
        StepError: a step cannot follow the one before it, or its teachers, members or initial weights are from another
            data set.
        DataError: the data set is unknown.
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
        for index, step in enumerate(self.steps):
            if not isinstance(step, Step):
                raise StepError(f"a step is a value such as Train('resnet20') or Quantize(), not {reprlib.repr(step)}")
            step.check_after(self.steps[:index])
            for field, recipe in recipes_of(step):
                if recipe.dataset != self.dataset:
                    raise StepError(
                        f"{field} of {step.name} must use the recipe's data set {self.dataset}, not {recipe.dataset}"
                    )

    def then(self, *steps: Step) -> "Recipe":
        """Return the recipe with these steps appended."""
        return dataclasses.replace(self, steps=(*self.steps, *steps))

    def with_seed(self, seed: int) -> "Recipe":
        """Return the same chain with another seed, which its teachers and members get as well."""
        steps = tuple(_reseeded(step, seed) for step in self.steps)
        return dataclasses.replace(self, steps=steps, seed=seed)

    @property
    def base(self) -> "Recipe":
        """The model to compare with: the network that the chain starts from.

        If the chain starts with an ensemble or with teachers, the base of the first of them.
        """
        first = self.steps[0].base
        return self.prefix(1) if first is None else first.base

    @property
    def model(self) -> str | None:
        """The name of the network that the last step to build one builds; None for an ensemble."""
        return next((step.network[0] for step in reversed(self.steps) if step.network is not None), None)

    @property
    def letters(self) -> str:
        """One letter per method, in order of use; empty for a network that was only trained."""
        return "".join(step.letters for step in self.steps)

    @property
    def words(self) -> str:
        """A short description for readers: `resnet20, distilled, pruned 72 %, ternary`."""
        return _words(self.steps)

    def last(self, kind: type[S]) -> S:
        """Return the last step: `recipe.last(Joint).bits`. Raises StepError if it is not of this kind."""
        step = self.steps[-1]
        if not isinstance(step, kind):
            raise StepError(f"{self.label} does not end in {kind.__name__}")
        return step

    @property
    def before(self) -> "Recipe | None":
        """The recipe without its last step; None if it has only one."""
        return self.prefix(len(self.steps) - 1) if len(self.steps) > 1 else None

    @property
    def sources(self) -> "tuple[Recipe, ...]":
        """The recipes whose models the last step starts from: the one before it, teachers, members, each once."""
        before = [] if self.before is None else [self.before]
        return tuple(dict.fromkeys([*before, *(recipe for _, recipe in recipes_of(self.steps[-1]))]))

    def prefix(self, length: int) -> "Recipe":
        """Return the recipe of the first `length` steps. Raises StepError if the chain is shorter."""
        if not 1 <= length <= len(self.steps):
            raise StepError(f"{self.label} has {len(self.steps)} step(s): it has no prefix of {length}")
        return dataclasses.replace(self, steps=self.steps[:length])

    def describe(self) -> dict:
        """The recipe as JSON values without fields at their default; a folder of images is given by name only."""
        return _describe(self, whole=False)

    def resolved(self) -> dict:
        """The recipe as JSON values with every field, including those at their default, which `id` omits."""
        return _describe(self, whole=True)

    @property
    def id(self) -> str:
        """The first twelve hexadecimal digits of the SHA-256 of the canonical JSON.

        Fields at their default are left out, so that adding a field does not change existing ids.
        """
        return identity_of(self.describe())

    def networks(self) -> list[tuple[str, float]]:
        """Name and width of each network built for this recipe, its teachers and its members, without duplicates."""
        found: list[tuple[str, float]] = []
        for step in self.steps:
            if step.network is not None:
                found.append(step.network)
            for _, recipe in recipes_of(step):
                found += recipe.networks()
        return list(dict.fromkeys(found))

    def files(self) -> dict[str, Path]:
        """The files named in the steps' fields, keyed by that name: their contents are part of the recipe."""
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
        """A readable name: `resnet20 > Quantize`, `resnet18 > Distill(resnet20, epochs=60)`."""
        return " > ".join(_label(step, self.prefix(index) if index else None) for index, step in enumerate(self.steps))


def identity_of(description: dict) -> str:
    """Return the `id` of a recipe from its `describe()`, which records hold."""
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
    except (OSError, ValueError):  # the name is too long or contains a null character
        return False


def _label(step: Step, before: Recipe | None) -> str:
    if before is None and step.network is not None and step.base is None and not step.techniques:
        return step.network[0]
    return _as_text(step, before)


def _as_text(step: Part, before: Recipe | None) -> str:
    words = []
    for field in fields_of(step):
        value = getattr(step, field.name)
        if value == default_of(field):
            continue
        if isinstance(value, tuple) and value and isinstance(value[0], Recipe):
            words.append(" + ".join(recipe.label for recipe in value))
        elif isinstance(value, tuple) and value and isinstance(value[0], Part):
            words.append(" + ".join(_as_text(part, before) for part in value))
        elif isinstance(value, Part):
            words.append(_as_text(value, before))
        elif field.name == "layer_bits":  # one pair per layer: too long for a label
            words.append("bits by layer")
        else:
            has_default = default_of(field) is not dataclasses.MISSING
            value = "itself" if value == before else value.label if isinstance(value, Recipe) else value
            words.append(f"{field.name}={value}" if has_default else str(value))
    return step.name + (f"({', '.join(words)})" if words else "")


def _words(steps: Sequence[Step]) -> str:
    words: list[str] = []
    for step in steps:
        if step.network is not None:  # a new network: what was done before does not apply to it
            name, width = step.network
            words = [name if width == 1 else f"{name} of width {width:g}"]
        words += step.words()
    return ", ".join(words)


def recipes_of(step: Step) -> Iterator[tuple[str, Recipe]]:
    """Yield the name of a field and a recipe in it, for each recipe in the step's fields, such as a teacher."""
    return ((field, value) for field, value in _values(step) if isinstance(value, Recipe))


def _values(part: Part) -> Iterator[tuple[str, Any]]:
    """Yield the name of a field and a value in it; parts and tuples are flattened."""
    for field in identity_fields(part):
        value = getattr(part, field.name)
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
        changed = value.changed  # computed once: it compares every field, including nested recipes
        named = [field.name for field in identity_fields(value) if whole or field.name in changed]
        called = {"step" if isinstance(value, Step) else "part": value.name}
        return called | {name: _describe(getattr(value, name), whole) for name in named}
    value = plain(value)
    if isinstance(value, tuple):
        return [_describe(item, whole) for item in value]
    return str(value) if isinstance(value, Path) else value


# --- From a record's JSON ---------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Unknown(Step):
    """Stands for a recorded step that no imported module defines, or that would be refused today."""

    letter: ClassVar[str] = "?"
    kind: ClassVar[str] = "another method"

    called: str

    def apply(self, model: Any, context: Any) -> Any:
        raise StepError(f"no imported module defines the step {self.called}: import the one that does")

    def words(self) -> list[str]:
        return [self.called]

    def check_after(self, before: tuple[Step, ...]) -> None:
        pass


def step_of(description: Mapping, dataset: str) -> Step:
    """Return the step that a record's JSON describes, or `Unknown` if it cannot be built."""
    kind = STEPS.get(description["step"], Unknown)
    try:
        return Unknown(description["step"]) if kind is Unknown else kind(**_fields(description, dataset))
    except (CompressionError, TypeError, KeyError):  # KeyError: no imported module defines the part
        return Unknown(description["step"])


def steps_of(record: Mapping) -> tuple[Step, ...]:
    """Return the steps of a record, or of a table row with columns `dataset` and `recipe.steps`."""
    described = record["recipe"]["steps"] if "recipe" in record else record["recipe.steps"]
    return tuple(step_of(step, record["dataset"]) for step in described)


def recipe_of(record: Mapping, dataset: str) -> Recipe | None:
    """Return the recipe of a record, or None if one of its steps is no longer known here.

    `dataset` says where the images are: a record names a folder of images without its path.
    """
    try:
        recipe = Recipe(dataset, steps_of({**record, "dataset": dataset}), record["seed"])
    except CompressionError:
        return None
    return recipe if recipe.id == record["id"] else None


def read_recipe(written: Any) -> Recipe:
    """Return the recipe that JSON values describe, as `Recipe.describe` writes them; of a folder with its path.

    Raises:
        CompressionError: it is no recipe, or one of its steps is unknown or refused.
    """
    try:
        kinds = [(STEPS[step["step"]], step) for step in written["steps"]]
        steps = tuple(kind(**_fields(step, written["dataset"])) for kind, step in kinds)
        return Recipe(written["dataset"], steps, written.get("seed", 0))
    except (TypeError, KeyError, AttributeError) as error:
        raise StepError(
            f"not a recipe ({type(error).__name__}: {error}): write "
            '{"dataset": "digits", "steps": [{"step": "Train", "model": "resnet20"}]}, as records do under "recipe"'
        ) from None


def words_of(record: Mapping) -> str:
    """Return `Recipe.words` of a record: `resnet20, distilled, pruned 72 %, ternary`."""
    return _words(steps_of(record))


def label_of(record: Mapping) -> str:
    """Return `Recipe.label` of a record as it would be written today; if its recipe is unknown, the recorded label."""
    recipe = recipe_of(record, record["dataset"])
    return record["label"] if recipe is None else recipe.label


def letters_of(record: Mapping) -> str:
    """Return `Recipe.letters` of a record."""
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
