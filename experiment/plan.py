"""What must be made for some recipes, each step once, as a graph; how long it takes; and on how many machines."""

import heapq
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from experiment.freshness import dataset_at_hand
from experiment.records import read_record
from experiment.runner import at_hand, keep_logits, logits_at_hand, make
from experiment.store import ROOT, Store, folder_name, results_folder
from measurement import cost
from models import build
from recipe import Recipe, Training, recipe_of, training_of

TRAINED = 3  # forward passes that a training step costs: one forward, and twice that backward
# Multiply-accumulates a second of a training, of data sets without records: those of a small network on two cores.
USUAL_RATE = 2e10


@dataclass(frozen=True)
class Job:
    """The last step of a recipe; or, if there are `epochs`, the logits that teach it in these, which others use too.

    `needs` are the keys of the jobs that come before; `seconds` is the time of the recorded training, or an estimate.
    """

    recipe: Recipe
    needs: tuple[str, ...] = ()
    epochs: range | None = None
    seconds: float = 0.0

    @property
    def key(self) -> str:
        """The recipe's id; of logits, with the epochs."""
        return self.recipe.id + (f" epochs {self.epochs.start}-{self.epochs.stop}" if self.epochs is not None else "")

    @property
    def sources(self) -> tuple[Recipe, ...]:
        """The recipes whose models it starts from."""
        if self.epochs is None:
            return self.recipe.sources
        return self.recipe.steps[-1].taught_by(self.recipe.before)

    @property
    def names_files(self) -> bool:
        """Whether the step reads files that it names, which lie here only."""
        known = {name for source in self.recipe.sources for name in source.files()}
        return self.epochs is None and bool(self.recipe.files().keys() - known)

    @property
    def words(self) -> str:
        """What is made, for readers."""
        of = f"{self.recipe.words}, seed {self.recipe.seed}"
        return of if self.epochs is None else f"logits of the teacher of {of}"

    def run(self) -> None:
        """Make it, from what is at hand."""
        if self.epochs is None:
            make(self.recipe)
        else:
            keep_logits(self.recipe, self.epochs)


Plan = dict[str, Job]  # by key; those that a job needs come before it


def plan(recipes: Iterable[Recipe], ready: Callable[[Recipe], bool] = at_hand) -> Plan:
    """Return what must be made for these recipes: steps of their chains, starts, teachers, members, kept logits.

    `ready` says of a recipe that its model need not be made; it is asked once for each.
    """
    wanted: dict[str, Recipe] = {}

    def add(recipe: Recipe) -> None:
        if (key := recipe.id) in seen:
            return
        seen.add(key)
        if not ready(recipe):
            for source in recipe.sources:
                add(source)
            wanted[key] = recipe

    seen: set[str] = set()
    for recipe in recipes:
        add(recipe)
    logits = _shared_logits(wanted.values())
    jobs: Plan = {}
    for key, recipe in wanted.items():
        for job in logits.get(key, ()):
            needs = tuple(teacher.id for teacher in job.sources if teacher.id in wanted)
            jobs.setdefault(job.key, replace(job, needs=needs))
        sources = (*(one.id for one in recipe.sources), *(job.key for job in logits.get(key, ())))
        jobs[key] = Job(recipe, tuple(one for one in sources if one in jobs), seconds=seconds(recipe))
    return jobs


def missing(recipes: Iterable[Recipe]) -> Plan:
    """Return the plan of those recipes that have no record; their bases, which they are measured beside, included."""
    without = [recipe for recipe in recipes if read_record(Store.of(recipe).record) is None]
    return plan([one for recipe in without for one in (recipe.base, recipe)])


