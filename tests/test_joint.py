"""Joint: one training, whose model keeps its zeros, its integers and its file."""

import copy
import dataclasses
import math
from dataclasses import dataclass
from fractions import Fraction
from functools import partial
from unittest.mock import Mock

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from combination import Joint
from data import load, normalize
from distillation import Distill
from experiment import Recipe
from models import ARCHITECTURES, ModelError, ResNet, build
from models.quantized import QuantizedConv2d, QuantizedLinear
from pruning import Prune, Pruner, Sparsify
from quantization import Quantize, Round, rounding
from recipe import PARTS, Objective, StepError, recipe_of, words_of
from storage import Checkpoint, export_onnx, load_archive, save_archive
from training import Context, Labels, Train


class Killed(Exception):
    pass


@pytest.fixture
def context(tmp_path, monkeypatch):
    monkeypatch.setitem(ARCHITECTURES, "tiny", lambda shape, classes, width: ResNet((8, 16), (1, 1), shape[0], classes))
    checkpoint = Checkpoint(tmp_path / "checkpoint")
    return Context(load("digits"), 0, torch.device("cpu"), checkpoint, make=None, cache=tmp_path)


@pytest.fixture
def teacher(context):
    torch.manual_seed(7)
    return build("tiny", shape=context.dataset.shape, classes=10).eval()


def layers(model: torch.nn.Module) -> dict[str, torch.nn.Module]:
    return {n: m for n, m in model.named_modules() if isinstance(m, QuantizedConv2d | QuantizedLinear)}


FIELDS = {"sparsity": 0.6, "bits": 4, "epochs": 5, "batch_size": 64, "images": 64, "learning_rate": 0.1}
FIELDS["layer_bits"] = (("blocks.0.conv1", 2), ("blocks.1.conv2", "ternary"))


def test_zeros_integers_and_files(context, teacher, tmp_path):
    integer = Joint("tiny", **FIELDS).apply(teacher, context)
    weights = {name: layer.weight.numpy() for name, layer in layers(integer).items()}
    total, zeros = sum(w.size for w in weights.values()), sum(int((w == 0).sum()) for w in weights.values())
    assert zeros >= round(0.6 * total)  # rounding makes more of them
    for name, weight in weights.items():
        own = {"conv": (-127, 127), "linear": (-127, 127), "blocks.0.conv1": (-2, 1), "blocks.1.conv2": (-1, 1)}
        low, high = own.get(name, (-8, 7))
        assert low <= weight.min() and weight.max() <= high
    file = tmp_path / "joint.onnx"
    export_onnx(integer, file, images=normalize(context.dataset.test.images[:64], context.dataset))
    stored = [numpy_helper.to_array(t) for t in onnx.load(file).graph.initializer]
    stored = [array for array in stored if array.dtype == np.int8 and array.ndim > 1]
    assert sum(int((array == 0).sum()) for array in stored) == zeros
    save_archive(integer, tmp_path / "joint.nna")
    restored = layers(load_archive(tmp_path / "joint.nna"))
    assert all(np.array_equal(restored[name].weight.numpy(), weight) for name, weight in weights.items())


def test_it_learns(context, teacher):
    dataset = context.dataset
    taught = Train("tiny", epochs=4, batch_size=32).apply(None, context)
    context.checkpoint.clear()
    integer = Joint("tiny", sparsity=0.3, bits=8, epochs=8, batch_size=32, images=64).apply(taught, context)
    with torch.no_grad():
        answers = integer(normalize(dataset.test.images, dataset)).argmax(1)
    assert (answers == dataset.test.labels).float().mean() > 0.8


