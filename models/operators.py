"""Table of operators, one row each, used to place quantizers, build the layer graph, prune channels and count costs.

A row covers modules (and their subclasses), functions and methods. Add your own operator as another row:
`register(Operator("swish", PASSES, modules=(Swish,)))`. An operator without a row is a wall: its effect on channels is
unknown, and it stays in floating point.
"""

import traceback
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Literal, get_args

import torch
from torch import fx, nn

from models.errors import ModelError

Modules = dict[str, nn.Module]  # by name, as `dict(traced.named_modules())`


class Channels(Enum):
    """What an operator does to the channels of `[N, C, ...]`, dimension 1."""

    PASSES = "each channel stays itself"
    MIXES = "a layer with weights computes new channels"
    ADDS = "corresponding channels of all inputs are added"
    CONCATENATES = "channels of all inputs are concatenated"
    SPLITS = "the output has some of the channels"
    SCALES = "corresponding channels of two inputs are multiplied: a gate"
    FLATTENS = "each channel becomes a block of columns, one per pixel"
    REARRANGES = "channels are reordered or leave dimension 1: a wall"
    READS_SIZE = "no channels: the result is a number or a tuple of numbers"
    UNKNOWN = "unknown: a wall"


PASSES, MIXES, ADDS, CONCATENATES, SPLITS, SCALES, FLATTENS, REARRANGES, READS_SIZE, UNKNOWN = Channels

# Returns multiply-accumulates from a module, its input and output for one image, and a function that counts the values
# of a weight (all, or only the non-zero ones).
Count = Callable[[torch.Tensor], int]
Macs = Callable[[nn.Module, torch.Tensor, torch.Tensor, Count], int]

Quantizers = Literal["own", "none", "again"]
TakenIn = Literal["never", "by anything", "by a layer"]


@dataclass(frozen=True)
class Operator:
    """One row of the table.

    modules: module classes.
    calls: functions, or names of torch or Python functions and of methods; a name covers the in-place form too.
    when: condition on the call. The first row whose condition holds applies.
    pools: whether it treats each channel separately and maps an all-zero channel to zeros.
    quantizer: "own": a quantizer follows it; "none": it only moves or reads values that are already rounded; "again":
        the same, but the runtime needs the previous quantizer repeated after it.
    taken_in: whether it is fused into the operator before it, without a quantizer in between: activations that clip
        into any operator, norms into layers with weights.
    integer: ONNX Runtime's integer operator; None if it stays in floating point or is fused.
    macs: counts its multiply-accumulates; None if it has none.
    """

    name: str
    channels: Channels
    modules: tuple[type[nn.Module], ...] = ()
    calls: tuple[str | Callable, ...] = ()
    when: Callable[[fx.Node, Modules], bool] = lambda node, modules: True
    pools: bool = False
    quantizer: Quantizers = "own"
    taken_in: TakenIn = "never"
    integer: str | None = None
    macs: Macs | None = None


# Calls and their inputs


def called(node: fx.Node, modules: Modules) -> nn.Module | None:
    """Return the module that a node calls, or None if it calls none."""
    return modules[str(node.target)] if node.op == "call_module" else None


def source(node: fx.Node) -> fx.Node:
    """Return the first input of a call, also if it is passed by name, as in `relu(input=x)`."""
    return node.all_input_nodes[0]


def argument(node: fx.Node, position: int, name: str, default: object = None) -> object:
    """Return an argument of a function or method, passed by position or by name."""
    return node.args[position] if len(node.args) > position else node.kwargs.get(name, default)


def operands(node: fx.Node) -> list[fx.Node]:
    """Return the inputs of a call that depend on the images: not weights or anything computed from weights alone."""
    return [given for given in node.all_input_nodes if _is_of_images(given)]


def _is_of_images(node: fx.Node) -> bool:
    if "of images" not in node.meta:  # cached: otherwise a node is visited once per path to it
        depends = node.op in ("placeholder", "call_module")
        node.meta["of images"] = depends or any(map(_is_of_images, node.all_input_nodes))
    return node.meta["of images"]


