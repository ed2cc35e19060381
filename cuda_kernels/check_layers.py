"""Checks of the layers of integer networks, with the arithmetic written out in numpy: every byte must be equal."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from itertools import product

import numpy as np
import torch

from . import layers
from .cases import Case
from .launch import TILES
from .layers import Residual, Rounding, Window

SHAPES = (((3, 3), (1, 1)), ((2, 3), (2, 2)), ((3, 3), (1, 2)), ((1, 1), (1, 1)), ((3, 3), (2, 1)))  # kernel, stride


def layer_cases(rng: np.random.Generator, device: str) -> Iterator[Case]:
    """Yield a case for every kernel of integer layers, on random bytes and awkward sizes."""
    for tile, (kernel, stride) in zip(TILES, SHAPES, strict=True):
        window = _window(kernel, (7, 9), stride, (1, 1))
        yield from conv_cases(rng, device, (2, 7, 9, 32), 48, window, tile)
    yield from depthwise_cases(rng, device, (2, 7, 9, 32))
    yield from elementwise_cases(rng, device, (2, 5, 3, 16))
    yield from pool_cases(rng, device, (2, 7, 8, 32))
    yield from sparse_layer_cases(rng, device, (2, 7, 9, 16))


def conv_cases(
    rng: np.random.Generator, device: str, shape: tuple[int, ...], outputs: int, window: Window, tile: tuple[int, int]
) -> Iterator[Case]:
    """Yield a convolution's bytes, with and without an addition, whole and with k split, and its floats."""
    x, w = _bytes(rng, *shape), _bytes(rng, outputs, *window.kernel, shape[3])
    zero_point = int(rng.integers(0, 256))
    sums = convolved(x, w, window, zero_point - 128)
    chunks = -(-w[0].size // 64)
    for splits, residual in ((1, 0), (min(3, chunks), 1), (min(2, chunks), 2)):
        rounding, truth = _rounding(rng, sums, device, residual)
        what = f"{x.shape} by {w.shape[:3]}, split in {splits}" + (", and added" if residual else "")
        prepare = partial(layers.prepare_conv, _on(device, x), _on(device, w), rounding, window, zero_point=zero_point)
        prepare = partial(prepare, tile=tile, splits=splits)
        yield Case(f"conv_int8 {tile}", what, prepare, torch.int8, truth, None, 1)
    rounding, real = _floats(rng, sums, device, outputs - 5)
    prepare = partial(layers.prepare_conv, _on(device, x), _on(device, w), rounding, window, zero_point=zero_point)
    prepare = partial(prepare, outputs=outputs - 5, tile=tile)
    yield Case(
        f"conv_int8 {tile}", f"{x.shape} by {w.shape[:3]}, floats", prepare, torch.float32, real, abs(real) + 1, 1
    )


def depthwise_cases(rng: np.random.Generator, device: str, shape: tuple[int, ...]) -> Iterator[Case]:
    """Yield depthwise convolutions of several windows."""
    for kernel, stride, dilation in (((3, 3), (1, 1), (1, 1)), ((3, 2), (2, 1), (1, 1)), ((3, 3), (1, 1), (2, 2))):
        window = _window(kernel, shape[1:3], stride, (1, 1), dilation)
        x, w, zero_point = _bytes(rng, *shape), _bytes(rng, *kernel, shape[3]), int(rng.integers(0, 256))
        sums = np.stack(
            [
                convolved(x[..., c : c + 1], w[None, ..., c : c + 1], window, zero_point - 128)[..., 0]
                for c in range(shape[3])
            ],
            axis=-1,
        )
        for residual in (0, 1):
            rounding, truth = _rounding(rng, sums, device, residual)
            prepare = partial(layers.prepare_depthwise, _on(device, x), _on(device, w), rounding, window)
            what = f"{x.shape} by {kernel}, stride {stride}" + (", and added" if residual else "")
            yield Case("depthwise_int8", what, partial(prepare, zero_point=zero_point), torch.int8, truth, None, 1)


def elementwise_cases(rng: np.random.Generator, device: str, shape: tuple[int, ...]) -> Iterator[Case]:
    """Yield the rounding of images, an addition, and a table."""
    real, scale = rng.standard_normal((2, 3, *shape[1:3]), dtype=np.float32) * 3, np.float32(0.0173)
    truth = np.zeros((2, *shape[1:3], 16), np.int64)
    truth[..., :3] = (np.clip(np.rint(real / scale) + 117, 0, 255) - 128).transpose(0, 2, 3, 1)
    prepare = partial(layers.prepare_images, _on(device, real), float(scale), 117)
    yield Case("quantize_images", f"{real.shape}", prepare, torch.int8, truth, None, 1)
    a, b = _bytes(rng, *shape), _bytes(rng, *shape)
    how = _addition(rng, _on(device, b), first=True)
    truth = added(a.astype(np.float32) + 128, how, b) - 128
    yield Case(
        "add_int8", f"{shape}", partial(layers.prepare_add, _on(device, a), how.tensor, how), torch.int8, truth, None, 1
    )
    table = _bytes(rng, 256)
    truth = table[a.astype(np.int64) + 128].astype(np.int64)
    yield Case(
        "table_int8",
        f"{shape}",
        partial(layers.prepare_table, _on(device, a), _on(device, table)),
        torch.int8,
        truth,
        None,
        1,
    )


def pool_cases(rng: np.random.Generator, device: str, shape: tuple[int, int, int, int]) -> Iterator[Case]:
    """Yield maxima of windows that reach over the edge, and means of small windows and of the whole image."""
    x, table = _bytes(rng, *shape), np.sort(_bytes(rng, 256))
    window = _window((3, 3), shape[1:3], (2, 2), (1, 1))
    padded = np.full((shape[0], shape[1] + 2, shape[2] + 2, shape[3]), -128, np.int8)
    padded[:, 1:-1, 1:-1] = x
    largest = np.max([tap for _, tap in taps(padded, window)], axis=0)
    prepare = partial(layers.prepare_max_pool, _on(device, x), _on(device, table), window)
    yield Case(
        "max_pool_int8",
        f"{shape}",
        prepare,
        torch.int8,
        table[largest.astype(np.int64) + 128].astype(np.int64),
        None,
        1,
    )
    for window in (_window((2, 2), shape[1:3], (2, 2), (0, 0)), Window((shape[1], shape[2]), (1, 1))):
        sums = np.sum([tap.astype(np.int64) + 128 - 90 for _, tap in taps(x, window)], axis=0)
        scale = np.float32(1.37 / np.prod(window.kernel))
        truth = np.clip(np.rint(sums.astype(np.float32) * scale) + 60, 60, 200).astype(np.int64) - 128
        prepare = partial(layers.prepare_average_pool, _on(device, x), window, float(scale), 90, 60, (60, 200))
        yield Case("average_pool_int8", f"{shape} by {window.kernel}", prepare, torch.int8, truth, None, 1)


def sparse_layer_cases(rng: np.random.Generator, device: str, shape: tuple[int, ...]) -> Iterator[Case]:
    """Yield the two ends of a sparse layer: the unfolded image, and the epilogue."""
    x, used, zero_point = _bytes(rng, *shape), 11, 70
    window = _window((3, 2), shape[1:3], (2, 1), (1, 0))
    padded = np.full((shape[0], shape[1] + 2, shape[2], shape[3]), zero_point - 128, np.int64)
    padded[:, 1:-1] = x
    rows = [tap[..., :used].reshape(-1, used).T + 128 - zero_point for _, tap in taps(padded, window)]
    truth = np.concatenate(rows).astype(np.float64)
    prepare = partial(layers.prepare_unfold, _on(device, x), used, window, zero_point)
    yield Case("unfold_fp32", f"{shape} by {window.kernel}", prepare, torch.float32, truth, np.ones_like(truth), 1)
    sums = rng.integers(-(2**20), 2**20, (2, 5, 7, 48))
    sums[..., 37:] = 0
    for residual in (0, 1):
        rounding, truth = _rounding(rng, sums, device, residual)
        columns = np.ascontiguousarray(sums[..., :37].reshape(-1, 37).T.astype(np.float32))
        prepare = partial(layers.prepare_requantize, _on(device, columns), rounding)
        yield Case("requantize_fp32", f"{sums.shape}" + ", and added" * residual, prepare, torch.int8, truth, None, 1)


def convolved(x: np.ndarray, w: np.ndarray, window: Window, outside: int) -> np.ndarray:
    """Return the exact sums (b, oh, ow, n) of x (b, h, w, c) and w (n, kernel height, kernel width, c)."""
    top, left = window.first
    reach = 8  # more than any window reaches over the edge
    whole = np.full((x.shape[0], x.shape[1] + top + reach, x.shape[2] + left + reach, x.shape[3]), outside, np.int64)
    whole[:, top : top + x.shape[1], left : left + x.shape[2]] = x
    return np.sum([tap @ w[:, i, j].astype(np.int64).T for (i, j), tap in taps(whole, window)], axis=0)


def taps(padded: np.ndarray, window: Window) -> Iterator[tuple[tuple[int, int], np.ndarray]]:
    """Yield every place of a window's kernel, and the pixels (b, oh, ow, c) that it meets in a padded image."""
    (rows, columns), (down, right), (far, wide) = window.output, window.stride, window.dilation
    for i, j in product(range(window.kernel[0]), range(window.kernel[1])):
        y, x = i * far, j * wide
        yield (i, j), padded[:, y : y + down * (rows - 1) + 1 : down, x : x + right * (columns - 1) + 1 : right]


def added(levels: np.ndarray, how: Residual, residual: np.ndarray) -> np.ndarray:
    """Return the levels 0..255 of a sum, as two fused multiply-adds: each is rounded once, to float32."""
    terms = (levels, how.ratio), (residual.astype(np.float32) + 128, how.residual_ratio)
    (x, a), (y, b) = terms if how.first else terms[::-1]
    inner = (y.astype(np.float64) * b + how.fixed).astype(np.float32)
    whole = (x.astype(np.float64) * a + inner.astype(np.float64)).astype(np.float32)
    return np.clip(np.rint(whole), how.low, how.high).astype(np.int64)


def _rounding(rng: np.random.Generator, sums: np.ndarray, device: str, residual: int) -> tuple[Rounding, np.ndarray]:
    """Return an epilogue that fits the sums, and the bytes it makes of them. residual: 0 none, 1 first, 2 second."""
    n, spread = sums.shape[-1], max(float(sums.std()), 1.0)
    bias = rng.integers(-int(spread), int(spread) + 1, (n,), dtype=np.int32)
    scale = (rng.uniform(20, 90, (n,)) / spread).astype(np.float32)
    zero_point, low = int(rng.integers(60, 200)), int(rng.integers(0, 60))
    real = np.float32(sums + bias) * scale
    levels = np.clip(np.rint(real) + np.float32(zero_point), low, 255)
    how = None
    if residual:
        other = _bytes(rng, *sums.shape)
        how = _addition(rng, _on(device, other), first=residual == 1)
        levels = added(levels, how, other)
    rounding = Rounding(_on(device, bias), _on(device, scale), zero_point, low, 255, how)
    return rounding, levels.astype(np.int64) - 128


def _floats(rng: np.random.Generator, sums: np.ndarray, device: str, used: int) -> tuple[Rounding, np.ndarray]:
    bias = rng.integers(-1000, 1000, sums.shape[-1:], dtype=np.int32)
    scale = rng.uniform(0.001, 0.01, sums.shape[-1:]).astype(np.float32)
    real: np.ndarray = np.float32(sums + bias) * scale
    return Rounding(_on(device, bias), _on(device, scale), floats=True), real[..., :used].astype(np.float64)


def _addition(rng: np.random.Generator, tensor: torch.Tensor, first: bool) -> Residual:
    a, b, fixed = (np.float32(rng.uniform(low, high)) for low, high in ((0.3, 1), (0.3, 1), (-100, 50)))
    return Residual(tensor, float(a), float(b), float(fixed), int(rng.integers(0, 60)), 240, first)


def _window(
    kernel: tuple[int, int], image: tuple[int, ...], stride: tuple[int, int], first: tuple[int, int],
    dilation: tuple[int, int] = (1, 1),
) -> Window:  # fmt: skip
    """Return a window with the same padding on both sides."""
    rows, columns = ((image[i] + 2 * first[i] - dilation[i] * (kernel[i] - 1) - 1) // stride[i] + 1 for i in range(2))
    return Window(kernel, (rows, columns), stride, first, dilation)


def _bytes(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-128, 128, shape, dtype=np.int8)


def _on(device: str, array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)
