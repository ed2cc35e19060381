"""Pruning: criteria against brute force and numpy, the graph by hand, exact zeros through trainings."""

import copy
import dataclasses
import itertools

import numpy as np
import pytest
import torch
import torchvision
from torch import nn
from torch.fx.experimental.optimization import fuse
from torch.nn.functional import cross_entropy

from data import Split, load, normalize
from distillation import Distill
from experiment import Recipe
from models import ARCHITECTURES, build
from pruning import CRITERIA, Prune, Pruner, Sparsify, layer_graph
from pruning.criteria import _images, fisher, hutchinson, lookahead, lookahead_act, lookahead_bn, lookahead_obd, obd
from pruning.graph import by_weight, read
from pruning.masks import layer_shares, select
from pruning.schedules import gradual, iterative
from quantization import Quantize
from recipe import StepError, step_of
from storage import Checkpoint
from study import pruning as study
from training import Context, Train, fresh

VGG = pytest.param("torchvision.vgg11_bn", marks=pytest.mark.slow)  # 130 million weights
TORCHVISION = ("torchvision.resnet18", VGG, "torchvision.mobilenet_v2")


@pytest.fixture
def context(tmp_path):
    digits = load("digits")
    digits = dataclasses.replace(digits, train=Split(digits.train.images[:256], digits.train.labels[:256]))
    return Context(digits, 0, torch.device("cpu"), Checkpoint(tmp_path / "state"), make=None, cache=tmp_path)


def network(name="resnet8", width=0.5):
    torch.manual_seed(0)
    model = build(name, shape=(1, 8, 8), classes=10, width=width)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.uniform_(module.running_var, 0.5, 2)
    return model.eval()


def zeros(model):
    return sum(int((layer.module.weight == 0).sum()) for layer in layer_graph(model).values())


def weights(model):
    return sum(layer.module.weight.numel() for layer in layer_graph(model).values())


# Lookahead


def test_lookahead_is_the_change_of_the_product_of_three_layers(context):
    """By its definition: the Frobenius norm by which W3 W2 W1 changes when one weight of W2 is zero."""
    torch.manual_seed(1)
    model = nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 5), nn.Linear(5, 3))
    first, second, third = (layer.weight.detach() for layer in model)
    scores = lookahead(model, layer_graph(model), context)["1"]
    for j, i in itertools.product(range(5), range(6)):
        without = second.clone()
        without[j, i] = 0
        change = torch.linalg.norm(third @ second @ first - third @ without @ first)
        assert scores[j, i].item() == pytest.approx(change.item(), rel=1e-5)


def dense(convolution, height, width):
    """The matrix of a convolution with circular padding, a column an input value."""
    inputs = torch.eye(convolution.in_channels * height * width).reshape(-1, convolution.in_channels, height, width)
    with torch.no_grad():
        return (convolution(inputs)).flatten(1).T


@pytest.mark.parametrize(("before", "after"), [(1, 1), (3, 1), (1, 3)])
def test_lookahead_of_convolutions_against_dense_matrices(before, after, context):
    """Each weight of a kernel stands in the matrix once a pixel, at different places: its share of the change is one.

    The product's change is that of all of them together; with a 1x1 kernel on one side they do not overlap, so that
    its square is pixels times the score's square.
    """
    torch.manual_seed(2)
    kind = {"bias": False, "padding_mode": "circular"}
    first, third = (nn.Conv2d(a, b, k, padding=k // 2, **kind) for a, b, k in ((2, 3, before), (4, 2, after)))
    second = nn.Conv2d(3, 4, 3, padding=1, **kind)
    model = nn.Sequential(first, second, third)
    scores = lookahead(model, layer_graph(model), context)["1"]
    a, b, c = (dense(layer, 4, 4) for layer in model)
    for j, i, y, x in [(0, 0, 0, 0), (3, 2, 1, 1), (1, 1, 2, 0), (2, 0, 1, 2)]:
        kept = second.weight[j, i, y, x].item()
        with torch.no_grad():
            second.weight[j, i, y, x] = 0
        change = torch.linalg.norm(c @ b @ a - c @ dense(second, 4, 4) @ a)
        with torch.no_grad():
            second.weight[j, i, y, x] = kept
        assert scores[j, i, y, x].item() == pytest.approx(change.item() / 4, rel=1e-4)  # 4 is the root of 16 pixels


class Residual(nn.Module):
    """Four linear layers, the two in the middle with a residual connection around them."""

    def __init__(self):
        super().__init__()
        self.start, self.first, self.second = nn.Linear(3, 4), nn.Linear(4, 4), nn.Linear(4, 4)
        self.end = nn.Linear(4, 2)

    def forward(self, x):
        x = self.start(x)
        x = self.first(x) + x
        return self.end(self.second(x) + x)


def test_lookahead_beside_a_residual_connection_is_the_change_of_the_stacked_product(context):
    """The identity stands beside the layer before, and below the layer after, as a matrix of ones and zeros."""
    torch.manual_seed(11)
    model = Residual()
    start, first, second, end = (layer.weight.detach() for layer in model.children())
    one = torch.eye(4)
    scores = lookahead(model, layer_graph(model), context)
    for name, before, weight, after in [
        ("first", start, first, torch.cat([second, one])),
        ("second", torch.cat([first, one], 1), second, end),
    ]:
        for j, i in itertools.product(range(4), range(4)):
            change = torch.zeros(4, 4)
            change[j, i] = weight[j, i]
            expected = torch.linalg.norm(after @ change @ before)
            assert scores[name][j, i].item() == pytest.approx(expected.item(), rel=1e-5)


def test_lookahead_with_batch_norm_is_that_of_the_folded_network(context):
    torch.manual_seed(3)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 3, 3), nn.BatchNorm2d(3)
    ).eval()
    for norm in (model[1], model[4]):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.running_var, 0.5, 2)
    folded = fuse(model)
    by_hand = lookahead(folded, layer_graph(folded), context)
    for name, scores in lookahead_bn(model, layer_graph(model), context).items():
        torch.testing.assert_close(scores, by_hand[name])


