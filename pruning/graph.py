"""Which layers feed which, channel by channel: found by running a traced network, for criteria that look at neighbours.

What an operator does to channels stands in `models.operators`.
"""

import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import fx, nn
from torch.overrides import TorchFunctionMode

from models import ModelError
from models.operators import (
    ADDS,
    CONCATENATES,
    FLATTENS,
    NORMS,
    PASSES,
    READS_SIZE,
    REARRANGES,
    SCALES,
    SPLITS,
    Channels,
    operands,
    operator_of,
    trace,
)
from recipe import StepError

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)  # whose weight is `[O, I / groups, ...]`
MOVES = (CONCATENATES, FLATTENS, REARRANGES, SPLITS)  # what puts values elsewhere, and does the same with numbers
TURNS = ("permute", "transpose", "swapaxes", "movedim")  # of these, what leaves each channel whole
SIDES = range(1, 257)  # of images, tried on a network that does not say which it takes

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
Result = TypeVar("Result")
# A layer's name and, in the place of each value that is one of its channels, that channel's number; -1 elsewhere. The
# name None stands for the identity, all of whose channels have number 0. A split gives a tuple of such tensors.
Source = tuple[str | None, Any]


@dataclass(frozen=True, eq=False)
class Edge:
    """A layer that feeds another; None on one side is the identity: the network's input or output, or a residual.

    channels: for each input of the consumer `[I]`, which channel of the producer it is, -1 for none of them. Of the
        identity as producer all are channel 0; as consumer it has an input for each channel that it reads.
    """

    producer: str | None
    consumer: str | None
    channels: torch.Tensor

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Values of the producer's channels `[O]`, as those of the consumer's inputs `[I]`: 0 where it feeds none."""
        channels = self.channels.to(values.device)
        return torch.where(channels >= 0, values[channels.clamp(min=0)], 0)

    def table(self, values: torch.Tensor, outputs: int) -> torch.Tensor:
        """Values of the consumer's inputs `[I]`, a row for each of the producer's channels `[O, n]`; 0 fills up.

        Behind a flatten, for instance, a channel is read by as many inputs as it had pixels.
        """
        channels, fed = self.channels.to(values.device), self.fed(outputs).to(values.device)
        order = channels.argsort(stable=True)[int((channels < 0).sum()) :]
        first = fed.cumsum(0) - fed
        place = torch.arange(len(order), device=values.device) - first.repeat_interleave(fed)
        rows = values.new_zeros(outputs, max(1, int(fed.max())))
        rows[channels[order], place] = values[order]
        return rows

    def fed(self, outputs: int) -> torch.Tensor:
        """How many inputs each of the producer's channels feeds: `[O]`."""
        return self.channels[self.channels >= 0].bincount(minlength=outputs)


@dataclass
class Layer:
    """A convolution or linear layer, what feeds it and what it feeds.

    norm: the batch norm that alone reads it; front: one between it and what feeds it that stands behind no layer alone.
    """

    name: str
    module: nn.Conv2d | nn.Linear
    norm: Norm | None = None
    front: Norm | None = None
    inputs: list[Edge] = field(default_factory=list)
    outputs: list[Edge] = field(default_factory=list)

    @property
    def producers(self) -> list[str | None]:
        return list(dict.fromkeys(edge.producer for edge in self.inputs))

    @property
    def consumers(self) -> list[str | None]:
        return list(dict.fromkeys(edge.consumer for edge in self.outputs))


def layers_of(model: nn.Module) -> dict[str, Layer]:
    """The layers in the order of their first use, found by running the network; nothing of their neighbours.

    Layers that share one weight are one, by the first name.
    """
    noted = _Uses(_names(model))

    def run(images: torch.Tensor) -> None:
        with noted:
            model(images)

    _on_blank_images(model, run)
    modules: dict[str, Any] = dict(model.named_modules())
    return {name: Layer(name, modules[name]) for name in noted.used}


