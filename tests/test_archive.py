"""Archives: the same bits come back, in fewer bytes than entropy and other programs ask for."""

import hashlib
import io
import json
import lzma
import math
import os
import subprocess
import sys
from contextlib import redirect_stderr, redirect_stdout
from functools import cache
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from combination import Joint
from data import load, normalize
from experiment import Recipe, run
from experiment.store import ROOT
from measurement import accuracy
from measurement.__main__ import main
from models import ARCHITECTURES, ResNet, build
from models.quantized import Quantizer, insert_quantizers, round_biases
from pruning import Prune
from quantization import Quantize
from storage import ArchiveError, archive_table, export_onnx, load_archive, open_onnx, save_archive, weights_checksum
from storage.__main__ import main as storage_main
from storage.archive import DICTIONARY, _head, _on_paper, decode, encode, entropy, sealed
from storage.coding import Counts, Meter, Reader, Writer, number
from storage.modes import MODES, POSITIONS, Settings, _code, choose, code_words
from training import Train


def trained(quantized: bool = False) -> nn.Module:
    """A network with statistics like a trained one's: smooth kernels, channels of different size."""
    torch.manual_seed(0)
    model = build("resnet20", shape=(3, 32, 32), classes=10)
    model.train()(torch.randn(8, 3, 32, 32))
    for layer in model.modules():
        if isinstance(layer, nn.Conv2d) and layer.kernel_size == (3, 3):
            smooth = nn.functional.avg_pool2d(layer.weight.data, 2, 1, padding=1)[..., :3, :3]
            layer.weight.data = (smooth * (1 + torch.rand(len(smooth), 1, 1, 1))).bfloat16().float()
    model.eval()
    return insert_quantizers(model) if quantized else model


def integer(model: nn.Module, bits: int, sparsity: float) -> nn.Module:
    """The int8 weights of an integer network at `bits` bits, and with the smallest share of them zero."""
    for module in model.modules():
        if getattr(module, "weight", None) is not None and module.weight.dtype == torch.int8:
            weight = module.weight.data.float()
            weight = torch.round(weight * (2 ** (bits - 1) - 1) / 127)
            threshold = weight.abs().flatten().kthvalue(max(1, int(sparsity * weight.numel())))[0]
            kept = (weight.abs() > threshold) if sparsity else torch.ones_like(weight)
            module.weight.data = (weight * kept).to(torch.int8)
    return model


def same(a: nn.Module, b: nn.Module) -> bool:
    own, other = a.state_dict(), b.state_dict()
    return own.keys() == other.keys() and all(
        own[n].dtype == other[n].dtype
        and own[n].shape == other[n].shape
        and own[n].contiguous().numpy().tobytes() == other[n].numpy().tobytes()
        for n in own
    )


def raw(model: nn.Module) -> bytes:
    return b"".join(tensor.contiguous().numpy().tobytes() for tensor in model.state_dict().values())


def round_trip(words: np.ndarray, shape: tuple, floats: bool = False, chosen: Settings | None = None) -> int:
    """Bytes of the words' code, after checking that the words come back."""
    writer = Writer()
    if chosen is None:
        code_words(writer, words, shape, words.dtype, floats)
    else:
        _code(writer, words, shape, words.dtype, chosen)
    reader = Reader(writer.content())
    again = code_words(reader, None, shape, words.dtype, floats)
    assert again.dtype == words.dtype and again.tobytes() == words.tobytes()
    return len(writer.content())