def shares(model, context, *names):
    """How often these modules' outputs are positive, on the images that criteria look at; one share per channel."""
    seen = {}
    for name in names:
        model.get_submodule(name).register_forward_hook(
            lambda module, inputs, output, name=name: seen.update({name: (output > 0).float()})
        )
    lookahead_act(model, layer_graph(model), context)
    return [seen[name].transpose(0, 1).flatten(1).mean(1) for name in names]


def test_lookahead_with_activity_is_the_mean_over_gates(context):
    """The mean of the squared change of W3 G W2 F W1 over all gates G and F, each open as often as its ReLU is on."""
    torch.manual_seed(4)
    model = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 2), nn.ReLU(), nn.Linear(2, 10)
    )  # fmt: skip
    w1, w2, w3 = (model[place].weight.detach() for place in (1, 3, 5))
    first, second = shares(model, context, "2", "4")
    expected = torch.zeros(2, 3)
    for gates in itertools.product((0.0, 1.0), repeat=5):
        f, g = torch.tensor(gates[:3]), torch.tensor(gates[3:])
        chance = torch.where(f > 0, first, 1 - first).prod() * torch.where(g > 0, second, 1 - second).prod()
        for j, i in itertools.product(range(2), range(3)):
            change = torch.zeros(2, 3)
            change[j, i] = w2[j, i]
            expected[j, i] += chance * torch.linalg.norm(w3 @ torch.diag(g) @ change @ torch.diag(f) @ w1).square()
    torch.testing.assert_close(lookahead_act(model, layer_graph(model), context)["3"], expected.sqrt())


def test_activity_is_that_of_the_relu_and_not_of_what_pooling_makes_of_it(context):
    """Before a linear layer behind pooling and flatten: each of its columns has its channel's share."""
    torch.manual_seed(12)
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.ReLU(), nn.MaxPool2d(3), nn.Flatten(), nn.Linear(12, 10))
    share, pooled = shares(model, context, "1", "2")
    graph = layer_graph(model)
    scores, plain = lookahead_act(model, graph, context), lookahead(model, graph, context)
    torch.testing.assert_close(scores["4"], plain["4"] * share.sqrt().repeat_interleave(4))
    assert (pooled > share).all()


