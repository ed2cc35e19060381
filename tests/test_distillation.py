"""Distillation: the loss against numpy and its limits, cached logits against fresh ones, ensembles as one file."""

import copy
import dataclasses
import math
import shutil
from collections import Counter
from types import SimpleNamespace

import numpy as np
import onnx
import pandas as pd
import pytest
import torch
from matplotlib.figure import Figure
from onnx import numpy_helper
from torch import nn
from torch.nn.functional import cross_entropy, one_hot

from data import Dataset, Split, batches, load, normalize
from distillation import (
    Distill,
    Ensemble,
    SoftTargets,
    Teacher,
    attention_loss,
    distillation_loss,
    errors,
    hint_loss,
)
from distillation.ensemble import best_weights
from distillation.features import Guided, map_places, maps_at
from experiment import Recipe, make, run
from experiment import tables as experiment_tables
from measurement import cost, operator_counts
from models import ModelError, build, combine
from models.quantized import Quantizer, bias_steps, insert_quantizers, round_biases
from plots.distillation import accuracy_by_parameters
from quantization import Quantize
from recipe import StepError
from report import percent
from report.published import students_beside_published
from storage import Checkpoint, export_onnx, load_archive, open_onnx, run_onnx, save_archive
from study import distillation as study
from study.baseline import base_recipe
from training import Context, Train

DIGITS = Recipe("digits", (Train("resnet8"),))


@pytest.fixture(scope="module")
def digits():
    whole = load("digits")
    return dataclasses.replace(whole, train=Split(whole.train.images[:200], whole.train.labels[:200]))


def context_of(dataset, folder, seed=0, make=None):
    return Context(dataset, seed, torch.device("cpu"), Checkpoint(folder / "state"), make=make, cache=folder / "cache")


def network(seed=0, name="resnet8", shape=(1, 8, 8), classes=10):
    torch.manual_seed(seed)
    return build(name, shape=shape, classes=classes).eval()


def logits(seed, count=40):
    draws = np.random.default_rng(seed)
    student, teacher = 3 * draws.normal(size=(2, count, 10))
    return student, teacher, draws.integers(0, 10, count)


