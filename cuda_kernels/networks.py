"""A whole integer network on our own kernels: on a GPU as one CUDA graph, on a CPU through the emulator."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd
import torch
from torch import nn

from . import gpu, records
from .compiling import Buffers, Program, compile_network
from .launch import Launch
from .work import Sizes

KEPT = 4  # batch sizes whose buffers and graphs are kept


@dataclass(frozen=True)
class Plan:
    """The launches of a network for one batch size, and on a GPU the graph that holds them all."""

    buffers: Buffers
    launches: list[Launch]
    graph: torch.cuda.CUDAGraph | None

    def run(self, images: torch.Tensor) -> None:
        self.buffers["images"].copy_(images)
        if self.graph is not None:
            self.graph.replay()
        else:
            for launch in self.launches:
                launch.run()


class Network:
    """An integer network that maps images (b, c, h, w), float32 and normalized, to logits (b, classes).

    Make it with `network`. Each batch size is prepared once: buffers, launches, and on a GPU their CUDA graph.
    """

    def __init__(self, program: Program, device: torch.device, sparse_below: float):
        self.program, self.device, self.sparse_below = program, device, sparse_below
        self._plans: dict[int, Plan] = {}

    def __call__(self, images: torch.Tensor) -> torch.Tensor:
        """Return the logits (b, classes) as a new tensor on the same device."""
        plan = self.plan(self._checked(images))
        plan.run(images)
        return plan.buffers["logits"].flatten(1).clone()

    def integers(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return what every layer writes, by quantizer, as the deployed model's bytes: (b, c, h, w) uint8."""
        plan = self.plan(self._checked(images))
        plan.run(images)
        made = {layer.output: layer.result for layer in self.program.layers if layer.result}
        return {
            name: (plan.buffers[name][..., : result.shape[0]].permute(0, 3, 1, 2).to(torch.int16) + 128).to(torch.uint8)
            for name, result in made.items()
        }

    def plan(self, batch: int) -> Plan:
        """Return the prepared launches for a batch size."""
        if batch not in self._plans:
            while len(self._plans) >= KEPT:
                del self._plans[next(iter(self._plans))]
            buffers = self.program.buffers(batch, self.device)
            launches = self.program.launches(buffers)
            self._plans[batch] = Plan(buffers, launches, _graph(launches) if self.device.type == "cuda" else None)
        return self._plans[batch]

    def table(self) -> pd.DataFrame:
        """Return one row per layer for one image: kernel, sizes, MACs, density, and the least bytes that it moves."""
        sizes = {layer.output: layer.result.shape for layer in self.program.layers if layer.result}
        sizes |= {"images": self.program.shape}
        values = {name: c * h * w * (4 if name == "images" else 1) for name, (c, h, w) in sizes.items()}
        values["logits"] = 4 * self.program.classes
        rows = []
        for layer in self.program.layers:
            m, n, k = layer.product
            moved = sum(values[name] for name in (*layer.inputs, layer.output))
            fused = "" if layer.addition is None else layer.addition[0]
            rows.append((layer.name, layer.kind, fused, m, n, k, layer.macs, layer.density, layer.weight_bytes, moved))
        columns = ["layer", "kernel", "adds", "m", "n", "k", "macs", "density", "weight_bytes", "activation_bytes"]
        return pd.DataFrame(rows, columns=columns)

    def _checked(self, images: torch.Tensor) -> int:
        if not isinstance(images, torch.Tensor) or images.dtype != torch.float32:
            kind = images.dtype if isinstance(images, torch.Tensor) else type(images).__name__
            raise TypeError(f"the images must be a float32 tensor, normalized, but are {kind}")
        if images.ndim != 4 or tuple(images.shape[1:]) != self.program.shape or not len(images):
            wanted = ", ".join(map(str, self.program.shape))
            raise ValueError(
                f"the network takes images (b, {wanted}), not {tuple(images.shape)}; resize or unpack them"
            )
        if images.device.type != self.device.type:
            raise ValueError(
                f"the images are on {images.device.type} and the network is on {self.device.type}: "
                f"pass images.to({self.device.type!r})"
            )
        return len(images)


def network(
    model: nn.Module, device: str | None = None, sparse_below: float | None = None, fuse: bool = True
) -> Network:
    """Put an integer network, such as `storage.load_archive` returns, on our kernels.

    device: "cuda" (the default), or "cpu" for the emulator, which is slow. sparse_below: layers with a smaller share of
    non-zero weights go to `spmm_csr`; by default where that was measured to be faster than a dense INT8 product (see
    `measured_crossover`). fuse=False gives additions launches of their own, so that `integers` shows every layer.

    Raises:
        ModelError: the network is in floats, an ensemble, or has an operator without a kernel, which is named.
        RuntimeError: there is no GPU that kernels can run on.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"a network is needed, such as storage.load_archive returns, not a {type(model).__name__}")
    if device not in (None, "cuda", "cpu"):
        raise ValueError(f'device is {device!r}, but must be "cuda", or "cpu" for the emulator')
    where = torch.device(device or "cuda")
    if where.type == "cuda":
        gpu.require()
    below = measured_crossover() if sparse_below is None else sparse_below
    return Network(compile_network(model, where, below, fuse), where, below)


def least_times(table: pd.DataFrame, batch: int, gbytes_per_s: float, gops_per_s: float) -> pd.DataFrame:
    """Return the operations and least bytes of each layer for a batch, and the least time in ms that they take.

    table: from `Network.table`. The time is the longer one of that of the bytes (weights once, activations of every
    image), if all of them pass through the GPU's memory, and that of the operations, at the GPU's measured rates.
    """
    found = table[["layer", "kernel"]].copy()
    found["operations"] = 2 * batch * table["macs"]
    found["bytes"] = table["weight_bytes"] + batch * table["activation_bytes"]
    by_bytes, by_operations = found["bytes"] / gbytes_per_s / 1e6, found["operations"] / gops_per_s / 1e6
    found["least_ms"] = by_bytes.where(by_bytes > by_operations, by_operations)
    return found


def measured_crossover() -> float:
    """Return the density below which a sparse product was measured to be faster than any dense INT8 one; 0 if unknown.

    From the newest GPU's records of the square product: `spmm_row_split` against the fastest INT8 product, ours or the
    library's. A sparse layer's unfolding and epilogue are not in it.
    """
    edge = Sizes().square_spmm
    stored = records.load(files=f"*{edge}x{edge}x{edge}*.json")
    if stored.empty:
        return 0.0
    here = stored[stored["device"] == stored.sort_values("time")["device"].iloc[-1]]
    sparse, dense = here[here["kernel"] == "spmm_row_split"], here[here["family"] == "gemm_int8"]
    if sparse.empty or dense.empty:
        return 0.0
    return records.crossover(sparse, dense["time_ms"].min()) or 0.0


def _graph(launches: list[Launch]) -> torch.cuda.CUDAGraph:
    """Return all launches as one CUDA graph. They run once before, so that kernels are compiled outside of it."""
    stream = gpu.torch_stream()
    stream.wait_stream(torch.cuda.current_stream())
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream):
        for launch in launches:
            launch.run()
    with torch.cuda.graph(graph, stream=stream):
        for launch in launches:
            launch.run()
    torch.cuda.current_stream().wait_stream(stream)
    return graph
