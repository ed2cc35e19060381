"""Static INT8: the arithmetic by hand, and the deployed file against the model."""

import copy
import dataclasses
import hashlib

import matplotlib.pyplot as plt
import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from data import Split, load, normalize
from experiment import Recipe, run, runner
from measurement import agreement, operator_counts
from models import ModelError, build
from models.quantized import (
    QuantizedConv2d,
    QuantizedLinear,
    Quantizer,
    insert_quantizers,
    int8_rounding,
    left_in_floats,
)
from plots.quantization import accuracy_by_bits
from pruning import sparse_products
from quantization import Quantize, calibrate
from quantization.noise import decibels, signal_to_noise
from quantization.paths import paths
from quantization.static import scale_and_zero_point
from recipe import StepError
from storage import Checkpoint, StorageError, export_onnx, open_onnx, run_onnx
from study import pruning
from study import quantization as study
from training import Context, Train


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    folder = tmp_path_factory.mktemp("training")
    return Context(load("digits"), 0, torch.device("cpu"), Checkpoint(folder / "checkpoint"), make=None, cache=folder)


RESNET18 = pytest.param(("resnet18", 1, 20, 8), marks=pytest.mark.slow)


@pytest.fixture(scope="module", params=[RESNET18, ("resnet20", 4, 21, 9)], ids=lambda case: case[0])
def trained(request, context, tmp_path_factory):
    """A float network, its integer form, the expected numbers of convolutions and additions, and a folder."""
    name, epochs, convolutions, additions = request.param
    folder = tmp_path_factory.mktemp(name)
    context = dataclasses.replace(context, checkpoint=Checkpoint(folder / "checkpoint"), log={})
    model = Train(name, epochs=epochs, batch_size=64, learning_rate=0.1).apply(None, context).cpu().eval()
    model = model.to(memory_format=torch.contiguous_format)
    return model, Quantize(images=256).apply(model, context), (convolutions, additions), folder


@pytest.mark.parametrize(
    "low, high, scale, zero_point",
    [(0, 255, 1, 0), (-128, 127, 1, 128), (-51, 0, 0.2, 255), (-1, 3, 4 / 255, 64), (2, 5.1, 0.02, 0), (0, 0, 1, 0)],
)
def test_scale_and_zero_point_by_hand(low, high, scale, zero_point):
    assert scale_and_zero_point(low, high) == (pytest.approx(scale), zero_point)