def softmax(z):
    e = np.exp(z - z.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


# The loss


@pytest.mark.parametrize(("temperature", "alpha"), [(1, 0.5), (4, 0.9), (20, 0.9), (0.5, 1.0), (3, 0.0)])
def test_loss_against_numpy(temperature, alpha):
    student, teacher, labels = logits(0)
    p, q = softmax(teacher / temperature), softmax(student / temperature)
    soft = (p * (np.log(p) - np.log(q))).sum(1).mean()
    hard = -np.log(softmax(student)[np.arange(len(labels)), labels]).mean()
    value = distillation_loss(*map(torch.tensor, (student, teacher, labels)), temperature, alpha)
    assert value.item() == pytest.approx(alpha * temperature**2 * soft + (1 - alpha) * hard, rel=1e-6)


def test_without_its_teacher_it_is_cross_entropy():
    student, teacher, labels = map(torch.tensor, logits(1))
    assert distillation_loss(student, teacher, labels, 7.0, 0.0).item() == cross_entropy(student, labels).item()


def test_at_high_temperature_it_is_regression_of_centred_logits():
    """Hinton et al., section 2.1: T^2 times the gradient tends to (centred difference) / classes, here a batch mean."""
    student, teacher, labels = map(torch.tensor, logits(2))
    student.requires_grad_()
    distillation_loss(student, teacher, labels, 1e4, 1.0).backward()
    difference = student.detach() - teacher
    expected = (difference - difference.mean(1, keepdim=True)) / 10 / len(labels)
    torch.testing.assert_close(student.grad, expected, rtol=1e-2, atol=1e-6)


def test_gradients_keep_their_scale_over_temperatures():
    norms = []
    for temperature in (4.0, 8.0, 16.0, 32.0):
        student, teacher, labels = map(torch.tensor, logits(3))
        student.requires_grad_()
        distillation_loss(student, teacher, labels, temperature, 1.0).backward()
        norms.append(student.grad.norm().item())
    assert max(norms) < 2 * min(norms)  # without T^2 they would fall 64-fold


@pytest.mark.parametrize("classes", [10, 7])
def test_the_published_loss_is_one_of_a_smaller_alpha_but_for_its_scale(classes):
    """Its code takes the mean over images and classes of the soft part's terms."""
    student, teacher, labels = logits(4)
    student, teacher, labels = student[:, :classes], teacher[:, :classes], labels % classes
    p, q = softmax(teacher / 4), softmax(student / 4)
    hard = -np.log(softmax(student)[np.arange(len(labels)), labels]).mean()
    published = 0.9 * 16 * (p * np.log(p / q)).mean() + 0.1 * hard
    ours = distillation_loss(*map(torch.tensor, (student, teacher, labels)), 4.0, study.too_weak(classes))
    assert published == pytest.approx((0.9 / classes + 0.1) * ours.item(), rel=1e-6)


# The teacher's cache


def test_cached_logits_are_fresh_ones_and_cost_no_forward(digits, tmp_path, float32):
    context = context_of(digits, tmp_path)
    model = network()
    first = Teacher([model], context)
    epoch = list(batches(digits, digits.train, 32, seed=0, epoch=3))
    seen = [first.logits(batch) for batch in epoch]
    for batch, cached in zip(epoch, seen, strict=True):
        with torch.no_grad():
            assert torch.equal(model(batch.images.contiguous(memory_format=torch.channels_last)), cached)
    second = Teacher([model], context)
    second._forward = lambda images: pytest.fail("a forward pass for what is cached")
    for batch, expected in zip(epoch, seen, strict=True):
        assert torch.equal(second.logits(batch), expected)
    for batch in batches(digits, digits.train, 48, seed=0, epoch=3):  # other batches of the same images
        with torch.no_grad():
            torch.testing.assert_close(second.logits(batch), model(batch.images))
    with pytest.raises(pytest.fail.Exception):
        second.logits(next(batches(digits, digits.train, 32, seed=0, epoch=4)))


def test_a_teacher_looks_at_as_many_epochs_as_there_are_views(digits, tmp_path, monkeypatch):
    looked, forward = [], Teacher._forward
    monkeypatch.setattr(Teacher, "_forward", lambda self, images: looked.append(images) or forward(self, images))
    step = Distill("student_6", epochs=5, batch_size=100, width=0.25, views=2)
    step.apply(network(), context_of(digits, tmp_path))
    first, second = (list(batches(digits, digits.train, 100, seed=0, epoch=epoch)) for epoch in (0, 1))
    for images, batch in zip(looked, first + second, strict=True):
        assert torch.equal(images, batch.images)
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_a_batch_out_of_turn_is_not_kept(digits, tmp_path):
    teacher = Teacher([network()], context_of(digits, tmp_path))
    for batch in list(batches(digits, digits.train, 32, seed=0, epoch=0))[1:]:
        teacher.logits(batch)
    assert not list((tmp_path / "cache").glob("*"))


def test_students_of_several_seeds_share_a_teachers_views(digits, tmp_path, monkeypatch):
    """With a seed of the views' own the teacher looks once; each augmentation has its own answers."""
    looked, forward = [], Teacher._forward
    monkeypatch.setattr(Teacher, "_forward", lambda self, images: looked.append(1) or forward(self, images))
    teacher = network(0)

    def students(**fields):
        looked.clear()
        step = Distill("resnet8", epochs=2, batch_size=32, **fields)
        for seed in (0, 1):
            context = dataclasses.replace(context_of(digits, tmp_path), seed=seed)
            step.apply(
                copy.deepcopy(teacher), dataclasses.replace(context, checkpoint=Checkpoint(tmp_path / f"{seed}"))
            )
            (tmp_path / f"{seed}").unlink()
        return len(looked)

    once = 2 * (len(digits.train) // 32)
    assert students(view_seed=7) == once and students() == 2 * once
    assert students(view_seed=7, augmentation=("crop", "mixup")) == once and students(view_seed=7) == 0


def test_logits_of_another_teacher_seed_or_epoch_are_passed_over(digits, tmp_path, float32):
    """Whatever file lies in their place: it says inside what it is of."""
    context, model = context_of(digits, tmp_path), network(0)
    right, wanted = {}, Teacher([model], context)
    others = [
        (Teacher([network(1)], context), 0),
        (Teacher([model], dataclasses.replace(context, seed=1)), 0),
        (Teacher([model], context), 1),
    ]
    for teacher, epoch in [(wanted, 0), *others]:
        for batch in batches(digits, digits.train, 32, seed=teacher.context.seed, epoch=epoch):
            right[batch.index] = teacher.logits(batch) if teacher is wanted else right[batch.index]
            teacher.logits(batch)
    for other, epoch in others:
        drawn = ((other.context.seed, epoch), (0, 0))
        place, own = (next(batches(digits, digits.train, 32, seed=seed, epoch=which)) for seed, which in drawn)
        shutil.copy(other._file(place).path, wanted._file(own).path)
        again = Teacher([model], context)
        with pytest.warns(UserWarning, match="does not hold what is needed"):
            for batch in batches(digits, digits.train, 32, seed=0, epoch=0):
                assert torch.equal(again.logits(batch), right[batch.index])


def test_operations_of_the_teacher_are_counted_apart_once_a_view(digits, tmp_path):
    recipe = Recipe("digits", (Train("resnet8", epochs=1),))
    context = context_of(digits, tmp_path, make=lambda _: network())
    Distill("resnet8", width=0.25, epochs=3, views=2, teachers=(recipe,)).apply(None, context)
    macs = cost(network())["macs"]
    assert context.log["teacher_pflop"] == pytest.approx(1e-15 * 2 * len(digits.train) * 2 * macs)


def test_logits_of_other_images_are_made_again(digits, tmp_path, float32):
    model, negative = (
        network(),
        dataclasses.replace(digits, train=Split(255 - digits.train.images, digits.train.labels)),
    )
    for dataset in (digits, negative, digits):
        for _ in range(2):  # the second time they are kept
            teacher = Teacher([model], context_of(dataset, tmp_path))
            for batch in batches(dataset, dataset.train, 32, seed=0, epoch=0):
                with torch.no_grad():
                    expected = model(batch.images.contiguous(memory_format=torch.channels_last))
                assert torch.equal(teacher.logits(batch), expected)
        assert len(teacher.kept) == 192
    assert len(list((tmp_path / "cache").iterdir())) == 2


def test_several_teachers_average_their_probabilities(digits, tmp_path, float32):
    models = [network(0), network(1), network(2, "student_6")]
    batch = next(batches(digits, digits.train, 32, seed=0, epoch=0))
    with torch.no_grad():
        each = [softmax(model(batch.images).double().numpy()) for model in models]
        found = Teacher(models, context_of(digits, tmp_path)).logits(batch)
    np.testing.assert_allclose(np.exp(found.numpy()), np.mean(each, axis=0), rtol=1e-4, atol=1e-6)


def test_teachers_that_are_sure_leave_the_loss_a_number(digits, tmp_path):
    """A class gets all of the probability, the others less than float32 can say: 0."""
    sure = [network(seed) for seed in (0, 1)]
    for model in sure:
        nn.init.zeros_(model.linear.weight)
        model.linear.bias.data = 200.0 * torch.eye(10)[3]
    batch, student = next(batches(digits, digits.train, 32, seed=0, epoch=0)), torch.randn(32, 10, requires_grad=True)
    value = SoftTargets(1.0, 0.9).loss(Teacher(sure, context_of(digits, tmp_path)).logits)(student, batch)
    value.backward()
    q, wanted = softmax(student.detach().numpy()), 0.9 * np.eye(10)[[3] * 32] + 0.1 * np.eye(10)[batch.labels]
    assert value.item() == pytest.approx(
        -(wanted * np.log(q)).sum(1).mean(), rel=1e-5
    )  # one-hot: no entropy of its own
    np.testing.assert_allclose(student.grad.numpy(), (q - wanted) / 32, atol=1e-6)


def test_a_teacher_of_another_data_set(digits, tmp_path):
    for other in (network(shape=(3, 32, 32)), network(classes=7)):
        with pytest.raises(StepError, match="same data set"):
            Teacher([other], context_of(digits, tmp_path))


def test_a_teacher_that_sees_pixels_on_another_scale(digits, tmp_path):
    own, other = network(), network()
    own.spec["pixels"], other.spec["pixels"] = digits.pixels, {"mean": [0.5], "std": [0.5]}
    Teacher([own], context_of(digits, tmp_path))
    with pytest.raises(StepError, match="pixels of another scale"):
        Teacher([other], context_of(digits, tmp_path))
    with pytest.raises(ModelError, match="different mean and std of pixels"):
        combine([own, other])
    assert combine([own, own]).spec["pixels"] == digits.pixels


# Features


def test_attention_against_numpy():
    draws = np.random.default_rng(4)
    student, teacher = draws.normal(size=(5, 3, 4, 6)), draws.normal(size=(5, 8, 4, 6))
    apart = 0.0
    for one, other in zip(student, teacher, strict=True):
        one, other = (np.mean(maps**2, axis=0).ravel() for maps in (one, other))
        apart += ((one / np.sqrt(one @ one) - other / np.sqrt(other @ other)) ** 2).sum() / 5
    assert attention_loss(*map(torch.tensor, (student, teacher))).item() == pytest.approx(apart, rel=1e-5)
    assert attention_loss(torch.tensor(teacher) * 7, torch.tensor(teacher)).item() == pytest.approx(0, abs=1e-6)


def test_hints_against_numpy(digits, float32):
    """The whole loss: maps found in both, the regressor as a matrix product over channels, and the answers' part."""
    teacher, student = network(0, "resnet14"), network(1, "student_6")
    guided = Guided(student, teacher, "hints").train()
    batch = next(batches(digits, digits.train, 32, seed=0, epoch=0))
    logits = guided(batch.images)
    value = guided.loss(4.0, 0.9, 0.5)(logits, batch).item()
    student_maps, teacher_maps = {}, {}
    with torch.no_grad():
        x = batch.images  # by hand: the student before its pools, the teacher after its stages
        for layer in student.train().layers[:11]:
            x = layer(x)
            student_maps[x.shape[2]] = x.numpy()
        x = teacher.relu(teacher.bn(teacher.conv(batch.images)))
        for block in teacher.blocks:
            x = block(x)
            teacher_maps[x.shape[2]] = x.numpy()
        expected = distillation_loss(logits, teacher(batch.images), batch.labels, 4.0, 0.9).item()
    hints = []
    for regressor, size in zip(guided.regressors, (8, 4, 2), strict=True):
        weight = regressor.weight.detach().numpy()[:, :, 0, 0]
        guess = np.einsum("oi,bihw->bohw", weight, student_maps[size]) + regressor.bias.detach().numpy()[:, None, None]
        hints.append(((guess - teacher_maps[size]) ** 2).mean())
    assert value == pytest.approx(expected + 0.5 * np.mean(hints), rel=1e-4)
    zeros, halves = torch.zeros(2, 3, 4, 4), torch.full((2, 3, 4, 4), 0.5)
    assert hint_loss(zeros, halves).item() == 0.25


def test_where_maps_are_taken():
    resnet, mixer = network(name="resnet20", shape=(3, 32, 32)), network(name="tiny_mixer", shape=(3, 32, 32))
    places = map_places(resnet)
    assert {size: channels for size, (_, channels) in places.items()} == {(32, 32): 16, (16, 16): 32, (8, 8): 64}
    _, maps = maps_at(resnet, [name for name, _ in places.values()], torch.randn(2, 3, 32, 32))
    assert all((found >= 0).all() for found in maps)  # behind a stage's last ReLU
    stages = {(32, 32): 16, (16, 16): 32, (8, 8): 64}
    assert {size: channels for size, (_, channels) in map_places(mixer).items()} == stages
    assert mixer.get_submodule(map_places(mixer)[(16, 16)][0]).__class__.__name__ == "MixerBlock"  # the sum, not a part
    assert not any(module._forward_hooks for module in (*resnet.modules(), *mixer.modules()))


@pytest.mark.parametrize("kind", ["attention", "hints"])
def test_features_move_the_student_alone(digits, kind):
    teacher, student = network(0, "resnet14"), network(1)
    before = {name: value.clone() for name, value in teacher.state_dict().items()}
    guided = Guided(student, teacher, kind).train()
    batch = next(batches(digits, digits.train, 32, seed=0, epoch=0))
    guided.loss(4.0, 0.9, 1.0)(guided(batch.images), batch).backward()
    assert all(parameter.grad is None for parameter in teacher.parameters())
    assert all(parameter.grad is not None for parameter in guided.parameters())
    assert not set(map(id, guided.parameters())) & set(map(id, teacher.parameters()))
    assert all(torch.equal(before[name], value) for name, value in teacher.state_dict().items())  # running means too


def test_no_map_of_the_same_size():
    with pytest.raises(StepError, match="7x7.*8x8"):
        Guided(network(shape=(1, 7, 7), name="student_6"), network(), "attention")


@pytest.mark.parametrize("kind", ["attention", "hints"])
def test_a_killed_training_with_features_ends_with_the_same_weights(digits, tmp_path, kind, monkeypatch):
    step = Distill("student_6", epochs=3, batch_size=50, width=0.25, features=kind)
    whole = step.apply(network(), context_of(digits, tmp_path / "whole"))
    assert whole.spec["architecture"] == "student_6" and not any("regressor" in name for name in whole.state_dict())
    save = Checkpoint.save

    def killed(checkpoint, tensors, state):
        save(checkpoint, tensors, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(Checkpoint, "save", killed)
        with pytest.raises(KeyboardInterrupt):
            step.apply(network(), context_of(digits, tmp_path / "state"))
    resumed = step.apply(network(), context_of(digits, tmp_path / "state"))
    for a, b in zip(whole.state_dict().values(), resumed.state_dict().values(), strict=True):
        assert torch.equal(a, b)
    plain = dataclasses.replace(step, features=None).apply(network(), context_of(digits, tmp_path / "plain"))
    assert any(not torch.equal(a, b) for a, b in zip(whole.parameters(), plain.parameters(), strict=True))


def test_a_record_with_features(folders):
    base = Recipe("digits", (Train("tiny", epochs=1, batch_size=128),))
    hints = base.then(Distill("tiny", epochs=1, batch_size=128, features="hints"))
    assert run(hints)["parameters"] == run(base)["parameters"]
    assert hints.label == "tiny > Distill(tiny, epochs=1, features=hints)"


def test_identities_from_before_there_were_features():
    base = Recipe("digits", (Train("resnet20", epochs=10, batch_size=32),))
    assert base.then(Distill("student_4", epochs=5, batch_size=32)).id == "484d4e19ebd2"
    fields = {"temperature": 20.0, "alpha": 0.5, "width": 0.5, "teachers": (base,)}
    assert base.then(Distill("student_4", epochs=5, **fields)).id == "2d1053e103ae"
    assert Recipe("digits", (Ensemble((base, base.then(Distill("student_4")))),)).id == "c119051b80e2"


# The steps


def test_a_student_learns_from_its_teacher_alone(digits, tmp_path):
    """alpha 1: the labels play no part, so that wrong ones change nothing."""
    wrong = dataclasses.replace(digits, train=Split(digits.train.images, digits.train.labels.roll(1)))
    step = Distill("student_6", epochs=1, batch_size=50, alpha=1.0, width=0.25)
    students = [
        step.apply(network(), context_of(dataset, tmp_path / name)) for name, dataset in (("a", digits), ("b", wrong))
    ]
    for a, b in zip(*(student.state_dict().values() for student in students), strict=True):
        assert torch.equal(a, b)


def test_two_teachers_teach_as_their_ensemble_does_and_otherwise_than_one(digits, tmp_path):
    other = Recipe("digits", (Train("resnet14"),))
    made = {DIGITS: network(0), other: network(1, "resnet14")}.__getitem__
    step = Distill("student_6", epochs=1, batch_size=50, width=0.25)

    def weights(name, model=None, **fields):
        context = context_of(digits, tmp_path / name, make=made)
        student = dataclasses.replace(step, **fields).apply(model, context)
        return torch.cat([parameter.detach().flatten() for parameter in student.parameters()])

    both, one = weights("both", teachers=(DIGITS, other)), weights("one", teachers=(other,))
    assert torch.equal(both, weights("ensemble", combine([made(DIGITS), made(other)])))
    assert torch.equal(one, weights("before", made(other)))
    assert not torch.equal(both, one) and not torch.equal(both, weights("other", made(DIGITS)))


def test_teachers_start_a_recipe(folders):
    base = Recipe("digits", (Train("tiny", epochs=1, batch_size=128),))
    recipe = Recipe("digits", (Distill("tiny", epochs=1, batch_size=128, teachers=(base, base.with_seed(1))),))
    assert recipe.base == base and recipe.model == "tiny"
    assert recipe.label == "Distill(tiny, epochs=1, tiny + tiny)"
    record = run(recipe)
    assert record["base"] == base.id and record["method"] == "Distill"
    assert recipe.with_seed(3).steps[0].teachers[0] == base.with_seed(3)


def test_records_of_students_and_ensembles(folders, monkeypatch):
    base = Recipe("digits", (Train("tiny", epochs=1, batch_size=128),))
    student = base.then(Distill("tiny", epochs=1, batch_size=128))
    record = run(student)
    assert record["base"] == base.id and record["method"] == "Train > Distill"
    ensemble = Recipe("digits", (Ensemble((base, student)),))
    joint = run(ensemble)
    assert ensemble.base == base and joint["base"] == base.id
    assert joint["parameters"] == 2 * record["parameters"] and joint["macs"] == 2 * record["macs"]
    assert ensemble.label == "Ensemble(tiny + tiny > Distill(tiny, epochs=1))"
    again = run(Recipe("digits", (Ensemble((base, student)), Distill("tiny", epochs=1, batch_size=128))))
    assert again["base"] == base.id and again["parameters"] == record["parameters"]
    assert ensemble.with_seed(2).steps[0].members[1] == student.with_seed(2)


def test_the_ensembles_file_is_the_mean_of_its_members(digits, tmp_path):
    members = [network(0), network(1, "student_6")]
    export_onnx(combine(members), tmp_path / "ensemble.onnx")
    images = normalize(digits.test.images[:50], digits)
    with torch.no_grad():
        mean = sum(member(images).softmax(1) for member in members) / 2
    found = run_onnx(open_onnx(tmp_path / "ensemble.onnx"), images.numpy())
    np.testing.assert_allclose(np.exp(found), mean.numpy(), rtol=1e-4, atol=1e-6)


def integer_network(seed=0, name="resnet8"):
    """Rounded weights, and ranges as a calibration leaves them, without one."""
    integer = insert_quantizers(network(seed, name))
    draws = np.random.default_rng(seed)
    for module in integer.modules():
        if isinstance(module, Quantizer):
            module.scale.fill_(float(draws.uniform(0.02, 0.05)))
            module.zero_point.fill_(int(draws.integers(0, 200)))
    round_biases(integer)
    return integer


def quantizers(file):
    """What each quantizer of an ONNX file rounds with, and each integer weight is multiplied with, names aside."""
    graph = onnx.load(file).graph
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    nodes = [node for node in graph.node if node.op_type in ("QuantizeLinear", "DequantizeLinear")]
    return Counter((node.op_type, *(stored[name].tobytes() for name in node.input if name in stored)) for node in nodes)


MIXED = {
    "two integer networks of one kind": lambda: [integer_network(0), integer_network(1)],
    "integers and floats": lambda: [integer_network(0), network(1, "student_6")],
    "floats first": lambda: [network(1, "tiny_mixer"), integer_network(0, "tiny_mixer"), integer_network(2)],
    "many quantizers": lambda: [integer_network(seed, "resnet20") for seed in range(4)],
    "an ensemble in an ensemble": lambda: [combine([integer_network(0), network(1)]), integer_network(2)],
}
BRIEF = ("two integer networks of one kind", "integers and floats")


@pytest.mark.parametrize(
    "kind",
    [pytest.param(kind, marks=[] if kind in BRIEF else [pytest.mark.slow]) for kind in MIXED],
)
def test_an_ensemble_of_integer_networks_computes_what_its_members_files_do(digits, tmp_path, kind):
    members = MIXED[kind]()
    images = normalize(digits.test.images[:50], digits)
    each, alone = [], Counter()
    for index, member in enumerate(members):
        file = tmp_path / f"{index}.onnx"
        export_onnx(member, file, images=images)
        each.append(softmax(run_onnx(open_onnx(file), images.numpy())))
        alone += quantizers(file)
    whole = combine(members)
    export_onnx(whole, tmp_path / "whole.onnx", images=images)
    found = np.exp(run_onnx(open_onnx(tmp_path / "whole.onnx"), images.numpy()))
    np.testing.assert_allclose(found, np.mean(each, 0), rtol=1e-4, atol=1e-6)
    assert quantizers(tmp_path / "whole.onnx") == alone
    counted = Counter()
    for index in range(len(members)):
        counted.update(operator_counts(tmp_path / f"{index}.onnx"))
    counts = operator_counts(tmp_path / "whole.onnx")
    assert counts["integer_convolutions"] == counted["integer_convolutions"]

    save_archive(whole, tmp_path / "whole.nna")
    again = load_archive(tmp_path / "whole.nna")
    with torch.no_grad():
        assert torch.equal(again(images), whole.eval()(images))
    of_members = [f"members.{i}.{name}" for i, member in enumerate(members) for name in bias_steps(member)]
    assert bias_steps(whole).keys() == set(of_members)
    costs = [cost(member) for member in members]
    assert cost(whole) == {key: sum(own[key] for own in costs) for key in costs[0]}


def test_records_of_an_ensemble_of_integers_and_floats_and_of_its_student(folders):
    base = Recipe("digits", (Train("tiny", epochs=1, batch_size=128),))
    rounded = base.then(Quantize(images=64))
    ensemble = Recipe("digits", (Ensemble((rounded, base.with_seed(1)), optimize_weights=True),))
    record, alone, floats = run(ensemble), run(rounded), run(base.with_seed(1))
    assert record["agreement"] >= 0.99
    assert record["parameters"] == alone["parameters"] + floats["parameters"]
    assert record["operators"]["integer_convolutions"] == alone["operators"]["integer_convolutions"] > 0
    assert record["latency_ms"]["batch1"]["median"] > 0 and record["archive_bytes"] > alone["archive_bytes"]
    assert torch.equal(make(ensemble).members[0].conv.weight, make(rounded).conv.weight)
    student = run(ensemble.then(Distill("tiny", epochs=1, batch_size=128)))
    assert student["parameters"] == floats["parameters"]


@pytest.mark.parametrize("other", [{"shape": (3, 32, 32)}, {"classes": 3}])
def test_members_of_other_images_are_refused_when_the_ensemble_is_made(digits, tmp_path, other):
    second = Recipe("digits", (Train("resnet8"),), seed=1)
    made = {DIGITS: network(0), second: network(1, **other)}
    context = context_of(digits, tmp_path, make=made.__getitem__)
    with pytest.raises(ModelError, match=r"members need the same images: one takes images \(\d, \d+, \d+\) of \d+ cl"):
        Ensemble((DIGITS, second)).apply(None, context)


def test_weights_of_an_ensemble_against_a_grid(digits):
    good, bad = network(0), network(1)
    nn.init.zeros_(good.linear.weight)  # even probabilities against arbitrary ones
    weights = best_weights(combine([good, bad]), digits)
    images = normalize(digits.validation.images, digits)
    with torch.no_grad():
        each = [member(images).softmax(1).numpy() for member in (good, bad)]
    labels = digits.validation.labels.numpy()

    def loss(share):
        mean = share * each[0] + (1 - share) * each[1]
        return -np.log(mean[np.arange(len(labels)), labels]).mean()

    assert weights.sum() == pytest.approx(1, abs=1e-5)
    assert loss(weights[0]) <= min(map(loss, np.linspace(0, 1, 201))) + 1e-4


def test_weights_that_are_not_found_are_even_with_a_warning(digits, monkeypatch):
    monkeypatch.setattr(
        "scipy.optimize.minimize",
        lambda *_, **__: SimpleNamespace(success=False, message="no step", x=np.array([1.0, 0.0]), fun=0.0),
    )
    with pytest.warns(UserWarning, match="no step"):
        assert best_weights(combine([network(0), network(1)]), digits).tolist() == [0.5, 0.5]


def test_an_ensemble_with_weights_from_the_validation_images(digits, tmp_path):
    other = Recipe("digits", (Train("resnet8"),), seed=1)
    made = {DIGITS: network(0), other: network(1)}
    nn.init.zeros_(made[DIGITS].linear.weight)  # even probabilities against arbitrary ones
    images, labels = normalize(digits.validation.images, digits), digits.validation.labels.numpy()
    losses = {}
    for optimize in (False, True):
        ensemble = Ensemble((DIGITS, other), optimize).apply(None, context_of(digits, tmp_path, make=made.__getitem__))
        weights = ensemble.weights.numpy().astype(float)
        with torch.no_grad():
            each = [softmax(model(images).numpy()) for model in made.values()]
            np.testing.assert_allclose(np.exp(ensemble(images).numpy()), np.tensordot(weights, each, 1), rtol=1e-4)
        losses[optimize] = -np.log(np.tensordot(weights, each, 1)[np.arange(len(labels)), labels]).mean()
        assert optimize or weights.tolist() == [0.5, 0.5]
    assert losses[True] < losses[False]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Distill("tiny_mixer", temperature=0), "temperature must be above 0"),
        (lambda: Distill("tiny_mixer", temperature=math.inf), "temperature must be above 0 and finite"),
        (lambda: Distill("tiny_mixer", views=1.5), "whole number"),
        (lambda: Distill("tiny_mixer", features="hints", features_weight=math.inf), "finite"),
        (lambda: Distill("tiny_mixer", teachers=(DIGITS)), "teachers must be a tuple of recipes"),
        (lambda: Ensemble(DIGITS), "members must be a tuple of recipes"),
        (lambda: Ensemble(("a", "b")), "members must be a tuple of recipes"),
        (lambda: Distill("tiny_mixer", alpha=1.5), "from 0 to 1"),
        (lambda: Distill("tiny_mixer", epochs=0), "at least 1"),
        (lambda: Distill("tiny_mixer", views=0), "views must be a whole number and at least 1"),
        (lambda: Distill("tiny_mixer", features="looks"), "attention, hints or None"),
        (lambda: Distill("tiny_mixer", features="hints", features_weight=0), "above 0"),
        (lambda: Distill("tiny_mixer", features_weight=2.0), "without features"),
        (lambda: Recipe("digits", (Distill("resnet8"),)), "needs a teacher"),
        (lambda: Recipe("digits", (Ensemble((DIGITS,)), Distill("resnet8", features="hints"))), "one teacher"),
        (lambda: DIGITS.then(Distill("resnet8", features="hints", teachers=(DIGITS, DIGITS))), "one teacher"),
        (lambda: Ensemble(()), "needs members"),
    ],
)
def test_wrong_steps(wrong, message):
    with pytest.raises(StepError, match=message) as caught:
        wrong()
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 200