# --- Coding -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [2, 3, 256, 65536, 65537, 1 << 32, 1 << 64])
def test_numbers(size):
    values = [0, 1, size // 2, size - 1]
    writer = Writer()
    for value in values:
        number(writer, size, value)
    reader = Reader(writer.content())
    assert [number(reader, size, None) for _ in values] == values


def test_a_fixed_model_costs_its_cross_entropy():
    rng = np.random.default_rng(0)
    symbols = rng.choice(4, 20_000, p=[0.7, 0.2, 0.09, 0.01]).astype(np.int32)
    weights = np.array([70, 20, 9, 1])
    expected = -np.log2(weights / 100)[symbols].sum()
    writer, meter = Writer(), Meter()
    writer.symbols(weights, len(symbols), symbols)
    meter.symbols(weights, len(symbols), symbols)
    assert meter.bits == pytest.approx(expected, rel=1e-9)
    assert expected - 1 <= 8 * len(writer.content()) <= expected + 96


def test_counts_learn():
    rng = np.random.default_rng(0)
    symbols = rng.choice(16, 50_000, p=(share := np.arange(1, 17) ** 2.0 / 1496))
    meter = Meter()
    Counts(np.full(16, 1 << 16)).code(meter, len(symbols), symbols)
    shannon = -(share * np.log2(share)).sum() * len(symbols)
    assert meter.bits < 1.01 * shannon  # learning the fifteen free frequencies takes about 8 bits each


def test_entropy_of_known_frequencies():
    assert entropy(np.array([0, 0, 1, 2])) == 1.5 and entropy(np.zeros(7)) == 0
    assert entropy(np.arange(256)) == 8


# --- Every mode, type and awkward shape -------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(8, 6, 3, 3), (16, 12, 1, 1), (40, 1, 1, 7), (1, 50, 1, 1), (2, 3, 2, 5)])
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("classed", [0, 1])
@pytest.mark.parametrize("kappa", [0, 1])
def test_every_mode_comes_back(shape, mode, classed, kappa):
    rng = np.random.default_rng(1)
    words = np.rint(rng.normal(0, 2, math.prod(shape))).astype(np.int8)
    if mode == "floats":
        words = rng.normal(0, 2, math.prod(shape)).astype(np.float32).view(np.int32)
    if mode == "constant":
        words[:] = -3
    round_trip(words, shape, mode == "floats", Settings(mode, classed, kappa))


@pytest.mark.parametrize("density", [0, 1e-4, 0.03, 0.5, 1])
@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int64, np.float32])
def test_every_density(density, kind):
    rng = np.random.default_rng(2)
    values = np.where(rng.random(64 * 32 * 9) < density, rng.normal(0, 30, 64 * 32 * 9), 0.0)
    words = values.astype(np.float32).view(np.int32) if kind == np.float32 else np.rint(values).astype(kind)
    length = round_trip(words, (64, 32, 3, 3), kind == np.float32)
    if density == 0:
        assert length <= 4 + words.itemsize  # a mode and one word
    if density == 1e-4:
        assert length < 70


@pytest.mark.parametrize("kind", [np.int8, np.int16, np.int32, np.int64])
def test_extreme_integers(kind):
    limits = np.iinfo(kind)
    for values in ([limits.min, limits.max], [limits.max, 0, 0, 1], [limits.min] * 5, [limits.min, limits.min + 1]):
        words = np.array(values, kind)
        round_trip(words, (1, len(words), 1, 1))
        round_trip(words, (len(words), 1, 1, 1))


SPECIAL = [0.0, -0.0, 1e-45, -1e-45, math.inf, -math.inf, math.nan, 3.4e38, -1e-38, 1.0]


@pytest.mark.parametrize("values", [SPECIAL, [0.0, -0.0], [0.0, 1e-45], [math.nan, -math.nan], [-0.0], [math.inf, 0.0]])
def test_special_floats(values):
    words = np.array(values, np.float32).view(np.int32)
    words[np.isnan(np.array(values))] ^= 12345  # a payload
    for shape in ((1, len(words), 1, 1), (len(words), 1, 1, 1)):
        round_trip(words, shape, True)
        for mode in ("raw", "bytes", "floats"):
            round_trip(words, shape, True, Settings(mode, 1))
    many = np.resize(words, 4 * 5 * 9)
    round_trip(many, (4, 5, 3, 3), True, Settings("floats", 1))


def test_empty_tensors_take_nothing():
    writer = Writer()
    for shape in ((0, 3, 3, 3), (1, 0, 1, 1)):
        assert code_words(writer, np.empty(0, np.int8), shape, np.dtype(np.int8)).size == 0
    assert writer.content() == b""


def test_kernels_of_very_many_positions_have_no_classes():
    words = np.random.default_rng(0).integers(-3, 4, 2 * POSITIONS * 3).astype(np.int8)
    assert choose(words, (2, 1, 3, POSITIONS), False).classed == 0
    with pytest.raises(ValueError, match="too many positions"):
        _code(Writer(), words, (2, 1, 3, POSITIONS), words.dtype, Settings("integers", 1))


