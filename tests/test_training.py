"""The training loop: its schedule and loss against torch and numpy, and trainings that are killed and go on."""

import copy
import dataclasses
import math
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data import Batch, Split, load
from experiment import Recipe
from models import ModelError, build
from pruning import Prune
from quantization import Quantize
from recipe import OPTIMIZERS, SCHEDULES, StepError, Training
from storage import Checkpoint
from training import Callback, Context, Labels, Muon, Train, TrainingDiverged, fit, flop, loop, one_cycle
from training.loop import evaluate
from training.optimizers import orthogonal


@pytest.fixture(scope="module")
def digits():
    """160 training images of the digits: enough to learn from, little enough to be quick."""
    whole = load("digits")
    return dataclasses.replace(whole, train=Split(whole.train.images[:160], whole.train.labels[:160]))


def context_of(dataset, path, seed=0):
    return Context(dataset, seed, torch.device("cpu"), Checkpoint(path), make=None, cache=path.parent)


def small():
    """Everything that a resumed training has to restore: weights, running statistics, momentum, dropout's draws."""
    torch.manual_seed(5)
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False), nn.BatchNorm2d(8), nn.ReLU(),
        nn.Dropout(0.2), nn.Flatten(), nn.Linear(8 * 64, 10),
    )  # fmt: skip


def trained(dataset, path, model=None, **changes):
    context = context_of(dataset, path)
    loss, after = changes.pop("loss", Labels(0.1).loss(None)), changes.pop("after_step", None)
    training = Training(**{"epochs": 4, "learning_rate": 0.05, "batch_size": 32} | changes)
    callbacks = [] if after is None else [After(after)]
    model = fit(model or small(), context, training, loss=loss, callbacks=callbacks)
    return model, context.log


class After(Callback):
    """Calls a function after each update."""

    def __init__(self, function):
        self.after_step = function


def same_weights(a, b):
    a, b = a.state_dict(), b.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


# Schedule and loss


@pytest.mark.parametrize("total", [50, 1000])
def test_one_cycle_is_torchs(total):
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=1)
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, max_lr=1, total_steps=total, pct_start=0.2, anneal_strategy="cos", cycle_momentum=False
    )
    peak = 0.2 * total - 1  # torch counts so that the peak and the end fall on a step
    for step in range(total):
        warm, cool = 0.2 * step / peak, 0.2 + 0.8 * (step - peak) / (total - 1 - peak)
        assert one_cycle(warm if step < peak else cool) == pytest.approx(schedule.get_last_lr()[0], rel=1e-9)
        optimizer.step()
        schedule.step()


@pytest.mark.parametrize(("progress", "share"), [(0, 0.04), (0.1, 0.52), (0.2, 1), (0.6, 0.500002), (1, 4e-6)])
def test_one_cycle_by_hand(progress, share):
    assert one_cycle(progress) == pytest.approx(share, rel=1e-9)


@pytest.mark.parametrize("smoothing", [0.0, 0.1, 0.4])
def test_labels_against_numpy(smoothing):
    draws = np.random.default_rng(0)
    logits, labels = draws.normal(size=(6, 10)), draws.integers(0, 10, 6)
    target = (1 - smoothing) * np.eye(10)[labels] + smoothing / 10
    log_softmax = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    batch = Batch(torch.empty(6, 1, 8, 8), torch.from_numpy(labels), 0, 0)
    got = Labels(smoothing).loss(None)(torch.from_numpy(logits), batch)
    assert got.item() == pytest.approx(-(target * log_softmax).sum(1).mean(), rel=1e-12)


# The loop


def test_the_learning_rate_of_every_step(digits, tmp_path, monkeypatch):
    rates, step = [], torch.optim.SGD.step

    def spy(self, *args):
        rates.append([group["lr"] for group in self.param_groups])
        return step(self, *args)

    monkeypatch.setattr(torch.optim.SGD, "step", spy)
    trained(digits, tmp_path / "state", epochs=2)
    warm = [0.04 + 0.96 * (1 - math.cos(math.pi * i / 2)) / 2 for i in range(2)]
    cool = [4e-6 + (1 - 4e-6) * (1 + math.cos(math.pi * i / 8)) / 2 for i in range(8)]
    np.testing.assert_allclose(rates, [[0.05 * r] * 2 for r in warm + cool], rtol=1e-9)


