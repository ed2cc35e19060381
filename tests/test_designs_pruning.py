"""Pruning of networks as people write them: edges against torch-pruning, scores by brute force, cuts against zeros."""

import copy
import dataclasses
import itertools
import warnings

import pytest
import torch
import torch_pruning
from designs import DESIGNS
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from data import Split, load
from measurement import cost
from models import ARCHITECTURES, build, channel_table, rebuild, set_spec, spec_of
from pruning import CRITERIA, Prune, layer_graph
from pruning.channels import CHANNEL_CRITERIA, narrow
from pruning.criteria import LOOKS_AROUND, lookahead, lookahead_act, lookahead_bn
from pruning.graph import layers_of
from recipe import StepError
from storage import Checkpoint, load_archive, save_archive
from training import Context

SHAPE = (1, 8, 8)
TRACED = sorted(set(DESIGNS) - {"untraceable"})
NORMS = (nn.BatchNorm2d, nn.InstanceNorm2d, nn.GroupNorm, nn.LayerNorm)


@pytest.fixture
def context(tmp_path):
    digits = load("digits")
    digits = dataclasses.replace(digits, train=Split(digits.train.images[:64], digits.train.labels[:64]))
    return Context(digits, 0, torch.device("cpu"), Checkpoint(tmp_path / "state"), make=None, cache=tmp_path)


@pytest.fixture(autouse=True)
def designs(monkeypatch):
    for name, builder in DESIGNS.items():
        monkeypatch.setitem(ARCHITECTURES, name, builder)


def network(name):
    torch.manual_seed(0)
    return uneven(build(name, shape=SHAPE, classes=10))


def uneven(model):
    """As after a training: scales and statistics of norms that differ by channel."""
    for module in model.modules():
        if isinstance(module, NORMS):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.bias, -0.5, 0.5)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.5, 0.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def of_shape(model, *shape):
    set_spec(model, {"shape": shape})
    return model.eval()


# The graph


class Halves(nn.Module):
    """Split, slice and flatten: each half of eight channels is read by another layer, some by both."""

    def __init__(self):
        super().__init__()
        self.first, self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(4, 3, 1), nn.Conv2d(4, 5, 1)
        self.c, self.linear = nn.Conv2d(4, 2, 1), nn.Linear((3 + 5) * 64 + 2, 10)

    def forward(self, x):
        x = self.first(x)
        a, b = torch.split(x, [4, 4], dim=1)
        y = torch.cat([self.b(b), F.relu(self.a(a))], dim=1)
        return self.linear(torch.cat([y.flatten(1), self.c(x[:, 2:6]).mean((2, 3))], 1))


def fed(graph, name, channel):
    """The inputs of layers that a channel is."""
    return {
        (edge.consumer, place)
        for edge in graph[name].outputs
        for place, number in enumerate(edge.channels.tolist())
        if number == channel and edge.consumer is not None
    }


@pytest.mark.parametrize("name", ["densenet", "squeezenet", "inception", "ushaped", "lenet"])
def test_edges_through_concatenation_are_those_of_torch_pruning(name):
    model = network(name)
    names = {module: name for name, module in model.named_modules()}
    graph = layer_graph(model)
    other = torch_pruning.DependencyGraph().build_dependency(model, torch.zeros(1, *SHAPE), verbose=False)
    inputs = (torch_pruning.prune_conv_in_channels, torch_pruning.prune_linear_in_channels)
    for layer in graph.values():
        prune = other.get_pruner_of_module(layer.module).prune_out_channels
        for channel in range(len(layer.module.weight)):
            group = other.get_pruning_group(layer.module, prune, [channel])
            expected = {(names[d.layer], place) for d, places in group for place in places if d.pruning_fn in inputs}
            assert fed(graph, layer.name, channel) == expected


def test_edges_through_split_slice_and_flatten_by_hand():
    graph = layer_graph(of_shape(Halves(), *SHAPE))
    for channel in range(8):
        expected = {("a", channel)} if channel < 4 else {("b", channel - 4)}
        assert fed(graph, "first", channel) == expected | ({("c", channel - 2)} if 2 <= channel < 6 else set())
    assert fed(graph, "b", 3) == {("linear", place) for place in range(3 * 64, 4 * 64)}  # b stands first
    assert fed(graph, "a", 1) == {("linear", place) for place in range(6 * 64, 7 * 64)}
    assert fed(graph, "c", 1) == {("linear", 8 * 64 + 1)}


