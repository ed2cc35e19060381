"""python -m cuda_kernels check | measure: see the package's docstring."""

from __future__ import annotations

import argparse
import sys
import time

import torch

from . import check, gpu, measure
from .cpu import measure_cpu


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


def main() -> int:
    """Run the command line."""
    parser = argparse.ArgumentParser(prog="python -m cuda_kernels", description="Check or measure the CUDA kernels.")
    parser.add_argument("command", choices=["check", "measure"])
    command = parser.parse_args().command
    try:
        if command == "check":
            return 0 if run_check() else 1
        run_measure()
    except RuntimeError as error:  # no compiler, or a wrong kernel
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
