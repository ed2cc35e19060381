"""Low bits and quantization-aware training: levels and gradients by hand, integers from training to the file."""

import copy
import dataclasses
import itertools
import math

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from data import Split, load, normalize
from experiment import Recipe
from measurement import operator_counts
from models import build
from models.quantized import QuantizedConv2d, QuantizedLinear, Quantizer, insert_quantizers
from quantization import Quantize, qat
from quantization.mixed import allocate, sensitivity
from quantization.static import least_error_range, scale_and_zero_point
from quantization.weights import best_scale, bits_by_layer, levels, round_weight
from recipe import StepError
from report import by_width
from report.published import quantized_beside_published
from storage import Checkpoint, export_onnx
from study import quantization as study
from training import Context, Train, TrainingDiverged


@pytest.fixture
def context(tmp_path) -> Context:
    digits = load("digits")
    digits = dataclasses.replace(digits, train=Split(digits.train.images[:256], digits.train.labels[:256]))
    return Context(digits, 0, torch.device("cpu"), Checkpoint(tmp_path / "checkpoint"), make=None, cache=tmp_path)


# Enough to calibrate with.
SMALL = Context(load("digits"), 0, torch.device("cpu"), Checkpoint(None), make=None, cache=None)


def network(name: str = "resnet20") -> nn.Module:
    """A residual network with statistics and signs of batch norm that folding must not get wrong."""
    torch.manual_seed(0)
    model = build(name, shape=(1, 8, 8), classes=10)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            module.weight.data[::3] *= -1
            nn.init.normal_(module.bias, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.normal_(module.running_mean, std=0.2)
    return model.eval()


# Levels and scales


@pytest.mark.parametrize(
    ("bits", "expected"), [(8, (-127, 127)), (4, (-8, 7)), (3, (-4, 3)), (2, (-2, 1)), ("ternary", (-1, 1))]
)
def test_levels_by_hand(bits, expected):
    assert levels(bits) == expected


@pytest.mark.parametrize("bits", [2, 3, 4, "ternary"])
def test_best_scale_against_brute_force(bits):
    weight = torch.randn(3, 40, generator=torch.Generator().manual_seed(1))
    low, high = levels(bits)
    found = best_scale(weight, bits).numpy()
    for row, scale in zip(weight.numpy(), found, strict=True):
        tried = np.linspace(0.01, 3, 3000)
        errors = [np.square(np.clip(np.rint(row / s), low, high) * s - row).mean() for s in tried]
        own = np.square(np.clip(np.rint(row / scale), low, high) * scale - row).mean()
        assert own <= 1.05 * min(errors)
    assert np.array_equal(
        round_weight(weight, torch.from_numpy(found), bits).numpy(),
        np.clip(np.rint(weight.numpy() / found[:, None]), low, high),
    )


def test_a_channel_of_zeros_and_one_scale_for_all():
    weight = torch.stack([torch.zeros(9), torch.linspace(-1, 1, 9)])
    assert best_scale(weight, 4)[0] == 1 and (round_weight(weight, best_scale(weight, 4), 4)[0] == 0).all()
    assert len(set(best_scale(torch.randn(5, 9), 8, per_channel=False).tolist())) == 1


def test_least_error_range_against_brute_force():
    values = np.random.default_rng(0).normal(size=20_000).astype(np.float32) ** 3  # heavy tails

    def error(low, high):
        scale, zero_point = scale_and_zero_point(low, high)
        rounded = (np.clip(np.rint(values / scale) + zero_point, 0, 255) - zero_point) * scale
        return np.square(rounded - values).mean()

    shares = np.linspace(0.05, 1, 200)
    best = min(error(share * values.min(), share * values.max()) for share in shares)
    found = error(*least_error_range(values))
    assert found <= 1.02 * best and found < error(values.min(), values.max())


# The learned step's gradients


def test_gradients_against_the_papers_formula():
    generator = torch.Generator().manual_seed(2)
    x = (4 * torch.randn(500, generator=generator)).requires_grad_()
    scale = torch.tensor(0.7, requires_grad=True)
    upstream = torch.randn(500, generator=generator)
    (qat.FakeQuantize.apply(x, scale, -4, 3) * upstream).sum().backward()
    v = (x / scale).detach().numpy()
    inside = (v >= -4) & (v <= 3)
    of_scale = np.where(inside, np.rint(v) - v, np.clip(v, -4, 3))
    np.testing.assert_allclose(x.grad.numpy(), upstream.numpy() * inside, rtol=1e-6)
    expected = (of_scale * upstream.numpy()).sum() / math.sqrt(500 * 3)
    assert scale.grad.item() == pytest.approx(expected, rel=1e-4)


def test_gradient_of_the_step_against_finite_differences_beyond_the_levels():
    """There the output is the last level times the step: smooth in it."""
    x = torch.tensor([5.0, 9.0, -7.0], dtype=torch.float64)
    scale = torch.tensor(1.0, dtype=torch.float64, requires_grad=True)
    qat.FakeQuantize.apply(x, scale, -4, 3).sum().backward()
    above, below = (
        qat.FakeQuantize.apply(x, torch.tensor(1 + d, dtype=torch.float64), -4, 3).sum() for d in (1e-4, -1e-4)
    )
    assert scale.grad.item() == pytest.approx(float(above - below) / 2e-4 / math.sqrt(3 * 3), rel=1e-6)


def test_each_channel_learns_its_own_step():
    x = torch.randn(3, 2, 2, 2, generator=torch.Generator().manual_seed(3))
    scale = torch.tensor([0.1, 0.5, 1.0]).reshape(3, 1, 1, 1).requires_grad_()
    qat.FakeQuantize.apply(x, scale, -2, 1).square().sum().backward()
    for channel in range(3):
        own = scale[channel, 0, 0, 0].detach().clone().requires_grad_()
        qat.FakeQuantize.apply(x[channel], own, -2, 1).square().sum().backward()
        assert scale.grad[channel].item() == pytest.approx(own.grad.item(), rel=1e-5)


# From training to the file


@pytest.mark.parametrize("bits", [8, 2, "ternary"])
def test_the_deployed_integers_are_those_of_the_training(folders, context, bits, tmp_path):
    model = network("tiny")
    model.blocks[0].conv1.weight.data[:, ::2] = 0  # a pruned layer
    pruned = model.blocks[0].conv1.weight == 0
    step = Quantize(mode="qat", bits=bits, epochs=1, batch_size=64, images=64)
    seen = {}
    original = qat.finish

    def finish(trained, float_model):
        seen.update({name: fake for name, fake in trained.named_modules() if isinstance(fake, qat._FakeWeight)})
        images = normalize(context.dataset.test.images[:64], context.dataset)
        with torch.no_grad():
            seen["logits"] = trained.cpu().eval()(images)
        return original(trained, float_model)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(qat, "finish", finish)
        integer = step.apply(model, context)
    expected = seen.pop("logits")
    with torch.no_grad():
        logits = integer(normalize(context.dataset.test.images[:64], context.dataset))
    assert (logits - expected).norm() < 0.05 * expected.norm()  # folding only rounds

    layers = {n: m for n, m in integer.named_modules() if isinstance(m, QuantizedConv2d | QuantizedLinear)}
    assert layers.keys() == seen.keys()
    for name, layer in layers.items():
        fake = seen[name]
        low, high = levels(fake.bits)
        steps = fake.weight_scale.detach().reshape(-1, *[1] * (fake.weight.ndim - 1))
        trained = np.clip(np.rint((fake.weight.detach() / steps).numpy()), low, high)
        assert np.array_equal(np.abs(layer.weight.numpy()), np.abs(trained * (fake.mask.numpy())))
        assert fake.bits == (8 if name in ("conv", "linear") else bits)
        assert not (layer.weight_scale.numpy().view(np.int32) & 0xFFFF).any()  # the bits that bfloat16 lacks
    ours, trained = layers["linear"].weight_scale, seen["linear"].weight_scale.detach()  # no norm is folded in
    assert not torch.equal(ours, trained)
    torch.testing.assert_close(ours, trained, rtol=2**-8, atol=0)
    assert (layers["blocks.0.conv1"].weight[pruned] == 0).all() and pruned.any()

    file = tmp_path / "model.onnx"
    images = normalize(context.dataset.test.images, context.dataset)
    export_onnx(integer, file, images=images)  # refuses a file whose logits differ
    stored = [numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer]
    stored = sorted(array.tobytes() for array in stored if array.dtype == np.int8 and array.ndim > 1)
    assert stored == sorted(layer.weight.numpy().tobytes() for layer in layers.values())
    counts = operator_counts(file)
    assert counts["integer_convolutions"] == counts["convolutions"] == 6
    assert counts["integer_additions"] == counts["additions"] == 2


def test_a_step_that_an_update_takes_through_zero_goes_back_and_others_are_left_alone():
    trained = qat.prepare(network(), bits_by_layer(network(), 4, 8))
    qat.start(trained, Quantize(images=32).apply(network(), SMALL))
    modules = {n: m for n, m in trained.named_modules() if isinstance(m, qat._FakeWeight | qat.FakeQuantizer)}
    modules["conv"].weight_scale.data[2] = 1e-9  # a channel whose weights are all but zero starts there
    qat.before_epoch(trained, 0.0)
    before = {name: module.step.detach().clone() for name, module in modules.items()}
    weights, activation = modules["conv"].weight_scale.data, modules["quantizer_relu"].scale.data
    weights[:4] = torch.tensor([-3.0, 1e-7, -1.0, 2e-6])
    activation.fill_(-0.5)
    qat.after_step(trained, 0.1)
    expected = {name: step.clone() for name, step in before.items()}
    expected["conv"][2:4] = torch.tensor([qat.SMALLEST_STEP, 2e-6])
    assert all(torch.equal(module.step, expected[name]) for name, module in modules.items())
    assert before["conv"][0] > 1e-3 and before["quantizer_relu"] > 1e-3


def test_training_on_the_brink_of_divergence_ends_in_a_file_that_computes_the_same(context, tmp_path):
    """A student of three updates, on 43 images of two classes: gradients are so large that steps were lost."""
    two = of_two_classes(48)
    context = dataclasses.replace(context, dataset=two)
    model = Train("tiny_mixer", epochs=3, batch_size=32).apply(None, context)
    context.checkpoint.clear()
    smallest = []
    with pytest.MonkeyPatch.context() as patch:
        finish = qat.finish
        patch.setattr(
            qat, "finish", lambda trained, float_model: smallest.append(least(trained)) or finish(trained, float_model)
        )
        integer = Quantize("qat", "ternary", epochs=8, learning_rate=0.05, batch_size=32).apply(model, context)
    assert smallest[0] > 10 * qat.SMALLEST_STEP
    export_onnx(integer, tmp_path / "model.onnx", images=normalize(two.test.images, two))  # refuses other logits


def least(trained):
    steps = [m.step.detach() for m in trained.modules() if isinstance(m, qat._FakeWeight | qat.FakeQuantizer)]
    return min(float(step.min()) for step in steps)


def of_two_classes(images):
    digits = load("digits")

    def part(split, start, end):
        chosen = (split.labels < 2).nonzero().flatten()[start:end]
        return Split(split.images[chosen], split.labels[chosen])

    held_out = images // 10
    return dataclasses.replace(
        digits,
        train=part(digits.train, held_out, images),
        validation=part(digits.train, 0, held_out),
        test=part(digits.test, 0, None),
        classes=("0", "1"),
    )


@pytest.mark.parametrize("lost", ["scale of an activation", "scale of a weight", "bias"])
def test_biases_beyond_32_bits_are_a_training_that_diverged(lost):
    model = network("tiny_mixer")
    trained = qat.prepare(model, bits_by_layer(model, 4, 8)).eval()
    qat.start(trained, Quantize(images=32).apply(network("tiny_mixer"), SMALL))
    copied = copy.deepcopy(trained)
    qat.finish(copied, copy.deepcopy(model))
    if lost == "scale of an activation":
        trained.get_submodule("quantizer_input_1").scale.data.fill_(1e-12)
    elif lost == "scale of a weight":
        trained.get_submodule("0").weight_scale.data.fill_(1e-12)
    else:
        trained.get_submodule("1").bias.data.fill_(math.nan)
    with pytest.raises(TrainingDiverged, match="0.bias is .* lower learning_rate"):
        qat.finish(trained, model)


def test_an_untrained_form_rounds_as_the_integer_model_does(context):
    """Before any update: 8-bit weights with their own steps, quantizers in the same places with the same steps."""
    model = network()
    calibrated = Quantize(images=64).apply(network(), context)
    trained = qat.prepare(model, bits_by_layer(model, 8, 8)).eval()
    qat.start(trained, calibrated)
    images = normalize(context.dataset.test.images[:64], context.dataset)
    with torch.no_grad():
        fake = trained(images)
        folded = qat.finish(trained, model)(images)
    assert (fake - folded).norm() < 0.05 * fake.norm()  # a rounding more or less
    names = {name for name, m in insert_quantizers(network()).named_modules() if isinstance(m, Quantizer)}
    assert names == {name for name, m in trained.named_modules() if isinstance(m, qat.FakeQuantizer)}


def test_batch_norm_keeps_its_statistics_late():
    model = network().train()
    qat.before_epoch(model, 0.5)
    assert model.bn.training
    qat.after_step(model, qat.FREEZE)
    assert not model.bn.training and model.blocks.training


def test_it_does_so_within_a_training_of_one_epoch(context, monkeypatch):
    frozen = []
    after_step = qat.after_step
    monkeypatch.setattr(qat, "after_step", lambda m, done: after_step(m, done) or frozen.append((done, m.bn.training)))
    Quantize("qat", epochs=1, batch_size=32, images=64).apply(network(), context)
    assert {training for done, training in frozen if done < qat.FREEZE} == {True}
    assert {training for done, training in frozen if done >= qat.FREEZE} == {False}


@pytest.mark.parametrize(("bits", "as_for"), [(6, 4), (5, 4), (7, 4), (3, 3), ("ternary", "ternary")])
def test_every_width_has_a_training(bits, as_for):
    step = study.trained(Recipe("cifar10", (Train("resnet20"),)), bits).steps[-1]
    assert step.bits == bits and step.epochs == study.EPOCHS["cifar10"][as_for]


def test_a_large_network_has_a_training_of_its_own():
    of = {name: study.trained(Recipe("cifar10", (Train(name),)), 2) for name in ("resnet18", "resnet20")}
    epochs = {name: recipe.steps[-1].epochs for name, recipe in of.items()}
    assert epochs == {"resnet18": study.EPOCHS["cifar10", "resnet18"][2], "resnet20": study.EPOCHS["cifar10"][2]}


def test_each_width_is_trained_as_its_row_says():
    base = Recipe("cifar10", (Train("resnet20"),))
    usual = [(8, 1, 0.002), (4, 3, 0.01), ("ternary", 4, 0.02)]
    cases = study.widths(base, usual)
    assert [(words["bits"], words["how"]) for words, _ in cases[:3]] == [(32, "float"), (8, "static"), (8, "trained")]
    for (bits, *_), (_, recipe) in zip(usual, cases[2::2], strict=True):
        assert recipe.id == study.trained(base, bits).id
    step = study.widths(base, [(4, 7, 0.5)], optimizer="adamw", epochs=8)[-1][1].steps[-1]
    assert (step.bits, step.epochs, step.learning_rate, step.optimizer) == (4, 8, 0.5, "adamw")


def test_records_in_eight_bits_beside_the_published_ones():
    """By hand from its table: FP32 86.02 %, static 78.8, trained 84.4."""
    rows = [("float", 32, 0.9), ("static", 8, 0.8), ("trained", 8, 0.85), ("trained", 4, 0.7)]
    table = pd.DataFrame(rows, columns=["how", "bits", "accuracy"]).assign(label="net", nonzero_parameters=1000)
    table = table.assign(onnx_bytes=2e6, archive_bytes=1e6)
    found = quantized_beside_published(table.assign(**{"latency_ms.batch1_one_thread.median": 1.0}))
    assert found["accuracy %"].tolist() == [90, 80, 85] and found["reported %"].tolist() == [86.02, 78.8, 84.4]


def test_widths_are_compared_with_the_float_network():
    rows = [("float", 32, 0.9, 4e6), ("static", 2, 0.5, 3e5), ("trained", 2, 0.88, 2e5), ("trained", 2, 0.90, 2e5)]
    table = pd.DataFrame(rows, columns=["how", "bits", "accuracy", "archive_bytes"])
    row = by_width(table.assign(model="resnet20", base_onnx_bytes=4e6)).iloc[0]
    assert (row["rounded only %"], row["points"], row["trained %"], row["points, trained"]) == (50, -40, 89, -1)
    assert (row["archive KB"], row["x smaller"]) == (200, 20)


def test_static_low_bits(context):
    """Layers of their own, by name; the first and last at 8."""
    integer = Quantize(bits=3, layer_bits=(("blocks.0.conv1", 2),), images=64).apply(network(), context)
    largest = {n: int(m.weight.abs().max()) for n, m in integer.named_modules() if isinstance(m, QuantizedConv2d)}
    assert largest["conv"] == 127 and largest["blocks.0.conv1"] == 2 and largest["blocks.0.conv2"] in (3, 4)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"bits": 0}, "2 to 8"), ({"bits": 9}, "2 to 8"), ({"bits": 2.5}, "2 to 8"), ({"first_last_bits": 1}, "2 to 8"),
        ({"layer_bits": (("conv", 16),)}, "2 to 8"), ({"mode": "magic"}, "'static' or 'qat'"),
        ({"calibration": "guess"}, "percentile, minmax, mse"), ({"mode": "qat", "epochs": 0}, "epochs"),
        ({"mode": "qat", "per_channel": False}, "per output channel"), ({"learning_rate": 0}, "learning_rate"),
        ({"images": 64.5}, "images must be a whole number"), ({"percentile": "99"}, "percentile must be"),
        ({"mode": "qat", "teacher": "resnet18"}, "teacher must be a recipe or None, not 'resnet18'"),
        *(({"layer_bits": own}, "layer_bits must be a tuple of") for own in (("conv", 2), {3: 2}, "conv")),
        ({"layer_bits": (("conv", 2), ("conv", 2))}, "layer_bits names 'conv' twice: give each layer one pair"),
        ({"layer_bits": ((["conv"], 2),)}, "layer_bits must be a tuple of"),
        ({"images": True}, "images must be .* not True"),
        ({"calibration": "minmax", "percentile": 99}, "percentile would change nothing: the calibration minmax has"),
        ({"calibration": "mse", "percentile": 99}, "percentile would change nothing"),
        ({"mode": "qat", "alpha": 0.5}, "alpha would change nothing: there is no teacher; name one, or leave it out"),
        *(
            ({"bits": 4, **own}, f"{next(iter(own))} would change nothing: static quantization does not train; use")
            for own in (
                {"epochs": 10, "learning_rate": 0.02}, {"learning_rate": 0.02}, {"batch_size": 64},
                {"weight_decay": 0.0}, {"temperature": 2.0}, {"alpha": 0.5},
            )
        ),
    ],
)  # fmt: skip
def test_bad_fields(fields, message):
    with pytest.raises(StepError, match=message):
        Quantize(**fields)


