"""Distillation: the loss against numpy and its limits, cached logits against fresh ones, ensembles as one file."""

import dataclasses

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import cross_entropy

from data import Split, batches, load, normalize
from distillation import Distill, Ensemble, Teacher, attention_loss, distillation_loss, hint_loss, taught
from distillation.ensemble import best_weights
from distillation.features import Guided, map_places, maps_at
from experiment import Recipe, run
from models import build, combine
from storage import Checkpoint, export_onnx, open_onnx, run_onnx
from training import Context, StepError, Train

DIGITS = Recipe("digits", (Train("resnet8"),))


@pytest.fixture(scope="module")
def digits():
    whole = load("digits")
    return dataclasses.replace(whole, train=Split(whole.train.images[:200], whole.train.labels[:200]))


def context_of(dataset, folder, seed=0):
    return Context(dataset, seed, torch.device("cpu"), Checkpoint(folder / "state"), make=None, cache=folder / "cache")


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
    assert not list((tmp_path / "cache").iterdir())


def test_another_teachers_cache_is_refused(digits, tmp_path):
    context = context_of(digits, tmp_path)
    one, other = Teacher([network(0)], context), Teacher([network(1)], context)
    for batch in batches(digits, digits.train, 32, seed=0, epoch=0):
        one.logits(batch)
    one._file(0).path.rename(other._file(0).path)
    with pytest.raises(StepError, match="another teacher's logits"):
        other.logits(next(batches(digits, digits.train, 32, seed=0, epoch=0)))


def test_several_teachers_average_their_probabilities(digits, tmp_path, float32):
    models = [network(0), network(1)]
    batch = next(batches(digits, digits.train, 32, seed=0, epoch=0))
    with torch.no_grad():
        mean = sum(model(batch.images).softmax(1) for model in models) / 2
        found = Teacher(models, context_of(digits, tmp_path)).logits(batch)
    torch.testing.assert_close(found.softmax(1), mean)


def test_a_teacher_of_another_data_set(digits, tmp_path):
    for other in (network(shape=(3, 32, 32)), network(classes=7)):
        with pytest.raises(StepError, match="same data set"):
            Teacher([other], context_of(digits, tmp_path))


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
    stages = {(32, 32): 36, (16, 16): 64}
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


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (lambda: Distill("tiny_mixer", temperature=0), "temperature must be above 0"),
        (lambda: Distill("tiny_mixer", alpha=1.5), "from 0 to 1"),
        (lambda: Distill("tiny_mixer", epochs=0), "at least 1"),
        (lambda: Distill("tiny_mixer", views=0), "views, the epochs"),
        (lambda: Distill("tiny_mixer", features="looks"), "attention, hints or None"),
        (lambda: Distill("tiny_mixer", features="hints", features_weight=0), "above 0"),
        (lambda: Distill("tiny_mixer", features_weight=2.0), "without features"),
        (lambda: Recipe("digits", (Distill("resnet8"),)), "needs a teacher"),
        (lambda: Recipe("digits", (Ensemble((DIGITS,)), Distill("resnet8", features="hints"))), "one teacher"),
        (lambda: DIGITS.then(Distill("resnet8", features="hints", teachers=(DIGITS, DIGITS))), "one teacher"),
        (lambda: Ensemble(()), "needs members"),
        (
            lambda: Ensemble((Recipe("digits", (Train("resnet8"),)), Recipe("cifar10", (Train("resnet8"),)))),
            "one data set",
        ),
    ],
)
def test_wrong_steps(wrong, message):
    with pytest.raises(StepError, match=message):
        wrong()


def test_taught_is_the_loss_under_the_teacher(digits, tmp_path):
    context = context_of(digits, tmp_path)
    teacher, batch = Teacher([network()], context), next(batches(digits, digits.train, 32, seed=0, epoch=0))
    student = torch.randn(32, 10)
    expected = distillation_loss(student, teacher.logits(batch), batch.labels, 4.0, 0.9)
    assert taught(Teacher([network()], context), 4.0, 0.9)(student, batch) == expected