def test_lookahead_on_obd_replaces_the_weights(context):
    """Inside, by the roots alone; at the network's input the identity is a weight of 1 at the mean curvature."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 10))
    graph = layer_graph(model)
    roots = {name: score.sqrt() for name, score in obd(model, graph, context).items()}
    rows, columns = torch.linalg.norm(roots["1"], dim=1), torch.linalg.norm(roots["5"], dim=0)
    scores = lookahead_obd(model, graph, context)
    torch.testing.assert_close(scores["3"], roots["3"] * columns[:, None] * rows)
    curvatures = [(2 * roots[n].square() / graph[n].module.weight.detach().square()).flatten() for n in graph]
    one = (torch.cat(curvatures).mean() / 2).sqrt()
    torch.testing.assert_close(scores["1"], roots["1"] * torch.linalg.norm(roots["3"], dim=0)[:, None] * one)


def test_lookahead_of_grouped_convolutions_against_loops(context):
    torch.manual_seed(5)
    model = nn.Sequential(
        nn.Conv2d(2, 4, 1), nn.Conv2d(4, 8, 3, groups=2), nn.Conv2d(8, 8, 3, groups=8), nn.Conv2d(8, 2, 1)
    )
    w0, w1, w2, w3 = (layer.weight.detach() for layer in model)
    scores = lookahead(model, layer_graph(model), context)
    for o, i in itertools.product(range(8), range(2)):
        producer = w0[2 * (o // 4) + i].norm()
        torch.testing.assert_close(scores["1"][o, i], w1[o, i].abs() * producer * w2[o].norm())
    for channel in range(8):
        torch.testing.assert_close(
            scores["2"][channel], w2[channel].abs() * w1[channel].norm() * w3[:, channel].norm(), check_stride=False
        )


# The other criteria


def test_lamp_against_its_formula(context):
    model = network()
    for name, scores in CRITERIA["lamp"](model, layer_graph(model), context).items():
        squares = dict(model.named_parameters())[f"{name}.weight"].detach().square().numpy().ravel().astype(np.float64)
        expected = [value / squares[squares >= value].sum() for value in squares[:50]]
        np.testing.assert_allclose(scores.flatten()[:50].numpy(), expected, rtol=1e-3)


def test_snip_is_the_slope_of_the_loss_by_a_factor_of_the_weight(context):
    """Central differences of the loss as one connection is a little stronger and weaker."""
    torch.manual_seed(13)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 10))
    scores = CRITERIA["snip"](model, layer_graph(model), context)["3"]
    (images, labels), exact = _images(context), copy.deepcopy(model).double()
    for j, i in itertools.product(range(10), range(3)):
        weight, losses = exact[3].weight.detach().clone(), []
        for factor in (1.001, 0.999):
            exact[3].weight.data[j, i] = weight[j, i] * factor
            losses.append(cross_entropy(exact(images.double()), labels).item())
        exact[3].weight.data.copy_(weight)
        assert scores[j, i].item() == pytest.approx(abs(losses[0] - losses[1]) / 0.002, rel=1e-3, abs=1e-6)


def test_obd_is_half_the_curvature_times_the_square(context):
    """From the Fisher diagonal by a loop over images; from the Hessian's by what Hutchinson's draws gave."""
    torch.manual_seed(14)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 10))
    graph, (images, labels) = layer_graph(model), _images(context)
    squares = torch.zeros(10, 3)
    for image, label in zip(images, labels, strict=True):
        model.zero_grad()
        cross_entropy(model(image[None]), label[None]).backward()
        squares += model[3].weight.grad.square() / len(images)
    weight = model[3].weight.detach()
    torch.testing.assert_close(CRITERIA["obd"](model, graph, context)["3"], weight**2 * squares / 2)
    drawn = hutchinson(model, graph, images, labels, seed=context.seed)["1"]
    expected = model[1].weight.detach() ** 2 * drawn.abs() / 2
    torch.testing.assert_close(CRITERIA["obd_hessian"](model, graph, context)["1"], expected)
    assert (drawn < 0).any()


def test_fisher_and_hessian_against_autograd():
    torch.manual_seed(6)
    model = nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 3)).double()
    graph = layer_graph(model)
    images, labels = torch.randn(20, 3).double(), torch.randint(3, (20,))
    squares = torch.zeros(4, 3).double()
    for image, label in zip(images, labels, strict=True):
        model.zero_grad()
        cross_entropy(model(image[None]), label[None]).backward()
        squares += model[0].weight.grad.square() / 20
    torch.testing.assert_close(fisher(model, graph, images, labels)["0"], squares)

    def loss(first, second):
        hidden = torch.relu(images @ first.T + model[0].bias)
        return cross_entropy(hidden @ second.T + model[2].bias, labels)

    pair = (model[0].weight.detach(), model[2].weight.detach())
    exact = torch.autograd.functional.hessian(loss, pair)
    for index, name in enumerate(graph):
        block = exact[index][index].reshape(pair[index].numel(), -1).diagonal()
        estimate = hutchinson(model, graph, images, labels, seed=0, draws=1500)[name].flatten()
        assert (estimate - block).norm() < 0.2 * block.norm()  # 1,500 draws


@pytest.mark.parametrize("criterion", sorted(CRITERIA))
def test_every_criterion_gives_scores_and_leaves_the_network_alone(criterion, context):
    model = network().train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    graph = layer_graph(model)
    scores = CRITERIA[criterion](model, graph, context)
    assert list(scores) == list(graph) and model.training
    for name, score in scores.items():
        assert score.shape == graph[name].module.weight.shape and (score >= 0).all() and score.isfinite().all()
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())


# The graph


def test_the_graph_of_a_residual_network_by_hand():
    graph = layer_graph(build("resnet8", shape=(3, 32, 32), classes=10))
    assert graph["conv"].producers == [None] and graph["conv"].consumers == ["blocks.0.conv1", None]
    # A block without a convolution on its shortcut: the identity is added, and leads on to the next block.
    assert graph["blocks.0.conv2"].consumers == ["blocks.1.conv1", "blocks.1.shortcut.0"]
    assert graph["blocks.1.conv1"].producers == ["blocks.0.conv2", None]
    assert set(graph["blocks.2.conv1"].producers) == {"blocks.1.conv2", "blocks.1.shortcut.0"}
    assert set(graph["linear"].producers) == {"blocks.2.conv2", "blocks.2.shortcut.0"}
    assert graph["linear"].consumers == [None]


def test_each_layer_has_its_own_batch_norm():
    model = build("resnet20", shape=(3, 32, 32), classes=10)
    graph = layer_graph(model)
    assert graph["blocks.3.conv2"].norm is model.blocks[3].bn2
    assert graph["blocks.3.shortcut.0"].norm is model.blocks[3].shortcut[1]
    assert graph["linear"].norm is None


@pytest.mark.parametrize("name", [*sorted(ARCHITECTURES), *TORCHVISION])
def test_every_network_has_a_graph(name, context):
    if name.startswith("torchvision."):
        model = getattr(torchvision.models, name.removeprefix("torchvision."))(num_classes=10)
    else:
        model = build(name, shape=(3, 32, 32), classes=10)
    graph = layer_graph(model)
    layers = [module for module in model.modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    assert len(graph) == len(layers) and all(layer.producers and layer.consumers for layer in graph.values())
    norms = [layer.norm for layer in graph.values() if layer.norm is not None]
    assert (
        len(norms)
        == len(set(map(id, norms)))
        == sum(isinstance(m, nn.BatchNorm2d | nn.BatchNorm1d) for m in model.modules())
    )
    assert all(score.isfinite().all() for score in lookahead(model, graph, context).values())


def test_channels_are_mapped_through_flatten(context):
    """A channel is a block of columns of the linear layer behind the flatten."""
    torch.manual_seed(7)
    model = nn.Sequential(nn.Conv2d(1, 3, 3, padding=1, bias=False), nn.Flatten(), nn.Linear(3 * 4, 2))
    scores = lookahead(model, layer_graph(model), context)
    blocks = [model[2].weight.detach()[:, 4 * c : 4 * c + 4].norm() for c in range(3)]
    for channel in range(3):
        torch.testing.assert_close(scores["0"][channel], model[0].weight.detach()[channel].abs() * blocks[channel])
    made = model[0].weight.detach().flatten(1).norm(dim=1).repeat_interleave(4)
    torch.testing.assert_close(scores["2"], model[2].weight.detach().abs() * made)


class Branching(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 2)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else x


class Unknown(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.second(torch.roll(self.first(x), 1, 1))


class Twice(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        return self.second(self.first(self.first(x)))


class OverChannels(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(4, 4, 3), nn.Linear(4, 4)

    def forward(self, x):
        return self.second(self.first(x).mean(1))


class ByName(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.third = nn.Linear(4, 4), nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x):
        added = torch.add(self.first(input=x), other=self.second(x))
        return self.third(input=torch.relu(input=added))


def test_arguments_given_by_name_are_seen():
    graph = layer_graph(ByName())
    assert graph["third"].producers == ["first", "second"] and graph["first"].consumers == ["third"]


@pytest.mark.parametrize("kind", [{"affine": False}, {"track_running_stats": False}])
def test_batch_norms_without_all_of_their_tensors(kind, context):
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3, **kind), nn.ReLU(), nn.Conv2d(3, 2, 3))
    if "affine" in kind:
        nn.init.constant_(model[1].running_var, 4.0)
        halved, plain = (rule(model, layer_graph(model), context)["3"] for rule in (lookahead_bn, lookahead))
        torch.testing.assert_close(halved, plain / 2, rtol=1e-4, atol=0)
    else:
        with pytest.raises(StepError, match="behind 0 keeps no statistics"):
            lookahead_bn(model, layer_graph(model), context)


def test_a_network_that_cannot_be_traced_is_refused_by_place():
    with pytest.raises(StepError, match=r"test_pruning.py, line \d+, in forward: return self.layer\(x\) if"):
        layer_graph(Branching())


@pytest.mark.parametrize(("model", "message"), [(OverChannels(), "mean"), (Unknown(), "roll")])
def test_an_operator_of_unknown_effect_is_a_wall(model, message):
    with pytest.warns(UserWarning, match=message):
        graph = layer_graph(model)
    assert graph["first"].consumers == graph["second"].producers == [None]


def test_a_layer_called_twice_has_the_neighbours_of_both_calls():
    graph = layer_graph(Twice())
    assert graph["first"].producers == [None, "first"] and graph["first"].consumers == ["first", "second"]


def test_channel_helpers_against_loops():
    weight = torch.randn(6, 2, 3, 3)
    for channel in range(6):  # three groups of two inputs and two outputs
        group, index = divmod(channel, 2)
        assert read(weight, 3)[channel].item() == pytest.approx(weight[2 * group : 2 * group + 2, index].norm().item())
    spread = by_weight(torch.arange(6.0), weight, 3)
    assert spread[:, :, 0, 0].tolist() == [[0, 1], [0, 1], [2, 3], [2, 3], [4, 5], [4, 5]]


# Masks


@pytest.mark.parametrize("sparsity", [0, 0.5, 0.77, 0.99])
def test_global_selection_against_numpy(sparsity):
    draws = np.random.default_rng(8)
    scores = {"a": draws.uniform(size=(4, 5)), "b": 100 * draws.uniform(size=(8, 3)), "c": draws.uniform(size=12)}
    tensors = {name: torch.from_numpy(value) for name, value in scores.items()}
    for comparable in (True, False):
        parts = [value if comparable else value / np.sqrt((value**2).sum()) for value in scores.values()]
        flat = np.concatenate([part.ravel() for part in parts])
        gone = set(np.argsort(flat, kind="stable")[: round(sparsity * 56)].tolist())
        masks = select(tensors, sparsity, "global", comparable, may_empty=True)
        found = np.concatenate([mask.numpy().ravel() for mask in masks.values()])
        assert set(np.flatnonzero(~found).tolist()) == gone


def test_what_is_gone_does_not_count_in_a_layers_scale():
    """Marked by -1, as in a schedule's later steps: half of `a` is gone, and what is left competes as if alone."""
    draws = np.random.default_rng(9)
    a, b = draws.uniform(size=40), draws.uniform(size=40)
    marked = {"a": torch.from_numpy(np.where(np.arange(40) < 20, -1.0, a)), "b": torch.from_numpy(b)}
    live = np.concatenate([a[20:] / np.sqrt((a[20:] ** 2).sum()), b / np.sqrt((b**2).sum())])
    masks = select(marked, 0.5, "global", comparable=False)
    found = np.concatenate([masks["a"].numpy()[20:], masks["b"].numpy()])
    assert set(np.flatnonzero(~found)) == set(np.argsort(live)[:20]) and not masks["a"][:20].any()