def test_weight_decay_on_matrices_and_not_on_vectors(digits, tmp_path):
    model = small()
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    trained(
        digits, tmp_path / "state", model, epochs=1, batch_size=160, learning_rate=0.5, weight_decay=0.1,
        loss=lambda logits, batch: 0 * logits.sum(),
    )  # fmt: skip
    # A single step, without a gradient, at the schedule's start: Nesterov moves by (1 + momentum) times the decay.
    kept = 1 - (0.5 / 25) * 1.9 * 0.1
    for name, parameter in model.named_parameters():
        expected = before[name] * kept if parameter.ndim > 1 else before[name]
        torch.testing.assert_close(parameter.detach(), expected, rtol=1e-5, atol=1e-7)
        assert parameter.ndim > 1 or torch.equal(parameter, before[name])
    assert {p.ndim for p in model.parameters()} == {1, 2, 4}


def test_it_learns_and_logs(digits, tmp_path):
    model, log = trained(digits, tmp_path / "state", epochs=8)
    assert not model.training and [point["epoch"] for point in log["curves"]] == list(range(1, 9))
    assert log["curves"][-1]["loss"] < log["curves"][0]["loss"]
    assert log["train_seconds"] == pytest.approx(sum(point["seconds"] for point in log["curves"]))
    assert log["images_per_second"] == pytest.approx(8 * 160 / log["train_seconds"])
    images = digits.validation.images.double()
    with torch.no_grad():
        logits = model(((images / 255 - digits.mean[0]) / digits.std[0]).float())
    by_hand = (logits.argmax(1) == digits.validation.labels).double().mean().item()
    # bfloat16 arithmetic, where the processor has it, may turn a close call or two of the 144
    assert log["curves"][-1]["validation_accuracy"] == pytest.approx(by_hand, abs=2.1 / 144)
    assert by_hand > 0.6  # chance is 0.1


def test_operations_of_a_training_are_those_worked_by_hand(digits, tmp_path):
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                          nn.Flatten(), nn.Linear(4, 10))  # fmt: skip
    before = copy.deepcopy(model.state_dict())
    # Multiply-accumulates; two operations each. The images need no gradient, so the convolution has one product less.
    large, small, head = 4 * 9 * 8 * 8, 4 * 9 * 4 * 4, 4 * 10
    image = torch.randn(3, 1, 8, 8)
    assert flop(model, image) == 3 * 2 * (large + head)
    assert flop(model, image, backward=True) == 3 * 2 * (2 * large + 3 * head)
    assert model.training and all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    _, log = trained(digits, tmp_path / "state", model, epochs=3, batch_size=100, small_side=4, small_share=0.5)
    two_small_one_large = 2 * (2 * small + 3 * head) + (2 * large + 3 * head)
    assert log["train_pflop"] == pytest.approx(1e-15 * 100 * 2 * two_small_one_large)  # 100 of the 160 images


def test_evaluate_counts_the_last_short_batch(digits):
    always_three = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    nn.init.zeros_(always_three[1].weight)
    always_three[1].bias.data = torch.eye(10)[3]
    share = np.mean(digits.validation.labels.numpy() == 3)
    assert evaluate(always_three, digits, digits.validation, batch_size=50) == pytest.approx(share)


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_loss_that_is_no_number(digits, tmp_path, number):
    with pytest.raises(TrainingDiverged, match=r"the loss became (nan|inf) in epoch 1: lower learning_rate"):
        trained(digits, tmp_path / "state", loss=lambda logits, batch: logits.sum() * 0 + number)
    assert not (tmp_path / "state").exists()  # else the next try would go on from weights that are lost


def hidden(spatial):
    """Batch norm behind a linear layer, which sees as many values of a channel as there are images; or on the map."""
    first = [nn.Conv2d(1, 8, 3 if spatial else 8), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten()]
    return nn.Sequential(*first, nn.Linear(8 * 36 if spatial else 8, 6), nn.BatchNorm1d(6), nn.Linear(6, 10))


SINGLE = {
    "linear layer": (lambda: hidden(True), "(5)"),
    "map of a pixel": (lambda: hidden(False), "(1)"),
    "the published study's student": (lambda: build("student_3conv", shape=(1, 8, 8), classes=10), "(layers.14)"),
}


