"""`PruneChannels`: removes channels, which gives a narrower model that dense runtimes run faster."""

import copy
import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
import torch_pruning
from torch import nn
from torch_pruning.dependency import Group as Dependents

from distillation import guided_loss
from distillation.ensemble import check_teacher
from measurement import cost
from models import channel_table, set_spec, spec_of, with_done
from pruning.criteria import lookahead
from pruning.graph import LAYERS, Layer, inputs_of, layer_graph, layers_of
from recipe import Recipe, Step, StepError, Training, check_whole, is_number
from training import Context, fit, round_weights

Importance = dict[str, torch.Tensor]
OUTPUTS = (  # functions for layers whose output channels are pruned; a depthwise convolution is in both
    torch_pruning.prune_conv_out_channels,
    torch_pruning.prune_linear_out_channels,
    torch_pruning.prune_depthwise_conv_out_channels,
)
INPUTS = (
    torch_pruning.prune_conv_in_channels,
    torch_pruning.prune_linear_in_channels,
    torch_pruning.prune_depthwise_conv_in_channels,
)
LEFT = 0.1  # smallest share of a group's channels to keep


@dataclass(frozen=True)
class PruneChannels(Step, Training):
    """Remove whole channels, the least important first, then continue training: `base.then(PruneChannels(macs=0.5))`.

    Channels tied by residual additions are removed together; the library torch-pruning finds these groups (Fang et al.,
    "DepGraph", CVPR 2023). A channel's importance is the mean of its scores in the layers of its group, after each
    layer's scores are scaled to a mean of one.

    macs: share of the multiply-accumulates to keep, 0 < macs < 1.
    criterion: "magnitude" (sum of squares of the weights that produce the channel; Li et al., ICLR 2017), "lookahead"
        (sum of their lookahead scores) or "batchnorm" (absolute batch norm scale; Liu et al., ICCV 2017).
    multiple: each layer keeps a multiple of this number of channels. Runtimes compute channels in blocks of 8 or 16;
        with other numbers they use slower products, and a network with half the work can take twice the time.
    """

    letter: ClassVar[str] = "P"
    kind: ClassVar[str] = "pruned"
    forbids: ClassVar[dict[str, str]] = {
        "integers": "its weights are integers; prune first",
        "members": "prune the channels of its members, and make an ensemble of those",
        "zeros": "it would not keep the zeros; prune channels first",
    }

    macs: float = 0.5
    criterion: str = "lookahead"
    multiple: int = 8
    _: KW_ONLY
    epochs: int = 5
    learning_rate: float = 0.05
    teacher: Recipe | None = None
    temperature: float = 4.0
    alpha: float = 0.9

    def check(self) -> None:
        if not (is_number(self.macs) and 0 < self.macs < 1):
            raise StepError(f"macs is the share to keep, between 0 and 1, not {self.macs!r}: write 0.5 for half")
        if self.criterion not in CHANNEL_CRITERIA:
            raise StepError(f"unknown criterion {self.criterion!r}: use one of {', '.join(CHANNEL_CRITERIA)}")
        check_whole("multiple", self.multiple)
        self.check_training()
        check_teacher(self)

    def words(self) -> list[str]:
        return [f"channels pruned to {100 * self.macs:g} % of the MACs"]

    def taught_by(self, before: Recipe | None) -> tuple[Recipe, ...]:
        return () if self.teacher is None else (self.teacher,)

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        assert model is not None  # ensured by `check_after`
        model = model.cpu().eval()
        model = narrow(model, CHANNEL_CRITERIA[self.criterion](model, context), self.macs, self.multiple)
        set_spec(model, with_done(spec_of(model), "channels", channel_table(model)))
        fit(
            model,
            context,
            self,
            loss=guided_loss(self, context),
            title=f"{self.macs:.0%} of the MACs on {context.dataset.name}, seed {context.seed}",
        )
        return round_weights(model)


@dataclass(frozen=True)
class Group:
    """Channels that can be removed with everything tied to them: their importance, and how many go at a time."""

    importance: list[float]
    block: int


