"""Where quantizers stand, by the table of operators.

The placement is the one that ONNX Runtime's integer operators want: a tensor that leaves a layer is quantized once,
after the ReLU that follows a convolution or an addition, so that convolution and addition both see integers on all
sides. Between what stays in floats there are none.
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
    """A traced network with room for quantizers: nothing is changed in place, padding stands by itself."""
    modules = dict(traced.named_modules())
    for node in list(traced.graph.nodes):
        module = called(node, modules)
        if isinstance(module, nn.Identity):
            node.replace_all_uses_with(source(node))
            traced.graph.erase_node(node)
        elif _is_in_place(node, modules):
            _give_a_new_tensor(node)
        elif isinstance(module, nn.Conv2d) and module.padding_mode != "zeros" and has_integer_form(module):
            sides = module._reversed_padding_repeated_twice
            with traced.graph.inserting_before(node):
                padded = traced.graph.call_function(functional.pad, (source(node), sides, module.padding_mode))
            node.replace_input_with(source(node), padded)
    for name, module in modules.items():
        if getattr(module, "inplace", False):
            own = copy.copy(module)
            vars(own)["inplace"] = False
            traced.set_submodule(name, own)
    return fx.GraphModule(traced, traced.graph)


def _is_in_place(node: fx.Node, modules: Modules) -> bool:
    if node.op == "call_method":
        return str(node.target).endswith("_") and not str(node.target).endswith("__")
    in_place = node.target in IN_PLACE or bool(node.kwargs.get("inplace"))
    return in_place or getattr(called(node, modules), "inplace", False)


def _give_a_new_tensor(node: fx.Node) -> None:
    """What read the changed input afterwards reads the new tensor."""
    source(node).replace_all_uses_with(node, lambda user: user > node)
    if node.op == "call_method":
        node.target = str(node.target).rstrip("_")
    elif node.op == "call_function":
        node.target = IN_PLACE.get(node.target) or node.target
        if "inplace" in node.kwargs:
            node.update_kwarg("inplace", False)


def place_quantizers(traced: fx.GraphModule, make: Callable[[], nn.Module]) -> None:
    """Put a module of `make` behind everything that the deployed model rounds, named after what it rounds."""
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
    """Which results of a traced network are rounded."""

    def __init__(self, traced: fx.GraphModule):
        self.nodes = list(traced.graph.nodes)
        self.modules = dict(traced.named_modules())
        self.norms = set(folding_norms(traced))

    def places(self) -> dict[fx.Node, fx.Node]:
        """What a quantizer stands behind, and what it is named after.

        That is the layer before batch norm that is not folded yet, for the folded form is named so; and what was
        rounded before, where the same quantizer stands once more.
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
        """Whether the runtime computes it on integers, if there are quantizers around it."""
        if self._is_taken_in(node):
            return self.on_integers(source(node))
        layer = called(node, self.modules)
        in_floats = isinstance(layer, LAYERS) and not has_integer_form(layer)
        return operator_of(node, self.modules).integer is not None and not in_floats

    def computes(self, node: fx.Node) -> bool:
        """Whether it gives new values: a call that does not only move or read some."""
        row = operator_of(node, self.modules)
        return node.op.startswith("call") and row.quantizer == "own" and row.channels is not READS_SIZE

    def _is_rounded(self, node: fx.Node) -> bool:
        """Not before a ReLU or batch norm that it takes in, not the logits, and not where nothing needs integers."""
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
        """What reads its values, through what only moves them."""
        for user in self._users(node):
            yield from self._readers(user) if self._moves(user) else (user,)
