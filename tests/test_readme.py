"""The README's figures are those of the committed records."""

import re

import pandas as pd
import pytest

import experiment
from combination import Joint
from distillation import Distill, Ensemble
from experiment.store import ROOT
from pruning import Prune, PruneChannels
from quantization import Quantize
from recipe import Recipe, words_of
from report import readme
from training import Train

BASE = Recipe("digits", (Train("resnet18"),))


def test_readme_shows_the_records_figures(monkeypatch):
    monkeypatch.delenv("RESULTS_DIR", raising=False)
    text = (ROOT / "README.md").read_text()
    assert readme.written(text) == text, "run `python -m report.readme`"


def test_a_small_model_of_little_accuracy_is_shown(monkeypatch):
    monkeypatch.delenv("RESULTS_DIR", raising=False)
    records = experiment.load_records(readme.DATASET)
    worse = records.iloc[[0]].assign(id="worse", label="worse", validation_accuracy=0.3, archive_bytes=1000)
    beaten = worse.assign(id="beaten", label="beaten", archive_bytes=1001)
    monkeypatch.setattr(readme, "load_records", lambda name: pd.concat([records, worse, beaten], ignore_index=True))
    assert "/worse.json" in readme.results() and "/beaten.json" not in readme.results()


def test_a_base_of_several_seeds_of_which_the_recorded_one_is_not_the_best(monkeypatch):
    monkeypatch.delenv("RESULTS_DIR", raising=False)
    records = experiment.load_records(readme.DATASET)
    whole = records.loc[records["base_onnx_bytes"].idxmax(), "base"]
    better = records[records["id"] == whole].assign(id="better", base="better", seed=7)
    better["validation_accuracy"] += 0.01
    monkeypatch.setattr(readme, "load_records", lambda name: pd.concat([records, better], ignore_index=True))
    shown = readme.results()
    assert "/better.json" in shown and f"/{whole}.json" not in shown


@pytest.mark.parametrize(
    ("recipe", "words"),
    [
        (BASE, "resnet18"),
        (BASE.then(Quantize()), "resnet18, 8 bits without training"),
        (BASE.then(Quantize("qat", 3, layer_bits=(("conv", 8),))), "resnet18, 3 and 8 bits"),
        (
            BASE.then(Distill("resnet20")).then(Prune(sparsity=0.72)).then(Quantize("qat", "ternary")),
            "resnet20, distilled, pruned 72 %, ternary",
        ),
        (BASE.then(Prune("magnitude")), "resnet18, pruned 90 % by magnitude"),
        (BASE.then(PruneChannels()), "resnet18, channels pruned to 50 % of the MACs"),
        (BASE.then(Joint("resnet8", bits=2)), "resnet8, distilled, pruned 50 %, 2 bits, in one training of 30 epochs"),
        (
            Recipe("digits", (Ensemble((BASE, BASE.then(Distill("resnet8", width=0.5)).then(Quantize()))),)),
            "ensemble of resnet18 and resnet8 of width 0.5, distilled, 8 bits without training",
        ),
    ],
)
def test_recipes_in_plain_words(recipe, words):
    assert recipe.words == words == words_of({"dataset": recipe.dataset, "recipe": recipe.describe()})


def test_its_pictures_and_links_are_there():
    text = (ROOT / "README.md").read_text()
    for place in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / place).exists(), place


@pytest.mark.parametrize("room", sorted(path.parent.name for path in ROOT.glob("*/__init__.py")))
def test_readme_names_every_room(room):
    assert f"`{room}/`" in (ROOT / "README.md").read_text()
