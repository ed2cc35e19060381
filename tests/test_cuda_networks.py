"""Whole integer networks on our kernels: the deployed model's bytes after every layer, or one sentence why not."""

from __future__ import annotations

import re
import shutil
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import onnx
import onnxruntime
import pandas as pd
import pytest
import torch
from torch import fx, nn
from torch.nn import functional

from cuda_kernels import __main__ as command
from cuda_kernels import emulator, gpu, launch, measure, measure_networks, networks, records, resources
from cuda_kernels.launch import RUNNERS, TILES, choose_tiles, kernel_names, sources
from cuda_kernels.networks import Network, network
from cuda_kernels.reference import deployed_integers
from experiment.records import ROOT
from models import ModelError, build, combine
from models.quantized import Quantizer, insert_quantizers, round_biases
from models.spec import set_spec
from storage import export_onnx, load_archive, pixel_scale, runtime_options, save_archive

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++, and there is none")
needs_nvcc = pytest.mark.skipif(resources.nvcc() is None, reason="nvcc is not installed")
DIGITS = (1, 8, 8)


def integer(model: nn.Module, shape: tuple[int, int, int], seed: int) -> fx.GraphModule:
    """The integer form of a network, its ranges from noise, and its biases rounded."""
    torch.manual_seed(seed)
    if not hasattr(model, "spec"):
        set_spec(model, {"architecture": "own", "shape": list(shape), "classes": 10})
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            nn.init.normal_(module.bias, std=0.3)  # zero points that are not 0 or 128, and biases
    quantized = insert_quantizers(model.eval())
    hooks = [
        module.register_forward_pre_hook(measure_networks._set_range)
        for module in quantized.modules()
        if isinstance(module, Quantizer)
    ]
    with torch.no_grad():
        quantized(torch.randn(16, *shape))
    for hook in hooks:
        hook.remove()
    round_biases(quantized)
    return quantized


def compare(net: Network, model: nn.Module, images: torch.Tensor) -> int:
    """Compare every byte that the layers write, and the logits; return the number of layers."""
    logits, expected = deployed_integers(model, images)
    written = net.integers(images)
    for name, levels in written.items():
        np.testing.assert_array_equal(levels.flatten(1).numpy(), expected[name].reshape(len(images), -1), err_msg=name)
    np.testing.assert_array_equal(net.plan(len(images)).buffers["logits"].flatten(1).numpy(), logits)
    return len(written)


@needs_compiler
@pytest.mark.parametrize(("name", "width"), [("resnet8", 0.5), ("tiny_mixer", 0.3)])
def test_a_narrow_network_layer_by_layer(name: str, width: float, seed: int) -> None:
    """With additions as launches of their own every layer is compared; fused, what is still written."""
    model = integer(build(name, shape=DIGITS, classes=10, width=width), DIGITS, seed)
    images = torch.randn(3, *DIGITS)
    quantizers = sum(isinstance(module, Quantizer) for module in model.modules())
    assert compare(network(model, "cpu", fuse=False), model, images) == quantizers
    fused = network(model, "cpu")
    assert compare(fused, model, images) < quantizers
    assert "add_int8" not in set(fused.table().kernel)


@needs_compiler
def test_the_order_of_threads_does_not_matter(seed: int, monkeypatch) -> None:
    monkeypatch.setitem(RUNNERS, "cpu", lambda work: emulator.launch(work, reverse=True))
    model = integer(build("tiny_mixer", shape=DIGITS, classes=10, width=0.3), DIGITS, seed)
    compare(network(model, "cpu"), model, torch.randn(2, *DIGITS))


@needs_compiler
def test_sparse_layers_are_exact(seed: int) -> None:
    model = integer(build("resnet8", shape=DIGITS, classes=10, width=0.3), DIGITS, seed)
    net = network(model, "cpu", sparse_below=1.1)
    compare(net, model, torch.randn(2, *DIGITS))
    assert (net.table().kernel == "spmm_csr").sum() == 9  # all but the linear layer, whose logits stay in floats


