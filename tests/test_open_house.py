"""A technique, an optimizer, an augmentation and an operator of one's own: a class or a row, and all the rest knows."""

from dataclasses import dataclass
from typing import ClassVar

import matplotlib.pyplot as plt
import pytest
import torch
from matplotlib.text import Text
from torch import nn

from combination import recommend
from experiment import load_records, run
from experiment.records import archive_path
from models import (
    TRANSFORMATIONS,
    ModelError,
    build,
    channel_table,
    operators,
    rebuild,
    spec_of,
    transformation,
    with_done,
)
from models.operators import PASSES, Operator, register
from models.quantized import insert_quantizers, left_in_floats
from models.spec import set_spec
from plots.comparison import accuracy_against_size, latency_bars
from plots.pareto import pareto_chart
from plots.style import figure_of
from pruning import Prune, layer_graph
from pruning.channels import CHANNEL_CRITERIA, narrow
from quantization import Quantize
from recipe import AUGMENTATIONS, OPTIMIZERS, STEPS, Recipe, Step, StepError, is_number
from report import compared, readme
from storage import load_archive
from training import Train

# --- A technique ------------------------------------------------------------------------------------------------------


def low_rank_step():
    """Convolutions and linear layers as products of two, by their largest singular values (Denton et al. 2014)."""

    @transformation("low_rank")
    def factored(model: nn.Module, ranks: dict[str, int]) -> nn.Module:
        for name, rank in ranks.items():
            layer = model.get_submodule(name)
            if isinstance(layer, nn.Linear):
                pair = nn.Linear(layer.in_features, rank, bias=False), nn.Linear(rank, layer.out_features)
            else:
                like = {"kernel_size": layer.kernel_size, "stride": layer.stride, "padding": layer.padding}
                bias = layer.bias is not None
                pair = (
                    nn.Conv2d(layer.in_channels, rank, **like, bias=False),
                    nn.Conv2d(rank, layer.out_channels, 1, bias=bias),
                )
            model.set_submodule(name, nn.Sequential(*pair))
        return model

    @dataclass(frozen=True)
    class LowRank(Step):
        letter, kind = "L", "low rank"
        forbids: ClassVar = {"integers": "its weights are integers; factor first"}

        share: float = 0.5

        def check(self):
            if not (is_number(self.share) and 0 < self.share <= 1):
                raise StepError(f"share of the singular values is above 0 and at most 1, not {self.share!r}")

        def words(self):
            return [f"rank {100 * self.share:g} %"]

        def apply(self, model, context):
            layers = {name: layer for name, layer in model.named_modules() if isinstance(layer, nn.Conv2d | nn.Linear)}
            sizes = {name: min(layer.weight.flatten(1).shape) for name, layer in layers.items()}
            ranks = {name: max(1, round(self.share * size)) for name, size in sizes.items()}
            spec = with_done(spec_of(model), "low_rank", ranks)
            factored(model, ranks)
            for name, layer in layers.items():
                first, second = model.get_submodule(name)
                left, values, right = torch.linalg.svd(layer.weight.detach().flatten(1), full_matrices=False)
                rank = ranks[name]
                first.weight = nn.Parameter(right[:rank].reshape(first.weight.shape).contiguous())
                second.weight = nn.Parameter((left[:, :rank] * values[:rank]).reshape(second.weight.shape))
                second.bias = layer.bias
            set_spec(model, spec)
            return model

    return LowRank


@pytest.fixture
def low_rank():
    yield low_rank_step()
    del STEPS["LowRank"], TRANSFORMATIONS["low_rank"]


def test_a_technique_is_made_archived_charted_named_recommended_and_listed(low_rank, folders, monkeypatch):
    base = Recipe("digits", (Train("tiny", epochs=4, batch_size=64),))
    first = base.then(low_rank(0.75))
    chain = first.then(Prune(sparsity=0.5, epochs=1, batch_size=64)).then(Quantize())
    made = {recipe.letters: run(recipe) for recipe in (base, first, chain)}
    assert set(made) == {"", "L", "LPQ"} and made["LPQ"]["accuracy"] > 0.3
    # archived, and restored without the record
    model = load_archive(archive_path(made["LPQ"]))
    assert [name for name, _ in spec_of(model)["done"]] == ["low_rank", "quantized"]
    assert made["L"]["parameters"] < made[""]["parameters"] or made["L"]["macs"] < made[""]["macs"]
    assert run(chain) == made["LPQ"]
    # charted, named, recommended, listed
    records = load_records("digits")
    words = "tiny, rank 75 %, pruned 50 %, 8 bits without training"
    assert dict(zip(records["kinds"], records["words"], strict=True))["LPQ"] == words
    assert {"", "L", "LPQ"} == set(records["kinds"]) and len(compared(records)) == 3
    for draw, name in ((accuracy_against_size, "low rank"), (pareto_chart, "low rank"), (latency_bars, "rank 75 %")):
        texts = [text.get_text() for text in figure_of(draw(records)).findobj(Text)]
        assert any(name in text for text in texts), texts
        plt.close("all")
    assert recommend(records, size_kb=1e6).model["id"] in {record["id"] for record in made.values()}
    smallest = recommend(records, accuracy=0.1)
    assert smallest.model["words"] == words and "L" in smallest.model["kinds"]
    monkeypatch.setattr(readme, "DATASET", "digits")
    assert f"| [{words}](results/digits/{made['LPQ']['id']}.json)" in readme.results()