def narrow(model: nn.Module, importance: Importance, macs: float, multiple: int = 1) -> nn.Module:
    """Return a copy of `model` without its least important channels, with a share `macs` of its multiply-accumulates.

    `importance` is that of each layer's output channels, `[O]`, by the layer's name. The network's outputs are kept,
    and at least a share `LEFT` of each group, rounded up to a multiple. Layers that cannot be followed stay unchanged.

    Raises:
        StepError: the groups cannot be found, or `macs` cannot be reached.
    """
    groups = _groups(model, importance)
    scores = [(score, name, i) for name, group in groups.items() for i, score in enumerate(group.importance)]
    ranked = sorted(score for score in scores if score[0] < math.inf)

    def without(count: int) -> nn.Module:
        removed: dict[str, list[int]] = {name: [] for name in groups}
        for _, name, channel in ranked[:count]:
            removed[name].append(channel)
        return _cut(model, {name: own[: _removable(groups[name], len(own), multiple)] for name, own in removed.items()})

    target = macs * cost(model)["macs"]
    least, most = 0, len(ranked)  # bisect the number of channels to remove: `least` are too few, `most` are enough
    if _macs(without(most)) > target:
        raise StepError(
            f"{macs:.3%} of the multiply-accumulates cannot be reached, since each layer keeps a tenth of its channels "
            f"and a multiple of {multiple}: raise macs, or lower multiple"
        )
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if _macs(without(middle)) <= target else (middle, most)
    return without(most)


def _macs(model: nn.Module) -> int:
    try:
        return cost(model)["macs"]
    except Exception as error:  # the model's own code may raise anything
        raise StepError(f"the network does not run with fewer channels ({error})") from error


def _removable(group: Group, wanted: int, multiple: int) -> int:
    """Return how many of a group's channels to remove if `wanted` are unimportant."""
    channels, multiple = len(group.importance), math.lcm(multiple, group.block)
    left = max(channels - wanted, math.ceil(LEFT * channels))
    return max(0, channels - multiple * math.ceil(left / multiple))


def _groups(model: nn.Module, importance: Importance) -> dict[str, Group]:
    """Return the groups of channels that can be removed, each by the name of one of its layers.

    These are the groups found by torch-pruning for which the layer graph ties each channel to the same others, and to
    none of the network's outputs. Channels without an importance are kept, such as those without batch norm if that is
    the criterion.
    """
    names, graph = {module: name for name, module in model.named_modules()}, layer_graph(model, to_cut=True)
    found = {}
    for group in _dependencies(model).get_all_groups(root_module_types=LAYERS):
        block = _block(group)
        if block is None or not _follows(group, graph, names):
            continue
        total, makers = torch.zeros(len(group[0].idxs), dtype=torch.float64), 0
        parts = []
        for item in group:
            name = names.get(item.dep.layer)
            if item.dep.pruning_fn in OUTPUTS and name in importance:
                own = importance[name].double()[item.idxs]
                total.index_add_(0, torch.tensor(item.root_idxs), own / own.mean().clamp(min=1e-30))
                makers += 1
                parts += [item.root_idxs] if len(own) < len(total) else []
        if makers:
            mean = (total / makers).reshape(-1, block).mean(1).repeat_interleave(block)
            for part in parts:  # each layer of a concatenation keeps its best channels
                best = part[int(mean[part].argmax())] // block * block
                mean[best : best + block] = math.inf
            found[names[group[0].dep.layer]] = Group(mean.tolist(), block)
    return found


def _block(group: Dependents) -> int | None:
    """Return how many channels must be removed at a time: whole groups of a group norm, so that the rest is unaffected.

    None if they cannot be removed: all groups of a grouped convolution would have to lose equally many.
    """
    block = 1
    for item in group:
        layer = item.dep.layer
        if isinstance(layer, nn.GroupNorm) and layer.num_groups > 1:
            size = layer.num_channels // layer.num_groups
            block = math.lcm(block, size)
            if any((own - root) % size for own, root in zip(item.idxs, item.root_idxs, strict=True)):
                return None
        elif getattr(layer, "groups", 1) > 1 and not layer.groups == layer.in_channels == layer.out_channels:
            return None
    return block if len(group[0].idxs) % block == 0 else None


