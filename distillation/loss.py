"""What a student is told to come near."""

import torch
from torch.nn.functional import cross_entropy, kl_div, log_softmax


def distillation_loss(
    student: torch.Tensor, teacher: torch.Tensor, labels: torch.Tensor, temperature: float, alpha: float
) -> torch.Tensor:
    """`alpha * T^2 * KL(softmax(teacher / T) || softmax(student / T)) + (1 - alpha) * cross-entropy`, a batch mean.

    Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network" (2015). Logits `[B, classes]`, labels
    `[B]`. T^2 keeps the gradients of the soft part about as large at every temperature.
    """
    log_student, log_teacher = (log_softmax(logits / temperature, 1) for logits in (student, teacher))
    soft = kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return alpha * temperature**2 * soft + (1 - alpha) * cross_entropy(student, labels)
