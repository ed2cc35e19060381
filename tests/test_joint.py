"""Joint: one training, whose model keeps its zeros, its integers and its file."""

import dataclasses
import math
from fractions import Fraction
from functools import partial
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from combination import Joint
from combination import joint as module
from data import load, normalize
from distillation import Distill
from experiment import Recipe
from models import ARCHITECTURES, ModelError, ResNet, build
from models.quantized import QuantizedConv2d, QuantizedLinear
from pruning import Prune, Pruner
from quantization import Quantize
from recipe import StepError
from storage import Checkpoint, export_onnx, load_archive, save_archive
from training import Context, Train


class Killed(Exception):
    pass


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "tiny", lambda shape, classes, width: ResNet((8, 16), (1, 1), shape[0], classes))
    checkpoint = Checkpoint(tmp_path / "checkpoint")
    return Context(load("digits"), 0, torch.device("cpu"), checkpoint, make=None, cache=tmp_path)


@pytest.fixture
def teacher(context):
    torch.manual_seed(7)
    return build("tiny", shape=context.dataset.shape, classes=10).eval()


def layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantizedConv2d | QuantizedLinear)}


FIELDS = {"sparsity": 0.6, "bits": 4, "epochs": 5, "batch_size": 64, "images": 64, "learning_rate": 0.1}
FIELDS["layer_bits"] = (("blocks.0.conv1", 2), ("blocks.1.conv2", "ternary"))


def test_zeros_integers_and_files(context, teacher, tmp_path):
    integer = Joint("tiny", **FIELDS).apply(teacher, context)
    weights = {name: layer.weight.numpy() for name, layer in layers(integer).items()}
    total, zeros = sum(w.size for w in weights.values()), sum(int((w == 0).sum()) for w in weights.values())
    assert zeros >= round(0.6 * total)  # rounding makes more of them
    for name, weight in weights.items():
        own = {"conv": (-127, 127), "linear": (-127, 127), "blocks.0.conv1": (-2, 1), "blocks.1.conv2": (-1, 1)}
        low, high = own.get(name, (-8, 7))
        assert low <= weight.min() and weight.max() <= high
    file = tmp_path / "joint.onnx"
    export_onnx(integer, file, images=normalize(context.dataset.test.images[:64], context.dataset))
    stored = [numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer]
    stored = [array for array in stored if array.dtype == np.int8 and array.ndim > 1]
    assert sum(int((array == 0).sum()) for array in stored) == zeros
    save_archive(integer, tmp_path / "joint.nna")
    restored = layers(load_archive(tmp_path / "joint.nna"))
    assert all(np.array_equal(restored[name].weight.numpy(), weight) for name, weight in weights.items())


def test_it_learns(context, teacher):
    dataset = context.dataset
    taught = Train("tiny", epochs=4, batch_size=32).apply(None, context)
    context.checkpoint.clear()
    integer = Joint("tiny", sparsity=0.3, bits=8, epochs=8, batch_size=32, images=64).apply(taught, context)
    with torch.no_grad():
        answers = integer(normalize(dataset.test.images, dataset)).argmax(1)
    assert (answers == dataset.test.labels).float().mean() > 0.8


@pytest.mark.parametrize("epoch", [1, 3, 4])
def test_a_killed_training_ends_the_same(context, teacher, epoch, monkeypatch):
    whole = Joint("tiny", **FIELDS).apply(teacher, context).state_dict()
    context.checkpoint.clear()
    save, saved = Checkpoint.save, []

    def killed(checkpoint, *given):
        save(checkpoint, *given)
        saved.append(checkpoint.path == context.checkpoint.path)
        if sum(saved) == epoch:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", killed)
        with pytest.raises(Killed):
            Joint("tiny", **FIELDS).apply(teacher, context)
    again = Joint("tiny", **FIELDS).apply(teacher, context).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_a_teacher_by_name_teaches_as_the_model_before_does(context, teacher):
    following = Joint("tiny", **FIELDS).apply(teacher, context).state_dict()
    context.checkpoint.clear()
    base = Recipe("digits", (Train("resnet8"),))
    named = dataclasses.replace(context, make={base: teacher}.get)
    alone = Joint("tiny", **FIELDS, teachers=(base,)).apply(None, named).state_dict()
    assert all(torch.equal(tensor, alone[name]) for name, tensor in following.items())
    other = build("tiny", shape=context.dataset.shape, classes=10).eval()
    context.checkpoint.clear()
    apart = dataclasses.replace(context, make={base: other}.get)
    taught = Joint("tiny", **FIELDS, teachers=(base,)).apply(teacher, apart).state_dict()
    assert not all(torch.equal(tensor, taught[name]) for name, tensor in following.items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsity": 1.2}, "0 to below 1"), ({"bits": 1}, "2 to 8"), ({"quantize_from": "0.6"}, "quantize_from"),
        ({"prune_from": 1.0}, "prune_from is a share of the training, 0 to below 1, not 1.0"),
        ({"temperature": 0}, "temperature"), ({"criterion": "luck"}, "lookahead"), ({"epochs": 0}, "epochs"),
        ({"alpha": "0.9"}, "alpha, .* not '0.9'"), ({"quantize_from": 1.0}, "0 to below 1, not 1.0"),
        ({"layer_bits": (("conv", 1),)}, "2 to 8"), ({"epochs": 2}, "no whole epoch to train with .* most 0.5"),
        ({"teachers": ["resnet18"]}, "tuple of recipes"),
        ({"epochs": 1}, "at most 0, not 0.6"), ({"epochs": 5, "quantize_from": 0.9}, "at most 0.8, not 0.9"),
        ({"epochs": 3, "quantize_from": 0.667}, "at most 0.666, not 0.667"),  # two thirds, rounded down
        ({"prune_from": 0.999}, "prune_from leaves no whole epoch to prune and recover in: of 30 .* most 0.966"),
        ({"layer_bits": (("conv", 2), ("conv", 4))}, "layer_bits names 'conv' twice"),
        ({"layer_bits": ((["conv"], 2),)}, "layer_bits is a tuple of pairs of name and bits"),
    ],
)  # fmt: skip
def test_bad_fields(fields, message):
    with pytest.raises(StepError, match=message):
        Joint("resnet8", **fields)


