"""`PruneChannels`: a model in, a narrower one out, which a dense runtime runs faster."""

import copy
import math
from collections.abc import Callable
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar

import torch
import torch_pruning
from torch import nn

from distillation import check_teaching, guided_loss
from distillation.ensemble import check_teacher
from measurement import cost
from models import channel_table, set_spec, spec_of
from pruning.criteria import lookahead
from pruning.graph import layer_graph
from recipe import Recipe, Step, StepError, Training, check_whole, is_number
from training import Context, fit, round_weights

Importance = dict[str, torch.Tensor]
LAYERS = (nn.Conv2d, nn.Linear)
OUTPUTS = (  # of a group's layers, those whose outputs the channels are; a depthwise convolution's are both
    torch_pruning.prune_conv_out_channels,
    torch_pruning.prune_linear_out_channels,
    torch_pruning.prune_depthwise_conv_out_channels,
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
        check_teaching(self.temperature, self.alpha)
        check_teacher(self)

    def words(self) -> list[str]:
        return [f"channels pruned to {100 * self.macs:g} % of the MACs"]

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        assert model is not None  # `check_after` saw to it
        model = model.cpu().eval()
        model = narrow(model, CHANNEL_CRITERIA[self.criterion](model, context), self.macs, self.multiple)
        set_spec(model, spec_of(model) | {"channels": channel_table(model)})
        fit(
            model,
            context,
            self,
            loss=guided_loss(self, context),
            title=f"{self.macs:.0%} of the MACs on {context.dataset.name}, seed {context.seed}",
        )
        return round_weights(model)


def narrow(model: nn.Module, importance: Importance, macs: float, multiple: int = 1) -> nn.Module:
    """A copy of `model` without its least important channels, with so large a share of its multiply-accumulates.

    `importance` gives the outputs of each layer by name, `[O]`. The network's own outputs stay, and in each group a
    share `LEFT` of the channels, their number rounded up to a multiple.

    Raises:
        StepError: the groups cannot be found, or so few multiply-accumulates cannot be reached.
    """
    groups = _groups(model, importance)
    ranked = sorted((score, name, channel) for name, scores in groups.items() for channel, score in enumerate(scores))

    def without(count: int) -> nn.Module:
        gone: dict[str, list[int]] = {name: [] for name in groups}
        for _, name, channel in ranked[:count]:
            gone[name].append(channel)
        return _cut(model, {name: gone[name][: _may_go(len(groups[name]), len(gone[name]), multiple)] for name in gone})

    target = macs * cost(model)["macs"]
    least, most = 0, len(ranked)  # channels that would go by their rank: too few, enough
    if cost(without(most))["macs"] > target:
        raise StepError(
            f"{macs:.0%} of the multiply-accumulates cannot be reached with a tenth of each layer's channels, "
            f"and a multiple of {multiple} of them, left: keep more, or lower multiple"
        )
    while most - least > 1:
        middle = (least + most) // 2
        least, most = (least, middle) if cost(without(middle))["macs"] <= target else (middle, most)
    return without(most)


def _may_go(channels: int, wanted: int, multiple: int) -> int:
    """How many of a group's channels go where `wanted` would."""
    left = max(channels - wanted, math.ceil(LEFT * channels))
    return max(0, channels - multiple * math.ceil(left / multiple))


def _groups(model: nn.Module, importance: Importance) -> dict[str, list[float]]:
    """The importance of the channels of each group that may lose some, by the name of the layer that stands for it."""
    names = {module: name for name, module in model.named_modules()}
    last = [module for module in model.modules() if isinstance(module, nn.Linear)][-1:]
    found = {}
    for group in _dependencies(model).get_all_groups(ignored_layers=last, root_module_types=LAYERS):
        layers = [item.dep.layer for item in group]
        if any(isinstance(m, nn.Conv2d) and m.groups not in (1, m.in_channels) for m in layers):
            continue  # all of a convolution's groups would have to lose as many
        total, makers = torch.zeros(len(group[0].idxs), dtype=torch.float64), 0
        for item in group:
            name = names.get(item.dep.layer)
            if item.dep.pruning_fn in OUTPUTS and name in importance:
                own = importance[name].double()[item.idxs]
                total.index_add_(0, torch.tensor(item.root_idxs), own / own.mean().clamp(min=1e-30))
                makers += 1
        found[names[layers[0]]] = (total / max(makers, 1)).tolist()
    return found


def _cut(model: nn.Module, channels: dict[str, list[int]]) -> nn.Module:
    """A copy of the model without these channels of these layers' outputs."""
    model = copy.deepcopy(model)
    graph = _dependencies(model)
    for name, indices in channels.items():
        if indices:
            layer = model.get_submodule(name)
            prune = graph.get_pruner_of_module(layer).prune_out_channels
            graph.get_pruning_group(layer, prune, sorted(indices)).prune()
    return model


def _dependencies(model: nn.Module) -> torch_pruning.DependencyGraph:
    example = torch.zeros(1, *spec_of(model)["shape"])
    try:
        return torch_pruning.DependencyGraph().build_dependency(model, example_inputs=example, verbose=False)
    except Exception as error:  # whatever the model's own code or the tracing of its gradients raises
        raise StepError(f"the groups of channels cannot be found ({error})") from error


def _magnitude(model: nn.Module, context: Context) -> Importance:
    return {name: layer.module.weight.detach().square().flatten(1).sum(1) for name, layer in layer_graph(model).items()}


def _lookahead(model: nn.Module, context: Context) -> Importance:
    return {name: scores.flatten(1).sum(1) for name, scores in lookahead(model, layer_graph(model), context).items()}


def _batchnorm(model: nn.Module, context: Context) -> Importance:
    graph = layer_graph(model)
    return {name: layer.norm.weight.detach().abs() for name, layer in graph.items() if layer.norm is not None}


CHANNEL_CRITERIA: dict[str, Callable[[nn.Module, Context], Importance]] = {
    "magnitude": _magnitude,
    "lookahead": _lookahead,
    "batchnorm": _batchnorm,
}
