"""The ONNX file: what the model computes, for any batch, or it is refused; and nothing else in it."""

import ast
import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx.reference import ReferenceEvaluator
from torch import nn

import storage.onnx_file
from data import load, normalize
from experiment.records import ROOT
from models import ResNet, build
from models.quantized import Quantizer, insert_quantizers, round_biases
from storage import (
    StorageError,
    export_onnx,
    export_with_scale,
    load_archive,
    onnx_export,
    open_onnx,
    pixel_scale,
    run_onnx,
    save_archive,
)
from storage.__main__ import main


def network(seed: int) -> ResNet:
    torch.manual_seed(seed)
    model = ResNet((4, 8), (1, 1), 1, 10).eval()
    model.spec = {"architecture": "tiny", "shape": [1, 8, 8], "classes": 10}
    return model


def integer(zero_point_after_relu: int = 0) -> nn.Module:
    """The integer form of a network, activations in -2.56..2.54, or in 0..5.1 after a ReLU."""
    model = insert_quantizers(network(0))
    for name, module in model.named_modules():
        if isinstance(module, Quantizer):
            module.scale.fill_(0.02)
            module.zero_point.fill_(zero_point_after_relu if "relu" in name or "pool" in name else 128)
    round_biases(model)
    return model


def noise(batch: int) -> torch.Tensor:
    return torch.randn(batch, 1, 8, 8, generator=torch.Generator().manual_seed(batch))


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    model, file = network(0), tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(model, file, {"classes": ["zero", "one"]})
    return model, file


@pytest.fixture(scope="module", params=["float", "integer", "integer, ReLUs not clipped", "integer weights only"])
def kind(request, tmp_path_factory):
    """A network, its file, and how many of its six convolutions and one linear layer need a zero point."""
    model, with_zero_point = network(0), 0
    if request.param != "float":
        model, with_zero_point = integer(5 if "not clipped" in request.param else 0), 1
    if "not clipped" in request.param:
        with_zero_point = 4
    if "weights only" in request.param:
        with_zero_point = 7
        for name in [name for name, module in model.named_modules() if isinstance(module, Quantizer)]:
            model.set_submodule(name, nn.Identity())
    file = tmp_path_factory.mktemp("kind") / "model.onnx"
    export_onnx(model, file)
    return model, file, with_zero_point


@pytest.mark.parametrize("batch", [1, 2, 37])
def test_logits_are_the_models_for_any_batch(exported, batch):
    model, file = exported
    images = noise(batch)
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(run_onnx(open_onnx(file), images.numpy())), model(images))


def test_metadata_and_a_single_file(exported):
    _, file = exported
    properties = {p.key: p.value for p in onnx.load(file).metadata_props}
    assert properties["classes"] == '["zero", "one"]' and '"architecture": "tiny"' in properties["spec"]
    assert json.loads(properties["images"]).startswith("float32")
    assert list(file.parent.iterdir()) == [file]


