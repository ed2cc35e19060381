"""Launches of the layers of an integer network, in the arithmetic of the deployed model (kernels/requantize.cuh).

Activations are int8 tensors (images, height, width, channels): the deployed model's byte minus 128, channels a multiple
of CHANNELS. As in `dense`, a function checks its input and makes a `Launch`.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .launch import (
    Argument,
    Launch,
    ceil_div,
    check_same_device,
    check_tensor,
    choose_tiles,
    multiprocessors,
    output_like,
    scratch,
)

CHANNELS = 16  # channels are filled up to a multiple of this, so that 16-byte pieces lie in one pixel
THREADS = 128
Pair = tuple[int, int]


@dataclass(frozen=True)
class Window:
    """How a kernel slides over an image: kernel size, stride, first padding (top, left), dilation, and output size."""

    kernel: Pair
    output: Pair
    stride: Pair = (1, 1)
    first: Pair = (0, 0)
    dilation: Pair = (1, 1)


@dataclass(frozen=True)
class Residual:
    """A tensor that is added to a layer's rounded output, and how the sum is rounded (see `added` below).

    ratio, residual_ratio: the steps of the layer's output and of the residual over the sum's; fixed: the sum's zero
    point less both scaled zero points; low, high: bounds of the sum's byte; first: the layer's output is the addition's
    first operand.
    """

    tensor: torch.Tensor
    ratio: float
    residual_ratio: float
    fixed: float
    low: int = 0
    high: int = 255
    first: bool = True


@dataclass(frozen=True)
class Rounding:
    """What follows a layer's sums: bias (n,) int32 is added, scale (n,) float32 multiplies, then they become bytes.

    zero_point and the bounds low and high are in 0..255. floats: the outputs stay float32, as logits do.
    """

    bias: torch.Tensor
    scale: torch.Tensor
    zero_point: int = 0
    low: int = 0
    high: int = 255
    residual: Residual | None = None
    floats: bool = False

    def arguments(self, out: torch.Tensor) -> tuple:
        """Return what the kernels' `Requantize` takes."""
        own = (self.zero_point, self.low, self.high)
        if self.residual is None:
            return (out, self.bias, self.scale, None, 0.0, 0.0, 0.0, *own, 0, 0, 0, int(self.floats))
        r = self.residual
        check_tensor("the residual", r.tensor, torch.int8, out.shape)
        ratios = (float(r.ratio), float(r.residual_ratio), float(r.fixed))
        return (out, self.bias, self.scale, r.tensor, *ratios, *own, r.low, r.high, int(r.first), 0)


def padded(channels: int) -> int:
    """Return the number of channels that is stored for so many."""
    return ceil_div(channels, CHANNELS) * CHANNELS


def prepare_conv(
    x: torch.Tensor,
    w: torch.Tensor,
    rounding: Rounding,
    window: Window,
    *,
    zero_point: int = 128,
    outputs: int | None = None,
    tile: Pair | None = None,
    splits: int | None = None,
    out: torch.Tensor | None = None,
) -> Launch:
    """Prepare a convolution. x: (b, h, w, c); w: (n, kernel height, kernel width, c) int8; out: (b, oh, ow, n) int8.

    With `rounding.floats`, out is (b, oh, ow, outputs) float32. zero_point: the input's, 0..255, for pixels outside of
    the image. tile, splits: outputs of a block, and blocks that share k; by default chosen by the shape.
    """
    images, _, _, channels = _check_image("x", x)
    check_tensor("w", w, torch.int8, (None, *window.kernel, channels))
    n = w.shape[0]
    if n % CHANNELS:
        raise ValueError(f"w has {n} output channels, which must be a multiple of {CHANNELS}; add channels of zeros")
    written = (outputs or n) if rounding.floats else n
    dtype = torch.float32 if rounding.floats else torch.int8
    device = check_same_device(x=x, w=w, bias=rounding.bias, scale=rounding.scale)
    _check_rounding(rounding, n)
    out = output_like(out, (images, *window.output, written), dtype, device, x, w)
    m, k = images * window.output[0] * window.output[1], window.kernel[0] * window.kernel[1] * channels
    tiling = choose_tiles(m, n, k, multiprocessors(device), tile, splits)
    parts, tickets = scratch(tiling, m, n, device)
    arguments = (*rounding.arguments(out), parts, tickets, *_geometry(x, window, zero_point), m, written, n)
    grid = (ceil_div(n, tiling.columns), ceil_div(m, tiling.rows), tiling.splits)
    return Launch("conv_int8", f"conv_int8_{tiling.name}", grid, (THREADS, 1, 1), (x, w, *arguments), out)