class _Uses(TorchFunctionMode):
    """Notes which weights are used, in what order; by hooks, layers called by `.forward` would not be seen."""

    def __init__(self, names: dict[int, str]):
        super().__init__()
        self.names = names
        self.used: dict[str, None] = {}

    def __torch_function__(self, function: Callable, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        for given in (*args, *(kwargs or {}).values()):
            if id(given) in self.names:
                self.used[self.names[id(given)]] = None
        return function(*args, **(kwargs or {}))


def layer_graph(model: nn.Module, to_cut: bool = False) -> dict[str, Layer]:
    """The layers of a network in the order of their first use, with what feeds them and what they feed.

    A channel is followed through all that passes it on or puts it elsewhere: norms, activations, pooling, flatten,
    concatenation, split, shuffle. An operand of an addition that has other users too is the residual connection, the
    identity. A product changes as a sum does, since d(xy) = y dx + x dy: both of its factors are followed, each with
    the other as 1, as if it were an activation. Of a layer that is called twice the neighbours are those of both
    calls. An operator of unknown effect is a wall, the identity on both sides, and named in a warning.

    to_cut: say which channels must go together. Residual connections are followed too, and what would do something
        else to fewer channels is a wall without a warning: splits, shuffles, views of a size that is written down.

    Raises:
        StepError: the network cannot be traced, or does not run.
    """
    try:
        traced = trace(model)
    except ModelError as error:
        raise StepError(str(error)) from None

    def walk(images: torch.Tensor) -> _Walk:
        walker = _Walk(traced, _names(model), to_cut)
        walker.run(images)
        return walker

    found = _on_blank_images(model, walk)
    if found.walls and not to_cut:
        named = ", ".join(f"{kind} (as in {name})" for kind, name in found.walls.items())
        warnings.warn(
            f"what these do to channels is not known: {named}; layers beside them are scored as beside the network's "
            "input or output. A row of models.operators would say it",
            stacklevel=2,
        )
    for name, layer in found.layers.items():
        if not any(edge.producer == name for edge in found.edges):  # nothing uses what it makes
            found.edges.append(Edge(name, None, torch.arange(len(layer.module.weight))))
    for edge in found.edges:
        if edge.producer is not None:
            found.layers[edge.producer].outputs.append(edge)
        if edge.consumer is not None:
            found.layers[edge.consumer].inputs.append(edge)
    return found.layers


class _Walk(fx.Interpreter):
    """Runs a network and notes for each value whose channels it holds, and for each layer what it reads."""

    def __init__(self, traced: fx.GraphModule, names: dict[int, str], to_cut: bool):
        super().__init__(traced)
        self.modules, self.names, self.to_cut = dict(traced.named_modules()), names, to_cut
        self.layers: dict[str, Layer] = {}
        self.edges: list[Edge] = []
        self.walls: dict[str, str] = {}  # the first of each kind
        self.sources: dict[fx.Node, list[Source]] = {}
        self.fronts: dict[fx.Node, Norm | None] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        channels = operator_of(node, self.modules).channels
        self.fronts[node] = self._front(node, channels)
        self.sources[node] = self._sources(node, channels, value)
        return value

    def _sources(self, node: fx.Node, channels: Channels, value: Any) -> list[Source]:
        if node.op == "output":
            return self._wall(node, value, named=False)
        if _calls_layer(node, self.modules):
            return self._layer(node, value)
        if channels is READS_SIZE:
            return []
        if not self._given(node) and isinstance(value, torch.Tensor):
            return [_identity(value)]
        if self.to_cut and _fixed(node, channels):
            return self._wall(node, value)
        if channels in MOVES:
            return self._moved(node)
        if channels in (ADDS, SCALES):
            return self._together(node, value, residual=channels is ADDS and not self.to_cut)
        passed = self._passed(node, value) if channels is PASSES else None
        return self._wall(node, value) if passed is None else passed

    def _layer(self, node: fx.Node, value: torch.Tensor) -> list[Source]:
        module = self.modules[str(node.target)]
        name, axis = self.names[id(module.weight)], -1 if isinstance(module, nn.Linear) else 1
        layer = self.layers.setdefault(name, Layer(name, module))
        users = self._users(node)
        layer.norm = self._norm(users[0]) if len(users) == 1 else layer.norm
        layer.front = self.fronts.get(operands(node)[0], layer.front)
        for source, numbers in self.sources[operands(node)[0]]:
            row = _along(numbers, axis)
            if row is None:  # its channels lie along another dimension, or several
                self._end(operands(node)[0])
                source, row = None, torch.zeros(inputs_of(module), dtype=torch.long, device=value.device)
            self._connect(source, name, row)
        outputs = torch.arange(len(module.weight), device=value.device)
        return [(name, outputs.reshape(-1, *[1] * (value.ndim - 2 if axis == 1 else 0)).expand(value.shape))]

    def _moved(self, node: fx.Node) -> list[Source]:
        """The same call on the numbers of each source, with -1 in place of all else."""
        found = []
        for operand in self._given(node):
            for name, numbers in self.sources[operand]:

                def instead(other: fx.Node, operand: fx.Node = operand, numbers: Any = numbers) -> Any:
                    value = self.env[other]
                    if other is operand:
                        return numbers.contiguous() if isinstance(numbers, torch.Tensor) else numbers
                    return torch.full_like(value, -1, dtype=torch.long) if isinstance(value, torch.Tensor) else value

                args, kwargs = (fx.node.map_arg(given, instead) for given in (node.args, node.kwargs))
                found.append((name, getattr(self, node.op)(node.target, args, kwargs)))
        return found

    def _together(self, node: fx.Node, value: torch.Tensor, residual: bool) -> list[Source]:
        found: list[Source] = []
        for operand in self._given(node):
            if residual and len(self._users(operand)) > 1:
                self._end(operand)
                more = [_identity(value)]
            elif self.to_cut and self.env[operand].shape[1:2] != value.shape[1:2]:  # one for all channels, however many
                self._end(operand)
                more = []
            else:
                more = [(name, numbers.expand(value.shape)) for name, numbers in self.sources[operand]]
            # Once each: both factors of x * sigmoid(x) are the same channels.
            found += [own for own in more if not any(own[0] == name and own[1].equal(n) for name, n in found)]
        return found

    def _passed(self, node: fx.Node, value: torch.Tensor) -> list[Source] | None:
        """The sources of what is passed on, by channels where their size changes; None where they are not kept."""
        found = []
        for name, numbers in self.sources[self._given(node)[0]]:
            if numbers.shape != value.shape:
                row = _along(numbers, 1)
                if row is None or value.ndim < 2 or value.shape[1] != len(row):
                    return None
                numbers = row.reshape(-1, *[1] * (value.ndim - 2)).expand(value.shape)
            found.append((name, numbers))
        return found

    def _wall(self, node: fx.Node, value: Any, named: bool = True) -> list[Source]:
        for operand in self._given(node):
            self._end(operand)
        if named:
            kind = type(self.modules[str(node.target)]) if node.op == "call_module" else node.target
            self.walls.setdefault(getattr(kind, "__name__", str(kind)), node.name)
        return [_identity(value)] if isinstance(value, torch.Tensor) else []

    def _end(self, operand: fx.Node) -> None:
        for name, numbers in self.sources[operand]:
            for part in numbers if isinstance(numbers, tuple | list) else [numbers]:
                self._connect(name, None, part[part >= 0].unique())

    def _connect(self, producer: str | None, consumer: str | None, channels: torch.Tensor) -> None:
        known = (e.channels for e in self.edges if (e.producer, e.consumer) == (producer, consumer))
        if not (producer is consumer is None) and not any(torch.equal(channels, other) for other in known):
            self.edges.append(Edge(producer, consumer, channels))

    def _given(self, node: fx.Node) -> list[fx.Node]:
        """The operands that hold channels."""
        return [operand for operand in operands(node) if self.sources.get(operand)]

    def _users(self, node: fx.Node) -> list[fx.Node]:
        return [user for user in node.users if operator_of(user, self.modules).channels is not READS_SIZE]

    def _norm(self, node: fx.Node) -> Norm | None:
        module = self.modules[str(node.target)] if node.op == "call_module" else None
        return module if isinstance(module, NORMS) else None

    def _front(self, node: fx.Node, channels: Channels) -> Norm | None:
        source = next(iter(operands(node)), None)
        if channels not in (PASSES, FLATTENS) or source is None:
            return None
        taken = _calls_layer(source, self.modules) and len(self._users(source)) == 1
        if self._norm(node) is not None and not taken:
            return self._norm(node)
        return self.fronts[source]


def _fixed(node: fx.Node, channels: Channels) -> bool:
    """Whether a call does something else to the channels that are left where some are missing."""
    name = getattr(node.target, "__name__", node.target)
    if channels is SPLITS or (channels is REARRANGES and name not in TURNS):
        return True
    sizes: list[Any] = []
    fx.node.map_aggregate(node.args[1:], sizes.append)
    return name in ("view", "reshape", "expand") and any(isinstance(size, int) and size > 1 for size in sizes)


def is_layer(module: nn.Module) -> bool:
    """Whether it has a weight of its own to prune: not one computed from others, as weight norm does."""
    return isinstance(module, LAYERS) and isinstance(module._parameters.get("weight"), nn.Parameter)


def _calls_layer(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return node.op == "call_module" and is_layer(modules[str(node.target)])


def _names(model: nn.Module) -> dict[int, str]:
    """The first name of each layer's weight, by the weight's id."""
    names: dict[int, str] = {}
    for name, module in model.named_modules():
        if is_layer(module):
            names.setdefault(id(module.weight), name)
    return names


def _identity(value: torch.Tensor) -> Source:
    return None, torch.zeros((), dtype=torch.long, device=value.device).expand(value.shape)


def _along(numbers: torch.Tensor, dimension: int) -> torch.Tensor | None:
    """The numbers along a dimension, if they are the same along all others."""
    rows = numbers.movedim(dimension, 0).flatten(1)
    return rows[:, 0] if bool((rows == rows[:, :1]).all()) else None


def _on_blank_images(model: nn.Module, run: Callable[[torch.Tensor], Result]) -> Result:
    """Give `run` two blank images of the shape that the network says it takes, or else of the smallest that it takes.

    Raises:
        StepError: it takes none.
    """
    weight, training = next(model.parameters()), model.training
    spec, failed = getattr(model, "spec", None), ""
    model.eval()
    try:
        for shape in [tuple(spec["shape"])] if spec else _guesses(model):
            try:
                with torch.no_grad():
                    return run(torch.zeros(2, *shape, dtype=weight.dtype, device=weight.device))
            except Exception as error:  # whatever a forward raises
                failed = f"{type(error).__name__}: {error}".partition("\n")[0]
    finally:
        model.train(training)
    raise StepError(f"the network does not run on blank images ({failed})")


def _guesses(model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Shapes of images for a network that does not say what it takes."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            yield from ((module.in_channels, side, side) for side in SIDES)
            return
    yield from ((module.in_features,) for module in model.modules() if isinstance(module, nn.Linear))


@torch.no_grad()
def active_shares(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """How often each input of a layer is not zero, on images: a share `[I]` for each layer by name.

    It is that of the activation itself, before pooling and flatten: of 64 pixels one is nearly always active.
    """
    traced, names = trace(model), _names(model)
    modules = dict(traced.named_modules())
    layers = [node for node in traced.graph.nodes if _calls_layer(node, modules)]
    recorder = _Recorder(traced, dict(_activation(node, modules) for node in layers))
    training = model.training
    model.eval()
    recorder.run(images)
    model.train(training)
    shares = {}
    for node in layers:
        module = modules[str(node.target)]
        inputs, share = inputs_of(module), recorder.shares[_activation(node, modules)[0]]
        repeated = share.repeat_interleave(inputs // len(share))
        shares[names[id(module.weight)]] = repeated if len(repeated) == inputs else share.mean().expand(inputs)
    return shares


class _Recorder(fx.Interpreter):
    """Runs a network, and keeps how often the channels of some values, in a dimension, are not zero."""

    def __init__(self, traced: fx.GraphModule, wanted: dict[fx.Node, int]):
        super().__init__(traced)
        self.wanted = wanted
        self.shares: dict[fx.Node, torch.Tensor] = {}

    def run_node(self, node: fx.Node) -> Any:
        value = super().run_node(node)
        if node in self.wanted:
            kept = self.wanted[node] % value.ndim
            self.shares[node] = (value != 0).float().mean([d for d in range(value.ndim) if d != kept])
        return value


def _activation(layer: fx.Node, modules: dict[str, nn.Module]) -> tuple[fx.Node, int]:
    """What a layer reads, before any pooling, and the dimension of the channels there."""
    node = read = operands(layer)[0]
    while operator_of(node, modules).pools:
        node = operands(node)[0]
    return node, -1 if node is read and isinstance(modules[str(layer.target)], nn.Linear) else 1


# Norms over a layer's channels, which the lookahead criteria are made of


def inputs_of(layer: nn.Conv2d | nn.Linear) -> int:
    """How many channels a layer reads: `I` of its weight `[O, I / groups, ...]`."""
    return layer.weight.shape[1] * getattr(layer, "groups", 1)


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
