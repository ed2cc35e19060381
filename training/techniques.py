"""Trainings with techniques at work in them: pruning, rounding, in any mixture."""

import math
from collections.abc import Sequence

from torch import nn

from recipe import StepError, Technique, Training, is_number
from training.context import Context
from training.loop import Loss, fit


def check_techniques(training: Training, techniques: object) -> None:
    """Raise StepError unless these are techniques that go with one another and with a training."""
    if not isinstance(techniques, tuple) or not all(isinstance(own, Technique) for own in techniques):
        raise StepError(f"during is a tuple of techniques, such as during=(Round(4),), not {techniques!r}")
    seen: set[str] = set()
    for technique in techniques:
        if twice := seen & technique.gives:
            raise StepError(f"{technique.name} stands twice in during, or another that gives {min(twice)}: once is all")
        seen |= technique.gives
        technique.check_in(training)


def fit_with(
    model: nn.Module, context: Context, training: Training, techniques: Sequence[Technique], *, loss: Loss, title: str
) -> nn.Module:
    """Train a float `model` with techniques at work, and return what is deployed of it."""
    trained = model
    for technique in techniques:
        trained = technique.form(trained, context)
    callbacks = [technique.callback(model, trained, context, training) for technique in techniques]
    fit(trained, context, training, loss=loss, callbacks=callbacks, title=title)
    for technique in techniques:
        model = technique.deployed(model, trained)
    return model


def first_epoch(share: float, epochs: int) -> int:
    """The first whole epoch, from 0, after a share of so many; 0.1 + 0.1 + 0.1 of ten is the fourth."""
    return math.ceil(share * epochs - 1e-9)


def check_start(name: str, share: object, epochs: int, left_for: str) -> None:
    """Raise StepError unless a share of a training, after which something starts, leaves a whole epoch for it."""
    if not (is_number(share) and isinstance(share, int | float) and 0 <= share < 1):
        raise StepError(f"{name} is a share of the training, 0 to below 1, not {share!r}")
    if first_epoch(share, epochs) == epochs:
        most = math.floor(1000 * (1 - 1 / epochs) + 1e-9) / 1000
        raise StepError(
            f"{name} leaves no whole epoch to {left_for}: of {epochs} epochs it is at most {most:g}, not {share}"
        )