def test_a_file_of_another_model_is_refused_and_not_kept(tmp_path, monkeypatch):
    check = storage.onnx_file._check
    monkeypatch.setattr(storage.onnx_file, "_check", lambda model, *paths: check(network(1), *paths))
    with pytest.raises(StorageError, match="logits of .* differ from its model.s"):
        export_onnx(network(0), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


def test_truncated_and_missing_files(exported, tmp_path):
    (tmp_path / "half.onnx").write_bytes(exported[1].read_bytes()[:3000])
    for name in ("half.onnx", "none.onnx"):
        with pytest.raises(StorageError, match=name):
            open_onnx(tmp_path / name)


# --- Nothing but the computation --------------------------------------------------------------------------------------


def test_onnxs_own_reference_computes_the_models_logits(kind):
    model, file, _ = kind
    images = noise(3)
    computed = ReferenceEvaluator(str(file)).run(["logits"], {"images": images.numpy()})[0]
    with torch.no_grad():
        np.testing.assert_allclose(computed, model(images).numpy(), atol=1e-4)


def test_no_ballast(kind):
    model, path, with_zero_point = kind
    file = onnx.load(path)
    onnx.checker.check_model(file, full_check=True)
    graph = file.graph
    used = {name for node in graph.node for name in node.input}
    assert not graph.value_info and not graph.metadata_props and not any(node.metadata_props for node in graph.node)
    assert {tensor.name for tensor in graph.initializer} <= used
    tensors = {tensor.name: onnx.numpy_helper.to_array(tensor) for tensor in graph.initializer}
    dequantized = [node for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in tensors]
    zero_points = [node.input[2] for node in dequantized if len(node.input) > 2]
    assert len(zero_points) == len(set(zero_points)) == with_zero_point
    of_activations = [int(value) for value in tensors.values() if value.dtype == np.uint8]
    assert len(of_activations) == len(set(of_activations))
    weights = sum(tensor.numel() * tensor.itemsize for tensor in model.state_dict().values())
    if with_zero_point < 2:
        assert path.stat().st_size < weights + 5000
    parameters = {name for name, parameter in model.named_parameters() if parameter.dtype == torch.int8}
    assert parameters <= tensors.keys()  # a user finds the weights by their names


@pytest.mark.parametrize("precise", ["0", "1"])
def test_runtimes_that_rewrite_weights_as_uint8_and_those_that_do_not(kind, precise):
    """As `runtime_options` asks for on processors without VNNI, on any processor: the file is read, and right."""
    model, file, _ = kind
    options = onnxruntime.SessionOptions()
    options.add_session_config_entry("session.x64quantprecision", precise)
    session = onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    with torch.no_grad():
        expected = model(noise(5)).numpy()
    np.testing.assert_allclose(session.run(None, {"images": noise(5).numpy()})[0], expected, atol=0.05)


@pytest.mark.parametrize("precise", ["0", "1"])
def test_all_convolutions_between_quantizers_run_on_integers(tmp_path, precise):
    export_onnx(integer(), tmp_path / "model.onnx")
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimized.onnx")
    options.log_severity_level = 3  # it warns that the file is for this machine
    options.add_session_config_entry("session.x64quantprecision", precise)
    onnxruntime.InferenceSession(str(tmp_path / "model.onnx"), options, providers=["CPUExecutionProvider"])
    operators = Counter(node.op_type for node in onnx.load(tmp_path / "optimized.onnx").graph.node)
    assert (operators["QLinearConv"], operators["QLinearAdd"], operators["Conv"]) == (6, 2, 0)


SHOWN = "import sys, onnxruntime; print([onnxruntime.InferenceSession(path) for path in sys.argv[1:]])"


def opened(*paths: Path) -> str:
    """All that is printed while a plain user opens the files, but the sessions."""
    done = subprocess.run([sys.executable, "-c", SHOWN, *map(str, paths)], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0 and done.stdout.startswith("[<onnxruntime") and done.stdout.count("\n") == 1
    return done.stderr


def test_a_user_who_opens_the_file_sees_no_warning(kind):
    assert opened(kind[1]) == ""


def test_a_committed_model_of_4_bits_in_few_bytes_and_without_a_warning(tmp_path):
    """tiny_mixer in 3 and 4 bits: 94,576 bytes of weights, and scales and biases of 2,090 channels."""
    export_onnx(load_archive(ROOT / "results" / "cifar10" / "models" / "411e23db3c87.nna"), tmp_path / "model.onnx")
    assert (tmp_path / "model.onnx").stat().st_size < 125_000
    assert opened(tmp_path / "model.onnx") == ""


# --- The graphs that are kept -----------------------------------------------------------------------------------------


def test_two_models_in_turn_have_nothing_of_each_other(tmp_path):
    """The same network, and so the same graph: other weights, classes and pixels; and raw images in between."""
    images = noise(4)
    export_onnx(network(0), tmp_path / "a", {"classes": ["cat"], "mean": [0.5], "std": [0.1]})
    export_onnx(network(1), tmp_path / "raw", raw_scale={"mean": [0.3], "std": [0.2]})
    export_onnx(network(2), tmp_path / "b")
    export_onnx(network(0), tmp_path / "c", {"classes": ["cat"], "mean": [0.5], "std": [0.1]})
    assert {p.key for p in onnx.load(tmp_path / "b").metadata_props} == {"spec", "images"}
    with torch.no_grad():
        expected = network(2)(images).numpy()
    np.testing.assert_allclose(run_onnx(open_onnx(tmp_path / "b"), images.numpy()), expected, atol=1e-4)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "c").read_bytes()


def line(side: int, activation: nn.Module) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(side * side, 1000), activation)
    model.spec = {"architecture": "line", "shape": [1, side, side], "classes": 1000}
    return model


