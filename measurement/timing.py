"""Latency: the median of many runs, timed in turn with the FP32 base so that the ratio survives a noisy machine."""

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
RUNS = (7, 200)  # at least, at most
SECONDS = 1.5  # at most for each batch size and thread count, between the least and the most runs; $MEASURE_SECONDS
PRECISION = 0.01  # standard error of the ratio to the base at which timing may end sooner
PAUSE = 0.01  # seconds for the threads of the one before to stop spinning: they would take this one's cores
AWAKE = 0.01  # seconds of calls that fill the caches again and wake all threads: a single short call may wake but one
LEAST_TURNS = 40  # pauses that fit into the budget: a smaller one has shorter pauses, and coarser times
QUIET = 0.1  # share of the cores that other programs may use


def latency(file: Path, base_file: Path, base: nn.Module) -> dict:
    """Time an ONNX file, its FP32 base in ONNX Runtime and that base in eager PyTorch, by turns.

    Returns, under `batch1`, `batch1_one_thread`, `batch64` and `batch64_one_thread`: `median` and `p95` in ms,
    `base_median` and `eager_median` in ms, and `speedup` and `speedup_over_eager`, which are medians of the ratios of
    neighbouring runs. `contention` is the share of the cores that other programs took meanwhile.

    Raises:
        ValueError: $MEASURE_SECONDS, the seconds for each of the four, is no number of them.
    """
    result: dict[str, Any] = {"contention": 0.0}  # first in the record
    shape, before = spec_of(base)["shape"], _processor_seconds()
    for batch in BATCHES:
        images = np.random.default_rng(0).standard_normal((batch, *shape), dtype=np.float32)
        for suffix, threads in (("", available_cores()), ("_one_thread", 1)):
            result[f"batch{batch}{suffix}"] = time_by_turns(file, base_file, base, images, threads)
    result["contention"] = round(_others_share(before, _processor_seconds()), 3)
    if result["contention"] > QUIET:
        _warn_of_contention()
    return result


@cache  # once, not for every record: each says how disturbed it is
def _warn_of_contention() -> None:
    warnings.warn(
        f"other programs use more than {QUIET:.0%} of the cores: some latencies are disturbed (see "
        "latency_ms.contention in the records); run with remeasure=True again when the machine is quiet",
        stacklevel=3,
    )


def measuring_seconds() -> float:
    """The budget of one timing: `SECONDS`, or $MEASURE_SECONDS where less or more is wanted."""
    text = os.environ.get("MEASURE_SECONDS") or str(SECONDS)
    try:
        seconds = float(text)
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise ValueError(f"MEASURE_SECONDS is the seconds that one timing may take, such as 0.5, not {text!r}")
    return seconds


def available_cores() -> int:
    """Cores that this process may use; where the system does not say, all of them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@cache
def hardware() -> dict:
    """The processor by name, its cores, and the instructions that matter for INT8 and bfloat16."""
    name, flags = _processor()
    wanted = {"avx2", "avx512f", "avx512_vnni", "avx512vnni", "avx_vnni", "avx512_bf16", "amx_int8", "amx_bf16"}
    return {
        "cpu": name,
        "cores": available_cores(),
        "instructions": sorted(wanted & flags),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> tuple[str, set[str]]:
    """Its name, and its instructions, as Linux says them; elsewhere as py-cpuinfo does, after a second."""
    with contextlib.suppress(OSError):
        said = dict(re.findall(r"^(model name|flags)\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE))
        if len(said) == 2:
            return said["model name"], set(said["flags"].split())
    import cpuinfo

    info = cpuinfo.get_cpu_info()
    return info.get("brand_raw", platform.processor()), set(info.get("flags", []))


def machine() -> str:
    """The hardware in one line: the name under which times that were taken here are kept."""
    here = hardware()
    return " ".join([here["cpu"], str(here["cores"]), *here["instructions"], *filter(None, [here["gpu"]])])


def time_by_turns(file: Path, base_file: Path, base: nn.Module, images: np.ndarray, threads: int) -> dict:
    """One setting of `latency`: normalized images `[B, C, H, W]` (float32), so many threads."""
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
    own, base_ms, eager_ms = times
    return {
        "median": float(np.median(own)),
        "p95": float(np.percentile(own, 95)),
        "base_median": float(np.median(base_ms)),
        "eager_median": float(np.median(eager_ms)),
        "speedup": float(np.median(base_ms / own)),
        "speedup_over_eager": float(np.median(eager_ms / own)),
        "runs": len(own),
    }


def _alternate(*functions: Callable[[], object], seconds: float, pausing: bool = False) -> np.ndarray:
    """Milliseconds `[function, run]`: the functions are called by turns, after a pause if that is asked for.

    So many `seconds` at most, but for the fewest runs of `RUNS`.
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
    """Whether the median ratio of the first function's time to the second's is known well enough."""
    if len(rows) < 20:
        return False
    own, base, *_ = np.log(rows).T
    return math.sqrt(math.pi / 2) * np.std(base - own) / math.sqrt(len(rows)) < PRECISION  # a median's standard error


class _ProcessorSeconds(NamedTuple):
    """Seconds of all cores so far: in all, at work, and at work for this process."""

    total: float
    busy: float
    own: float


def _processor_seconds() -> _ProcessorSeconds:
    times = psutil.cpu_times()._asdict()
    total = sum(times.values()) - times.get("guest", 0) - times.get("guest_nice", 0)  # which user and nice hold too
    return _ProcessorSeconds(total, total - times["idle"] - times.get("iowait", 0), time.process_time())


def _others_share(before: _ProcessorSeconds, after: _ProcessorSeconds) -> float:
    """The share of the cores' time between the two that other programs took."""
    others = (after.busy - before.busy) - (after.own - before.own)
    return max(0.0, others) / max(after.total - before.total, 1e-9)
