"""Pruned channels: how much goes, which go, and that what is left is a network like any other."""

import dataclasses

import pytest
import torch
from torch import nn

from data import Split, load
from measurement import cost
from models import ModelError, build, channel_table, rebuild
from pruning import Prune, PruneChannels, layer_graph
from pruning.channels import CHANNEL_CRITERIA, narrow
from pruning.criteria import lookahead
from quantization import Quantize
from recipe import StepError
from storage import Checkpoint, load_archive, save_archive
from training import Context


@pytest.fixture
def context(tmp_path):
    digits = load("digits")
    digits = dataclasses.replace(digits, train=Split(digits.train.images[:256], digits.train.labels[:256]))
    return Context(digits, 0, torch.device("cpu"), Checkpoint(tmp_path / "state"), make=None, cache=tmp_path)


def network(name="resnet8", width=1.0):
    torch.manual_seed(0)
    model = build(name, shape=(1, 8, 8), classes=10, width=width)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
    return model.eval()


def next_step(context, name):
    return dataclasses.replace(context, checkpoint=Checkpoint(context.cache / name))


def pruned(context, **fields):
    return PruneChannels(epochs=1, batch_size=64, **fields).apply(network(), context)


@pytest.mark.parametrize("criterion", CHANNEL_CRITERIA)
@pytest.mark.parametrize("name", ["resnet8", "ds_cnn", "student_4"])
def test_the_share_of_the_multiply_accumulates(name, criterion, context):
    model = network(name)
    left = cost(narrow(model, CHANNEL_CRITERIA[criterion](model, context), 0.5))["macs"] / cost(model)["macs"]
    assert 0.46 < left <= 0.5


def test_layers_keep_a_multiple_of_channels(context):
    model = network("resnet20")
    smaller = narrow(model, CHANNEL_CRITERIA["lookahead"](model, context), 0.4, multiple=8)
    assert 0.3 < cost(smaller)["macs"] / cost(model)["macs"] <= 0.4
    assert all(layer.out_channels % 8 == 0 for layer in smaller.modules() if isinstance(layer, nn.Conv2d))


def test_channels_that_do_nothing_go_first(context):
    """Channels between two convolutions that are zero: without them the network computes the same."""
    model = network()
    block = next(module for module in model.modules() if hasattr(module, "conv2"))
    dead = range(0, block.conv1.out_channels, 2)
    for part in (block.conv1.weight, block.bn1.weight, block.bn1.bias):
        part.data[list(dead)] = 0
    saved = (len(dead) * (block.conv1.weight[0].numel() + block.conv2.weight[:, 0].numel())) * 64
    whole = cost(model)["macs"]
    smaller = narrow(model, CHANNEL_CRITERIA["magnitude"](model, context), 1 - saved / whole)
    images = torch.rand(4, 1, 8, 8)
    assert cost(smaller)["macs"] == whole - saved
    torch.testing.assert_close(smaller(images), model(images))


def test_channel_scores_against_loops(context):
    model = network(width=0.5)
    scores = CHANNEL_CRITERIA["magnitude"](model, context)
    for name, layer in layer_graph(model).items():
        by_hand = [sum(w**2 for w in channel.flatten().tolist()) for channel in layer.module.weight]
        torch.testing.assert_close(scores[name], torch.tensor(by_hand), rtol=1e-4, atol=1e-6)
    graph = layer_graph(model)
    sums, single = CHANNEL_CRITERIA["lookahead"](model, context), lookahead(model, graph, context)
    for name, scores in single.items():
        by_hand = [sum(channel.flatten().tolist()) for channel in scores]
        torch.testing.assert_close(sums[name], torch.tensor(by_hand), rtol=1e-4, atol=1e-6)
    scales = CHANNEL_CRITERIA["batchnorm"](model, context)
    assert torch.equal(scales["blocks.0.conv1"], model.blocks[0].bn1.weight.abs()) and "linear" not in scales


def test_a_narrower_network_is_restored_from_its_archive(context, tmp_path):
    model = pruned(context, macs=0.4).eval()
    save_archive(model, tmp_path / "model.nna")
    restored = load_archive(tmp_path / "model.nna").eval()
    images, contiguous = torch.rand(4, 1, 8, 8), torch.contiguous_format
    assert channel_table(restored) == channel_table(model) == channel_table(rebuild(model.spec))
    assert torch.equal(restored.to(memory_format=contiguous)(images), model.to(memory_format=contiguous)(images))


def test_other_steps_follow(context):
    model = pruned(context, macs=0.5)
    sparse = Prune("lookahead", 0.5, epochs=1, batch_size=64, scope="global").apply(model, next_step(context, "sparse"))
    layers = [layer.module.weight for layer in layer_graph(sparse).values()]
    total, zeros = sum(w.numel() for w in layers), sum(int((w == 0).sum()) for w in layers)
    assert abs(zeros / total - 0.5) < 0.01
    integer = Quantize("qat", bits=4, epochs=1, batch_size=64, images=64).apply(sparse, next_step(context, "integer"))
    assert channel_table(rebuild(integer.spec)) == channel_table(integer)
    with pytest.raises(StepError, match="rewind"):
        Prune("magnitude", 0.5, epochs=1, schedule="rewind").apply(model, context)


@pytest.mark.parametrize(
    ("fields", "message"),
    [({"macs": 1.2}, "0.5 for half"), ({"macs": 0}, "between 0 and 1"),
     ({"criterion": "guess"}, "magnitude, lookahead"),
     ({"epochs": -1}, "epochs"), ({"multiple": 0}, "multiple"), ({"alpha": 2}, "from 0 to 1"),
     ({"multiple": 1.5}, "multiple must be a whole number"), ({"macs": "0.5"}, "not '0.5'"),
     ({"teacher": "resnet18"}, "teacher must be a recipe or None, not 'resnet18'"),
     ({"temperature": 2.0}, "temperature would change nothing: there is no teacher")],
)  # fmt: skip
def test_bad_fields(fields, message):
    with pytest.raises(StepError, match=message):
        PruneChannels(**fields)


def test_bad_places_and_goals(context):
    with pytest.raises(StepError, match="start the recipe"):
        PruneChannels().check_after(())
    with pytest.raises(StepError, match="integers"):
        PruneChannels().check_after((Quantize(),))
    with pytest.raises(StepError, match="would not keep"):
        PruneChannels().check_after((Prune(),))
    with pytest.raises(StepError, match="cannot be reached"):
        pruned(context, macs=0.001)


@pytest.mark.parametrize("change", [lambda t: t[1:], lambda t: [[0] * len(t[0]), *t[1:]], lambda t: [t[0][:1], *t[1:]]])
def test_a_table_of_another_network_is_refused(change):
    model = network()
    with pytest.raises(ModelError, match="another network"):
        rebuild(model.spec | {"channels": change(channel_table(model))})