def test_few_graphs_are_kept_and_none_with_weights(tmp_path, monkeypatch):
    monkeypatch.setattr(onnx_export, "_graphs", {})
    monkeypatch.setattr(onnx_export, "IN_MEMORY", 2)
    for side in (8, 6, 4, 6):
        export_onnx(line(side, nn.ReLU()), tmp_path / "model.onnx", graphs=tmp_path)
        assert len(onnx_export._graphs) <= 2
    kept = [path.read_bytes() for path in tmp_path.glob("*.graph")]
    assert len(kept) == 3 and all(len(graph) < 5000 for graph in (*kept, *onnx_export._graphs.values()))


def test_another_process_reads_a_graph_back_where_it_is_the_same_and_whole(tmp_path, monkeypatch):
    exported = []
    export = onnx_export._exported
    monkeypatch.setattr(onnx_export, "_exported", lambda *given: exported.append(given) or export(*given))

    def write(model, name):
        monkeypatch.setattr(onnx_export, "_graphs", {})  # as another process begins
        export_onnx(model, tmp_path / name, graphs=tmp_path)

    write(line(8, nn.ReLU()), "one.onnx")
    (graph,) = tmp_path.glob("*.graph")
    write(line(8, nn.ReLU()), "two.onnx")  # with weights of its own, which `export_onnx` checks by its logits
    assert len(exported) == 1 and (tmp_path / "one.onnx").read_bytes() != (tmp_path / "two.onnx").read_bytes()
    write(line(8, nn.Tanh()), "other.onnx")  # the same tensors
    assert len(exported) == 2
    content = bytearray(graph.read_bytes())
    content[-1] ^= 1
    for damaged in (bytes(content), content[:40], b""):
        graph.write_bytes(damaged)
        write(line(8, nn.ReLU()), "three.onnx")
    assert len(exported) == 5


def test_a_network_of_the_same_name_and_tensors_with_other_code(tmp_path):
    """As a reader of a notebook changes it."""
    for activation in (nn.ReLU(), nn.Tanh()):
        model = nn.Sequential(nn.Flatten(), nn.Linear(64, 8), activation, nn.Linear(8, 10))
        model.spec = {"architecture": "mine", "shape": [1, 8, 8], "classes": 10}
        export_onnx(model, tmp_path / "model.onnx")
        with torch.no_grad():
            expected = model(noise(2)).numpy()
        np.testing.assert_allclose(run_onnx(open_onnx(tmp_path / "model.onnx"), noise(2).numpy()), expected, atol=1e-5)


# --- Raw images -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def digits():
    return load("digits")


@pytest.mark.parametrize("make", [lambda: network(0), integer], ids=["float", "integer"])
def test_raw_images_get_the_same_answers(make, digits, tmp_path):
    model, images = make(), digits.test.images
    for raw in (False, True):
        export_with_scale(model, tmp_path / f"{raw}.onnx", digits, raw_images=raw)
    plain, raw = (onnxruntime.InferenceSession(str(tmp_path / f"{form}.onnx")) for form in (False, True))
    (given,) = raw.get_inputs()
    assert (given.name, given.type, given.shape) == ("images", "tensor(uint8)", ["batch", 1, 8, 8])
    mean, std = digits.mean[0], digits.std[0]
    scaled = ((images.numpy().astype(np.float64) / 255 - mean) / std).astype(np.float32)
    own, other = (plain.run(None, {"images": scaled})[0], raw.run(None, {"images": images.numpy()})[0])
    assert np.abs(own - other).max() < (1e-4 if make is not integer else 0.05)
    assert (own.argmax(1) == other.argmax(1)).mean() > 0.99
    np.testing.assert_array_equal(plain.run(None, {"images": normalize(images, digits).numpy()})[0], other)
    properties = raw.get_modelmeta().custom_metadata_map
    assert properties["images"] == '"uint8, 0 to 255"' and json.loads(properties["mean"]) == [mean]
    assert opened(tmp_path / "True.onnx") == ""


def test_the_models_own_scale_goes_before_that_of_the_data_set(digits, tmp_path):
    model, own = network(0), {"mean": [0.25], "std": [0.5]}
    model.spec = model.spec | {"pixels": own}
    assert pixel_scale(model.spec, digits) == pixel_scale(model.spec) == own
    export_with_scale(model, tmp_path / "plain.onnx", digits)
    export_onnx(model, tmp_path / "raw.onnx", raw_scale=pixel_scale(model.spec))
    properties = open_onnx(tmp_path / "plain.onnx").get_modelmeta().custom_metadata_map
    assert json.loads(properties["mean"]) == [0.25] and json.loads(properties["std"]) == [0.5]
    images = digits.test.images[:9]
    with torch.no_grad():
        expected = model((images / 255 - 0.25) / 0.5).numpy()
    np.testing.assert_allclose(run_onnx(open_onnx(tmp_path / "raw.onnx"), images.numpy()), expected, atol=1e-4)