def test_taught_is_the_loss_under_the_teacher(digits, tmp_path):
    context = context_of(digits, tmp_path)
    teacher, batch = Teacher([network()], context), next(batches(digits, digits.train, 32, seed=0, epoch=0))
    student = torch.randn(32, 10)
    expected = distillation_loss(student, teacher.logits(batch), batch.labels, 4.0, 0.9)
    assert SoftTargets(4.0, 0.9).loss(Teacher([network()], context).logits)(student, batch) == expected


# What notebook 4 compares


@pytest.fixture
def answering(folders, monkeypatch):
    """Two recipes whose models answer the first and the second pixel, and the labels of the five test images."""
    pixels, labels = torch.tensor([[0, 0], [0, 1], [1, 2], [2, 2], [1, 1]], dtype=torch.uint8), [0, 0, 1, 2, 2]
    images = torch.zeros(5, 1, 8, 8, dtype=torch.uint8)
    images[:, 0, 0, :2] = pixels
    split = Split(images, torch.tensor(labels))
    data = Dataset("digits", split, split, split, ("a", "b", "c"), mean=(0.0,), std=(1 / 255,), flip=False)
    recipes = {"one": DIGITS, "other": DIGITS.with_seed(1)}
    monkeypatch.setattr(errors, "load", lambda name: data)
    monkeypatch.setattr(
        errors, "make", lambda recipe: lambda images: one_hot(images[:, 0, 0, recipe.seed].round().long(), 3).float()
    )
    return recipes


