"""Whether the kernel of Hopper's own instructions can be used: only after it was found right on this very machine.

It was written without a Hopper GPU at hand: compiled for sm_90a and run in the emulator, but never on a GPU. A wrong
descriptor could read out of bounds, after which a process can use the GPU no more, so the check runs in one of its own.
"""

from __future__ import annotations

import functools
import os
import subprocess
import sys
from pathlib import Path

import torch

SOURCE = "gemm_int8_hopper"
SECONDS = 300  # for the check, compilation included
CHECKING = "CUDA_KERNELS_HOPPER_CHECK"  # set in the process that checks


def unusable(device: torch.device) -> str | None:
    """Return None if the kernel may be used on a device, else why not. On the CPU, the emulator runs it."""
    if device.type == "cpu" or os.environ.get(CHECKING):
        return None
    if torch.cuda.get_device_capability(device) != (9, 0):
        return "it needs a GPU of compute capability 9.0"
    return _checked()


@functools.cache
def _checked() -> str | None:
    """Run the check in a process of its own; once in the life of this one."""
    command = [sys.executable, "-c", "from cuda_kernels import check; raise SystemExit(not check.hopper_is_right())"]
    try:
        done = subprocess.run(
            command, cwd=Path(__file__).parents[1], env=os.environ | {CHECKING: "1"}, capture_output=True, text=True,
            timeout=SECONDS,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"its check on this machine did not end in {SECONDS} s"
    said = (done.stderr.strip() or done.stdout.strip()).splitlines()
    return None if done.returncode == 0 else f"its check on this machine failed ({(said or ['nothing said'])[-1]})"
