"""Steps, techniques and objectives of the user's with a mistake in them: each is one sentence."""

from dataclasses import dataclass

import pytest
from torch.nn.functional import cross_entropy

from experiment import Recipe, make
from models import ModelError
from models.operators import OPERATORS, PASSES, Operator, register
from plots.style import method_style
from pruning import Sparsify
from quantization import Round
from recipe import OPTIMIZERS, PARTS, STEPS, Objective, Step, StepError, Technique
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

    with pytest.raises(StepError, match="Empty does not define loss, as its base class describes: add it"):
        Empty()

    @dataclass(frozen=True)
    class Still(Step):
        letter, kind = "x", "mine"

    with pytest.raises(StepError, match="Still does not define apply, .*: add it"):
        Still()
    with pytest.raises(StepError, match="Idle does not define callback, .*: add it"):
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


@pytest.mark.parametrize(
    ("names", "said"),
    [
        ({"letter": 3}, "a letter of one character"), ({"letter": "LR"}, "a letter of one character"),
        ({"kind": 5}, "a kind in words"), ({"gives": ["zeros"]}, "gives as a frozenset"),
        ({"forbids": {"zeros"}}, "forbids as a dict"),
    ],
)  # fmt: skip
def test_a_step_whose_names_no_chart_could_show(names, said):
    with pytest.raises(TypeError, match=said):
        type("Mine", (Step,), {"letter": "x", "kind": "mine", "apply": lambda *_: None} | names)


@pytest.mark.parametrize(
    ("value", "said"),
    [
        (float("nan"), "amount of Mine is NaN"), (max, "amount of Mine is a builtin_function_or_method"),
        ({1, 2}, "amount of Mine is a set"),
    ],
)  # fmt: skip
def test_a_field_that_no_recipe_can_hold(value, said):
    @dataclass(frozen=True)
    class Mine(Step):
        letter, kind = "x", "mine"
        amount: object = 0.5

        def apply(self, model, context):
            return model

    assert Mine((1, "a")).amount == (1, "a")
    with pytest.raises(StepError, match=said):
        Mine(value)


@pytest.mark.parametrize("words", [None, "pruned", [3]])
def test_words_that_no_table_could_join(words):
    @dataclass(frozen=True)
    class Mine(Technique):
        letter, kind = "x", "mine"

        def words(self):
            return words

        def callback(self, model, trained, context, training):
            return Callback()

    with pytest.raises(StepError, match="words of Mine must return a list of texts"):
        Mine()


def test_an_optimizer_that_is_none(folders, monkeypatch):
    monkeypatch.setitem(OPTIMIZERS, "mine", lambda model, training: None)
    with pytest.raises(StepError, match="gave a NoneType: let it return a torch.optim.Optimizer"):
        train(optimizer="mine")


@pytest.mark.parametrize(
    ("row", "said"),
    [
        ("swish", "register takes Operator"), (Operator("swish", "PASSES"), "must be of Channels"),
        (Operator("swish", PASSES, modules=("Swish",)), "a tuple of classes"),
        (Operator("swish", PASSES, calls="swish"), "a tuple of classes"),
        (Operator("swish", PASSES, quantizer="sometimes"), "one of own, none, again"),
    ],
)  # fmt: skip
def test_a_row_of_the_operators_table_with_a_mistake(row, said):
    before = list(OPERATORS)
    with pytest.raises(ModelError, match=said):
        register(row)
    assert before == OPERATORS


def test_a_technique_of_ones_own_has_its_name_in_charts():
    @dataclass(frozen=True)
    class Clip(Technique):
        letter, kind = "c", "clipped"

        def callback(self, model, trained, context, training):
            return Callback()

    assert method_style("c")[0] == "clipped" and method_style("P")[0] == "pruned"


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
