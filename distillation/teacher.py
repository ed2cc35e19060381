"""A teacher's logits, computed once for all of its students."""

import hashlib
from collections.abc import Sequence

import torch
from torch import nn

from data import Batch
from distillation.ensemble import HasTeacher
from distillation.loss import SoftTargets
from models import spec_of
from models.ensemble import mean_logits
from recipe import StepError, Training
from storage import Checkpoint, weights_checksum
from training import Context, Labels, Loss, autocast, forward, lay_out


class Teacher:
    """The logits of one model, or the logarithm of the mean probabilities of several, for the batches of a training.

    Batches follow from (seed, epoch) alone, so that the logits of an epoch are kept, float32, in a file of this
    teacher, seed, epoch and training images, and serve the next student at any batch size without a forward pass.
    The file says inside what it is of, and one of something else is passed over.
    """

    def __init__(self, models: Sequence[nn.Module], context: Context):
        for model in models:
            _check(model, context)
        self.models = [model.to(context.device).eval() for model in models]
        for model in models:
            lay_out(model, torch.zeros(1, *context.dataset.shape, device=context.device))
        self.context = context
        checksums = "".join(weights_checksum(model) for model in models)
        self.checksum = hashlib.sha256(checksums.encode()).hexdigest()
        self.epoch: int | None = None
        self.kept: torch.Tensor | None = None
        self.fresh: list[torch.Tensor] = []

    def logits(self, batch: Batch) -> torch.Tensor:
        """`[B, classes]`, float32, on the batch's device."""
        if batch.epoch != self.epoch:
            self._open(batch)
        start, end = batch.index * len(batch.labels), (batch.index + 1) * len(batch.labels)
        if self.kept is not None and end <= len(self.kept):
            return self.kept[start:end].to(batch.labels.device)
        logits = self._forward(batch.images)
        if self.kept is None and start == sum(map(len, self.fresh)):  # in order from the epoch's start
            self.fresh.append(logits.cpu())
            if end + len(batch.labels) > len(self.context.dataset.train):  # the last whole batch
                self.kept = torch.cat(self.fresh)
                self._file(batch).save({"logits": self.kept}, {})
        return logits

    @torch.no_grad()
    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        with autocast(images.device):
            each = [forward(model, images) for model in self.models]
        return each[0].float() if len(each) == 1 else mean_logits(each, torch.full((len(each),), 1 / len(each)))

    def _open(self, batch: Batch) -> None:
        self.epoch, self.kept, self.fresh = batch.epoch, None, []
        found = self._file(batch).load()
        self.kept = found[0]["logits"] if found else None

    def _file(self, batch: Batch) -> Checkpoint:
        """The place of an epoch's logits; of other images, or drawn otherwise, it is another.

        A folder may have others once it has changed.
        """
        data = self.context.dataset.fingerprint["train"]
        of = {"teacher": self.checksum, "seed": batch.seed, "epoch": batch.epoch, "images": data}
        name = f"logits-{self.checksum[:16]}-{data['images'][:8]}-seed{batch.seed}-epoch{batch.epoch}"
        if batch.augmentation != Training.augmentation:
            of |= {"augmentation": list(batch.augmentation)}
            name += f"-{'-'.join(batch.augmentation) or 'plain'}"
        return Checkpoint(self.context.cache / name, of)


def guided_loss(step: HasTeacher, context: Context) -> Loss:
    """Cross-entropy with the labels, or the distillation loss if the step names a recipe as its `teacher`."""
    if step.teacher is None:
        return Labels().loss(None)
    teacher = Teacher([context.make(step.teacher)], context)
    return SoftTargets(step.temperature, step.alpha).loss(teacher.logits)


def _check(model: nn.Module, context: Context) -> None:
    shape, classes = tuple(spec_of(model)["shape"]), spec_of(model)["classes"]
    dataset = context.dataset
    if shape != tuple(dataset.shape) or classes != len(dataset.classes):
        raise StepError(
            f"the teacher takes images {shape} of {classes} classes, {dataset.name} has {tuple(dataset.shape)} of "
            f"{len(dataset.classes)}: take a teacher of the same data set"
        )
    if spec_of(model).get("pixels", dataset.pixels) != dataset.pixels:
        raise StepError("the teacher was trained on pixels of another scale than its student: take one of these images")