@pytest.mark.parametrize("name", TRACED)
def test_a_channel_reaches_what_the_graph_says(name):
    """By noise in a channel of the first layer: which inputs of the next layer move, without norms across channels."""
    model, x = network(name), torch.rand(2, *SHAPE)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.GroupNorm | nn.LayerNorm):
            model.set_submodule(path, nn.Identity())
    graph = layer_graph(model)
    first, second = list(graph.values())[:2]
    channel, seen = len(first.module.weight) // 3, []
    second.module.register_forward_pre_hook(lambda module, given: seen.append(given[0]))
    model(x)

    def disturb(module, given, output):
        noise = torch.zeros_like(output)
        noise[:, channel] = torch.rand_like(noise[:, channel])
        return output + noise

    first.module.register_forward_hook(disturb)
    model(x)
    before, after = seen[0], seen[len(seen) // 2]
    moved = (after != before).movedim(1, 0).flatten(1).any(1).nonzero().flatten().tolist()
    assert set(moved) == {place for layer, place in fed(graph, first.name, channel) if layer == second.name}


@pytest.mark.parametrize("name", TRACED)
def test_every_design_has_a_graph_without_a_wall(name, context):
    model = network(name)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        graph = layer_graph(model)
    assert list(graph) == list(layers_of(model))
    assert set(graph) == {n for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear)}
    for scores in (lookahead(model, graph, context), lookahead_bn(model, graph, context)):
        assert all(s.isfinite().all() and s.flatten(1).amax(1).gt(0).all() for s in scores.values())


