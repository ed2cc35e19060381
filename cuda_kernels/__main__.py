"""python -m cuda_kernels check | measure | measure-networks | resources | run FILE.nna: see the package's docstring."""

from __future__ import annotations

import argparse
import sys
import time
from pathlib import Path

import torch

from models import imported
from recipe import CompressionError

from . import check, gpu, measure, measure_networks, resources
from .cpu import measure_cpu
from .run import run_archive


def run_check() -> bool:
    """Check every kernel and print one line per case; return True if all passed."""
    reason = gpu.available()
    device = "cpu" if reason else "cuda"
    print(f"In the emulator: {reason}." if reason else f"On {torch.cuda.get_device_name()}.")
    failed, seed = 0, time.time_ns() % 10**9
    print(f"Inputs are drawn from seed {seed}.")
    for case in check.all_cases(device, seed):
        outcome = check.run_case(case, device)
        failed += not outcome.passed
        verdict = "ok" if outcome.passed else f"WRONG {outcome.remark}"
        print(f"{case.kernel:24} {case.what:32} error {outcome.error:.1e}  {verdict}")
    print("Every kernel is right." if not failed else f"{failed} cases failed.")
    return not failed


def run_measure() -> None:
    """Measure the CPU, then the GPU if there is one; records go to results/kernels/."""
    frame = measure_cpu(again=True)
    print(frame[["kernel", "m", "n", "k", "density", "threads", "time_ms"]].to_string(index=False))
    reason = gpu.available()
    if reason:
        print(f"No GPU measurement: {reason}.")
        return
    frame = measure.measure()
    columns = ["case", "kernel", "density", "time_ms", "gbytes_per_s", "share_of_copy", "gops_per_s"]
    print(frame[columns].to_string(index=False))


def run_measure_networks() -> None:
    """Time whole networks on the GPU; records go to results/kernels/."""
    frame = measure_networks.measure_networks()
    print(frame[["case", "kernel", "time_ms", "time_ms_p5", "time_ms_p95", "timing"]].to_string(index=False))


def run_resources() -> None:
    """Compile every kernel for every generation, and write what each one uses to cuda_kernels/resources.csv."""
    table = resources.write_resources()
    print(table.to_string(index=False))


def _count(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of images: give a whole number above 0")
    return int(text)


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m cuda_kernels", description="Check, measure or use the kernels.")
    commands = parser.add_subparsers(dest="command", required=True)
    runs = {"measure": run_measure, "measure-networks": run_measure_networks, "resources": run_resources}
    for name, function in {"check": run_check, **runs}.items():
        commands.add_parser(name, help=function.__doc__)
    run = commands.add_parser("run", help="run the integer network of an archive on the kernels")
    run.add_argument("file", type=Path)
    run.add_argument("--dataset", required=True, help="cifar10 and the like, folder:PATH or parquet:PATH")
    run.add_argument("--images", type=_count, help="how many test images; by default all on a GPU, few in the emulator")
    run.add_argument("--network", help="MODULE:FUNCTION, of a network of yours: its code runs")
    run.add_argument("--import", dest="modules", action="append", default=[], help="a module of yours, which runs")
    given = parser.parse_args()
    try:
        if given.command == "check":
            return 0 if run_check() else 1
        if given.command == "run":
            for module in given.modules:
                imported(module)
            run_archive(given.file, given.dataset, given.images, given.network)
        else:
            runs[given.command]()
    except (CompressionError, RuntimeError, ValueError) as error:  # no compiler, bad input, or a wrong kernel
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
