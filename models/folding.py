"""Fold batch norm into the layer before it: at inference, the two equal one layer with different weights."""

from typing import cast

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval, fuse_linear_bn_eval

from models.operators import NORMS, Modules, called, source

FOLDING = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


def fold_norms(traced: fx.GraphModule) -> fx.GraphModule:
    """Return a traced network in evaluation mode with batch norm folded where possible, and unused modules removed.

    The network that it was traced from is not changed.
    """
    calls = folding_norms(traced)
    for layer, norm in dict.fromkeys((str(source(node).target), str(node.target)) for node in calls):
        module, of_module = traced.get_submodule(layer), cast(nn.BatchNorm2d, traced.get_submodule(norm))
        if isinstance(module, nn.Linear):
            traced.set_submodule(layer, fuse_linear_bn_eval(module, of_module))
        else:
            traced.set_submodule(layer, fuse_conv_bn_eval(cast(nn.Conv2d, module), of_module))
    for node in calls:
        node.replace_all_uses_with(source(node))
        traced.graph.erase_node(node)
    return fx.GraphModule(traced, traced.graph)


def folding_norms(traced: fx.GraphModule) -> list[fx.Node]:
    """Return the batch norm calls that can be folded: each follows a layer whose output nothing else reads.

    A module that is called several times must be paired with the same other module at each call.
    """
    modules = dict(traced.named_modules())
    pairs = {node: {source(node).target, node.target} for node in traced.graph.nodes if _follows(node, modules)}
    lone = {node for node in traced.graph.nodes if called(node, modules) is not None} - pairs.keys()
    unlike = [pair for node, pair in pairs.items() if set(source(node).users) != {node}]
    unlike += [pair for pair in pairs.values() if any(pair & other and pair != other for other in pairs.values())]
    in_pairs = {source(node) for node in pairs}
    unlike += [pair for pair in pairs.values() if any(node.target in pair for node in lone - in_pairs)]
    return [node for node, pair in pairs.items() if pair not in unlike]


def _follows(node: fx.Node, modules: Modules) -> bool:
    """Return whether a node is batch norm with statistics right after a layer whose weight is its own parameter."""
    norm = called(node, modules)
    if not isinstance(norm, NORMS) or norm.running_var is None:
        return False
    layer = called(source(node), modules)
    return isinstance(layer, FOLDING) and "weight" in layer._parameters
