"""How much each weight matters: one short function a criterion, all of the same signature.

A criterion maps a network's layer graph and the context to scores of the shape of each layer's weight, not negative;
the lowest are pruned first.
"""

from collections.abc import Callable

import torch
from torch.nn.functional import cross_entropy

from data import batches
from pruning.graph import Layer, by_weight, fit_channels, made, read
from training import Context, StepError

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
    """w^2 h / 2 with h the diagonal of the Hessian by Hutchinson's estimator; negative curvature counts as none."""
    diagonal = hutchinson(model, graph, *_images(context), seed=context.seed)
    return {name: weight.square() * diagonal[name].clamp(min=0) / 2 for name, weight in _weights(graph).items()}


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
    active = _activity(model, graph, context)
    scores = lookahead(model, graph, context)
    for name, layer in graph.items():
        weight, groups = layer.module.weight, getattr(layer.module, "groups", 1)
        own = _mean([_share_of_channels(active[c], len(weight)) for c in layer.consumers if c is not None], weight)
        inputs = by_weight(active[name].sqrt(), weight, groups)
        scores[name] = scores[name] * inputs * own.sqrt().reshape(-1, *[1] * (weight.ndim - 1))
    return scores


def lookahead_obd(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """`lookahead` on the roots of the OBD scores in place of the weights."""
    return _lookahead(graph, {name: score.sqrt() for name, score in obd(model, graph, context).items()})


Criterion = Callable[[torch.nn.Module, Graph, Context], Scores]
_ALL = (random, magnitude, lamp, snip, obd, obd_hessian, lookahead, lookahead_bn, lookahead_act, lookahead_obd)
CRITERIA: dict[str, Criterion] = {criterion.__name__: criterion for criterion in _ALL}
# Scores that mean the same in every layer; the others are divided by their norm over the layer before layers compete.
COMPARABLE = {"random", "lamp", "snip", "obd", "obd_hessian"}


def _lookahead(graph: Graph, weights: Scores) -> Scores:
    scores = {}
    for name, layer in graph.items():
        weight, groups = weights[name], getattr(layer.module, "groups", 1)
        inputs = weight.shape[1] * groups
        before = _together([_made(graph, weights, producer, inputs, weight) for producer in layer.producers])
        after = _together([_read(graph, weights, consumer, weight) for consumer in layer.consumers])
        after = after.reshape(-1, *[1] * (weight.ndim - 1))
        scores[name] = weight.abs() * by_weight(before, weight, groups) * after
    return scores


def _made(graph: Graph, weights: Scores, producer: str | None, inputs: int, like: torch.Tensor) -> torch.Tensor:
    return like.new_ones(inputs) if producer is None else fit_channels(made(weights[producer]), inputs)


def _read(graph: Graph, weights: Scores, consumer: str | None, weight: torch.Tensor) -> torch.Tensor:
    if consumer is None:
        return weight.new_ones(len(weight))
    return fit_channels(read(weights[consumer], getattr(graph[consumer].module, "groups", 1)), len(weight))


def _together(norms: list[torch.Tensor]) -> torch.Tensor:
    return torch.stack(norms).square().sum(0).sqrt()


def _mean(shares: list[torch.Tensor], weight: torch.Tensor) -> torch.Tensor:
    return torch.stack(shares).mean(0) if shares else weight.new_ones(len(weight))


def _share_of_channels(values: torch.Tensor, channels: int) -> torch.Tensor:
    """The share of activity of each channel, from that of the columns behind a flatten."""
    return values if len(values) == channels else values.reshape(channels, -1).mean(1)


def _weights(graph: Graph) -> Scores:
    return {name: layer.module.weight.detach() for name, layer in graph.items()}


def _folded(layer: Layer) -> torch.Tensor:
    weight = layer.module.weight.detach()
    if layer.norm is None:
        return weight
    factor = layer.norm.weight.detach() / torch.sqrt(layer.norm.running_var + layer.norm.eps)
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


@torch.no_grad()
def _activity(model: torch.nn.Module, graph: Graph, context: Context) -> Scores:
    """The share of non-zero values in each input channel of each layer, on images."""
    shares: Scores = {}

    def look(name: str, inputs: torch.Tensor) -> None:
        shares[name] = (inputs != 0).float().mean([d for d in range(inputs.ndim) if d != 1])

    hooks = [
        layer.module.register_forward_pre_hook(lambda module, inputs, name=name: look(name, inputs[0]))
        for name, layer in graph.items()
    ]
    training = model.training
    model.eval()(_images(context)[0])
    model.train(training)
    for hook in hooks:
        hook.remove()
    return shares