class Everything(nn.Module):
    """Every kind of operator that has a kernel, in awkward sizes."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding="same", dilation=2)
        self.grouped = nn.Conv2d(12, 20, (3, 2), stride=(2, 1), padding=(1, 0), groups=4)
        self.around = nn.Conv2d(20, 20, 5, padding=2, groups=20)
        self.wide = nn.Conv2d(20, 40, 1, bias=False)
        self.relu6, self.leaky = nn.ReLU6(), nn.LeakyReLU(0.1)
        self.pool = nn.MaxPool2d(3, stride=2, padding=1)
        self.hidden, self.last = nn.Linear(40 * 2 * 1, 33), nn.Linear(33, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.relu6(self.stem(x))
        x = self.leaky(self.grouped(x))
        x = torch.sigmoid(self.around(x)) + x
        x = functional.max_pool2d(self.wide(self.pool(x + x)), 2)
        x = functional.adaptive_avg_pool2d(x, (2, 1))
        return self.last(functional.relu(self.hidden(functional.dropout(x, 0.1, False).flatten(1))))


class Pooled(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.pool, self.last = nn.Conv2d(3, 8, 3), nn.AvgPool2d(2), nn.Linear(8, 10)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.last(self.pool(functional.relu(self.layer(x))).mean((2, 3)))


@needs_compiler
def test_every_kind_of_operator(seed: int) -> None:
    for own, shape in ((Everything(), (3, 13, 11)), (Pooled(), (3, 10, 8))):
        model = integer(own, shape, seed)
        images = torch.randn(2, *shape)
        for fuse in (False, True):
            compare(network(model, "cpu", fuse=fuse), model, images)


@needs_compiler
def test_batches_of_any_size_and_logits_of_their_own(seed: int) -> None:
    model = integer(build("resnet8", shape=DIGITS, classes=10, width=0.2), DIGITS, seed)
    net, images = network(model, "cpu"), torch.randn(6, *DIGITS)
    whole = net(images)
    parts = [net(images[start:stop]) for start, stop in ((0, 1), (1, 3), (3, 6))]
    assert torch.equal(torch.cat(parts), whole)
    assert len(net._plans) == 4 == networks.KEPT
    net(images[:5])
    assert len(net._plans) == 4


# --- The arithmetic is that of the deployed file, and the archive's networks run -------------------------------------


def runtime_integers(model: nn.Module, images: torch.Tensor, folder: Path) -> tuple[np.ndarray, list[np.ndarray]]:
    """The logits of the exported file and the bytes after each of its QuantizeLinear, in order, by ONNX Runtime."""
    export_onnx(model, folder / "model.onnx", images=images)
    file = onnx.load(folder / "model.onnx")
    names = [node.output[0] for node in file.graph.node if node.op_type == "QuantizeLinear"]
    file.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.UINT8, None) for name in names)
    session = onnxruntime.InferenceSession(file.SerializeToString(), runtime_options(1), ["CPUExecutionProvider"])
    logits, *levels = session.run(None, {"images": images.numpy()})
    return logits, levels


@pytest.mark.slow
@pytest.mark.parametrize("record", ["b743608d34f3", "e4236ec8c4ca", "82a399179d69"])  # resnet20, tiny_mixer, a student
def test_the_reference_is_the_deployed_runtime(record: str, tmp_path) -> None:
    """Byte for byte after every layer; another processor's kernels may round one in ten thousand the other way."""
    model = load_archive(ROOT / "results" / "cifar10" / "models" / f"{record}.nna")
    scale = pixel_scale(model.spec | {"pixels": model.spec.get("pixels") or {"mean": [0.49] * 3, "std": [0.25] * 3}})
    pixels = torch.nn.functional.interpolate(torch.rand(3, 3, 8, 8), (32, 32), mode="bilinear")
    images = (pixels - torch.tensor(scale["mean"])[:, None, None]) / torch.tensor(scale["std"])[:, None, None]
    logits, levels = runtime_integers(model, images, tmp_path)
    expected, seen = deployed_integers(model, images)
    assert len(levels) == len(seen)
    different = sum(int((theirs != ours).sum()) for theirs, ours in zip(levels, seen.values(), strict=True))
    assert different <= 1e-4 * sum(ours.size for ours in seen.values())
    np.testing.assert_allclose(expected, logits, atol=0.02)


