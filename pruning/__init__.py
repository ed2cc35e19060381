"""Pruning: criteria, lookahead above all, on a layer graph that is found by itself."""

from pruning.channels import PruneChannels
from pruning.criteria import CRITERIA
from pruning.graph import Layer, layer_graph
from pruning.prune import Prune
from pruning.schedules import SCHEDULES
from pruning.sparsify import Pruner, Sparsify

__all__ = ["CRITERIA", "SCHEDULES", "Layer", "Prune", "PruneChannels", "Pruner", "Sparsify", "layer_graph"]
