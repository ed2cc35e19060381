"""Search for small models: accuracy against archive size, resumable, with a budget in epochs."""

import itertools
import json
import math
import random
import re
import reprlib
import tempfile
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path

import optuna
import pandas as pd
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from tqdm.auto import tqdm

from combination.joint import Joint
from combination.recommendation import pareto_front
from data import load
from experiment import make
from experiment.spread import Maker
from experiment.store import artifacts_folder
from recipe import CompressionError, Recipe, fields_of
from storage import save_archive
from training import TrainingDiverged, evaluate

STARTUP = 10  # candidates drawn at random before TPE starts, Optuna's default
FIELDS = tuple(field.name for field in fields_of(Joint) if field.name != "epochs")  # hyperparameters to choose from
NAME = r"\w[\w .-]{0,49}"  # names of searches, which are also file names
MOST = 2**31 - 1  # so that the seed plus the number of trials stays within numpy's limit
Candidate = Callable[[Mapping, int], Recipe]
Words = Mapping[str, Mapping]  # for each hyperparameter, its choices by the value that Optuna stores for them
Tried = dict[tuple, tuple[float, int] | None]  # by choices: accuracy and bytes, or None if the training diverged
DIVERGED = "diverged"


class SearchError(CompressionError):
    """A search cannot start or continue."""


