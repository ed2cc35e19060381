"""The one training loop: SGD with Nesterov momentum, one-cycle learning rate, bfloat16 where the hardware has it."""

import contextlib
import math
import time
from collections.abc import Callable

import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from data import Batch, Dataset, Split, batches, epoch_seed, normalize
from recipe import CompressionError, StepError
from training.context import Context

WARMUP = 0.2  # share of the training during which the learning rate rises
Loss = Callable[[torch.Tensor, Batch], torch.Tensor]
Hook = Callable[[float], None]


class TrainingDiverged(CompressionError):
    """A training whose loss or weights are no longer numbers, or whose result cannot be deployed; not to be kept."""


def fit(
    model: nn.Module,
    context: Context,
    *,
    epochs: int,
    learning_rate: float,
    batch_size: int,
    weight_decay: float,
    loss: Loss,
    views: int | None = None,
    before_epoch: Hook | None = None,
    after_step: Hook | None = None,
    title: str = "training",
) -> nn.Module:
    """Train `model` in place on `context.dataset.train`, and return it in evaluation mode.

    `loss` maps the logits `[B, classes]` (float32) and their batch to a scalar. After `views` epochs the batches of
    the first ones come again (None: every epoch has its own). `before_epoch` and `after_step` are called with the
    share of the training that is done by then: 0 before the first epoch, 1 after the last update. The state is kept
    after every epoch: a training that was killed goes on from there and, on the CPU, ends with the same weights bit
    for bit. Curves go to `context.log`.

    Raises:
        StepError: batch norm would be given a single value per channel, which has no variance.
        TrainingDiverged: the loss or a weight became NaN or infinite.
    """
    dataset, device = context.dataset, context.device
    model.to(device).to(memory_format=torch.channels_last)
    train, validation = dataset.train.to(device), dataset.validation.to(device)
    if min(batch_size, len(train)) == 1:
        _check_batch_norm(model, normalize(train.images[:1], dataset), batch_size)
    optimizer = _optimizer(model, learning_rate, weight_decay)
    curves = _resume(model, optimizer, context)
    per_epoch = max(1, len(train) // batch_size)
    total = epochs * per_epoch
    with tqdm(total=total, initial=len(curves) * per_epoch, desc=title, unit="batch", leave=False) as bar:
        for epoch in range(len(curves), epochs):
            started = time.perf_counter()
            torch.manual_seed(epoch_seed(context.seed, epoch))  # dropout and the like, the same after a resumption
            model.train()
            if before_epoch is not None:
                before_epoch(epoch / epochs)
            watch = _Watch(device)
            view = epoch % views if views else epoch
            for batch in batches(dataset, train, batch_size, seed=context.seed, epoch=view):
                done = epoch * per_epoch + batch.index
                rate = learning_rate * one_cycle(done / total)
                watch.add(batch, *_update(model, optimizer, rate, batch, loss))
                if after_step is not None:
                    after_step((done + 1) / total)
                if batch.index % 10 == 9 or batch.index == per_epoch - 1:
                    bar.update(done + 1 - bar.n)
                    bar.set_postfix(watch.summary(epoch, rate))
            seconds = time.perf_counter() - started
            _check_weights(model, epoch, rate)  # the last update shows in no loss
            own = {"validation_accuracy": evaluate(model, dataset, validation), "seconds": seconds}
            curves.append(watch.summary(epoch, rate) | own)
            _keep(model, optimizer, context, curves)
    seconds = sum(point["seconds"] for point in curves)
    context.log["curves"] = curves
    context.log["train_seconds"] = seconds
    context.log["images_per_second"] = total * min(batch_size, len(train)) / seconds
    context.log["precision"] = "bfloat16 autocast" if _has_bfloat16(device) else "float32"
    return model.eval()


@torch.no_grad()
def _check_batch_norm(model: nn.Module, image: torch.Tensor, batch_size: int) -> None:
    """Raise StepError if a batch norm is given one value per channel of a single image `[1, C, H, W]`."""
    alone: list[str] = []

    def see(name: str, values: torch.Tensor) -> None:
        if values.numel() == values.shape[1]:
            alone.append(name)

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: see(name, inputs[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    ]
    model.eval()(image)
    for hook in hooks:
        hook.remove()
    if alone:
        few = "batch_size=1" if batch_size == 1 else "a single training image"
        remedy = "set batch_size to at least 2" if batch_size == 1 else "add training images"
        raise StepError(
            f"{few} leaves one value per channel to batch norm ({alone[0]}), which has no variance: {remedy}, or take "
            "a network without batch norm there"
        )


def _check_weights(model: nn.Module, epoch: int, rate: float) -> None:
    if not all(bool(t.isfinite().all()) for t in model.state_dict().values() if t.is_floating_point()):
        raise TrainingDiverged(
            f"weights became infinite or no numbers in epoch {epoch + 1}: lower learning_rate (now {rate:.3g})"
        )


def _optimizer(model: nn.Module, learning_rate: float, weight_decay: float) -> torch.optim.SGD:
    """Biases and batch norm's two vectors are left out of weight decay, as is customary: they hold scales."""
    matrices = [p for p in model.parameters() if p.ndim > 1]
    vectors = [p for p in model.parameters() if p.ndim <= 1]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": vectors, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=learning_rate, momentum=0.9, nesterov=True)


def _update(
    model: nn.Module, optimizer: torch.optim.Optimizer, rate: float, batch: Batch, loss: Loss
) -> tuple[torch.Tensor, torch.Tensor]:
    """One step of the optimizer; the logits and the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = rate
    with autocast(batch.images.device):
        logits = model(batch.images.contiguous(memory_format=torch.channels_last)).float()
    value = loss(logits, batch)
    optimizer.zero_grad()
    value.backward()
    optimizer.step()
    return logits, value


def one_cycle(progress: float) -> float:
    """Learning rate, as a share of its peak, after `progress` (0..1) of the training: up and down along cosines.

    Smith and Topin, "Super-Convergence" (2019); the shape and end values are those of torch's OneCycleLR.
    """
    start, end = 1 / 25, 1 / 25e4
    if progress < WARMUP:
        return 1 - (1 - start) * (1 + math.cos(math.pi * progress / WARMUP)) / 2
    return end + (1 - end) * (1 + math.cos(math.pi * (progress - WARMUP) / (1 - WARMUP))) / 2


@torch.no_grad()
def evaluate(model: nn.Module, dataset: Dataset, split: Split, batch_size: int = 500) -> float:
    """Accuracy (0..1) of a model in memory. Reported accuracies come from the ONNX file instead: see measurement."""
    model.eval()
    device, correct = split.labels.device, 0
    for start in range(0, len(split), batch_size):
        images = normalize(split.images[start : start + batch_size], dataset)
        with autocast(device):
            logits = model(images.contiguous(memory_format=torch.channels_last))
        correct += (logits.argmax(1) == split.labels[start : start + batch_size]).sum().item()
    return correct / len(split)


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """bfloat16 where the hardware multiplies it natively; elsewhere it is emulated, ten times slower than float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=_has_bfloat16(device))


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class _Watch:
    """Running loss and training accuracy, read back from the device only when shown."""

    def __init__(self, device: torch.device):
        self.sums = torch.zeros(2, dtype=torch.float64, device=device)
        self.images = 0

    def add(self, batch: Batch, logits: torch.Tensor, value: torch.Tensor) -> None:
        correct = (logits.detach().argmax(1) == batch.labels).sum()
        self.sums += torch.stack([value.detach() * len(batch.labels), correct]).double()
        self.images += len(batch.labels)

    def summary(self, epoch: int, rate: float) -> dict:
        loss, accuracy = (self.sums / self.images).tolist()
        if not math.isfinite(loss):
            raise TrainingDiverged(
                f"the loss became {loss} in epoch {epoch + 1}: lower learning_rate (now {rate:.3g} after its warm-up)"
            )
        return {"epoch": epoch + 1, "loss": round(loss, 5), "accuracy": round(accuracy, 5)}


def _keep(model: nn.Module, optimizer: torch.optim.Optimizer, context: Context, curves: list[dict]) -> None:
    tensors = {f"model.{name}": tensor for name, tensor in model.state_dict().items()}
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        if "momentum_buffer" in optimizer.state[parameter]:  # not where there was no gradient yet
            tensors[f"momentum.{index}"] = optimizer.state[parameter]["momentum_buffer"]
    context.checkpoint.save(tensors, {"curves": curves})


def _resume(model: nn.Module, optimizer: torch.optim.Optimizer, context: Context) -> list[dict]:
    kept = context.checkpoint.load()
    if kept is None:
        return []
    tensors, state = kept
    own = {name.removeprefix("model."): tensor for name, tensor in tensors.items() if name.startswith("model.")}
    model.load_state_dict(own)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    for index, parameter in enumerate(parameters):
        if f"momentum.{index}" in tensors:
            # The memory layout too: sums in another order would round otherwise.
            momentum = torch.empty_like(parameter).copy_(tensors[f"momentum.{index}"])
            optimizer.state[parameter]["momentum_buffer"] = momentum
    return state["curves"]


def smoothed_cross_entropy(label_smoothing: float) -> Loss:
    """Cross-entropy with the labels that much mixed with the uniform distribution (Szegedy et al., CVPR 2016)."""
    return lambda logits, batch: cross_entropy(logits, batch.labels, label_smoothing=label_smoothing)
