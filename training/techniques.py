"""Training with techniques, such as pruning and rounding, in any combination."""

import math
from collections.abc import Sequence
from typing import Any

from torch import nn

from recipe import StepError, Technique, Training, is_number, returned
from training.callbacks import Callback
from training.context import Context
from training.loop import Loss, fit


def check_techniques(training: Training, techniques: object) -> None:
    """Raise StepError unless `techniques` is a tuple of techniques that fit each other and the training."""
    if not isinstance(techniques, tuple) or not all(isinstance(technique, Technique) for technique in techniques):
        classes = [one for one in techniques if isinstance(one, type)] if isinstance(techniques, tuple) else []
        if classes:
            raise StepError(f"during holds the class {classes[0].__name__}: write {classes[0].__name__}(), a value")
        raise StepError(f"during is a tuple of techniques, such as during=(Round(4),), not {techniques!r}")
    seen: set[str] = set()
    for technique in techniques:
        if twice := seen & technique.gives:
            raise StepError(f"{technique.name} is not the only technique in during that gives {min(twice)}: use one")
        seen |= technique.gives
        technique.check_in(training)


def fit_with(
    model: nn.Module, context: Context, training: Training, techniques: Sequence[Technique], *, loss: Loss, title: str
) -> nn.Module:
    """Train a float `model` with techniques and return the model to deploy."""
    trained = model
    for technique in techniques:
        trained = returned(technique, "form", technique.form(trained, context), nn.Module)
    callbacks = [
        returned(technique, "callback", technique.callback(model, trained, context, training), Callback)
        for technique in techniques
    ]
    fit(trained, context, training, loss=loss, callbacks=callbacks, title=title)
    for technique in techniques:
        model = returned(technique, "deployed", technique.deployed(model, trained), nn.Module)
    return model


def first_epoch(share: float, epochs: int) -> int:
    """Return the index, from 0, of the first epoch that starts after this share of all epochs.

    Rounding errors do not count: a share of 0.1 + 0.1 + 0.1 of ten epochs gives 3.
    """
    return math.ceil(share * epochs - 1e-9)


def check_start(name: str, share: Any, epochs: int, left_for: str) -> None:
    """Raise StepError unless the `share` of a training after which something starts leaves it a whole epoch."""
    if not (is_number(share) and 0 <= share < 1):
        raise StepError(f"{name} is a share of the training, 0 to below 1, not {share!r}")
    if first_epoch(share, epochs) == epochs:
        most = math.floor(1000 * (1 - 1 / epochs) + 1e-9) / 1000
        raise StepError(
            f"{name} leaves no whole epoch to {left_for}: with {epochs} epochs it is at most {most:g}, not {share}"
        )