def test_a_layer_keeps_its_best_weight():
    scores = {"a": torch.tensor([1.0, 3.0, 2.0]), "b": torch.arange(10.0, 40.0)}
    with pytest.warns(UserWarning, match="every weight of a would be pruned"):
        masks = select(scores, 0.9, "global", comparable=True)
    assert masks["a"].tolist() == [False, True, False]


def test_a_layer_may_be_emptied_if_told_so():
    scores = {"a": torch.tensor([1.0, 3.0, 2.0]), "b": torch.arange(10.0, 40.0)}
    masks = select(scores, 0.9, "global", comparable=True, may_empty=True)
    assert not masks["a"].any() and masks["b"].sum() == 33 - 30


@pytest.mark.parametrize("order", ["forward", "backward"])
def test_lookahead_in_an_order_against_numpy(order, context):
    """Each layer's scores by hand, from its neighbours as they are then: one side pruned already, the other not yet."""
    torch.manual_seed(10)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 6), nn.ReLU(), nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 10))
    weights = [model[place].weight.detach().numpy().copy() for place in (1, 3, 5)]

    def scores():
        before = [np.ones(64), *(np.linalg.norm(w, axis=1) for w in weights[:-1])]
        after = [*(np.linalg.norm(w, axis=0) for w in weights[1:]), np.ones(10)]
        return [np.abs(w) * i[None] * o[:, None] for w, i, o in zip(weights, before, after, strict=True)]

    together = [s / np.linalg.norm(s) for s in scores()]
    bound = np.sort(np.concatenate([s.ravel() for s in together]))[round(0.6 * 464) - 1]
    gone = [int((s <= bound).sum()) for s in together]
    for place in (0, 1, 2) if order == "forward" else (2, 1, 0):
        lowest = np.argsort(scores()[place], axis=None)[: gone[place]]
        weights[place].flat[lowest] = 0
    Prune("lookahead", 0.6, schedule="one_shot", epochs=0, order=order).apply(model, context)
    for place, expected in zip((1, 3, 5), weights, strict=True):
        assert np.array_equal(model[place].weight.detach().numpy() == 0, expected == 0)


