"""How much each weight matters: one short function a criterion, all of the same signature.

A criterion maps a network's layer graph and the context to scores of the shape of each layer's weight, not negative;
the lowest are pruned first.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from data import batches
from pruning.graph import Layer, active_shares, by_weight, fit_channels, made, read
from recipe import StepError
from training import Context

Scores = dict[str, torch.Tensor]
Graph = dict[str, Layer]
IMAGES = 64  # that the criteria with data look at
DRAWS = 8  # random vectors of Hutchinson's estimator


def random(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """Uniform draws from the seed: what a criterion has to beat."""
    draws = torch.Generator().manual_seed(context.seed)
    return {n: torch.rand(w.shape, generator=draws).to(w.device) for n, w in _weights(graph).items()}


def magnitude(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """|w| (Han et al., NeurIPS 2015)."""
    return {name: weight.abs() for name, weight in _weights(graph).items()}


def lamp(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """w^2 over the sum of the squares of the layer's weights that are no smaller (Lee et al., ICLR 2021)."""
    scores = {}
    for name, weight in _weights(graph).items():
        squares, order = weight.square().flatten().sort(descending=True)
        scores[name] = torch.empty_like(squares).scatter_(0, order, squares / squares.cumsum(0)).reshape(weight.shape)
    return scores


def snip(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """|w * dL/dw|, the sensitivity of the loss to the connection (Lee et al., ICLR 2019)."""
    gradients = _gradients(model, graph, *_images(context))
    return {name: (weight * gradients[name]).abs() for name, weight in _weights(graph).items()}


def obd(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """w^2 h / 2 with h the diagonal of the empirical Fisher (LeCun et al., NeurIPS 1990)."""
    diagonal = fisher(model, graph, *_images(context))
    return {name: weight.square() * diagonal[name] / 2 for name, weight in _weights(graph).items()}


def obd_hessian(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """w^2 |h| / 2 with h the diagonal of the Hessian by Hutchinson's estimator.

    Of a few draws half the estimates are negative: their size still says how large the curvature can be (as Yao et al.
    take it, AAAI 2021), where as zeros they would leave the choice among half the weights to their place.
    """
    diagonal = hutchinson(model, graph, *_images(context), seed=context.seed)
    return {name: weight.square() * diagonal[name].abs() / 2 for name, weight in _weights(graph).items()}


def lookahead(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """What removing the weight changes in the product of three neighbouring layers (Park et al., ICLR 2020).

    |w[j, i]| times the norm of what makes channel i in the layer before, times the norm of what reads channel j in the
    layer after. Several producers or consumers add up in squares; the identity counts as 1.
    """
    return _lookahead(graph, _weights(graph))


def lookahead_bn(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """`lookahead` of the network with every batch norm folded into the weights before it."""
    return _lookahead(graph, {name: _folded(layer) for name, layer in graph.items()})


def lookahead_act(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """`lookahead` times the square root of how often both channels of the weight are active on images."""
    active = active_shares(model, _images(context)[0])
    scores = lookahead(model, graph, context)
    for name, layer in graph.items():
        weight, groups = layer.module.weight, getattr(layer.module, "groups", 1)
        own = _mean([active[consumer] for consumer in layer.consumers if consumer is not None], weight)
        inputs = by_weight(fit_channels(active[name], weight.shape[1] * groups).sqrt(), weight, groups)
        scores[name] = scores[name] * inputs * own.sqrt().reshape(-1, *[1] * (weight.ndim - 1))
    return scores


def lookahead_obd(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """`lookahead` on the roots of the OBD scores in place of the weights.

    The identity is a weight of 1 too: its score is taken at the network's mean curvature, or it would drown the others.
    """
    diagonal = fisher(model, graph, *_images(context))
    mean = sum(h.sum() for h in diagonal.values()) / sum(h.numel() for h in diagonal.values())
    roots = {name: weight.abs() * (diagonal[name] / 2).sqrt() for name, weight in _weights(graph).items()}
    return _lookahead(graph, roots, float(mean / 2) ** 0.5)


Criterion = Callable[[torch.nn.Module, Graph, Context], Scores]
_ALL = (random, magnitude, lamp, snip, obd, obd_hessian, lookahead, lookahead_bn, lookahead_act, lookahead_obd)
CRITERIA: dict[str, Criterion] = {criterion.__name__: criterion for criterion in _ALL}
# Scores that mean the same in every layer; the others are divided by their norm over the layer before layers compete.
COMPARABLE = {"random", "lamp", "snip", "obd", "obd_hessian"}
BY_ITSELF = {"random", "magnitude", "lamp"}  # a layer's scores from its own weights alone


def _lookahead(graph: Graph, weights: Scores, identity: float = 1.0) -> Scores:
    scores = {}
    for name, layer in graph.items():
        weight, groups = weights[name], getattr(layer.module, "groups", 1)
        inputs = weight.shape[1] * groups
        before = [
            weight.new_full([inputs], identity) if name is None else fit_channels(made(weights[name]), inputs)
            for name in layer.producers
        ]
        after = [
            weight.new_full([len(weight)], identity) if name is None else _read(graph, weights, name, len(weight))
            for name in layer.consumers
        ]
        outputs = _together(after).reshape(-1, *[1] * (weight.ndim - 1))
        # In place: of large layers a second tensor takes longer to come by than to compute.
        scores[name] = weight.abs().mul_(by_weight(_together(before), weight, groups)).mul_(outputs)
    return scores


def _read(graph: Graph, weights: Scores, consumer: str, channels: int) -> torch.Tensor:
    return fit_channels(read(weights[consumer], getattr(graph[consumer].module, "groups", 1)), channels)


def _together(norms: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(norms).square().sum(0).sqrt()


def _mean(shares: list[torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    return torch.stack(shares).mean(0) if shares else weight.new_ones(len(weight))


def _weights(graph: Graph) -> Scores:
    return {name: layer.module.weight.detach() for name, layer in graph.items()}


def _folded(layer: Layer) -> torch.Tensor:
    weight = layer.module.weight.detach()
    if layer.norm is None:
        return weight
    if layer.norm.running_var is None:
        raise StepError(f"the batch norm behind {layer.name} keeps no statistics: lookahead_bn cannot fold it")
    factor = 1 / torch.sqrt(layer.norm.running_var + layer.norm.eps)
    factor = factor if layer.norm.weight is None else factor * layer.norm.weight.detach()
    return weight * factor.reshape(-1, *[1] * (weight.ndim - 1))


def _images(context: Context) -> tuple[torch.Tensor, torch.Tensor]:
    train = context.dataset.train.to(context.device)
    if not len(train):
        raise StepError(f"this criterion looks at training images, and {context.dataset.name} has none")
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
    """The diagonal of the empirical Fisher information: the mean over images of the squared gradient."""
    total = {name: torch.zeros_like(weight) for name, weight in _weights(graph).items()}
    for image, label in zip(images, labels, strict=True):
        for name, gradient in _gradients(model, graph, image[None], label[None]).items():
            total[name] += gradient.square() / len(images)
    return total


def hutchinson(
    model: torch.nn.Module, graph: Graph, images: torch.Tensor, labels: torch.Tensor, seed: int, draws: int = DRAWS
) -> Scores:
    """The diagonal of the Hessian of the loss, the mean of z * Hz over random signs z (Hutchinson 1990)."""
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