def _shared_logits(recipes: Iterable[Recipe]) -> dict[str, list[Job]]:
    """Return the jobs of teachers' logits that each of these recipes needs, by id, if several need the same.

    The epochs of the first are computed in its batches; a later one that wants more of them computes the rest.
    """
    groups: dict[tuple, list[Recipe]] = {}
    for recipe in recipes:
        if (teachers := recipe.steps[-1].taught_by(recipe.before)) and not logits_at_hand(recipe):
            step = training_of(recipe.steps[-1])
            seed = recipe.seed if step.view_seed is None else step.view_seed
            groups.setdefault((tuple(one.id for one in teachers), seed, step.augmentation), []).append(recipe)
    found: dict[str, list[Job]] = {}
    for group in groups.values():
        jobs: list[Job] = []
        for recipe in group if len(group) > 1 else ():
            done = jobs[-1].epochs.stop if jobs and jobs[-1].epochs else 0
            if epochs := range(done, training_of(recipe.steps[-1]).distinct_epochs):
                jobs.append(Job(recipe, epochs=epochs, seconds=_logits_seconds(recipe, len(epochs))))
            found[recipe.id] = list(jobs)
    return found


# --- Time -------------------------------------------------------------------------------------------------------------


def seconds(recipe: Recipe) -> float:
    """Return the seconds that the recipe's last step took where it was recorded, else an estimate."""
    known = _known(recipe.dataset)
    if "curves" in (record := known.records.get(recipe.id, {})):
        return _epochs_of(record)
    earlier = _earlier(recipe)
    if recipe.id in known.chains and (earlier is None or earlier.id in known.chains):
        return max(0.0, known.chains[recipe.id] - (known.chains[earlier.id] if earlier else 0.0))
    step = recipe.steps[-1]
    epochs = step.trained_epochs if isinstance(step, Training) else 0
    return epochs * epoch_seconds(recipe) if epochs else 0.0


def epoch_seconds(recipe: Recipe) -> float:
    """Estimate the seconds of a training epoch from those of the same network in records, or of others by operations.

    The network is the one that the recipe ends with; members are counted together.
    """
    network = trained_network(recipe)
    if network is None:
        return sum(map(epoch_seconds, recipe.sources))
    epochs = _known(recipe.dataset).epochs
    if network in epochs:
        return statistics.median(seconds for _, seconds in epochs[network])
    images = dataset_at_hand(recipe.dataset)
    macs = network_macs(*network, images.shape, len(images.classes))
    rates = [seconds / macs for recorded in epochs.values() for macs, seconds in recorded]
    return macs * (statistics.median(rates) if rates else TRAINED * len(images.train) / USUAL_RATE)


def _logits_seconds(recipe: Recipe, epochs: int) -> float:
    """Estimate the time of a teacher's forward passes; 0 if the student's recorded time has them in it."""
    if recipe.id in _known(recipe.dataset).records:
        return 0.0
    return epochs * sum(epoch_seconds(one) for one in recipe.steps[-1].taught_by(recipe.before)) / TRAINED


@dataclass
class _Known:
    """What records tell of time: `chains`, the seconds of whole chains by id, also of those that others go on from;
    `epochs`, multiply-accumulates and seconds of epochs by the network's name and width."""

    records: dict[str, dict]
    chains: dict[str, float]
    epochs: dict[tuple[str, float], list[tuple[int, float]]]


def _known(dataset: str) -> _Known:
    return _read_known(dataset, tuple(_folders(dataset)))


@lru_cache(4)  # estimates need not follow what is recorded meanwhile
def _read_known(dataset: str, folders: tuple[Path, ...]) -> _Known:
    known = _Known({}, {}, {})
    for path in (path for folder in folders for path in sorted(folder.glob("*.json"))):
        record = read_record(path)
        if record is None or path.stem in known.records or (recipe := recipe_of(record, dataset)) is None:
            continue
        known.records[recipe.id] = record
        known.chains[recipe.id] = record["train_seconds"]
        if "curves" not in record:
            continue
        if (earlier := _earlier(recipe)) is not None:
            known.chains.setdefault(earlier.id, record["train_seconds"] - _epochs_of(record))
        if (network := trained_network(recipe)) is not None:
            times = [(record["macs"], point["seconds"]) for point in record["curves"]]
            known.epochs.setdefault(network, []).extend(times)
    return known