def test_skipped_layers_are_left_alone(context):
    model = network()
    first = model.conv.weight.detach().clone()
    step = Prune("magnitude", 0.7, schedule="one_shot", epochs=0, skip=("conv", "linear"))
    step.apply(model, context)
    assert zeros(model) == round(0.7 * weights(model))
    assert torch.equal(model.conv.weight != 0, first != 0) and (model.linear.weight != 0).all()
    sparse = Prune("magnitude", 0.9, schedule="one_shot", epochs=0).apply(network(), context)
    gone = sparse.linear.weight == 0
    Prune("magnitude", 0.92, schedule="one_shot", epochs=1, batch_size=64, skip=("linear",)).apply(sparse, context)
    assert gone.any() and torch.equal(sparse.linear.weight == 0, gone)
    assert zeros(sparse) == round(0.92 * weights(sparse))
    with pytest.raises(StepError, match="'stem', which is not a layer: use some of conv, blocks"):
        Prune(skip=("stem",)).apply(network(), context)
    with pytest.raises(StepError, match="more than skip leaves"):
        Prune(skip=tuple(list(layer_graph(model))[1:])).apply(network(), context)


def test_a_criterion_with_data_needs_data(context):
    nothing = dataclasses.replace(context.dataset, train=Split(torch.empty(0, 1, 8, 8), torch.empty(0)))
    with pytest.raises(StepError, match="digits has none"):
        CRITERIA["snip"](network(), layer_graph(network()), dataclasses.replace(context, dataset=nothing))