def search(
    name: str,
    space: Mapping[str, Sequence],
    candidate: Candidate,
    *,
    budget: int,
    epochs: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Train many candidates briefly, chosen by Optuna's multi-objective TPE, and compare validation accuracy and size.

    Several candidates are trained at once on the workers that $RAY names, if it does (see `experiment.run_all`). The
    first `STARTUP` candidates are drawn at random, for TPE to learn from, so that a search of up to that size is a
    random search. TPE chooses the later ones; if it repeats a candidate, a new one is drawn at random instead.

    Args:
        name: a search resumes if one of that name exists; its journal is in artifacts/DATASET/search.
        space: the choices of each hyperparameter, such as `{"width": (0.5, 1.0), "bits": (2, 4)}`; see `check_space`.
        candidate: returns the recipe for one choice of each and a number of epochs; all recipes use one data set.
        budget: total epochs of all candidates. Repeated candidates are not trained again and cost nothing. A smaller
            budget than before returns the first candidates.
        epochs: epochs of each candidate.

    Returns one row per candidate: its choices, `validation_accuracy`, `archive_bytes`, and `front`, whether it is on
    the Pareto front of the two. Candidates whose training diverged are left out with a warning. The test images are not
    used: to evaluate the front on them, run its recipes for longer.

    Raises:
        SearchError: an argument is wrong, the budget does not pay for one candidate, the search was started with other
            settings, or all trainings diverged.
    """
    _check_arguments(name, budget, epochs, seed)
    check_space(space)
    space = {key: list(dict.fromkeys(choices)) for key, choices in space.items()}
    example = _recipe(candidate, {key: choices[0] for key, choices in space.items()}, epochs)
    settings = {"space": space, "epochs": epochs, "seed": seed, "recipe": example.id}  # for all else
    words: Words = {key: {_word(choice): choice for choice in choices} for key, choices in space.items()}
    folder = artifacts_folder(example.dataset) / "search"
    folder.mkdir(parents=True, exist_ok=True)
    study = _open(folder / f"{name}.journal", settings)
    wanted = min(budget // epochs, math.prod(map(len, space.values())))
    known = dict(itertools.islice(_known(study, words).items(), wanted))
    if len(known) < wanted:

        def recipe_of(drawn: tuple) -> Recipe:
            return _recipe(candidate, _choices(words, drawn), epochs)

        _train(study, known, wanted, words, recipe_of, f"search {name}", seed)
    if not any(known.values()):
        raise SearchError(f"the trainings of all {len(known)} candidates diverged: lower their learning_rate")
    return _table(known, words)


def _train(
    study: optuna.Study,
    known: Tried,
    wanted: int,
    words: Words,
    recipe_of: Callable[[tuple], Recipe],
    title: str,
    seed: int,
) -> None:
    """Add results to `known` until there are as many as wanted, of as many candidates at once as there are workers."""
    running: dict[tuple, tuple[optuna.Trial, Recipe]] = {}  # by choices
    with Maker() as maker, tqdm(total=wanted, initial=len(known), desc=title, unit="candidate", leave=False) as bar:
        while len(known) < wanted:
            while len(running) < min(maker.size, wanted - len(known)):
                trial, drawn = _ask(study, words, {*known, *running}, seed)
                running[drawn] = trial, recipe_of(drawn)
                maker.begin(running[drawn][1])
            made, error = maker.next()
            for drawn in [drawn for drawn, (_, recipe) in running.items() if recipe.id == made.id]:
                trial, recipe = running.pop(drawn)
                known[drawn] = _try(recipe, error)
                if known[drawn] is None:
                    trial.set_user_attr(DIVERGED, True)
                study.tell(trial, known[drawn], None if known[drawn] else TrialState.FAIL)
                bar.update()


def check_space(space: Mapping[str, Sequence]) -> None:
    """Raise SearchError unless a space maps names to at least one choice each, of values that its journal can store."""
    if not isinstance(space, Mapping) or not space or not all(isinstance(key, str) for key in space):
        raise SearchError(
            f"space must map names to choices, such as {{'width': (0.5, 1.0)}}, not {reprlib.repr(space)}"
        )
    for key, choices in space.items():
        if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
            raise SearchError(
                f"{key} needs a list or tuple of at least one choice, [a] or [a, b], not {reprlib.repr(choices)}"
            )
        for choice in choices:
            if not _can_be_stored(choice):
                raise SearchError(
                    f"{reprlib.repr(choice)} cannot be a choice of {key}: use numbers, text, None, or tuples of those"
                )


def _can_be_stored(choice: object) -> bool:
    if isinstance(choice, tuple):
        return all(map(_can_be_stored, choice))
    return choice is None or isinstance(choice, str | int | float)


def _check_arguments(name: str, budget: int, epochs: int, seed: int) -> None:
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise SearchError(
            f"name must be a file name of up to 50 letters, digits, spaces, '.', '_' and '-', not {name!r}"
        )
    for what, value, least in (("budget", budget, 1), ("epochs", epochs, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
            raise SearchError(f"{what} must be a whole number from {least} to {MOST}, not {value!r}")
    if budget < epochs:
        raise SearchError(f"a budget of {budget} epochs pays for no candidate of {epochs}: raise it")


def _word(choice: object) -> object:
    """Return a choice as Optuna stores it: it does not support tuples, so they become JSON."""
    return json.dumps(choice) if isinstance(choice, tuple) else choice


def _choices(words: Words, drawn: tuple) -> dict:
    return {key: own[word] for (key, own), word in zip(words.items(), drawn, strict=True)}


def _recipe(candidate: Candidate, choices: dict, epochs: int) -> Recipe:
    try:
        recipe = candidate(choices, epochs)
    except TypeError as error:  # its step has no such field
        raise SearchError(
            f"candidate cannot make a recipe from {choices} ({error}): name fields of its step, for Joint some of "
            f"{', '.join(FIELDS)}"
        ) from error
    if not isinstance(recipe, Recipe):
        raise SearchError(f"candidate must return a recipe, not {reprlib.repr(recipe)}")
    return recipe


def _open(journal: Path, settings: dict) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))),
        study_name="search",
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )
    # A resumed search must not repeat the random draws from its start.
    seed = settings["seed"] + len(study.trials)
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP, seed=seed)
    settings = json.loads(json.dumps(settings))  # as the journal returns them: tuples become lists
    before = study.user_attrs.get("settings")
    if before is not None and before != settings:
        changed = ", ".join(key for key in settings if settings[key] != before.get(key))
        raise SearchError(f"{journal} was started with another {changed}: give the search another name, or delete it")
    study.set_user_attr("settings", settings)
    return study


def _known(study: optuna.Study, words: Words) -> Tried:
    """Return the results so far, by choices. Killed trainings are not included: they are repeated when drawn again."""
    known: Tried = {}
    for trial in study.get_trials(deepcopy=False):
        drawn = tuple(trial.params.get(key) for key in words)
        if trial.state == TrialState.COMPLETE:
            known[drawn] = trial.values[0], int(trial.values[1])
        elif trial.user_attrs.get(DIVERGED) and trial.state == TrialState.FAIL:
            known[drawn] = None
    return known


def _untried(words: Words, known: Collection[tuple], seed: int) -> dict:
    draws = random.Random(seed + len(known))
    while True:
        drawn = tuple(draws.choice(list(own)) for own in words.values())
        if drawn not in known:
            return dict(zip(words, drawn, strict=True))


def _ask(study: optuna.Study, words: Words, known: Collection[tuple], seed: int) -> tuple[optuna.Trial, tuple]:
    """Return the next candidate, whose choices are not `known` yet."""
    while True:
        trial = study.ask()
        drawn = tuple(trial.suggest_categorical(key, list(own)) for key, own in words.items())
        if drawn not in known:
            return trial, drawn
        study.tell(trial, state=TrialState.FAIL)  # otherwise it would count as one of the first `STARTUP`
        study.enqueue_trial(_untried(words, known, seed))


def _try(recipe: Recipe, error: Exception | None) -> tuple[float, int] | None:
    """Return validation accuracy and archive bytes; None, with a warning, if the training diverged.

    `error` is what the recipe failed with, where it was made elsewhere.
    """
    try:
        if error is not None:
            raise error
        model = make(recipe)
    except TrainingDiverged as error:
        warnings.warn(f"left out: {recipe.label}, {error}", stacklevel=2)
        return None
    dataset = load(recipe.dataset)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "candidate"
        save_archive(model, file)
        return evaluate(model, dataset, dataset.validation), file.stat().st_size


def _table(known: Tried, words: Words) -> pd.DataFrame:
    rows = [(*_choices(words, drawn).values(), *measured) for drawn, measured in known.items() if measured]
    table = pd.DataFrame(rows, columns=[*words, "validation_accuracy", "archive_bytes"])
    return table.assign(front=pareto_front(table, ("archive_bytes",)))