def test_diversity_by_hand(answering):
    """Answers 00121 and 01221 to 00122: one is wrong on the last image, the other on that and two more."""
    for _ in range(2):  # computed, and read back
        (row,) = errors.diversity(answering).to_dict("records")
        assert (row["one"], row["other"], row["disagreement"]) == ("one", "other", 0.4)
        assert row["correlation"] == pytest.approx((1 * 2 - 0 * 2) / math.sqrt(1 * 4 * 3 * 2))  # of two by two counts


def test_diversity_where_one_is_never_wrong(answering, monkeypatch):
    monkeypatch.setattr(errors, "_answers", lambda recipe: np.array([0, 0, 1, 2, 2 - recipe.seed]))
    assert errors.diversity(answering)["correlation"].tolist() == [None]


def test_confusions_and_changed_errors_by_hand(answering):
    table = errors.confusions(answering)
    counts = table.set_index(["model", "actual", "answer"])["images"]
    assert len(table) == 18 and counts.groupby("model").sum().tolist() == [5, 5]
    wrong = {key: count for key, count in counts.items() if key[1] != key[2] and count}
    assert wrong == {("one", "c", "b"): 1, ("other", "a", "b"): 1, ("other", "b", "c"): 1, ("other", "c", "b"): 1}
    table = pd.concat([table, table[table["model"] == "one"].assign(model="one too")])
    worse, same, better = (
        errors.changed_errors(table, *names) for names in (("one", "other"), ("one", "one too"), ("other", "one"))
    )
    assert worse.to_numpy().tolist() == [["any", "wrong", 1, 3, -2], ["a", "b", 0, 1, -1], ["b", "c", 0, 1, -1]]
    assert better.to_numpy().tolist() == [["any", "wrong", 3, 1, 2], ["a", "b", 1, 0, 1], ["b", "c", 1, 0, 1]]
    assert same.to_numpy().tolist() == [["any", "wrong", 1, 1, 0]]
    assert len(errors.changed_errors(table, "other", "one", most=1)) == 2