def prepare_depthwise(
    x: torch.Tensor,
    w: torch.Tensor,
    rounding: Rounding,
    window: Window,
    *,
    zero_point: int = 128,
    out: torch.Tensor | None = None,
) -> Launch:
    """Prepare a depthwise convolution: x (b, h, w, c), w (kernel height, kernel width, c), out (b, oh, ow, c), int8."""
    images, _, _, channels = _check_image("x", x)
    check_tensor("w", w, torch.int8, (*window.kernel, channels))
    device = check_same_device(x=x, w=w, bias=rounding.bias, scale=rounding.scale)
    _check_rounding(rounding, channels)
    out = output_like(out, (images, *window.output, channels), torch.int8, device, x, w)
    m = images * window.output[0] * window.output[1]
    arguments = (x, w, *rounding.arguments(out), *_geometry(x, window, zero_point), m)
    return Launch("conv_int8", "depthwise_int8", _blocks(m * channels // 4), (THREADS, 1, 1), arguments, out)


def prepare_images(x: torch.Tensor, scale: float, zero_point: int, *, out: torch.Tensor | None = None) -> Launch:
    """Prepare the rounding of images (b, c, h, w) float32 to (b, h, w, padded c) int8: x / scale + zero_point - 128."""
    check_tensor("the images", x, torch.float32, (None, None, None, None))
    images, channels, height, width = x.shape
    stored = padded(channels)
    out = output_like(out, (images, height, width, stored), torch.int8, check_same_device(images=x), x)
    count = out.numel() // 4
    arguments = (x, out, float(scale), zero_point, channels, height * width, stored, count)
    return Launch("layers_int8", "quantize_images", _blocks(count), (THREADS, 1, 1), arguments, out)


def prepare_add(a: torch.Tensor, b: torch.Tensor, how: Residual, *, out: torch.Tensor | None = None) -> Launch:
    """Prepare a sum of two tensors of the same shape. how: as for a residual; `ratio` belongs to a."""
    check_tensor("a", a, torch.int8, (None, None, None, None))
    check_tensor("b", b, torch.int8, a.shape)
    out = output_like(out, a.shape, torch.int8, check_same_device(a=a, b=b), a, b)
    count = out.numel() // 4
    numbers = (float(how.ratio), float(how.residual_ratio), float(how.fixed), how.low, how.high)
    return Launch("layers_int8", "add_int8", _blocks(count), (THREADS, 1, 1), (a, b, out, *numbers, count), out)


def prepare_table(x: torch.Tensor, table: torch.Tensor, *, out: torch.Tensor | None = None) -> Launch:
    """Prepare a function of each value. table: (256,) int8, the output for each byte of the input in 0..255."""
    _check_image("x", x)
    check_tensor("table", table, torch.int8, (256,))
    out = output_like(out, x.shape, torch.int8, check_same_device(x=x, table=table), x, table)
    count = out.numel() // 4
    return Launch("layers_int8", "table_int8", _blocks(count), (THREADS, 1, 1), (x, table, out, count), out)


def prepare_max_pool(
    x: torch.Tensor, table: torch.Tensor, window: Window, *, out: torch.Tensor | None = None
) -> Launch:
    """Prepare the largest value of each window, then a `table` as in `prepare_table`. Padding does not count."""
    images, _, _, channels = _check_image("x", x)
    check_tensor("table", table, torch.int8, (256,))
    out = output_like(out, (images, *window.output, channels), torch.int8, check_same_device(x=x, table=table), x)
    count = out.numel() // 4
    arguments: tuple[Argument, ...] = (x, table, out, *_pool(x, window), count)
    return Launch("layers_int8", "max_pool_int8", _blocks(count), (THREADS, 1, 1), arguments, out)


def prepare_average_pool(
    x: torch.Tensor,
    window: Window,
    scale: float,
    input_zero_point: int,
    zero_point: int,
    bounds: Pair = (0, 255),
    *,
    out: torch.Tensor | None = None,
) -> Launch:
    """Prepare the mean of each window. scale: the input's step over the output's times the window's pixels."""
    images, _, _, channels = _check_image("x", x)
    out = output_like(out, (images, *window.output, channels), torch.int8, check_same_device(x=x), x)
    bias = -(input_zero_point - 128) * window.kernel[0] * window.kernel[1]
    count = out.numel() // 4
    numbers = (float(scale), bias, zero_point, *bounds, *_pool(x, window), count)
    arguments: tuple[Argument, ...] = (x, out, *numbers)
    return Launch("layers_int8", "average_pool_int8", _blocks(count), (THREADS, 1, 1), arguments, out)


def prepare_unfold(
    x: torch.Tensor, used: int, window: Window, zero_point: int, *, out: torch.Tensor | None = None
) -> Launch:
    """Prepare a sparse layer's dense operand. out: (kernel height x kernel width x used channels, pixels) float32."""
    images, height, width, channels = _check_image("x", x)
    m, k = images * window.output[0] * window.output[1], window.kernel[0] * window.kernel[1] * used
    out = output_like(out, (k, m), torch.float32, check_same_device(x=x), x)
    shape = (height, width, channels, *window.output, window.kernel[1], *window.stride, *window.first)
    arguments = (x, out, *shape, *window.dilation, zero_point - 128, used, m)
    return Launch("layers_int8", "unfold_fp32", (ceil_div(m, THREADS), k, 1), (THREADS, 1, 1), arguments, out)


def prepare_requantize(sums: torch.Tensor, rounding: Rounding, *, out: torch.Tensor) -> Launch:
    """Prepare the end of a sparse layer. sums: (n, pixels) float32, whole numbers; out: (b, oh, ow, padded n) int8."""
    check_tensor("sums", sums, torch.float32, (None, None))
    n, m = sums.shape
    stored = padded(n)
    check_tensor("out", out, torch.int8, (None, None, None, stored))
    check_same_device(sums=sums, out=out, bias=rounding.bias)
    _check_rounding(rounding, stored)
    grid = (ceil_div(m, 32), ceil_div(stored, 32), 1)
    arguments = (sums, *rounding.arguments(out), m, n, stored)
    return Launch("layers_int8", "requantize_fp32", grid, (THREADS, 1, 1), arguments, out)


def _check_image(name: str, x: torch.Tensor) -> torch.Size:
    check_tensor(name, x, torch.int8, (None, None, None, None))
    if x.shape[3] % CHANNELS:
        raise ValueError(f"{name} has {x.shape[3]} channels, which must be a multiple of {CHANNELS}; add channels")
    return x.shape


def _check_rounding(rounding: Rounding, n: int) -> None:
    check_tensor("bias", rounding.bias, torch.int32, (n,))
    check_tensor("scale", rounding.scale, torch.float32, (n,))


def _geometry(x: torch.Tensor, window: Window, zero_point: int) -> tuple[int, ...]:
    fill = int.from_bytes(bytes([(zero_point - 128) % 256] * 4), "little", signed=True)
    return (*x.shape[1:], *window.output, *window.kernel, *window.stride, *window.first, *window.dilation, fill)


def _pool(x: torch.Tensor, window: Window) -> tuple[int, ...]:
    return (*x.shape[1:], *window.output, *window.kernel, *window.stride, *window.first)


def _blocks(threads: int) -> tuple[int, int, int]:
    return ceil_div(threads, THREADS), 1, 1
