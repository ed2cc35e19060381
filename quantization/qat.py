"""Quantization-aware training: fake quantizers where the deployed model has its own, and steps that are learned.

Esser et al., "Learned step size quantization", ICLR 2020. Weights have a step per output channel; batch norm stays in
the training, and is folded into those steps at the end, so that the integers that were trained are those deployed.
"""

import copy
import math

import torch
from torch import fx, nn

from models import set_spec, spec_of
from models.folding import folding_norms
from models.operators import called, integer_layers, source, trace
from models.placement import place_quantizers, ready_for_quantizers
from models.quantized import Quantizer, bias_steps, by_channel, geometry, insert_quantizers, round_biases
from quantization.weights import Bits, best_scale, levels, round_weight
from training import TrainingDiverged

FREEZE = 0.95  # share of the training after which batch norm keeps its statistics: at a higher rate few bits diverge
SMALLEST_STEP = 1e-6
LARGEST_BIAS = 2**31 - 1  # in steps: the runtime adds it to a sum of 32 bits


class FakeQuantize(torch.autograd.Function):
    """`scale * round(x / scale)` within `low..high`, with the gradients of the paper for x and scale.

    The gradient of x passes where x is within the levels; that of a step is scaled by 1/sqrt(values * high).
    """

    @staticmethod
    def forward(ctx, x: torch.Tensor, scale: torch.Tensor, low: int, high: int) -> torch.Tensor:
        rounded = (x / scale).round_().clamp_(low, high).mul_(scale)
        ctx.save_for_backward(x, rounded, scale)
        ctx.levels = low, high
        return rounded

    @staticmethod
    def backward(ctx, gradient: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, None, None]:
        x, rounded, scale = ctx.saved_tensors
        low, high = ctx.levels
        # d rounded / d scale is round(x / scale) - x / scale within the levels and the level itself beyond them.
        if scale.ndim == 0:  # an activation: most of a training's time goes here, so as few passes as there can be
            passed = torch.ops.aten.hardtanh_backward(gradient, x, low * scale.item(), high * scale.item())
            of_scale = _dot(gradient, rounded) - _dot(passed, x)
        else:
            passed = gradient * ((x >= low * scale) & (x <= high * scale))
            terms = (gradient * rounded).sub_(passed * x)
            of_scale = terms.sum(dim=[d for d, n in enumerate(scale.shape) if n == 1], keepdim=True)
        per_step = x.numel() / scale.numel()
        return passed, of_scale / (scale * math.sqrt(per_step * max(high, 1))), None, None


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """The sum of products of two tensors, read in the order in which they lie in memory."""
    order = sorted(range(a.ndim), key=a.stride, reverse=True)
    return torch.dot(*(tensor.permute(order).reshape(-1) for tensor in (a, b)))


class _FakeWeight(nn.Module):
    """A float weight, seen rounded to few bits; what is zero when the training starts stays zero (a pruned weight)."""

    weight: torch.Tensor
    mask: torch.Tensor

    def take(self, layer: nn.Conv2d | nn.Linear, bits: Bits) -> None:
        self.bits = bits
        self.weight = layer.weight
        self.register_buffer("mask", layer.weight.detach() != 0, persistent=False)
        self.weight_scale = nn.Parameter(torch.ones(len(layer.weight)))
        self.register_buffer("earlier_step", torch.ones(len(layer.weight)), persistent=False)
        self.enabled = False

    @property
    def step(self) -> nn.Parameter:
        """Steps `[O]`, one per output channel."""
        return self.weight_scale

    def rounded(self) -> torch.Tensor:
        if not self.enabled:
            return self.weight
        step = by_channel(self.weight_scale, self.weight)
        return FakeQuantize.apply(self.weight * self.mask, step, *levels(self.bits))


class FakeQuantizedConv2d(_FakeWeight, nn.Conv2d):
    """A convolution in quantization-aware training."""

    def __init__(self, layer: nn.Conv2d, bits: Bits):
        super().__init__(**geometry(layer))
        self.take(layer, bits)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self._conv_forward(x, self.rounded(), self.bias)


class FakeQuantizedLinear(_FakeWeight, nn.Linear):
    """A linear layer in quantization-aware training."""

    def __init__(self, layer: nn.Linear, bits: Bits):
        super().__init__(layer.in_features, layer.out_features, bias=layer.bias is not None)
        self.take(layer, bits)
        self.bias = layer.bias

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return nn.functional.linear(x, self.rounded(), self.bias)


class FakeQuantizer(nn.Module):
    """An activation rounded to 256 levels with a learned step, its zero point that of the calibration."""

    zero_point: torch.Tensor

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("zero_point", torch.zeros((), dtype=torch.uint8))
        self.register_buffer("earlier_step", torch.ones(()), persistent=False)
        self.enabled = False

    @property
    def step(self) -> nn.Parameter:
        return self.scale

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if not self.enabled:
            return x
        zero = int(self.zero_point)
        return FakeQuantize.apply(x.float(), self.scale, -zero, 255 - zero)


def prepare(model: nn.Module, bits: dict[str, Bits]) -> fx.GraphModule:
    """A trainable form of a float `model`, with fake quantizers where its integer form will have quantizers.

    `bits` gives those of each layer's weight by name. Nothing is rounded before `start`.
    """
    traced = ready_for_quantizers(trace(copy.deepcopy(model).cpu()))
    for name, layer in integer_layers(traced).items():
        if isinstance(layer, nn.Linear):
            traced.set_submodule(name, FakeQuantizedLinear(layer, bits[name]))
        else:
            traced.set_submodule(name, FakeQuantizedConv2d(layer, bits[name]))
    place_quantizers(traced, FakeQuantizer)
    set_spec(traced, spec_of(model))
    return traced