@pytest.mark.parametrize("model", ["student_6", "tiny_mixer"])
def test_widths_against_brute_force(folders, model):
    """Multiply-accumulates of each layer: its weights, times the positions of its output."""
    counts = {}
    for hundredths in range(20, 181):
        model_at = build(model, shape=(1, 8, 8), classes=10, width=hundredths / 100).eval()
        side, macs = 8, 0
        for layer in model_at.modules():
            if isinstance(layer, nn.Conv2d):
                side = side // layer.stride[0]
                macs += layer.weight.numel() * side**2
            elif isinstance(layer, nn.MaxPool2d):
                side //= 2
            elif isinstance(layer, nn.Linear):
                macs += layer.weight.numel()
        counts[hundredths] = (sum(p.numel() for p in model_at.parameters()), macs)
    whole = counts[100]
    for index, find in enumerate((study.width_of, study.width_of_macs)):
        for factor in (0.3, 1.0, 1.7):
            target = round(factor * whole[index])
            nearest = min(abs(count[index] - target) for count in counts.values())
            width = find("digits", model, target)
            assert abs(counts[round(100 * width)][index] - target) == nearest
            assert width == find("digits", model, target)  # read back


def test_our_students_beside_the_studys():
    """By hand from its table: Model 4 85.1 %, 253 K, 2.9 MB; the ensemble 88.02 %, 631 K."""
    own = {"nonzero_parameters": 2e5, "onnx_bytes": 8e5, "archive_bytes": 2.5e5}
    own |= {"latency_ms.batch1_one_thread.median": 0.1}
    names = ["student_4", "resnet8", "ensemble of 4 5 6", "student_4", "student_4, widened"]
    records = pd.DataFrame(
        [{"student": name, "label": name, "accuracy": 0.9 - place / 100} | own for place, name in enumerate(names)]
    )
    table = students_beside_published(records)
    assert table["its name there"].tolist() == ["Model 4", "ensemble of 4 5 6"]
    assert table["accuracy %"].tolist() == [90, 88] and table["reported %"].tolist() == [85.1, 88.02]
    assert table["reported K"].tolist() == [253, 631] and table["reported MB"].tolist() == [2.9, 7.2]