def _follows(group: Dependents, graph: dict[str, Layer], names: dict[nn.Module, str]) -> bool:
    """Return whether the layer graph ties a group's channels in the same way, each numbered as in the first layer.

    False for layers that share a weight or compute it from others, since the graph does not contain them.
    """
    made = {name: torch.full([len(layer.module.weight)], -1) for name, layer in graph.items()}
    reads = {name: torch.full([inputs_of(layer.module)], -1) for name, layer in graph.items()}
    touched = {}
    for item in group:
        name = names.get(item.dep.layer, "")
        for functions, numbers in ((OUTPUTS, made), (INPUTS, reads)):
            if item.dep.pruning_fn in functions:
                if name not in graph or max(item.idxs) >= len(numbers[name]):
                    return False
                numbers[name][item.idxs] = torch.tensor(item.root_idxs)
                touched[name] = graph[name]
    for edge in (edge for layer in touched.values() for edge in (*layer.inputs, *layer.outputs)):
        channels = edge.channels.cpu()
        tied = made.get(str(edge.producer), torch.tensor([-1]))[channels[channels >= 0]]
        if not torch.equal(tied, reads.get(str(edge.consumer), torch.full([len(channels)], -1))[channels >= 0]):
            return False
    return True


def _cut(model: nn.Module, channels: dict[str, list[int]]) -> nn.Module:
    """Return a copy of the model without the given output channels of each layer."""
    cut = copy.deepcopy(model)
    graph = _dependencies(cut)
    for name, indices in channels.items():
        if indices:
            layer = cut.get_submodule(name)
            prune = graph.get_pruner_of_module(layer).prune_out_channels
            graph.get_pruning_group(layer, prune, sorted(indices)).prune()
    for module, whole in zip(cut.modules(), model.modules(), strict=True):
        if isinstance(module, nn.GroupNorm) and isinstance(whole, nn.GroupNorm):
            module.num_groups = module.num_channels * whole.num_groups // whole.num_channels
    return cut


def _dependencies(model: nn.Module) -> torch_pruning.DependencyGraph:
    example = (torch.zeros(1, *spec_of(model)["shape"]),)
    try:
        return torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example, verbose=False)
    except Exception as error:  # the model's own code and the tracing of its gradients may raise anything
        raise StepError(f"the groups of channels cannot be found ({error})") from error


def _magnitude(model: nn.Module, context: Context) -> Importance:
    return {name: layer.module.weight.detach().square().flatten(1).sum(1) for name, layer in layers_of(model).items()}


def _lookahead(model: nn.Module, context: Context) -> Importance:
    return {name: scores.flatten(1).sum(1) for name, scores in lookahead(model, layer_graph(model), context).items()}


def _batchnorm(model: nn.Module, context: Context) -> Importance:
    graph = layer_graph(model)
    found = {name: scales for name, layer in graph.items() if (scales := _norm_scales(layer, graph)) is not None}
    if not found:
        raise StepError(
            "the criterion batchnorm needs the scales of batch norms, and the network has none: use magnitude or "
            "lookahead"
        )
    return found


def _norm_scales(layer: Layer, graph: dict[str, Layer]) -> torch.Tensor | None:
    """Return the absolute scales of the batch norm after a layer, else the largest, per channel, before its readers.

    None if there is no batch norm with scales.
    """
    if layer.norm is not None and layer.norm.weight is not None:
        return layer.norm.weight.detach().abs()
    found = []
    for edge in layer.outputs:
        front = None if edge.consumer is None else graph[edge.consumer].front
        if front is not None and front.weight is not None:
            scales = front.weight.detach().abs().repeat_interleave(len(edge.channels) // front.num_features)
            found.append(edge.table(scales, len(layer.module.weight)).amax(1))
    return torch.stack(found).amax(0) if found else None


CHANNEL_CRITERIA: dict[str, Callable[[nn.Module, Context], Importance]] = {
    "magnitude": _magnitude,
    "lookahead": _lookahead,
    "batchnorm": _batchnorm,
}