@needs_compiler
@pytest.mark.slow
@pytest.mark.parametrize("record", ["b743608d34f3", "e4236ec8c4ca", "82a399179d69", "ecd8b5f71118"])
def test_an_archive_runs_layer_by_layer(record: str) -> None:
    model = load_archive(ROOT / "results" / "cifar10" / "models" / f"{record}.nna")
    net = network(model, "cpu")
    compare(net, model, torch.randn(1, 3, 32, 32))
    assert ("spmm_csr" in set(net.table().kernel)) == (record == "ecd8b5f71118")  # ResNet-18, pruned by 97 %


@needs_compiler
def test_the_command_runs_an_archive(tmp_path, seed: int, monkeypatch, capsys) -> None:
    monkeypatch.setattr(gpu, "available", lambda: "there is none")
    file = tmp_path / "model.nna"
    save_archive(integer(build("resnet8", shape=DIGITS, classes=10, width=0.2), DIGITS, seed), file)
    monkeypatch.setattr(sys, "argv", ["cuda_kernels", "run", str(file), "--dataset", "digits", "--images", "3"])
    assert command.main() == 0
    said = capsys.readouterr().out
    assert "In the emulator, for correctness only, since there is none: 3 of" in said
    equal, total = re.findall(r"([\d,]+) of ([\d,]+) integers after", said)[0]
    assert equal == total
    assert re.search(r"Layers: .*conv_int8.*\. Sparse, below \d", said)


# --- Bad input: one sentence -----------------------------------------------------------------------------------------


def own(forward, **layers: nn.Module) -> nn.Module:
    class Own(nn.Module):
        def __init__(self):
            super().__init__()
            for name, layer in layers.items():
                self.add_module(name, layer)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return forward(self, x)

    return integer(Own(), (3, 8, 8), 0)


def convolution(inputs: int = 3) -> nn.Conv2d:
    return nn.Conv2d(inputs, 8, 3)


def linear() -> nn.Linear:
    return nn.Linear(8, 10)


def tail(x: torch.Tensor) -> torch.Tensor:
    return x.mean((2, 3))


