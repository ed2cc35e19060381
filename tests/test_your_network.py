"""Notebook 0: settings for any network, weights and images; how long they take; what is said of a refused method."""

import dataclasses
import sys
import textwrap
import time

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from combination import recommend
from data import Split, load
from distillation import Distill
from experiment import make
from models import ARCHITECTURES, build
from plots.pareto import pareto_chart
from pruning import Prune, PruneChannels
from quantization import Quantize
from recipe import CompressionError, Recipe, StepError
from report import compared
from study import your_network as study
from training import Pretrained, Train

NETS = """
    from torch import nn

    def plain(num_classes, in_channels, channels=8):
        return nn.Sequential(nn.Conv2d(in_channels, channels, 3, stride=2), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                             nn.Flatten(), nn.Linear(channels, num_classes))

    def normed(num_classes, in_channels):
        return nn.Sequential(nn.Conv2d(in_channels, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.AdaptiveAvgPool2d(1),
                             nn.Flatten(), nn.Linear(8, num_classes))
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module of the user's, in a folder from which can be imported."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "nets_of_a_test.py").write_text(textwrap.dedent(NETS))
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    yield "nets_of_a_test"
    sys.modules.pop("nets_of_a_test", None)


@pytest.fixture
def pictures(tmp_path, folders):
    """Ten pictures of 24x24 for each of two classes and parts, bright or dark: the name of the data set."""
    rng = np.random.default_rng(0)
    for part in ("train", "val", "test"):
        for name, least in (("bright", 150), ("dark", 0)):
            (tmp_path / "light" / part / name).mkdir(parents=True)
            for index in range(10):
                values = rng.integers(least, least + 100, (24, 24), np.uint8)
                Image.fromarray(values).save(tmp_path / "light" / part / name / f"{index}.png")
    return f"folder:{tmp_path / 'light'}?side=24&colours=grey"


# --- Settings ---------------------------------------------------------------------------------------------------------


def test_digits_as_pictures_are_the_digits(folders, monkeypatch):
    """The first hundred of each part, in the order of a folder: by class."""
    digits = load("digits")
    parts = {part: getattr(digits, part) for part in ("train", "validation", "test")}
    few = {part: Split(split.images[:100], split.labels[:100]) for part, split in parts.items()}
    monkeypatch.setattr(study, "load", lambda name: dataclasses.replace(digits, **few))
    name = study.digits_as_pictures()
    written = load(name.replace("side=16", "side=8"))
    assert name == study.digits_as_pictures() and written.classes == digits.classes and not written.flip
    for part, split in few.items():
        ours, theirs = (
            sorted((int(label), image.numpy().tobytes()) for image, label in zip(own.images, own.labels, strict=True))
            for own in (getattr(written, part), split)
        )
        assert ours == theirs
    assert study.usual(name, "resnet8")["epochs"] < study.usual("digits", "resnet8")["epochs"]


@pytest.mark.parametrize(
    ("count", "epochs", "batch"),
    # 20,000 images seen in 5 to 30 epochs; a power of two in a batch, for 20 updates an epoch, from 32 to 128
    [(40, 30, 32), (300, 30, 32), (1000, 20, 32), (1294, 15, 64), (2000, 10, 64), (2560, 8, 128), (50_000, 5, 128)],
)
def test_settings_follow_from_the_number_of_images(count, epochs, batch, monkeypatch, nets):
    digits = load("digits")
    split = Split(digits.train.images[:1].expand(count, 1, 8, 8), torch.zeros(count, dtype=torch.int64))
    monkeypatch.setattr(study, "dataset_at_hand", lambda name: dataclasses.replace(digits, train=split))
    settings = study.usual("folder:/any", f"{nets}:normed")
    assert (settings["epochs"], settings["batch_size"]) == (epochs, batch)
    assert "optimizer" not in settings and study.usual("folder:/any", f"{nets}:plain")["optimizer"] == "adamw"
    again = study.further(settings)
    assert again["epochs"] == epochs // 3 and again["learning_rate"] < settings["learning_rate"]


def test_methods_fit_the_network(folders):
    """ResNet-18 has 11 million parameters; its student at 8x8 is a resnet20, with 0.27 million and fewer products."""
    base = study.base_recipe("digits", "resnet18", epochs=7)
    cases = {words["what"]: recipe for words, recipe in study.methods(base, epochs=7)}
    assert cases["FP32"] == base and base.last(Train).epochs == 7
    assert cases["90 % pruned"].last(Prune).sparsity == 0.9 and cases["90 % pruned"].last(Prune).epochs == 2
    assert cases["student"].last(Distill).model == "resnet20" and cases["student"].last(Distill).epochs == 14
    assert cases["half the MACs"].last(PruneChannels).teacher == base
    assert {name for name, recipe in cases.items() if isinstance(recipe.steps[-1], Quantize)} == {
        name for name in cases if "INT8" in name
    }
    small = {words["what"]: recipe for words, recipe in study.methods(study.base_recipe("digits", "resnet8"))}
    assert small["50 % pruned"].last(Prune).sparsity == 0.5  # 78,000 parameters
    own = {words["what"]: recipe for words, recipe in study.methods(base, "ds_cnn")}
    assert own["student"].last(Distill).model == "ds_cnn"


def test_settings_that_only_some_trainings_have_are_refused(folders):
    with pytest.raises(StepError, match="'label_smoothing' is no setting of every training: use some of epochs, "):
        study.base_recipe("digits", "resnet8", label_smoothing=0.0)


@pytest.mark.parametrize("side", [24, 96])
def test_a_student_is_smaller(side, pictures, nets):
    whole = "torchvision:mobilenet_v3_small"
    name, width = study.student_for(pictures.replace("side=24", f"side={side}"), whole)
    of = {"shape": (1, side, side), "classes": 2}
    networks = build(name, width=width, **of), build(whole, **of)
    parameters = [sum(parameter.numel() for parameter in network.parameters()) for network in networks]
    assert 2 * parameters[0] <= parameters[1]
    assert study.student_for(pictures, f"{nets}:normed") == ("resnet8", 0.125)  # of 114 parameters: none is smaller


# --- Weights ----------------------------------------------------------------------------------------------------------


def test_weights_that_fit_are_measured_as_they_are_and_others_trained(pictures, nets, tmp_path):
    for classes in (2, 5):
        network = build(f"{nets}:normed", shape=(1, 24, 24), classes=classes)
        torch.save(network.state_dict(), tmp_path / f"{classes}.pth")
    fit = study.base_recipe(pictures, f"{nets}:normed", tmp_path / "2.pth")
    assert fit == Recipe(pictures, (Pretrained(f"{nets}:normed", weights=tmp_path / "2.pth"),))
    state = torch.load(tmp_path / "2.pth")
    assert all(torch.equal(value, state[name]) for name, value in make(fit).state_dict().items())
    other = study.base_recipe(pictures, f"{nets}:normed", str(tmp_path / "5.pth"), "imagenet", epochs=9)
    step = other.last(Train)
    assert step.start is not None and step.start.last(Pretrained).pixels == "imagenet"
    assert step.epochs == 3 and study.methods(other)[0][1] == other


# --- Time -------------------------------------------------------------------------------------------------------------


def test_minutes_are_summed_and_refused(pictures, nets, monkeypatch):
    cases = study.methods(study.base_recipe(pictures, f"{nets}:normed", epochs=6), "resnet8", epochs=6)
    monkeypatch.setattr(study, "_measuring_seconds", lambda model, dataset: 60.0)
    monkeypatch.setattr(study, "_training_seconds", lambda step, model, dataset: (3, 30.0))
    expected = study.estimate(cases)
    assert expected.columns.tolist() == ["what", "epochs", "minutes"] and expected["minutes"].tolist() == [1.5] * 9
    assert study.check_minutes(expected, 14) == "13.5 minutes in all"
    assert study.check_minutes(expected[:0], 1) == "Everything is read back."
    with pytest.raises(StepError, match="this would take about 14 minutes here, and MINUTES allows 5: raise it, or"):
        study.check_minutes(expected, 5)


class Slow(nn.Module):
    """Waits for as long as it is told, each time."""

    def __init__(self, classes):
        super().__init__()
        self.layers = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4, classes))

    def forward(self, images):
        if self.training:
            wait(0.05)
        return self.layers(images)


@torch.fx.wrap
def wait(seconds):
    time.sleep(seconds)


def test_the_time_of_a_training_is_that_of_all_its_updates(pictures, monkeypatch):
    """20 images in batches of 4, each of which waits for 50 ms: an epoch takes a quarter of a second."""
    monkeypatch.setitem(ARCHITECTURES, "slow", lambda shape, classes, width: Slow(classes))
    data = load(pictures)
    assert len(data.train) == 20
    model = study._network(pictures, "slow")
    for step, epochs in ((Train("slow", epochs=8, batch_size=4), 8), (Prune(epochs=3, batch_size=4), 3)):
        found, seconds = study._training_seconds(step, model, data)
        assert found == epochs and 0.25 * epochs < seconds < epochs
    assert study._training_seconds(Quantize(), model, data) == (0, 0.0)


# --- Records ----------------------------------------------------------------------------------------------------------


def test_what_is_refused_is_said_in_its_row_and_the_rest_is_made(pictures, nets, monkeypatch):
    """PruneChannels leaves multiples of 8 channels: of 8 none can go. All the others have a record and a mark."""
    base = study.base_recipe(pictures, f"{nets}:normed", epochs=3)
    cases = [case for case in study.methods(base, "resnet8", epochs=3) if case[0]["what"] in WANTED]
    expected = study.estimate(cases)
    assert expected.set_index("what")["epochs"].to_dict() == {"FP32": 3, "50 % pruned": 1, "half the MACs": 0}
    assert (expected["minutes"] > 0).all()
    table, refused = study.records(cases, expected)
    assert list(refused) == ["half the MACs"] and "cannot be reached" in refused["half the MACs"]
    shown = study.figures(table, refused)
    assert shown["what"].tolist() == ["FP32", "50 % pruned", "half the MACs"]
    assert shown["not made, since"].tolist() == ["", "", refused["half the MACs"]]
    assert shown["points to FP32"].tolist()[0] == 0 and shown["points to FP32"].tolist()[2] == ""
    kilobytes = recommend(table, size_kb=1e6).model["archive_bytes"] / 1e3
    assert kilobytes in table["archive_bytes"].to_numpy() / 1e3
    ax = pareto_chart(compared(table), names="what")
    assert {"FP32", "50 % pruned"} <= {text.get_text() for text in ax.texts}
    assert study.estimate(cases)["what"].tolist() == ["half the MACs"]  # only what has no record


WANTED = ("FP32", "50 % pruned", "half the MACs")


def test_without_the_network_itself_nothing_is_made(pictures, nets):
    base = Recipe(pictures, (Train(f"{nets}:normed", epochs=1, learning_rate=1e30),))
    with pytest.raises(CompressionError):
        study.records([({"what": "FP32"}, base)], study.estimate([({"what": "FP32"}, base)]))
