"""Compare every kernel with numpy in higher precision, on the GPU if there is one, else in the emulator."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from . import dense, hopper, sparse
from .cases import Case
from .check_layers import layer_cases
from .launch import TILES, Launch

MARGIN = 64  # elements around an output that no kernel may touch; keeps the output on a 16-byte boundary
POISON = {torch.float32: float("nan"), torch.int32: -(2**31), torch.int8: 85}


@dataclass(frozen=True)
class Outcome:
    """Result of a case. error: the largest error relative to the sum of the terms' magnitudes (0 = exact)."""

    kernel: str
    what: str
    error: float
    passed: bool
    remark: str = ""


def run_case(case: Case, device: str, runner: Callable[[Launch], None] | None = None) -> Outcome:
    """Run into a poisoned output and compare. To pass, a kernel must fill exactly its output, up to rounding errors."""
    count = case.truth.size
    around = torch.full((count + 2 * MARGIN,), POISON[case.dtype], dtype=case.dtype, device=device)
    before = around.clone()
    launch = case.prepare(out=around[MARGIN : MARGIN + count].view(case.truth.shape))
    (runner or Launch.run)(launch)
    result = launch.output.cpu().numpy()
    for part in (slice(0, MARGIN), slice(MARGIN + count, None)):
        if not torch.equal(around[part].nan_to_num(7), before[part].nan_to_num(7)):
            return Outcome(case.kernel, case.what, np.inf, False, "wrote outside its output")
    if case.size is None:
        wrong = int((result.astype(np.int64) != case.truth).sum())
        return Outcome(case.kernel, case.what, float(wrong > 0), wrong == 0, f"{wrong} differ" if wrong else "")
    error = float(np.max(np.abs(result - case.truth) / np.maximum(case.size, 1e-30)))
    limit = np.finfo(np.float32).eps * (4 + np.sqrt(case.terms))
    return Outcome(case.kernel, case.what, error, bool(error <= limit), "" if error <= limit else "too far off")


def hopper_is_right(device: str = "cuda", seed: int = 0) -> bool:
    """Return whether the sums of Hopper's own kernel equal those of gemm_int8_mma on products of many sizes."""
    rng = np.random.default_rng(seed)
    for m, n, k in ((1, 1, 1), (128, 128, 128), (130, 129, 192), (300, 520, 1040), (1024, 64, 576), (2048, 2048, 4608)):
        x, w = (torch.from_numpy(rng.integers(-128, 128, size, dtype=np.int8)).to(device) for size in ((m, k), (n, k)))
        for _ in range(3):  # a race shows in some runs only
            right = dense.gemm_int8(x, w, kernel="gemm_int8_mma")
            if not torch.equal(dense.gemm_int8(x, w, kernel=dense.HOPPER), right):
                print(f"{m} x {n} x {k} is wrong", file=sys.stderr)
                return False
    return True


def all_cases(device: str, seed: int) -> Iterator[Case]:
    """Yield a case for every kernel on random inputs of awkward sizes, drawn from the seed."""
    rng = np.random.default_rng(seed)
    for m, k in ((1, 1), (33, 31), (131, 1028)):
        yield from gemv_cases(rng, device, m, k)
    for m, n, k in ((1, 1, 1), (33, 31, 65), (129, 132, 260), (65, 17, 2052)):
        yield from gemm_cases(rng, device, m, n, k)
    for m, n, k in ((1, 1, 1), (33, 31, 65), (17, 133, 1040), (130, 129, 192)):
        yield from int8_cases(rng, device, m, n, k)
    for m, k, density in ((1, 1, 1.0), (40, 33, 0.0), (67, 1000, 0.004), (33, 2000, 0.1), (35, 131, 0.5)):
        yield from sparse_cases(rng, device, m, k, density)
    yield from layer_cases(rng, device)


def gemv_cases(rng: np.random.Generator, device: str, m: int, k: int) -> Iterator[Case]:
    """Yield a case for every matrix-vector kernel on one random (m, k) matrix."""
    a, x = _normal(rng, m, k), _normal(rng, k)
    on = [torch.from_numpy(v).to(device) for v in (a, x)]
    truth, size = _product(a, x)
    for kernel in dense.GEMV_KERNELS:
        yield Case(
            kernel,
            f"{m}x{k}",
            partial(dense.prepare_gemv, *on, kernel=kernel),
            torch.float32,
            truth,
            size,
            k,
        )


def gemm_cases(rng: np.random.Generator, device: str, m: int, n: int, k: int) -> Iterator[Case]:
    """Yield a case for every FP32 matrix product kernel on one random (m, k) by (k, n) product."""
    a, b = _normal(rng, m, k), _normal(rng, k, n)
    truth, size = _product(a, b)
    on = torch.from_numpy(a).to(device)
    rows, columns = torch.from_numpy(b).to(device), torch.from_numpy(np.ascontiguousarray(b.T)).to(device).T
    for kernel in dense.GEMM_KERNELS:
        right = columns if kernel == "gemm_split_k" else rows
        yield Case(
            kernel,
            f"{m}x{n}x{k}",
            partial(dense.prepare_gemm_fp32, on, right, kernel=kernel),
            torch.float32,
            truth,
            size,
            k,
        )