def test_zeros_after_each_round(context):
    model = network()
    pruner = Pruner(model, context, Sparsify(0.875, schedule="iterative", rounds=3))
    pruner.before_epoch(0)
    for rounds in (1, 2, 3):
        assert zeros(model) == round((1 - 0.5**rounds) * weights(model))  # half of what is left, each time
        pruner.after_step(rounds / 3 - 0.01)
        assert zeros(model) == round((1 - 0.5**rounds) * weights(model))
        pruner.after_step(rounds / 3)


def test_layer_scope_is_the_studys():
    """15 % of all but the first layer, 10 % of the last, in one round: what the shares must be at that total."""
    sizes = {"first": 100, "inner": 1000, "last": 200}
    total = (0.15 * 1000 + 0.10 * 200) / 1300
    shares = layer_shares(sizes, total)
    assert shares["first"] == 1 and shares["inner"] == pytest.approx(0.85, abs=1e-3)
    assert shares["last"] == pytest.approx(0.90, abs=1e-3)
    with pytest.raises(StepError, match="scope 'global'"):
        layer_shares(sizes, 0.95)


@pytest.mark.parametrize("schedule", ["one_shot", "gradual"])
def test_layer_scope_leaves_what_is_gone_and_reaches_its_sparsity(schedule, context):
    """After a global pruning that took more of some layers than scope "layer" would, and some of the first."""
    sparse = Prune("magnitude", 0.85, schedule="one_shot", epochs=0).apply(network(), context)
    gone = {name: layer.module.weight == 0 for name, layer in layer_graph(sparse).items()}
    step = Prune("magnitude", 0.9, "layer", schedule, epochs=1, batch_size=64)
    after = step.apply(sparse, context)
    assert all((after.get_submodule(name).weight[mask] == 0).all() for name, mask in gone.items())
    assert zeros(after) == round(0.9 * weights(after))


def test_what_cannot_be_reached_is_said_at_once(context):
    sparse = Prune("magnitude", 0.9, schedule="one_shot", epochs=0).apply(network(), context)
    with pytest.raises(StepError, match="90.0 % of the weights are zero already: a sparsity of 0.5"):
        Prune("magnitude", 0.5, schedule="one_shot", epochs=0).apply(sparse, context)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(64, 60), nn.ReLU(), nn.Linear(60, 10))
    with pytest.raises(StepError, match="a sparsity of 0.5 needs the first layer"):
        Pruner(wide, context, Sparsify(0.5, "magnitude", scope="layer"))


# Schedules