def test_pruning_may_begin_with_the_last_epoch():
    for epochs in range(2, 40):
        Joint("resnet8", epochs=epochs, prune_from=1 - 1 / epochs, quantize_from=0)


@pytest.mark.parametrize(
    "make", [partial(Joint, "resnet8"), partial(Distill, "resnet8"), Prune, partial(Quantize, "qat")]
)
def test_a_boolean_is_no_number(make):
    for name in ("epochs", "batch_size", "learning_rate", "weight_decay", "temperature", "alpha"):
        with pytest.raises(StepError, match=f"{name}.* must be .*, not True"):
            make(**{name: True})


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (Joint, "model"), (Distill, "model"), (partial(Joint, "resnet8"), "criterion"), (Quantize, "mode"),
        (Quantize, "calibration"), *((Prune, name) for name in ("criterion", "scope", "schedule", "order")),
    ],
)  # fmt: skip
def test_names_are_text(step, name):
    with pytest.raises((StepError, ModelError), match=rf"unknown .*{name} \('a',\)"):
        step(**{name: ["a"]})


def test_layer_bits_of_no_layer(context, teacher):
    with pytest.raises(StepError, match="'blocks.7.conv1', which is no layer: use some of conv, blocks.0.conv1"):
        Joint("tiny", layer_bits=(("blocks.7.conv1", 2),)).apply(teacher, context)


@pytest.mark.parametrize("tenths", range(10))
def test_rounding_starts_once_at_the_first_whole_epoch(tenths, monkeypatch):
    started, enabled = [], []
    monkeypatch.setattr(module, "insert_quantizers", lambda model: model)
    monkeypatch.setattr(module, "calibrate", lambda *given: None)
    monkeypatch.setattr(module.qat, "start", lambda *given: started.append(epoch))
    monkeypatch.setattr(module.qat, "enable", lambda *given: enabled.append(epoch))
    monkeypatch.setattr(module.qat, "before_epoch", lambda *given: None)
    share = sum([0.1] * tenths)  # such as 0.30000000000000004
    for epochs in range(1, 21):
        first = math.ceil(Fraction(tenths, 10) * epochs)
        if first == epochs:
            with pytest.raises(StepError, match="no whole epoch"):
                Joint("resnet8", epochs=epochs, quantize_from=share)
            continue
        joint = Joint("resnet8", epochs=epochs, quantize_from=share)
        started.clear(), enabled.clear()
        for epoch in range(epochs):
            module._AtOnce(joint, Mock(), Mock(), Mock(), Mock()).before_epoch(epoch / epochs)
        assert started == [first] and enabled == list(range(first, epochs))


def test_the_zeros_come_along_a_cubic_after_their_share_of_the_training(context, teacher, monkeypatch):
    after_step, zeros = Pruner.after_step, []

    def watched(pruner, done):
        after_step(pruner, done)
        zeros.append(sum(int((layer.module.weight == 0).sum()) for layer in pruner.graph.values()))

    monkeypatch.setattr(module.Pruner, "after_step", watched)
    Joint("tiny", **FIELDS | {"epochs": 10, "prune_from": 0.5, "quantize_from": 0.9}).apply(teacher, context)
    total = sum(w.numel() for n, w in build("tiny", shape=(1, 8, 8), classes=10).named_parameters() if w.ndim > 1)
    steps = len(zeros)
    assert not any(zeros[: steps // 2 - 1])
    for done, share in ((0.65, 0.6 * (1 - 0.5**3)), (0.8, 0.6), (1.0, 0.6)):  # of the half that is left, 60 % prune
        assert zeros[round(done * steps) - 1] == pytest.approx(share * total, abs=1)


def test_what_can_come_before_and_after():
    with pytest.raises(StepError, match="Joint needs a teacher: .* or give it teachers"):
        Joint("resnet8").check_after(())
    Joint("resnet8", teachers=(Recipe("digits", (Train("resnet8"),)),)).check_after(())
    for step in (Quantize(), Prune()):
        with pytest.raises(StepError, match="follow Joint"):
            step.check_after((Joint("resnet8"),))
    Joint("resnet8").check_after((Distill("resnet8"),))