def test_words_without_a_negative_one_are_not_coded_in_the_opposite_sign():
    """Found by the test below: what a kernel's neighbours foretell may be below zero where no word is."""
    few = np.array([0, 0, 1], np.int8)
    for seed in range(60):
        words = few[np.random.default_rng(seed).integers(0, 3, 12)]
        for mode in ("integers", "sparse"):
            if words.any():
                round_trip(words, (1, 1, 4, 3), False, Settings(mode, 1))


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_any_words_come_back(data):
    shape = data.draw(st.tuples(*[st.integers(1, 5)] * 4))
    kind = data.draw(st.sampled_from(["i1", "i2", "i4", "i8", "f4"]))
    size = np.dtype(kind).itemsize
    few = data.draw(st.lists(st.binary(min_size=size, max_size=size), min_size=1, max_size=6))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    words = np.frombuffer(b"".join(few[i] for i in rng.integers(0, len(few), math.prod(shape))), f"i{size}").copy()
    round_trip(words, shape, kind == "f4")
    modes = ["raw", "bytes", *(["floats"] if kind == "f4" else [])]
    round_trip(words, shape, kind == "f4", Settings(data.draw(st.sampled_from(modes)), data.draw(st.integers(0, 1))))


class Odd(nn.Module):
    """Every type that a state dict may hold, and awkward shapes."""

    def __init__(self):
        super().__init__()
        generator = torch.Generator().manual_seed(3)
        for kind in (torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64):
            self.register_buffer(f"own_{kind}".replace(".", "_"), torch.zeros(5, 7, 3, dtype=kind))
        for kind in (torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64):
            self.register_buffer(f"own_{kind}".replace(".", "_"), torch.zeros(6, 11, dtype=kind))
        for name, shape in (("scalar", ()), ("empty", (0, 4)), ("one", (1,)), ("long", (70, 2, 2, 3, 2))):
            self.register_buffer(name, torch.zeros(shape))
        self.fresh = generator


def test_every_type_in_a_model(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "odd", lambda shape, classes, width: Odd())
    model = build("odd", shape=(1, 1, 1), classes=1)
    rng = np.random.default_rng(0)
    for tensor in model.state_dict().values():
        if tensor.dtype == torch.bool:
            tensor.copy_(torch.from_numpy(rng.random(tuple(tensor.shape)) < 0.3))
        elif tensor.numel():
            count = tensor.numel() * tensor.element_size()
            tensor.view(-1).view(torch.uint8).copy_(torch.from_numpy(rng.integers(0, 256, count, dtype=np.uint8)))
    again = decode(encode(model))
    for name, tensor in model.state_dict().items():
        other = again.state_dict()[name]
        assert tensor.dtype == other.dtype and tensor.shape == other.shape
        assert torch.equal(tensor.reshape(-1).view(torch.uint8), other.reshape(-1).view(torch.uint8)), name
    save_archive(model, tmp_path / "odd.nna")


# --- Models -----------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=["float", "int8", "4 bits", "2 bits", "pruned 0.9", "4 bits pruned 0.77"])
def kinds(request):
    """A network of each kind that is deployed, and its archive."""
    if request.param == "float":
        model = trained()
    elif request.param == "pruned 0.9":
        model = integer(trained(True), 8, 0.9)
    else:
        bits = int(request.param.removeprefix("int")[0])
        model = integer(trained(True), bits, 0.77 if "pruned" in request.param else 0)
    return request.param, model, encode(model)


def test_the_same_logits_bit_for_bit_and_the_same_checksum(kinds):
    _, model, content = kinds
    again = decode(content)
    images = torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(model(images), again(images))
    assert same(model, again) and not again.training and again.spec == model.spec
    assert weights_checksum(model) == weights_checksum(again) and encode(again) == content


def test_near_the_entropy_and_below_other_programs(kinds):
    kind, model, content = kinds
    assert len(content) <= 1.02 * shannon(model) + 2048
    assert len(content) <= (1 if kind == "int8" else 0.95) * others(model), (kind, len(content) / others(model))


def shannon(model: nn.Module) -> float:
    """The order-0 entropy of a model's tensors in bytes; of floats, that of their bytes, each place by itself."""
    total = 0.0
    for tensor in model.state_dict().values():
        values = tensor.contiguous().numpy().reshape(-1)
        places = [values] if values.dtype.itemsize == 1 else values.view(np.uint8).reshape(len(values), -1).T
        for place in places:
            share = np.unique(place, return_counts=True)[1] / len(place)
            total -= (share * np.log2(share)).sum() * len(place) / 8
    return total


def others(model: nn.Module) -> int:
    """Bytes of the better of xz and zstd on the same tensors."""
    return min(len(lzma.compress(raw(model), preset=9)), len(zstandard.compress(raw(model), 19)))


