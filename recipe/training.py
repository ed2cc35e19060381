"""`Training`: the settings of a training, as a value. Every step that trains is a `Training`."""

import dataclasses
from dataclasses import dataclass
from typing import Any, ClassVar

from recipe.checks import check_whole, is_number, plain_fields
from recipe.errors import StepError
from recipe.step import Step

# Registries by name, filled in `training.optimizers`, `training.schedules` and `data.augmentation`.
OPTIMIZERS: dict[str, Any] = {}
SCHEDULES: dict[str, Any] = {}
AUGMENTATIONS: dict[str, Any] = {}


@dataclass(frozen=True, kw_only=True)
class Training:
    """The settings of one training. A step that trains inherits them and may change their defaults.

    epochs: passes over the training images; learning_rate: its peak; batch_size: images per update.
    weight_decay: for the weights of convolutions and linear layers; biases and norms have none.
    optimizer: one of `recipe.OPTIMIZERS`; lr_schedule: one of `recipe.SCHEDULES`.
    augmentation: names from `recipe.AUGMENTATIONS`, applied in this order.
    small_side, small_share: the first `small_share` of the epochs train on images resized to `small_side` (Tan and Le,
        "EfficientNetV2", ICML 2021: progressive learning); a teacher sees them at full size.
    average: decay per update of an exponential moving average of the weights, which replaces the last weights after
        training; 0 turns it off. Polyak and Juditsky (1992).
    views: number of epochs with different batches (None: all). After that they repeat, which limits the forward passes
        of a teacher: they may cost more than the student's training.
    view_seed: seed of the batches (None: the recipe's seed). Students with different seeds but the same view_seed see
        the same batches, so that their teacher's logits are computed only once.
    devices: GPUs, or processes on CPUs, that share every batch (data-parallel), through Ray Train.
    """

    epochs: int = 15
    learning_rate: float = 0.2
    batch_size: int = 128
    weight_decay: float = 5e-4
    optimizer: str = "sgd"
    lr_schedule: str = "one_cycle"
    augmentation: tuple[str, ...] = ("crop", "flip")
    small_side: int | None = None
    small_share: float = 0.5
    average: float = 0.0
    views: int | None = None
    view_seed: int | None = None
    devices: int = 1

    least_epochs: ClassVar[int] = 1

    def __post_init__(self) -> None:
        plain_fields(self)
        self.check_training()

    @property
    def trained_epochs(self) -> int:
        """The epochs that are trained: 0 for a step that has these settings and does not train."""
        return self.epochs

    @property
    def distinct_epochs(self) -> int:
        """The epochs until the batches repeat."""
        return min(self.epochs, self.views or self.epochs)

    def check_training(self) -> None:
        """Raise StepError if a setting is out of range."""
        if self.epochs != 0 or self.least_epochs:
            check_whole("epochs", self.epochs)
        check_whole("batch_size", self.batch_size)
        check_whole("devices", self.devices)
        if self.devices > self.batch_size:
            raise StepError(f"devices share a batch: {self.devices} of them need a batch_size as large or larger")
        if not (is_number(self.learning_rate) and self.learning_rate > 0):
            raise StepError(f"learning_rate must be a finite number above 0, not {self.learning_rate!r}")
        if not (is_number(self.weight_decay) and self.weight_decay >= 0):
            raise StepError(f"weight_decay must be a finite number not below 0, not {self.weight_decay!r}")
        if not isinstance(self.augmentation, tuple):
            raise StepError(f"augmentation is a tuple of names, such as ('crop', 'flip'), not {self.augmentation!r}")
        for what, name, known in (
            ("optimizer", self.optimizer, OPTIMIZERS),
            ("lr_schedule", self.lr_schedule, SCHEDULES),
            *(("augmentation", name, AUGMENTATIONS) for name in self.augmentation),
        ):
            if not isinstance(name, str) or name not in known:
                raise StepError(f"unknown {what} {name!r}: use one of {', '.join(known)}")
        if self.small_side is not None:
            check_whole("small_side", self.small_side)
        if not (is_number(self.small_share) and 0 < self.small_share < 1):
            raise StepError(f"small_share is a share of the epochs, above 0 and below 1, not {self.small_share!r}")
        if not (is_number(self.average) and 0 <= self.average < 1):
            raise StepError(f"average is a decay from 0 to below 1, such as 0.999, not {self.average!r}")
        if self.views is not None:
            check_whole("views", self.views)
        seed = self.view_seed
        if seed is not None and not (isinstance(seed, int) and not isinstance(seed, bool) and 0 <= seed < 2**63):
            raise StepError(f"view_seed is a whole number from 0 to 2^63 - 1 or None, not {self.view_seed!r}")


def training_of(step: Step) -> Training:
    """Return a step as the settings of its training. Raises StepError if the step trains nothing."""
    if not isinstance(step, Training):
        raise StepError(f"{step.name} trains nothing")
    return step


TRAINING_FIELDS = tuple(field.name for field in dataclasses.fields(Training))
