"""The layer graph: which layers feed which, channel by channel, found by running a traced network.

The table in `models.operators` says what each operator does to channels.
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
MOVES = (CONCATENATES, FLATTENS, REARRANGES, SPLITS)  # only move values, so they can be applied to channel numbers
TURNS = ("permute", "transpose", "swapaxes", "movedim")  # those of REARRANGES that keep each channel in one piece
SIDES = range(1, 257)  # image sizes to try on a network without a spec

Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d | nn.SyncBatchNorm
Result = TypeVar("Result")
# A layer's name and a tensor with, for each value, the number of the layer's channel that it belongs to; -1 if none.
# The name None stands for the identity, all of whose channels have number 0. A split gives a tuple of such tensors.
Source = tuple[str | None, Any]


@dataclass(frozen=True, eq=False)
class Edge:
    """A layer that feeds another. None on one side is the identity: the network's input or output, or a residual.

    channels: for each input of the consumer `[I]`, the channel of the producer that it reads, -1 if none. The identity
        as producer has only channel 0; as consumer it has one input for each channel that it reads.
    """

    producer: str | None
    consumer: str | None
    channels: torch.Tensor

    def spread(self, values: torch.Tensor) -> torch.Tensor:
        """Map values of the producer's channels `[O]` to the consumer's inputs `[I]`; inputs from elsewhere get 0."""
        channels = self.channels.to(values.device)
        return torch.where(channels >= 0, values[channels.clamp(min=0)], 0)

    def table(self, values: torch.Tensor, outputs: int) -> torch.Tensor:
        """Group values of the consumer's inputs `[I]` by the producer's channel: `[O, n]`, padded with 0.

        After a flatten, for instance, a channel is read by one input per pixel.
        """
        channels, fed = self.channels.to(values.device), self.fed(outputs).to(values.device)
        order = channels.argsort(stable=True)[int((channels < 0).sum()) :]
        first = fed.cumsum(0) - fed
        place = torch.arange(len(order), device=values.device) - first.repeat_interleave(fed)
        rows = values.new_zeros(outputs, max(1, int(fed.max())))
        rows[channels[order], place] = values[order]
        return rows

    def fed(self, outputs: int) -> torch.Tensor:
        """Return how many inputs each of the producer's channels feeds: `[O]`."""
        return self.channels[self.channels >= 0].bincount(minlength=outputs)


@dataclass
class Layer:
    """A convolution or linear layer, with the edges to its neighbours.

    norm: the batch norm that is the only reader of its output.
    front: a batch norm before it that is not the `norm` of another layer.
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
    """Return the layers in order of first use, found by running the network, without edges.

    Layers that share a weight count as one, under the first name.
    """
    uses = _Uses(_names(model))

    def run(images: torch.Tensor) -> None:
        with uses:
            model(images)

    _on_blank_images(model, run)
    modules: dict[str, Any] = dict(model.named_modules())
    return {name: Layer(name, modules[name]) for name in uses.used}


class _Uses(TorchFunctionMode):
    """Notes which weights are used, in order. Hooks would miss layers that are called through `.forward`."""

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
    """Return the layers of a network in order of first use, with the edges between them.

    Channels are followed through operators that pass them on or move them: norms, activations, pooling, flatten,
    concatenation, split, shuffle. An operand of an addition that also has other users is the residual connection, and
    counts as the identity. A product is treated like a sum, since d(xy) = y dx + x dy: both factors are followed, each
    as if the other were 1. A layer that is called twice has the neighbours of both calls. An operator of unknown effect
    is a wall: the identity on both sides. A warning names it.

    to_cut: find which channels must be removed together. Residual connections are followed too, and operators that
        depend on the number of channels are walls without a warning: splits, shuffles, views with constant sizes.

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
            f"the effect of these operators on channels is not known: {named}; layers next to them are scored as if "
            "they were next to the network's input or output. Add a row to models.operators",
            stacklevel=2,
        )
    for name, layer in found.layers.items():
        if not any(edge.producer == name for edge in found.edges):  # nothing reads its output
            found.edges.append(Edge(name, None, torch.arange(len(layer.module.weight))))
    for edge in found.edges:
        if edge.producer is not None:
            found.layers[edge.producer].outputs.append(edge)
        if edge.consumer is not None:
            found.layers[edge.consumer].inputs.append(edge)
    return found.layers


