"""Latency of whole networks on a GPU: our kernels, PyTorch eager and compiled, and cuBLASLt's products, in one run.

Our networks and the products are replayed as CUDA graphs, so that gaps between launches are not in their times. Eager
and compiled PyTorch are queued as they are used. A batch goes through the same buffers each time: weights that fit the
L2 cache stay there, as they do in serving.
"""

from __future__ import annotations

import functools
import math
import warnings
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import nn

from models import build
from models.quantized import Quantizer, insert_quantizers, round_biases

from . import gpu, measure, records
from .compiling import Layer
from .networks import Network, network
from .reference import deployed_integers

NETWORKS = ("resnet18", "resnet20", "tiny_mixer")
BATCHES = (1, 64)
SHAPE, CLASSES = (3, 32, 32), 10
STEP = 8  # cuBLASLt takes multiples of this, and more than LEAST_ROWS rows
LEAST_ROWS = 16


def measure_networks(
    names: tuple[str, ...] = NETWORKS, batches: tuple[int, ...] = BATCHES, folder: Path | None = None
) -> pd.DataFrame:
    """Measure every network and batch size on this machine's GPU, write one record each, and return them.

    RuntimeError without a GPU, or if a network's integers are not the reference's: a wrong one is not timed.
    """
    gpu.require()
    torch.set_float32_matmul_precision("highest")
    shared = {**measure.device_facts(), **measure.ceilings()}
    done = []
    for name in names:
        model, integer = integer_network(name)
        net = network(integer, sparse_below=0.0)
        check_integers(net, integer)
        for batch in batches:
            for record in [*of_network(name, net, batch), *of_layers(name, net, batch), *of_peers(name, model, batch)]:
                done.append(measure.finish(record, shared, folder))
    return pd.DataFrame(done)


def integer_network(name: str, seed: int = 0) -> tuple[nn.Module, nn.Module]:
    """Return a float network with random weights, and its integer form with ranges from random images.

    The time of a dense product does not depend on the values, and no archive of a dense ResNet-18 is at hand.
    """
    torch.manual_seed(seed)
    model = build(name, shape=SHAPE, classes=CLASSES).eval()
    integer = insert_quantizers(model)
    quantizers = [module for module in integer.modules() if isinstance(module, Quantizer)]
    for quantizer in quantizers:
        quantizer.register_forward_pre_hook(_set_range)
    with torch.no_grad():
        integer(torch.randn(8, *SHAPE))
    for quantizer in quantizers:
        quantizer._forward_pre_hooks.clear()
    round_biases(integer)
    return model, integer


def _set_range(quantizer: nn.Module, inputs: tuple[torch.Tensor]) -> None:
    low, high = (float(bound) for bound in inputs[0].aminmax())
    scale = (max(high, 0.0) - min(low, 0.0)) / 255 or 1.0
    quantizer.get_buffer("scale").fill_(scale)
    quantizer.get_buffer("zero_point").fill_(min(max(round(-min(low, 0.0) / scale), 0), 255))


def check_integers(net: Network, integer: nn.Module) -> None:
    """Raise RuntimeError unless every byte that a network's layers write is the deployed model's."""
    images = torch.randn(3, *SHAPE)
    _, expected = deployed_integers(integer, images)
    for name, levels in net.integers(images.to(net.device)).items():
        wrong = int((levels.cpu().flatten(1).numpy() != expected[name].reshape(len(images), -1)).sum())
        if wrong:
            raise RuntimeError(f"{wrong} of {levels.numel()} integers after {name} are wrong: not timed")


def of_network(name: str, net: Network, batch: int) -> Iterator[dict]:
    """Yield the record of a whole network, and of cuBLASLt's products of the same sizes, one after the other."""
    table = net.table()
    moved = int(table["weight_bytes"].sum() + batch * table["activation_bytes"].sum())
    facts = _facts("network_int8", f"{name} INT8, batch {batch}", batch, moved, int(table["macs"].sum()))
    plan = net.plan(batch)
    plan.buffers["images"].normal_()
    yield facts | _timed("ours", f"{name} on our kernels", [functools.partial(_all, plan.launches)])
    products = [product for layer in net.program.layers if (product := library_product(layer, batch, net.device))]
    yield facts | _timed("cuBLASLt", f"{name}: {len(products)} products", [functools.partial(_calls, products)])


