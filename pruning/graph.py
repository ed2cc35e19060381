"""Which layers feed which: found by tracing, for criteria that look at a layer's neighbours."""

import operator
import traceback
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import fx, nn

from recipe import StepError

LAYERS = (nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm2d, nn.BatchNorm1d)
# What a channel passes through as itself; pooling and the like leave it as it is where it is zero all over.
POOLING = (nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.Flatten, nn.Dropout, nn.Identity)
POOLING_FUNCTIONS = (torch.flatten, nn.functional.adaptive_avg_pool2d, nn.functional.avg_pool2d,
                     nn.functional.max_pool2d, nn.functional.dropout)  # fmt: skip
POOLING_METHODS = ("flatten", "mean")
PASSING = (*NORMS, nn.ReLU, nn.ReLU6, nn.Hardswish, *POOLING)
PASSING_FUNCTIONS = (torch.relu, nn.functional.relu, *POOLING_FUNCTIONS)
PASSING_METHODS = ("relu", *POOLING_METHODS)
ADDITIONS = (operator.add, operator.iadd, torch.add)


@dataclass
class Layer:
    """A convolution or linear layer, and its neighbours by name; None among them is the identity.

    The identity stands for the network's input or output, and for a residual connection.
    """

    name: str
    module: nn.Conv2d | nn.Linear
    norm: nn.BatchNorm2d | nn.BatchNorm1d | None = None
    producers: list[str | None] = field(default_factory=list)
    consumers: list[str | None] = field(default_factory=list)


def layer_graph(model: nn.Module) -> dict[str, Layer]:
    """The layers of a network in the order of its forward pass.

    Neighbours are found through batch norm, activations, pooling, flatten and residual addition. An operand of an
    addition that has other users too is the residual connection, the identity.

    Raises:
        StepError: the network cannot be traced, or a channel goes through an operator of unknown effect (named).
    """
    try:
        traced = fx.symbolic_trace(model)
    except Exception as error:  # whatever a forward does that depends on its input
        frames = traceback.extract_tb(error.__traceback__)
        own = [frame for frame in frames if Path(torch.__file__).parent not in Path(frame.filename).parents][-1]
        where = f"{Path(own.filename).name}, line {own.lineno}, in {own.name}: {own.line}"
        raise StepError(f"the network cannot be traced at {where} ({type(error).__name__}: {error})") from None
    modules = dict(traced.named_modules())
    layers: dict[str, Layer] = {}
    for node in traced.graph.nodes:
        if not _is(node, modules, LAYERS):
            continue
        if node.target in layers:
            raise StepError(f"the network calls {node.target} twice: its neighbours would be two layers' in one")
        layers[node.target] = Layer(
            node.target,
            modules[node.target],
            next((modules[user.target] for user in node.users if _is(user, modules, NORMS)), None),
            _unique(_upstream(_input(node), modules)),
            _unique(_downstream(node, modules)),
        )
    return layers