@pytest.mark.parametrize("form, layer", [(QuantizedConv2d, nn.Conv2d(3, 5, 3)), (QuantizedLinear, nn.Linear(7, 4))])
def test_weights_per_channel_against_numpy(form, layer):
    with torch.no_grad():
        layer.weight[1] = 0  # a channel without a scale of its own takes the lower median of the others'
    weight = layer.weight.detach().numpy().reshape(len(layer.weight), -1)
    largest = np.abs(weight).max(1, keepdims=True)
    scale = largest / np.float32(127)
    scale[1] = np.sort(np.delete(scale, 1))[(len(scale) - 2) // 2]
    integer = form(layer, *int8_rounding("layer", layer))
    assert integer.weight.dtype == torch.int8
    assert (integer.weight.numpy().reshape(weight.shape) == np.rint(weight / scale)).all()
    np.testing.assert_allclose(integer.weight_scale.numpy(), scale[:, 0], rtol=1e-7)
    assert (integer.dequantized().detach() - layer.weight).abs().max() <= scale.max() / 2 * 1.0001


@pytest.mark.parametrize("bad", [float("nan"), -float("inf")])
def test_a_weight_that_integers_cannot_hold_is_refused(bad):
    model = build("resnet8", shape=(1, 8, 8), classes=10)
    with torch.no_grad():
        model.linear.weight[3, 5] = bad
    with pytest.raises(ModelError, match="linear has a weight that is infinite or NaN"):
        insert_quantizers(model)


def test_quantizer_against_torch():
    quantizer = Quantizer()
    quantizer.scale.fill_(0.03)
    quantizer.zero_point.fill_(77)
    x = 3 * torch.randn(10_000, generator=torch.Generator().manual_seed(0))
    expected = torch.fake_quantize_per_tensor_affine(x, 0.03, 77, 0, 255)
    difference = (quantizer(x) - expected).abs()  # a value half-way between two levels may go to either
    assert (difference > 1e-5).float().mean() < 1e-3 and difference.max() <= 0.0301


def test_calibrated_ranges_against_a_float_forward(context):
    """The quantizer of the input, and the one after the stem, against the images and the stem by hand."""
    torch.manual_seed(0)
    model = build("resnet20", shape=(1, 8, 8), classes=10).eval()
    integer = insert_quantizers(model)
    bias = integer.conv.bias.detach().clone()  # it is rounded last
    calibrate(integer, context.dataset, images=len(context.dataset.train), percentile=100, seed=3)
    images = normalize(context.dataset.train.images, context.dataset)
    quantizers = {name: module for name, module in integer.named_modules() if isinstance(module, Quantizer)}
    first, second = list(quantizers.values())[:2]
    low, high = images.min().item(), images.max().item()
    assert first.scale.item() == pytest.approx((high - low) / 255, rel=1e-6)
    assert first.zero_point.item() == round(-low / ((high - low) / 255))
    with torch.no_grad():
        stem = nn.functional.conv2d(images, integer.conv.dequantized(), bias, padding=1).relu()
    assert second.scale.item() == pytest.approx(stem.max().item() / 255, rel=1e-4)
    assert second.zero_point.item() == 0 and all(q.enabled for q in quantizers.values())


def test_batch_norm_folds_to_the_float_model(trained, context):
    """Without its quantizers the integer model is the float one with rounded weights."""
    model, integer, *_ = trained
    images = normalize(context.dataset.test.images[:100], context.dataset)
    quantizers = [module for module in integer.modules() if isinstance(module, Quantizer)]
    try:
        for quantizer in quantizers:
            quantizer.enabled = False
        with torch.no_grad():
            expected, logits = model(images), integer(images)
    finally:
        for quantizer in quantizers:
            quantizer.enabled = True
    assert not any(isinstance(module, nn.BatchNorm2d) for module in integer.modules())
    assert (logits - expected).abs().max() < 0.05 * expected.abs().max()


def test_deployed_file(trained, context):
    model, integer, (convolutions, additions), folder = trained
    images = normalize(context.dataset.test.images, context.dataset)
    export_onnx(integer, folder / "int8.onnx", images=images)  # refuses a file whose logits differ
    export_onnx(model, folder / "fp32.onnx")

    stored = [numpy_helper.to_array(t) for t in onnx.load(folder / "int8.onnx").graph.initializer]
    stored = [array for array in stored if array.dtype == np.int8 and array.ndim > 1]
    layers = [m for m in integer.modules() if isinstance(m, QuantizedConv2d | QuantizedLinear)]
    assert len(stored) == len(layers)
    left = sorted((array.shape, array.tobytes()) for array in stored)
    assert left == sorted((tuple(m.weight.shape), m.weight.numpy().tobytes()) for m in layers)

    assert operator_counts(folder / "int8.onnx") == {
        "convolutions": convolutions,
        "integer_convolutions": convolutions,
        "additions": additions,
        "integer_additions": additions,
    }
    if model.spec["architecture"] == "resnet20":  # after an epoch, resnet18's logits are all but ties
        with torch.no_grad():
            expected = integer(images).argmax(1).numpy()
        assert (run_onnx(open_onnx(folder / "int8.onnx"), images.numpy()).argmax(1) == expected).mean() >= 0.999
    else:
        assert (folder / "int8.onnx").stat().st_size < 0.26 * (folder / "fp32.onnx").stat().st_size


def test_biases_are_those_that_the_runtime_adds(trained, tmp_path):
    """The runtime's own int32 biases, times the scales that it multiplies them with, are the model's."""
    _, integer, (convolutions, _), _ = trained
    export_onnx(integer, tmp_path / "model.onnx")
    open_onnx(tmp_path / "model.onnx", optimized=tmp_path / "rewritten.onnx")
    graph = onnx.load(tmp_path / "rewritten.onnx").graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = [node.input for node in graph.node if node.op_type == "QLinearConv"]
    assert len(nodes) == convolutions
    own = {m.weight.numpy().tobytes(): m for m in integer.modules() if isinstance(m, QuantizedConv2d)}
    for node in nodes:
        _, input_scale, _, weight, weight_scale, weight_zero, _, _, bias = (stored.get(name) for name in node)
        integers = (weight.astype(int) - weight_zero.astype(int).reshape(-1, 1, 1, 1)).astype(np.int8)
        expected = own[integers.tobytes()].bias.numpy()
        np.testing.assert_allclose(bias * (input_scale * weight_scale), expected, rtol=1e-6)


def test_percentile_cuts_both_ends_alike(context):
    integer = insert_quantizers(build("resnet20", shape=(1, 8, 8), classes=10))
    calibrate(integer, context.dataset, images=64, percentile=90, seed=0)
    draws = torch.Generator().manual_seed(0)
    chosen = torch.randperm(len(context.dataset.train), generator=draws)[:64]
    pixels = normalize(context.dataset.train.images[chosen], context.dataset).numpy()
    low, high = np.percentile(pixels, [5, 95])
    first = next(module for module in integer.modules() if isinstance(module, Quantizer))
    assert float(first.scale) == pytest.approx((high - low) / 255, rel=1e-5)


@pytest.mark.parametrize("percentile", [50, 0, 101, float("nan")])
def test_percentile_out_of_range(percentile):
    with pytest.raises(StepError, match="percentile"):
        Quantize(percentile=percentile)


# What a study asks of quantized networks


def test_decibels_against_numpy():
    rng = np.random.default_rng(0)
    signal = rng.normal(size=1000)
    step = 0.01
    rounded = np.rint(signal / step) * step
    expected = 10 * np.log10((signal**2).sum() / ((signal - rounded) ** 2).sum())
    assert decibels(torch.tensor(signal), torch.tensor(rounded)) == pytest.approx(expected, rel=1e-6)
    assert expected == pytest.approx(10 * np.log10(12 / step**2), abs=1)  # uniform noise has the power step^2 / 12
    assert decibels(torch.ones(3), torch.ones(3)) == np.inf


def test_noise_of_a_layers_weight_and_of_the_stem_by_hand(context):
    torch.manual_seed(0)
    model = build("resnet8", shape=(1, 8, 8), classes=10).eval()
    integer = Quantize(images=64).apply(model, context)
    images = normalize(context.dataset.validation.images[:20], context.dataset)
    rows = {(row["layer"], row["what"]): row["db"] for row in signal_to_noise(model, integer, images)}
    weight = model.linear.weight.detach()
    expected = 10 * torch.log10(weight.square().sum() / (weight - integer.linear.dequantized()).square().sum())
    assert rows["linear", "weights"] == pytest.approx(expected.item(), rel=1e-4)
    with torch.no_grad():
        stem = model.bn(model.conv(images)).relu()
        rounded = integer.quantizer_relu(integer.conv(integer.quantizer_x(images)).relu())
    expected = 10 * torch.log10(stem.square().sum() / (stem - rounded).square().sum())
    assert rows["relu", "activations"] == pytest.approx(expected.item(), rel=1e-3)
    assert len(rows) == 10 + 14  # 9 convolutions and a linear layer; what enters each, and what is added


def test_more_bits_are_six_decibels_each(context):
    torch.manual_seed(0)
    model = build("resnet8", shape=(1, 8, 8), classes=10).eval()
    images = normalize(context.dataset.validation.images[:20], context.dataset)
    mean = {}
    for bits in (4, 6):
        rows = signal_to_noise(model, Quantize(bits=bits, images=64).apply(model, context), images)
        inner = [row["db"] for row in rows if row["what"] == "weights"][1:-1]
        mean[bits] = np.mean(inner)
    assert mean[6] - mean[4] == pytest.approx(12, abs=2)


def test_no_hooks_are_left_behind_by_a_forward_that_fails(context, monkeypatch):
    model = build("resnet8", shape=(1, 8, 8), classes=10).eval()
    monkeypatch.setattr(sparse_products, "spec_of", lambda model: {"shape": (3, 8, 8)})
    integer = insert_quantizers(model)
    wrong = dataclasses.replace(
        context.dataset, train=Split(torch.zeros(4, 3, 8, 8, dtype=torch.uint8), torch.zeros(4))
    )
    for failing in (
        lambda: calibrate(integer, wrong, images=4, percentile=100, seed=0),
        lambda: signal_to_noise(model, integer, torch.zeros(2, 1, 8, 8)[:, :, :0]),
        lambda: sparse_products._product_shapes(model, 4),
    ):
        with pytest.raises(RuntimeError):
            failing()
    assert not any(module._forward_hooks for one in (model, integer) for module in one.modules())
    assert all(module.enabled for module in integer.modules() if isinstance(module, Quantizer))


def test_cases_of_calibration_and_fields_that_there_are_not():
    base = Recipe("digits", (Train("resnet8"),))
    assert study.calibrations(base, []) == []
    rows = [(row["calibration"], row["images"], row["weights"]) for row, _ in study.calibrations(base, iter([32, 64]))]
    assert len(rows) == 7 and rows[-1] == ("percentile", 64, "per tensor") and rows[3][1] == 64
    with pytest.raises(StepError, match="Quantize has no field 'foo': use some of mode, bits"):
        study.widths(base, [(4, 1, 0.1)], foo=1)
    with pytest.raises(StepError, match="Prune has no field 'foo': use some of .*schedule"):
        pruning.sparsities([base], ["lookahead"], [0.5], foo=1)


def test_agreement_by_hand(context):
    torch.manual_seed(0)
    model = build("resnet8", shape=(1, 8, 8), classes=10).eval()
    split = context.dataset.validation
    with torch.no_grad():
        own = model(normalize(split.images, context.dataset)).argmax(1).numpy()
    other = own.copy()
    other[:7] = (other[:7] + 1) % 10
    assert agreement(model, own, context.dataset, split) == 1
    assert agreement(model, other, context.dataset, split) == pytest.approx(1 - 7 / len(split))


def test_constant_activations_are_exact(context):
    """A network whose first layer gives zero everywhere: every range is a point, and nothing divides by it."""
    torch.manual_seed(0)
    model = build("resnet8", shape=(1, 8, 8), classes=10).eval()
    model.bn.weight.data.zero_()
    model.bn.bias.data.zero_()
    integer = Quantize(images=64).apply(model, context)
    with torch.no_grad():
        logits = integer(normalize(context.dataset.test.images[:4], context.dataset))
    assert torch.isfinite(logits).all() and float(integer.quantizer_relu.scale) == 1


class WithNorm(nn.Module):
    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)
        self.spec = {"architecture": "mine", "shape": [4], "classes": 4}

    def forward(self, x):
        return self.norm(self.linear(x))