COMPARED = pd.DataFrame(
    {
        "student": ["s", "both", "s, widened"],
        "kind": ["a member", "ensemble", "one network of its size"],
        "accuracy": [0.90, 0.95, 0.94],
        "accuracy_low": [0.88, 0.93, 0.925],
        "accuracy_high": [0.92, 0.96, 0.95],
        "onnx_bytes": [500, 1000, 1100],
        "macs": [1e6, 2e6, 3e6],
        "latency_ms.batch1_one_thread.median": [0.2, 0.4, 0.9],  # the last while others ran: its base too took longer
        "latency_ms.batch1_one_thread.speedup": [6.0, 3.0, 4.0],
    }
)


def test_an_accuracy_in_words():
    assert percent(COMPARED.loc[1]) == "95.00 % (93.00 - 96.00)"


def test_networks_beside_an_ensemble(folders):
    """The cases there were before one of equal MACs, and that one; weights are found for the same recipes."""
    cases = study.against_ensembles(DIGITS, ["student_4", "resnet8"], 281_380, 1_426_304)
    recipes = {words["student"]: recipe for words, recipe in cases}
    assert recipes["student_4, widened"].steps[-1].width == 1.18
    assert recipes["student_4, equal MACs"].steps[-1].width == study.width_of_macs("digits", "student_4", 1_426_304)
    assert recipes["ensemble of 4 resnet8"].steps[0].members == (recipes["student_4"], recipes["resnet8"])
    assert recipes["student_4 of the ensemble"].prefix(1) == recipes["ensemble of 4 resnet8"]


