"""A training on two processes of this machine, with gloo, beside the same on one."""

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.functional import cross_entropy

from data import load
from models import build
from storage import Checkpoint
from training import Context, Labels, Train, devices, fit, loop

pytestmark = pytest.mark.slow


def in_process(rank: int, count: int, folder: str, work) -> None:
    torch.set_num_threads(1)
    loop._has_bfloat16 = lambda device: False
    if count > 1:
        dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=count)
    torch.manual_seed(0)
    result = work(build("resnet8", shape=(1, 8, 8), classes=10), count, Path(folder))
    if rank == 0:
        torch.save(result, f"{folder}/result")


def run(count: int, folder: Path, work) -> dict:
    folder.mkdir()
    mp.spawn(in_process, (count, str(folder), work), nprocs=count)
    return torch.load(folder / "result")


def three_updates(model: nn.Module, count: int, folder: Path) -> dict:
    """Losses, the last gradients and the running statistics of three steps of plain SGD, on uneven parts of a batch."""
    for module in model.modules():
        if isinstance(module, devices.Norm) and count > 1:
            module.forward = devices._whole_norm(module)
    draws, losses = torch.Generator().manual_seed(1), []
    for _ in range(3):
        images, labels = torch.randn(63, 1, 8, 8, generator=draws), torch.randint(0, 10, (63,), generator=draws)
        logits = devices.whole(model.train()(devices.own_part(images)), 63)
        loss = cross_entropy(logits, labels)
        model.zero_grad()
        loss.backward()
        devices.sum_gradients(model)
        losses.append(loss.detach())
        with torch.no_grad():
            for parameter in model.parameters():
                parameter -= 0.1 * parameter.grad
    gradients = {f"gradient of {name}": own.grad for name, own in model.named_parameters()}
    return {"losses": torch.stack(losses), **gradients, **dict(model.named_buffers())}


def epoch(model: nn.Module, count: int, folder: Path) -> dict:
    """What `fit` returns after an epoch, and its curves."""
    training = Train("resnet8", epochs=1, batch_size=64, learning_rate=0.01, devices=count)
    context = Context(load("digits"), 0, torch.device("cpu"), Checkpoint(folder / "c"), lambda recipe: model, folder)
    found: list = []
    sent = {"put": lambda self, result: found.append(result)}
    given = (fit, model, context, {"training": training, "loss": Labels(0.1).loss(None)})
    devices._fit_in_process({"given": given, "results": type("Results", (), sent)()})
    return {"curves": found[0][1]["curves"], "kept": (folder / "c").exists()} if found else {}


def test_gradients_and_batch_norms_are_those_of_the_whole_batch(tmp_path):
    one, two = run(1, tmp_path / "one", three_updates), run(2, tmp_path / "two", three_updates)
    for name, expected in one.items():
        torch.testing.assert_close(two[name], expected, rtol=1e-4, atol=1e-5, msg=lambda text, name=name: name + text)


def test_the_same_loss_curve_as_on_one_device(tmp_path):
    one, two = run(1, tmp_path / "one", epoch), run(2, tmp_path / "two", epoch)
    assert two["kept"] and two["curves"][0]["loss"] == pytest.approx(one["curves"][0]["loss"], abs=1e-4)


def test_through_ray_train(tmp_path, monkeypatch):
    """The whole way, with Ray's own processes: the loss of an epoch is that of one device."""
    ray = pytest.importorskip("ray")
    monkeypatch.setattr(loop, "_has_bfloat16", lambda device: False)
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    ray.init(num_cpus=2, object_store_memory=100 * 2**20, include_dashboard=False)
    try:
        losses = []
        for count in (1, 2):
            step = Train("resnet8", epochs=1, batch_size=64, learning_rate=0.001, devices=count)
            checkpoint = Checkpoint(tmp_path / f"{count}")
            context = Context(load("digits"), 0, torch.device("cpu"), checkpoint, lambda recipe: None, tmp_path)
            step.apply(None, context)
            losses.append(context.log["curves"][0]["loss"])
        assert losses[1] == pytest.approx(losses[0], abs=1e-2)  # workers may have bfloat16
    finally:
        ray.shutdown()