def test_the_table_tells_where_the_bytes_go(tmp_path):
    model, path = integer(trained(True), 4, 0.77), tmp_path / "model.nna"
    save_archive(model, path)
    table = archive_table(path)
    assert sum(row["bytes"] for row in table) == path.stat().st_size
    assert sum(row.get("values", 0) for row in table) == sum(t.numel() for t in model.state_dict().values())
    row = next(row for row in table if row["layer"] == "blocks.8.conv2.weight")
    weight = model.state_dict()["blocks.8.conv2.weight"].numpy()
    assert row["density"] == np.count_nonzero(weight) / weight.size and row["shape"] == "64 x 64 x 3 x 3"
    share = np.unique(weight, return_counts=True)[1] / weight.size
    assert row["entropy"] == pytest.approx(-(share * np.log2(share)).sum())


def test_the_onnx_files_weights_are_the_same(tmp_path):
    model = trained(True)
    again = decode(encode(model))
    for name, own in (("a", model), ("b", again)):
        export_onnx(own, tmp_path / name)
    a, b = (onnx.load(tmp_path / name).graph.initializer for name in ("a", "b"))
    assert [(i.name, i.raw_data) for i in a] == [(i.name, i.raw_data) for i in b]


def test_biases_are_stored_as_what_integers_add_up():
    """Multiples of the scales of input and weight, with either sign, as their own few bits; others as floats."""
    model = trained(quantized=True)
    for module in model.modules():
        if isinstance(module, Quantizer):
            module.scale.fill_(0.013)
    biases = {name: tensor for name, tensor in model.state_dict().items() if name.endswith("bias")}
    for tensor in biases.values():
        nn.init.normal_(tensor, std=0.2)
    as_floats = encode(model)
    round_biases(model)
    assert len(biases) == 22 and sum(int((tensor < 0).sum()) for tensor in biases.values()) > 300
    as_multiples = encode(model)
    assert (as_floats[4], as_multiples[4]) == (1, 2) and same(model, decode(as_multiples))
    own = [
        np.rint(b.numpy() / (0.013 * model.state_dict()[n.replace("bias", "weight_scale")].numpy()))
        for n, b in biases.items()
    ]
    entropies = sum(entropy(plane) for plane in np.concatenate(own).astype("<i4").view(np.uint8).reshape(-1, 4).T)
    saved = (8 * (len(as_floats) - len(as_multiples))) / sum(b.numel() for b in biases.values())
    assert saved > 26 - entropies


def test_channels_last_weights_are_stored_as_they_are_meant():
    model = trained()
    assert encode(trained().to(memory_format=torch.channels_last)) == encode(model)


def test_the_global_random_state_is_left_alone():
    content = encode(trained(True))
    torch.manual_seed(5)
    before = torch.get_rng_state()
    decode(content)
    assert torch.equal(before, torch.get_rng_state())


def test_a_model_with_tensors_outside_its_state_dict(monkeypatch):
    class Fixed(ResNet):
        def __init__(self):
            super().__init__((4,), (1,), 1, 2)
            self.register_buffer("mean", torch.full((1,), 0.5), persistent=False)

        def forward(self, x):
            return super().forward(x - self.mean)

    monkeypatch.setitem(ARCHITECTURES, "fixed", lambda shape, classes, width: Fixed())
    model = build("fixed", shape=(1, 8, 8), classes=2).eval()
    images = torch.randn(2, 1, 8, 8)
    with torch.no_grad():
        assert torch.equal(decode(encode(model))(images), model(images))


# --- What is refused --------------------------------------------------------------------------------------------------


def test_a_spec_that_describes_another_model(tmp_path):
    model = trained()
    model.spec = model.spec | {"classes": 11}
    with pytest.raises(ArchiveError, match="correct model.spec"):
        save_archive(model, tmp_path / "model.nna")
    assert not list(tmp_path.iterdir())


def test_a_network_that_is_built_otherwise_now(monkeypatch):
    content = encode(trained())
    other = ResNet((16, 32, 64), (3, 3, 3), 3, 10)
    other.linear = nn.Linear(5, 128)  # as many values
    monkeypatch.setitem(ARCHITECTURES, "resnet20", lambda shape, classes, width: other)
    with pytest.raises(ArchiveError):
        decode(content)


