"""Distillation: students and their teachers, and ensembles."""

from distillation.distill import Distill, check_taught, check_teaching, teacher_of
from distillation.ensemble import Ensemble
from distillation.features import attention_loss, hint_loss
from distillation.loss import distillation_loss
from distillation.teacher import Teacher, guided_loss, taught

__all__ = [
    "Distill",
    "Ensemble",
    "Teacher",
    "attention_loss",
    "check_taught",
    "check_teaching",
    "distillation_loss",
    "guided_loss",
    "hint_loss",
    "taught",
    "teacher_of",
]
