"""The smallest models: a search for accuracy against archive bytes, resumable and budgeted in epochs."""

import tempfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import optuna
import pandas as pd
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import TrialState
from tqdm.auto import tqdm

from data import load
from experiment import Recipe, make
from experiment.records import artifacts_folder
from storage import save_archive
from training import evaluate

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

    Args:
        name: a search goes on where the one of that name stopped; its journal is in artifacts/DATASET/search.
        space: the choices of each hyperparameter, such as `{"width": (0.5, 1.0), "bits": (2, 4)}`.
        candidate: the recipe of one choice of each, trained for so many epochs.
        budget: epochs for all candidates together; `epochs` for each of them.

    Returns a row a candidate: its choices, `validation_accuracy`, `archive_bytes`, and `front`, whether no other is
    both more accurate and smaller. The test images are not looked at: run the front's recipes for that, for longer.

    Raises:
        SearchError: nothing to choose from, a budget below one candidate, or a search resumed with other settings.
    """
    if not space or not all(space.values()):
        raise SearchError("nothing to search: every hyperparameter of the space needs at least one choice")
    if epochs < 1 or budget < epochs:
        raise SearchError(f"a budget of {budget} epochs pays for no candidate of {epochs}: raise it")
    folder = artifacts_folder(dataset) / "search"
    folder.mkdir(parents=True, exist_ok=True)
    journal = folder / f"{name}.journal"
    study = _open(journal, {"space": {k: list(v) for k, v in space.items()}, "epochs": epochs, "seed": seed}, seed)
    for _ in tqdm(range(budget // epochs - len(_done(study))), desc=f"search {name}", unit="candidate", leave=False):
        trial = study.ask()
        choices = {key: trial.suggest_categorical(key, list(values)) for key, values in space.items()}
        accuracy, size = _try(candidate(choices, epochs))
        study.tell(trial, [accuracy, size])
    return _table(study)


def _open(journal: Path, settings: dict, seed: int) -> optuna.Study:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(
        storage=JournalStorage(JournalFileBackend(str(journal))),
        study_name="search",
        directions=["maximize", "minimize"],
        load_if_exists=True,
    )
    # A search that goes on must not draw again what it drew at its start.
    study.sampler = optuna.samplers.TPESampler(seed=seed + len(study.trials))
    before = study.user_attrs.get("settings")
    if before is not None and before != settings:
        changed = ", ".join(key for key in settings if settings[key] != before.get(key))
        raise SearchError(f"{journal} was begun with another {changed}: give the search another name, or delete it")
    study.set_user_attr("settings", settings)
    return study


def _done(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Finished candidates; one that was being trained when the search was killed is asked for anew."""
    return study.get_trials(deepcopy=False, states=[TrialState.COMPLETE])


def _try(recipe: Recipe) -> tuple[float, int]:
    model = make(recipe)
    dataset = load(recipe.dataset)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "candidate"
        save_archive(model, file)
        return evaluate(model, dataset, dataset.validation), file.stat().st_size


def _table(study: optuna.Study) -> pd.DataFrame:
    front = {trial.number for trial in study.best_trials}
    rows = [
        trial.params
        | {
            "validation_accuracy": trial.values[0],
            "archive_bytes": int(trial.values[1]),
            "front": trial.number in front,
        }
        for trial in _done(study)
    ]
    return pd.DataFrame(rows).drop_duplicates(ignore_index=True)
