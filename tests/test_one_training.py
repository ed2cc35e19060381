"""One training against the same steps in a row: the recipes compared, their time, and the words about both."""

import dataclasses

import pandas as pd
import pytest

from combination import Joint
from data import load
from distillation import Distill, Teacher
from experiment import Recipe
from pruning import Prune
from quantization import Quantize, calibrate, rounding
from report import beside_the_chain
from study import one_training
from study.baseline import base_recipe
from study.distillation import student_training
from training import Train, loop


def test_the_chain_that_joint_is_compared_with_has_its_teacher_and_epochs():
    base = base_recipe("cifar10", "resnet18")
    chain = one_training.in_a_row(base, "resnet20", 0.9, 4)
    distil, prune, quantize = chain.steps[1:]
    assert (distil.model, prune.sparsity, quantize.bits) == ("resnet20", 0.9, 4)
    assert not distil.teachers and prune.teacher == quantize.teacher == base  # the first one's is what it starts from
    for share in (1.0, 0.5):
        step = one_training.joint(base, "resnet20", 0.9, 4, share).steps[-1]
        assert step.epochs == round(share * (distil.epochs + prune.epochs + quantize.epochs))
        assert (
            (step.temperature, step.alpha) == (prune.temperature, prune.alpha) == (quantize.temperature, quantize.alpha)
        )


def test_another_seed_has_the_same_base_as_its_teacher():
    base = base_recipe("cifar10", "resnet18")
    for make in (one_training.in_a_row, one_training.joint):
        usual, other = make(base, "resnet20", 0.9, 4), make(base, "resnet20", 0.9, 4, seed=1)
        assert make(base, "resnet20", 0.9, 4, seed=0) == usual and usual.seed == 0 and other.seed == 1
        first = other.steps[0]
        assert first.teachers == (base,) and other.base == base  # of seed 0: not trained again
        assert (dataclasses.replace(first, teachers=()), *other.steps[1:]) == usual.steps[1:]


def test_training_times_by_hand():
    epoch = {"Distill": 1.0, "Prune": 2.0, "Quantize": 3.0, "Joint": 4.0, "Joint, rounding": 10.0}
    chain = (Distill("resnet8", epochs=30), Prune(epochs=3), Quantize("qat", epochs=5))
    assert one_training.training_seconds(chain, epoch) == 30 + 2 * 3 + 3 * 5
    assert one_training.training_seconds([Joint("resnet8", epochs=5)], epoch) == 3 * 4 + 2 * 10  # rounds from 60 % on


def test_epochs_are_timed_without_what_is_done_once(folders, monkeypatch):
    """By a clock that goes a second a step, ten where weights are rounded, and a thousand for what is done once."""
    now, update = [0.0], loop.update

    def slow(model, *given):
        rounds = any(getattr(module, "enabled", False) for module in model.modules())
        now[0] += 10 if rounds else 1
        return update(model, *given)

    def once(work):
        return lambda *given: now.__setitem__(0, now[0] + 1000) or work(*given)

    monkeypatch.setattr(loop, "update", slow)
    monkeypatch.setattr(loop.time, "perf_counter", lambda: now[0])
    monkeypatch.setattr(Teacher, "_forward", once(Teacher._forward))
    monkeypatch.setattr(rounding, "calibrate", once(calibrate))
    monkeypatch.setattr(one_training, "BATCHES", 2)
    base = Recipe("digits", (Train("resnet8", epochs=1, batch_size=256),))
    epoch = one_training.epoch_seconds(base, "student_6", 0.5, 4)
    steps = len(load("digits").train) / student_training(base, "student_6")["batch_size"]
    plain = dict.fromkeys(("Distill", "Prune", "Joint"), steps)
    assert dict(epoch) == pytest.approx(plain | dict.fromkeys(("Quantize", "Joint, rounding"), 10 * steps))


def test_one_training_beside_the_chain_of_its_seed():
    """Seed 0 loses half a point in half the time, seed 1 wins one and a half in 0.7 of it."""
    row = {"how": "one after the other", "epochs": "100%", "prunes from": "", "rounds from": ""}
    once = {"how": "one training", "epochs": "56%", "prunes from": "20%", "rounds from": "85%"}
    rows = [
        row | {"seed": 0, "accuracy": 0.87, "seconds": 100.0},
        once | {"seed": 0, "accuracy": 0.865, "seconds": 50.0},
        row | {"seed": 1, "accuracy": 0.86, "seconds": 100.0},
        once | {"seed": 1, "accuracy": 0.875, "seconds": 70.0},
    ]
    table = pd.DataFrame(rows)
    table["accuracy_low"], table["accuracy_high"] = table["accuracy"] - 0.004, table["accuracy"] + 0.004
    for seeds, points, share, one_by_one in ((1, -0.5, 50, None), (2, 0.5, 60, "0: -0.50, 1: +1.50")):
        (row,) = beside_the_chain(table.iloc[: 2 * seeds]).to_dict("records")
        assert (row["epochs"], row["prunes from"], row["rounds from"]) == ("56%", "20%", "85%")
        assert (row["points to the chain"], row["% of its time"]) == (points, share)
        assert row.get("points by seed") == one_by_one and row["test"] == "intervals overlap"