def test_an_assistant_and_both(folders):
    alone, assisted, both = (recipe for _, recipe in study.by_teacher(DIGITS, "student_6", ["student_4"]))
    assert assisted.steps[:-1] == study.student(DIGITS, "student_4").steps and assisted.steps[-1] == alone.steps[-1]
    assert both.steps == (dataclasses.replace(alone.steps[-1], teachers=(DIGITS, assisted.prefix(2))),)
    assert [recipe for _, recipe in study.by_teacher(DIGITS, "student_6", [])] == [alone]


@pytest.mark.parametrize(
    ("dataset", "usual", "long"), [("cifar10", (20, 10), (40, 20)), ("digits", (3, None), (6, None))]
)
def test_a_patient_teacher_gives_twice_the_epochs_and_views(dataset, usual, long):
    cases = study.twice_as_long(base_recipe(dataset, "resnet20"), iter(["student_4"]))
    assert [words["kind"] for words, _ in cases] == ["as long as usual", "twice as long"]
    steps = [recipe.steps[-1] for _, recipe in cases]
    assert [(step.epochs, step.views) for step in steps] == [usual, long]
    assert {step.model for step in steps} == {"student_4"} and len({step.learning_rate for step in steps}) == 1


def test_networks_are_trained_as_asked():
    base = base_recipe("cifar10", "resnet18")
    usual = {"epochs": 20, "learning_rate": 0.1, "views": 10, "temperature": 4.0, "alpha": 0.9}
    assert study.student(base, "student_4", {"student_4": usual}).id == study.student(base, "student_4").id
    assert study.alone(base, "student_4", {"student_4": usual}).id == study.alone(base, "student_4").id
    own = {"resnet8": {"epochs": 7, "temperature": 2.0, "views": 5, "optimizer": "adamw"}}
    (_, taught), (_, other), (_, alone) = study.with_and_without(base, ["resnet8", "student_4"], ["resnet8"], own)
    assert other == study.student(base, "student_4")
    for step in (taught.steps[-1], alone.steps[-1]):
        assert (step.epochs, step.learning_rate, step.optimizer) == (7, 0.1, "adamw")
    assert (taught.steps[-1].temperature, taught.steps[-1].views, alone.steps[-1].views) == (2, 5, None)
    longer = study.twice_as_long(base, ["resnet8"], own)[1][1].steps[-1]
    assert (longer.epochs, longer.views) == (14, 10)
    assert study.ensemble(base, ["resnet8"], own).steps[0].members == (taught,)