def of_layers(name: str, net: Network, batch: int) -> Iterator[dict]:
    """Yield a record of each layer with weights, with its epilogue, and of cuBLASLt's bare product of its size."""
    plan, seen = net.plan(batch), set()
    for layer in net.program.layers:
        key = (layer.kind, layer.product, layer.addition is None)
        if not layer.macs or key in seen:
            continue
        seen.add(key)
        m, n, k = layer.product
        moved = layer.weight_bytes + batch * (m * n + m * k)
        facts = _facts("layer_int8", f"{name} {layer.name}, batch {batch}", batch * m, moved, m * n * k)
        facts |= {"n": n, "k": k, "operations": 2 * batch * m * n * k}
        launches = layer.prepare(layer, plan.buffers)
        yield facts | _timed("ours", f"{name} {layer.name}: {launches[0].kernel}", [functools.partial(_all, launches)])
        if product := library_product(layer, batch, net.device):
            yield facts | _timed("cuBLASLt", f"{name} {layer.name}: torch._int_mm", [product])


def of_peers(name: str, model: nn.Module, batch: int) -> Iterator[dict]:
    """Yield records of the float network in PyTorch: eager and compiled, in FP32 and FP16, channels last."""
    for kind, dtype in (("fp32", torch.float32), ("fp16", torch.float16)):
        floats = model.to("cuda", dtype).to(memory_format=torch.channels_last)
        images = torch.randn(batch, *SHAPE, device="cuda", dtype=dtype).to(memory_format=torch.channels_last)
        facts = _facts(f"network_{kind}", f"{name} {kind.upper()}, batch {batch}", batch, 0, 0)
        for how, call in (("eager", floats), ("compiled", torch.compile(floats, mode="max-autotune"))):
            try:
                yield facts | _queued("PyTorch", f"{name} {how} {kind}", functools.partial(_inference, call, images))
            except Exception as error:  # a compiler that is missing raises its own exceptions
                warnings.warn(f"{name} {how} {kind} is left out ({str(error).splitlines()[0]})"[:200], stacklevel=2)
    model.to("cpu", torch.float32)


def library_product(layer: Layer, batch: int, device: torch.device) -> Callable[[], torch.Tensor] | None:
    """Return cuBLASLt's INT8 product of a layer's size, filled up to sizes that it takes; None if it is no product."""
    m, n, k = layer.product
    if not layer.macs or layer.kind == "depthwise_int8":
        return None
    rows, inputs, outputs = (math.ceil(size / STEP) * STEP for size in (batch * m, k, n))
    x = torch.randint(-128, 128, (max(rows, LEAST_ROWS + STEP), inputs), dtype=torch.int8, device=device)
    w = torch.randint(-128, 128, (outputs, inputs), dtype=torch.int8, device=device)
    return functools.partial(torch._int_mm, x, w.T)


def _facts(family: str, case: str, batch: int, moved: int, macs: int) -> dict:
    sizes = {"m": batch, "n": CLASSES, "k": int(np.prod(SHAPE)), "density": 1.0}
    return {"family": family, "case": case, **sizes, "bytes": moved, "operations": 2 * batch * macs}


def _timed(maker: str, kernel: str, runs: list[Callable[[], object]]) -> dict:
    samples, method = measure.time_runs(runs)
    return {"maker": maker, "kernel": kernel, "timing": method, "buffers": 1, **records.summarize(samples)}


def _queued(maker: str, kernel: str, run: Callable[[], object]) -> dict:
    samples = measure.time_queued(run)
    return {"maker": maker, "kernel": kernel, "timing": "queued", "buffers": 1, **records.summarize(samples)}


def _all(launches: list) -> None:
    for launch in launches:
        launch.run()


def _calls(runs: Sequence[Callable[[], object]]) -> None:
    for run in runs:
        run()


@torch.inference_mode()
def _inference(call: Callable[[torch.Tensor], torch.Tensor], images: torch.Tensor) -> torch.Tensor:
    return call(images)