def _is_number(node: fx.Node, modules: Modules) -> bool:
    """Return whether a call reads sizes, or is computed from sizes and constants alone."""
    if "number" not in node.meta:
        is_call = node.op in ("call_function", "call_method")
        rows = [row for row in OPERATORS if row.channels is READS_SIZE and _name(node) in row.calls] if is_call else []
        from_numbers = is_call and all(_is_number(given, modules) for given in operands(node))
        node.meta["number"] = from_numbers or any(row.when(node, modules) for row in rows)
    return node.meta["number"]


def _by_a_constant(node: fx.Node, modules: Modules) -> bool:
    given = [source for source in operands(node) if not _is_number(source, modules)]
    return len(given) == 1 and [*node.args, *node.kwargs.values()].count(given[0]) == 1  # not x + x


def _along_channels(node: fx.Node, modules: Modules) -> bool:
    return argument(node, 2, "dim", 0) == 1


def _cat_of_channels(node: fx.Node, modules: Modules) -> bool:
    return 1 in (argument(node, 1, "dim", 0), node.kwargs.get("axis"))


def _over_pixels(node: fx.Node, modules: Modules) -> bool:
    """A mean over the dimensions after the channels; one without a dimension covers all of them.

    The last dimension alone may be that of the channels, in a tensor `[N, C]`.
    """
    dims = argument(node, 1, "dim", 1)
    dims = list(dims) if isinstance(dims, tuple | list) else [dims]
    return all(dim in (2, 3, -1, -2) for dim in dims) and dims != [-1]


def _from_channels_on(node: fx.Node, modules: Modules) -> bool:
    if isinstance(module := called(node, modules), nn.Flatten):
        return module.start_dim == 1 and module.end_dim == -1
    return argument(node, 1, "start_dim", 0) == 1 and argument(node, 2, "end_dim", -1) == -1


def _sizes(node: fx.Node) -> tuple:
    given = node.args[1:] or tuple(node.kwargs.values())
    return tuple(given[0]) if len(given) == 1 and isinstance(given[0], tuple | list) else given


def _to_rows(node: fx.Node, modules: Modules) -> bool:
    """`x.view(x.size(0), -1)`, `x.reshape(n, c)`."""
    return len(_sizes(node)) == 2


def _to_pixels(node: fx.Node, modules: Modules) -> bool:
    """`x.view(n, c, 1, 1)`."""
    return _sizes(node)[2:] == (1, 1)


def _drops_pixels(node: fx.Node, modules: Modules) -> bool:
    """A squeeze of dimensions after the channels; one without a dimension squeezes every dimension of size 1."""
    return (len(node.args) == 1 and not node.kwargs) or argument(node, 1, "dim") in (2, 3, -1, -2, (2, 3), (-2, -1))


def _adds_pixels(node: fx.Node, modules: Modules) -> bool:
    return argument(node, 1, "dim") in (-1, 2, 3)


def _of_parts(node: fx.Node, modules: Modules) -> bool:
    """One of the tensors that a split returns."""
    source = operands(node)[0]
    return isinstance(node.args[1], int) and operator_of(source, modules).channels is SPLITS


def _index(node: fx.Node) -> list:
    return list(node.args[1]) if isinstance(node.args[1], tuple) else [node.args[1]]


def _of_channels(node: fx.Node, modules: Modules) -> bool:
    """`x[:, 3:]`."""
    index = _index(node)
    return len(index) > 1 and index[0] == slice(None) and all(isinstance(part, slice) for part in index)


def _of_pixels(node: fx.Node, modules: Modules) -> bool:
    """`x[:, :, ::2, ::2]`, `x[..., ::2, ::2]`, `x[:, :, None, None]`; `x[..., :4]` may be channels of `[N, C]`."""
    index = _index(node)
    behind = index[:2] == [slice(None), slice(None)] or (index[:1] == [Ellipsis] and len(index) == 3)
    return behind and all(isinstance(part, slice | type(None)) for part in index[1:])


def _reads_shape(node: fx.Node, modules: Modules) -> bool:
    return node.args[1] in ("shape", "ndim", "dtype", "device")


# Multiply-accumulates: each weight counts once per output position, padding included, as in a dense kernel