def test_an_archive_of_a_transformation_that_is_not_at_hand(folders):
    step = low_rank_step()
    record = run(Recipe("digits", (Train("tiny", epochs=1, batch_size=64),)).then(step(0.5)))
    content = archive_path(record)
    del STEPS["LowRank"], TRANSFORMATIONS["low_rank"]
    with pytest.raises(Exception, match="unknown transformation 'low_rank' of the network"):
        load_archive(content)


def test_what_was_done_is_folded_in_order(low_rank):
    """After a factorization channels are cut of what there is then, and once more of what is left."""
    torch.manual_seed(0)
    model = build("resnet8", shape=(3, 16, 16), classes=10)
    ranks = {"blocks.0.conv1": 8}
    spec = with_done(spec_of(model), "low_rank", ranks)
    model = TRANSFORMATIONS["low_rank"](model, ranks)
    set_spec(model, spec)
    for share in (0.7, 0.8):
        model = narrow(model, CHANNEL_CRITERIA["magnitude"](model, None), share, 1)
        set_spec(model, with_done(spec_of(model), "channels", channel_table(model)))
    integer = insert_quantizers(model)
    assert [name for name, _ in spec_of(integer)["done"]] == ["low_rank", "channels", "channels", "quantized"]
    again = rebuild(spec_of(integer))
    again.load_state_dict(integer.state_dict())
    x = torch.randn(4, 3, 16, 16)
    assert torch.equal(again.eval()(x), integer.eval()(x)) and spec_of(again) == spec_of(integer)
    with pytest.raises(ModelError, match="'folded' is not a transformation of a network: use one of quantized"):
        with_done(spec_of(model), "folded")


# --- An optimizer, an augmentation, an operator -----------------------------------------------------------------------


def test_an_optimizer_and_an_augmentation_of_ones_own(folders, monkeypatch):
    monkeypatch.setitem(
        OPTIMIZERS, "signs", lambda model, training: torch.optim.Rprop(model.parameters(), lr=training.learning_rate)
    )
    monkeypatch.setitem(AUGMENTATIONS, "darker", lambda draw: lambda images, part, chosen: images // 2)
    step = Train("tiny", epochs=2, batch_size=256, learning_rate=1e-3, optimizer="signs", augmentation=("darker",))
    record = run(Recipe("digits", (step,)))
    described = record["recipe"]["steps"][0]
    assert (described["optimizer"], described["augmentation"]) == ("signs", ["darker"])
    with pytest.raises(StepError, match="unknown optimizer 'sings': use one of sgd, adamw, muon, signs"):
        Train("tiny", optimizer="sings")


class Swish(nn.Module):
    def forward(self, x):
        return swish(x)


@torch.fx.wrap
def swish(x):
    return x * torch.sigmoid(1.5 * x)


def test_an_operator_of_ones_own(monkeypatch):
    """One row: no wall for the layer graph, in floats for the quantizer; without the row it is a wall."""
    monkeypatch.setattr(operators, "OPERATORS", [*operators.OPERATORS])
    model = nn.Sequential(nn.Conv2d(3, 8, 3), Swish(), nn.Conv2d(8, 4, 3), nn.Flatten(), nn.LazyLinear(10))
    model(torch.zeros(1, 3, 8, 8))
    set_spec(model, {"architecture": "own", "shape": [3, 8, 8], "classes": 10})
    with pytest.warns(UserWarning, match="swish"):
        before = layer_graph(model)
    assert before["0"].consumers == [None]
    register(Operator("swish", PASSES, calls=(swish,)))
    assert layer_graph(model)["0"].consumers == ["2"]
    assert left_in_floats(insert_quantizers(model.eval())) == ["swish"]
