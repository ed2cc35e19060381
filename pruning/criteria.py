"""Pruning criteria, which say how important each weight is: one short function each, all with the same signature.

A criterion maps a network's layer graph and the context to non-negative scores of the shape of each layer's weight. The
lowest scores are pruned first.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from data import batches
from pruning.graph import Edge, Layer, Norm, active_shares, by_weight, inputs_of, made, read
from recipe import StepError
from training import Context

Scores = dict[str, torch.Tensor]
Graph = dict[str, Layer]
IMAGES = 64  # training images used by the criteria that need data
DRAWS = 8  # random vectors of Hutchinson's estimator


def random(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """Uniform random scores from the seed, a baseline."""
    draws = torch.Generator().manual_seed(context.seed)
    return {n: torch.rand(w.shape, generator=draws).to(w.device) for n, w in _weights(graph).items()}


def magnitude(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """|w| (Han et al., NeurIPS 2015)."""
    return {name: weight.abs() for name, weight in _weights(graph).items()}


def lamp(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """w^2 over the sum of squares of all weights in the layer that are at least as large (Lee et al., ICLR 2021)."""
    scores = {}
    for name, weight in _weights(graph).items():
        squares, order = weight.square().flatten().sort(descending=True)
        scores[name] = torch.empty_like(squares).scatter_(0, order, squares / squares.cumsum(0)).reshape(weight.shape)
    return scores


def snip(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """|w * dL/dw|, the sensitivity of the loss to a connection (Lee et al., ICLR 2019)."""
    gradients = _gradients(model, graph, *_images(context))
    return {name: (weight * gradients[name]).abs() for name, weight in _weights(graph).items()}


def obd(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """w^2 h / 2, where h is the diagonal of the empirical Fisher information (LeCun et al., NeurIPS 1990)."""
    diagonal = fisher(model, graph, *_images(context))
    return {name: weight.square() * diagonal[name] / 2 for name, weight in _weights(graph).items()}


def obd_hessian(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """w^2 |h| / 2, where h is the diagonal of the Hessian by Hutchinson's estimator.

    With few draws, half of the estimates are negative. Their absolute value still indicates the curvature (Yao et al.,
    AAAI 2021). Clipped to zero, half of the weights would be tied.
    """
    diagonal = hutchinson(model, graph, *_images(context), seed=context.seed)
    return {name: weight.square() * diagonal[name].abs() / 2 for name, weight in _weights(graph).items()}


def lookahead(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """The change, by removing the weight, of the product of three neighbouring layers (Park et al., ICLR 2020).

    |w[j, i]| times the norm of the weights that produce channel i in the previous layer, times the norm of those that
    read channel j in the next layer. The squares of several producers or consumers are added; the identity counts as 1.
    """
    return _lookahead(graph, _weights(graph))


def lookahead_bn(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """`lookahead` of the network with every batch norm folded into adjacent weights.

    Into those of the layer before it, or, if it does not follow a single layer, into those of its readers.
    """
    return _lookahead(graph, {name: _folded(layer) for name, layer in graph.items()})


def lookahead_act(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """`lookahead` times the square root of how often each of the weight's two channels is active on images."""
    active = active_shares(model, _images(context)[0])
    scores = lookahead(model, graph, context)
    for name, layer in graph.items():
        weight, groups = layer.module.weight, getattr(layer.module, "groups", 1)
        own = _activity(layer, active).sqrt().reshape(-1, *[1] * (weight.ndim - 1))
        scores[name] = scores[name] * by_weight(active[name].sqrt(), weight, groups) * own
    return scores


