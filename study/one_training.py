"""Compares one training with all three methods to the same methods one after the other: accuracy, size and time."""

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
BATCHES = 20  # of a timed epoch
ROUNDS, FEW_ROUNDS = 3, {"digits": 1}  # of timed epochs; few for a data set that only demonstrates the method


def in_a_row(base: Recipe, model: str, sparsity: float, bits: Bits, seed: int | None = None) -> Recipe:
    """Return the chain that distils, prunes and quantizes one after the other, always under the base, as in Joint."""
    distilled = _under(base, student(base, model).last(Distill), seed)
    return trained(pruned(distilled, "lookahead", sparsity, teacher=base), bits, teacher=base)


def joint(
    base: Recipe, model: str, sparsity: float, bits: Bits, share: float = 1.0, seed: int | None = None, **fields
) -> Recipe:
    """Return one training of all three methods, with `share` of the total epochs of the chain."""
    chain = in_a_row(base, model, sparsity, bits)
    epochs = round(share * sum(training_of(step).epochs for step in _after(base, chain)))
    step = Joint(model, sparsity, bits, **student_training(base, model) | {"epochs": epochs} | fields)
    return _under(base, step, seed)


def _under(base: Recipe, step: Distill | Joint, seed: int | None) -> Recipe:
    """Return a student of the base. With another seed than the base's, it names the base as teacher, to share it."""
    if seed is None or seed == base.seed:
        return base.then(step)
    return Recipe(base.dataset, (dataclasses.replace(step, teachers=(base,)),), seed)


def _after(base: Recipe, recipe: Recipe) -> tuple[Step, ...]:
    """Return the steps of a recipe, without those of the base if it starts with them."""
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
    """Return records of the chain and of single `trainings`: (share of the chain's epochs, prune_from, quantize_from).

    The columns how, epochs, prunes from and rounds from identify the training. `seconds` is the time of the trainings
    after the base: epochs of each kind times `epoch_seconds`. Seeds are those of the students; all share one base, and
    the labels are those of the first seed.
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
    """Return the training time of `steps`, in seconds, given that of an `epoch` of each kind (`epoch_seconds`)."""
    seconds = 0.0
    for step in steps:
        name = type(step).__name__
        epochs = training_of(step).epochs
        rounding = epochs - step.first_rounded if isinstance(step, Joint) else 0
        seconds += (epochs - rounding) * epoch[name] + rounding * epoch["Joint, rounding"]
    return seconds


def epoch_seconds(base: Recipe, model: str, sparsity: float, bits: Bits) -> pd.Series:
    """Return the seconds per epoch of each kind: Distill, Prune, Quantize, Joint, and Joint while it rounds.

    Timed in turn, since a machine's speed varies, on the first `BATCHES` batches with cached teacher logits; medians
    over rounds, scaled to all training images. Kept as a table of this machine's times.
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
        medians = pd.DataFrame(rounds[1:]).median()  # the first round warms up and caches the logits
        scale = len(whole.train) / len(cut.train)
        return [{"epoch": kind, "seconds": scale * seconds} for kind, seconds in medians.items()]

    arguments = {"chain": chain.id, "together": together.id, "rounds": count, "batches": BATCHES}
    table = kept_table("joint-seconds", base.dataset, rows, arguments, timed=True)
    return table.set_index("epoch")["seconds"]


def _timed_round(
    teacher: nn.Module, steps: Sequence[Step], once: Joint, cut: Dataset, seed: int, folder: Path, turn: int
) -> dict[str, float]:
    """Return the seconds of one short epoch of each kind, excluding epochs with one-off work such as calibration."""

    def trained_model(step: Step, before: nn.Module) -> tuple[nn.Module, list[float]]:
        checkpoint = Checkpoint(folder / f"{type(step).__name__}-{turn}")
        # The only recipe that the steps name is the teacher's.
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
