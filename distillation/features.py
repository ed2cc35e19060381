"""What a student may learn from the middle of its teacher: where it looks (attention), or what it sees (hints)."""

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
    """Squared distance of two attention maps, a batch mean; 0 to 2.

    Zagoruyko and Komodakis, "Paying more attention to attention" (ICLR 2017). Feature maps `[B, channels, H, W]`, of
    as many channels as each likes: the map is their mean square over channels, of length one over the positions.
    """
    own, other = (normalize(maps.float().square().mean(1).flatten(1)) for maps in (student, teacher))
    return (own - other).square().sum(1).mean()


def hint_loss(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """Mean squared difference of feature maps of the same shape, the student's after its regressor.

    Romero et al., "FitNets: hints for thin deep nets" (ICLR 2015), there before the training on answers, here with it.
    """
    return mse_loss(student.float(), teacher.float())


class Guided(nn.Module):
    """A student in training whose feature maps come near those of a teacher.

    Maps are taken just before their size changes and are matched by it. For hints a 1x1 convolution each gives the
    student's map as many channels as the teacher's; these regressors are trained along and belong to nobody after.
    """

    def __init__(self, student: nn.Module, teacher: nn.Module, kind: str):
        super().__init__()
        own, other = map_places(student), map_places(teacher)
        sizes = [size for size in own if size in other]
        if not sizes:
            raise StepError(
                f"no feature map of the student ({_words(own)}) is of the size of one of the teacher's "
                f"({_words(other)}): leave features out, or take another student"
            )
        self.student = student
        self.own_places = [own[size][0] for size in sizes]
        self.teacher = (teacher, [other[size][0] for size in sizes])  # in a tuple: not to be trained, nor to be kept
        self.kind = kind
        channels = [(own[size][1], other[size][1]) for size in sizes] if kind == "hints" else []
        self.regressors = nn.ModuleList(nn.Conv2d(inputs, outputs, 1) for inputs, outputs in channels)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if not self.training:
            return self.student(images)
        logits, self.maps = maps_at(self.student, self.own_places, images)
        if self.kind == "hints":
            self.maps = [regressor(maps) for regressor, maps in zip(self.regressors, self.maps, strict=True)]
        return logits

    def loss(self, temperature: float, alpha: float, weight: float) -> Loss:
        """The distillation loss and `weight` times the mean of the maps' distances, as `fit` takes it.

        The teacher sees the batch that the student saw: its maps are too many to be kept on disk.
        """
        distance = {"attention": attention_loss, "hints": hint_loss}[self.kind]

        def loss(logits: torch.Tensor, batch: Batch) -> torch.Tensor:
            with torch.no_grad(), autocast(batch.images.device):
                taught, teachers = maps_at(*self.teacher, batch.images.contiguous(memory_format=torch.channels_last))
            apart = [distance(own, other) for own, other in zip(self.maps, teachers, strict=True)]
            answers = distillation_loss(logits, taught.float(), batch.labels, temperature, alpha)
            return answers + weight * torch.stack(apart).mean()

        return loss


def map_places(model: nn.Module) -> dict[tuple[int, int], tuple[str, int]]:
    """Where the maps of each height and width of more than a pixel come last: the module's name, and the channels.

    Found by sending an image through. A module that ends after those inside it, a residual block for instance, counts.
    """
    found: dict[tuple[int, int], tuple[str, int]] = {}

    def see(name: str, output: object) -> None:
        if isinstance(output, torch.Tensor) and output.ndim == 4 and output[0, 0].numel() > 1:
            _, channels, height, width = output.shape
            found[height, width] = (name, channels)

    image = torch.zeros(1, *spec_of(model)["shape"], device=next(model.parameters()).device)
    was_training = model.training
    _watched(model.eval(), [name for name, _ in model.named_modules() if name], see, image)
    model.train(was_training)
    return found


def maps_at(model: nn.Module, places: Sequence[str], images: torch.Tensor) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """The logits, and the feature maps that leave the modules of these names."""
    found: dict[str, torch.Tensor] = {}
    logits = _watched(model, places, found.__setitem__, images)
    return logits, [found[place] for place in places]


def _watched(model: nn.Module, names: Sequence[str], see, images: torch.Tensor) -> torch.Tensor:
    """One forward pass, in which `see` is told what leaves the modules of these names. No hook stays behind."""
    handles = [
        model.get_submodule(name).register_forward_hook(lambda module, inputs, output, name=name: see(name, output))
        for name in names
    ]
    try:
        return model(images)
    finally:
        for handle in handles:
            handle.remove()


def _words(places: dict[tuple[int, int], tuple[str, int]]) -> str:
    return ", ".join(f"{height}x{width}" for height, width in places) or "none above a pixel"