@torch.no_grad()
def start(trained: nn.Module, calibrated: nn.Module) -> None:
    """Round from here on: weights in the steps of least error, activations in those of `calibrated`, an integer model.

    A training that goes on from a checkpoint has its steps already, and needs `enable` alone.
    """
    for name, module in trained.named_modules():
        if isinstance(module, _FakeWeight):
            module.weight_scale.copy_(best_scale(module.weight.cpu(), module.bits))
        elif isinstance(module, FakeQuantizer):
            _copy_range(_quantizer(calibrated, name), module)
    enable(trained)


def enable(trained: nn.Module) -> None:
    """Round weights and activations in every forward."""
    for module in trained.modules():
        if isinstance(module, _FakeWeight | FakeQuantizer):
            module.enabled = True


def before_epoch(model: nn.Module, done: float) -> None:
    """Take up the zeros and the steps that there are; `done` is the share of the training that is."""
    for module in model.modules():
        if isinstance(module, _FakeWeight):
            module.mask = module.weight.detach() != 0
        if isinstance(module, _FakeWeight | FakeQuantizer):
            module.earlier_step = module.step.detach().clone().clamp_(min=SMALLEST_STEP)
    _freeze(model, done)


def _freeze(model: nn.Module, done: float) -> None:
    """Late in the training batch norm keeps the statistics that it will be folded with."""
    for module in model.modules() if done >= FREEZE else ():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.eval()


@torch.no_grad()
def after_step(model: nn.Module, done: float) -> None:
    """No step may reach zero, and late in the training batch norm freezes, within an epoch too.

    A step that an update takes to zero or below goes back to what it was when the epoch began. At the smallest step it
    would round its layer to nothing, which batch norm then divides by: few images, and hence few updates before the
    rounding starts, have gradients that are that large.
    """
    _freeze(model, done)
    for module in model.modules():
        if isinstance(module, _FakeWeight | FakeQuantizer):
            step = module.step
            step.copy_(torch.where(step < SMALLEST_STEP, module.get_buffer("earlier_step"), step))


@torch.no_grad()
def finish(trained: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """The integer model of a trained one: the very integers, batch norm folded into their scales and the biases.

    The scales end rounded to bfloat16, off by 1/256 at most: in full they would be a fifth of a small model's archive.
    `model` is the float model that `trained` was prepared from; its weights are overwritten.

    Raises:
        TrainingDiverged: the steps of a layer became so small that its biases are beyond what the runtime can add.
    """
    trained = trained.cpu()
    values = model.cpu().state_dict()  # also of what no forward calls
    values.update({name: tensor for name, tensor in trained.state_dict().items() if name in values})
    model.load_state_dict(values)
    norms = _norms(trained)

    def rounding(name: str, layer: nn.Conv2d | nn.Linear) -> tuple[torch.Tensor, torch.Tensor]:
        fake = trained.get_submodule(name)
        assert isinstance(fake, _FakeWeight)
        integers, scale = round_weight(fake.weight * fake.mask, fake.weight_scale, fake.bits), fake.weight_scale.data
        if name in norms:
            norm = norms[name]
            deviation = torch.sqrt(norm.get_buffer("running_var") + norm.eps)
            factor = (1.0 if norm.weight is None else norm.weight) / deviation
            integers = integers * by_channel(torch.sign(factor), integers).to(torch.int8)
            scale = torch.where(factor == 0, 1.0, scale * factor.abs())
        return integers, scale.bfloat16().float()

    integer = insert_quantizers(model, rounding)
    for name, quantizer in integer.named_modules():
        if isinstance(quantizer, Quantizer):
            _copy_range(_quantizer(trained, name), quantizer)
    _check_biases(integer)
    round_biases(integer)
    return integer


def _check_biases(integer: fx.GraphModule) -> None:
    """A channel may be nearly dead, and gets a larger step; a layer of which all are was lost in the training."""
    tensors = integer.state_dict()
    for bias, scales in bias_steps(integer).items():
        steps = (tensors[bias] / (tensors[scales[0]] * tensors[scales[1]])).abs()
        if not bool(tensors[bias].isfinite().all()) or bool((steps > LARGEST_BIAS).all()):
            raise TrainingDiverged(
                f"the steps of quantization-aware training went astray: {bias} is {float(steps.max()):.0e} of them, "
                "more than 32 bits hold; lower learning_rate, or train the network for longer before"
            )


def _quantizer(model: nn.Module, name: str) -> Quantizer | FakeQuantizer:
    quantizer = model.get_submodule(name)
    assert isinstance(quantizer, Quantizer | FakeQuantizer)
    return quantizer


def _copy_range(source: Quantizer | FakeQuantizer, quantizer: Quantizer | FakeQuantizer) -> None:
    quantizer.scale.copy_(source.scale)
    quantizer.zero_point.copy_(source.zero_point)


def _norms(traced: fx.GraphModule) -> dict[str, nn.BatchNorm2d | nn.BatchNorm1d]:
    """The batch norm that will be folded into each layer, by the layer's name."""
    modules = dict(traced.named_modules())
    found = {str(source(node).target): called(node, modules) for node in folding_norms(traced)}
    return {name: norm for name, norm in found.items() if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d)}
