"""The training loop: any optimizer and schedule, bfloat16 if the hardware has it, resumable after every epoch."""

import contextlib
import io
import math
import time
from collections.abc import Callable, Iterator, Sequence

import torch
import torch.distributed as dist
from torch import nn
from torch.optim.swa_utils import AveragedModel
from tqdm.auto import tqdm

from data import Batch, Dataset, Split, batches, epoch_seed, normalize
from recipe import OPTIMIZERS, SCHEDULES, CompressionError, StepError, Training
from storage.weights import load_tensors
from training.callbacks import Callback
from training.compute import resized, side_in, training_pflop
from training.context import Context
from training.devices import fit_on_devices, from_first, is_first, own_part, sum_gradients, whole

Loss = Callable[[torch.Tensor, Batch], torch.Tensor]  # from logits and their batch
Logits = Callable[[Batch], torch.Tensor]  # a teacher's logits for a batch


class TrainingDiverged(CompressionError):
    """A training failed: its loss or weights became NaN or infinite, or its result cannot be deployed."""


def fit(
    model: nn.Module,
    context: Context,
    training: Training,
    *,
    loss: Loss,
    callbacks: Sequence[Callback] = (),
    title: str = "training",
) -> nn.Module:
    """Train `model` in place on `context.dataset.train`, and return it in evaluation mode.

    `loss` maps the logits `[B, classes]` (float32) and their batch to a scalar. The state is saved after every epoch:
    an interrupted training resumes from there and, on the CPU, ends with exactly the same weights. Curves go to
    `context.log`.

    Raises:
        StepError: batch norm would get a single value per channel, which has no variance; or the loss is no number.
        TrainingDiverged: the loss or a weight became NaN or infinite.
    """
    if not callable(loss):
        raise StepError(f"loss of an objective must return a function of logits and batch, not a {type(loss).__name__}")
    if training.devices > 1 and not dist.is_initialized():
        fit_on_devices(
            training.devices, fit, model, context, training=training, loss=loss, callbacks=callbacks, title=title
        )
        return model.eval()
    dataset, device = context.dataset, context.device
    train, validation = dataset.train.to(device), dataset.validation.to(device)
    image = normalize(train.images[:1].to(device), dataset)
    lay_out(model.to(device), image)
    if min(training.batch_size, len(train)) == 1:
        _check_batch_norm(model, image, training.batch_size)
    state = _State(model, training, context)
    curves = state.resume()
    per_epoch = max(1, len(train) // training.batch_size)
    with tqdm(
        total=training.epochs * per_epoch,
        initial=len(curves) * per_epoch,
        desc=title,
        unit="batch",
        leave=False,
        disable=not is_first(),
    ) as bar:
        for epoch in range(len(curves), training.epochs):
            started = time.perf_counter()
            summary = _epoch(epoch, state, train, loss, callbacks, bar)
            seconds = time.perf_counter() - started
            curves.append({**summary, "validation_accuracy": evaluate(model, dataset, validation), "seconds": seconds})
            state.save(curves)
    if state.average is not None:
        model.load_state_dict(state.average.module.state_dict())
        for callback in callbacks:  # an average does not preserve zeros, for example
            callback.after_step(1.0)
    seconds = sum(point["seconds"] for point in curves)
    context.log["curves"] = curves
    context.log["train_seconds"] = seconds
    images = per_epoch * min(training.batch_size, len(train))
    context.log["images_per_second"] = training.epochs * images / seconds
    context.log["train_pflop"] = training_pflop(model, training, image, images)
    context.log["precision"] = "bfloat16 autocast" if _has_bfloat16(device) else "float32"
    return model.eval()


def _epoch(
    epoch: int, state: "_State", train: Split, loss: Loss, callbacks: Sequence[Callback], bar: tqdm
) -> dict[str, float]:
    """Train for one pass over the training images; return its loss and accuracy."""
    training, context, model = state.training, state.context, state.model
    torch.manual_seed(epoch_seed(context.seed, epoch))  # dropout and the like must not depend on a resumption
    model.train()
    for callback in callbacks:
        callback.before_epoch(epoch / training.epochs)
    running, rate = _RunningMean(context.device), training.learning_rate
    side = side_in(training, epoch)
    per_epoch = max(1, len(train) // training.batch_size)
    total = training.epochs * per_epoch
    for batch in batches_of(training, context, train, epoch):
        done = epoch * per_epoch + batch.index
        rate = training.learning_rate * SCHEDULES[training.lr_schedule](done / total)
        running.add(batch, *update(model, state.optimizer, rate, batch, loss, side))
        for callback in callbacks:
            callback.after_step((done + 1) / total)
        if state.average is not None:
            state.average.update_parameters(model)
        if batch.index % 10 == 9 or batch.index == per_epoch - 1:
            bar.update(done + 1 - bar.n)
            bar.set_postfix(running.summary(epoch, rate))
    _check_weights(model, epoch, rate)  # no loss is computed after the last update
    return running.summary(epoch, rate)


def batches_of(training: Training, context: Context, train: Split, epoch: int) -> Iterator[Batch]:
    """Return the batches of an epoch of a training, counted from 0; `train` are its images, on its device."""
    view = epoch % training.views if training.views else epoch
    seed = context.seed if training.view_seed is None else training.view_seed
    size, augmentation = training.batch_size, training.augmentation
    return batches(context.dataset, train, size, seed=seed, epoch=view, augmentation=augmentation)


def lay_out(model: nn.Module, image: torch.Tensor) -> None:
    """Convert a network to the channels_last memory format, which is faster, unless one of its views fails in it."""
    model.to(memory_format=torch.channels_last)
    was_training = model.training
    try:
        with torch.no_grad(), contextlib.redirect_stderr(io.StringIO()):  # a traced network prints its traceback
            model.eval()(image.contiguous(memory_format=torch.channels_last))
    except RuntimeError as error:
        if "view" not in str(error):
            raise
        model.to(memory_format=torch.contiguous_format)
    model.train(was_training)


def forward(model: nn.Module, images: torch.Tensor) -> torch.Tensor:
    """Return the logits for images `[B, C, H, W]`, after converting those to the memory format of the kernels."""
    kernels = [parameter for parameter in model.parameters() if parameter.ndim == 4]
    channels_last = all(kernel.is_contiguous(memory_format=torch.channels_last) for kernel in kernels)
    return model(images.contiguous(memory_format=torch.channels_last if channels_last else torch.contiguous_format))


@torch.no_grad()
def _check_batch_norm(model: nn.Module, image: torch.Tensor, batch_size: int) -> None:
    """Raise StepError if a batch norm gets one value per channel from a single image `[1, C, H, W]`."""
    single: list[str] = []

    def check(name: str, values: torch.Tensor) -> None:
        if values.numel() == values.shape[1]:
            single.append(name)

    hooks = [
        module.register_forward_pre_hook(lambda _, inputs, name=name: check(name, inputs[0]))
        for name, module in model.named_modules()
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d)
    ]
    try:
        model.eval()(image)
    finally:
        for hook in hooks:
            hook.remove()
    if single:
        cause = "batch_size=1" if batch_size == 1 else "a single training image"
        remedy = "set batch_size to at least 2" if batch_size == 1 else "add training images"
        raise StepError(
            f"{cause} leaves one value per channel to batch norm ({single[0]}), which has no variance: {remedy}, or "
            "use a network without batch norm there"
        )


def _check_weights(model: nn.Module, epoch: int, rate: float) -> None:
    if not all(bool(t.isfinite().all()) for t in model.state_dict().values() if t.is_floating_point()):
        raise TrainingDiverged(
            f"weights became infinite or NaN in epoch {epoch + 1}: lower learning_rate (now {rate:.3g})"
        )


def update(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    rate: float,
    batch: Batch,
    loss: Loss,
    side: int | None = None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Take one optimizer step, on images resized to `side` if given; return the logits and the loss before it."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("scale", 1.0)
    images = resized(own_part(batch.images), side)
    with autocast(images.device):
        logits = whole(forward(model, images).float(), len(batch.labels))
    value = loss(logits, batch)
    _check_loss(value)
    optimizer.zero_grad()
    value.backward()
    sum_gradients(model)
    optimizer.step()
    return logits, value


def _check_loss(value: object) -> None:
    """Raise StepError unless a loss is a number that depends on the weights."""
    if not isinstance(value, torch.Tensor) or value.ndim:
        what = f"one of shape {list(value.shape)}" if isinstance(value, torch.Tensor) else f"a {type(value).__name__}"
        raise StepError(f"the loss of a batch must be one number, a tensor of shape [], not {what}: return its mean()")
    if not value.requires_grad:
        raise StepError("the loss does not depend on the weights: compute it from the logits, without detach or item")


@torch.no_grad()
def evaluate(model: nn.Module, dataset: Dataset, split: Split, batch_size: int = 500) -> float:
    """Return the accuracy (0..1) of a model in PyTorch. Reported accuracies use the ONNX file: see `measurement`."""
    model.eval()
    dataset = scaled_for(model, dataset)
    correct = 0
    for images, labels in split.parts(batch_size):
        with autocast(labels.device):
            logits = forward(model, normalize(images, dataset))
        correct += int((logits.argmax(1) == labels).sum())
    return correct / len(split)


def scaled_for(model: nn.Module, dataset: Dataset) -> Dataset:
    """Return the data set with the pixel mean and std that the model was trained with, if it says so in its spec."""
    spec = getattr(model, "spec", None)
    return dataset.on_scale(spec.get("pixels") if isinstance(spec, dict) else None)


def autocast(device: torch.device) -> contextlib.AbstractContextManager:
    """Autocast to bfloat16 if the hardware multiplies it natively: emulated, it is ten times slower than float32."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=_has_bfloat16(device))


def _has_bfloat16(device: torch.device) -> bool:
    if device.type == "cuda":
        return torch.cuda.get_device_capability(device)[0] >= 8
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


class _RunningMean:
    """Running means of the loss and the training accuracy, read back from the device only when shown."""

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


class _State:
    """Everything needed to resume a training: weights, the optimizer's tensors, the average."""

    def __init__(self, model: nn.Module, training: Training, context: Context):
        self.model, self.training, self.context = model, training, context
        self.optimizer: torch.optim.Optimizer = OPTIMIZERS[training.optimizer](model, training)
        if not isinstance(self.optimizer, torch.optim.Optimizer):
            raise StepError(
                f"recipe.OPTIMIZERS[{training.optimizer!r}] gave a {type(self.optimizer).__name__}: let it return a "
                "torch.optim.Optimizer of the model's parameters"
            )
        self.average: AveragedModel | None = None
        if training.average:
            self.average = AveragedModel(model, avg_fn=_moving(training.average), use_buffers=True)

    def save(self, curves: list[dict]) -> None:
        tensors = {f"model.{name}": tensor for name, tensor in self.model.state_dict().items()}
        if self.average is not None:
            tensors |= {f"average.{name}": tensor for name, tensor in self.average.state_dict().items()}
        for index, parameter in enumerate(self._parameters()):  # those without a gradient yet have no state
            values = self.optimizer.state[parameter]
            tensors |= {f"optimizer.{index}.{name}": torch.as_tensor(value) for name, value in values.items()}
        if is_first():
            self.context.checkpoint.save(tensors, {"curves": curves})

    def resume(self) -> list[dict]:
        saved = from_first(self.context.checkpoint.load)
        if saved is None:
            return []
        tensors, state = saved
        load_tensors(self.model, _below("model", tensors))
        if self.average is not None:
            load_tensors(self.average, _below("average", tensors))
        for index, parameter in enumerate(self._parameters()):
            values = _below(f"optimizer.{index}", tensors)
            # Restore the memory format too: sums in another order round differently.
            same_shape = {name: value for name, value in values.items() if value.shape == parameter.shape}
            values |= {name: torch.empty_like(parameter).copy_(value) for name, value in same_shape.items()}
            self.optimizer.state[parameter].update(values)
        return state["curves"]

    def _parameters(self) -> list[nn.Parameter]:
        return [parameter for group in self.optimizer.param_groups for parameter in group["params"]]


def _below(name: str, tensors: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {key.removeprefix(f"{name}."): value for key, value in tensors.items() if key.startswith(f"{name}.")}


def _moving(decay: float) -> Callable:
    """Return an exponential moving average whose decay starts small, so that the first weights are soon forgotten."""

    def average(before: torch.Tensor, now: torch.Tensor, count: torch.Tensor | int) -> torch.Tensor:
        if not before.is_floating_point():
            return now
        current = min(decay, (1 + float(count)) / (10 + float(count)))
        return before + (now - before) * (1 - current)

    return average
