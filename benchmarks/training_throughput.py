"""Images/s of the training loop against plain FP32 NCHW training, timed by turns; and what the data costs in it.

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
    """Images like CIFAR-10's in shape, as many as the rounds take."""
    images = torch.randint(0, 256, (BATCH * ROUNDS, 3, 32, 32), dtype=torch.uint8)
    split = Split(images, torch.randint(0, 10, (len(images),)))
    return Dataset("noise", split, split, split, tuple("0123456789"), (0.5,) * 3, (0.25,) * 3, flip=True)


def network(name: str) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Fresh weights, and the optimizer that the loop has."""
    model = build(name, shape=(3, 32, 32), classes=10)
    return model, torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)


def plain(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One step in FP32 as most code has it."""
    loss = cross_entropy(model(batch.images), batch.labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()


def ours(model: nn.Module, optimizer: torch.optim.Optimizer, batch: Batch) -> None:
    """One step of the training loop."""
    loop.update(model, optimizer, 0.01, batch, lambda logits, batch: cross_entropy(logits, batch.labels))


def rounds(kinds: dict, dataset: Dataset) -> Iterator[dict[str, float]]:
    """Seconds of a step of each kind, on the same batches."""
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
        own, other = (sorted(t[kind] for t in times)[len(times) // 2] for kind in ("ours", "plain"))
        print(f"{name}: plain FP32 NCHW {BATCH / other:.0f} images/s, ours {BATCH / own:.0f}: {other / own:.2f}x")
    started = time.perf_counter()
    for _ in batches(dataset, dataset.train, BATCH, seed=0, epoch=1):
        pass
    share = (time.perf_counter() - started) / ROUNDS / own
    print(f"shuffling, augmenting and normalizing a batch takes {share:.1%} of a {name} step")


if __name__ == "__main__":
    main()
