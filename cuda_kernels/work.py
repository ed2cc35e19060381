"""The products measured on a GPU, with our kernels, library calls, bytes and operations."""

from __future__ import annotations

import functools
import itertools
import math
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch

from . import dense, hopper, sparse
from .check import POISON


@dataclass(frozen=True)
class Sizes:
    """The products to measure: by default the published ones, ResNet-18's layers, and a large square for the rates."""

    square_gemv: int = 25088
    fully_connected: tuple[int, int, int] = (4096, 16, 25088)  # outputs, images, inputs
    square_gemm: int = 4096
    square_spmm: int = 1000
    spmm_columns: tuple[int, ...] = (16, 64, 256, 4096)  # and the square's edge
    densities: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.3, 0.5)
    study_densities: tuple[float, ...] = (0.85, 0.7, 0.1)  # published: compression by 15, 30 and 90 %
    batches: tuple[int, ...] = (1, 64)
    # ResNet-18 for 32 x 32 images: name, pixels per image after the layer, inputs per pixel (im2col), channels.
    # Layers of the same shape are listed once.
    layers: tuple[tuple[str, int, int, int], ...] = (
        ("stem", 1024, 27, 64),
        ("layer1", 1024, 576, 64),
        ("layer2.0.conv1", 256, 576, 128),
        ("layer2.0.shortcut", 256, 64, 128),
        ("layer2", 256, 1152, 128),
        ("layer3.0.conv1", 64, 1152, 256),
        ("layer3.0.shortcut", 64, 128, 256),
        ("layer3", 64, 2304, 256),
        ("layer4.0.conv1", 16, 2304, 512),
        ("layer4.0.shortcut", 16, 256, 512),
        ("layer4", 16, 4608, 512),
        ("fc", 1, 512, 10),
    )


@dataclass(frozen=True)
class Work:
    """A product to time. runs: the same product on different buffers, used in turn; truth: the first one's result.

    bytes: the least that the product must move in its own storage format; operations: multiplications and additions.
    """

    family: str
    kernel: str
    maker: str  # "ours", or the library
    case: str
    m: int
    n: int
    k: int
    density: float
    bytes: int
    operations: int
    runs: tuple[Callable[[], torch.Tensor], ...]
    truth: torch.Tensor


Copies = Callable[[int], int]


def all_work(sizes: Sizes, device: str, copies: Copies) -> Iterator[Work]:
    """Yield every measurement lazily: a group's buffers exist only while its measurements run.

    copies(bytes): how many buffers of that size to use in turn, so that none is still in the L2 cache.
    """
    for group in _groups(sizes, device, copies):
        try:
            yield from group
        except torch.OutOfMemoryError as error:
            warnings.warn(f"a product does not fit this GPU and is left out ({error})"[:200], stacklevel=2)
            torch.cuda.empty_cache()


def _groups(sizes: Sizes, device: str, copies: Copies) -> Iterator[Iterator[Work]]:
    yield gemv_work(f"square {sizes.square_gemv}", sizes.square_gemv, sizes.square_gemv, device, copies)
    yield fp32_work("fully connected", *sizes.fully_connected, device, copies)
    outputs, images, inputs = sizes.fully_connected
    yield int8_work("fully connected", images, outputs, inputs, device, copies)
    for density in sizes.densities:
        yield spmv_work(f"square {sizes.square_gemv}", sizes.square_gemv, density, device, copies)
    edge = sizes.square_spmm
    for density in sorted({*sizes.densities, *sizes.study_densities}):
        yield spmm_work(f"square {edge}", edge, edge, density, device, copies)
    for n, density in itertools.product(sizes.spmm_columns, sizes.densities):
        yield spmm_work(f"square {edge}, {n} columns", edge, n, density, device, copies)
    for edge in (sizes.square_spmm, sizes.square_gemm):
        yield fp32_work(f"square {edge}", edge, edge, edge, device, copies)
        yield int8_work(f"square {edge}", edge, edge, edge, device, copies)
    for batch in sizes.batches:
        for name, pixels, k, channels in sizes.layers:
            case = f"ResNet-18 {name}, batch {batch}"
            yield fp32_work(case, batch * pixels, channels, k, device, copies)
            yield int8_work(case, batch * pixels, channels, k, device, copies)


def gemv_work(case: str, m: int, k: int, device: str, copies: Copies) -> Iterator[Work]:
    """y = A x: our kernels and cuBLAS."""
    count = copies(4 * m * k)
    sets = [(_normal(device, m, k), _normal(device, k), torch.empty(m, device=device)) for _ in range(count)]
    truth = _exact(*sets[0][:2])
    make = functools.partial(_work, "gemv_fp32", case=case, size=(m, 1, k), truth=truth, moved=4 * (m * k + k + m))
    for kernel in dense.GEMV_KERNELS:
        yield make(kernel, [dense.prepare_gemv(a, x, kernel=kernel, out=y).run for a, x, y in sets])
    yield make("torch.mv", [functools.partial(torch.mv, a, x, out=y) for a, x, y in sets], maker="cuBLAS")