def _weight(layer: nn.Module) -> torch.Tensor:
    weight = layer.weight  # not always a parameter: weight normalization computes it
    assert isinstance(weight, torch.Tensor)
    return weight


def _of_layer(layer: nn.Module, x: torch.Tensor, y: torch.Tensor, count: Count) -> int:
    return y.numel() // y.shape[1] * count(_weight(layer))


def _of_linear(layer: nn.Module, x: torch.Tensor, y: torch.Tensor, count: Count) -> int:
    return y.numel() // y.shape[-1] * count(_weight(layer))


def _of_transposed(layer: nn.Module, x: torch.Tensor, y: torch.Tensor, count: Count) -> int:
    return x.numel() // x.shape[1] * count(_weight(layer))


def _of_attention(layer: nn.Module, x: torch.Tensor, y: torch.Tensor, count: Count) -> int:
    """Count the MACs of self-attention: projections, products of all pairs of tokens, and weighted sums."""
    assert isinstance(layer, nn.MultiheadAttention)
    weights = sum(count(p) for name, p in layer.named_parameters() if name.endswith("weight"))
    tokens = x.shape[1 if layer.batch_first else 0]
    return x.numel() // x.shape[-1] * weights + 2 * x.numel() * tokens


LAYERS = (nn.Conv2d, nn.Linear)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)

