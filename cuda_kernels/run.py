"""`python -m cuda_kernels run FILE.nna --dataset cifar10`: an archive's network on our kernels, beside the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn

from data import Dataset, load, normalize
from models import ModelError, spec_of
from storage import load_archive

from . import gpu
from .networks import Network, network
from .reference import deployed_integers

BATCH = 64
COMPARED = 4  # images whose integers are compared after every layer
IN_EMULATOR = 4  # images by default: a ResNet-18 takes about ten seconds for each


def run_archive(path: Path, dataset: str, images: int | None = None, own: str | None = None) -> None:
    """Print where each layer went, and the answers for test images beside those of the integer model in PyTorch.

    images: how many test images, by default all on a GPU and IN_EMULATOR without one. own: a network of the user's.
    """
    reason = gpu.available()
    device = "cuda" if reason is None else "cpu"
    data, model = load(dataset), load_archive(path, network=own)
    _check_images(spec_of(model), data)
    net = network(model, device)
    print(net.table().to_string(index=False, float_format=lambda value: f"{value:.3f}"))
    print(layers_by_kernel(net))
    count = min(images or (len(data.test) if reason is None else IN_EMULATOR), len(data.test))
    if reason is None:
        print(
            f"On {torch.cuda.get_device_name()}, one CUDA graph a batch of {min(BATCH, count)}: {count:,} test images."
        )
    else:
        print(f"In the emulator, for correctness only, since {reason}: {count} of {len(data.test):,} test images.")
    scaled = data.on_scale(spec_of(model).get("pixels"))
    print(integers(net, model, normalize(data.test.images[: min(count, COMPARED)], scaled)))
    print(answers(net, model, scaled, count))


def _check_images(spec: dict, data: Dataset) -> None:
    of_model, of_data = (tuple(spec["shape"]), spec["classes"]), (data.shape, len(data.classes))
    if of_model != of_data:
        raise ModelError(
            f"the network takes images {of_model[0]} of {of_model[1]} classes, and {data.name} has {of_data[0]} of "
            f"{of_data[1]}: name the data set that it was trained on"
        )


def layers_by_kernel(net: Network) -> str:
    """Return a sentence: how many layers each kernel computes, and which ones are sparse products."""
    table = net.table()
    counts = ", ".join(f"{count} by {kernel}" for kernel, count in table["kernel"].value_counts().items())
    sparse = table[table["kernel"] == "spmm_csr"]
    names = ", ".join(f"{row.layer} ({row.density:.2%} non-zero)" for row in sparse.itertuples())
    return f"Layers: {counts}. Sparse, below {net.sparse_below:.2%}: {names or 'none'}."


def integers(net: Network, model: nn.Module, images: torch.Tensor) -> str:
    """Return a sentence: how many of the bytes that the layers write are the deployed model's."""
    _, expected = deployed_integers(model, images)
    written = net.integers(images.to(net.device))
    pairs = [
        (levels.cpu().flatten(1).numpy(), expected[name].reshape(len(images), -1)) for name, levels in written.items()
    ]
    equal = sum(int((ours == theirs).sum()) for ours, theirs in pairs)
    total = sum(ours.size for ours, _ in pairs)
    are = f"{equal:,} of {total:,} integers after {len(written)} layers are the integer model's"
    return f"{are}, for {'one image' if len(images) == 1 else f'{len(images)} images'}."


@torch.no_grad()
def answers(net: Network, model: nn.Module, data: Dataset, count: int) -> str:
    """Return a sentence: on how many of the first test images the kernels are right, and agree with the model."""
    right = same = 0
    largest = 0.0
    model = model.to(net.device)
    for images, labels in _batches(data, count):
        given = normalize(images.to(net.device), data)
        ours, theirs = net(given), model(given)
        right += int((ours.argmax(1).cpu() == labels).sum())
        same += int((ours.argmax(1) == theirs.argmax(1)).sum())
        largest = max(largest, float((ours - theirs).abs().max()))
    return (
        f"{right} of {count} are classified correctly; {same} of {count} as by the integer model in PyTorch, whose "
        f"logits differ by at most {largest:.4f} (it adds up in floats)."
    )


def _batches(data: Dataset, count: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    for start in range(0, count, BATCH):
        chosen = slice(start, min(start + BATCH, count))
        yield data.test.images[chosen], data.test.labels[chosen]
