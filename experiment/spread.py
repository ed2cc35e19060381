"""Making recipes on other processes and machines, and measuring them here: `run_all(recipes, on="auto")`."""

import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager

from tqdm.auto import tqdm

from experiment.cluster import Cluster
from experiment.plan import Job, Plan, missing, plan
from experiment.runner import run
from experiment.store import Store
from experiment.workers import Processes, Workers
from recipe import Recipe
from training.devices import WorkerError

Failures = dict[str, Exception]  # by the recipe's id


def run_all(recipes: Iterable[Recipe], on: str | None = None) -> list[dict]:
    """Return the records of several recipes, in order, with a progress bar.

    on: where models are made: None, in this process, if $RAY is not set either; "processes" of this machine; or a Ray
        cluster, by its address or as "auto". They are measured here in any case, one after the other, afterwards.

    Raises:
        WorkerError: a recipe failed on a worker. The others were made and measured before; each that failed is named.
    """
    recipes = list(recipes)
    records, failures = attempt_all(recipes, on)
    if failures:
        raise WorkerError(
            f"{len(failures)} of {len(recipes)} recipes failed: "
            + "; ".join(f"{recipe.label} ({recipe.id}): {failures[recipe.id]}" for recipe in _once(recipes, failures))
        ) from next(iter(failures.values()))
    return records


def attempt_all(recipes: Iterable[Recipe], on: str | None = None) -> tuple[list[dict], Failures]:
    """Return the records of the recipes that have one or could be made, and the errors of the others."""
    recipes = list(recipes)
    failures, records = make_all(recipes, on), []
    for recipe in tqdm(recipes, desc="recipes", unit="recipe", leave=False):
        if recipe.id not in failures:
            try:
                records.append(run(recipe))
            except Exception as error:  # a network of the user may raise anything
                failures[recipe.id] = error
    return records, failures


def make_all(
    recipes: Iterable[Recipe], on: str | None = None, needed: Callable[[Iterable[Recipe]], Plan] = missing
) -> Failures:
    """Make what is `needed` for these recipes `on` workers, or nothing if neither `on` nor $RAY says where.

    Returns the error of each recipe that could not be made, or that starts from one that could not. What another
    process is making already is waited for.
    """
    on, recipes, ended = on or os.environ.get("RAY"), list(recipes), set()
    failures: Failures = {}
    if not on:
        return failures
    with ExitStack() as stack:
        crew: Workers | None = None
        while jobs := {key: job for key, job in needed(recipes).items() if key not in ended}:
            if crew is None:
                stack.callback((crew := workers(on)).close)
            with _claimed(jobs, crew.own_store) as mine:
                for job, error in _ended(mine, crew):
                    ended.add(job.key)
                    if error is not None:
                        failures[job.recipe.id] = error
    return failures


class Maker:
    """Makes recipes as they are asked for: on the workers that $RAY names, or one at a time here."""

    def __init__(self) -> None:
        on = os.environ.get("RAY")
        self.crew = workers(on) if on else None
        self.size = self.crew.size if self.crew else 1
        self.open: dict[str, tuple[Recipe, ExitStack]] = {}  # by id, those begun, with their locks
        self.ready: list[str] = []
        self.begun: set[str] = set()

    def begin(self, recipe: Recipe) -> None:
        """Begin to make a recipe, after any process that is making it already."""
        if recipe.id in self.open:
            return
        self.open[recipe.id] = recipe, ExitStack()
        if self.crew and self.crew.own_store:
            self.open[recipe.id][1].enter_context(Store.of(recipe).locked())
        jobs = {key: job for key, job in plan([recipe]).items() if key not in self.begun} if self.crew else {}
        self.begun.update(jobs)
        if self.crew and jobs:
            self.crew.add(jobs)
        else:
            self.ready.append(recipe.id)

    def next(self) -> tuple[Recipe, Exception | None]:
        """Return the next recipe that is made, or that `make` would make here, or its error."""
        key, error = (self.ready.pop(0) if self.ready else ""), None
        while self.crew and key not in self.open:
            job, error = self.crew.next()
            key = job.key
        recipe, locks = self.open.pop(key)
        locks.close()
        return recipe, error

    def __enter__(self) -> "Maker":
        return self

    def __exit__(self, *error: object) -> None:
        if self.crew:
            self.crew.close()
        for _, locks in self.open.values():
            locks.close()


def workers(on: str) -> Workers:
    """Return the workers that `on` names: "processes", or those of a Ray cluster."""
    return Processes() if on == "processes" else Cluster(on)


def _ended(jobs: Plan, crew: Workers) -> Iterator[tuple[Job, Exception | None]]:
    """Yield each job when it has ended, with its error, and show what is left."""
    weights = {key: max(1.0, job.seconds) for key, job in jobs.items()}
    form = "{desc} |{bar}| {elapsed}, {remaining} left"
    with tqdm(total=sum(weights.values()), bar_format=form, smoothing=0, leave=False) as bar:
        for count, (job, error) in enumerate(_outcomes(jobs, crew)):
            bar.set_description(f"{count + 1} of {len(jobs)} steps")
            bar.update(weights[job.key])
            yield job, error


def _outcomes(jobs: Plan, crew: Workers) -> Iterator[tuple[Job, Exception | None]]:
    here = [job for job in jobs.values() if job.names_files]  # which other machines do not have
    for job in here:
        try:
            job.run()
            yield job, None
        except Exception as error:
            yield job, error
    crew.add({key: job for key, job in jobs.items() if job not in here})
    for _ in range(len(jobs) - len(here)):
        yield crew.next()


@contextmanager
def _claimed(jobs: Plan, lock: bool) -> Iterator[Plan]:
    """Yield the jobs that no other process is at, nor any that they need, and hold the locks of their recipes.

    If there are none, wait for the first of the others, and yield nothing. Without `lock`, yield all: the workers then
    lock what they make themselves.
    """
    with ExitStack() as locks:
        mine: Plan = {}
        for key, job in jobs.items() if lock else ():
            if any(need in jobs and need not in mine for need in job.needs):
                continue
            if job.epochs is not None or locks.enter_context(Store.of(job.recipe).locked(wait=False)):
                mine[key] = job
        if lock and not mine:
            with Store.of(next(iter(jobs.values())).recipe).locked():
                pass
        yield mine if lock else jobs


def _once(recipes: Iterable[Recipe], failures: Failures) -> list[Recipe]:
    return list({recipe.id: recipe for recipe in recipes if recipe.id in failures}.values())
