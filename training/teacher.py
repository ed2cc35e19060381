"""A teacher's logits, computed once and cached for all of its students."""

import hashlib
from collections.abc import Iterable, Sequence

import torch
from torch import nn

from data import Batch
from models import spec_of
from models.ensemble import mean_logits
from recipe import StepError, Training
from storage import Checkpoint, weights_checksum
from training.compute import flop
from training.context import Context
from training.loop import autocast, batches_of, forward, lay_out


class Teacher:
    """The logits of one model, or the logarithm of the mean probabilities of several, for the batches of a training.

    Batches depend only on (seed, epoch). The logits of an epoch are therefore cached as float32 in a file for this
    teacher, seed, epoch and training images. The next student needs no forward pass, at any batch size. The file states
    what it was made for, and is ignored if that does not match.
    """

    def __init__(self, models: Sequence[nn.Module], context: Context):
        for model in models:
            _check(model, context)
        self.models = [model.to(context.device).eval() for model in models]
        for model in models:
            lay_out(model, torch.zeros(1, *context.dataset.shape, device=context.device))
        self.context = context
        self.checksum = checksum_of(weights_checksum(model) for model in models)
        self.epoch: int | None = None
        self.kept: torch.Tensor | None = None
        self.fresh: list[torch.Tensor] = []

    def logits(self, batch: Batch) -> torch.Tensor:
        """Return the logits of a batch: `[B, classes]`, float32, on its device."""
        if batch.epoch != self.epoch:
            self._open(batch)
        start, end = batch.index * len(batch.labels), (batch.index + 1) * len(batch.labels)
        if self.kept is not None and end <= len(self.kept):
            return self.kept[start:end].to(batch.labels.device)
        logits = self._forward(batch.images)
        if self.kept is None and start == sum(map(len, self.fresh)):  # without gaps since the start of the epoch
            self.fresh.append(logits.cpu())
            if end + len(batch.labels) > len(self.context.dataset.train):  # the last complete batch
                self.kept = torch.cat(self.fresh)
                self._file(batch).save({"logits": self.kept}, {})
        return logits

    def keep(self, training: Training, epochs: Iterable[int]) -> None:
        """Cache the logits of these epochs of a training, before its students need them."""
        train = self.context.dataset.train.to(self.context.device)
        for epoch in epochs:
            for batch in batches_of(training, self.context, train, epoch):
                self.logits(batch)

    def pflop(self, epochs: int) -> float:
        """Return the PFLOP of the forward passes for so many epochs of distinct batches, kept or not."""
        image = torch.zeros(1, *self.context.dataset.shape, device=self.context.device)
        return 1e-15 * epochs * len(self.context.dataset.train) * sum(flop(model, image) for model in self.models)

    @torch.no_grad()
    def _forward(self, images: torch.Tensor) -> torch.Tensor:
        with autocast(images.device):
            logits = [forward(model, images) for model in self.models]
        count = len(logits)
        return logits[0].float() if count == 1 else mean_logits(logits, torch.full((count,), 1 / count))

    def _open(self, batch: Batch) -> None:
        self.epoch, self.kept, self.fresh = batch.epoch, None, []
        found = self._file(batch).load()
        self.kept = found[0]["logits"] if found else None

    def _file(self, batch: Batch) -> Checkpoint:
        data = self.context.dataset.fingerprint["train"]
        of = {"teacher": self.checksum, "seed": batch.seed, "epoch": batch.epoch, "images": data}
        if batch.augmentation != Training.augmentation:
            of |= {"augmentation": list(batch.augmentation)}
        name = logits_name(self.checksum, data["images"], batch.seed, batch.epoch, batch.augmentation)
        return Checkpoint(self.context.cache / name, of)


def checksum_of(weights: Iterable[str]) -> str:
    """Return the checksum of a teacher from those of its models' weights."""
    return hashlib.sha256("".join(weights).encode()).hexdigest()


def logits_name(teacher: str, images: str, seed: int, epoch: int, augmentation: tuple[str, ...]) -> str:
    """Return the file name of an epoch's logits.

    It depends on the training images, which may change in a folder, and on the augmentation.
    """
    name = f"logits-{teacher[:16]}-{images[:8]}-seed{seed}-epoch{epoch}"
    return name if augmentation == Training.augmentation else f"{name}-{'-'.join(augmentation) or 'plain'}"


def _check(model: nn.Module, context: Context) -> None:
    shape, classes = tuple(spec_of(model)["shape"]), spec_of(model)["classes"]
    dataset = context.dataset
    if shape != tuple(dataset.shape) or classes != len(dataset.classes):
        raise StepError(
            f"the teacher takes images {shape} of {classes} classes, {dataset.name} has {tuple(dataset.shape)} of "
            f"{len(dataset.classes)}: take a teacher of the same data set"
        )
    if spec_of(model).get("pixels", dataset.pixels) != dataset.pixels:
        raise StepError(
            "the teacher was trained on pixels of another scale than its student: use a teacher with the same pixels"
        )
