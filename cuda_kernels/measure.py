"""GPU measurements: CUDA events around replayed graphs, rotating buffers, and the GPU's peak rates in the same run."""

from __future__ import annotations

import functools
import math
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import pandas as pd
import torch
from tqdm.auto import tqdm

from . import gpu, records
from .work import Sizes, Work, all_work, relative_error

SAMPLES = 20
SAMPLE_MS = 2.0  # one sample lasts about this long, so that the events' own resolution does not matter
LARGEST_ERROR = 1e-4  # relative, for FP32; INT8 must be equal
MOST_BUFFERS = 1 << 16  # the smallest layer has 6 KB, an L2 cache 50 MB
FIELDS = ("family", "kernel", "maker", "case", "m", "n", "k", "density", "bytes", "operations")


def measure(sizes: Sizes | None = None, folder: Path | None = None, again: bool = True) -> pd.DataFrame:
    """Measure every kernel and its peers on this machine's GPU, write one record each, and return them.

    again: if False, keep this GPU's records if they are complete, or continue an interrupted run. RuntimeError without
    a GPU.
    """
    gpu.require()
    if not again and len(kept := _whole_run(folder)):
        return kept
    torch.set_float32_matmul_precision("highest")  # cuBLAS computes in full FP32, as our kernels do
    shared = {**device_facts(), **ceilings()}
    done = []
    progress = tqdm(all_work(sizes or Sizes(), "cuda", buffers_needed), desc="GPU kernels", unit="kernel")
    for work in progress:
        progress.set_postfix_str(f"{work.case}: {work.kernel}")
        stored = None if again else records.read({**shared, **_fields(work)}, folder)
        done.append(stored or finish(measure_work(work), shared, folder))
    done += [finish(record, shared, folder) for record in copy_records()]  # last: they mark a complete run
    return pd.DataFrame(done)


def _whole_run(folder: Path | None) -> pd.DataFrame:
    """Return the records of this GPU if a run of it was completed, else none."""
    stored = records.load(folder)
    here = stored[stored["device"] == device_facts()["device"]] if len(stored) else stored
    return here if len(here) and "copy" in set(here["family"]) else here.iloc[:0]


def measure_work(work: Work) -> dict:
    """Return the record of one kernel, without what all records of a run share. A wrong kernel is not timed."""
    error = relative_error(work)
    if not error <= (0 if work.family == "gemm_int8" else LARGEST_ERROR):
        raise RuntimeError(
            f"{work.kernel} on {work.case} is wrong (relative error {error:.1e}); run python -m "
            "cuda_kernels check to see where"
        )
    samples, method = time_runs(work.runs)
    return {
        **_fields(work),
        "relative_error": error,
        "timing": method,
        "buffers": len(work.runs),
        **records.summarize(samples),
    }


def time_runs(runs: Sequence[Callable[[], object]]) -> tuple[list[float], str]:
    """Return SAMPLES times of one run in ms, and the method: "graph" (a replayed CUDA graph) or "queued" launches.

    Buffers are used in turn. A graph excludes the gaps between launches that last microseconds; work that cannot be
    captured is queued.
    """
    stream = gpu.torch_stream()
    with torch.cuda.stream(stream):
        for run in runs:
            run()
        once = max(_events_ms(lambda: [run() for run in runs]) / len(runs), 1e-3)
        rounds = max(1, math.ceil(min(SAMPLE_MS / once, 1000) / len(runs)))
        queue = [run for _ in range(rounds) for run in runs]
        replay, method = _graph(queue, stream)
        for _ in range(3):
            replay()
        return [_events_ms(replay) / len(queue) for _ in range(SAMPLES)], method


def time_queued(run: Callable[[], object]) -> list[float]:
    """Return SAMPLES times of one run in ms, queued on the default stream as a user's program does it."""
    for _ in range(5):
        run()
    rounds = max(1, math.ceil(SAMPLE_MS / max(_events_ms(run), 1e-3)))
    return [_events_ms(lambda: [run() for _ in range(rounds)]) / rounds for _ in range(SAMPLES)]


def _graph(queue: Sequence[Callable[[], object]], stream: torch.cuda.Stream) -> tuple[Callable[[], None], str]:
    def queued() -> None:
        for run in queue:
            run()

    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            queued()
    except Exception:  # torch and PyCUDA raise different errors for work that a capture does not allow
        torch.cuda.synchronize()
        return queued, "queued"
    return graph.replay, "graph"


def _events_ms(action: Callable[[], object]) -> float:
    start, stop = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    start.record()
    action()
    stop.record()
    stop.synchronize()
    return start.elapsed_time(stop)


def buffers_needed(size: int) -> int:
    """Return how many buffers of `size` bytes fill four times the L2 cache (at most MOST_BUFFERS)."""
    cache = torch.cuda.get_device_properties(0).L2_cache_size
    return min(MOST_BUFFERS, max(1, math.ceil(4 * cache / max(size, 1))))


def device_facts() -> dict:
    """Return the GPU and the software versions, for the records."""
    facts = torch.cuda.get_device_properties(0)
    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    return {
        "device": facts.name,
        "kind": "gpu",
        "multiprocessors": facts.multi_processor_count,
        "l2_bytes": facts.L2_cache_size,
        "versions": versions,
    }


def ceilings() -> dict:
    """Measure this GPU's copy bandwidth (read + written) and the libraries' best arithmetic rates."""
    source = torch.randn(1 << 28, device="cuda")
    copy_ms = min(time_runs([functools.partial(torch.empty_like(source).copy_, source)])[0])
    a, b = torch.randn(8192, 8192, device="cuda"), torch.randn(8192, 8192, device="cuda")
    fp32_ms = min(time_runs([functools.partial(torch.mm, a, b)])[0])
    x, w = (torch.randint(-128, 128, (8192, 8192), dtype=torch.int8, device="cuda") for _ in range(2))
    int8_ms = min(time_runs([functools.partial(torch._int_mm, x, w.T)])[0])
    return {
        "copy_gbytes_per_s": 2 * 4 * source.numel() / copy_ms / 1e6,
        "fp32_gops_per_s": 2 * 8192**3 / fp32_ms / 1e6,
        "int8_gops_per_s": 2 * 8192**3 / int8_ms / 1e6,
    }


def copy_records(size: int = 1 << 28) -> list[dict]:
    """Measure host-to-device copies of `size` floats, pageable and pinned, which Shettiwar and Shankar list apart."""
    host, target = torch.randn(size), torch.empty(size, device="cuda")
    out = []
    for kernel, source in (("copy pageable", host), ("copy pinned", host.pin_memory())):
        samples = []
        for _ in range(6):
            torch.cuda.synchronize()
            begin = time.perf_counter()
            target.copy_(source)
            torch.cuda.synchronize()
            samples.append((time.perf_counter() - begin) * 1e3)
        out.append(
            {
                "family": "copy",
                "kernel": kernel,
                "maker": "CUDA",
                "case": "host to device",
                "m": size,
                "n": 1,
                "k": 1,
                "density": 1.0,
                "bytes": 4 * size,
                "operations": 0,
                "timing": "clock",
                **records.summarize(samples[1:]),
            }
        )
    return out


def _fields(work: Work) -> dict:
    return {name: getattr(work, name) for name in FIELDS}


def finish(record: dict, shared: dict, folder: Path | None) -> dict:
    """Add what all records of a run share and the rates, write the record, and return it."""
    record = {**record, **shared, **records.provenance()}
    record.update(records.rates(record))
    records.write(record, folder)
    return record
