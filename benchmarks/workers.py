"""What two workers of one thread each gain over one process of two threads, on the digits, and what the plan predicts.

    python benchmarks/workers.py             # on a quiet machine: minutes

Both make the same models in empty folders, in turn; the predicted times are those of `makespan` over the steps' times
as this process measured them.
"""

import argparse
import os
import statistics
import tempfile
import time
from dataclasses import replace

import torch

from distillation import Distill
from experiment.plan import Plan, makespan, plan
from experiment.spread import make_all
from quantization import Quantize
from recipe import Recipe
from training import Train


def main() -> None:
    """Time both in turn, and print seconds and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--on", default="auto", help="processes, auto, or the address of a Ray cluster")
    arguments = parser.parse_args()
    recipes = study()
    in_workers(recipes[:1], arguments.on)  # starts them, and imports what they need
    alone, together = [], []
    jobs: Plan = {}
    for _ in range(arguments.rounds):
        jobs = in_this_process(recipes)
        alone.append(sum(job.seconds for job in jobs.values()))
        together.append(in_workers(recipes, arguments.on))
        print(f"one process of two threads {alone[-1]:.1f} s, workers {together[-1]:.1f} s", flush=True)
    one, two = statistics.median(alone), statistics.median(together)
    print(f"medians {one:.1f} s and {two:.1f} s: {one / two:.2f}x as fast")
    print(
        f"predicted from the steps of one process: {makespan(jobs, 1):.1f} s on one, {makespan(jobs, 2):.1f} s on two"
    )


def study() -> list[Recipe]:
    """Return trainings of several seeds, and their students and integer forms."""
    bases = [Recipe("digits", (Train("resnet20", epochs=10, batch_size=64),), seed) for seed in range(4)]
    students = [base.then(Distill("resnet8", epochs=3, batch_size=64)) for base in bases]
    return [*bases, *students, *(base.then(Quantize("qat", bits=4, epochs=3, batch_size=64)) for base in bases)]


def in_this_process(recipes: list[Recipe]) -> Plan:
    """Make all of them in two threads; return the plan with the seconds that each step took."""
    torch.set_num_threads(2)
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"ARTIFACTS_DIR": folder, "RESULTS_DIR": folder}
        jobs = plan(recipes)
        for key, job in jobs.items():
            started = time.perf_counter()
            job.run()
            jobs[key] = replace(job, seconds=time.perf_counter() - started)
    return jobs


def in_workers(recipes: list[Recipe], on: str) -> float:
    """Return the seconds in which workers make all of them."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ |= {"ARTIFACTS_DIR": folder, "RESULTS_DIR": folder}
        started = time.perf_counter()
        if failures := make_all(recipes, on, plan):
            raise SystemExit(f"a recipe failed: {failures}")
        return time.perf_counter() - started


if __name__ == "__main__":
    main()
