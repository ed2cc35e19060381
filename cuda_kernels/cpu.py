"""CPU measurements: FP32 and INT8 products in ONNX Runtime, dense and CSR products in numpy and scipy."""

from __future__ import annotations

import functools
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import scipy
import scipy.sparse
from onnx import TensorProto, helper, numpy_helper
from threadpoolctl import threadpool_limits

from measurement import available_cores, hardware
from recipe import StepError, check_whole, is_number
from storage import runtime_options

from . import records

DENSITIES = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
PRODUCTS = ((16, 4096, 4096), (64, 512, 4608), (1024, 64, 576))  # rows, outputs, inputs: a wide layer, two of ResNet-18


def measure_cpu(
    products: Sequence[tuple[int, int, int]] = PRODUCTS,
    square: int = 4096,
    densities: Sequence[float] = DENSITIES,
    seconds: float = 0.3,
    folder: Path | None = None,
    again: bool = False,
) -> pd.DataFrame:
    """Measure what this CPU has no record of (`again`: everything), write one record each, and return all records.

    products: (m, n, k) of x (m, k) times weights (k, n); square: edge of the sparse matrix; seconds: per measurement.
    """
    for what, value in (("square", square), *(("a size", size) for product in products for size in product)):
        check_whole(what, value)
    if not (is_number(seconds) and seconds > 0):
        raise StepError(f"seconds is a number above 0, not {seconds!r}")
    rows = []
    for threads in sorted({1, available_cores()}):
        for m, n, k in products:
            keys = [_key(kernel, "product", m, n, k, threads=threads) for kernel in ("onnx_fp32", "onnx_int8")]
            rows += _measured(keys, functools.partial(product_runs, m, n, k, threads), seconds, folder, again)
    dense = _key("numpy_dense", "matrix-vector", square, 1, square, threads=1)
    for density in densities:
        keys = [dense, _key("scipy_csr", "matrix-vector", square, 1, square, density, 1)]
        rows += _measured(keys, functools.partial(spmv_runs, square, density), seconds, folder, again)
    return pd.DataFrame(rows).drop_duplicates(["kernel", "m", "n", "k", "density", "threads"], keep="last")


def product_runs(m: int, n: int, k: int, threads: int) -> list[tuple[Callable[[], object], int, int]]:
    """Return (run, bytes, operations) of an FP32 and an INT8 product of the same random numbers, checked with int64."""
    rng = np.random.default_rng()
    x, w = rng.integers(0, 256, (m, k), dtype=np.uint8), rng.integers(-64, 65, (k, n), dtype=np.int8)
    fp32, int8 = _session("MatMul", w.astype(np.float32), threads), _session("MatMulInteger", w, threads)
    inputs = {"x": x.astype(np.float32)}, {"x": x}
    if not np.array_equal(int8.run(None, inputs[1])[0], x.astype(np.int64) @ w.astype(np.int64)):
        raise RuntimeError("ONNX Runtime's INT8 product is not exact on this CPU, so its time means nothing")
    operations = 2 * m * n * k
    return [
        (lambda: fp32.run(None, inputs[0]), 4 * (m * k + k * n + m * n), operations),
        (lambda: int8.run(None, inputs[1]), m * k + k * n + 4 * m * n, operations),
    ]


def spmv_runs(size: int, density: float) -> list[tuple[Callable[[], object], int, int]]:
    """The dense and the CSR matrix-vector product of the same random matrix: (run, bytes, operations) each."""
    rng = np.random.default_rng()
    dense = rng.standard_normal((size, size), dtype=np.float32)
    dense[rng.random((size, size), dtype=np.float32) >= density] = 0
    csr, x = scipy.sparse.csr_array(dense), rng.standard_normal(size, dtype=np.float32)
    return [
        (lambda: dense @ x, 4 * size * size + 8 * size, 2 * size * size),
        (lambda: csr @ x, 8 * csr.nnz + 12 * size, 2 * csr.nnz),
    ]


def time_alternately(runs: Sequence[Callable[[], object]], seconds: float) -> list[list[float]]:
    """Return milliseconds of each run, at least 5 samples. Runs alternate, so that disturbances affect all of them."""
    samples: list[list[float]] = [[] for _ in runs]
    for run in runs:
        run()
    begin = time.perf_counter()
    while time.perf_counter() - begin < seconds * len(runs) or len(samples[0]) < 5:
        for run, times in zip(runs, samples, strict=True):
            start = time.perf_counter()
            run()
            times.append((time.perf_counter() - start) * 1e3)
    return samples


def _key(kernel: str, case: str, m: int, n: int, k: int, density: float = 1.0, threads: int = 1) -> dict:
    return {
        "device": hardware()["cpu"],
        "kind": "cpu",
        "family": "cpu",
        "maker": kernel.split("_")[0],
        "kernel": kernel,
        "case": case,
        "m": m,
        "n": n,
        "k": k,
        "density": density,
        "threads": threads,
    }


def _measured(
    keys: list[dict], make: Callable[[], list], seconds: float, folder: Path | None, again: bool
) -> list[dict]:
    """Return the stored records of these keys; if one is missing, measure all together and write their records."""
    stored = [record for key in keys if (record := records.read(key, folder))]
    if len(stored) == len(keys) and not again:
        return stored
    work = make()
    with threadpool_limits(1):  # scipy's CSR product has one thread, so numpy's gets one; ONNX Runtime has its own
        samples = time_alternately([run for run, _, _ in work], seconds)
    versions = {"numpy": np.__version__, "scipy": scipy.__version__, "onnxruntime": onnxruntime.__version__}
    out = []
    for key, (_, moved, operations), times in zip(keys, work, samples, strict=True):
        record = {
            **key,
            "bytes": moved,
            "operations": operations,
            "timing": "clock",
            "versions": versions,
            **records.summarize(times),
            **records.provenance(),
        }
        record.update(records.rates(record))
        records.write(record, folder)
        out.append(record)
    return out


def _session(operator: str, weights: np.ndarray, threads: int) -> onnxruntime.InferenceSession:
    """Return a session of one product with constant weights, whose layout the runtime may choose, as in a layer."""
    integer = operator == "MatMulInteger"
    of_x, of_y = (TensorProto.UINT8, TensorProto.INT32) if integer else (TensorProto.FLOAT, TensorProto.FLOAT)
    graph = helper.make_graph(
        [helper.make_node(operator, ["x", "w"], ["y"])],
        "product",
        [helper.make_tensor_value_info("x", of_x, [None, weights.shape[0]])],
        [helper.make_tensor_value_info("y", of_y, [None, weights.shape[1]])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    onnx.checker.check_model(model)
    return onnxruntime.InferenceSession(
        model.SerializeToString(), runtime_options(threads), providers=["CPUExecutionProvider"]
    )
