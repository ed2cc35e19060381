"""The loss of a step with an optional teacher."""

from distillation.ensemble import HasTeacher
from distillation.loss import SoftTargets
from training import Context, Labels, Loss, Teacher


def guided_loss(step: HasTeacher, context: Context) -> Loss:
    """Return the distillation loss if the step has a `teacher`, else the cross-entropy with the labels."""
    if step.teacher is None:
        return Labels().loss(None)
    teacher = Teacher([context.make(step.teacher)], context)
    context.log["teacher_pflop"] = teacher.pflop(step.distinct_epochs)
    return SoftTargets(step.temperature, step.alpha).loss(teacher.logits)
