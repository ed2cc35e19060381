"""The smallest models: a search for accuracy against archive bytes, resumable and budgeted in epochs."""

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
from experiment.store import artifacts_folder
from recipe import CompressionError, Recipe, fields_of
from storage import save_archive
from training import TrainingDiverged, evaluate

STARTUP = 10  # candidates that are drawn at random before TPE chooses, Optuna's default: of n, min(STARTUP, n)
FIELDS = tuple(field.name for field in fields_of(Joint) if field.name != "epochs")  # to choose from
NAME = r"\w[\w .-]{0,49}"  # of a search, which is its file's
MOST = 2**31 - 1  # so that a seed and the number of trials, which is added to it, are no more than numpy takes
Candidate = Callable[[Mapping, int], Recipe]
Words = Mapping[str, Mapping]  # of each hyperparameter: its choices, by what Optuna keeps of them
Tried = dict[tuple, tuple[float, int] | None]  # by choices: accuracy and bytes, or None if the training diverged
DIVERGED = "diverged"


class SearchError(CompressionError):
    """A search that cannot start or go on."""


def search(
    name: str,
    space: Mapping[str, Sequence],
    candidate: Candidate,
    *,
    budget: int,
    epochs: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Short trainings of many candidates, chosen by Optuna's multi-objective TPE; validation accuracy and bytes alone.

    The first `STARTUP` candidates are drawn at random, for TPE to learn from: a search of no more than these is a
    random search. The later ones TPE chooses; where it chooses one that was tried, a new one is drawn at random.

    Args:
        name: a search goes on where the one of that name stopped; its journal is in artifacts/DATASET/search.
        space: the choices of each hyperparameter, such as `{"width": (0.5, 1.0), "bits": (2, 4)}`; see `check_space`.
        candidate: the recipe of one choice of each, trained for so many epochs; all are of one data set.
        budget: epochs for all candidates together; `epochs` for each of them. Choices that come again are not trained
            again and cost nothing. A smaller budget than before gives the first candidates.

    Returns a row a candidate: its choices, `validation_accuracy`, `archive_bytes`, and `front`, whether no other is
    as accurate and as small, and better in one of both. Candidates whose training diverged are left out with a warning.
    The test images are not looked at: run the front's recipes for that, for longer.

    Raises:
        SearchError: a wrong argument, a budget below one candidate, a search resumed with other settings, or one whose
            candidates all diverged.
    """
    _check_arguments(name, budget, epochs, seed)
    check_space(space)
    space = {key: list(dict.fromkeys(choices)) for key, choices in space.items()}
    example = _recipe(candidate, {key: choices[0] for key, choices in space.items()}, epochs)
    settings = {"space": space, "epochs": epochs, "seed": seed, "recipe": example.id}  # whose id has what is not chosen
    words: Words = {key: {_word(choice): choice for choice in choices} for key, choices in space.items()}
    folder = artifacts_folder(example.dataset) / "search"
    folder.mkdir(parents=True, exist_ok=True)
    study = _open(folder / f"{name}.journal", settings)
    wanted = min(budget // epochs, math.prod(map(len, space.values())))
    known = dict(itertools.islice(_known(study, words).items(), wanted))
    with tqdm(total=wanted, initial=len(known), desc=f"search {name}", unit="candidate", leave=False) as bar:
        while len(known) < wanted:
            trial = study.ask()
            drawn = tuple(trial.suggest_categorical(key, list(own)) for key, own in words.items())
            if drawn in known:
                study.tell(trial, state=TrialState.FAIL)  # else it would count among the `STARTUP` ones
                study.enqueue_trial(_untried(words, known, seed))
            else:
                known[drawn] = _try(_recipe(candidate, _choices(words, drawn), epochs))
                if known[drawn] is None:
                    trial.set_user_attr(DIVERGED, True)
                study.tell(trial, known[drawn], None if known[drawn] else TrialState.FAIL)
                bar.update()
    if not any(known.values()):
        raise SearchError(f"the trainings of all {len(known)} candidates diverged: lower their learning_rate")
    return _table(known, words)


def check_space(space: Mapping[str, Sequence]) -> None:
    """Raise SearchError unless a space has names with at least one choice each, of values that its journal can keep."""
    if not isinstance(space, Mapping) or not space or not all(isinstance(key, str) for key in space):
        raise SearchError(
            f"the space is names with their choices, such as {{'width': (0.5, 1.0)}}, not {reprlib.repr(space)}"
        )
    for key, choices in space.items():
        if not isinstance(choices, Sequence) or isinstance(choices, str) or not choices:
            raise SearchError(
                f"{key} needs a list or tuple of at least one choice, [a] or [a, b], not {reprlib.repr(choices)}"
            )
        for choice in choices:
            if not _can_be_kept(choice):
                raise SearchError(
                    f"{reprlib.repr(choice)} cannot be a choice of {key}: use numbers, text, None, or tuples of those"
                )


def _can_be_kept(choice: object) -> bool:
    if isinstance(choice, tuple):
        return all(map(_can_be_kept, choice))
    return choice is None or isinstance(choice, str | int | float)


def _check_arguments(name: str, budget: int, epochs: int, seed: int) -> None:
    if not isinstance(name, str) or not re.fullmatch(NAME, name):
        raise SearchError(
            f"name is a file's: up to 50 letters, digits, spaces, '.', '_' and '-', such as 'small', not {name!r}"
        )
    for what, value, least in (("budget", budget, 1), ("epochs", epochs, 1), ("seed", seed, 0)):
        if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= MOST:
            raise SearchError(f"{what} must be a whole number from {least} to {MOST}, not {value!r}")
    if budget < epochs:
        raise SearchError(f"a budget of {budget} epochs pays for no candidate of {epochs}: raise it")


def _word(choice: object) -> object:
    """A choice as Optuna keeps it: it has no tuples, which stand there as their JSON."""
    return json.dumps(choice) if isinstance(choice, tuple) else choice


def _choices(words: Words, drawn: tuple) -> dict:
    return {key: own[word] for (key, own), word in zip(words.items(), drawn, strict=True)}


def _recipe(candidate: Candidate, choices: dict, epochs: int) -> Recipe:
    try:
        recipe = candidate(choices, epochs)
    except TypeError as error:  # a field that its step does not have
        raise SearchError(
            f"candidate makes no recipe of {choices} ({error}): name fields of its step, of Joint some of "
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
    # A search that goes on must not draw again what it drew at its start.
    seed = settings["seed"] + len(study.trials)
    study.sampler = optuna.samplers.TPESampler(n_startup_trials=STARTUP, seed=seed)
    settings = json.loads(json.dumps(settings))  # as the journal gives them back, where a tuple is a list
    before = study.user_attrs.get("settings")
    if before is not None and before != settings:
        changed = ", ".join(key for key in settings if settings[key] != before.get(key))
        raise SearchError(f"{journal} was begun with another {changed}: give the search another name, or delete it")
    study.set_user_attr("settings", settings)
    return study


def _known(study: optuna.Study, words: Words) -> Tried:
    """What came of each choice so far; a training that was killed is not among them: it is done when it is drawn."""
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


def _try(recipe: Recipe) -> tuple[float, int] | None:
    """Accuracy on the validation images and bytes; None, with a warning, if the training diverged."""
    try:
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