def test_missing_and_too_long_files(tmp_path, monkeypatch):
    with pytest.raises(ArchiveError, match="none.nna: cannot read it .No such file.* give a .nna file"):
        load_archive(tmp_path / "none.nna")
    (tmp_path / "long.nna").write_bytes(b"")
    with open(tmp_path / "long.nna", "r+b") as file:
        file.truncate(2 << 30)  # no byte of it is on the disk
    with pytest.raises(ArchiveError, match="longer than 1024 MiB"):
        load_archive(tmp_path / "long.nna")


@pytest.mark.parametrize("kind", ["folder", "pipe", "link to a pipe", "device"])
def test_what_is_no_file_is_refused_at_once(kind, tmp_path):
    path = Path(os.devnull) if kind == "device" else tmp_path / "model.nna"
    if kind == "folder":
        path.mkdir()
    elif kind != "device":
        os.mkfifo(tmp_path / "pipe")
        path = tmp_path / "pipe" if kind == "pipe" else path
        if kind != "pipe":
            path.symlink_to(tmp_path / "pipe")
    ask = own_process if "pipe" in kind else command  # it must not wait for what nobody writes
    asked = ask("storage", "info", path)
    assert asked.returncode == 1 and asked.stderr.count("\n") == 1
    assert asked.stderr.startswith(f"{path}: cannot read it (a {'folder' if kind == 'folder' else 'pipe or device'}")


def test_a_few_bytes_that_are_a_gigabyte_in_memory(tmp_path):
    path = tmp_path / "zeros.nna"
    spec = {"architecture": "resnet18", "shape": [3, 32, 32], "classes": 10, "width": 4.8}
    path.write_bytes(sealed(_head(spec, _on_paper(spec).state_dict(), 1)))  # past its end, a stream reads as zeros
    assert path.stat().st_size < 80
    with pytest.raises(ArchiveError, match="zeros.nna: its tensors take 1,0..,...,... bytes .* set a higher limit"):
        load_archive(path)
    shown = command("storage", "info", path)
    assert shown.returncode == 1 and "higher limit" in shown.stderr and shown.stderr.count("\n") == 1


def test_the_limit_is_that_of_the_tensors(tmp_path):
    model, path = trained(), tmp_path / "model.nna"
    save_archive(model, path)
    size = len(raw(model))
    assert same(load_archive(path, limit=size), model) and archive_table(path, limit=size)
    for load_it in (load_archive, archive_table):
        with pytest.raises(ArchiveError, match="higher limit"):
            load_it(path, limit=size - 1)
    assert command("storage", "info", path, "--limit", size).returncode == 0
    assert "higher limit" in command("storage", "info", path, "--limit", size - 1).stderr


def test_the_dictionary_is_part_of_the_format():
    assert hashlib.sha256(DICTIONARY).hexdigest()[:16] == "6241995fb1a53f8e", "it needs a new format version"


def own_process(room, *arguments) -> subprocess.CompletedProcess:
    words = [sys.executable, "-m", room, *map(str, arguments)]
    return subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)


def command(room, *arguments) -> subprocess.CompletedProcess:
    """As `own_process`, without its seconds of imports."""
    words, out, err = [room, *map(str, arguments)], io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(out), redirect_stderr(err):
        patch.setattr(sys, "argv", words)
        code = {"storage": storage_main, "measurement": main}[room]()
    return subprocess.CompletedProcess(words, code, out.getvalue(), err.getvalue())


def test_the_commands(tmp_path):
    path, output = tmp_path / "model.nna", tmp_path / "model.onnx"
    save_archive(trained(True), path)
    shown = own_process("storage", "info", path)
    assert shown.returncode == 0 and "blocks.8.conv2.weight" in shown.stdout
    assert f"{path.stat().st_size:,} bytes" in shown.stdout
    assert command("storage", "unpack", path, "-o", output).returncode == 0 and onnx.load(output).graph.node
    refused = command("measurement", path, "--dataset", "digits")
    assert refused.returncode == 1 and "takes images (3, 32, 32) of 10 classes, digits has (1, 8, 8)" in refused.stderr
    path.write_bytes(path.read_bytes()[:-1])
    refused = command("storage", "info", path)
    assert refused.returncode == 1 and "damaged" in refused.stderr and "Traceback" not in refused.stderr