UNSUITABLE = {
    "a float model": (lambda: build("resnet8", shape=DIGITS, classes=10), "the network is in floats"),
    "an ensemble": (
        lambda: combine([integer(build("resnet8", shape=DIGITS, classes=10), DIGITS, seed) for seed in (0, 1)]),
        "an ensemble's mean of probabilities has no kernel",
    ),
    "concatenation": (
        lambda: own(lambda m, x: m.last(tail(torch.cat([m.a(x), m.a(x)], 1))), a=convolution(), last=nn.Linear(16, 10)),
        r"cat has no kernel: it is a concatenation",
    ),
    "gate": (
        lambda: own(lambda m, x: m.last(tail(m.a(x) * m.b(x))), a=convolution(), b=convolution(), last=linear()),
        "mul has no kernel: it is a gate",
    ),
    "layer norm": (
        lambda: own(lambda m, x: m.last(m.norm(tail(m.a(x)))), a=convolution(), norm=nn.LayerNorm(8), last=linear()),
        "norm has no kernel: it is a layer norm",
    ),
    "logits of a pool": (lambda: own(lambda m, x: tail(m.a(x)), a=convolution()), "only a linear layer"),
    "windows over the edge": (
        lambda: own(lambda m, x: m.last(tail(m.pool(m.a(x)))), a=convolution(), pool=nn.AvgPool2d(3, 2, 1),
                    last=nn.Linear(8, 10)),
        "pool has no kernel: it averages windows that reach over the edge",
    ),
    "a slope for each channel": (
        lambda: own(lambda m, x: m.last(tail(m.act(m.a(x)))), a=convolution(), act=nn.PReLU(8), last=nn.Linear(8, 10)),
        "act has no kernel: it has a slope for each channel",
    ),
    "addition of one pixel": (
        lambda: own(lambda m, x: m.last(tail(m.a(x) + m.a(x).mean((2, 3), keepdim=True))), a=convolution(),
                    last=nn.Linear(8, 10)),
        "add has no kernel: it adds tensors of different shapes",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", UNSUITABLE)
def test_a_network_without_kernels_is_refused(name: str) -> None:
    make, message = UNSUITABLE[name]
    with pytest.raises(ModelError, match=message) as caught:
        network(make(), "cpu")
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def small() -> Network:
    return network(integer(build("resnet8", shape=DIGITS, classes=10, width=0.2), DIGITS, 0), "cpu")


@pytest.mark.parametrize(
    ("images", "error", "message"),
    [
        (torch.zeros(1, 1, 9, 8), ValueError, r"takes images \(b, 1, 8, 8\), not \(1, 1, 9, 8\)"),
        (torch.zeros(1, 8, 8), ValueError, r"not \(1, 8, 8\)"),
        (torch.zeros(0, 1, 8, 8), ValueError, r"not \(0, 1, 8, 8\)"),
        (torch.zeros(1, 1, 8, 8, dtype=torch.uint8), TypeError, "float32 tensor, normalized, but are torch.uint8"),
        (np.zeros((1, 1, 8, 8)), TypeError, "but are ndarray"),
        (torch.zeros(1, 1, 8, 8, device="meta"), ValueError, "the images are on meta and the network is on cpu"),
    ],
)
def test_bad_images_are_refused(images, error: type, message: str, small: Network, monkeypatch) -> None:
    monkeypatch.setattr(launch.Launch, "run", lambda self: pytest.fail("launched on bad input"))
    with pytest.raises(error, match=message) as caught:
        small(images)
    assert "\n" not in str(caught.value)


def test_images_on_the_cpu_are_refused_by_a_network_on_a_gpu(small: Network) -> None:
    on_gpu = Network(small.program, torch.device("cuda"), 0.0)
    with pytest.raises(ValueError, match=r"the images are on cpu and the network is on cuda: pass images.to\('cuda'\)"):
        on_gpu(torch.zeros(1, *DIGITS))


def test_a_path_or_another_device_is_refused(small: Network) -> None:
    with pytest.raises(TypeError, match="such as storage.load_archive returns, not a str"):
        network("model.nna", "cpu")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="device is 'mps', but must be"):
        network(nn.Linear(1, 1), "mps")


def test_no_gpu_is_said(monkeypatch) -> None:
    monkeypatch.setattr(gpu, "available", lambda: "there is no CUDA GPU that torch can use on this machine")
    with pytest.raises(RuntimeError, match="no CUDA GPU"):
        network(integer(build("resnet8", shape=DIGITS, classes=10, width=0.2), DIGITS, 0))


@pytest.mark.parametrize(
    ("file", "said"),
    [
        ("none.nna", "cannot read it"),
        ("ea1d81ece68e.nna", "the network takes images (3, 32, 32) of 10 classes, and digits has (1, 8, 8) of 10"),
    ],
)
def test_archives_that_cannot_run_are_one_sentence(file: str, said: str, monkeypatch, capsys) -> None:
    path = ROOT / "results" / "cifar10" / "models" / file
    monkeypatch.setattr(sys, "argv", ["cuda_kernels", "run", str(path), "--dataset", "digits"])
    assert command.main() == 1
    error = capsys.readouterr().err
    assert said in error and error.count("\n") == 1


def test_sums_that_could_overflow_are_refused() -> None:
    model = integer(build("resnet8", shape=DIGITS, classes=10, width=0.2), DIGITS, 0)
    model.get_parameter("linear.bias").data.fill_(1e9)
    with pytest.raises(ModelError, match="linear has no kernel: its sums may reach"):
        network(model, "cpu")


# --- Tiles, the crossover, the graph ---------------------------------------------------------------------------------


def test_tiles_are_those_that_are_compiled() -> None:
    names = {name for source in sources() for name in kernel_names(source)}
    for rows, columns in TILES:
        assert {f"gemm_int8_tiles_{rows}x{columns}", f"conv_int8_{rows}x{columns}"} <= names


@pytest.mark.parametrize("size", [(1, 16, 64), (16, 512, 4608), (1024, 64, 576), (65536, 64, 576), (4096, 4096, 4096)])
def test_tiles_fill_the_gpu(size: tuple[int, int, int]) -> None:
    """k is split only where tiles are fewer than multiprocessors, and never into parts that are empty."""
    tiling = choose_tiles(*size, 132)
    blocks = -(-size[0] // tiling.rows) * -(-size[1] // tiling.columns)
    assert tiling.splits == 1 or blocks * tiling.splits <= 132
    assert tiling.splits <= -(-size[2] // 64)
    if min(size) >= 4096:
        assert (tiling.rows, tiling.columns, tiling.splits) == (128, 128, 1)


def test_bad_tiles_are_refused() -> None:
    with pytest.raises(ValueError, match="there is no tile"):
        choose_tiles(1, 16, 64, 132, (32, 32))
    with pytest.raises(ValueError, match="whole number in 1 to 1"):
        choose_tiles(1, 16, 64, 132, None, 2)


def test_the_crossover_is_read_from_the_newest_records(monkeypatch) -> None:
    def rows(device: str, time: str, dense_ms: float) -> list[dict]:
        shared = {"device": device, "kind": "gpu", "case": "square 1000", "m": 1000, "time": time}
        curve = [
            {**shared, "family": "spmm_csr", "kernel": "spmm_row_split", "density": density, "time_ms": density}
            for density in (0.01, 0.1, 0.5)
        ]
        return [
            *curve,
            {**shared, "family": "gemm_int8", "kernel": "torch._int_mm", "density": 1.0, "time_ms": dense_ms},
        ]

    monkeypatch.setattr(
        records, "load", lambda files: pd.DataFrame(rows("old", "2025", 0.3) + rows("new", "2026", 0.04))
    )
    assert networks.measured_crossover() == pytest.approx(0.04)
    monkeypatch.setattr(records, "load", lambda files: pd.DataFrame(rows("slow", "2025", 9.0)))
    assert networks.measured_crossover() == 0.0
    monkeypatch.setattr(records, "load", lambda files: pd.DataFrame())
    assert networks.measured_crossover() == 0.0


def test_all_launches_are_captured_once_they_have_run(small: Network, monkeypatch) -> None:
    """The GPU's part is replaced: what is recorded is the order of runs, captures and replays."""
    events: list[str] = []

    class Scope:
        def __init__(self, name: str):
            self.name = name

        def __enter__(self):
            events.append(f"{self.name} begins")

        def __exit__(self, *_):
            events.append(f"{self.name} ends")

    stream = SimpleNamespace(wait_stream=lambda other: None)
    graph = SimpleNamespace(replay=lambda: events.append("replay"))
    monkeypatch.setattr(gpu, "torch_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: stream)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: Scope("stream"))
    monkeypatch.setattr(torch.cuda, "CUDAGraph", lambda: graph)
    monkeypatch.setattr(torch.cuda, "graph", lambda graph, stream: Scope("capture"))
    launches = [SimpleNamespace(run=lambda name=name: events.append(name)) for name in "ab"]
    made = networks._graph(launches)
    assert events == ["stream begins", "a", "b", "stream ends", "capture begins", "a", "b", "capture ends"]
    plan = networks.Plan({"images": torch.zeros(1)}, launches, made)
    plan.run(torch.ones(1))
    assert events[-1] == "replay" and plan.buffers["images"].item() == 1


@needs_compiler
def test_networks_are_measured_beside_their_peers(tmp_path, monkeypatch) -> None:
    """The GPU's part is replaced: its clock, its properties and PyTorch's own networks."""
    monkeypatch.setattr(gpu, "available", lambda: None)
    monkeypatch.setattr(measure_networks, "SHAPE", DIGITS)
    monkeypatch.setattr(measure_networks, "network", lambda model, sparse_below: network(model, "cpu", sparse_below))
    monkeypatch.setattr(measure_networks, "of_peers", lambda *_: iter(()))
    monkeypatch.setattr(measure, "time_runs", lambda runs: ([float(bool([run() for run in runs]))] * 3, "graph"))
    ceilings = {f"{name}_per_s": 1.0 for name in ("copy_gbytes", "fp32_gops", "int8_gops")}
    monkeypatch.setattr(measure, "ceilings", lambda: ceilings)
    monkeypatch.setattr(measure, "device_facts", lambda: {"device": "A GPU", "kind": "gpu"})
    frame = measure_networks.measure_networks(("resnet8",), (1, 2), tmp_path)
    assert len(frame) == len(records.load(tmp_path)) == len(list(tmp_path.glob("a-gpu*.json")))
    whole = frame[frame.family == "network_int8"]
    assert list(whole.maker) == ["ours", "cuBLASLt"] * 2 and (whole.operations > 0).all()
    assert (frame[frame.family == "layer_int8"].groupby("case").maker.nunique() == 2).all()


def test_a_wrong_network_is_not_timed(monkeypatch) -> None:
    monkeypatch.setattr(measure_networks, "SHAPE", DIGITS)
    model = integer(build("resnet8", shape=DIGITS, classes=10, width=0.2), DIGITS, 0)
    net = SimpleNamespace(
        device=torch.device("cpu"), integers=lambda images: {"quantizer_relu": torch.zeros(3, 3, 8, 8)}
    )
    with pytest.raises(RuntimeError, match="integers after quantizer_relu are wrong: not timed"):
        measure_networks.check_integers(net, model)


# --- What the compiler says ------------------------------------------------------------------------------------------


SAID = """ptxas info    : 0 bytes gmem
ptxas info    : Compiling entry function 'fast' for 'sm_90a'
ptxas info    : Function properties for fast
    8 bytes stack frame, 4 bytes spill stores, 12 bytes spill loads
ptxas info    : Used 32 registers, used 1 barriers, 4224 bytes smem, 444 bytes cmem[0]
ptxas info    : Compiling entry function 'small' for 'sm_90a'
ptxas info    : Function properties for small
    0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads
ptxas info    : Used 12 registers, used 0 barriers
"""


def test_the_compilers_report_is_read(monkeypatch) -> None:
    monkeypatch.setattr(resources, "nvcc", lambda: "nvcc")
    answer = SimpleNamespace(returncode=0, stderr=SAID, stdout="")
    monkeypatch.setattr(resources.subprocess, "run", lambda *_, **__: answer)
    table = resources.compile_source("source", "90a").set_index("kernel")
    assert table.loc["fast"].tolist() == ["source", "sm_90a", 32, 4224, 8, 4, 12]
    assert table.loc["small"].tolist() == ["source", "sm_90a", 12, 0, 0, 0, 0]
    answer.stderr = "warning: something"
    with pytest.raises(RuntimeError, match="without a complaint"):
        resources.compile_source("source", "90a")
    monkeypatch.setattr(resources, "nvcc", lambda: None)
    with pytest.raises(RuntimeError, match="pip install nvidia-cuda-nvcc"):
        resources.compile_source("source", "90a")


def test_the_committed_table_has_every_kernel() -> None:
    table = pd.read_csv(resources.TABLE)
    expected = {
        (name, target) for source in sources() for name in kernel_names(source) for target in ("75", "80", "90a")
    }
    assert set(zip(table.kernel, table.target.str.removeprefix("sm_"), strict=True)) == expected
    fast = table[table.kernel.str.startswith(("conv_int8", "depthwise", "gemm_int8_tiles", "gemm_int8_mma"))]
    assert (fast[["stack_bytes", "spill_stores", "spill_loads"]] == 0).all(axis=None)


@needs_nvcc
@pytest.mark.slow
@pytest.mark.parametrize("target", resources.TARGETS)
@pytest.mark.parametrize("source", sources())
def test_every_source_compiles_for_every_generation(source: str, target: str) -> None:
    table = resources.compile_source(source, target)
    assert set(table.kernel) == set(kernel_names(source))
    fast = table[table.kernel.str.startswith(("conv_int8", "depthwise", "gemm_int8_tiles", "gemm_int8_mma"))]
    assert (fast[["spill_stores", "spill_loads"]] == 0).all(axis=None)
