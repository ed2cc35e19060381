"""`Launch`: a kernel launch as a value, with checked arguments, a grid, and the array that the kernel fills."""

from __future__ import annotations

import functools
import math
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

SOURCES = Path(__file__).parent / "kernels"
LARGEST_INDEX = 2**31 - 4096  # leaves room for what kernels add to an index before they compare it


Argument = torch.Tensor | int | float | None
Checked = tuple[tuple[torch.Tensor, int], ...]  # index arrays, each with torch's count of in-place changes
RUNNERS: dict[str, Callable[[Launch], None]] = {}  # by device type; `gpu` and `emulator` register themselves


@dataclass(frozen=True)
class Launch:
    """A kernel with everything it needs. Built only by functions that have checked the arguments.

    source: the .cu file's stem; arguments: tensors (passed as pointers), None (a null pointer), ints, floats (32-bit);
    defines: macros such as (("TILE", 8),) with which the source is compiled; output: what `run` returns.
    checked: a sparse matrix's index arrays; `run` raises ValueError if they were written to since they were checked.
    """

    source: str
    kernel: str
    grid: tuple[int, int, int]
    block: tuple[int, int, int]
    arguments: tuple[Argument, ...]
    output: torch.Tensor
    shared_bytes: int = 0
    defines: tuple[tuple[str, int], ...] = ()
    checked: Checked = ()

    def __post_init__(self) -> None:
        if max(self.grid[1:]) > 65535 or self.grid[0] > LARGEST_INDEX:
            raise ValueError(
                f"{self.kernel} would need a grid of {self.grid} blocks, more than CUDA allows; split the "
                "matrix and multiply its parts"
            )

    @functools.cached_property
    def stamp(self) -> int:
        """The source's modification time, looked up once, since a measurement repeats a launch."""
        return edited(self.source)

    def run(self) -> torch.Tensor:
        """Launch on the GPU if the output is there (asynchronously, as torch does), else in the emulator."""
        check_unchanged(self.checked)
        RUNNERS[self.output.device.type](self)
        return self.output


def kernel_names(source: str) -> dict[str, str]:
    """Return the extern "C" kernels of a .cu file, in order, each with its launch bound (1024 if none)."""
    text = (SOURCES / f"{source}.cu").read_text()
    found = re.findall(r'extern "C" __global__ void\s+(?:__launch_bounds__\(([^,)]*)[^)]*\)\s+)?(\w+)\(', text)
    return {name: bound or "1024" for bound, name in found}


def edited(source: str) -> int:
    """Return when a .cu file or a header last changed, in ns; a kernel compiled before that is compiled again."""
    files = [SOURCES / f"{source}.cu", *SOURCES.glob("*.cuh"), *SOURCES.glob("*.h")]
    return max(path.stat().st_mtime_ns for path in files)


def sources() -> list[str]:
    """Return the kernel families: the stems of the .cu files."""
    return sorted(path.stem for path in SOURCES.glob("*.cu"))


def check_tensor(name: str, tensor: torch.Tensor, dtype: torch.dtype, shape: Sequence[int | None]) -> None:
    """Raise TypeError or ValueError unless `tensor` can be passed to a kernel as a pointer.

    shape: the expected sizes; None for any size.
    """
    if not isinstance(tensor, torch.Tensor):
        raise TypeError(f"{name} must be a torch tensor, but is a {type(tensor).__name__}; use torch.from_numpy")
    if tensor.layout != torch.strided:
        raise TypeError(f"{name} must be a dense tensor, but is {tensor.layout}; pass {name}.to_dense()")
    if tensor.dtype != dtype:
        raise TypeError(f"{name} must be {dtype}, but is {tensor.dtype}; convert it with .to({dtype})")
    sizes = tuple(tensor.shape)
    if len(sizes) != len(shape) or any(want not in (None, have) for want, have in zip(shape, sizes, strict=True)):
        wanted = "(" + ", ".join("any" if size is None else str(size) for size in shape) + ")"
        raise ValueError(f"{name} must have shape {wanted}, but has {sizes}")
    if tensor.numel() > LARGEST_INDEX:
        raise ValueError(
            f"{name} has {tensor.numel()} elements, which overflows 32-bit indexing; split it into parts "
            f"of at most {LARGEST_INDEX}"
        )
    if not tensor.is_contiguous():
        raise ValueError(f"{name} is not contiguous; pass {name}.contiguous()")
    if tensor.data_ptr() % 16:
        raise ValueError(f"{name} does not start on a 16-byte boundary, which vector loads need; pass {name}.clone()")


