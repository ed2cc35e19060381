"""The CUDA kernels: right through the emulator, compiled by nvcc, and never launched on input that was not checked."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from cuda_kernels import (
    CSR,
    Delta8,
    check,
    compress,
    dense,
    emulator,
    fold_layer,
    gemm_fp32,
    gemm_int8,
    gemv,
    gpu,
    hopper,
)
from cuda_kernels import launch as launching
from cuda_kernels.launch import RUNNERS, SOURCES, Launch, kernel_names, sources
from cuda_kernels.sparse import prepare_spmm, prepare_spmv, spmm, spmv

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++, and there is none")


# --- Right: every kernel against numpy in higher precision, on fresh random inputs and awkward sizes -----------------


@needs_compiler
@pytest.mark.parametrize("reverse", [False, True], ids=["forward", "reverse"])
def test_every_kernel_through_the_emulator(reverse: bool, seed: int) -> None:
    """In both orders of the threads: a result that depends on the order is a missing barrier."""
    ran = set()

    def run(work: Launch) -> None:
        ran.add(work.kernel)
        emulator.launch(work, reverse)

    outcomes = [check.run_case(case, "cpu", run) for case in check.all_cases("cpu", seed)]
    assert [outcome for outcome in outcomes if not outcome.passed] == []
    assert ran == {name for source in sources() for name in kernel_names(source)}


@pytest.mark.skipif(gpu.available() is not None, reason=f"{gpu.available()}")
def test_every_kernel_on_the_gpu(seed: int) -> None:
    outcomes = [check.run_case(case, "cuda") for case in check.all_cases("cuda", seed)]
    assert [outcome for outcome in outcomes if not outcome.passed] == []
    for k in (25088, 13000, 25088):  # one kernel asks for more shared memory, for less, and for more again
        matrix = CSR.from_dense(torch.eye(40, k, device="cuda") * 2)
        x = torch.arange(1, k + 1, dtype=torch.float32, device="cuda")
        assert spmv(compress(matrix), x).equal(2 * x[:40]), k


@needs_compiler
@pytest.mark.parametrize("splits", [1, 2, 5])
def test_split_k_in_any_number_of_parts(splits: int, rng: np.random.Generator) -> None:
    a, b = rng.standard_normal((65, 1300), dtype=np.float32), rng.standard_normal((18, 1300), dtype=np.float32)
    out = gemm_fp32(torch.from_numpy(a), torch.from_numpy(b).T, kernel="gemm_split_k", splits=splits)
    np.testing.assert_allclose(out.numpy(), a.astype(np.float64) @ b.T.astype(np.float64), atol=2e-4)
    x, w = (rng.integers(-128, 128, shape, dtype=np.int8) for shape in ((18, 1300), (130, 1300)))
    out = gemm_int8(torch.from_numpy(x), torch.from_numpy(w), kernel="gemm_int8_skinny", splits=splits)
    np.testing.assert_array_equal(out.numpy(), x.astype(np.int64) @ w.T.astype(np.int64))


@needs_compiler
@pytest.mark.parametrize("kernel", ["gemm_tiled", "gemm_int8_tiled"])
@pytest.mark.parametrize("tile", [8, 16, 32])
def test_every_tile_size(kernel: str, tile: int, rng: np.random.Generator) -> None:
    a, b = (rng.integers(-9, 10, shape) for shape in ((33, 37), (37, 35)))
    left, right = (torch.from_numpy(v) for v in (a, b))
    if kernel == "gemm_tiled":
        out = gemm_fp32(left.float(), right.float(), kernel=kernel, tile=tile)
    else:
        out = gemm_int8(left.to(torch.int8), right.T.contiguous().to(torch.int8), kernel=kernel, tile=tile)
    np.testing.assert_array_equal(out.numpy(), a @ b)


@needs_compiler
def test_extreme_bytes_are_exact_and_saturate() -> None:
    x = torch.full((17, 4096), -128, dtype=torch.int8)
    w = torch.full((24, 4096), -128, dtype=torch.int8)
    w[1::2] = 127
    one, zero = torch.ones(24), torch.zeros(24)
    for kernel in dense.INT8_KERNELS:
        sums = gemm_int8(x, w, kernel=kernel)
        assert sums[:, ::2].eq(4096 * 16384).all() and sums[:, 1::2].eq(-4096 * 128 * 127).all(), kernel
        small = gemm_int8(x, w, kernel=kernel, output=torch.int8, scale=one, offset=zero, zero_point=3)
        assert small[:, ::2].eq(127).all() and small[:, 1::2].eq(-128).all(), kernel


@needs_compiler
def test_a_folded_layer_is_the_quantized_layer(rng: np.random.Generator) -> None:
    """The epilogue with a zero point, a bias and a scale a channel, against the layer written out in float64."""
    x, w = rng.integers(-128, 128, (9, 50), dtype=np.int8), rng.integers(-127, 128, (12, 50), dtype=np.int8)
    scales, bias = rng.uniform(0.001, 0.01, 12).astype(np.float32), rng.standard_normal(12).astype(np.float32)
    weights = torch.from_numpy(w)
    scale, offset = fold_layer(weights, torch.from_numpy(scales), 0.02, -5, torch.from_numpy(bias))
    out = gemm_int8(torch.from_numpy(x), weights, output=torch.float32, scale=scale, offset=offset, relu=True)
    real = (0.02 * (x.astype(np.float64) + 5)) @ (w.astype(np.float64) * scales[:, None].astype(np.float64)).T + bias
    np.testing.assert_allclose(out.numpy(), np.maximum(real, 0), atol=1e-4)


@needs_compiler
def test_x_too_long_for_shared_memory(rng: np.random.Generator) -> None:
    a = np.zeros((5, 40_000), dtype=np.float32)
    a[np.array([0, 0, 2, 3, 3]), np.array([0, 39_999, 20_000, 255, 511])] = rng.standard_normal(5)
    x = rng.standard_normal(40_000, dtype=np.float32)
    out = spmv(compress(CSR.from_dense(torch.from_numpy(a))), torch.from_numpy(x))
    np.testing.assert_allclose(out.numpy(), a.astype(np.float64) @ x, rtol=1e-6, atol=1e-6)


def test_compact_format_keeps_the_matrix_in_fewer_bytes(rng: np.random.Generator) -> None:
    a = np.where(rng.random((50, 3000)) < 0.1, rng.standard_normal((50, 3000)), 0).astype(np.float32)
    a[4] = 0
    matrix = CSR.from_dense(torch.from_numpy(a))
    compact = compress(matrix)
    back = np.zeros_like(a)
    for row in range(50):
        entries = slice(4 * int(compact.pointers[row]), 4 * int(compact.pointers[row + 1]))
        columns = compact.distances[entries].numpy().astype(int).cumsum()
        np.add.at(back[row], columns, compact.values[entries].numpy())
    np.testing.assert_array_equal(back, a)
    assert compact.nbytes < 0.65 * matrix.nbytes  # 5 bytes an entry and some filling, instead of 8
    assert compress(matrix, torch.int8).nbytes < 0.3 * matrix.nbytes


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
def test_what_int8_cannot_hold_is_refused(bad: float) -> None:
    """It became 0 in silence, and so did the rest of the row. Floats keep it."""
    a = torch.eye(5, 300)
    a[3, 200] = bad
    with pytest.raises(ValueError, match=f"a value is {bad}, which int8 cannot hold"):
        compress(CSR.from_dense(a), torch.int8)
    assert torch.equal(compress(CSR.from_dense(a)).values.nan_to_num(7).unique(), a.nan_to_num(7).unique())


# --- The emulator notices what a GPU would punish -----------------------------------------------------------------


BROKEN = """
#include "device.cuh"
extern "C" __global__ void no_barrier(const float* x, float* y) {
    __shared__ float tile[64];
    tile[threadIdx.x] = x[threadIdx.x];
    y[threadIdx.x] = tile[63 - threadIdx.x];
}
extern "C" __global__ void lost_threads(const float* x, float* y) {
    if (threadIdx.x < 16) __syncwarp();
    else __syncthreads();
    y[threadIdx.x] = x[threadIdx.x];
}
extern "C" __global__ void misaligned(const float* x, float* y) {
    y[threadIdx.x] = load_vector((const float4*)(x + 1)).x;
}
extern "C" __global__ void copy_not_waited_for(const float* x, float* y) {
    __shared__ __align__(16) float tile[64];
    if (threadIdx.x < 16) copy_async16(tile + 4 * threadIdx.x, x + 4 * threadIdx.x);
    copy_async_commit();
    __syncthreads();
    y[threadIdx.x] = tile[threadIdx.x];
}
extern "C" __global__ void sum_without_all_lanes(const float* x, float* y) {
    if (threadIdx.x >= 40) return;
    y[threadIdx.x] = warp_sum(x[threadIdx.x]);
}
extern "C" __global__ void sum_beside_a_barrier(const float* x, float* y) {
    if (threadIdx.x % 2) __syncwarp();
    y[threadIdx.x] = threadIdx.x % 2 ? 0.f : warp_sum(x[threadIdx.x]);
}
extern "C" __global__ void __launch_bounds__(32, 1) small_block(const float* x, float* y) { y[threadIdx.x] = 0.f; }
"""


@needs_compiler
@pytest.mark.parametrize(
    ("kernel", "complaint"),
    [
        ("no_barrier", None),
        ("copy_not_waited_for", None),
        ("lost_threads", "barrier"),
        ("misaligned", "aligned"),
        ("sum_without_all_lanes", "not all 32 lanes"),
        ("sum_beside_a_barrier", "not all 32 lanes"),
        ("small_block", "more threads than the launch bounds"),
    ],
)
def test_emulator_shows_broken_kernels(kernel: str, complaint: str | None, tmp_path, monkeypatch) -> None:
    for header in ("device.cuh", "emulator.h"):
        shutil.copy(SOURCES / header, tmp_path)
    (tmp_path / "broken.cu").write_text(BROKEN)
    monkeypatch.setattr(launching, "SOURCES", tmp_path)
    monkeypatch.setattr(emulator, "SOURCES", tmp_path)
    x, y = torch.arange(64, dtype=torch.float32), torch.zeros(64)
    work = Launch("broken", kernel, (1, 1, 1), (64, 1, 1), (x, y), y)
    if complaint:
        with pytest.raises(RuntimeError, match=complaint):
            work.run()
    else:  # the result is visibly wrong: shared memory starts as NaN
        assert work.run().isnan().any()


# --- The kernel of Hopper's own instructions, which was never run on a GPU -------------------------------------------


def test_weights_are_packed_as_core_matrices(rng: np.random.Generator) -> None:
    """Row n and byte k of the tile (n / 128, k / 128) lie where the descriptors of the tensor cores look for them."""
    n, k = 130, 300
    w = rng.integers(-128, 128, (n, k), dtype=np.int8)
    packed = dense.pack_tiles(torch.from_numpy(w)).numpy().reshape(2, 3, 128 * 128)
    for row, column in zip(rng.integers(0, n, 200), rng.integers(0, k, 200), strict=True):
        r, c = row % 128, column % 128
        at = c // 16 * 2048 + r // 8 * 128 + r % 8 * 16 + c % 16
        assert packed[row // 128, column // 128, at] == w[row, column]
    assert packed[1].reshape(3, 8, 16, 8, 16)[:, :, 0, 2:].any() == 0  # rows beyond the last


@pytest.mark.parametrize(
    ("capability", "process", "reason"),
    [
        ((8, 0), None, "needs a GPU of compute capability 9.0"),
        ((9, 0), SimpleNamespace(returncode=0, stdout="", stderr=""), None),
        ((9, 0), SimpleNamespace(returncode=1, stdout="", stderr="1 x 1 x 1 is wrong\n"), "failed .1 x 1 x 1 is wrong"),
        ((9, 0), SimpleNamespace(returncode=-6, stdout="", stderr=""), "failed .nothing said"),
        ((9, 0), subprocess.TimeoutExpired("python", 300), "did not end in 300 s"),
    ],
)
def test_hoppers_kernel_is_used_only_where_it_was_found_right(capability, process, reason, monkeypatch) -> None:
    def run(command, **options):
        assert command[1] == "-c" and "hopper_is_right" in command[2] and options["env"][hopper.CHECKING]
        if isinstance(process, Exception):
            raise process
        return process

    monkeypatch.setattr(hopper, "_checked", hopper._checked.__wrapped__)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    monkeypatch.setattr(hopper.subprocess, "run", run)
    said = hopper.unusable(torch.device("cuda"))
    assert said is None if reason is None else re.search(reason, said)
    monkeypatch.setattr(hopper, "unusable", lambda device: said)
    if said:
        with pytest.raises(ValueError, match="gemm_int8_wgmma cannot be used here: .*; use gemm_int8_mma"):
            gemm_int8(int8(3, 4), int8(2, 4), kernel=dense.HOPPER)


@needs_compiler
def test_hoppers_check_finds_a_wrong_kernel(monkeypatch, capsys) -> None:
    right = RUNNERS["cpu"]

    def wrong(work: Launch) -> None:
        right(work)
        if work.kernel == dense.HOPPER:
            work.output[0, 0] += 1

    monkeypatch.setitem(RUNNERS, "cpu", wrong)
    assert not check.hopper_is_right("cpu")
    assert "1 x 1 x 1 is wrong" in capsys.readouterr().err


# --- Bad input: one sentence, no launch ------------------------------------------------------------------------------


@pytest.fixture
def no_launch(monkeypatch):
    def fail(self):
        raise AssertionError("a kernel was launched on bad input")

    monkeypatch.setattr(Launch, "run", fail)


def ones(*shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    return torch.ones(shape, dtype=dtype)


def int8(*shape: int) -> torch.Tensor:
    return ones(*shape, dtype=torch.int8)


def sparse(**changed) -> CSR:
    arrays = {
        "pointers": torch.tensor([0, 1, 1, 3], dtype=torch.int32),
        "columns": torch.tensor([1, 0, 2], dtype=torch.int32),
        "values": torch.tensor([2.0, 1.0, 3.0]),
    }
    return CSR((3, 3), **{**arrays, **changed})


def ints(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.int32)


BAD = {
    "dtype": (lambda: gemv(ones(3, 4).double(), ones(4)), TypeError, "must be torch.float32, but is torch.float64"),
    "not a tensor": (lambda: gemv(np.ones((3, 4)), ones(4)), TypeError, "use torch.from_numpy"),
    "vector length": (lambda: gemv(ones(3, 4), ones(5)), ValueError, r"must have shape \(4\)"),
    "dimensions": (lambda: gemv(ones(3), ones(3)), ValueError, r"shape \(any, any\)"),
    "inner sizes": (lambda: gemm_fp32(ones(3, 4), ones(3, 4)), ValueError, r"shape \(4, any\)"),
    "not contiguous": (lambda: gemv(ones(4, 3).T, ones(4)), ValueError, r"pass a.contiguous\(\)"),
    "misaligned": (lambda: gemv(ones(3, 4), ones(5)[1:]), ValueError, "16-byte"),
    "empty": (lambda: gemv(ones(0, 4), ones(4)), ValueError, "empty dimension"),
    "unknown kernel": (lambda: gemv(ones(3, 4), ones(4), kernel="fast"), ValueError, "choose one of"),
    "row-major columns": (lambda: gemm_fp32(ones(3, 4), ones(4, 2), kernel="gemm_split_k"), ValueError, "contiguous"),
    "tile": (lambda: gemm_fp32(ones(3, 4), ones(4, 2), kernel="gemm_tiled", tile=64), ValueError, "must be one of"),
    "tile as a float": (
        lambda: gemm_fp32(ones(3, 4), ones(4, 2), kernel="gemm_tiled", tile=8.0),
        ValueError,
        "must be one of",
    ),
    "splits": (lambda: gemm_fp32(ones(3, 4), ones(2, 4).T, kernel="gemm_split_k", splits=2), ValueError, "1 to 1"),
    "splits as a float": (
        lambda: gemm_int8(int8(3, 600), int8(2, 600), kernel="gemm_int8_skinny", splits=2.0),
        ValueError,
        "must be a whole number in 1 to 3",
    ),
    "torch's sparse tensor": (lambda: gemv(sparse().to_torch(), ones(3)), TypeError, "must be a dense tensor"),
    "sparse from sparse": (lambda: CSR.from_dense(ones(3, 4).to_sparse()), TypeError, "must be a dense tensor"),
    "output dtype": (lambda: gemv(ones(3, 4), ones(4), out=ones(3).double()), TypeError, "out must be"),
    "output shape": (lambda: gemv(ones(3, 4), ones(4), out=ones(4)), ValueError, "out must have shape"),
    "int8 dtype": (lambda: gemm_int8(ones(3, 4), int8(2, 4)), TypeError, "x must be torch.int8"),
    "scale missing": (lambda: gemm_int8(int8(3, 4), int8(2, 4), output=torch.int8), ValueError, "scale is missing"),
    "scale shape": (
        lambda: gemm_int8(int8(3, 4), int8(2, 4), output=torch.float32, scale=ones(3), offset=ones(2)),
        ValueError,
        "scale must have shape",
    ),
    "epilogue on sums": (lambda: gemm_int8(int8(3, 4), int8(2, 4), relu=True), ValueError, "bare sum"),
    "kind of output": (lambda: gemm_int8(int8(3, 4), int8(2, 4), output=torch.uint8), TypeError, "torch.int32, torch"),
    "zero point": (
        lambda: gemm_int8(int8(3, 4), int8(2, 4), output=torch.int8, scale=ones(2), offset=ones(2), zero_point=200),
        ValueError,
        "-128 to 127",
    ),
    "zero point between": (
        lambda: gemm_int8(int8(3, 4), int8(2, 4), output=torch.int8, scale=ones(2), offset=ones(2), zero_point=2.5),
        ValueError,
        "whole number",
    ),
    "scale as a number": (
        lambda: gemm_int8(int8(3, 4), int8(2, 4), output=torch.float32, scale=0.5, offset=ones(2)),
        TypeError,
        "scale must be a torch tensor",
    ),
    "no device for it": (
        lambda: gemv(torch.empty(3, 4, device="meta"), torch.empty(4, device="meta")),
        ValueError,
        "where no kernel",
    ),
    "output over an input": (lambda: (lambda x: gemv(ones(4, 4), x, out=x))(ones(4)), ValueError, "shares memory"),
    "product too large": (lambda: gemm_fp32(ones(60_000, 1), ones(1, 60_000)), ValueError, "overflows 32-bit"),
    "int32 sums overflow": (lambda: gemm_int8(int8(1, 2**17), int8(1, 2**17)), ValueError, "overflow int32"),
    "column too large": (lambda: sparse(columns=ints(1, 0, 3)), ValueError, "out of range"),
    "column negative": (lambda: sparse(columns=ints(1, -1, 2)), ValueError, "out of range"),
    "columns unsorted": (lambda: sparse(columns=ints(1, 2, 0)), ValueError, "must rise"),
    "columns twice": (lambda: sparse(columns=ints(1, 2, 2)), ValueError, "must rise"),
    "pointers decrease": (lambda: sparse(pointers=ints(0, 2, 1, 3)), ValueError, "decrease at row 1"),
    "pointers end": (lambda: sparse(pointers=ints(0, 1, 1, 2)), ValueError, "run from 0 to 3"),
    "pointers dtype": (lambda: sparse(pointers=torch.tensor([0, 1, 1, 3])), TypeError, "must be torch.int32"),
    "pointers length": (lambda: sparse(pointers=ints(0, 3)), ValueError, r"shape \(4\)"),
    "values length": (lambda: sparse(values=ones(2)), ValueError, "columns must have shape"),
    "one size": (lambda: CSR((3,), ints(0), ints(), ones(0)), TypeError, "two whole numbers"),
    "sizes as floats": (lambda: CSR((3.0, 3.0), ints(0, 0), ints(), ones(0)), TypeError, "two whole numbers"),
    "compact sizes": (lambda: Delta8(3, 0, ints(0), ints(), ones(0)), TypeError, "two whole numbers"),
    "dense compressed": (lambda: compress(ones(3, 3)), TypeError, "use CSR.from_dense"),
    "dense as sparse": (lambda: spmv(ones(3, 3), ones(3)), TypeError, "use CSR.from_dense"),
    "dense as sparse in spmm": (lambda: spmm(ones(3, 3), ones(3, 2)), TypeError, "use CSR.from_dense"),
    "sparse inner sizes": (lambda: spmm(sparse(), ones(4, 2)), ValueError, r"shape \(3, any\)"),
    "compact dtype": (lambda: compress(sparse(), torch.float64), TypeError, "torch.float32 or torch.int8"),
    "compact columns": (lambda: Delta8((1, 3), 4, ints(0, 1), ones(4, dtype=torch.uint8), ones(4)), ValueError, "past"),
    "compact scales": (lambda: Delta8((1, 3), 4, ints(0, 1), ones(4, dtype=torch.uint8), int8(4)), ValueError, "need"),
    "too many elements": (
        lambda: gemm_int8(torch.empty(70_000, 40_000, dtype=torch.int8), int8(1, 40_000)),
        ValueError,
        "overflows 32-bit indexing",
    ),
    "grid too large": (lambda: gemm_fp32(ones(1_100_000, 1), ones(1, 1), kernel="gemm_naive"), ValueError, "grid"),
}


@pytest.mark.usefixtures("no_launch")
@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_refused_in_one_sentence(name: str) -> None:
    action, error, message = BAD[name]
    with pytest.raises(error, match=message) as caught:
        action()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("inference", [False, True])
def test_indices_changed_after_the_check_are_refused(inference: bool, monkeypatch) -> None:
    """Before or after the launch is prepared; what the caller holds is not what the matrix holds."""
    monkeypatch.setattr(launching, "RUNNERS", {"cpu": lambda work: pytest.fail("launched on unchecked indices")})
    with torch.inference_mode(inference):
        pointers = ints(0, 1, 1, 3)
        matrix = sparse(pointers=pointers)
        pointers[3] = 2**30
        assert matrix.pointers.tolist() == [0, 1, 1, 3]
        compact = compress(matrix)
        launches = prepare_spmv(matrix, ones(3)), prepare_spmm(matrix, ones(3, 2)), prepare_spmv(compact, ones(3))
        matrix.columns[0], compact.distances[0] = 10**6, 255
        uses = [launch.run for launch in launches]
        uses += [matrix.to_torch, lambda: compress(matrix), lambda: spmv(compact, ones(3))]
        uses += [lambda: spmv(matrix, ones(3)), lambda: spmm(matrix, ones(3, 2))]
        for use in uses:
            with pytest.raises(ValueError, match="changed after they were checked"):
                use()


def test_different_devices_are_refused() -> None:
    with pytest.raises(ValueError, match="one device, but are on cpu and meta"):
        launching.check_same_device(a=ones(1), x=torch.empty(1, device="meta"))


@pytest.mark.parametrize(
    ("has_gpu", "has_nvcc", "message"),
    [(False, True, "no CUDA GPU"), (True, False, "no nvcc"), (True, True, "PyCUDA is not installed")],
)
def test_what_is_missing_on_the_machine_is_said(has_gpu: bool, has_nvcc: bool, message: str, monkeypatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: has_gpu)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: "/bin/nvcc" if has_nvcc else None)
    monkeypatch.setitem(sys.modules, "pycuda", None)
    with pytest.raises(RuntimeError, match=message) as caught:
        gpu.require()
    assert "\n" not in str(caught.value)


def test_a_library_that_pycuda_lacks_is_named(monkeypatch, tmp_path) -> None:
    """`import pycuda` alone succeeds: what is compiled, and may lack a library, is its driver."""
    (tmp_path / "pycuda").mkdir()
    (tmp_path / "pycuda" / "__init__.py").touch()
    (tmp_path / "pycuda" / "driver.py").write_text("raise ImportError('libcurand.so.10: cannot open')")
    monkeypatch.syspath_prepend(tmp_path)
    for name in ("pycuda", "pycuda.driver"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(gpu.shutil, "which", lambda name: "/bin/nvcc")
    assert "PyCUDA does not load (libcurand.so.10: cannot open)" in gpu.available()


def test_kernels_run_in_the_context_of_torch(monkeypatch) -> None:
    """PyCUDA is replaced: what is retained is torch's first GPU, whatever PyCUDA's own settings name."""
    calls = []
    context = SimpleNamespace(push=lambda: calls.append("push"), pop=lambda: calls.append("pop"))
    device = SimpleNamespace(retain_primary_context=lambda: context)
    driver = SimpleNamespace(init=lambda: None, Device=lambda index: calls.append(index) or device)
    monkeypatch.setitem(sys.modules, "pycuda", SimpleNamespace(driver=driver))
    monkeypatch.setenv("CUDA_DEVICE", "3")
    monkeypatch.setattr(gpu, "require", lambda: None)
    monkeypatch.setattr(torch.cuda, "init", lambda: None)
    monkeypatch.setattr(gpu.atexit, "register", lambda action: calls.append(action))
    assert gpu._driver.__wrapped__() is driver
    assert calls == [0, "push", context.pop]


def test_no_compiler_is_said(monkeypatch) -> None:
    monkeypatch.setattr(emulator.shutil, "which", lambda name: None)
    with pytest.raises(RuntimeError, match="install g\\+\\+"):
        emulator.compiler()


@needs_compiler
def test_a_compiler_with_flags(monkeypatch) -> None:
    monkeypatch.setenv("CXX", "g++ -m64 '-DNAME=two words'")
    assert emulator.compiler() == [shutil.which("g++"), "-m64", "-DNAME=two words"]
    monkeypatch.setenv("CXX", "")
    assert emulator.compiler() == [shutil.which("g++")]


RAN = "import torch; from cuda_kernels import gemv; print(gemv(torch.ones(3, 4), torch.ones(4)).tolist())"


@needs_compiler
@pytest.mark.parametrize("writable", [True, False])
def test_compiled_kernels_lie_among_the_artifacts(writable: bool, tmp_path) -> None:
    """Or, where nothing can be written there, in a folder that goes with the process."""
    artifacts, temporary = tmp_path / "artifacts", tmp_path / "temporary"
    temporary.mkdir()
    if not writable:
        artifacts.touch()  # a file where the folder should be stops root, too
    here = {"ARTIFACTS_DIR": str(artifacts), "TMPDIR": str(temporary), "CXX": "g++ -m64"}
    done = subprocess.run(
        [sys.executable, "-c", RAN], cwd=SOURCES.parents[1], env=os.environ | here, capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("[4.0, 4.0, 4.0]\n", "")
    assert not list(temporary.rglob("*.so"))
    assert [path.name[:10] for path in tmp_path.rglob("*.so")] == ["gemv_fp32-"] * writable


def test_an_edited_source_is_compiled_again(monkeypatch, tmp_path) -> None:
    """As a reader of the notebook does it: the same kernel, in the same process, with another text."""
    folder = shutil.copytree(SOURCES, tmp_path / "kernels")
    for module in (emulator, launching):
        monkeypatch.setattr(module, "SOURCES", folder)
    a, x = ones(3, 4), ones(4)
    assert gemv(a, x, kernel="gemv_thread_per_row").tolist() == [4, 4, 4]
    text = (folder / "gemv_fp32.cu").read_text()
    (folder / "gemv_fp32.cu").write_text(text.replace("y[row] = sum;", "y[row] = 2 * sum;"))
    assert gemv(a, x, kernel="gemv_thread_per_row").tolist() == [8, 8, 8]


def test_nothing_here_needs_pycuda() -> None:
    code = "import sys, cuda_kernels, cuda_kernels.measure, cuda_kernels.gpu; assert 'pycuda' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=SOURCES.parents[1])