def test_schedules_by_hand():
    assert [iterative(done, 0.75, 2) for done in (0, 0.4, 0.5, 1)] == pytest.approx([0.5, 0.5, 0.75, 0.75])
    assert gradual(0, 0.9, 1) == 0 and gradual(0.6, 0.9, 1) == gradual(1, 0.9, 1) == pytest.approx(0.9)
    assert gradual(0.3, 0.9, 1) == pytest.approx(0.9 * (1 - 0.5**3))  # half-way, Zhu and Gupta's formula


@pytest.mark.parametrize("schedule", ["one_shot", "iterative", "gradual", "rewind"])
@pytest.mark.parametrize("scope", ["global", "layer"])
def test_exact_zeros_after_training(schedule, scope, context):
    model = network()
    rounds = {"rounds": 2} if schedule == "iterative" else {}
    step = Prune("lookahead", 0.7, scope, schedule, epochs=2, batch_size=64, learning_rate=0.05, **rounds)
    pruned = step.apply(model, context)
    assert zeros(pruned) == round(0.7 * weights(pruned))


def test_rewinding_takes_the_mask_back_to_earlier_weights(context, monkeypatch):
    """Fresh ones of the seed, or those of another recipe."""
    monkeypatch.setattr("pruning.prune.fit", lambda *given, **named: None)
    for to, earlier in (
        (None, fresh("resnet8", 0.5, context)),
        (Recipe("digits", (Train("resnet8", width=0.5),)), network()),
    ):
        model = network()
        with torch.no_grad():
            for layer in layer_graph(model).values():
                layer.module.weight += 0.05 * torch.randn_like(layer.module.weight)
        made = dataclasses.replace(context, make=lambda recipe, earlier=earlier: earlier)
        pruned = Prune("magnitude", 0.6, schedule="one_shot", epochs=0).apply(copy.deepcopy(model), made)
        Prune("magnitude", 0.6, schedule="rewind", rewind_to=to).apply(model, made)
        for name, layer in layer_graph(model).items():
            mask = pruned.get_submodule(name).weight != 0
            assert torch.equal(layer.module.weight, (earlier.get_submodule(name).weight * mask).bfloat16().float())
        assert zeros(model) == round(0.6 * weights(model))
    other = dataclasses.replace(context, make=lambda recipe: network("resnet14"))
    with pytest.raises(StepError, match="rewind_to makes another network"):
        Prune(schedule="rewind", rewind_to=to).apply(model, other)


def test_a_teacher_guides_the_training(context, tmp_path):
    """With alpha 1 the labels count for nothing: other labels give the same weights."""
    train, ends = context.dataset.train, []
    for turn in (0, 1):
        labels = Split(train.images, (train.labels + turn) % 10)
        place = Checkpoint(tmp_path / f"turn{turn}")
        made = dataclasses.replace(
            context,
            dataset=dataclasses.replace(context.dataset, train=labels),
            checkpoint=place,
            cache=tmp_path / f"cache{turn}",
            make=lambda recipe: network(),
        )
        step = Prune(
            "magnitude", 0.5, epochs=1, batch_size=64, alpha=1.0, teacher=Recipe("digits", (Train("resnet8"),))
        )
        ends.append(step.apply(network(), made).state_dict())
    assert all(torch.equal(a, b) for a, b in zip(ends[0].values(), ends[1].values(), strict=True))


def test_masks_stay_through_momentum_and_decay(context):
    model = network()
    before = Prune("magnitude", 0.8, epochs=0, schedule="one_shot").apply(model, context)
    masks = {name: layer.module.weight == 0 for name, layer in layer_graph(before).items()}
    step = Prune("magnitude", 0.8, schedule="one_shot", epochs=2, batch_size=32, weight_decay=0.01)
    after = step.apply(before, context)
    for name, layer in layer_graph(after).items():
        assert torch.equal(layer.module.weight == 0, masks[name])


def test_a_killed_gradual_pruning_ends_the_same(context, tmp_path, monkeypatch):
    step = Prune("magnitude", 0.9, epochs=3, batch_size=64, learning_rate=0.05)

    def place(name):
        return dataclasses.replace(context, checkpoint=Checkpoint(tmp_path / name), log={})

    whole = step.apply(network(), place("whole"))
    left = iter(range(7))  # killed in the second of three epochs of four steps
    original = Pruner.after_step

    def killed(self, done):
        if next(left, None) is None:
            raise KeyboardInterrupt
        original(self, done)

    monkeypatch.setattr(Pruner, "after_step", killed)
    with pytest.raises(KeyboardInterrupt):
        step.apply(network(), place("killed"))
    monkeypatch.setattr(Pruner, "after_step", original)
    again = step.apply(network(), place("killed"))
    for a, b in zip(whole.state_dict().values(), again.state_dict().values(), strict=True):
        assert torch.equal(a, b)