OPERATORS: list[Operator] = [
    # Layers with weights
    Operator("convolution", MIXES, (nn.Conv2d,), integer="QLinearConv", macs=_of_layer),
    Operator("linear layer", MIXES, (nn.Linear,), integer="QGemm", macs=_of_linear),
    Operator("convolution in 1 or 3 dimensions", MIXES, (nn.Conv1d, nn.Conv3d), macs=_of_layer),
    Operator("transposed convolution", MIXES,
             (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d), macs=_of_transposed),
    Operator("attention", UNKNOWN, (nn.MultiheadAttention,), macs=_of_attention),
    # Norms. Even if the statistics cover several channels, each channel passes as itself, scaled and shifted.
    Operator("batch norm", PASSES, NORMS, ("batch_norm",), taken_in="by a layer"),
    Operator("instance norm", PASSES, (nn.InstanceNorm1d, nn.InstanceNorm2d), ("instance_norm",)),
    Operator("group norm", PASSES, (nn.GroupNorm,), ("group_norm",)),
    Operator("layer norm", PASSES, (nn.LayerNorm,), ("layer_norm",)),
    # Activations
    Operator("ReLU", PASSES, (nn.ReLU,), ("relu",), taken_in="by anything"),
    Operator("ReLU6", PASSES, (nn.ReLU6,), ("relu6",), taken_in="by anything"),
    Operator("sigmoid", PASSES, (nn.Sigmoid,), ("sigmoid",), integer="QLinearSigmoid"),
    Operator("leaky ReLU", PASSES, (nn.LeakyReLU,), ("leaky_relu",), integer="QLinearLeakyRelu"),
    Operator("activation", PASSES,
             (nn.PReLU, nn.SiLU, nn.GELU, nn.Mish, nn.ELU, nn.CELU, nn.SELU, nn.Hardswish, nn.Hardsigmoid, nn.Hardtanh,
              nn.Tanh, nn.Softplus, nn.Softsign),
             ("prelu", "silu", "gelu", "mish", "elu", "celu", "selu", "hardswish", "hardsigmoid", "hardtanh", "tanh",
              "softplus", "softsign", "clamp", "clip", "abs", "square", "exp", "log", "sqrt", "rsqrt")),
    # Pooling, and operators that only move values within their channel
    Operator("max-pooling", PASSES, (nn.MaxPool1d, nn.MaxPool2d, nn.AdaptiveMaxPool2d),
             ("max_pool1d", "max_pool2d", "adaptive_max_pool2d"), pools=True, integer="MaxPool"),
    Operator("average pooling", PASSES, (nn.AvgPool1d, nn.AvgPool2d, nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d),
             ("avg_pool1d", "avg_pool2d", "adaptive_avg_pool1d", "adaptive_avg_pool2d"), pools=True,
             integer="QLinearAveragePool"),
    Operator("mean over pixels", PASSES, calls=("mean",), when=_over_pixels, pools=True, integer="QLinearAveragePool"),
    Operator("dropout", PASSES, (nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.AlphaDropout, nn.Identity),
             ("dropout", "dropout1d", "dropout2d", "alpha_dropout", "stochastic_depth", "contiguous", "clone", "detach",
              "float", "to"), pools=True, quantizer="none"),
    Operator("resizing", PASSES, (nn.Upsample,), ("interpolate",), pools=True),
    Operator("padding", PASSES, (nn.ZeroPad2d, nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d), ("pad",),
             pools=True, quantizer="again"),
    Operator("flatten", FLATTENS, (nn.Flatten,), ("flatten",), _from_channels_on, pools=True, quantizer="none"),
    Operator("view as rows", FLATTENS, calls=("view", "reshape"), when=_to_rows, pools=True, quantizer="none"),
    Operator("view as pixels", PASSES, calls=("view", "reshape"), when=_to_pixels, pools=True, quantizer="none"),
    Operator("squeeze", FLATTENS, calls=("squeeze",), when=_drops_pixels, pools=True, quantizer="none"),
    Operator("unsqueeze", PASSES, calls=("unsqueeze",), when=_adds_pixels, pools=True, quantizer="none"),
    Operator("expand", PASSES, calls=("expand_as", "expand"), pools=True, quantizer="none"),
    # Several inputs or outputs
    Operator("arithmetic with a constant", PASSES,
             calls=("add", "iadd", "sub", "isub", "rsub", "mul", "imul", "div", "truediv", "itruediv", "neg", "pow"),
             when=_by_a_constant),
    Operator("addition", ADDS, calls=("add", "iadd"), integer="QLinearAdd"),
    Operator("subtraction", ADDS, calls=("sub", "isub")),
    Operator("gate", SCALES, calls=("mul", "imul"), integer="QLinearMul"),
    Operator("division", SCALES, calls=("div", "truediv", "itruediv")),
    Operator("concatenation", CONCATENATES, calls=("cat", "concat", "concatenate"), when=_cat_of_channels,
             integer="QLinearConcat"),
    Operator("split", SPLITS, calls=("chunk", "split", "tensor_split"), when=_along_channels, quantizer="none"),
    Operator("part of a split", SPLITS, calls=("getitem",), when=_of_parts, quantizer="again"),
    Operator("slice of pixels", PASSES, calls=("getitem",), when=_of_pixels, pools=True, quantizer="none"),
    Operator("slice of channels", SPLITS, calls=("getitem",), when=_of_channels, quantizer="none"),
    Operator("rearrangement", REARRANGES, (nn.Flatten, nn.Unflatten, nn.ChannelShuffle, nn.PixelShuffle),
             ("view", "reshape", "flatten", "unflatten", "permute", "transpose", "swapaxes", "movedim", "unsqueeze",
              "squeeze", "channel_shuffle", "pixel_shuffle"), quantizer="none"),
    # Numbers
    Operator("size", READS_SIZE, calls=("size", "dim", "numel", "len"), quantizer="none"),
    Operator("attribute", READS_SIZE, calls=("getattr",), when=_reads_shape, quantizer="none"),
]  # fmt: skip

_WALL = Operator("unknown", UNKNOWN)
_NUMBER = Operator("arithmetic with sizes and constants", READS_SIZE, quantizer="none")


def register(operator: Operator) -> None:
    """Insert a row before all others, so that it takes precedence.

    Raises:
        ModelError: it is no such row: a field has another type.
    """
    if not isinstance(operator, Operator):
        raise ModelError(f"register takes Operator('swish', PASSES, modules=(Swish,)) and the like, not {operator!r}")
    if not isinstance(operator.channels, Channels):
        raise ModelError(f"channels of {operator.name} must be of Channels, such as PASSES, not {operator.channels!r}")
    if not all(isinstance(one, tuple) for one in (operator.modules, operator.calls)) or not all(
        isinstance(module, type) and issubclass(module, nn.Module) for module in operator.modules
    ):
        raise ModelError(
            f"modules of {operator.name} must be a tuple of classes, (Swish,), and calls one of functions or names"
        )
    if operator.quantizer not in get_args(Quantizers) or operator.taken_in not in get_args(TakenIn):
        raise ModelError(
            f"quantizer of {operator.name} must be one of {', '.join(get_args(Quantizers))}, and taken_in one of "
            f"{', '.join(get_args(TakenIn))}"
        )
    OPERATORS.insert(0, operator)


