"""`PruneChannels`: a model in, a narrower one out, which a dense runtime runs faster."""

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
OUTPUTS = (  # of a group's layers, those whose outputs the channels are; a depthwise convolution's are both
    torch_pruning.prune_conv_out_channels,
    torch_pruning.prune_linear_out_channels,
    torch_pruning.prune_depthwise_conv_out_channels,
)
INPUTS = (
    torch_pruning.prune_conv_in_channels,
    torch_pruning.prune_linear_in_channels,
    torch_pruning.prune_depthwise_conv_in_channels,
)
LEFT = 0.1  # of the channels that go together, at least


@dataclass(frozen=True)
class PruneChannels(Step, Training):
    """Take out whole channels, the least important first, then train on: `base.then(PruneChannels(macs=0.5))`.

    Channels that a residual addition ties together go together; the library torch-pruning finds those groups (Fang et
    al., "DepGraph", CVPR 2023). A channel's importance is the mean over its group of the layers' own, each layer's
    scaled to a mean of one.

    macs: share of the multiply-accumulates to keep, 0 < macs < 1.
    criterion: "magnitude" (sum of squares of the weights that make the channel; Li et al., ICLR 2017), "lookahead"
        (sum of their lookahead scores) or "batchnorm" (size of its batch norm scale; Liu et al., ICCV 2017).
    multiple: each layer keeps a multiple of so many channels, since runtimes compute them in blocks of 8 or 16: with
        others they fall back on slower products, and a network of half the work can take twice the time.
    """

    letter: ClassVar[str] = "P"
    kind: ClassVar[str] = "pruned"
    forbids: ClassVar[dict[str, str]] = {
        "integers": "its weights are integers; prune first",
        "members": "narrow its members, and make an ensemble of those",
        "zeros": "it would not keep the zeros; narrow first",
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
            raise StepError(f"macs is the share to keep, above 0 and below 1, not {self.macs!r}: write 0.5 for half")
        if self.criterion not in CHANNEL_CRITERIA:
            raise StepError(f"unknown criterion {self.criterion!r}: use one of {', '.join(CHANNEL_CRITERIA)}")
        check_whole("multiple", self.multiple)
        self.check_training()
        check_teacher(self)

    def words(self) -> list[str]:
        return [f"channels pruned to {100 * self.macs:g} % of the MACs"]

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        assert model is not None  # `check_after` saw to it
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
    """Channels that may go, each with all that is tied to it: their importance, and how many go at a time."""

    importance: list[float]
    block: int


def narrow(model: nn.Module, importance: Importance, macs: float, multiple: int = 1) -> nn.Module:
    """A copy of `model` without its least important channels, with so large a share of its multiply-accumulates.

    `importance` gives the outputs of each layer by name, `[O]`. The network's own outputs stay, and in each group a
    share `LEFT` of the channels, their number rounded up to a multiple. What cannot be followed stays whole, too.

    Raises:
        StepError: the groups cannot be found, or so few multiply-accumulates cannot be reached.
    """
    groups = _groups(model, importance)
    scores = [(score, name, i) for name, group in groups.items() for i, score in enumerate(group.importance)]
    ranked = sorted(score for score in scores if score[0] < math.inf)

    def without(count: int) -> nn.Module:
        gone: dict[str, list[int]] = {name: [] for name in groups}
        for _, name, channel in ranked[:count]:
            gone[name].append(channel)
        return _cut(model, {name: gone[name][: _may_go(groups[name], len(gone[name]), multiple)] for name in gone})

    target = macs * cost(model)["macs"]
    least, most = 0, len(ranked)  # channels that would go by their rank: too few, enough
    if _macs(without(most)) > target:
        raise StepError(
            f"{macs:.0%} of the multiply-accumulates cannot be reached with a tenth of each layer's channels, "
            f"and a multiple of {multiple} of them, left: keep more, or lower multiple"
        )
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if _macs(without(middle)) <= target else (middle, most)
    return without(most)


def _macs(model: nn.Module) -> int:
    try:
        return cost(model)["macs"]
    except Exception as error:  # whatever the model's own code raises
        raise StepError(f"the network does not run with fewer channels ({error})") from error


def _may_go(group: Group, wanted: int, multiple: int) -> int:
    """How many of a group's channels go where `wanted` would."""
    channels, multiple = len(group.importance), math.lcm(multiple, group.block)
    left = max(channels - wanted, math.ceil(LEFT * channels))
    return max(0, channels - multiple * math.ceil(left / multiple))


def _groups(model: nn.Module, importance: Importance) -> dict[str, Group]:
    """The groups that may lose channels, by the name of the layer that stands for each.

    Those that torch-pruning finds, where the layer graph has each channel tied to the same others, and to none of the
    network's outputs. A channel without any importance stays: by batch norm, what has none behind it.
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
            for part in parts:  # its best channels stay: of a concatenation, each layer keeps some
                best = part[int(mean[part].argmax())] // block * block
                mean[best : best + block] = math.inf
            found[names[group[0].dep.layer]] = Group(mean.tolist(), block)
    return found


def _block(group: Dependents) -> int | None:
    """How many channels go at a time: whole groups of group norm, so that others keep their mean and variance.

    None where they cannot go: of a convolution in groups, all would have to lose as many.
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
    """Whether the layer graph ties each of a group's channels, told apart by its number in the first layer, likewise.

    Layers that share their weight, or whose weight is computed from others, stand in no graph.
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
    """A copy of the model without these channels of these layers' outputs."""
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
    except Exception as error:  # whatever the model's own code or the tracing of its gradients raises
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
            "the criterion batchnorm reads the scales of batch norms, and the network has none: take magnitude or "
            "lookahead"
        )
    return found


def _norm_scales(layer: Layer, graph: dict[str, Layer]) -> torch.Tensor | None:
    """The scales of the batch norm behind a layer; or else, by channel, the largest of those in front of its readers.

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