def own_copy(indices: torch.Tensor) -> torch.Tensor:
    """Return a private copy, made outside of inference mode, in which torch does not count in-place changes."""
    with torch.inference_mode(False):
        return indices.clone()


def check_unchanged(checked: Checked) -> None:
    """Raise ValueError if an index array changed after its check: a kernel might access memory out of bounds."""
    if any(indices._version != version for indices, version in checked):
        raise ValueError(
            "the sparse matrix's indices were changed after they were checked; make a new matrix from them"
        )


def check_same_device(**tensors: torch.Tensor | None) -> torch.device:
    """Return the device of all the tensors; ValueError if there are several."""
    devices = {str(tensor.device) for tensor in tensors.values() if tensor is not None}
    if len(devices) != 1:
        raise ValueError(f"{', '.join(tensors)} must be on one device, but are on {' and '.join(sorted(devices))}")
    device = torch.device(devices.pop())
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"{', '.join(tensors)} are on {device}, where no kernel runs; move them to cuda or cpu")
    return device


def check_not_empty(name: str, *sizes: int) -> None:
    """Raise ValueError unless every size is at least 1: a launch without blocks is an error in CUDA."""
    if min(sizes) < 1:
        raise ValueError(f"{name} has an empty dimension: {sizes}; every size must be at least 1")


def check_kernel(kernel: str, allowed: Sequence[str]) -> None:
    """Raise ValueError unless the family has that kernel."""
    if kernel not in allowed:
        raise ValueError(f"there is no kernel {kernel!r} for this product; choose one of {', '.join(allowed)}")


def output_like(
    out: torch.Tensor | None, shape: Sequence[int], dtype: torch.dtype, device: torch.device, *inputs: torch.Tensor
) -> torch.Tensor:
    """Return `out` after checking it, or a new tensor if it is None. It must not share memory with the inputs."""
    if out is None:
        if math.prod(shape) > LARGEST_INDEX:
            raise ValueError(f"the product is {shape}, which overflows 32-bit indexing; multiply parts of the matrices")
        return torch.empty(*shape, dtype=dtype, device=device)
    check_tensor("out", out, dtype, shape)
    check_same_device(out=out, inputs=torch.empty(0, device=device))
    if any(out.untyped_storage().data_ptr() == tensor.untyped_storage().data_ptr() for tensor in inputs):
        raise ValueError("out shares memory with an input, which is read while out is written; give out its own memory")
    return out