@torch.no_grad()
def active_shares(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """How often each channel that a layer reads is not zero, on images: a share `[C]` for each layer by name.

    It is that of the activation itself, before pooling and flatten: of 64 pixels one is nearly always active.
    """
    traced = fx.symbolic_trace(model)
    modules = dict(traced.named_modules())
    read = {node.target: _before_pooling(node, modules) for node in traced.graph.nodes if _is(node, modules, LAYERS)}
    recorder = _Recorder(traced, set(read.values()))
    training = model.training
    model.eval()
    recorder.run(images)
    model.train(training)
    return {name: recorder.shares[node] for name, node in read.items()}


class _Recorder(fx.Interpreter):
    """Runs a network, and keeps how often the channels of some values are not zero."""

    def __init__(self, traced: fx.GraphModule, wanted: set[fx.Node]):
        super().__init__(traced)
        self.wanted = wanted
        self.shares: dict[fx.Node, torch.Tensor] = {}

    def run_node(self, node: fx.Node) -> torch.Tensor:
        value = super().run_node(node)
        if node in self.wanted:
            self.shares[node] = (value != 0).float().mean([d for d in range(value.ndim) if d != 1])
        return value


def _before_pooling(layer: fx.Node, modules: dict[str, nn.Module]) -> fx.Node:
    node = _input(layer)
    while _is_any(node, modules, POOLING, POOLING_FUNCTIONS, POOLING_METHODS):
        node = _input(node)
    return node


def _upstream(node: fx.Node, modules: dict[str, nn.Module]) -> list[str | None]:
    if node.op == "placeholder":
        return [None]
    if _is(node, modules, LAYERS):
        return [str(node.target)]
    if _adds(node):
        return [name for operand in node.all_input_nodes for name in _through(operand, modules)]
    _refuse_unknown(node, modules)
    return _upstream(_input(node), modules)


def _through(operand: fx.Node, modules: dict[str, nn.Module]) -> list[str | None]:
    return [None] if len(operand.users) > 1 else _upstream(operand, modules)


def _downstream(node: fx.Node, modules: dict[str, nn.Module]) -> list[str | None]:
    found: list[str | None] = []
    for user in node.users:
        if user.op == "output":
            found.append(None)
        elif _is(user, modules, LAYERS):
            found.append(str(user.target))
        elif _adds(user) and len(node.users) > 1:
            found.append(None)
        elif _adds(user):
            found += _downstream(user, modules)
        elif not _reads_size(user):
            _refuse_unknown(user, modules)
            found += _downstream(user, modules)
    return found


def _input(node: fx.Node) -> fx.Node:
    return node.all_input_nodes[0]  # also where it is given by name, as in relu(input=x)


def _adds(node: fx.Node) -> bool:
    return node.op == "call_function" and node.target in ADDITIONS


def _reads_size(node: fx.Node) -> bool:
    return node.op == "call_method" and node.target in ("size", "dim")


def _is(node: fx.Node, modules: dict[str, nn.Module], kinds: tuple[type, ...]) -> bool:
    return node.op == "call_module" and isinstance(modules[str(node.target)], kinds)


def _is_any(
    node: fx.Node, modules: dict[str, nn.Module], kinds: tuple, functions: tuple, methods: tuple[str, ...]
) -> bool:
    return (
        _is(node, modules, kinds)
        or (node.op == "call_function" and node.target in functions)
        or (node.op == "call_method" and node.target in methods)
    )


def _refuse_unknown(node: fx.Node, modules: dict[str, nn.Module]) -> None:
    if _over_channels(node) or not _is_any(node, modules, PASSING, PASSING_FUNCTIONS, PASSING_METHODS):
        kind = type(modules[str(node.target)]).__name__ if node.op == "call_module" else node.target
        raise StepError(f"{node.name} ({kind}) stands between two layers, and what it does to channels is not known")


def _over_channels(node: fx.Node) -> bool:
    """Whether it is a mean that runs over dimension 1, the channels; without a dimension it runs over all."""
    if node.op != "call_method" or node.target != "mean":
        return False
    dims = node.kwargs.get("dim", node.args[1] if len(node.args) > 1 else 1)
    return 1 in (dims if isinstance(dims, tuple | list) else [dims])


def _unique(names: list[str | None]) -> list[str | None]:
    return list(dict.fromkeys(names))


# Norms over a layer's channels, which the lookahead criteria are made of


def made(weight: torch.Tensor) -> torch.Tensor:
    """Frobenius norm `[O]` of what makes each output channel."""
    return weight.flatten(1).norm(dim=1)


def read(weight: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """Frobenius norm `[I]` of what reads each input channel of a weight `[O, I / groups, ...]`."""
    outputs, inputs = weight.shape[:2]
    return torch.linalg.vector_norm(weight.reshape(groups, outputs // groups, inputs, -1), dim=(1, 3)).flatten()


def by_weight(of_input: torch.Tensor, weight: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """A value of each input channel `[I]`, spread over a weight: `[O, I / groups, 1, 1]`, or `[O, I]`."""
    rows = of_input.reshape(groups, -1).repeat_interleave(len(weight) // groups, dim=0)
    return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))


def fit_channels(values: torch.Tensor, channels: int) -> torch.Tensor:
    """Values of a producer's channels as those of a flattened consumer's inputs, or back, by blocks of pixels.

    A channel is a block of columns behind a flatten: it repeats there, and its columns' norms add up here.
    """
    if len(values) == channels:
        return values
    if channels % len(values) == 0:
        return values.repeat_interleave(channels // len(values))
    if len(values) % channels == 0:
        return values.reshape(channels, -1).square().sum(1).sqrt()
    raise StepError(f"{len(values)} channels meet a layer of {channels}: no flatten explains that")