class _Walk(fx.Interpreter):
    """Runs a network and notes, for each value, the layers whose channels it contains, and the edges between layers."""

    def __init__(self, traced: fx.GraphModule, names: dict[int, str], to_cut: bool):
        super().__init__(traced)
        self.modules, self.names, self.to_cut = dict(traced.named_modules()), names, to_cut
        self.layers: dict[str, Layer] = {}
        self.edges: list[Edge] = []
        self.walls: dict[str, str] = {}  # the first node of each kind of operator
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
            if row is None:  # its channels are along another dimension, or several
                self._end(operands(node)[0])
                source, row = None, torch.zeros(inputs_of(module), dtype=torch.long, device=value.device)
            self._connect(source, name, row)
        outputs = torch.arange(len(module.weight), device=value.device)
        return [(name, outputs.reshape(-1, *[1] * (value.ndim - 2 if axis == 1 else 0)).expand(value.shape))]

    def _moved(self, node: fx.Node) -> list[Source]:
        """Repeat the call on the channel numbers of each source, with -1 in place of all other values."""
        found = []
        for operand in self._given(node):
            for name, numbers in self.sources[operand]:

                def replaced(other: fx.Node, operand: fx.Node = operand, numbers: Any = numbers) -> Any:
                    value = self.env[other]
                    if other is operand:
                        return numbers.contiguous() if isinstance(numbers, torch.Tensor) else numbers
                    return torch.full_like(value, -1, dtype=torch.long) if isinstance(value, torch.Tensor) else value

                args, kwargs = (fx.node.map_arg(given, replaced) for given in (node.args, node.kwargs))
                found.append((name, getattr(self, node.op)(node.target, args, kwargs)))
        return found

    def _together(self, node: fx.Node, value: torch.Tensor, residual: bool) -> list[Source]:
        found: list[Source] = []
        for operand in self._given(node):
            if residual and len(self._users(operand)) > 1:
                self._end(operand)
                more = [_identity(value)]
            elif self.to_cut and self.env[operand].shape[1:2] != value.shape[1:2]:  # broadcast over all channels
                self._end(operand)
                more = []
            else:
                more = [(name, numbers.expand(value.shape)) for name, numbers in self.sources[operand]]
            # Without duplicates: both factors of x * sigmoid(x) are the same channels.
            found += [new for new in more if not any(new[0] == name and new[1].equal(n) for name, n in found)]
        return found

    def _passed(self, node: fx.Node, value: torch.Tensor) -> list[Source] | None:
        """Return the sources of a value that an operator passes on, also at another size; None if channels are lost."""
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
    """Return whether a call would treat the remaining channels differently if some were removed."""
    name = getattr(node.target, "__name__", node.target)
    if channels is SPLITS or (channels is REARRANGES and name not in TURNS):
        return True
    sizes: list[Any] = []
    fx.node.map_aggregate(node.args[1:], sizes.append)
    return name in ("view", "reshape", "expand") and any(isinstance(size, int) and size > 1 for size in sizes)


def is_layer(module: nn.Module) -> bool:
    """Return whether a module is a layer whose weight is a parameter, not computed from others as by weight norm."""
    return isinstance(module, LAYERS) and isinstance(module._parameters.get("weight"), nn.Parameter)


def _calls_layer(node: fx.Node, modules: dict[str, nn.Module]) -> bool:
    return node.op == "call_module" and is_layer(modules[str(node.target)])


def _names(model: nn.Module) -> dict[int, str]:
    """Return the name of each layer, by the `id` of its weight; the first name if layers share the weight."""
    names: dict[int, str] = {}
    for name, module in model.named_modules():
        if is_layer(module):
            names.setdefault(id(module.weight), name)
    return names


def _identity(value: torch.Tensor) -> Source:
    return None, torch.zeros((), dtype=torch.long, device=value.device).expand(value.shape)


def _along(numbers: torch.Tensor, dimension: int) -> torch.Tensor | None:
    """Return the numbers along a dimension if they are constant along all others, else None."""
    rows = numbers.movedim(dimension, 0).flatten(1)
    return rows[:, 0] if bool((rows == rows[:, :1]).all()) else None


def _on_blank_images(model: nn.Module, run: Callable[[torch.Tensor], Result]) -> Result:
    """Call `run` with two blank images of the shape in the network's spec, else of the smallest shape that works.

    Raises:
        StepError: no shape works.
    """
    weight, training = next(model.parameters()), model.training
    spec, failed = getattr(model, "spec", None), ""
    model.eval()
    try:
        for shape in [tuple(spec["shape"])] if spec else _guesses(model):
            try:
                with torch.no_grad():
                    return run(torch.zeros(2, *shape, dtype=weight.dtype, device=weight.device))
            except Exception as error:  # the network's own code may raise anything
                failed = f"{type(error).__name__}: {error}".partition("\n")[0]
    finally:
        model.train(training)
    raise StepError(f"the network does not run on blank images ({failed})")


def _guesses(model: nn.Module) -> Iterator[tuple[int, ...]]:
    """Yield shapes of images to try on a network without a spec."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            yield from ((module.in_channels, side, side) for side in SIDES)
            return
    yield from ((module.in_features,) for module in model.modules() if isinstance(module, nn.Linear))


@torch.no_grad()
def active_shares(model: nn.Module, images: torch.Tensor) -> dict[str, torch.Tensor]:
    """Return how often each input of a layer is not zero on images: shares `[I]`, by the layer's name.

    They are taken before pooling and flatten: of 64 pooled pixels, one is nearly always active.
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
    """Runs a network and notes how often each channel of the `wanted` values is not zero, by the given dimension."""

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
    """Return the node that a layer reads, before any pooling, and the dimension of its channels."""
    node = read = operands(layer)[0]
    while operator_of(node, modules).pools:
        node = operands(node)[0]
    return node, -1 if node is read and isinstance(modules[str(layer.target)], nn.Linear) else 1


# Norms per channel, used by the lookahead criteria


def inputs_of(layer: nn.Conv2d | nn.Linear) -> int:
    """Return how many channels a layer reads: `I` of its weight `[O, I / groups, ...]`."""
    return layer.weight.shape[1] * getattr(layer, "groups", 1)


def made(weight: torch.Tensor) -> torch.Tensor:
    """Return the Frobenius norm `[O]` of the weights that produce each output channel."""
    return weight.flatten(1).norm(dim=1)


def read(weight: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """Return the Frobenius norm `[I]` of the weights `[O, I / groups, ...]` that read each input channel."""
    outputs, inputs = weight.shape[:2]
    return torch.linalg.vector_norm(weight.reshape(groups, outputs // groups, inputs, -1), dim=(1, 3)).flatten()


def by_weight(of_input: torch.Tensor, weight: torch.Tensor, groups: int = 1) -> torch.Tensor:
    """Reshape values per input channel `[I]` to broadcast over a weight: `[O, I / groups, 1, 1]`, or `[O, I]`."""
    rows = of_input.reshape(groups, -1).repeat_interleave(len(weight) // groups, dim=0)
    return rows.reshape(*rows.shape, *[1] * (weight.ndim - 2))
