"""Images/s of ResNet-18 training: our loop's arithmetic and memory layout against plain FP32 NCHW, timed by turns.

python benchmarks/training_throughput.py
"""

import time

import torch
from torch.nn.functional import cross_entropy

from measurement.latency import hardware
from models import build
from training import autocast

BATCH, ROUNDS = 128, 3


def step(model, optimizer, images, labels, ours: bool) -> float:
    """Seconds that one training step takes."""
    started = time.perf_counter()
    with autocast(images.device) if ours else torch.autocast("cpu", enabled=False):
        loss = cross_entropy(model(images).float(), labels)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    return time.perf_counter() - started


def main() -> None:
    torch.manual_seed(0)
    images, labels = torch.randn(BATCH, 3, 32, 32), torch.randint(0, 10, (BATCH,))
    kinds = {}
    for ours, layout in ((False, torch.contiguous_format), (True, torch.channels_last)):
        model = build("resnet18", shape=(3, 32, 32), classes=10).to(memory_format=layout)
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01, momentum=0.9, nesterov=True)
        kinds[ours] = (model, optimizer, images.contiguous(memory_format=layout), labels, ours)
        step(*kinds[ours])
    seconds = {ours: [] for ours in kinds}
    for _ in range(ROUNDS):
        for ours, arguments in kinds.items():
            seconds[ours].append(step(*arguments))
    plain, own = (BATCH / sorted(seconds[ours])[ROUNDS // 2] for ours in (False, True))
    print(f"{hardware()['cpu']} {hardware()['instructions']}")
    print(f"plain FP32 NCHW {plain:.0f} images/s, the training loop {own:.0f} images/s: {own / plain:.2f}x")


if __name__ == "__main__":
    main()
