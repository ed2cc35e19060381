"""Latency: the median of many runs, alternating with the FP32 base so that the ratio is robust on a noisy machine."""

import contextlib
import math
import os
import platform
import re
import time
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import psutil
import torch
from torch import nn

from models import spec_of
from storage import open_onnx, run_onnx

BATCHES = (1, 64)
WARMUP_RUNS = 3
RUNS = (7, 200)  # minimum, maximum
SECONDS = 1.5  # time limit per batch size and thread count once the minimum of runs is done; see $MEASURE_SECONDS
PRECISION = 0.01  # timing ends early at this standard error of the ratio to the base
PAUSE = 0.01  # seconds for the previous session's threads to stop spinning, which would take cores from this one
AWAKE = 0.01  # seconds of warm-up before each timed call, to fill the caches and wake all threads
LEAST_TURNS = 40  # pauses that must fit into the budget: a small budget gets shorter pauses and less precise times
QUIET = 0.1  # share of the cores that other programs may use


def latency(file: Path, base_file: Path, base: nn.Module) -> dict:
    """Time an ONNX file, its FP32 base in ONNX Runtime and that base in eager PyTorch, alternating between them.

    Returns, under `batch1`, `batch1_one_thread`, `batch64` and `batch64_one_thread`: `median` and `p95` in ms,
    `base_median` and `eager_median` in ms, and `speedup` and `speedup_over_eager`, which are medians of the ratios of
    neighbouring runs. `contention` is the share of the cores that other programs used meanwhile.

    Raises:
        ValueError: $MEASURE_SECONDS, the seconds for each of the four, is not a positive number.
    """
    result: dict[str, Any] = {"contention": 0.0}  # the first key in the record
    shape, before = spec_of(base)["shape"], _processor_seconds()
    for batch in BATCHES:
        images = np.random.default_rng(0).standard_normal((batch, *shape), dtype=np.float32)
        for suffix, threads in (("", available_cores()), ("_one_thread", 1)):
            result[f"batch{batch}{suffix}"] = time_by_turns(file, base_file, base, images, threads)
    result["contention"] = round(_others_share(before, _processor_seconds()), 3)
    if result["contention"] > QUIET:
        _warn_of_contention()
    return result


@cache  # warn once, not for every record: each record holds its own contention
def _warn_of_contention() -> None:
    warnings.warn(
        f"other programs use more than {QUIET:.0%} of the cores: some latencies are disturbed (see "
        "latency_ms.contention in the records); run with remeasure=True again when the machine is quiet",
        stacklevel=3,
    )


def measuring_seconds() -> float:
    """Return the time budget of one timing: $MEASURE_SECONDS if it is set, else `SECONDS`."""
    text = os.environ.get("MEASURE_SECONDS") or str(SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"MEASURE_SECONDS is the seconds that one timing may take, such as 0.5, not {text!r}")
    return seconds


def available_cores() -> int:
    """Return the number of cores that this process may use; all cores if the system does not say."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def hardware() -> dict:
    """Return the processor's name, its cores, its instructions for INT8 and bfloat16, and the GPU."""
    name, flags = _processor()
    wanted = {"avx2", "avx512f", "avx512_vnni", "avx512vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"}
    return {
        "cpu": name,
        "cores": available_cores(),
        "instructions": sorted(wanted & flags),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> tuple[str, set[str]]:
    """Return its name and instructions from /proc/cpuinfo, else from py-cpuinfo, which takes a second."""
    with contextlib.suppress(OSError):
        found = dict(re.findall(r"^(model name|flags)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
        if len(found) == 2:
            return found["model name"], set(found["flags"].split())
    import cpuinfo

    info = cpuinfo.get_cpu_info()
    return info.get("brand_raw", platform.processor()), set(info.get("flags", []))


def machine() -> str:
    """Return the hardware in one line, the key under which times measured here are stored."""
    here = hardware()
    return " ".join([here["cpu"], str(here["cores"]), *here["instructions"], *filter(None, [here["gpu"]])])


def time_by_turns(file: Path, base_file: Path, base: nn.Module, images: np.ndarray, threads: int) -> dict:
    """Time one setting of `latency`: normalized images `[B, C, H, W]` (float32) and a number of threads."""
    session, base_session = open_onnx(file, threads), open_onnx(base_file, threads)
    tensor = torch.from_numpy(images)
    base.cpu().eval()
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with torch.inference_mode():
            times = _alternate(
                lambda: run_onnx(session, images),
                lambda: run_onnx(base_session, images),
                lambda: base(tensor),
                seconds=measuring_seconds(),
                pausing=threads > 1,
            )
    finally:
        torch.set_num_threads(before)
    file_ms, base_ms, eager_ms = times
    return {
        "median": float(np.median(file_ms)),
        "p95": float(np.percentile(file_ms, 95)),
        "base_median": float(np.median(base_ms)),
        "eager_median": float(np.median(eager_ms)),
        "speedup": float(np.median(base_ms / file_ms)),
        "speedup_over_eager": float(np.median(eager_ms / file_ms)),
        "runs": len(file_ms),
    }


def _alternate(*functions: Callable[[], object], seconds: float, pausing: bool = False) -> np.ndarray:
    """Call the functions in turn, after a pause if `pausing`, and return milliseconds `[function, run]`.

    Takes at most `seconds`, unless the minimum number of runs needs longer.
    """
    for function in functions * WARMUP_RUNS:
        function()
    pause, awake = (min(longest, seconds / LEAST_TURNS) for longest in (PAUSE if pausing else 0.0, AWAKE))
    rows: list[list[float]] = []
    deadline = time.perf_counter() + seconds
    while len(rows) < RUNS[0] or (len(rows) < RUNS[1] and time.perf_counter() < deadline and not _settled(rows)):
        row = []
        for function in functions:
            time.sleep(pause)
            _warm(function, awake)
            started = time.perf_counter()
            function()
            row.append(1000 * (time.perf_counter() - started))
        rows.append(row)
    return np.array(rows).T


def _warm(function: Callable[[], object], seconds: float) -> None:
    until = time.perf_counter() + seconds
    function()
    while time.perf_counter() < until:
        function()


def _settled(rows: list[list[float]]) -> bool:
    """Return whether the median ratio of the first function's time to the second's is precise enough."""
    if len(rows) < 20:
        return False
    first, second, *_ = np.log(rows).T
    deviation = np.std(second - first)
    return math.sqrt(math.pi / 2) * deviation / math.sqrt(len(rows)) < PRECISION  # standard error of a median


class _ProcessorSeconds(NamedTuple):
    """Seconds so far, summed over all cores: total, busy, and busy with this process."""

    total: float
    busy: float
    own: float


def _processor_seconds() -> _ProcessorSeconds:
    times = psutil.cpu_times()._asdict()
    total = sum(times.values()) - times.get("guest", 0) - times.get("guest_nice", 0)  # user and nice include them
    return _ProcessorSeconds(total, total - times["idle"] - times.get("iowait", 0), time.process_time())


def _others_share(before: _ProcessorSeconds, after: _ProcessorSeconds) -> float:
    """Return the share of the cores' time between two readings that other programs used."""
    others = (after.busy - before.busy) - (after.own - before.own)
    return max(0.0, others) / max(after.total - before.total, 1e-9)
