"""Images/s of the training loop and of plain FP32 NCHW training, timed alternately, and the share of data loading.

python benchmarks/training_throughput.py
"""

import time
from collections.abc import Iterator

import torch
from torch import nn
from torch.nn.functional import cross_entropy

from data import Batch, Dataset, Split, batches
from measurement import hardware
from models import build
from training import loop

BATCH, ROUNDS = 128, 5


def noise() -> Dataset:
    """Return random images with the shape of CIFAR-10's, enough for all rounds."""
    images = torch.randint(0, 256, (BATCH * ROUNDS, 3, 32, 32), dtype=torch.uint8)
    split = Split(images, torch.randint(0, 10, (len(images),)))
    return Dataset("noise", split, split, split, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3, flip=True)


def network(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return a network with fresh weights and the training loop's default optimizer."""
    model = build(name, shape=(3, 32, 32), classes=10)
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """Take one conventional FP32 step."""
    loss = cross_entropy(model(batch.images), batch.labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def ours(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """Take one step of the training loop."""
    loop.update(model, optimizer, 0.01, batch, lambda logits, batch: cross_entropy(logits, batch.labels))


def rounds(kinds: dict, dataset: Dataset) -> Iterator[dict[str, float]]:
    """Yield the seconds of one step of each kind, on the same batch."""
    for batch in batches(dataset, dataset.train, BATCH, seed=0, epoch=0):
        times = {}
        for name, (step, model, optimizer) in kinds.items():
            started = time.perf_counter()
            step(model, optimizer, batch)
            times[name] = time.perf_counter() - started
        yield times


def main() -> None:
    """Print the throughput of each network."""
    torch.manual_seed(0)
    dataset = noise()
    print(f"{hardware()['cpu']} {hardware()['instructions']}, batches of {BATCH}")
    for name in ("resnet18", "resnet20"):
        kinds = {"plain": (plain, *network(name)), "ours": (ours, *network(name))}
        kinds["ours"][1].to(memory_format=torch.channels_last)
        times = list(rounds(kinds, dataset))[1:]  # the first one warms up
        in_loop, in_plain = (sorted(t[kind] for t in times)[len(times) // 2] for kind in ("ours", "plain"))
        speed = in_plain / in_loop
        print(f"{name}: plain FP32 NCHW {BATCH / in_plain:.0f} images/s, ours {BATCH / in_loop:.0f}: {speed:.2f}x")
    started = time.perf_counter()
    for _ in batches(dataset, dataset.train, BATCH, seed=0, epoch=1):
        pass
    share = (time.perf_counter() - started) / ROUNDS / in_loop
    print(f"shuffling, augmenting and normalizing a batch takes {share:.1%} of a {name} step")


if __name__ == "__main__":
    main()