def fp32_work(case: str, m: int, n: int, k: int, device: str, copies: Copies) -> Iterator[Work]:
    """C = A B in FP32: our kernels and cuBLAS. The split-K kernel is measured only for few columns, its purpose."""
    moved = 4 * (m * k + k * n + m * n)
    sets = [
        (_normal(device, m, k), _normal(device, n, k).T, torch.empty(m, n, device=device)) for _ in range(copies(moved))
    ]
    truth = _exact(*sets[0][:2])
    rows = [(a, b.contiguous(), c) for a, b, c in sets]
    make = functools.partial(_work, "gemm_fp32", case=case, size=(m, n, k), truth=truth, moved=moved)
    for kernel in dense.GEMM_KERNELS:
        if kernel == "gemm_split_k" and n > 64:
            continue
        operands = sets if kernel == "gemm_split_k" else rows
        yield make(kernel, [dense.prepare_gemm_fp32(a, b, kernel=kernel, out=c).run for a, b, c in operands])
    yield make("torch.mm", [functools.partial(torch.mm, a, b, out=c) for a, b, c in rows], maker="cuBLAS")


def int8_work(case: str, m: int, n: int, k: int, device: str, copies: Copies) -> Iterator[Work]:
    """X W^T in INT8: our kernels and, if it supports the shape, cuBLASLt; the fast kernels also as a whole layer."""
    moved = m * k + n * k + 4 * m * n
    sets = [
        (_bytes(device, m, k), _bytes(device, n, k), torch.empty(m, n, dtype=torch.int32, device=device))
        for _ in range(copies(moved))
    ]
    truth = _exact(sets[0][0], sets[0][1].T)
    make = functools.partial(_work, "gemm_int8", case=case, size=(m, n, k), truth=truth, moved=moved)
    own = () if hopper.unusable(torch.device(device)) else (dense.HOPPER,)
    for kernel in (*dense.INT8_KERNELS, *own):
        if kernel == "gemm_int8_skinny" and m > 64:
            continue
        yield make(kernel, [dense.prepare_gemm_int8(x, w, kernel=kernel, out=out).run for x, w, out in sets])
    yield from _int8_layers(case, [(x, w) for x, w, _ in sets], truth)
    # cuBLASLt needs more than 16 rows on the left, and multiples of 8 for the other sizes.
    if k % 8 == 0 and m > 16 and n % 8 == 0:
        runs = [functools.partial(torch._int_mm, x, w.T) for x, w, _ in sets]
    elif k % 8 == 0 and n > 16 and m % 8 == 0:
        runs = [functools.partial(_int_mm_transposed, x, w) for x, w, _ in sets]
    else:
        return
    yield make("torch._int_mm", runs, maker="cuBLASLt")


def _int8_layers(case: str, sets: list[tuple[torch.Tensor, torch.Tensor]], sums: torch.Tensor) -> Iterator[Work]:
    """INT8 in and out: sums are scaled, rectified and rounded before they are written, in a quarter of the bytes."""
    (m, k), n = sets[0][0].shape, len(sets[0][1])
    scale = 2.0 ** -round(math.log2(200 * math.sqrt(k)))  # a power of two, so that no rounding differs from float64's
    device = sets[0][0].device
    layer: dict[str, Any] = {"scale": torch.full((n,), scale, device=device), "offset": torch.zeros(n, device=device)}
    layer |= {"relu": True, "output": torch.int8}
    truth, moved = (sums * scale).clamp(0, 127).round(), m * k + n * k + m * n + 8 * n
    for kernel in ("gemm_int8_mma", "gemm_int8_tiles", "gemm_int8_skinny")[: 3 if m <= 64 else 2]:
        runs = [dense.prepare_gemm_int8(x, w, kernel=kernel, **layer).run for x, w in sets]
        name, case_name = f"{kernel} + epilogue", f"{case}, whole layer"
        yield _work("gemm_int8", name, runs, case=case_name, size=(m, n, k), truth=truth, moved=moved)