def test_a_layer_that_does_not_exist(context):
    with pytest.raises(StepError, match="'blocks.9.conv1', which is not a layer"):
        Quantize(layer_bits=(("blocks.9.conv1", 4),)).apply(network(), context)


# Mixed precision


@pytest.mark.parametrize("budget", [40, 55, 70, 1000])
def test_allocation_against_exhaustive_search(budget):
    draws = np.random.default_rng(budget)
    weights = {"a": 40, "b": 100, "c": 10, "d": 60}
    widths = (2, 3, 4, 8)
    harm = {(name, bits): float(draws.uniform(0, 1) / bits) for name in weights for bits in widths}
    if budget < sum(weights.values()) * 2 / 8:
        with pytest.raises(StepError, match="smallest takes 52"):
            allocate(weights, harm, budget)
        return
    best = math.inf
    for choice in itertools.product(widths, repeat=4):
        if sum(b * n for b, n in zip(choice, weights.values(), strict=True)) / 8 <= budget:
            best = min(best, sum(harm[pair] for pair in zip(weights, choice, strict=True)))
    found = allocate(weights, harm, budget)
    assert sum(found[n] * weights[n] for n in weights) / 8 <= budget
    assert sum(harm[pair] for pair in found.items()) == pytest.approx(best)


def test_sensitivity_leaves_the_model_alone_and_matches_a_direct_forward(context):
    model = network()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    rows = sensitivity(model, context.dataset, (2, 8), images=50)
    assert len(rows) == 2 * 22 and all(torch.equal(before[n], t) for n, t in model.state_dict().items())
    row = next(r for r in rows if r["layer"] == "linear" and r["bits"] == 2)
    scale = best_scale(model.linear.weight, 2)
    with torch.no_grad():
        model.linear.weight.copy_(round_weight(model.linear.weight, scale, 2) * scale[:, None])
        logits = model(normalize(context.dataset.validation.images[:50], context.dataset))
    labels = context.dataset.validation.labels[:50]
    assert row["accuracy"] == pytest.approx((logits.argmax(1) == labels).float().mean().item())
    assert row["weights"] == 640
