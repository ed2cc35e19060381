"""Dense products: matrix-vector and matrix-matrix in FP32, and an INT8 layer with its epilogue.

Each function checks its input, then runs one kernel; `prepare_...` only makes the launch, so that a measurement can
repeat it without the checks. Tensors on a GPU run there; tensors on the CPU run in the emulator.
"""

from __future__ import annotations

import torch

from . import hopper
from .launch import (
    LARGEST_INDEX,
    Launch,
    ceil_div,
    check_kernel,
    check_not_empty,
    check_same_device,
    check_tensor,
    choose_tiles,
    multiprocessors,
    output_like,
    scratch,
)

GEMV_KERNELS = ("gemv_thread_per_row", "gemv_warp_per_row", "gemv_vector4")
GEMM_KERNELS = ("gemm_naive", "gemm_tiled", "gemm_blocked", "gemm_split_k")
INT8_KERNELS = ("gemm_int8_tiled", "gemm_int8_dp4a", "gemm_int8_mma", "gemm_int8_skinny", "gemm_int8_tiles")
HOPPER = "gemm_int8_wgmma"  # where hopper.unusable says nothing against it
TILES = (8, 16, 32)
EPILOGUE_MODES = {torch.int32: 0, torch.float32: 1, torch.int8: 2}


def prepare_gemv(
    a: torch.Tensor, x: torch.Tensor, *, kernel: str = "gemv_vector4", out: torch.Tensor | None = None
) -> Launch:
    """Prepare y = A x. a: (m, k) float32; x: (k,) float32; out: (m,) float32."""
    check_kernel(kernel, GEMV_KERNELS)
    check_tensor("a", a, torch.float32, (None, None))
    m, k = a.shape
    check_not_empty("a", m, k)
    check_tensor("x", x, torch.float32, (k,))
    y = output_like(out, (m,), torch.float32, check_same_device(a=a, x=x), a, x)
    blocks, threads = {
        "gemv_thread_per_row": (ceil_div(m, 128), 128),
        "gemv_warp_per_row": (ceil_div(m, 8), 256),
        "gemv_vector4": (ceil_div(m, 4), 128),
    }[kernel]
    return Launch("gemv_fp32", kernel, (blocks, 1, 1), (threads, 1, 1), (a, x, y, m, k), y)


def gemv(a: torch.Tensor, x: torch.Tensor, **options) -> torch.Tensor:
    """Compute y = A x in FP32; see `prepare_gemv` for the shapes and options."""
    return prepare_gemv(a, x, **options).run()


def prepare_gemm_fp32(
    a: torch.Tensor,
    b: torch.Tensor,
    *,
    kernel: str = "gemm_blocked",
    tile: int = 16,
    splits: int | None = None,
    out: torch.Tensor | None = None,
) -> Launch:
    """Prepare C = A B. a: (m, k) float32; b: (k, n) float32; out: (m, n) float32.

    gemm_split_k, for few columns, needs b with contiguous columns: pass `inputs.T` of contiguous (n, k) inputs.
    tile: edge of the tile of gemm_tiled (8, 16 or 32); splits: blocks that share k in gemm_split_k.
    """
    check_kernel(kernel, GEMM_KERNELS)
    check_tensor("a", a, torch.float32, (None, None))
    m, k = a.shape
    if kernel == "gemm_split_k":
        columns = b.T if isinstance(b, torch.Tensor) and b.ndim == 2 else b
        check_tensor("b.T", columns, torch.float32, (None, k))
        n = columns.shape[0]
    else:
        columns = b
        check_tensor("b", b, torch.float32, (k, None))
        n = b.shape[1]
    check_not_empty("the product", m, n, k)
    device = check_same_device(a=a, b=b)
    c = output_like(out, (m, n), torch.float32, device, a, b)
    if kernel == "gemm_split_k":
        return _split_k(a, columns, c, splits)
    if kernel == "gemm_blocked":
        return Launch("gemm_fp32", kernel, (ceil_div(n, 128), ceil_div(m, 128), 1), (256, 1, 1), (a, b, c, m, n, k), c)
    grid, block, defines = _tiled_shape(m, n, tile)
    return Launch("gemm_fp32", kernel, grid, block, (a, b, c, m, n, k), c, defines=defines)


def gemm_fp32(a: torch.Tensor, b: torch.Tensor, **options) -> torch.Tensor:
    """Compute C = A B in FP32; see `prepare_gemm_fp32` for the shapes and options."""
    return prepare_gemm_fp32(a, b, **options).run()