def test_an_operator_without_an_integer_form_stays_in_floats_and_is_named():
    integer = insert_quantizers(WithNorm())
    assert left_in_floats(integer) == ["norm"] and isinstance(integer.linear, QuantizedLinear)


def test_a_file_without_integer_operators_is_refused(folders, monkeypatch):
    monkeypatch.setattr(runner, "operator_counts", lambda file: {"convolutions": 6, "integer_convolutions": 0})
    recipe = Recipe("digits", (Train("tiny", epochs=1, batch_size=64),)).then(Quantize(images=64))
    with pytest.raises(StorageError, match="no convolution of .* runs on integers"):
        run(recipe)
    assert not list(folders[0].glob("*.json"))


def test_a_teacher_guides_the_training(context, tmp_path):
    """With alpha 1 the labels count for nothing: on labels turned round, the student still answers as its teacher."""
    torch.manual_seed(0)
    first, second = (dataclasses.replace(context, checkpoint=Checkpoint(tmp_path / name)) for name in "ab")
    teacher = Train("resnet8", epochs=3, batch_size=32, learning_rate=0.1).apply(None, first).cpu().eval()
    train = context.dataset.train
    wrong = dataclasses.replace(context.dataset, train=Split(train.images, (train.labels + 1) % 10))
    recipe = Recipe("digits", (Train("resnet8"),))
    made = dataclasses.replace(second, dataset=wrong, make=lambda recipe: teacher)
    step = Quantize("qat", bits=4, epochs=2, batch_size=32, images=64, teacher=recipe, alpha=1.0)
    integer = step.apply(copy.deepcopy(teacher), made)
    test = context.dataset.test
    with torch.no_grad():
        images = normalize(test.images, context.dataset)
        same = (integer(images).argmax(1) == teacher(images).argmax(1)).float().mean()
    assert same > 0.9
    with pytest.raises(StepError, match="teacher would change nothing: static quantization does not"):
        Quantize(teacher=recipe)


