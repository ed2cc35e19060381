"""Placement of quantizers, by the table of operators.

It matches ONNX Runtime's integer operators: the output of a convolution or an addition is quantized once, after the
ReLU that follows, so that all inputs and outputs of both are integers. There are no quantizers between operators that
stay in floating point.
"""

import copy
import operator
from collections.abc import Callable, Iterator

from torch import fx, nn
from torch.nn import functional

from models.folding import folding_norms
from models.operators import LAYERS, READS_SIZE, Modules, called, has_integer_form, operator_of, source

IN_PLACE: dict[object, Callable] = {
    operator.iadd: operator.add,
    operator.isub: operator.sub,
    operator.imul: operator.mul,
    operator.itruediv: operator.truediv,
}


def ready_for_quantizers(traced: fx.GraphModule) -> fx.GraphModule:
    """Return a traced network without in-place operations and identities, and with non-zero padding as its own call."""
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        module = called(node, modules)
        if isinstance(module, nn.Identity):
            node.replace_all_uses_with(source(node))
            traced.graph.erase_node(node)
        elif _is_in_place(node, modules):
            _make_out_of_place(node)
        elif isinstance(module, nn.Conv2d) and module.padding_mode != "zeros" and has_integer_form(module):
            sides = module._reversed_padding_repeated_twice
            with traced.graph.inserting_before(node):
                padded = traced.graph.call_function(functional.pad, (source(node), sides, module.padding_mode))
            node.replace_input_with(source(node), padded)
    for name, module in modules.items():
        if getattr(module, "inplace", False):
            copied = copy.copy(module)
            vars(copied)["inplace"] = False
            traced.set_submodule(name, copied)
    return fx.GraphModule(traced, traced.graph)


def _is_in_place(node: fx.Node, modules: Modules) -> bool:
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    in_place = node.target in IN_PLACE or bool(node.kwargs.get("inplace"))
    return in_place or getattr(called(node, modules), "inplace", False)


def _make_out_of_place(node: fx.Node) -> None:
    """Replace an in-place call; later readers of the changed input read its result."""
    source(node).replace_all_uses_with(node, lambda user: user > node)
    if node.op == "call_method":
        node.target = str(node.target).rstrip("_")
    elif node.op == "call_function":
        node.target = IN_PLACE.get(node.target) or node.target
        if "inplace" in node.kwargs:
            node.update_kwarg("inplace", False)


def place_quantizers(traced: fx.GraphModule, make: Callable[[], nn.Module]) -> None:
    """Insert a module from `make` after every result that the deployed model rounds, named after that result."""
    for node, rounded in Placement(traced).places().items():
        name = f"quantizer_{rounded.name}"
        if not hasattr(traced, name):
            traced.add_submodule(name, make())
        with traced.graph.inserting_after(node):
            quantized = traced.graph.call_module(name)
        node.replace_all_uses_with(quantized)
        quantized.args = (node,)
    traced.recompile()


class Placement:
    """Decides which results of a traced network are rounded."""

    def __init__(self, traced: fx.GraphModule):
        self.nodes = list(traced.graph.nodes)
        self.modules = dict(traced.named_modules())
        self.norms = set(folding_norms(traced))

    def places(self) -> dict[fx.Node, fx.Node]:
        """Map each node that a quantizer follows to the node that names the quantizer.

        Usually the two are the same. For batch norm that is not folded yet, it is the layer before, as in the folded
        network. For a repeated quantizer, it is the node that was rounded first.
        """
        found: dict[fx.Node, fx.Node] = {}
        for node in self.nodes:
            if self._is_rounded(node):
                found[node] = source(node) if node in self.norms else node
            elif operator_of(node, self.modules).quantizer == "again" and node.users:
                before = source(node)
                while before not in found and self._moves(before):
                    before = source(before)
                if before in found:
                    found[node] = found[before]
        return found

    def on_integers(self, node: fx.Node) -> bool:
        """Return whether the runtime computes a node on integers, given quantizers around it."""
        if self._is_taken_in(node):
            return self.on_integers(source(node))
        layer = called(node, self.modules)
        in_floats = isinstance(layer, LAYERS) and not has_integer_form(layer)
        return operator_of(node, self.modules).integer is not None and not in_floats

    def computes(self, node: fx.Node) -> bool:
        """Return whether a node computes new values, rather than only moving or reading values."""
        row = operator_of(node, self.modules)
        return node.op.startswith("call") and row.quantizer == "own" and row.channels is not READS_SIZE

    def _is_rounded(self, node: fx.Node) -> bool:
        """Return False before a fused ReLU or batch norm, for the logits, and if nothing around it uses integers."""
        users, readers = list(self._users(node)), list(self._readers(node))
        if not users or all(map(self._is_taken_in, users)) or any(reader.op == "output" for reader in readers):
            return False
        if not self.computes(node) and node.op != "placeholder":
            return False
        return self.on_integers(node) or any(map(self.on_integers, readers))

    def _is_taken_in(self, node: fx.Node) -> bool:
        return node in self.norms or operator_of(node, self.modules).taken_in == "by anything"

    def _moves(self, node: fx.Node) -> bool:
        return node.op.startswith("call") and operator_of(node, self.modules).quantizer != "own"

    def _users(self, node: fx.Node) -> Iterator[fx.Node]:
        return (user for user in node.users if operator_of(user, self.modules).channels is not READS_SIZE)

    def _readers(self, node: fx.Node) -> Iterator[fx.Node]:
        """Yield the nodes that use the values of a node, looking through those that only move values."""
        for user in self._users(node):
            yield from self._readers(user) if self._moves(user) else (user,)