def spmv_work(case: str, size: int, density: float, device: str, copies: Copies) -> Iterator[Work]:
    """y = A x with a sparse square A: CSR, the compact formats, and cuSPARSE."""
    stored = int(size * size * density)
    smallest = 2 * stored  # bytes of the smallest format, whose buffers must not fit the L2 cache either
    sets = [(_sparse(device, size, density), _normal(device, size)) for _ in range(copies(smallest))]
    truth = _exact_sparse(*sets[0])
    make = functools.partial(_work, "spmv_csr", case=case, size=(size, 1, size), density=density, stored=sets[0][0].nnz)
    vectors = 8 * size
    bytes_csr = sets[0][0].nbytes + vectors
    for kernel in sparse.SPMV_KERNELS:
        runs = [sparse.prepare_spmv(a, x, kernel=kernel).run for a, x in sets]
        yield make(kernel, runs, truth=truth, moved=bytes_csr)
    runs = [functools.partial(torch.mv, a.to_torch(), x) for a, x in sets]
    yield make("torch.sparse mv", runs, truth=truth, moved=bytes_csr, maker="cuSPARSE")
    for dtype, kernel in ((torch.float32, "spmv_delta8_fp32"), (torch.int8, "spmv_delta8_int8")):
        compact = [(sparse.compress(a, dtype), x) for a, x in sets]
        exact = truth if dtype == torch.float32 else _exact_sparse(_rounded(sets[0][0]), sets[0][1])
        # Rounded values make a different matrix, so no library kernel is compared with it.
        name = case if dtype == torch.float32 else f"{case}, INT8 values"
        runs = [sparse.prepare_spmv(a, x).run for a, x in compact]
        yield make(kernel, runs, case=name, truth=exact, moved=compact[0][0].nbytes + vectors)


def spmm_work(case: str, size: int, n: int, density: float, device: str, copies: Copies) -> Iterator[Work]:
    """C = A B with a sparse square A and n columns: our kernels and cuSPARSE."""
    stored = int(size * size * density)
    count = copies(8 * stored + 8 * size * n)
    sets = [
        (_sparse(device, size, density), _normal(device, size, n), torch.empty(size, n, device=device))
        for _ in range(count)
    ]
    first = sets[0][0]
    make = functools.partial(
        _work,
        "spmm_csr",
        case=case,
        size=(size, n, size),
        density=density,
        stored=first.nnz,
        truth=_exact_sparse(*sets[0][:2]),
        moved=first.nbytes + 8 * size * n,
    )
    for kernel in sparse.SPMM_KERNELS:
        yield make(kernel, [sparse.prepare_spmm(a, b, kernel=kernel, out=c).run for a, b, c in sets])
    # torch.mm also fills an array with zeros and copies it (seen in a CPU profile; to be confirmed on a GPU).
    runs = [functools.partial(torch.addmm, c, a.to_torch(), b, beta=0, out=c) for a, b, c in sets]
    yield make("torch.sparse mm", runs, maker="cuSPARSE")


def relative_error(work: Work) -> float:
    """Return ||out - truth|| / ||truth|| of the first run, into a poisoned output, which each kernel must fill."""
    out = work.runs[0]()
    out.fill_(POISON[out.dtype])
    out = work.runs[0]().double()
    return float((out - work.truth).norm() / work.truth.norm().clamp(min=1e-30))


def _work(
    family: str,
    kernel: str,
    runs: list,
    *,
    case: str,
    size: tuple[int, int, int],
    truth: torch.Tensor,
    moved: int,
    density: float = 1.0,
    stored: int | None = None,
    maker: str = "ours",
) -> Work:
    m, n, k = size
    operations = 2 * n * (m * k if stored is None else stored)
    return Work(family, kernel, maker, case, m, n, k, density, moved, operations, tuple(runs), truth)


def _int_mm_transposed(x: torch.Tensor, w: torch.Tensor) -> torch.Tensor:
    return torch._int_mm(w, x.T).T


def _normal(device: str, *shape: int) -> torch.Tensor:
    return torch.randn(*shape, device=device)


def _bytes(device: str, *shape: int) -> torch.Tensor:
    return torch.randint(-128, 128, shape, dtype=torch.int8, device=device)


def _sparse(device: str, size: int, density: float) -> sparse.CSR:
    kept = torch.rand(size, size, device=device) < density
    return sparse.CSR.from_dense(torch.randn(size, size, device=device).mul_(kept))


def _exact(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the product in float64, computed in bands of rows to avoid a second copy of A."""
    band = max(1, math.ceil((1 << 26) / a.shape[1]))
    return torch.cat([part.double() @ b.double() for part in a.split(band)])


def _exact_sparse(a: sparse.CSR, b: torch.Tensor) -> torch.Tensor:
    """Return the sparse product in float64."""
    return a.to_torch().double() @ b.double()


def _rounded(a: sparse.CSR) -> sparse.CSR:
    """Return the matrix with its values rounded to 255 levels per row, as INT8 storage does."""
    rows = torch.repeat_interleave(torch.arange(a.shape[0], device=a.values.device), a.pointers.long().diff())
    largest = torch.zeros(a.shape[0], device=a.values.device).scatter_reduce(0, rows, a.values.abs(), "amax")
    scale = (largest / 127)[rows]
    return sparse.CSR(a.shape, a.pointers, a.columns, (a.values / scale).round() * scale)
