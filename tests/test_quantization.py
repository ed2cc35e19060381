"""Static INT8: the arithmetic by hand, and the deployed file against the model."""

import dataclasses

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from data import load, normalize
from measurement import operator_counts
from models import build
from models.quantized import QuantizedConv2d, QuantizedLinear, Quantizer, insert_quantizers, int8_rounding
from quantization import Quantize, calibrate
from quantization.static import scale_and_zero_point
from storage import Checkpoint, export_onnx, open_onnx, run_onnx
from training import Context, StepError, Train


@pytest.fixture(scope="module")
def context(tmp_path_factory) -> Context:
    folder = tmp_path_factory.mktemp("training")
    return Context(load("digits"), 0, torch.device("cpu"), Checkpoint(folder / "checkpoint"), make=None, cache=folder)


@pytest.fixture(scope="module", params=[("resnet18", 1, 20, 8), ("resnet20", 6, 21, 9)], ids=lambda case: case[0])
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
        layer.weight[1] = 0  # a channel without a scale of its own
    weight = layer.weight.detach().numpy().reshape(len(layer.weight), -1)
    largest = np.abs(weight).max(1, keepdims=True)
    scale = np.where(largest > 0, largest / np.float32(127), np.float32(1))
    integer = form(layer, *int8_rounding("layer", layer))
    assert integer.weight.dtype == torch.int8
    assert (integer.weight.numpy().reshape(weight.shape) == np.rint(weight / scale)).all()
    np.testing.assert_allclose(integer.weight_scale.numpy(), scale[:, 0], rtol=1e-7)
    assert (integer.dequantized().detach() - layer.weight).abs().max() <= scale.max() / 2 * 1.0001


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
    calibrate(integer, context.dataset, images=len(context.dataset.train), percentile=100, seed=3)
    images = normalize(context.dataset.train.images, context.dataset)
    quantizers = {name: module for name, module in integer.named_modules() if isinstance(module, Quantizer)}
    first, second = list(quantizers.values())[:2]
    low, high = images.min().item(), images.max().item()
    assert first.scale.item() == pytest.approx((high - low) / 255, rel=1e-6)
    assert first.zero_point.item() == round(-low / ((high - low) / 255))
    with torch.no_grad():
        stem = nn.functional.conv2d(images, integer.conv.dequantized(), integer.conv.bias, padding=1).relu()
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
        assert (run_onnx(open_onnx(folder / "int8.onnx"), images.numpy()).argmax(1) == expected).mean() >= 0.99
    else:
        assert (folder / "int8.onnx").stat().st_size < 0.26 * (folder / "fp32.onnx").stat().st_size


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