@pytest.mark.parametrize("arguments", [["info"], ["unpack", "-o", "model.onnx"]], ids=["info", "unpack"])
def test_the_commands_name_a_file_that_is_no_archive(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["storage", *arguments, str(ROOT / "README.md")])
    assert storage_main() == 1
    refused = capsys.readouterr().err
    assert refused.startswith(f"{ROOT / 'README.md'}: this is not an archive of a network: give a .nna file")
    assert refused.count("README.md") == 1


def test_the_command_measures_the_records_accuracy(folders, monkeypatch, capsys):
    record = run(Recipe("digits", (Train("tiny", epochs=1, batch_size=128), Quantize(images=64))))
    path = folders[0] / "models" / f"{record['id']}.nna"
    monkeypatch.setattr(sys, "argv", ["measurement", str(path), "--dataset", "digits"])
    assert main() == 0 and f"{100 * record['accuracy']:.2f} %" in capsys.readouterr().out


def test_a_committed_archive_has_the_accuracy_of_its_record(tmp_path):
    """From the file alone, on the real test images, where they are at hand."""
    root = Path(os.environ.get("CIFAR10_ROOT", ROOT / "data" / "raw"))
    if not any(root.rglob("train-*.parquet")) and not (root / "cifar-10-batches-py").is_dir():
        pytest.skip("CIFAR-10 is not at hand, and a test does not download it: set CIFAR10_ROOT")
    dataset, folder = load("cifar10"), ROOT / "results" / "cifar10"
    small = [record for record in map(json.loads, map(Path.read_text, folder.glob("*.json"))) if record["macs"] < 1e8]
    record = min(small, key=lambda record: record["archive_bytes"])
    model = load_archive(folder / "models" / f"{record['id']}.nna")
    export_onnx(model, tmp_path / "model.onnx", images=normalize(dataset.validation.images[:64], dataset))
    assert accuracy(open_onnx(tmp_path / "model.onnx"), dataset, dataset.test) == pytest.approx(
        record["accuracy"],
        abs=0.001,  # another processor may round a logit or two otherwise
    )


FEW = 12  # committed archives that every run looks at, the smallest; the slow tier looks at all of them


@cache
def committed(path: Path) -> nn.Module:
    """The model of a committed archive, decoded once for all tests that look at it."""
    return load_archive(path)


@pytest.fixture(params=[pytest.param(FEW, id="few"), pytest.param(None, id="all", marks=pytest.mark.slow)])
def archives(request) -> list[tuple[Path, dict]]:
    """Committed archives and their records, from the smallest on: a few, or all."""
    folder = ROOT / "results" / "cifar10"
    paths = sorted((folder / "models").glob("*.nna"), key=lambda path: path.stat().st_size)[: request.param]
    assert len(paths) >= FEW
    return [(path, json.loads((folder / f"{path.stem}.json").read_text())) for path in paths]


def test_committed_archives_are_those_of_their_records(archives):
    """And at most 5 % above the entropy, 1 % above other programs, and below them where values are few or zero."""
    for path, record in archives:
        model = committed(path)
        assert path.stat().st_size == record["archive_bytes"]
        assert weights_checksum(model) == record["weights_sha256"]
        if record["parameters"] < 1e6:  # what the large ones take beside the others' is minutes
            low_bit = model.spec.get("quantized") and record["recipe"]["steps"][-1].get("bits", 8) != 8
            sparse = record["nonzero_parameters"] < 0.9 * record["parameters"]
            assert record["archive_bytes"] <= 1.05 * shannon(model) + 2048, path
            assert record["archive_bytes"] <= (0.97 if low_bit or sparse else 1.01) * others(model), path


def test_committed_models_that_were_pruned_and_quantized_keep_their_zeros(archives):
    """Counted in the archives alone."""
    seen = set()
    for path, record in archives:
        steps = record["recipe"]["steps"]
        *_, before, last = [{"step": None}, *steps]  # what was pruned earlier may be its teacher
        by = Joint if last["step"] == "Joint" else Prune if before["step"] == "Prune" else None
        if by is not None and last["step"] in ("Joint", "Quantize"):
            sparsity = (last if by is Joint else before).get("sparsity", by.sparsity)
            weights = [tensor for tensor in committed(path).state_dict().values() if tensor.ndim > 1]
            assert all(weight.dtype == torch.int8 for weight in weights)
            zeros = sum(int((weight == 0).sum()) for weight in weights)
            assert zeros >= round(sparsity * sum(weight.numel() for weight in weights))
            seen.add(by)
    assert seen == {Joint, Prune}