def prepare_gemm_int8(
    x: torch.Tensor,
    w: torch.Tensor,
    *,
    scale: torch.Tensor | None = None,
    offset: torch.Tensor | None = None,
    relu: bool = False,
    zero_point: int = 0,
    output: torch.dtype = torch.int32,
    kernel: str = "gemm_int8_mma",
    tile: int | tuple[int, int] = 16,
    splits: int | None = None,
    out: torch.Tensor | None = None,
) -> Launch:
    """Prepare an INT8 layer. x: (m, k) int8, one row per image or pixel; w: (n, k) int8, one row per channel.

    output int32: the exact sums of x W^T. float32: sum * scale + offset, then ReLU if `relu`. int8: the same rounded to
    even, plus zero_point, clamped: the next layer's input. scale, offset: (n,) float32, see `fold_layer`.
    gemm_int8_tiles chooses rows and columns of a tile, and how many blocks share k, unless tile and splits say so.
    gemm_int8_wgmma lays w out anew when it is prepared (`pack_tiles`).
    """
    check_kernel(kernel, (*INT8_KERNELS, HOPPER))
    check_tensor("x", x, torch.int8, (None, None))
    m, k = x.shape
    check_tensor("w", w, torch.int8, (None, k))
    n = w.shape[0]
    check_not_empty("the product", m, n, k)
    if k >= 2**17:
        raise ValueError(f"k is {k}, and sums of {2**17} or more products of bytes can overflow int32; split k")
    device = check_same_device(x=x, w=w)
    out = output_like(out, (m, n), _output_type(output), device, x, w)
    epilogue = _epilogue(out, scale, offset, relu, zero_point)
    arguments = (x, w, *epilogue)
    if kernel == "gemm_int8_skinny":
        return _skinny(arguments, m, n, k, splits)
    if kernel == HOPPER:
        return _wgmma(arguments, m, n, k)
    if kernel == "gemm_int8_tiles":
        return _tiles(arguments, (m, n, k), splits, tile if isinstance(tile, tuple) else None)
    if kernel == "gemm_int8_tiled":
        grid, block, defines = _tiled_shape(m, n, tile)
        return Launch("gemm_int8", kernel, grid, block, (*arguments, m, n, k), epilogue[0], defines=defines)
    edge, threads = (64, 256) if kernel == "gemm_int8_dp4a" else (128, 128)
    grid = (ceil_div(n, edge), ceil_div(m, edge), 1)
    return Launch("gemm_int8", kernel, grid, (threads, 1, 1), (*arguments, m, n, k), epilogue[0])


def gemm_int8(x: torch.Tensor, w: torch.Tensor, **options) -> torch.Tensor:
    """Compute an INT8 layer, x W^T and its epilogue; see `prepare_gemm_int8` for the shapes and options."""
    return prepare_gemm_int8(x, w, **options).run()


def pack_tiles(w: torch.Tensor) -> torch.Tensor:
    """Return w (n, k) int8 as Hopper's tensor cores read it: tiles of 128 rows and 128 k, filled up with zeros.

    A tile lies in one piece, as core matrices of 8 rows and 16 bytes: 16 of them along the rows, then the next 16 k.
    """
    n, k = w.shape
    rows, depth = ceil_div(n, 128), ceil_div(k, 128)
    whole = w.new_zeros(rows * 128, depth * 128)
    whole[:n, :k] = w
    cores = whole.view(rows, 16, 8, depth, 8, 16)  # tile, group of 8 rows, row; tile, 16 bytes, byte
    return cores.permute(0, 3, 4, 1, 2, 5).contiguous().flatten()


