"""Objectives: losses as values."""

from dataclasses import dataclass

from torch.nn.functional import cross_entropy

from recipe import Objective, StepError, is_number
from training.loop import Logits, Loss


@dataclass(frozen=True)
class Labels(Objective):
    """Cross-entropy with labels mixed with a share `smoothing` of the uniform distribution (Szegedy et al. 2016)."""

    smoothing: float = 0.0

    def check(self) -> None:
        if not (is_number(self.smoothing) and 0 <= self.smoothing < 1):
            raise StepError(f"smoothing of labels (label_smoothing) must be in [0, 1), not {self.smoothing!r}")

    def loss(self, teacher: Logits | None) -> Loss:
        return lambda logits, batch: cross_entropy(logits, batch.labels, label_smoothing=self.smoothing)