@pytest.mark.parametrize("network", SINGLE)
def test_batch_norm_over_a_single_value_is_refused_before_the_training(digits, tmp_path, network):
    make, name = SINGLE[network]
    model = make()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    with pytest.raises(StepError, match="batch_size=1 leaves .* set batch_size to at least 2") as caught:
        trained(digits, tmp_path / "state", model, batch_size=1)
    assert name in str(caught.value)
    one = dataclasses.replace(digits, train=Split(digits.train.images[:1], digits.train.labels[:1]))
    with pytest.raises(StepError, match="a single training image leaves .* add training images"):
        trained(one, tmp_path / "state", model, batch_size=32)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    trained(digits, tmp_path / "state", model, batch_size=80, epochs=1)


@pytest.mark.parametrize("images", [1, 4])
def test_networks_without_such_a_batch_norm_train_on_single_images(digits, tmp_path, images):
    few = dataclasses.replace(digits, train=Split(digits.train.images[:images], digits.train.labels[:images]))
    for index, model in enumerate((small(), build("resnet8", shape=(1, 8, 8), classes=10))):
        start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        trained(few, tmp_path / f"state{index}", model, batch_size=1, epochs=1)
        assert any(not torch.equal(tensor, start[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_last_update_that_spoils_the_weights_is_noticed(digits, tmp_path, number):
    """It shows in no loss, since none is computed after it."""
    model = small()

    def spoil(done):
        if done == 1:
            model[0].weight.data[0, 0, 0, 0] = number

    with pytest.raises(TrainingDiverged, match="epoch 4: lower learning_rate"):
        trained(digits, tmp_path / "state", model, after_step=spoil)
    assert len(Checkpoint(tmp_path / "state").load()[1]["curves"]) == 3  # those weights are not kept


def test_a_learning_rate_far_too_high(digits, tmp_path):
    with pytest.raises(TrainingDiverged, match="lower learning_rate"):
        trained(digits, tmp_path / "state", learning_rate=1e20)


# Optimizers, schedules, averages


def test_muon_by_hand():
    """Two updates in numpy: of a kernel by the singular vectors of its momentum, of the rest by SGD with Nesterov's."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 2), nn.Flatten(), nn.Linear(8, 2))
    optimizer = OPTIMIZERS["muon"](model, Training(learning_rate=0.1, weight_decay=0.01))
    assert [len(group["params"]) for group in optimizer.param_groups] == [1, 1, 2]
    kernel, bias = model[0].weight, model[0].bias
    expected, buffer = kernel.detach().double().numpy().reshape(4, 12).copy(), np.zeros((4, 12))
    small, slow = bias.detach().double().numpy().copy(), np.zeros(4)
    for _ in range(2):
        for parameter in model.parameters():
            parameter.grad = torch.randn_like(parameter)
        gradient = kernel.grad.double().numpy().reshape(4, 12)
        buffer = 0.9 * buffer + gradient
        left, _, right = np.linalg.svd(gradient + 0.9 * buffer, full_matrices=False)
        expected = expected * (1 - 0.1 * 0.01) - 0.1 * left @ right
        slow = 0.9 * slow + bias.grad.double().numpy()
        small -= 0.1 * (bias.grad.double().numpy() + 0.9 * slow)
        optimizer.step()
    moved = kernel.detach().double().numpy().reshape(4, 12)
    # The iteration brings singular values to 0.7 to 1.2 only: the direction agrees, and the size nearly does.
    assert np.abs(moved - expected).max() < 0.1 * 2 * 0.35 and np.corrcoef(moved.ravel(), expected.ravel())[0, 1] > 0.98
    np.testing.assert_allclose(bias.detach().numpy(), small, rtol=1e-5)


def test_singular_values_near_one():
    for shape in ((20, 50), (50, 20), (16, 16)):
        values = torch.linalg.svdvals(orthogonal(torch.randn(shape, generator=torch.Generator().manual_seed(1))))
        assert values.min() > 0.3 and values.max() < 1.3


@pytest.mark.parametrize(("name", "kind"), [("sgd", torch.optim.SGD), ("adamw", torch.optim.AdamW), ("muon", Muon)])
def test_each_optimizer_learns(name, kind, digits, tmp_path):
    rate = {"sgd": 0.05, "adamw": 0.01, "muon": 0.02}[name]
    assert isinstance(OPTIMIZERS[name](small(), Training()), kind)
    _, log = trained(digits, tmp_path / "state", epochs=8, optimizer=name, learning_rate=rate)
    assert log["curves"][-1]["validation_accuracy"] > 0.6  # chance is 0.1


@pytest.mark.parametrize(
    ("name", "progress", "share"),
    [
        ("linear", 0.25, 0.75), ("cosine", 0.5, 0.5), ("cosine", 1, 0), ("constant", 0.9, 1), ("triangle", 0, 0.2),
        ("triangle", 0.2, 1), ("triangle", 0.6, 0.5), ("triangle", 1, 0),
    ],
)  # fmt: skip
def test_schedules_by_hand(name, progress, share):
    assert SCHEDULES[name](progress) == pytest.approx(share, abs=1e-12)


def test_the_average_of_weights_by_hand(digits, tmp_path):
    """Of every update's weights and running statistics, the decay growing to what is asked: 1 / 10, 2 / 11, ..."""
    model, seen = small(), []

    def see(done):
        if len(seen) < 8:  # once more when the average is in place
            seen.append({name: tensor.clone() for name, tensor in model.state_dict().items()})

    trained(digits, tmp_path / "state", model, epochs=2, batch_size=40, average=0.25, after_step=see)
    assert len(seen) == 8
    for name, tensor in model.state_dict().items():
        average = seen[0][name].double()
        for count, weights in enumerate(seen[1:], 1):
            kept = min(0.25, (1 + count) / (10 + count))
            average = (
                kept * average + (1 - kept) * weights[name].double() if tensor.is_floating_point() else weights[name]
            )
        torch.testing.assert_close(tensor.double(), average.double(), rtol=1e-5, atol=1e-6)


def test_a_training_at_a_smaller_side_first(digits, tmp_path):
    class Pooled(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.linear, self.sides = nn.Conv2d(1, 4, 3, padding=1), nn.Linear(4, 10), []

        def forward(self, x):
            if self.training:
                self.sides.append(x.shape[-1])
            return self.linear(self.conv(x).relu().mean((2, 3)))

    model = Pooled()
    trained(digits, tmp_path / "state", model, epochs=4, batch_size=160, small_side=5, small_share=0.5)
    assert model.sides == [5, 5, 8, 8]


def test_a_network_that_views_its_maps_is_trained(digits, tmp_path):
    """As people flatten since LeNet: channels-last maps cannot be viewed so."""

    class Viewed(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Conv2d(1, 4, 3), nn.Conv2d(4, 4, 3)
            self.linear = nn.Linear(64, 10)

        def forward(self, x):
            x = self.second(self.first(x).relu()).relu()
            return self.linear(x.view(x.size(0), -1))

    _, log = trained(digits, tmp_path / "state", Viewed(), epochs=12, learning_rate=0.2)
    assert log["curves"][-1]["validation_accuracy"] > 0.3


@pytest.mark.parametrize(
    ("fields", "said"),
    [
        ({"optimizer": "sdg"}, "unknown optimizer 'sdg': use one of sgd, adamw, muon"),
        ({"lr_schedule": "up"}, "unknown lr_schedule 'up': use one of one_cycle"),
        ({"augmentation": ("crop", "flop")}, "unknown augmentation 'flop': use one of crop, flip"),
        ({"augmentation": "crop"}, r"tuple of names, such as \('crop', 'flip'\), not 'crop'"),
        ({"average": 1.0}, "average is a decay"), ({"small_share": 0}, "small_share"),
        ({"small_side": 0}, "small_side"),
        ({"views": 0}, "views"), ({"view_seed": -1}, "view_seed"),
    ],
)  # fmt: skip
def test_settings_that_cannot_be(fields, said):
    for kind in (Training, lambda **own: Train("resnet8", **own), lambda **own: Prune(**own)):
        with pytest.raises(StepError, match=said):
            kind(**fields)


def test_an_optimizer_of_ones_own(digits, tmp_path, monkeypatch):
    """One row, and it is a setting as any other: trained, resumed, in the identity."""
    monkeypatch.setitem(OPTIMIZERS, "rprop", lambda model, training: torch.optim.Rprop(model.parameters(), lr=1e-3))
    plain, own = (Recipe("digits", (Train("resnet8", **fields),)) for fields in ({}, {"optimizer": "rprop"}))
    assert plain.id != own.id and own.describe()["steps"][0]["optimizer"] == "rprop"
    _, log = trained(digits, tmp_path / "state", optimizer="rprop", batch_size=160, epochs=12)
    assert log["curves"][-1]["validation_accuracy"] > 0.6


# Killed, and going on


@pytest.mark.parametrize("fields", [{"optimizer": "adamw"}, {"optimizer": "muon"}, {"average": 0.9}])
@pytest.mark.parametrize("steps", [6, 20])
def test_all_that_a_training_consists_of_is_kept(digits, tmp_path, fields, steps):
    whole, _ = trained(digits, tmp_path / "whole", learning_rate=0.01, **fields)
    left = iter(range(steps - 1))

    def killed(done):
        if next(left, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(digits, tmp_path / "state", learning_rate=0.01, after_step=killed, **fields)
    resumed, _ = trained(digits, tmp_path / "state", learning_rate=0.01, **fields)
    assert same_weights(whole, resumed)


@pytest.mark.parametrize("steps", [3, 6, 20])
def test_a_killed_training_ends_with_the_same_weights(digits, tmp_path, steps):
    whole, log = trained(digits, tmp_path / "whole")
    left = iter(range(steps - 1))

    def killed(done):
        if next(left, None) is None:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        trained(digits, tmp_path / "state", after_step=killed)
    torch.rand(3)
    taken = []
    resumed, again = trained(digits, tmp_path / "state", after_step=taken.append)
    assert len(taken) == 20 - 5 * ((steps - 1) // 5)  # five an epoch; only the unfinished epoch is done over
    assert taken[-1] == 1  # the share that is done counts from the start, not from where it went on
    assert same_weights(whole, resumed)
    for a, b in zip(log["curves"], again["curves"], strict=True):
        assert {k: v for k, v in a.items() if k != "seconds"} == {k: v for k, v in b.items() if k != "seconds"}


def test_a_finished_training_is_not_repeated(digits, tmp_path):
    whole, log = trained(digits, tmp_path / "state")
    again, log_again = trained(digits, tmp_path / "state", after_step=lambda done: pytest.fail("trains"))
    assert same_weights(whole, again) and log_again["curves"] == log["curves"]


KILLED = """
import dataclasses, os, pathlib, signal, sys, torch
from data import Split, load
from storage import Checkpoint
from training import Context, Train

class Killed(Checkpoint):
    def save(self, tensors, state):
        super().save(tensors, state)
        os.kill(os.getpid(), signal.SIGKILL)

torch.set_num_threads(int(sys.argv[2]))
digits = load("digits")
digits = dataclasses.replace(digits, train=Split(digits.train.images[:160], digits.train.labels[:160]))
context = Context(digits, 3, torch.device("cpu"), Killed(pathlib.Path(sys.argv[1])), None, pathlib.Path())
Train("resnet20", epochs=2, batch_size=80).apply(None, context)
"""


def test_train_goes_on_after_kill_9_and_ends_in_bfloat16(digits, tmp_path):
    step = Train("resnet20", epochs=2, batch_size=80)
    whole = step.apply(None, context_of(digits, tmp_path / "whole", seed=3))
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path / "state"), str(torch.get_num_threads())],
        cwd=Path(__file__).parent.parent,
        env=os.environ | {"PYTHONPATH": "."},
        timeout=120,
    )
    assert done.returncode == -signal.SIGKILL
    context = context_of(digits, tmp_path / "state", seed=3)
    _, state = context.checkpoint.load()
    assert len(state["curves"]) == 1
    resumed = step.apply(None, context)
    assert same_weights(whole, resumed) and len(context.log["curves"]) == 2
    scale = {"mean": list(digits.mean), "std": list(digits.std)}
    assert resumed.spec == {"architecture": "resnet20", "shape": [1, 8, 8], "classes": 10, "pixels": scale}
    matrices = [p for p in resumed.parameters() if p.ndim > 1]
    assert len(matrices) == 22
    for weight in matrices:  # bfloat16 is float32 without its lower 16 bits
        assert not (weight.detach().contiguous().numpy().view(np.uint32) & 0xFFFF).any()


@pytest.mark.parametrize("damage", ["flip", "truncate", "foreign"])
def test_a_damaged_checkpoint_starts_over_with_a_warning(digits, tmp_path, damage):
    path = tmp_path / "state"
    whole, _ = trained(digits, path, epochs=2)
    content = bytearray(path.read_bytes())
    content[-3] ^= 1
    path.write_bytes({"flip": bytes(content), "truncate": bytes(content[:-99]), "foreign": b"hello"}[damage])
    with pytest.warns(UserWarning, match="its content is computed again"):
        again, _ = trained(digits, path, epochs=2)
    assert same_weights(whole, again)


# Train


@pytest.mark.parametrize(
    "wrong",
    [
        {"epochs": 0}, {"epochs": -1}, {"batch_size": 0}, {"learning_rate": 0}, {"learning_rate": -0.1},
        {"learning_rate": math.nan}, {"weight_decay": -1e-9}, {"weight_decay": math.nan}, {"label_smoothing": -0.1},
        {"label_smoothing": 1}, {"label_smoothing": math.nan}, {"label_smoothing": "0.1"}, {"epochs": 1.5},
        {"epochs": "3"}, {"batch_size": 64.5}, {"learning_rate": math.inf}, {"learning_rate": "0.1"},
        {"weight_decay": math.inf}, {"weight_decay": None},
    ],
)  # fmt: skip
def test_hyperparameters_out_of_range(wrong):
    with pytest.raises(StepError, match=next(iter(wrong))):
        Train("resnet20", **wrong)


def test_hyperparameters_at_the_edge():
    Train("resnet18", epochs=1, batch_size=1, weight_decay=0, label_smoothing=0)


def test_unknown_model():
    with pytest.raises(ModelError, match="resnet34"):
        Train("resnet34")


def test_a_training_starts_where_another_ended(digits, tmp_path):
    """With all but no learning rate the weights stay; and the batches are those of no epoch before, of no start."""
    first = Recipe("digits", (Train("resnet20", epochs=3, batch_size=80),), 5)
    model = first.steps[0].apply(None, context_of(digits, tmp_path / "first", seed=5))
    second = Recipe("digits", (Train("resnet20", epochs=1, batch_size=80, start=first),), 5)
    made = {first: model, second: model}.__getitem__
    before, seen = [p.detach().clone() for p in model.parameters()], []
    with pytest.MonkeyPatch.context() as patch:
        given = loop.batches
        patch.setattr(loop, "batches", lambda *a, **k: (seen.append(b.images) or b for b in given(*a, **k)))
        for place, start in enumerate((first, second)):
            context = dataclasses.replace(context_of(digits, tmp_path / f"more-{place}", seed=5), make=made)
            after = Train("resnet20", epochs=1, batch_size=80, learning_rate=1e-12, start=start).apply(None, context)
    for old, new in zip(before, after.parameters(), strict=True):
        torch.testing.assert_close(new, old, rtol=0, atol=1e-6)
    earlier = [b.images for e in range(3) for b in given(digits, digits.train, 80, seed=5, epoch=e)]
    assert len(seen) == 4 and not any(torch.equal(a, b) for a in seen for b in earlier)
    assert not any(torch.equal(a, b) for a in seen[:2] for b in seen[2:])


def test_a_start_of_another_kind(digits, tmp_path):
    """Said before anything is trained."""
    with pytest.raises(StepError, match="another network"):
        Recipe("digits", (Train("resnet20", start=Recipe("digits", (Train("resnet18"),))),))
    with pytest.raises(StepError, match="another network"):
        Recipe("digits", (Train("resnet20", width=2, start=Recipe("digits", (Train("resnet20"),))),))
    elsewhere = Train("resnet20", start=Recipe("cifar10", (Train("resnet20"),)))
    with pytest.raises(StepError, match="start was trained on cifar10"):
        elsewhere.apply(None, context_of(digits, tmp_path / "state"))


def test_a_start_that_is_no_training():
    with pytest.raises(StepError, match="ends in Train or Pretrained, not .resnet20 > Quantize."):
        Recipe("digits", (Train("resnet20", start=Recipe("digits", (Train("resnet20"),)).then(Quantize())),))
    with pytest.raises(StepError, match="ends in Train or Pretrained, not .resnet20."):
        Recipe("digits", (Train("resnet20", start="resnet20"),))


def test_train_starts_a_chain():
    step = Train("resnet20")
    step.check_after(())
    with pytest.raises(StepError, match="starts a recipe"):
        step.check_after((step,))


def test_seeds_make_different_models(digits, tmp_path):
    def weights(seed, name):
        step = Train("resnet20", epochs=1, batch_size=160)
        return step.apply(None, context_of(digits, tmp_path / name, seed)).linear.weight

    first = weights(0, "a")
    assert torch.equal(first, weights(0, "b")) and not torch.equal(first, weights(1, "c"))