def lookahead_obd(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """`lookahead` with the square roots of the OBD scores in place of the weights.

    The identity is a weight of 1. It gets the network's mean curvature, as otherwise it would dominate all others.
    """
    diagonal = fisher(model, graph, *_images(context))
    mean = sum(h.sum() for h in diagonal.values()) / sum(h.numel() for h in diagonal.values())
    roots = {name: weight.abs() * (diagonal[name] / 2).sqrt() for name, weight in _weights(graph).items()}
    return _lookahead(graph, roots, float(mean / 2) ** 0.5)


Criterion = Callable[[torch.nn.Module, Graph, Context], Scores]
_ALL = (random, magnitude, lamp, snip, obd, obd_hessian, lookahead, lookahead_bn, lookahead_act, lookahead_obd)
CRITERIA: dict[str, Criterion] = {criterion.__name__: criterion for criterion in _ALL}
# Scores with the same meaning in every layer; others are divided by their norm over the layer before comparison.
COMPARABLE = {"random", "lamp", "snip", "obd", "obd_hessian"}
BY_ITSELF = {"random", "magnitude", "lamp"}  # score a layer from its own weights alone
LOOKS_AROUND = {"lookahead", "lookahead_bn", "lookahead_act", "lookahead_obd"}  # need the edges of the layer graph


def _lookahead(graph: Graph, weights: Scores, identity: float = 1.0) -> Scores:
    scores = {}
    for name, layer in graph.items():
        weight, groups = weights[name], getattr(layer.module, "groups", 1)
        before = [
            edge.spread(weight.new_full([1], identity) if edge.producer is None else made(weights[edge.producer]))
            for edge in layer.inputs
        ]
        after = [_by_producer(edge, graph, weights, weight, identity) for edge in layer.outputs]
        outputs = _together(after).reshape(-1, *[1] * (weight.ndim - 1))
        # In place: for large layers, allocating a second tensor takes longer than computing it.
        scores[name] = weight.abs().mul_(by_weight(_together(before), weight, groups)).mul_(outputs)
    return scores


def _by_producer(edge: Edge, graph: Graph, weights: Scores, weight: torch.Tensor, identity: float) -> torch.Tensor:
    """Return the norm `[O]` of the consumer's weights that read each output channel of a weight `[O, ...]`."""
    if edge.consumer is None:
        norms = weight.new_full([len(edge.channels)], identity)
    else:
        norms = read(weights[edge.consumer], getattr(graph[edge.consumer].module, "groups", 1))
    table = edge.table(norms, len(weight))
    return table[:, 0] if table.shape[1] == 1 else table.square().sum(1).sqrt()


def _together(norms: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(norms).square().sum(0).sqrt()


def _activity(layer: Layer, active: Scores) -> torch.Tensor:
    """Return how often each output channel of a layer is active `[O]`: the mean over its readers, 1 without readers."""
    outputs = len(layer.module.weight)
    total = layer.module.weight.new_zeros(outputs)
    readers = torch.zeros_like(total)
    for edge in layer.outputs:
        if edge.consumer is not None:
            total += edge.table(active[edge.consumer], outputs).amax(1)
            readers += (edge.fed(outputs) > 0).to(total)
    return torch.where(readers > 0, total / readers, 1.0)


def _weights(graph: Graph) -> Scores:
    return {name: layer.module.weight.detach() for name, layer in graph.items()}


def _folded(layer: Layer) -> torch.Tensor:
    weight = layer.module.weight.detach()
    if layer.norm is not None:
        weight = weight * _factor(layer.norm, f"behind {layer.name}").reshape(-1, *[1] * (weight.ndim - 1))
    if layer.front is not None:
        factor = _factor(layer.front, f"in front of {layer.name}")
        columns = factor.repeat_interleave(inputs_of(layer.module) // len(factor))
        weight = weight * by_weight(columns, weight, getattr(layer.module, "groups", 1))
    return weight


def _factor(norm: Norm, place: str) -> torch.Tensor:
    """Return the factors `[C]` by which a batch norm multiplies each channel."""
    if norm.running_var is None:
        raise StepError(f"the batch norm {place} keeps no statistics: lookahead_bn cannot fold it")
    factor = 1 / torch.sqrt(norm.running_var + norm.eps)
    return factor if norm.weight is None else factor * norm.weight.detach()


def _images(context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    train = context.dataset.train.to(context.device)
    if not len(train):
        raise StepError(f"this criterion needs training images, and {context.dataset.name} has none")
    batch = next(batches(context.dataset, train, min(IMAGES, len(train)), seed=context.seed, epoch=0))
    return batch.images, batch.labels


def _gradients(
    model: torch.nn.Module, graph: Graph, images: torch.Tensor, labels: torch.Tensor, create_graph: bool = False
) -> Scores:
    training = model.training
    weights = [layer.module.weight for layer in graph.values()]
    try:
        loss = cross_entropy(model.eval()(images), labels)
        return dict(zip(graph, torch.autograd.grad(loss, weights, create_graph=create_graph), strict=True))
    finally:
        model.train(training)


def fisher(model: torch.nn.Module, graph: Graph, images: torch.Tensor, labels: torch.Tensor) -> Scores:
    """Return the diagonal of the empirical Fisher information: the mean over images of the squared gradient."""
    total = {name: torch.zeros_like(weight) for name, weight in _weights(graph).items()}
    for image, label in zip(images, labels, strict=True):
        for name, gradient in _gradients(model, graph, image[None], label[None]).items():
            total[name] += gradient.square() / len(images)
    return total


def hutchinson(
    model: torch.nn.Module, graph: Graph, images: torch.Tensor, labels: torch.Tensor, seed: int, draws: int = DRAWS
) -> Scores:
    """Return the diagonal of the Hessian of the loss, estimated as the mean of z * Hz over random signs z.

    Hutchinson, 1990.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = [layer.module.weight for layer in graph.values()]
    gradients = list(_gradients(model, graph, images, labels, create_graph=True).values())
    diagonal = [torch.zeros_like(weight) for weight in weights]
    for _ in range(draws):
        signs = [torch.randint(2, w.shape, generator=generator).to(w.device).mul(2).sub(1).to(w.dtype) for w in weights]
        products = torch.autograd.grad(gradients, weights, grad_outputs=signs, retain_graph=True)
        for own, sign, product in zip(diagonal, signs, products, strict=True):
            own += sign * product / draws
    return dict(zip(graph, diagonal, strict=True))
