"""Times of sparse matrix products on the CPU: each layer's product with unfolded images, dense and as CSR."""

import contextlib
import time
from collections.abc import Callable, Iterable, Sequence
from statistics import median

import numpy as np
import pandas as pd
import scipy.sparse
import torch
from threadpoolctl import threadpool_limits
from torch import nn

from experiment import kept_table, make
from models import spec_of
from pruning.graph import layers_of
from recipe import Recipe

TIMED_RUNS = 15  # per product; the median is reported


def timed_products(base: Recipe, densities: Sequence[float], batch: int = 16) -> pd.DataFrame:
    """Time each layer as a product of weights and unfolded images, dense and as CSR at each density, on one thread.

    The non-zeros are random. Columns: layer, rows, inner, columns (of the product), density, dense_ms, csr_ms. Of
    layers with equal shapes only the first is timed.
    """

    def rows() -> list[dict]:
        shapes = _product_shapes(make(base), batch)
        return [row for layer, shape in shapes.items() for row in _times(layer, *shape, densities)]

    arguments = {"base": base.id, "batch": batch, "densities": list(densities)}
    return kept_table("csr", base.dataset, rows, arguments, timed=True)


def crossovers(products: pd.DataFrame) -> pd.DataFrame:
    """Return the density, interpolated, below which each layer's CSR product is faster than the dense one."""
    found = []
    for layer, group in products.groupby("layer", sort=False):
        group = group.sort_values("density")
        ratios, logs = np.log(group["csr_ms"] / group["dense_ms"]).to_numpy(), np.log(group["density"]).to_numpy()
        slower = np.flatnonzero(ratios > 0)
        if len(slower) == 0:
            at = float(group["density"].max())
        elif slower[0] == 0:
            at = 0.0
        else:
            at = float(np.exp(np.interp(0, ratios[slower[0] - 1 : slower[0] + 1], logs[slower[0] - 1 : slower[0] + 1])))
        found.append({"layer": layer, "CSR overtakes below a density of": at})
    return pd.DataFrame(found)


def median_seconds(call: Callable, runs: int) -> float:
    """Return the median time of `runs` calls, after an untimed one."""
    call()
    times = []
    for _ in range(runs):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return median(times)


def _product_shapes(model: nn.Module, batch: int) -> dict[str, tuple[int, int, int]]:
    """Return rows, inner size and columns of each layer's product: the first of each shape, without grouped layers."""
    found: dict[str, tuple[int, int, int]] = {}

    def note(name: str) -> Callable:
        def hook(layer: nn.Conv2d | nn.Linear, _: tuple, output: torch.Tensor) -> None:
            weight = layer.weight.flatten(1)
            shape = (*weight.shape, batch * output[0, 0].numel())
            if getattr(layer, "groups", 1) == 1 and shape not in found.values():
                found[name] = shape

        return hook

    with contextlib.ExitStack() as hooks, torch.no_grad():
        for name, layer in layers_of(model).items():
            hooks.enter_context(layer.module.register_forward_hook(note(name)))
        model.eval()(torch.zeros(1, *spec_of(model)["shape"]))
    return found


def _times(layer: str, rows: int, inner: int, columns: int, densities: Sequence[float]) -> Iterable[dict]:
    generator = np.random.default_rng(0)
    weight = generator.standard_normal((rows, inner), dtype=np.float32)
    images = generator.standard_normal((inner, columns), dtype=np.float32)
    with threadpool_limits(1):
        dense = median_seconds(lambda: weight @ images, TIMED_RUNS)
        for density in densities:
            sparse = scipy.sparse.csr_array(np.where(generator.random(weight.shape) < density, weight, 0))
            yield {
                "layer": layer,
                "rows": rows,
                "inner": inner,
                "columns": columns,
                "density": density,
                "dense_ms": 1e3 * dense,
                "csr_ms": 1e3 * median_seconds(lambda sparse=sparse: sparse @ images, TIMED_RUNS),
            }