def fold_layer(
    w: torch.Tensor,
    weight_scale: torch.Tensor,
    input_scale: float,
    input_zero_point: int = 0,
    bias: torch.Tensor | None = None,
    output_scale: float = 1.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return (scale, offset) of the epilogue.

    Weights are (n, k) int8 with one scale per channel, inputs (q - zero_point) * scale. output_scale: the scale of the
    int8 output; 1 for a float output. bias: (n,) in real units. The zero point contributes zero_point * the sum of a
    channel's weights, which does not depend on the input and is added to the bias.
    """
    product_scale = weight_scale.double() * input_scale
    offset = -product_scale * input_zero_point * w.double().sum(1)
    if bias is not None:
        offset = offset + bias.double()
    return (product_scale / output_scale).float(), (offset / output_scale).float()


def _tiled_shape(m: int, n: int, tile: int | tuple[int, int]) -> tuple[tuple, tuple, tuple]:
    if not isinstance(tile, int) or tile not in TILES:
        raise ValueError(f"tile is {tile}, but must be one of {TILES}: a block has tile x tile threads, at most 1024")
    return (ceil_div(n, tile), ceil_div(m, tile), 1), (tile, tile, 1), (("TILE", tile),)


def _splits(asked: int | None, tiles: int, chunks: int, blocks: int) -> int:
    """Return the number of parts to split k into: enough for `blocks` blocks in total, at least one chunk per part."""
    if asked is not None and not (isinstance(asked, int) and 1 <= asked <= chunks):
        raise ValueError(f"splits is {asked}, but must be a whole number in 1 to {chunks}, the pieces that k has")
    return asked or max(1, min(chunks, blocks // tiles))


def _scratch(splits: int, outputs: int, tiles: int, dtype: torch.dtype, device: torch.device) -> tuple:
    """Return buffers for partial sums, and one ticket per tile (zero; the kernel leaves it zero)."""
    if splits == 1:
        return None, None
    if splits * outputs > LARGEST_INDEX:
        raise ValueError(f"{splits} splits of {outputs} outputs overflow 32-bit indexing; choose fewer splits")
    parts = torch.empty(splits * outputs, dtype=dtype, device=device)
    return parts, torch.zeros(tiles, dtype=torch.int32, device=device)


def _split_k(a: torch.Tensor, columns: torch.Tensor, c: torch.Tensor, asked: int | None) -> Launch:
    m, k = a.shape
    n = columns.shape[0]
    rows, groups = ceil_div(m, 64), ceil_div(n, 16)
    # One block fills a multiprocessor's registers.
    splits = _splits(asked, rows * groups, ceil_div(k, 256), multiprocessors(a.device))
    parts, tickets = _scratch(splits, m * n, rows * groups, torch.float32, a.device)
    arguments = (a, columns, c, parts, tickets, m, n, k)
    return Launch("gemm_fp32", "gemm_split_k", (rows, splits, groups), (512, 1, 1), arguments, c)


def _skinny(arguments: tuple, m: int, n: int, k: int, asked: int | None) -> Launch:
    device = arguments[0].device
    channels, groups = ceil_div(n, 128), ceil_div(m, 16)
    splits = _splits(asked, channels * groups, ceil_div(k, 256), 2 * multiprocessors(device))
    parts, tickets = _scratch(splits, m * n, channels * groups, torch.int32, device)
    grid = (channels, splits, groups)
    everything = (*arguments, parts, tickets, m, n, k)
    return Launch("gemm_int8", "gemm_int8_skinny", grid, (256, 1, 1), everything, arguments[2])


def _tiles(arguments: tuple, sizes: tuple[int, int, int], asked: int | None, tile: tuple[int, int] | None) -> Launch:
    (m, n, _), device = sizes, arguments[0].device
    tiling = choose_tiles(*sizes, multiprocessors(device), tile, asked)
    grid = (ceil_div(n, tiling.columns), ceil_div(m, tiling.rows), tiling.splits)
    everything = (*arguments, *scratch(tiling, m, n, device), *sizes)
    return Launch("gemm_int8", f"gemm_int8_tiles_{tiling.name}", grid, (128, 1, 1), everything, arguments[2])


def _wgmma(arguments: tuple, m: int, n: int, k: int) -> Launch:
    x, w, *rest = arguments
    reason = hopper.unusable(x.device)
    if reason is not None:
        raise ValueError(f"{HOPPER} cannot be used here: {reason}; use gemm_int8_mma")
    grid, shared = (ceil_div(n, 128), ceil_div(m, 128), 1), 2 * 4 * 128 * 128 + 8 * 4
    everything = (x, pack_tiles(w), *rest, m, n, k)
    return Launch("gemm_int8_hopper", HOPPER, grid, (256, 1, 1), everything, rest[0], shared)


def _output_type(output: torch.dtype) -> torch.dtype:
    if output not in EPILOGUE_MODES:
        raise TypeError(f"output is {output}, but an INT8 layer gives torch.int32, torch.float32 or torch.int8")
    return output


def _epilogue(
    out: torch.Tensor, scale: torch.Tensor | None, offset: torch.Tensor | None, relu: bool, zero_point: int
) -> tuple:
    mode = EPILOGUE_MODES[out.dtype]
    if mode == 0:
        if scale is not None or offset is not None or relu or zero_point:
            raise ValueError(
                "an int32 output is the bare sum: leave out scale, offset, relu and zero_point, or ask "
                "for output=torch.float32 or torch.int8"
            )
        return out, None, None, 0, 0, 0
    for name, tensor in (("scale", scale), ("offset", offset)):
        if tensor is None:
            raise ValueError(f"{name} is missing: a {out.dtype} output needs scale and offset, one value per channel")
        check_tensor(name, tensor, torch.float32, (out.shape[1],))
        check_same_device(out=out, **{name: tensor})
    if mode == 1 and zero_point:
        raise ValueError("zero_point belongs to an int8 output; leave it 0 for output=torch.float32")
    if not isinstance(zero_point, int) or not -128 <= zero_point <= 127:
        raise ValueError(f"zero_point is {zero_point}, but must be a whole number in -128 to 127")
    return out, scale, offset, mode, int(relu), zero_point