def int8_cases(rng: np.random.Generator, device: str, m: int, n: int, k: int) -> Iterator[Case]:
    """Yield a case for every INT8 kernel and kind of output; the sums and the requantized output must be equal."""
    x, w = (rng.integers(-128, 128, shape, dtype=np.int8) for shape in ((m, k), (n, k)))
    sums = x.astype(np.int64) @ w.astype(np.int64).T
    scale = (rng.uniform(0.2, 1.5, n) * 40 / (5461 * np.sqrt(k))).astype(np.float32)
    offset = rng.uniform(-20, 20, n).astype(np.float32)
    # As a fused multiply-add: a single rounding, to float32. The exact product of two float32 fits a float64.
    real = (sums.astype(np.float32).astype(np.float64) * scale + offset).astype(np.float32)
    kept = np.maximum(real, 0)
    bytes_ = np.clip(np.rint(kept).astype(np.float64) - 100, -128, 127).astype(np.int64)
    xs, ws, scales, offsets = (torch.from_numpy(v).to(device) for v in (x, w, scale, offset))
    layer = {"scale": scales, "offset": offsets}
    kinds: tuple[tuple[str, torch.dtype, np.ndarray, np.ndarray | None, dict[str, Any]], ...] = (
        ("sums", torch.int32, sums, None, {}),
        ("float", torch.float32, real.astype(np.float64), np.abs(real).astype(np.float64) + 1, layer),
        ("int8", torch.int8, bytes_, None, {**layer, "relu": True, "zero_point": -100}),
    )
    others = [(kernel, 16, kind) for kernel in dense.INT8_KERNELS[:-1] for kind in kinds]
    tiles = [("gemm_int8_tiles", tile, kinds[(index + m) % 3]) for index, tile in enumerate(TILES)]
    wgmma = [(dense.HOPPER, 16, kind) for kind in kinds if hopper.unusable(xs.device) is None]
    for kernel, tile, (name, dtype, truth, size, options) in others + tiles + wgmma:
        yield Case(
            kernel,
            f"{m}x{n}x{k} {name}",
            partial(dense.prepare_gemm_int8, xs, ws, kernel=kernel, tile=tile, output=dtype, **options),
            dtype,
            truth,
            size,
            1,
        )


def sparse_cases(rng: np.random.Generator, device: str, m: int, k: int, density: float) -> Iterator[Case]:
    """Yield a case for every sparse kernel on one random matrix.

    It has empty rows, a dense row, and one whose only entry is the last.
    """
    a = np.where(rng.random((m, k)) < density, _normal(rng, m, k), 0).astype(np.float32)
    if m > 8 and density:
        a[3:5] = 0
        a[6] = _normal(rng, k)
        a[7], a[7, -1] = 0, 1.5
    matrix = sparse.CSR.from_dense(torch.from_numpy(a).to(device))
    x = _normal(rng, k)
    what = f"{m}x{k} at {density:.1%}"
    yield from _spmv_cases(matrix, a, x, what, device)
    for n in (1, 16, 20, 33, 64, 132):  # all four variants of the row split, filled and not
        b = _normal(rng, k, n)
        truth, size = _product(a, b)
        right = torch.from_numpy(b).to(device)
        for kernel in sparse.SPMM_KERNELS:
            yield Case(
                kernel,
                f"{what}, {n} columns",
                partial(sparse.prepare_spmm, matrix, right, kernel=kernel),
                torch.float32,
                truth,
                size,
                k,
            )


def _spmv_cases(matrix: sparse.CSR, a: np.ndarray, x: np.ndarray, what: str, device: str) -> Iterator[Case]:
    right = torch.from_numpy(x).to(device)
    truth, size = _product(a, x)
    for kernel in sparse.SPMV_KERNELS:
        yield Case(
            kernel,
            what,
            partial(sparse.prepare_spmv, matrix, right, kernel=kernel),
            torch.float32,
            truth,
            size,
            a.shape[1],
        )
    compact = sparse.compress(matrix)
    yield Case(
        "spmv_delta8_fp32",
        what,
        partial(sparse.prepare_spmv, compact, right),
        torch.float32,
        truth,
        size,
        a.shape[1],
    )
    # INT8 values are rounded here by numpy; the product of the stored values must then be right up to float32 rounding.
    scale = np.abs(a).max(1, keepdims=True) / np.float32(127)
    scale[scale == 0] = 1
    stored = np.rint(a / scale).astype(np.float64) * scale
    truth, size = _product(stored, x)
    small = sparse.compress(matrix, torch.int8)
    yield Case(
        "spmv_delta8_int8",
        what,
        partial(sparse.prepare_spmv, small, right),
        torch.float32,
        truth,
        size,
        a.shape[1],
    )


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


def _product(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Return the product in float64, and the sums of the terms' magnitudes, to which rounding errors are relative."""
    return a.astype(np.float64) @ b.astype(np.float64), np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)
