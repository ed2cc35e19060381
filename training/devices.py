"""One training on several devices: each takes a part of every batch. Ray Train starts the processes.

Data-parallel, and the same training as on one device: the loss is that of the whole batch, gradients are summed, and
batch norms use the mean and variance of the whole batch. Sums are in another order, so weights differ by rounding.
"""

import logging
import socket
import tempfile
from collections.abc import Callable
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import nn

from recipe import CompressionError
from training.context import Context

T = TypeVar("T")
Norm = nn.BatchNorm1d | nn.BatchNorm2d | nn.BatchNorm3d


class WorkerError(CompressionError):
    """A worker cannot be used, or was lost; the message says what to do."""


def connect(address: str) -> Any:
    """Return Ray, connected to the cluster at an address, or for "auto" to the one that runs here or to a new one.

    Raises:
        WorkerError: Ray is not installed, or there is no cluster at this address.
    """
    try:
        import ray
    except ImportError:
        raise WorkerError(
            "Ray, which uses several machines or devices, is not installed: run pip install -e '.[ray]'"
        ) from None
    if ray.is_initialized():
        return ray
    try:
        if "://" not in address and (place := address.rpartition(":"))[0]:
            socket.create_connection((place[0], int(place[2])), timeout=10).close()  # Ray tries for minutes
        ray.init(address, logging_level=logging.WARNING)
    except (OSError, ValueError) as error:
        if address != "auto":
            raise WorkerError(
                f"no Ray cluster answers at {address!r} ({error}): start one, or give 'auto' or HOST:PORT"
            ) from None
        ray.init(include_dashboard=False, logging_level=logging.WARNING)
    return ray


def fit_on_devices(
    devices: int, fit: Callable[..., nn.Module], model: nn.Module, context: Context, **arguments: Any
) -> None:
    """Train `model` in place with `fit`, called with the same arguments in as many processes.

    Raises:
        CompressionError: what `fit` raised in one of them.
    """
    ray = connect("auto")
    from ray.train import RunConfig, ScalingConfig
    from ray.train.torch import TorchConfig, TorchTrainer
    from ray.util.queue import Queue

    results = Queue(actor_options={"num_cpus": 0})
    cuda = context.device.type == "cuda"
    with tempfile.TemporaryDirectory() as folder:
        trainer = TorchTrainer(
            _fit_in_process,
            train_loop_config={"given": (fit, model, context, arguments), "results": results},
            torch_config=TorchConfig(backend="nccl" if cuda else "gloo"),
            scaling_config=ScalingConfig(num_workers=devices, use_gpu=cuda),
            run_config=RunConfig(storage_path=folder),
        )
        try:
            trainer.fit()
            result = results.get(timeout=60)
        finally:
            ray.kill(results.actor)
    if isinstance(result, CompressionError):
        raise result
    state, log = result
    model.load_state_dict(state)
    context.log.update(log)


def _fit_in_process(config: dict) -> None:
    """Train in one of the processes. The first sends the weights back, or the error that all of them met."""
    fit, model, context, arguments = config["given"]
    for module in model.modules():
        if isinstance(module, Norm) and _several():
            module.forward = _whole_norm(module)  # type: ignore[assignment,method-assign]
    try:
        fit(model, context, **arguments)
        result: Any = ({name: tensor.cpu() for name, tensor in model.state_dict().items()}, context.log)
    except CompressionError as error:
        result = error
    if is_first():
        config["results"].put(result)


# --- In each process; with a single one, all of it changes nothing ----------------------------------------------------


def _several() -> bool:
    return dist.is_initialized() and dist.get_world_size() > 1


def is_first() -> bool:
    """Return whether this is the process that shows progress and writes files."""
    return not _several() or dist.get_rank() == 0


def from_first(call: Callable[[], T]) -> T:
    """Return what `call` returns in the first process: files may lie on its machine only."""
    if not _several():
        return call()
    shared = [call() if is_first() else None]
    dist.broadcast_object_list(shared)
    return shared[0]  # type: ignore[return-value]


def own_part(images: torch.Tensor) -> torch.Tensor:
    """Return the rows of a batch that this process takes."""
    return images.tensor_split(dist.get_world_size())[dist.get_rank()] if _several() else images


def whole(part: torch.Tensor, rows: int) -> torch.Tensor:
    """Return the logits `[rows, classes]` of the whole batch from this process's; its gradient is of its own rows."""
    return _Whole.apply(part, rows) if _several() else part


def sum_gradients(model: nn.Module) -> None:
    """Add up the gradients of all processes, each of which has those of its own part of the batch."""
    if not _several():
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    together = torch.cat([gradient.flatten() for gradient in gradients])
    dist.all_reduce(together)
    for gradient, summed in zip(gradients, together.split([one.numel() for one in gradients]), strict=True):
        gradient.copy_(summed.view(gradient.shape))


class _Whole(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, part: torch.Tensor, rows: int) -> torch.Tensor:
        whole = part.new_zeros(rows, *part.shape[1:])
        own_part(whole).copy_(part)
        dist.all_reduce(whole)
        return whole

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        return own_part(gradients[0]), None  # each process computes the same loss from the same logits


class _Sum(torch.autograd.Function):
    """The sum over processes, each of which goes on with it: so gradients are summed, too."""

    @staticmethod
    def forward(ctx: Any, value: torch.Tensor) -> torch.Tensor:
        summed = value.clone()
        dist.all_reduce(summed)
        return summed

    @staticmethod
    def backward(ctx: Any, *gradients: torch.Tensor) -> Any:
        summed = gradients[0].contiguous().clone()
        dist.all_reduce(summed)
        return summed


def _whole_norm(norm: Any) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return the forward pass of a batch norm over the whole batch; torch's SyncBatchNorm runs on GPUs only."""

    def forward(images: torch.Tensor) -> torch.Tensor:
        if not norm.training:
            return type(norm).forward(norm, images)
        x = images.float()
        dims = [axis for axis in range(x.ndim) if axis != 1]
        shape = [1, -1] + [1] * (x.ndim - 2)
        count = _Sum.apply(torch.tensor(float(x.numel() // x.shape[1]), device=x.device))
        mean = _Sum.apply(x.sum(dims)) / count
        centred = x - mean.view(shape)
        variance = _Sum.apply(centred.square().sum(dims)) / count
        _track(norm, mean.detach(), variance.detach() * count / (count - 1))
        normal = centred * (variance + norm.eps).rsqrt().view(shape)
        if norm.affine:
            normal = normal * norm.weight.view(shape) + norm.bias.view(shape)
        return normal.to(images.dtype)

    return forward


@torch.no_grad()
def _track(norm: Any, mean: torch.Tensor, variance: torch.Tensor) -> None:
    """Move the running mean and (unbiased) variance, as torch's batch norms do."""
    if not norm.track_running_stats:
        return
    norm.num_batches_tracked += 1
    share = 1 / float(norm.num_batches_tracked) if norm.momentum is None else norm.momentum
    norm.running_mean.lerp_(mean, share)
    norm.running_var.lerp_(variance, share)
