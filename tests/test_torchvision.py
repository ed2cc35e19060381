"""Networks of torchvision, as they come: what each step makes of them, without fetching weights or training."""

import copy
import dataclasses
from functools import lru_cache

import pytest
import torch
import torchvision
from torch import nn

from data import Split, load, normalize
from measurement import operator_counts
from models import ARCHITECTURES, build, check_network
from models.quantized import insert_quantizers
from pruning import Prune
from pruning.channels import CHANNEL_CRITERIA, narrow
from quantization import calibrate, qat
from quantization.weights import bits_by_layer
from recipe import StepError
from storage import Checkpoint, export_onnx, load_archive, open_onnx, run_onnx, save_archive
from training import Context

SMALL = ("squeezenet1_1", pytest.param("mnasnet0_5", marks=pytest.mark.slow))
LARGE = (
    "mobilenet_v3_small", "shufflenet_v2_x0_5",
    "alexnet", "vgg11", "vgg11_bn", "resnet18", "resnext50_32x4d", "wide_resnet50_2", "densenet121", "googlenet",
    "inception_v3", "mobilenet_v2", "mobilenet_v3_large", "efficientnet_b0", "regnet_y_400mf", "convnext_tiny",
)  # fmt: skip
OPTIONS = {name: {"aux_logits": False, "init_weights": False} for name in ("googlenet", "inception_v3")}
SIDE = {"inception_v3": 80}  # the least that it takes is 75


def dataset(side):
    """Squares of noise: images that differ in more than their mean."""
    generator = torch.Generator().manual_seed(0)
    squares = torch.randint(256, (32, 3, side // 8, side // 8), generator=generator, dtype=torch.uint8)
    split = Split(squares.repeat_interleave(8, 2).repeat_interleave(8, 3), torch.arange(32) % 10)
    scale = {"mean": (0.5,) * 3, "std": (0.3,) * 3}
    return dataclasses.replace(load("digits"), name="noise", train=split, validation=split, test=split, **scale)


@lru_cache(maxsize=1)
def trained(name):
    """A network with random weights, its batch norm a tenth of the way to the images' statistics, and its data set.

    All the way, random networks are chaotic: there a change of a millionth in the images changes the integer network's
    own logits by a third.
    """
    images = dataset(SIDE.get(name, 64))
    torch.manual_seed(0)
    model = build(name, shape=images.shape, classes=10)
    with torch.no_grad():
        model.train()(normalize(images.train.images, images))
    return model.eval(), images


@pytest.fixture(params=[*SMALL, *(pytest.param(name, marks=pytest.mark.networks) for name in LARGE)])
def name(request, monkeypatch):
    def make(shape, classes, width):
        return getattr(torchvision.models, request.param)(num_classes=classes, **OPTIONS.get(request.param, {}))

    monkeypatch.setitem(ARCHITECTURES, request.param, make)
    return request.param


def static(name):
    model, images = trained(name)
    integer = insert_quantizers(model)
    calibrate(integer, images, images=32, percentile=99.99, seed=0)
    return integer


def _export(model, images, folder):
    """The file, whose logits are compared, and the share of answers that are the model's."""
    x = normalize(images.validation.images, images)
    export_onnx(model, folder / "model.onnx", images=x)
    with torch.no_grad():
        own = model(x).argmax(1)
    deployed = torch.from_numpy(run_onnx(open_onnx(folder / "model.onnx"), x.numpy())).argmax(1)
    assert (own == deployed).float().mean() > 0.85  # the answers of random networks are all but ties


def fp32(name, folder):
    model, images = trained(name)
    check_network(model, images.shape, 10)
    _export(model, images, folder)


def archive(name, folder):
    model, _ = trained(name)
    save_archive(model, folder / "model.nna")  # refuses what would not come back bit for bit
    load_archive(folder / "model.nna", 1 << 30)


def int8(name, folder):
    integer, (model, images) = static(name), trained(name)
    _export(integer, images, folder)
    counts = operator_counts(folder / "model.onnx")
    assert counts["integer_convolutions"] == counts["convolutions"]
    size = (folder / "model.onnx").stat().st_size
    assert size < 1.1 * sum(p.numel() for p in model.parameters()) + 50_000  # bytes of the graph itself
    save_archive(integer, folder / "model.nna")


def rounded_training(name, folder):
    model, images = copy.deepcopy(trained(name)[0]), trained(name)[1]
    integer = qat.prepare(model, bits_by_layer(model, 8, 8))
    qat.start(integer, static(name))
    x = normalize(images.train.images[:8], images)
    nn.functional.cross_entropy(integer.train()(x), images.train.labels[:8]).backward()
    save_archive(qat.finish(integer, model), folder / "model.nna")


def context(images, folder):
    return Context(images, 0, torch.device("cpu"), Checkpoint(folder / "state"), make=None, cache=folder)


def pruned(criterion):
    def step(name, folder):
        model, images = trained(name)
        sparse = Prune(criterion, 0.5, schedule="one_shot", epochs=0).apply(
            copy.deepcopy(model), context(images, folder)
        )
        zeros = sum(int((p == 0).sum()) for p in sparse.parameters() if p.ndim > 1)
        assert zeros > 0.4 * sum(p.numel() for p in sparse.parameters() if p.ndim > 1)

    return step


def narrowed(name, folder):
    model, images = trained(name)
    smaller = narrow(model, CHANNEL_CRITERIA["lookahead"](model, context(images, folder)), 0.7)
    with torch.no_grad():
        assert smaller(normalize(images.train.images[:2], images)).shape == (2, 10)


STEPS = {
    "FP32 file": fp32,
    "archive": archive,
    "static INT8": int8,
    "QAT": rounded_training,
    "Prune, magnitude": pruned("magnitude"),
    "Prune, lookahead": pruned("lookahead"),
    "PruneChannels": narrowed,
}


# torch-pruning does not follow the shuffle of channels.
REFUSED = {("shufflenet_v2_x0_5", "PruneChannels"): "groups of channels cannot be found"}


@pytest.mark.parametrize("step", STEPS)
def test_every_step_takes_the_network(name, step, tmp_path):
    if (name, step) in REFUSED:
        with pytest.raises(StepError, match=REFUSED[name, step]):
            STEPS[step](name, tmp_path)
    else:
        STEPS[step](name, tmp_path)
