"""One training for all three methods against the same steps in a row: accuracy, size and time."""

import dataclasses
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import pandas as pd
from torch import nn

from combination.joint import Joint
from data import Dataset, load
from distillation import Distill
from experiment import kept_table, make, run_table, training_device
from quantization.weights import Bits
from recipe import Recipe, Step, training_of
from storage import Checkpoint
from study.distillation import first_images, student, student_training
from study.pruning import pruned
from study.quantization import trained
from training import Context

IN_A_ROW, AT_ONCE = "one after the other", "one training"
BATCHES = 20  # of an epoch that is timed
ROUNDS, FEW_ROUNDS = 3, {"digits": 1}  # of such epochs; few where all that is learnt is how it is done


def in_a_row(base: Recipe, model: str, sparsity: float, bits: Bits, seed: int | None = None) -> Recipe:
    """Distilled, pruned and quantized one after the other, with the base as the teacher to the end, as Joint has it."""
    distilled = _under(base, student(base, model).last(Distill), seed)
    return trained(pruned(distilled, "lookahead", sparsity, teacher=base), bits, teacher=base)


def joint(
    base: Recipe, model: str, sparsity: float, bits: Bits, share: float = 1.0, seed: int | None = None, **fields
) -> Recipe:
    """One training with `share` of the epochs that distilling, pruning and quantizing in a row take together."""
    chain = in_a_row(base, model, sparsity, bits)
    epochs = round(share * sum(training_of(step).epochs for step in _after(base, chain)))
    step = Joint(model, sparsity, bits, **student_training(base, model) | {"epochs": epochs} | fields)
    return _under(base, step, seed)


def _under(base: Recipe, step: Distill | Joint, seed: int | None) -> Recipe:
    """A base's student. Of another seed than the base's it has it as its teacher by name: none is trained anew."""
    if seed is None or seed == base.seed:
        return base.then(step)
    return Recipe(base.dataset, (dataclasses.replace(step, teachers=(base,)),), seed)


def _after(base: Recipe, recipe: Recipe) -> tuple[Step, ...]:
    """The steps of what is made of a base, without the base's own where it starts from them."""
    own = len(base.steps)
    return recipe.steps[own:] if recipe.prefix(own) == base else recipe.steps


def at_once_or_in_a_row(
    base: Recipe,
    model: str,
    sparsity: float,
    bits: Bits,
    trainings: Iterable[tuple[float, float, float]] = ((1.0, Joint.prune_from, Joint.quantize_from),),
    seeds: Sequence[int] = (0,),
) -> pd.DataFrame:
    """Records of the chain and of `trainings` at once: each a share of its epochs, `prune_from` and `quantize_from`.

    Columns how, epochs, prunes from and rounds from say which it is; `seconds` are those of the trainings after the
    base, as many epochs of each kind as they have at `epoch_seconds`. The base is the same for all seeds, which are
    the students' alone; labels are those of the first of them.
    """
    chain = {"how": IN_A_ROW, "epochs": "100%", "prunes from": "", "rounds from": ""}
    cases = []
    for seed in seeds:
        cases.append((chain, in_a_row(base, model, sparsity, bits, seed)))
        for shares in trainings:
            share, prune_from, quantize_from = shares
            recipe = joint(base, model, sparsity, bits, share, seed, prune_from=prune_from, quantize_from=quantize_from)
            names = ("epochs", "prunes from", "rounds from")
            words = {name: f"{value:.0%}" for name, value in zip(names, shares, strict=True)}
            cases.append(({"how": AT_ONCE, **words}, recipe))
    firsts = [recipe.label for _, recipe in cases[: len(cases) // len(seeds)]] * len(seeds)
    labels = {recipe.id: label for (_, recipe), label in zip(cases, firsts, strict=True)}
    epoch = epoch_seconds(base, model, sparsity, bits)
    seconds = {recipe.id: training_seconds(_after(base, recipe), epoch) for _, recipe in cases}
    found = run_table(cases).assign(label=lambda t: t["id"].map(labels), seconds=lambda t: t["id"].map(seconds))
    found.attrs |= epoch.attrs
    return found


def training_seconds(steps: Iterable[Step], epoch: Mapping[str, float] | pd.Series) -> float:
    """Seconds that trainings take whose epochs take so many, by the names of `epoch_seconds`."""
    seconds = 0.0
    for step in steps:
        name = type(step).__name__
        epochs = training_of(step).epochs
        rounding = epochs - step.first_rounded if isinstance(step, Joint) else 0
        seconds += (epochs - rounding) * epoch[name] + rounding * epoch["Joint, rounding"]
    return seconds


def epoch_seconds(base: Recipe, model: str, sparsity: float, bits: Bits) -> pd.Series:
    """Seconds of an epoch of each kind: Distill, Prune, Quantize, Joint, and Joint while it rounds.

    Timed by turns, since a machine is not always equally fast, on the first `BATCHES` batches, with the teacher's
    logits at hand; medians over rounds, for all training images. Kept as a table of this machine's times.
    """
    chain, together = in_a_row(base, model, sparsity, bits), joint(base, model, sparsity, bits)
    count = FEW_ROUNDS.get(base.dataset, ROUNDS)

    def rows() -> list[dict]:
        whole, teacher, once = load(base.dataset), make(base), together.last(Joint)
        cut = first_images(whole, BATCHES * once.batch_size)
        with tempfile.TemporaryDirectory() as folder:
            rounds = [
                _timed_round(teacher, _after(base, chain), once, cut, base.seed, Path(folder), turn)
                for turn in range(1 + count)
            ]
        medians = pd.DataFrame(rounds[1:]).median()  # the first one warms up, and keeps the logits
        scale = len(whole.train) / len(cut.train)
        return [{"epoch": kind, "seconds": scale * seconds} for kind, seconds in medians.items()]

    arguments = {"chain": chain.id, "together": together.id, "rounds": count, "batches": BATCHES}
    table = kept_table("joint-seconds", base.dataset, rows, arguments, timed=True)
    return table.set_index("epoch")["seconds"]


def _timed_round(
    teacher: nn.Module, steps: Sequence[Step], once: Joint, cut: Dataset, seed: int, folder: Path, turn: int
) -> dict[str, float]:
    """Seconds of one short epoch of each kind, none of them one in which something is done that is done but once."""

    def trained_model(step: Step, before: nn.Module) -> tuple[nn.Module, list[float]]:
        checkpoint = Checkpoint(folder / f"{type(step).__name__}-{turn}")
        # The steps name no other recipe than the teacher's.
        context = Context(cut, seed, training_device(), checkpoint, lambda recipe: teacher, folder / "logits")
        after = step.apply(before, context)
        return after, [point["seconds"] for point in context.log["curves"]]

    model, seconds = teacher, {}
    for step in steps:
        model, epochs = trained_model(dataclasses.replace(step, epochs=3), model)
        seconds[type(step).__name__] = epochs[-1]
    later = dataclasses.replace(once, epochs=4, prune_from=0.5, quantize_from=0.5)
    _, epochs = trained_model(later, teacher)
    return seconds | {"Joint": epochs[1], "Joint, rounding": epochs[-1]}