def _folders(dataset: str) -> dict[Path, None]:
    """Return the folders of the user's records and of the committed ones, each once."""
    return dict.fromkeys((results_folder(dataset), ROOT / "results" / folder_name(dataset)))


def _earlier(recipe: Recipe) -> Recipe | None:
    """Return the recipe whose time counts in that of this one."""
    return recipe.steps[-1].continued or recipe.before


def _epochs_of(record: Mapping) -> float:
    return sum(point["seconds"] for point in record["curves"])


def trained_network(recipe: Recipe) -> tuple[str, float] | None:
    """Return name and width of the network that a recipe ends with; None for an ensemble."""
    return next((step.network for step in reversed(recipe.steps) if step.network is not None), None)


@lru_cache
def network_macs(name: str, width: float, shape: tuple[int, int, int], classes: int) -> int:
    """Return the multiply-accumulates of a network for one image."""
    return cost(build(name, shape=shape, classes=classes, width=width).eval())["macs"]


# --- Schedules --------------------------------------------------------------------------------------------------------


def to_the_end(jobs: Plan) -> dict[str, float]:
    """Return by key the seconds of the longest chain of jobs that begins with it."""
    left: dict[str, float] = dict.fromkeys(jobs, 0.0)
    for key, job in reversed(jobs.items()):
        left[key] += job.seconds
        for need in job.needs:
            left[need] = max(left[need], left[key])
    return left


def critical_path(jobs: Plan) -> list[Job]:
    """Return the chain of jobs that takes longest, from its first to its last."""
    left, path = to_the_end(jobs), []
    after = list(jobs)
    while after:
        first = max(after, key=left.__getitem__)
        path.append(jobs[first])
        after = [key for key, job in jobs.items() if first in job.needs]
    return path


def longest_first(jobs: Plan) -> Plan:
    """Return the same jobs, those before which most is left to do first; needs still come before what needs them."""
    left = to_the_end(jobs)
    return dict(sorted(jobs.items(), key=lambda item: -left[item[0]]))


def makespan(jobs: Plan, machines: int) -> float:
    """Return the seconds until all jobs are done on machines that take one at a time each, the longest chain first.

    List scheduling: Graham, "Bounds on multiprocessing timing anomalies" (1969), at most twice the least possible.
    """
    order = {key: place for place, key in enumerate(longest_first(jobs))}
    open_needs = {key: set(job.needs) for key, job in jobs.items()}
    ready = [(order[key], key) for key, needs in open_needs.items() if not needs]
    heapq.heapify(ready)
    running: list[tuple[float, str]] = []
    now = 0.0
    while ready or running:
        while ready and len(running) < machines:
            _, key = heapq.heappop(ready)
            heapq.heappush(running, (now + jobs[key].seconds, key))
        now, done = heapq.heappop(running)
        for key, needs in open_needs.items():
            if done in needs:
                needs.remove(done)
                if not needs:
                    heapq.heappush(ready, (order[key], key))
    return now


def least_time(jobs: Plan, machines: int) -> float:
    """Return what no schedule can beat: the work shared evenly, or the critical path."""
    work = sum(job.seconds for job in jobs.values())
    return max(work / machines, max(to_the_end(jobs).values(), default=0.0))


def scaling(recipes: Iterable[Recipe], machines: Iterable[int]) -> list[dict[str, Any]]:
    """Return the hours that all of these recipes take on so many machines, and the least possible."""
    jobs = plan(recipes, ready=lambda recipe: False)
    alone = makespan(jobs, 1)
    return [
        {
            "machines": count,
            "hours": (time := makespan(jobs, count)) / 3600,
            "least hours": least_time(jobs, count) / 3600,
            "times as fast": alone / time,
            "busy %": 100 * alone / time / count,
        }
        for count in machines
    ]


def known_recipes(dataset: str) -> list[Recipe]:
    """Return the recipes of the records in the results folder and of those that the repository has."""
    records = _known(dataset).records.values()
    return [recipe for record in records if (recipe := recipe_of(record, dataset)) is not None]