def test_identities_last():
    """Hashes of the canonical JSON written out by hand: fields added since leave them alone."""
    base = Recipe("digits", (Train("resnet20", epochs=10),))
    for step, said in ((Quantize(), ""), (Quantize("qat", 4), ',"bits":4,"mode":"qat"')):
        quantize = "{" + ",".join(part for part in (said[1:], '"step":"Quantize"') if part) + "}"
        train = '{"epochs":10,"model":"resnet20","step":"Train"}'
        text = f'{{"dataset":"digits","seed":0,"steps":[{train},{quantize}]}}'
        assert base.then(step).id == hashlib.sha256(text.encode()).hexdigest()[:12]


@pytest.mark.slow  # notebook 2 takes them too, in its small run
def test_every_path_to_int8_runs(context, monkeypatch):
    torch.manual_seed(0)
    model = build("resnet8", shape=(1, 8, 8), classes=10).eval()
    monkeypatch.setenv("MEASURE_SECONDS", "0.02")
    rows = {row["path"]: row for row in paths(model, context)}
    operators = {name: row["integer_operators"] for name, row in rows.items()}
    assert operators["FP32"] == operators["integer weights only"] == 0
    assert operators["ours: U8S8, per channel"] == operators["runtime's own: U8S8"] == 9 + 3
    assert operators["dynamic ranges"] == 9  # additions have no ranges to be found
    assert 0 < operators["PT2E, quantizer for x86"] < 9 + 3  # its quantizer leaves out what stands before an addition
    assert all(row["operators"] == 12 and row["file_bytes"] > 0 for row in rows.values())
    assert all(0 <= row["accuracy"] <= 1 for row in rows.values())


def test_a_line_that_falls_to_chance_leaves_the_chart():
    rows = [(32, "float", 0.90), (8, "static", 0.89), (2, "static", 0.10), (8, "trained", 0.90), (2, "trained", 0.85)]
    table = pd.DataFrame(rows, columns=["bits", "how", "accuracy"])
    table = table.assign(accuracy_low=table["accuracy"] - 0.01, accuracy_high=table["accuracy"] + 0.01)
    ax = accuracy_by_bits(table, plt.figure().add_subplot())
    low, high = ax.get_ylim()
    assert 82 < low < 84 and 91 < high < 93  # the intervals span 84 to 91
    assert [(text.get_text(), text.xy) for text in ax.texts] == [("10 %", (1, low))]
    whole = accuracy_by_bits(table[table["accuracy"] > 0.5], plt.figure().add_subplot())
    assert not whole.texts
    plt.close("all")
