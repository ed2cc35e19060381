"""What training images go through before a network sees them, each drawn for an epoch at once.

An augmentation takes a `Draw` and returns a function of a batch: images `[B, C, H, W]` uint8, the slice of the epoch
that they are, and their places `[B]` in the data set; it gives images of that shape and type. What it draws, it draws
from `Draw.generator`, so that the same (seed, epoch) has the same views everywhere. One of your own is a row:
`recipe.AUGMENTATIONS["mine"] = mine`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torchvision.transforms.v2 import functional

from recipe import AUGMENTATIONS


@dataclass(frozen=True)
class Draw:
    """What an augmentation draws for: `count` images of `height` x `width` in one epoch."""

    count: int
    height: int
    width: int
    generator: torch.Generator
    seed: int
    epoch: int
    flip: bool  # whether a mirrored image keeps its label
    mean: tuple[float, ...]  # of the pixels, 0..1, per channel
    device: torch.device


View = Callable[[torch.Tensor, slice, torch.Tensor], torch.Tensor]


def crop(draw: Draw) -> View:
    """Random crop after reflect padding by an eighth of the side."""
    padding, height, width = draw.height // 8, draw.height, draw.width
    shift_y = torch.randint(-padding, padding + 1, (draw.count, 1), generator=draw.generator)
    shift_x = torch.randint(-padding, padding + 1, (draw.count, 1), generator=draw.generator)
    rows = _reflect(torch.arange(height) + shift_y, height).to(draw.device)
    columns = _reflect(torch.arange(width) + shift_x, width).to(draw.device)

    def view(images: torch.Tensor, part: slice, chosen: torch.Tensor) -> torch.Tensor:
        pixels = (rows[part, :, None] * width + columns[part, None, :]).flatten(1)
        where = pixels[:, None].expand(-1, images.shape[1], -1)
        return images.flatten(2).gather(2, where).unflatten(2, (height, width))

    return view


def flip(draw: Draw) -> View:
    """Mirrored or not, by chance, where the data set allows it."""
    return _mirror(torch.rand(draw.count, generator=draw.generator) < 0.5, draw)


def alternating_flip(draw: Draw) -> View:
    """Mirrored in every other epoch, which one by chance (Jordan, "94% on CIFAR-10 in 3.29 seconds", 2024).

    So no image is seen the same way round in two epochs in a row, as it is by chance half of the time.
    """
    first = torch.rand(draw.count, generator=torch.Generator().manual_seed(draw.seed)) < 0.5
    return _mirror((first ^ bool(draw.epoch % 2)), draw, of_image=True)


def cutout(draw: Draw) -> View:
    """A square of half the side, anywhere, in the mean colour (DeVries and Taylor 2017)."""
    reach = draw.height // 4
    y = torch.randint(draw.height, (draw.count, 1), generator=draw.generator)
    x = torch.randint(draw.width, (draw.count, 1), generator=draw.generator)
    rows = ((torch.arange(draw.height) - y).abs() < reach).to(draw.device)
    columns = ((torch.arange(draw.width) - x).abs() < reach).to(draw.device)
    colour = torch.tensor([round(255 * value) for value in draw.mean], dtype=torch.uint8, device=draw.device)

    def view(images: torch.Tensor, part: slice, chosen: torch.Tensor) -> torch.Tensor:
        inside = rows[part, None, :, None] & columns[part, None, None, :]
        return torch.where(inside, colour[:, None, None], images)

    return view


def mixup(draw: Draw) -> View:
    """Each image mixed with its neighbour in the batch, its own share from one half to 1 (Zhang et al., ICLR 2018).

    The label is that of the larger share: for trainings under a teacher, which says what it sees in the mixture
    (Beyer et al., CVPR 2022).
    """
    share = (0.5 + torch.rand(draw.count, generator=draw.generator) / 2).to(draw.device)

    def view(images: torch.Tensor, part: slice, chosen: torch.Tensor) -> torch.Tensor:
        own = share[part, None, None, None]
        return (own * images + (1 - own) * images.roll(1, 0)).round().to(torch.uint8)

    return view


def resized_crop(draw: Draw) -> View:
    """A part of 35 to 100 % of the area, from 3:4 to 4:3, made as large as the image (Szegedy et al., CVPR 2015)."""
    area = 0.35 + 0.65 * torch.rand(draw.count, generator=draw.generator)
    ratio = torch.exp((torch.rand(draw.count, generator=draw.generator) * 2 - 1) * torch.tensor(4 / 3).log())
    sides = torch.stack([(area / ratio).sqrt() * draw.height, (area * ratio).sqrt() * draw.width], 1)
    whole = torch.tensor([draw.height, draw.width])
    sides = sides.round().long().clamp(min=1).minimum(whole)
    corners = (torch.rand(draw.count, 2, generator=draw.generator) * (whole - sides + 1)).long()
    boxes = torch.cat([corners, sides], 1).tolist()

    def view(images: torch.Tensor, part: slice, chosen: torch.Tensor) -> torch.Tensor:
        size = [draw.height, draw.width]
        cut = (functional.resized_crop(image, *box, size) for image, box in zip(images, boxes[part], strict=True))
        return torch.stack(list(cut))

    return view


def _mirror(flipped: torch.Tensor, draw: Draw, of_image: bool = False) -> View:
    """Mirrors where `flipped` `[count]` says so: by the place in the epoch, or by that of the image in the data set."""
    if not draw.flip:
        return lambda images, part, chosen: images
    flipped = flipped.to(draw.device)

    def view(images: torch.Tensor, part: slice, chosen: torch.Tensor) -> torch.Tensor:
        return torch.where(flipped[chosen if of_image else part, None, None, None], images.flip(3), images)

    return view


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    """Positions outside 0..size-1 mirrored back at the border, as `torch.nn.functional.pad(mode="reflect")` does."""
    return size - 1 - (size - 1 - index.abs()).abs()


AUGMENTATIONS |= {own.__name__: own for own in (crop, flip, alternating_flip, cutout, mixup, resized_crop)}