def test_unknown_operators_are_named_once_by_kind():
    class Sorted(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.third(torch.cumsum(self.second(torch.cumsum(self.first(x), 1)), 1))

    with pytest.warns(UserWarning, match=r"not known: cumsum \(as in cumsum\); layers") as caught:
        graph = layer_graph(Sorted())
    assert len(caught) == 1 and graph["second"].producers == graph["second"].consumers == [None]


def test_a_batch_norm_in_front_is_folded_into_what_reads_it(context):
    """Behind a sum it scales what the next layer reads; the factor by hand."""
    model = network("densenet")
    graph = layer_graph(model)
    norm, plain = model.dense1[1].bn1, model.dense1[1].conv1
    assert graph["dense1.1.conv1"].front is norm and graph["dense1.1.conv1"].norm is model.dense1[1].bn2
    factor = norm.weight / (norm.running_var + norm.eps).sqrt()
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin.dense1[1].conv1.weight.copy_(plain.weight * factor[:, None, None])
        norm_of_twin = twin.dense1[1].bn1
        norm_of_twin.weight.fill_(1)
        norm_of_twin.running_var.fill_(1 - norm.eps)
    for name, scores in lookahead_bn(twin, layer_graph(twin), context).items():
        torch.testing.assert_close(scores, lookahead_bn(model, graph, context)[name])


# Lookahead by its definition: the Frobenius norm by which the derivative of neighbouring layers changes


class Joined(nn.Module):
    """Linear layers around one operator, all biases 1: at inputs of 0 both factors of a product are 1."""

    def __init__(self, how):
        super().__init__()
        self.how = how
        self.a, self.b = nn.Linear(3, 4), nn.Linear(2, 4)
        self.c, self.d = nn.Linear(8 if how == "cat" else 4, 5), nn.Linear(5, 2)
        for layer in self.children():
            nn.init.ones_(layer.bias)

    def forward(self, x):
        a, b = self.a(x[:, :3]), self.b(x[:, 3:])
        return self.d(self.c(torch.cat([a, b], 1) if self.how == "cat" else a * b))


def derivative(model):
    """Of what the last layer gives, by what the first ones read, at inputs of zero."""
    return torch.autograd.functional.jacobian(lambda x: model(x)[0], torch.zeros(1, 5)).flatten(1)


@pytest.mark.parametrize("how", ["cat", "gate"])
def test_lookahead_across_a_concatenation_and_across_a_gate(how, context):
    """Of `c` the neighbours are `a`, `b` and `d`; of `a` and `b` the input and `c`, so that `d` is left out there."""
    torch.manual_seed(1)
    model = Joined(how)
    scores = lookahead(model, layer_graph(model), context)
    for name in ("a", "b", "c"):
        own = copy.deepcopy(model)
        if name != "c":
            own.d = nn.Identity()
        weight, whole = own.get_submodule(name).weight, derivative(own)
        for j, i in itertools.product(*map(range, weight.shape)):
            kept = weight[j, i].item()
            with torch.no_grad():
                weight[j, i] = 0
            change = torch.linalg.norm(derivative(own) - whole).item()
            with torch.no_grad():
                weight[j, i] = kept
            assert scores[name][j, i].item() == pytest.approx(change, rel=1e-4)


class Shuffled(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b, self.linear = nn.Conv2d(1, 6, 3), nn.Conv2d(6, 4, 3), nn.Linear(4, 10)
        self.groups = 2

    def forward(self, x):
        x = F.relu(self.a(x))
        if self.groups:
            n, c, h, w = x.shape
            x = x.view(n, self.groups, c // self.groups, h, w).transpose(1, 2).reshape(n, c, h, w)
        return self.linear(self.b(x).mean((2, 3)))


@pytest.mark.parametrize("criterion", [lookahead, lookahead_act])
def test_a_shuffle_is_as_other_columns_of_the_next_layer(criterion, context):
    torch.manual_seed(2)
    model = of_shape(Shuffled(), *SHAPE)
    order = torch.arange(6).reshape(2, 3).T.flatten()  # the channel in each place behind the shuffle
    plain = copy.deepcopy(model)
    plain.groups = 0
    with torch.no_grad():
        plain.b.weight[:, order] = model.b.weight
    scores, expected = (criterion(m, layer_graph(m), context) for m in (model, plain))
    torch.testing.assert_close(scores["a"], expected["a"])
    torch.testing.assert_close(scores["linear"], expected["linear"])
    if criterion is lookahead:  # the activity before a view is that of all channels
        torch.testing.assert_close(scores["b"], expected["b"][:, order])


# Weights


@pytest.mark.filterwarnings("ignore:every weight of")
@pytest.mark.parametrize("criterion", sorted(CRITERIA))
@pytest.mark.parametrize("name", sorted(DESIGNS))
def test_every_design_by_every_criterion(name, criterion, context):
    model = network(name)
    step = Prune(criterion, 0.6, schedule="one_shot", epochs=0, may_empty=True)
    if name == "untraceable" and criterion in LOOKS_AROUND:
        with pytest.raises(StepError, match="designs.py, line"):
            step.apply(model, context)
        return
    layers = [m for m in step.apply(model, context).modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    count = sum(layer.weight.numel() for layer in layers)
    assert sum(int((layer.weight == 0).sum()) for layer in layers) == round(0.6 * count)
    assert model(torch.rand(2, *SHAPE)).isfinite().all()


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.a, self.b = nn.Conv2d(1, 8, 3), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.other, self.linear = nn.Conv2d(8, 16, 1), nn.Linear(16, 10)
        self.b.weight = self.a.weight

    def forward(self, x):
        return self.linear(F.relu(self.other(self.b(F.relu(self.a(self.first(x)))))).mean((2, 3)))


@pytest.mark.parametrize("criterion", ["magnitude", "obd", "lookahead"])
def test_layers_that_share_a_weight_are_pruned_as_one(criterion, context):
    torch.manual_seed(3)
    model = of_shape(Tied(), *SHAPE)
    graph = layer_graph(model)
    assert graph["a"].producers == ["first", "a"] and graph["a"].consumers == ["a", "other"] and "b" not in graph
    Prune(criterion, 0.5, schedule="one_shot", epochs=0).apply(model, context)
    weights = [p for p in model.parameters() if p.ndim > 1]
    assert model.b.weight is model.a.weight and len(weights) == 4
    assert sum(int((w == 0).sum()) for w in weights) == round(0.5 * sum(w.numel() for w in weights))


def test_a_weight_that_is_computed_from_others_is_refused(context):
    model = nn.Sequential(nn.Flatten(), weight_norm(nn.Linear(64, 8)), nn.ReLU(), nn.Linear(8, 10))
    with pytest.raises(StepError, match="the weight of 1 is computed from others"):
        Prune("magnitude", 0.5, schedule="one_shot", epochs=0).apply(model, context)


# Channels


def zeroed(model, importance, macs, multiple=1):
    """The model with zeros for all that `narrow` would take out, which a narrowed copy of numbered values tells."""
    numbered, start, numbers = copy.deepcopy(model), 1, {}
    for name, tensor in numbered.state_dict().items():
        if tensor.ndim:
            numbers[name] = torch.arange(start, start + tensor.numel()).reshape(tensor.shape)
            tensor.copy_(numbers[name])
            start += tensor.numel()
    assert start < 1 << 24  # numbers that float32 holds
    left = [t.flatten() for t in narrow(numbered, importance, macs, multiple).state_dict().values() if t.ndim]
    whole = copy.deepcopy(model)
    for name, tensor in whole.state_dict().items():
        if tensor.ndim:
            kept = torch.isin(numbers[name], torch.cat(left).long())
            tensor.copy_(torch.where(kept, tensor, 1.0 if name.endswith("running_var") else 0.0))
    return whole


@pytest.mark.parametrize("multiple", [pytest.param(1, marks=pytest.mark.slow), 4])
@pytest.mark.parametrize("criterion", ["magnitude", "lookahead"])
@pytest.mark.parametrize("name", TRACED)
def test_a_narrowed_design_is_the_design_with_zeros(name, criterion, multiple, context):
    """Exactly, but for layer norm, whose mean and variance are over all channels: it is taken out before."""
    model = network(name)
    for path, module in list(model.named_modules()):
        if isinstance(module, nn.LayerNorm):
            model.set_submodule(path, nn.Identity())
    importance, images = CHANNEL_CRITERIA[criterion](model, context), torch.rand(4, *SHAPE)
    smaller = narrow(model, importance, 0.5, multiple)
    assert cost(smaller)["macs"] <= 0.5 * cost(model)["macs"]
    answers = smaller(images)
    assert answers.shape == (4, 10) and answers.abs().max() > 1e-3
    torch.testing.assert_close(answers, zeroed(model, importance, 0.5, multiple)(images), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("name", TRACED)
def test_a_narrowed_design_is_restored_from_its_archive(name, context, tmp_path):
    model = network(name)
    smaller = narrow(model, CHANNEL_CRITERIA["lookahead"](model, context), 0.5)
    set_spec(smaller, spec_of(smaller) | {"channels": channel_table(smaller)})
    save_archive(smaller, tmp_path / "model.nna")
    restored, images = load_archive(tmp_path / "model.nna"), torch.rand(4, *SHAPE)
    assert channel_table(restored) == channel_table(rebuild(smaller.spec)) == channel_table(smaller)
    assert torch.equal(restored(images), smaller(images))


@pytest.mark.parametrize("name", TRACED)
def test_the_batch_norm_criterion(name, context):
    model = network(name)
    if any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        smaller = narrow(model, CHANNEL_CRITERIA["batchnorm"](model, context), 0.6)
        assert smaller(torch.rand(2, *SHAPE)).shape == (2, 10)
        return
    with pytest.raises(StepError, match="has none: use magnitude or lookahead"):
        CHANNEL_CRITERIA["batchnorm"](model, context)


def test_a_batch_norm_without_scales_ranks_nothing(context):
    first, plain, linear = nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8, affine=False), nn.Linear(288, 10)
    with pytest.raises(StepError, match="has none"):
        CHANNEL_CRITERIA["batchnorm"](of_shape(nn.Sequential(first, plain, nn.Flatten(), linear), *SHAPE), context)
    norm, second = nn.BatchNorm2d(8), nn.Conv2d(8, 8, 1)
    model = of_shape(nn.Sequential(first, uneven(norm), nn.ReLU(), second, plain, nn.Flatten(), linear), *SHAPE)
    found = CHANNEL_CRITERIA["batchnorm"](model, context)
    assert list(found) == ["0"] and torch.equal(found["0"], norm.weight.abs())
    smaller = narrow(model, found, 0.9)
    assert smaller[0].out_channels < 8 and smaller[3].out_channels == 8  # the layer without scales stays whole


class Written(nn.Module):
    """Two ways to write a size down, and a mask of one channel over all of them."""

    def __init__(self):
        super().__init__()
        self.a, self.b, self.mask = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 8, 1), nn.Conv2d(8, 1, 1)
        self.c, self.linear = nn.Conv2d(8, 4, 3, padding=1), nn.Linear(4 * 64, 10)

    def forward(self, x):
        x = F.relu(self.b(F.relu(self.a(x))))
        x = x * torch.sigmoid(self.mask(x))
        return self.linear(F.relu(self.c(x)).view(-1, 4 * 64))


def test_a_size_that_is_written_down_stays(context):
    torch.manual_seed(5)
    model = of_shape(Written(), *SHAPE)
    smaller = narrow(model, CHANNEL_CRITERIA["magnitude"](model, context), 0.9)
    assert smaller.c.out_channels == 4 and smaller.mask.out_channels == 1 and smaller.a.out_channels < 8
    assert smaller.b.out_channels == 8  # which torch-pruning ties to the mask's one channel


def test_tied_and_shuffled_channels_stay(context):
    torch.manual_seed(6)
    tied = of_shape(Tied(), *SHAPE)
    smaller = narrow(tied, CHANNEL_CRITERIA["lookahead"](tied, context), 0.9)
    assert smaller.a.weight is smaller.b.weight and smaller.a.weight.shape == (8, 8, 1, 1)
    assert smaller.other.out_channels < 16
    shuffled = of_shape(Shuffled(), *SHAPE)
    smaller = narrow(shuffled, CHANNEL_CRITERIA["lookahead"](shuffled, context), 0.9)
    assert smaller.a.out_channels == 6 and smaller.b.out_channels < 4


def test_a_convolution_in_groups_stays_unless_it_is_depthwise(context):
    """Of two inputs in two groups, each is read by two outputs: none can go, as none of those before can."""
    torch.manual_seed(7)
    layers = [nn.Conv2d(1, 2, 3), nn.Conv2d(2, 4, 3, groups=2), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 8, 3, groups=8)]
    model = of_shape(nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10)), *SHAPE)
    importance, images = CHANNEL_CRITERIA["magnitude"](model, context), torch.rand(2, *SHAPE)
    smaller = narrow(model, importance, 0.7)
    assert [layer.out_channels for layer in smaller[:2]] == [2, 4] and smaller[3].groups == smaller[2].out_channels < 8
    torch.testing.assert_close(smaller(images), zeroed(model, importance, 0.7)(images))


