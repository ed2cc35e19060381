"""Workers of a Ray cluster: Ray schedules jobs, repeats those whose worker was lost, and moves their files."""

import os
import pickle
from typing import Any

from tqdm.auto import tqdm

from data import Dataset
from experiment.freshness import dataset_at_hand
from experiment.plan import Job, Plan, longest_first, network_macs, trained_network
from experiment.store import Store
from experiment.workers import Files, Outcome, pack, pack_logits, pack_modules, unpack, work
from training import loop
from training.devices import WorkerError, connect

LARGE = 1e8  # multiply-accumulates an image; larger networks scale over threads, and fill a GPU
GPU_SHARE = 0.25  # of a GPU, for a network that is not large
THREADS = 4  # for a large network, if there are so many


class Cluster:
    """The workers of the Ray cluster at an address; "auto" is the one that runs here, or a new one."""

    def __init__(self, address: str):
        self.ray: Any = connect(address)
        nodes = [node["Resources"] for node in self.ray.nodes() if node["Alive"]]
        self.threads = min(THREADS, max(int(own.get("CPU", 0)) for own in nodes))
        self.gpus = sum(own.get("GPU", 0) for own in nodes)
        self.size = max(1, int(self.gpus / GPU_SHARE) if self.gpus else sum(int(own.get("CPU", 0)) for own in nodes))
        self.shared = os.environ.get("STORE")
        self.own_store = not self.shared
        self.task = self.ray.remote(_work)
        self.datasets: dict[str, Any] = {}
        self.files: dict[str, Any] = {}  # by key of what was made or was at hand, references to them
        self.running: dict[Any, Job] = {}

    def add(self, jobs: Plan) -> None:
        for job in longest_first(jobs).values():
            images = dataset_at_hand(job.recipe.dataset)
            if images.name not in self.datasets:
                self.datasets[images.name] = self.ray.put(images)
            threads, share = self._resources(job, images)
            task = self.task.options(num_cpus=threads, num_gpus=share, name=job.words)
            given = [*self._sources(job), pack_logits(job.recipe) | pack_modules(job.recipe)]
            self.files[job.key] = task.remote(
                pickle.dumps(job), threads, self.datasets[images.name], self.shared, *given
            )
            self.running[self.files[job.key]] = job

    def next(self) -> Outcome:
        [ended], _ = self.ray.wait(list(self.running), num_returns=1)
        job = self.running.pop(ended)
        try:
            unpack(self.ray.get(ended), job.recipe.dataset)
        except self.ray.exceptions.RayTaskError as error:
            return job, error.cause if isinstance(error.cause, Exception) else error
        except self.ray.exceptions.RayError as error:
            return job, WorkerError(f"its workers were lost ({str(error).splitlines()[0]}): run again once they last")
        return job, None

    def close(self) -> None:
        for reference in self.running:
            self.ray.cancel(reference, force=True)

    def _sources(self, job: Job) -> list[Any]:
        """Return references to the files that a job starts from: made by other jobs, or at hand."""
        for source in job.sources:
            if source.id not in self.files:
                self.files[source.id] = self.ray.put(
                    {} if self.shared and Store.of(source).weights.exists() else pack(source)
                )
        keys = [*(source.id for source in job.sources), *job.needs]
        return [self.files[key] for key in dict.fromkeys(keys)]

    def _resources(self, job: Job, images: Dataset) -> tuple[int, float]:
        """Return how many CPU cores and which share of a GPU a job gets. For several devices, Ray Train asks itself."""
        if job.epochs is None and getattr(job.recipe.steps[-1], "devices", 1) > 1:
            return 0, 0
        networks = map(trained_network, [job.recipe] if job.epochs is None else job.sources)
        macs = [network_macs(*network, images.shape, len(images.classes)) for network in networks if network]
        large = max(macs, default=0) > LARGE
        return self.threads if large else 1, 0 if not self.gpus else 1 if large else GPU_SHARE


class _Bar(tqdm):
    """A progress bar of a worker, shown where the study is read."""

    def __init__(self, *arguments: Any, **options: Any):
        from ray.experimental import tqdm_ray

        super().__init__(*arguments, **options | {"file": open(os.devnull, "w")})  # noqa: SIM115
        self.there = tqdm_ray.tqdm(desc=options.get("desc"), total=options.get("total"), unit=options.get("unit"))
        self.there.update(options.get("initial", 0))

    def update(self, n: float | None = 1) -> bool | None:
        self.there.update(n)
        return super().update(n)

    def close(self) -> None:
        self.there.close()
        super().close()


def _work(*given: Any) -> Files:
    loop.tqdm = _Bar
    return work(*given)
