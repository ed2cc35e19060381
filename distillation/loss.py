"""The distillation loss."""

from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax

from recipe import Objective, StepError, is_number
from training import Logits, Loss


@dataclass(frozen=True)
class SoftTargets(Objective):
    """Train on a teacher's probabilities as well as on the labels: see `distillation_loss`."""

    temperature: float = 4.0
    alpha: float = 0.9

    def check(self) -> None:
        if not (is_number(self.temperature) and self.temperature > 0):
            raise StepError(f"temperature must be above 0 and finite, not {self.temperature!r}")
        if not (is_number(self.alpha) and 0 <= self.alpha <= 1):
            raise StepError(f"alpha, the teacher's share of the loss, must be from 0 to 1, not {self.alpha!r}")

    def loss(self, teacher: Logits | None) -> Loss:
        if teacher is None:
            raise StepError("soft targets need a teacher: use Distill, or an objective with labels alone")
        return lambda logits, batch: distillation_loss(
            logits, teacher(batch), batch.labels, self.temperature, self.alpha
        )


def distillation_loss(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float, alpha: float
) -> torch.Tensor:
    """Return `alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - alpha) * cross-entropy`.

    The mean over the batch. Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015). Logits
    `[B, classes]`, labels `[B]`. T^2 keeps the gradients of the soft part about as large at every temperature.
    """
    log_student, log_teacher = (log_softmax(logits / temperature, 1) for logits in (student, teacher))
    soft = kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return alpha * temperature**2 * soft + (1 - alpha) * cross_entropy(student, labels)
