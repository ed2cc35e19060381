"""The smallest models: a search for accuracy against archive bytes, resumable and budgeted in epochs."""

import itertools
import math
import random
import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import optuna
import pandas as pd
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from tqdm.auto import tqdm

from combination.recommend import pareto_front
from data import load
from experiment import Recipe, make
from experiment.records import artifacts_folder
from storage import save_archive
from training import evaluate

STARTUP = 10  # candidates that the sampler draws at random, Optuna's default
Candidate = Callable[[Mapping, int], Recipe]


class SearchError(Exception):
    """A search that cannot start or go on."""


def search(
    name: str,
    dataset: str,
    space: Mapping[str, Sequence],
    candidate: Candidate,
    *,
    budget: int,
    epochs: int,
    seed: int = 0,
) -> pd.DataFrame:
    """Short trainings of many candidates, chosen by Optuna's multi-objective TPE; validation accuracy and bytes alone.

    So many candidates as `STARTUP` says are drawn at random before the sampler has a model of what is good (those that
    come again count, too): a search of no more is all but a random one.

    Args:
        name: a search goes on where the one of that name stopped; its journal is in artifacts/DATASET/search.
        space: the choices of each hyperparameter, such as `{"width": (0.5, 1.0), "bits": (2, 4)}`.
        candidate: the recipe of one choice of each, trained for so many epochs.
        budget: epochs for all candidates together; `epochs` for each of them. Choices that come again are not trained
            again and cost nothing: the next ones are new. A smaller budget than before gives the first candidates.

    Returns a row a candidate: its choices, `validation_accuracy`, `archive_bytes`, and `front`, whether no other is
    as accurate and as small, and better in one of both. The test images are not looked at: run the front's recipes for
    that, for longer.

    Raises:
        SearchError: nothing to choose from, a budget below one candidate, or a search resumed with other settings.
    """
    if not space or not all(space.values()):
        raise SearchError("nothing to search: every hyperparameter of the space needs at least one choice")
    if epochs < 1 or budget < epochs:
        raise SearchError(f"a budget of {budget} epochs pays for no candidate of {epochs}: raise it")
    space = {key: list(dict.fromkeys(values)) for key, values in space.items()}
    example = candidate({key: values[0] for key, values in space.items()}, epochs)  # its id has what is not chosen, too
    settings = {"space": space, "epochs": epochs, "seed": seed, "recipe": example.id}
    folder = artifacts_folder(dataset) / "search"
    folder.mkdir(parents=True, exist_ok=True)
    study = _open(folder / f"{name}.journal", settings)
    wanted = min(budget // epochs, math.prod(map(len, space.values())))
    known = dict(itertools.islice(_known(study, space).items(), wanted))
    with tqdm(total=wanted, initial=len(known), desc=f"search {name}", unit="candidate", leave=False) as bar:
        while len(known) < wanted:
            trial = study.ask()
            drawn = tuple(trial.suggest_categorical(key, values) for key, values in space.items())
            if drawn in known:
                study.enqueue_trial(_untried(space, known, seed))
            else:
                known[drawn] = _try(candidate(dict(zip(space, drawn, strict=True)), epochs))
                bar.update()
            study.tell(trial, known[drawn])
    return _table(known, list(space))


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
    before = study.user_attrs.get("settings")
    if before is not None and before != settings:
        changed = ", ".join(key for key in settings if settings[key] != before.get(key))
        raise SearchError(f"{journal} was begun with another {changed}: give the search another name, or delete it")
    study.set_user_attr("settings", settings)
    return study


def _known(study: optuna.Study, space: Mapping[str, Sequence]) -> dict[tuple, tuple[float, int]]:
    """Accuracy and bytes by choices, of finished trainings; one that was killed is trained when its choices come."""
    trials = study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])
    return {tuple(trial.params[key] for key in space): (trial.values[0], int(trial.values[1])) for trial in trials}


def _untried(space: Mapping[str, Sequence], known: Mapping[tuple, tuple], seed: int) -> dict:
    draws = random.Random(seed + len(known))
    while True:
        drawn = tuple(draws.choice(values) for values in space.values())
        if drawn not in known:
            return dict(zip(space, drawn, strict=True))


def _try(recipe: Recipe) -> tuple[float, int]:
    model = make(recipe)
    dataset = load(recipe.dataset)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "candidate"
        save_archive(model, file)
        return evaluate(model, dataset, dataset.validation), file.stat().st_size


def _table(known: Mapping[tuple, tuple[float, int]], keys: list[str]) -> pd.DataFrame:
    rows = [(*choices, *measured) for choices, measured in known.items()]
    table = pd.DataFrame(rows, columns=[*keys, "validation_accuracy", "archive_bytes"])
    return table.assign(front=pareto_front(table, ("archive_bytes",)))
