"""Steps, techniques and objectives of the user's with a mistake in them: each is one sentence."""

from dataclasses import dataclass

import pytest
from torch.nn.functional import cross_entropy

from experiment import Recipe, make
from pruning import Sparsify
from quantization import Round
from recipe import PARTS, STEPS, Objective, Step, StepError, Technique
from training import Callback, Labels, Train


@pytest.fixture(autouse=True)
def forget():
    """Forget the classes that a test defines."""
    before = [(known, dict(known)) for known in (STEPS, PARTS)]
    yield
    for known, classes in before:
        known.clear()
        known.update(classes)


def train(**fields):
    return make(Recipe("digits", (Train("tiny", epochs=1, batch_size=256, **fields),)))


def test_a_class_that_is_no_frozen_dataclass():
    class Plain(Step):
        letter, kind = "x", "mine"
        share: float = 0.5

    @dataclass
    class Changeable(Technique):
        letter, kind = "x", "mine"

    for make_it in (Plain, lambda: Plain(share=0.2)):
        with pytest.raises(StepError, match=r"Plain is no dataclass: write @dataclass\(frozen=True\) above its class"):
            make_it()
    with pytest.raises(
        StepError, match=r"Changeable must not change .*: write @dataclass\(frozen=True\) above its class"
    ):
        Changeable()


def test_a_missing_method():
    @dataclass(frozen=True)
    class Empty(Objective):
        pass

    @dataclass(frozen=True)
    class Idle(Technique):
        letter, kind = "x", "mine"

    with pytest.raises(StepError, match="Empty does not define loss, which recipe/part.py describes: add this method"):
        Empty()
    with pytest.raises(StepError, match="Idle does not define callback, .*: add this method"):
        Idle()


@pytest.mark.parametrize(
    ("loss", "said"),
    [
        (lambda logits, batch: cross_entropy(logits, batch.labels, reduction="none"), r"not one of shape \[256\]: ret"),
        (lambda logits, batch: cross_entropy(logits, batch.labels).item(), "not a float: return its mean"),
        (lambda logits, batch: cross_entropy(logits.detach(), batch.labels), "does not depend on the weights: compute"),
        (None, "loss of an objective must return a function of logits and batch, not a NoneType"),
    ],
)
def test_a_loss_that_is_no_number(loss, said, folders):
    @dataclass(frozen=True)
    class Mine(Objective):
        def loss(self, teacher):
            return loss

    with pytest.raises(StepError, match=said):
        train(objective=Mine())


def test_a_step_or_technique_that_returns_nothing(folders):
    @dataclass(frozen=True)
    class Nothing(Step):
        letter, kind = "x", "mine"

        def apply(self, model, context):
            model.eval()

    @dataclass(frozen=True)
    class Silent(Technique):
        letter, kind = "x", "mine"
        what: str = "callback"

        def form(self, model, context):
            return None if self.what == "form" else model

        def callback(self, model, trained, context, training):
            return None if self.what == "callback" else Callback()

        def deployed(self, model, trained):
            return None

    base = Recipe("digits", (Train("tiny", epochs=1, batch_size=256),))
    with pytest.raises(StepError, match="apply of Nothing returned a NoneType: let it return a Module"):
        make(base.then(Nothing()))
    for what, kind in (("form", "Module"), ("callback", "Callback"), ("deployed", "Module")):
        with pytest.raises(StepError, match=f"{what} of Silent returned a NoneType: let it return a {kind}"):
            train(during=(Silent(what),))


def test_a_class_in_place_of_a_value():
    with pytest.raises(StepError, match=r"during holds the class Sparsify: write Sparsify\(\), a value"):
        Train("resnet8", during=(Sparsify,))
    with pytest.raises(StepError, match="objective is a value such as Labels"):
        Train("resnet8", objective=Labels)


def test_a_training_that_starts_from_integers():
    start = Recipe("digits", (Train("resnet8", epochs=4, during=(Round(4),)),))
    with pytest.raises(StepError, match="has integer weights, and Train trains floats: start from it without Round"):
        Recipe("digits", (Train("resnet8", start=start, epochs=1),))
    sparse = Recipe("digits", (Train("resnet8", epochs=4, during=(Sparsify(),)),))
    assert Recipe("digits", (Train("resnet8", start=sparse, epochs=1),)).id
