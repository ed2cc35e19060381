"""Pruning of weights and channels, by lookahead and other criteria, on an automatically found layer graph."""

from pruning.channels import PruneChannels
from pruning.criteria import CRITERIA
from pruning.graph import Layer, layer_graph
from pruning.prune import Prune
from pruning.schedules import SCHEDULES
from pruning.sparsify import Pruner, Sparsify

__all__ = ["CRITERIA", "SCHEDULES", "Layer", "Prune", "PruneChannels", "Pruner", "Sparsify", "layer_graph"]