def operator_of(node: fx.Node, modules: Modules) -> Operator:
    """Return the row for a call in a traced network; if there is none, a row with channels UNKNOWN.

    Arithmetic on sizes and constants alone counts as reading sizes. Inputs, constants and the output are UNKNOWN.
    """
    rows: Iterable[Operator] = ()
    if (module := called(node, modules)) is not None:
        rows = _rows_of(type(module))
    elif node.op in ("call_function", "call_method"):
        if all(_is_number(given, modules) for given in operands(node)):
            return _NUMBER
        rows = [row for row in OPERATORS if _name(node) in row.calls]
    return next((row for row in rows if row.when(node, modules)), _WALL)


def operator_of_module(module: nn.Module) -> Operator:
    """Return the first row for a module's class, ignoring conditions on the call."""
    return next(iter(_rows_of(type(module))), _WALL)


def _rows_of(kind: type) -> list[Operator]:
    """Return the rows of the nearest base class that has any."""
    return next((rows for parent in kind.__mro__ if (rows := [row for row in OPERATORS if parent in row.modules])), [])


def _name(node: fx.Node) -> str | Callable:
    """Return the name of a method or of a torch or Python function, without a trailing _; else the function itself."""
    if isinstance(node.target, str):
        return node.target.rstrip("_")
    package = (getattr(node.target, "__module__", None) or "torch").partition(".")[0]
    by_name = package in ("torch", "torchvision", "_operator", "builtins")
    return node.target.__name__.rstrip("_") if by_name else node.target


def has_integer_form(layer: nn.Module) -> bool:
    """Return whether a module is a convolution or linear layer whose weight is a parameter, not a computed tensor."""
    return isinstance(layer, LAYERS) and "weight" in layer._parameters


def integer_layers(traced: fx.GraphModule) -> dict[str, nn.Conv2d | nn.Linear]:
    """Return the layers of a traced network that have an integer form, by name, in order of first use."""
    modules = dict(traced.named_modules())
    layers = {str(node.target): called(node, modules) for node in traced.graph.nodes if node.op == "call_module"}
    return {name: layer for name, layer in layers.items() if isinstance(layer, LAYERS) and has_integer_form(layer)}


# Tracing


class Tracer(fx.Tracer):
    """Traces into user-defined modules, but not into subclasses of a class in the table that keep its forward."""

    def is_leaf_module(self, module: nn.Module, name: str) -> bool:
        parents = (parent for row in OPERATORS for parent in row.modules if isinstance(module, parent))
        unchanged = any(type(module).forward is parent.forward for parent in parents)
        return unchanged or super().is_leaf_module(module, name)


def trace(model: nn.Module, tracer: type[fx.Tracer] = Tracer) -> fx.GraphModule:
    """Trace a network in evaluation mode into a graph that shares its modules.

    Raises:
        ModelError: the network's forward depends on values known only at run time.
    """
    training = model.training
    try:
        traced = fx.GraphModule(model, tracer().trace(model.eval()), type(model).__name__)
        modules = dict(traced.named_modules())
        for node in traced.graph.nodes:  # fills its cache in order, so that no recursion goes deep
            _is_number(node, modules)
        return traced
    except Exception as error:  # tracing a forward that depends on its input may raise anything
        frames = traceback.extract_tb(error.__traceback__)
        last = [frame for frame in frames if Path(torch.__file__).parent not in Path(frame.filename).parents][-1]
        location = f"{Path(last.filename).name}, line {last.lineno}, in {last.name}: {last.line}"
        raise ModelError(f"the network cannot be traced at {location} ({type(error).__name__}: {error})") from None
    finally:
        model.train(training)