@pytest.mark.parametrize("epoch", [1, 3, 4])
def test_a_killed_training_ends_the_same(context, teacher, epoch, monkeypatch):
    whole = Joint("tiny", **FIELDS).apply(teacher, context).state_dict()
    context.checkpoint.clear()
    save, saved = Checkpoint.save, []

    def killed(checkpoint, *given):
        save(checkpoint, *given)
        saved.append(checkpoint.path == context.checkpoint.path)
        if sum(saved) == epoch:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", killed)
        with pytest.raises(Killed):
            Joint("tiny", **FIELDS).apply(teacher, context)
    again = Joint("tiny", **FIELDS).apply(teacher, context).state_dict()
    assert all(torch.equal(tensor, again[name]) for name, tensor in whole.items())


def test_a_teacher_by_name_teaches_as_the_model_before_does(context, teacher):
    following = Joint("tiny", **FIELDS).apply(teacher, context).state_dict()
    context.checkpoint.clear()
    base = Recipe("digits", (Train("resnet8"),))
    named = dataclasses.replace(context, make={base: teacher}.get)
    alone = Joint("tiny", **FIELDS, teachers=(base,)).apply(None, named).state_dict()
    assert all(torch.equal(tensor, alone[name]) for name, tensor in following.items())
    other = build("tiny", shape=context.dataset.shape, classes=10).eval()
    context.checkpoint.clear()
    apart = dataclasses.replace(context, make={base: other}.get)
    taught = Joint("tiny", **FIELDS, teachers=(base,)).apply(teacher, apart).state_dict()
    assert not all(torch.equal(tensor, taught[name]) for name, tensor in following.items())


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"sparsity": 1.2}, "0 to below 1"), ({"bits": 1}, "2 to 8"), ({"quantize_from": "0.6"}, "quantize_from"),
        ({"prune_from": 1.0}, "prune_from is a share of the training, 0 to below 1, not 1.0"),
        ({"temperature": 0}, "temperature"), ({"criterion": "luck"}, "lookahead"), ({"epochs": 0}, "epochs"),
        ({"alpha": "0.9"}, "alpha, .* not '0.9'"), ({"quantize_from": 1.0}, "0 to below 1, not 1.0"),
        ({"layer_bits": (("conv", 1),)}, "2 to 8"), ({"epochs": 2}, "no whole epoch to train with .* most 0.5"),
        ({"teachers": ["resnet18"]}, "tuple of recipes"),
        ({"epochs": 1}, "at most 0, not 0.6"), ({"epochs": 5, "quantize_from": 0.9}, "at most 0.8, not 0.9"),
        ({"epochs": 3, "quantize_from": 0.667}, "at most 0.666, not 0.667"),  # two thirds, rounded down
        ({"prune_from": 0.999}, "prune_from leaves no whole epoch to prune and recover in: with 30 .* most 0.966"),
        ({"layer_bits": (("conv", 2), ("conv", 4))}, "layer_bits names 'conv' twice"),
        ({"layer_bits": ((["conv"], 2),)}, r"layer_bits must be a tuple of \(name, bits\) pairs"),
    ],
)  # fmt: skip
def test_bad_fields(fields, message):
    with pytest.raises(StepError, match=message):
        Joint("resnet8", **fields)


def test_pruning_may_begin_with_the_last_epoch():
    for epochs in range(2, 40):
        Joint("resnet8", epochs=epochs, prune_from=1 - 1 / epochs, quantize_from=0)


@pytest.mark.parametrize(
    "make", [partial(Joint, "resnet8"), partial(Distill, "resnet8"), Prune, partial(Quantize, "qat")]
)
def test_a_boolean_is_no_number(make):
    for name in ("epochs", "batch_size", "learning_rate", "weight_decay", "temperature", "alpha"):
        with pytest.raises(StepError, match=f"{name}.* must be .*, not True"):
            make(**{name: True})


@pytest.mark.parametrize(
    ("step", "name"),
    [
        (Joint, "model"), (Distill, "model"), (partial(Joint, "resnet8"), "criterion"), (Quantize, "mode"),
        (Quantize, "calibration"), *((Prune, name) for name in ("criterion", "scope", "schedule", "order")),
    ],
)  # fmt: skip
def test_names_are_text(step, name):
    with pytest.raises((StepError, ModelError), match=rf"unknown .*{name} \('a',\)"):
        step(**{name: ["a"]})