def test_zeros_survive_quantization(context):
    model = Prune("magnitude", 0.6, epochs=0, schedule="one_shot").apply(network(), context)
    gone = {name: layer.module.weight == 0 for name, layer in layer_graph(model).items()}
    step = Quantize("qat", bits=4, epochs=1, batch_size=64, images=64)
    integer = step.apply(model, context)
    for name, mask in gone.items():
        assert (integer.get_submodule(name).weight[mask] == 0).all()


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsity": 1.2}, "0.9 for 90 %"), ({"sparsity": 1.0}, "below 1"), ({"sparsity": -0.1}, "from 0"),
        ({"criterion": "guess"}, "lookahead, "), ({"scope": "half"}, "global, layer"),
        ({"schedule": "now"}, "one_shot"), ({"rounds": 0}, "rounds"),
        ({"epochs": 0}, "one_shot prunes without"), ({"epochs": -1}, "at least 1"),
        ({"temperature": 0}, "must be above 0"), ({"order": "sideways"}, "together, forward"),
        ({"scope": "layer", "skip": ("conv",)}, "scope 'global'"), ({"skip": "conv"}, "a tuple .*, not 'conv'"),
        ({"skip": 3}, "skip must be a tuple of layer names, such as"),
        ({"criterion": "lamp", "order": "forward"}, "by itself"), ({"rewind_to": 1}, "does not rewind"),
        ({"schedule": "rewind", "rewind_to": "resnet18"}, "rewind_to must be a recipe or None, not 'resnet18'"),
        ({"teacher": "resnet18"}, "teacher must be a recipe or None, not 'resnet18'"),
        ({"sparsity": "0.9"}, "not '0.9'"), ({"schedule": "iterative", "rounds": 2.5}, "rounds must be a whole number"),
        ({"alpha": 0.5}, "alpha would change nothing: there is no teacher; name one, or leave it out"),
        *(({"schedule": s, "rounds": 9}, "rounds would change nothing") for s in ("gradual", "one_shot", "rewind")),
        *(
            ({"schedule": "one_shot", "epochs": 0} | own, f"{next(iter(own))} would change nothing: nothing is trained")
            for own in ({"learning_rate": 0.1}, {"batch_size": 32}, {"weight_decay": 0.0}, {"teacher": "any"})
        ),
    ],
)  # fmt: skip
def test_bad_fields(fields, message):
    with pytest.raises(StepError, match=message):
        Prune(**fields)


def test_integers_are_not_pruned():
    with pytest.raises(StepError, match="prune first"):
        Prune().check_after((Train("resnet8"), Quantize()))
    with pytest.raises(StepError, match="cannot follow Quantize: its weights are integers; prune first"):
        Prune().check_after((Train("resnet8"), Quantize(), step_of({"step": "Sharpen"}, "digits")))  # however far back
    Prune().check_after((Train("resnet8"), Quantize(), Distill("resnet8")))  # a network of its own, in floats


def test_recalibrated_batch_norm_holds_the_statistics_of_the_pruned_network(context):
    model = network().train(False)
    model.conv.weight.data[::2] *= 0.1
    drawn = study.recalibrated(model, context.dataset, seed=3, images=64)
    assert not drawn.training and torch.equal(drawn.conv.weight, model.conv.weight)
    # All 256 images in eight equal parts: the mean over all, and the mean of the parts' unbiased variances.
    whole = study.recalibrated(model, context.dataset, seed=3, images=256)
    order = torch.randperm(256, generator=torch.Generator().manual_seed(3))
    pixels = normalize(context.dataset.train.images[order], context.dataset)
    with torch.no_grad():
        answers = model.conv(pixels).double().numpy().reshape(8, 32, -1, *pixels.shape[2:])
    assert np.allclose(whole.bn.running_mean, answers.mean(axis=(0, 1, 3, 4)), atol=1e-5)
    assert np.allclose(whole.bn.running_var, answers.var(axis=(1, 3, 4), ddof=1).mean(axis=0), rtol=1e-4)
    assert not torch.equal(drawn.bn.running_mean, whole.bn.running_mean)
    assert not torch.allclose(model.bn.running_var, whole.bn.running_var)  # a copy: the model keeps its own


def test_ways_of_a_criterion_that_knows_no_order(monkeypatch):
    monkeypatch.setattr(study, "validated", lambda name, cases: [words["way"] for words, _ in cases])
    base = Recipe("digits", (Train("resnet8", epochs=10),))
    with_order, without = study.ways(base, "lookahead", 0.5), study.ways(base, "magnitude", 0.5)
    assert set(with_order) - set(without) == {"at once, forward", "at once, backward"}