@pytest.mark.parametrize(
    "pixels", [{"mean": [0.5]}, {"mean": [0.5, 0.5], "std": [1, 1]}, {"mean": [0.5], "std": [0]}, "dark", {}]
)
def test_a_scale_that_is_none_is_refused(pixels):
    with pytest.raises(StorageError, match="not a mean and std per channel"):
        pixel_scale(network(0).spec | {"pixels": pixels})


def test_the_command_writes_a_file_for_raw_images(digits, tmp_path, monkeypatch):
    model, output = build("resnet8", shape=(1, 8, 8), classes=10), tmp_path / "model.onnx"
    save_archive(model, tmp_path / "model.nna")
    words = ["storage", "unpack", str(tmp_path / "model.nna"), "-o", str(output), "--raw-images", "--dataset", "digits"]
    monkeypatch.setattr(sys, "argv", words)
    assert main() == 0
    session = onnxruntime.InferenceSession(str(output))
    images = digits.test.images[:9]
    with torch.no_grad():
        expected = model.eval()(normalize(images, digits)).numpy()
    np.testing.assert_allclose(session.run(None, {"images": images.numpy()})[0], expected, atol=1e-3)
    assert json.loads(session.get_modelmeta().custom_metadata_map["classes"]) == list(digits.classes)


def test_the_command_asks_for_the_data_set(tmp_path, monkeypatch, capsys):
    archive = ROOT / "results" / "cifar10" / "models" / "411e23db3c87.nna"
    output = tmp_path / "model.onnx"
    monkeypatch.setattr(sys, "argv", ["storage", "unpack", str(archive), "-o", str(output), "--raw-images"])
    assert main() == 1 and "--dataset" in capsys.readouterr().err and not output.exists()


# --- Telemetry --------------------------------------------------------------------------------------------------------

USED = """
import sys
from pathlib import Path
import torch
import report, cuda_kernels.cpu, quantization.paths
from models import build
from storage import export_onnx, open_onnx, run_onnx
file = Path(sys.argv[1]) / "model.onnx"
export_onnx(build("resnet8", shape=(1, 8, 8), classes=10), file)
run_onnx(open_onnx(file), torch.zeros(1, 1, 8, 8).numpy())
"""


def test_a_run_writes_nothing_outside_its_folders(tmp_path):
    folders = {name: tmp_path / name for name in ("home", "temporary", "own")}
    for folder in folders.values():
        folder.mkdir()
    switches = ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY", "XDG_CACHE_HOME")
    environment = {name: value for name, value in os.environ.items() if name not in switches}
    environment |= {"HOME": str(folders["home"]), "TMPDIR": str(folders["temporary"]), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", USED, str(folders["own"])]
    subprocess.run(command, cwd=ROOT, env=environment, check=True, timeout=200, capture_output=True)
    files = [path for path in tmp_path.rglob("*") if not path.is_dir()]  # torch leaves an empty folder
    assert files == [folders["own"] / "model.onnx"]


def test_whoever_imports_the_runtime_switches_its_telemetry_off_before():
    """In the code of its package's `__init__`, which Python runs first."""
    seen = set()
    for path in ROOT.glob("*/*.py"):
        imported = [name for statement in ast.walk(ast.parse(path.read_text())) for name in _imported(statement)]
        if path.parent.name not in ("tests", "benchmarks") and any(name.startswith("onnxruntime") for name in imported):
            package = ast.parse((path.parent / "__init__.py").read_text())
            first, *_ = (name for statement in package.body for name in _imported(statement))
            assert first == "data.telemetry", path
            seen.add(path.parent.name)
    assert seen == {"storage", "measurement", "quantization", "cuda_kernels"}
    for notebook in (ROOT / "notebooks").glob("*.ipynb"):
        assert "import onnxruntime" not in notebook.read_text(), f"{notebook} imports it before a package of ours"


def _imported(statement: ast.AST) -> list[str]:
    if isinstance(statement, ast.Import):
        return [alias.name for alias in statement.names]
    return [statement.module or "."] if isinstance(statement, ast.ImportFrom) else []
