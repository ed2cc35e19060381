"""Quantization-aware training with learned step sizes (Esser et al., "Learned step size quantization", ICLR 2020).

Fake quantizers are placed where the deployed model has quantizers. Weights have one step per output channel. Batch norm
is kept during the training and folded into those steps at the end, so that exactly the trained integers are deployed.
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

FREEZE = 0.95  # share of the training after which batch norm statistics freeze: earlier, low bit widths may diverge
SMALLEST_STEP = 1e-6
LARGEST_BIAS = 2**31 - 1  # in steps: the runtime adds it to a 32-bit accumulator


class FakeQuantize(torch.autograd.Function):
    """`scale * round(x / scale)`, clipped to the levels `low..high`, with the paper's gradients for x and scale.

    The gradient of x passes through if x is within the levels; that of a step is scaled by 1/sqrt(values * high).
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
        if scale.ndim == 0:  # an activation: takes most of the training time, so it makes few passes over memory
            passed = torch.ops.aten.hardtanh_backward(gradient, x, low * scale.item(), high * scale.item())
            of_scale = _dot(gradient, rounded) - _dot(passed, x)
        else:
            passed = gradient * ((x >= low * scale) & (x <= high * scale))
            terms = (gradient * rounded).sub_(passed * x)
            of_scale = terms.sum(dim=[d for d, n in enumerate(scale.shape) if n == 1], keepdim=True)
        per_step = x.numel() / scale.numel()
        return passed, of_scale / (scale * math.sqrt(per_step * max(high, 1))), None, None


def _dot(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    """Return the dot product of two tensors, read in memory order."""
    order = sorted(range(a.ndim), key=a.stride, reverse=True)
    return torch.dot(*(tensor.permute(order).reshape(-1) for tensor in (a, b)))


class _FakeWeight(nn.Module):
    """A layer whose forward pass rounds its float weight. Weights that are zero, as after pruning, stay zero."""

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
    """Rounds an activation to 256 levels with a learned step; the zero point is that of the calibration."""

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
    """Return a trainable form of a float `model`, with fake quantizers where its integer form will have quantizers.

    `bits` are those of each layer's weight, by name. Nothing is rounded before `start`.
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
    """Start rounding: weights with the steps of least error, activations with those of the integer model `calibrated`.

    A training that resumes from a checkpoint already has its steps, and needs only `enable`.
    """
    for name, module in trained.named_modules():
        if isinstance(module, _FakeWeight):
            module.weight_scale.copy_(best_scale(module.weight.cpu(), module.bits))
        elif isinstance(module, FakeQuantizer):
            _copy_range(_quantizer(calibrated, name), module)
    enable(trained)


def enable(trained: nn.Module) -> None:
    """Round weights and activations in every forward pass."""
    for module in trained.modules():
        if isinstance(module, _FakeWeight | FakeQuantizer):
            module.enabled = True


def before_epoch(model: nn.Module, done: float) -> None:
    """Update the masks of zero weights and store the current steps; `done` is the training's progress, 0..1."""
    for module in model.modules():
        if isinstance(module, _FakeWeight):
            module.mask = module.weight.detach() != 0
        if isinstance(module, _FakeWeight | FakeQuantizer):
            module.earlier_step = module.step.detach().clone().clamp_(min=SMALLEST_STEP)
    _freeze(model, done)


def _freeze(model: nn.Module, done: float) -> None:
    """Freeze the batch norm statistics late in the training: they are the ones that will be folded."""
    for module in model.modules() if done >= FREEZE else ():
        if isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d):
            module.eval()


@torch.no_grad()
def after_step(model: nn.Module, done: float) -> None:
    """Keep steps above zero, and freeze batch norm late in the training, possibly within an epoch.

    A step that an update takes to zero or below is reset to its value at the start of the epoch. Clamping it to the
    smallest step would round its layer to almost nothing, by which batch norm then divides. Gradients are that large
    only with few images, and hence few updates before the rounding starts.
    """
    _freeze(model, done)
    for module in model.modules():
        if isinstance(module, _FakeWeight | FakeQuantizer):
            step = module.step
            step.copy_(torch.where(step < SMALLEST_STEP, module.get_buffer("earlier_step"), step))


@torch.no_grad()
def finish(trained: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """Return the integer model of a trained one: the same integers, with batch norm folded into scales and biases.

    Scales are rounded to bfloat16, an error of at most 1/256: as float32 they would be a fifth of a small model's
    archive. `model` is the float model that `trained` was prepared from; its weights are overwritten.

    Raises:
        TrainingDiverged: the steps of a layer became so small that its biases exceed the runtime's 32-bit integers.
    """
    trained = trained.cpu()
    values = model.cpu().state_dict()  # includes modules that the forward pass does not call
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
    """Raise TrainingDiverged if none of a layer's biases fits in 32 bits. Single channels get a larger step instead."""
    tensors = integer.state_dict()
    for bias, scales in bias_steps(integer).items():
        steps = (tensors[bias] / (tensors[scales[0]] * tensors[scales[1]])).abs()
        if not bool(tensors[bias].isfinite().all()) or bool((steps > LARGEST_BIAS).all()):
            raise TrainingDiverged(
                f"the steps of quantization-aware training diverged: {bias} is {float(steps.max()):.0e} of them, more "
                "than 32 bits hold; lower learning_rate, or train the network for longer before"
            )


def _quantizer(model: nn.Module, name: str) -> Quantizer | FakeQuantizer:
    quantizer = model.get_submodule(name)
    assert isinstance(quantizer, Quantizer | FakeQuantizer)
    return quantizer


def _copy_range(source: Quantizer | FakeQuantizer, quantizer: Quantizer | FakeQuantizer) -> None:
    quantizer.scale.copy_(source.scale)
    quantizer.zero_point.copy_(source.zero_point)


def _norms(traced: fx.GraphModule) -> dict[str, nn.BatchNorm2d | nn.BatchNorm1d]:
    """Return the batch norm that will be folded into each layer, by the layer's name."""
    modules = dict(traced.named_modules())
    found = {str(source(node).target): called(node, modules) for node in folding_norms(traced)}
    return {name: norm for name, norm in found.items() if isinstance(norm, nn.BatchNorm2d | nn.BatchNorm1d)}