class DepthwiseBehindJoint(nn.Module):
    def __init__(self):
        super().__init__()
        self.a, self.b = nn.Conv2d(1, 8, 3, padding=1), nn.Conv2d(8, 6, 3, padding=1)
        self.around, self.linear = nn.Conv2d(14, 14, 3, padding=1, groups=14), nn.Linear(14, 10)

    def forward(self, x):
        x = self.a(x)
        return self.linear(self.around(torch.cat([self.b(x), x], 1)).mean((2, 3)))


def test_each_layer_of_a_concatenation_keeps_a_channel(context):
    """Though all of `b` ranks below `a`, and both are one group."""
    torch.manual_seed(8)
    model = of_shape(DepthwiseBehindJoint(), *SHAPE)
    with torch.no_grad():
        model.b.weight.mul_(1e-3)
        model.around.weight[:6] *= 1e-3
    importance, images = CHANNEL_CRITERIA["magnitude"](model, context), torch.rand(2, *SHAPE)
    smaller = narrow(model, importance, 0.3)
    assert 1 <= smaller.b.out_channels < 6
    torch.testing.assert_close(smaller(images), zeroed(model, importance, 0.3)(images))


def test_group_norm_loses_whole_groups(context):
    model = network("groupnormresnet")
    smaller = narrow(model, CHANNEL_CRITERIA["magnitude"](model, context), 0.5)
    pairs = zip(model.modules(), smaller.modules(), strict=True)
    norms = [(a, b) for a, b in pairs if isinstance(a, nn.GroupNorm)]
    assert all(a.num_channels // a.num_groups == b.num_channels // b.num_groups for a, b in norms)
    assert any(b.num_groups < a.num_groups for a, b in norms)