def test_layer_bits_of_no_layer(context, teacher):
    with pytest.raises(StepError, match="'blocks.7.conv1', which is not a layer: use some of conv, blocks.0.conv1"):
        Joint("tiny", layer_bits=(("blocks.7.conv1", 2),)).apply(teacher, context)


@pytest.mark.parametrize("tenths", range(10))
def test_rounding_starts_once_at_the_first_whole_epoch(tenths, monkeypatch):
    started, enabled = [], []
    monkeypatch.setattr(rounding, "insert_quantizers", lambda model: model)
    monkeypatch.setattr(rounding, "calibrate", lambda *given: None)
    monkeypatch.setattr(rounding.qat, "start", lambda *given: started.append(epoch))
    monkeypatch.setattr(rounding.qat, "enable", lambda *given: enabled.append(epoch))
    monkeypatch.setattr(rounding.qat, "before_epoch", lambda *given: None)
    share = sum([0.1] * tenths)  # such as 0.30000000000000004
    for epochs in range(1, 21):
        first = math.ceil(Fraction(tenths, 10) * epochs)
        if first == epochs:
            with pytest.raises(StepError, match="no whole epoch"):
                Joint("resnet8", epochs=epochs, quantize_from=share)
            continue
        joint = Joint("resnet8", epochs=epochs, quantize_from=share)
        started.clear(), enabled.clear()
        for epoch in range(epochs):
            joint.composed().during[1].callback(Mock(), Mock(), Mock(), joint).before_epoch(epoch / epochs)
        assert started == [first] and enabled == list(range(first, epochs))