def test_the_weak_loss_as_rows(folders):
    (weak, first), (right, second) = study.weak_and_right(DIGITS, "student_4")
    assert weak["loss"] == "soft part 10 times too weak" and weak["alpha"] == 0.09 / (0.09 + 0.1)  # as records have it
    assert first == study.student(DIGITS, "student_4", alpha=weak["alpha"]) and right["alpha"] == 0.9
    assert second == study.student(DIGITS, "student_4")


def test_features_are_words_when_made_and_when_read_back(folders, monkeypatch):
    for name, value in (("make", None), ("load", SimpleNamespace(validation=None)), ("evaluate", 0.5)):
        monkeypatch.setattr(experiment_tables, name, lambda *_, value=value: value)
    for _ in range(2):
        table = study.with_features(DIGITS, "student_4", [None, "hints"])
        assert table["features"].tolist() == ["answers alone", "hints"] and table["accuracy"].tolist() == [0.5, 0.5]


def test_times_are_kept_by_machine(monkeypatch):
    asked = []
    monkeypatch.setattr(study, "kept_table", lambda *given, **named: asked.append(named))
    study.epoch_costs(DIGITS, "student_4")
    assert asked == [{"timed": True}]


def test_every_mark_of_a_chart_has_a_name():
    ax = Figure().add_subplot()
    table = COMPARED.assign(parameters=[1e3, 2e3, 3e3])
    reported = pd.DataFrame({"label": ["Model 4"], "parameters_k": [2.5], "accuracy": [91.0]})
    accuracy_by_parameters(table, "kind", reported, ax)
    names = {text.get_text(): text.xy for text in ax.texts}
    assert names == {"s": (1, 90), "both": (2, 95), "s, widened": (3, 94), "Model 4": (2.5, 91)}
    assert ax.get_legend().get_texts()[-1].get_text() == "published study (as reported)"