def ceil_div(a: int, b: int) -> int:
    """Return a / b, rounded up."""
    return -(-a // b)


def multiprocessors(device: torch.device) -> int:
    """Return the number of multiprocessors of the GPU; 4 for the emulator, so that work is split there as well."""
    return torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 4


def shared_memory_limit(device: torch.device) -> int:
    """Return the bytes of shared memory that one block can have; 64 KiB for the emulator, as on the smallest target."""
    if device.type != "cuda":
        return 64 << 10
    properties = torch.cuda.get_device_properties(device)
    return properties.shared_memory_per_block_optin  # type: ignore[attr-defined]  # torch's stub lacks it


@dataclass(frozen=True)
class Tiling:
    """How a product is cut: outputs of a block (rows x columns), and blocks that share k."""

    rows: int
    columns: int
    splits: int = 1

    @property
    def name(self) -> str:
        """The end of the kernels' names."""
        return f"{self.rows}x{self.columns}"


# Outputs of a block, and those of each of its four warps, as compiled in gemm_int8.cu and conv_int8.cu.
TILES = {(128, 128): (64, 64), (128, 32): (32, 32), (64, 64): (32, 32), (64, 16): (16, 16), (16, 64): (16, 16)}
DEPTH = 64  # of k in a tile
MOST_SPLITS = 8  # one block adds up all parts of a tile
# What `choose_tiles` assumes of a multiprocessor, in ns: one multiply-accumulate, one byte of the sums' parts, the
# least time of a tile's 64 k (the loads' latency over the stages), and passing a ticket on. Nominal for an H100.
MAC_NS, BYTE_NS, LATENCY_NS, TICKET_NS = 1 / 3750, 1 / 40, 200.0, 1000.0


def choose_tiles(
    m: int, n: int, k: int, processors: int, tile: tuple[int, int] | None = None, splits: int | None = None
) -> Tiling:
    """Return the tiles of an INT8 product (m, k) by (k, n) that a simple model of the time finds fastest.

    k is split only where there are fewer tiles than multiprocessors. The model ranks tiles and predicts no time. A
    given tile or number of splits stands.
    """
    if tile is not None and tile not in TILES:
        raise ValueError(f"there is no tile {tile}; choose one of {', '.join(map(str, TILES))}")
    chunks = ceil_div(k, DEPTH)
    if splits is not None and not (isinstance(splits, int) and 1 <= splits <= chunks):
        raise ValueError(f"splits is {splits}, but must be a whole number in 1 to {chunks}, the pieces that k has")
    tilings = [
        Tiling(*shape, parts)
        for shape in ([tile] if tile else TILES)
        for parts in ([splits] if splits else range(1, _most_splits(m, n, chunks, processors, shape) + 1))
    ]
    return min(tilings, key=lambda tiling: (_nanoseconds(tiling, m, n, chunks, processors), tiling.rows))


def _most_splits(m: int, n: int, chunks: int, processors: int, shape: tuple[int, int]) -> int:
    return max(1, min(MOST_SPLITS, chunks, processors // (ceil_div(m, shape[0]) * ceil_div(n, shape[1]))))


def _nanoseconds(tiling: Tiling, m: int, n: int, chunks: int, processors: int) -> float:
    """Return the model's time. Smaller warp tiles read more of shared memory for each product."""
    warp_rows, warp_columns = TILES[tiling.rows, tiling.columns]
    outputs, resident = tiling.rows * tiling.columns, 2 if tiling.rows * tiling.columns > 8192 else 4
    blocks = ceil_div(m, tiling.rows) * ceil_div(n, tiling.columns) * tiling.splits
    macs = outputs * DEPTH * (1 + 16 * (warp_rows + warp_columns) / (warp_rows * warp_columns))
    together = min(resident, ceil_div(blocks, processors))
    time = ceil_div(chunks, tiling.splits) * max(LATENCY_NS, together * macs * MAC_NS)
    if tiling.splits > 1:
        time += TICKET_NS + (1 + tiling.splits) * 4 * outputs * BYTE_NS
    return ceil_div(blocks, resident * processors) * time


def scratch(tiling: Tiling, m: int, n: int, device: torch.device) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return buffers for the parts of split sums, and one ticket per tile (zero; the kernel leaves it zero)."""
    if tiling.splits == 1:
        return None, None
    tiles = ceil_div(m, tiling.rows) * ceil_div(n, tiling.columns)
    size = tiles * tiling.splits * tiling.rows * tiling.columns
    if size > LARGEST_INDEX:
        raise ValueError(f"{tiling.splits} splits of {m} x {n} outputs overflow 32-bit indexing; choose fewer splits")
    return torch.empty(size, dtype=torch.int32, device=device), torch.zeros(tiles, dtype=torch.int32, device=device)