def test_the_zeros_come_along_a_cubic_after_their_share_of_the_training(context, teacher, monkeypatch):
    after_step, zeros = Pruner.after_step, []

    def watched(pruner, done):
        after_step(pruner, done)
        zeros.append(sum(int((layer.module.weight == 0).sum()) for layer in pruner.graph.values()))

    monkeypatch.setattr(Pruner, "after_step", watched)
    Joint("tiny", **FIELDS | {"epochs": 10, "prune_from": 0.5, "quantize_from": 0.9}).apply(teacher, context)
    total = sum(w.numel() for n, w in build("tiny", shape=(1, 8, 8), classes=10).named_parameters() if w.ndim > 1)
    steps = len(zeros)
    assert not any(zeros[: steps // 2 - 1])
    for done, share in ((0.65, 0.6 * (1 - 0.5**3)), (0.8, 0.6), (1.0, 0.6)):  # of the half that is left, 60 % prune
        assert zeros[round(done * steps) - 1] == pytest.approx(share * total, abs=1)


def test_what_can_come_before_and_after():
    with pytest.raises(StepError, match="Joint needs a teacher: .* or give it teachers"):
        Joint("resnet8").check_after(())
    Joint("resnet8", teachers=(Recipe("digits", (Train("resnet8"),)),)).check_after(())
    for step in (Quantize(), Prune()):
        with pytest.raises(StepError, match="follow Joint"):
            step.check_after((Joint("resnet8"),))
    Joint("resnet8").check_after((Distill("resnet8"),))


def test_a_composition_is_the_joint_training(context, teacher, tmp_path):
    """Written as Distill with techniques it gives the same integers; its id, letters and words are its own."""
    fields = {name: FIELDS[name] for name in ("epochs", "batch_size", "learning_rate")}
    own = {name: FIELDS[name] for name in ("bits", "images", "layer_bits")}
    during = (Sparsify(0.6, start=0.2), Round(**own, start=0.6))
    place = dataclasses.replace(context, checkpoint=Checkpoint(tmp_path / "other"), log={})
    joint = Joint("tiny", **FIELDS, prune_from=0.2).apply(copy.deepcopy(teacher), context)
    written = Distill("tiny", **fields, during=during).apply(teacher, place)
    for name, layer in layers(joint).items():
        other = written.get_submodule(name)
        assert torch.equal(layer.weight, other.weight) and torch.equal(layer.weight_scale, other.weight_scale)
    recipe = Recipe("digits", (Train("tiny"),)).then(Distill("tiny", **fields, during=during))
    assert recipe.letters == "DPQ" and recipe.words == "tiny, distilled, pruned 60 %, ternary and 2 and 4 bits"
    assert recipe_of({"recipe": recipe.describe(), **recipe.describe(), "id": recipe.id}, "digits") == recipe
    assert "Distill(tiny, epochs=5, Sparsify(sparsity=0.6, start=0.2) + Round(bits=4, " in recipe.label
    for step in (Quantize(), Prune()):
        with pytest.raises(StepError, match="follow Distill"):
            recipe.then(step)


def test_labels_alone_with_either_technique_or_both(context, tmp_path):
    fields = {"epochs": 2, "batch_size": 64, "learning_rate": 0.1}
    for index, during in enumerate(((Sparsify(0.5),), (Round(4, images=64),), (Round(images=64), Sparsify(0.5)))):
        place = dataclasses.replace(context, checkpoint=Checkpoint(tmp_path / str(index)), log={})
        model = Train("tiny", **fields, during=during).apply(None, place)
        weights = [w for name, w in model.state_dict().items() if name.endswith("weight") and w.ndim > 1]
        zeros = [float((weight == 0).float().mean()) for weight in weights]
        given = frozenset().union(*(technique.gives for technique in during))
        assert bool(layers(model)) == ("integers" in given) and ("zeros" not in given or np.mean(zeros) > 0.3)


def test_techniques_and_objectives_that_make_no_sense():
    refused = {
        "during is a tuple of techniques": [Round(4)],
        "Round is not the only technique in during that gives integers": (Round(4), Sparsify(), Round(8)),
        "start leaves no whole epoch to train with rounding": (Round(4, start=0.95),),
        "during is a tuple": (Quantize(),),
    }
    for said, during in list(refused.items())[1:]:
        with pytest.raises(StepError, match=said):
            Train("resnet8", epochs=10, during=during)
    with pytest.raises(StepError, match="label_smoothing would change nothing: the objective has its own"):
        Train("resnet8", label_smoothing=0.2, objective=Labels(0.1))
    with pytest.raises(StepError, match="objective is a value such as Labels"):
        Train("resnet8", objective="labels")
    with pytest.raises(StepError, match="features cannot be used with techniques or an objective"):
        Distill("resnet8", features="hints", during=(Sparsify(),))


def test_an_objective_of_ones_own(context, tmp_path):
    """A focal loss (Lin et al., ICCV 2017) of exponent 0 is the cross-entropy, and gives the same weights."""

    @dataclass(frozen=True)
    class Focal(Objective):
        power: float = 2.0

        def loss(self, teacher):
            def loss(logits, batch):
                log = logits.log_softmax(1).gather(1, batch.labels[:, None])[:, 0]
                return -((1 - log.exp()) ** self.power * log).mean()

            return loss

    try:
        ends = []
        for index, objective in enumerate((Labels(), Focal(0.0), Focal())):
            place = dataclasses.replace(context, checkpoint=Checkpoint(tmp_path / str(index)), log={})
            ends.append(Train("tiny", epochs=1, objective=objective).apply(None, place).linear.weight)
        assert torch.allclose(ends[0], ends[1], atol=1e-3) and not torch.allclose(ends[0], ends[2], atol=1e-3)
        recipe = Recipe("digits", (Train("resnet8", objective=Focal(1.0)),))
        assert recipe.describe()["steps"][0]["objective"] == {"part": "Focal", "power": 1.0}
        record = {"recipe": recipe.describe(), **recipe.describe(), "id": recipe.id}
        assert recipe_of(record, "digits") == recipe
        assert repr(recipe.steps[0]) == "Train(model='resnet8', objective=Focal(power=1.0))"
    finally:
        del PARTS["Focal"]
    assert recipe_of(record, "digits") is None and words_of({**record}) == "Train"
