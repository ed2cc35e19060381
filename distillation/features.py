"""Distillation of feature maps: attention transfer and hints."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.nn.functional import mse_loss, normalize

from data import Batch
from distillation.loss import distillation_loss
from models import spec_of
from recipe import StepError
from training import Loss, autocast

KINDS = ("attention", "hints")


def attention_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the squared distance of two attention maps, averaged over the batch; 0 to 2.

    Zagoruyko and Komodakis, "Paying more attention to attention" (ICLR 2017). Feature maps `[B, channels, H, W]`, whose
    numbers of channels may differ. An attention map is their mean square over channels, normalized to length one.
    """
    ours, theirs = (normalize(maps.float().square().mean(1).flatten(1)) for maps in (student, teacher))
    return (ours - theirs).square().sum(1).mean()


def hint_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Return the mean squared difference of feature maps of the same shape, the student's after its regressor.

    Romero et al., "FitNets: hints for thin deep nets" (ICLR 2015). They train on hints first; here both losses are used
    at once.
    """
    return mse_loss(student.float(), teacher.float())


class Guided(nn.Module):
    """A student whose feature maps are trained to match those of a teacher.

    The maps are the last of each spatial size, and are matched by size. For hints, a 1x1 convolution per map gives the
    student as many channels as the teacher; these regressors are discarded after the training.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, kind: str):
        super().__init__()
        ours, theirs = map_places(student), map_places(teacher)
        sizes = [size for size in ours if size in theirs]
        if not sizes:
            raise StepError(
                f"no feature map of the student ({_words(ours)}) has the size of one of the teacher's "
                f"({_words(theirs)}): leave features out, or use another student"
            )
        self.student = student
        self.places = [ours[size][0] for size in sizes]
        self.teacher = (teacher, [theirs[size][0] for size in sizes])  # a tuple hides it from training and saving
        self.kind = kind
        channels = [(ours[size][1], theirs[size][1]) for size in sizes] if kind == "hints" else []
        self.regressors = nn.ModuleList(nn.Conv2d(inputs, outputs, 1) for inputs, outputs in channels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return self.student(images)
        logits, self.maps = maps_at(self.student, self.places, images)
        if self.kind == "hints":
            self.maps = [regressor(maps) for regressor, maps in zip(self.regressors, self.maps, strict=True)]
        return logits

    def loss(self, temperature: float, alpha: float, weight: float) -> Loss:
        """Return the distillation loss plus `weight` times the mean distance of the maps, for `fit`.

        The teacher's forward pass is computed for every batch: its maps are too large to be cached on disk.
        """
        distance = {"attention": attention_loss, "hints": hint_loss}[self.kind]

        def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            with torch.no_grad(), autocast(batch.images.device):
                teacher_logits, teacher_maps = maps_at(
                    *self.teacher, batch.images.contiguous(memory_format=torch.channels_last)
                )
            distances = [distance(*maps) for maps in zip(self.maps, teacher_maps, strict=True)]
            soft = distillation_loss(logits, teacher_logits.float(), batch.labels, temperature, alpha)
            return soft + weight * torch.stack(distances).mean()

        return loss


def map_places(model: nn.Module) -> dict[tuple[int, int], tuple[str, int]]:
    """Return, for each spatial size above one pixel, the last module with maps of that size, and their channels.

    Found by running an image through the network. A module that contains others, such as a residual block, ends after
    them.
    """
    found: dict[tuple[int, int], tuple[str, int]] = {}

    def note(name: str, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
            _, channels, height, width = output.shape
            found[height, width] = (name, channels)

    image = torch.zeros(1, *spec_of(model)["shape"], device=next(model.parameters()).device)
    was_training = model.training
    _watched(model.eval(), [name for name, _ in model.named_modules() if name], note, image)
    model.train(was_training)
    return found


def maps_at(model: nn.Module, places: Sequence[str], images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return the logits, and the outputs of the modules of these names."""
    found: dict[str, torch.Tensor] = {}
    logits = _watched(model, places, found.__setitem__, images)
    return logits, [found[place] for place in places]


def _watched(model: nn.Module, names: Sequence[str], note, images: torch.Tensor) -> torch.Tensor:
    """Run one forward pass, and call `note(name, output)` for the modules of these names. Its hooks are removed."""
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, inputs, output, name=name: note(name, output))
        for name in names
    ]
    try:
        return model(images)
    finally:
        for handle in handles:
            handle.remove()


def _words(places: dict[tuple[int, int], tuple[str, int]]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in places) or "none above a pixel"
