"""Augmentations of training images, whose random numbers are drawn for a whole epoch at once.

An augmentation takes a `Draw` and returns a function of one batch: images `[B, C, H, W]` uint8, their slice of the
epoch, and their indices `[B]` in the data set. That function returns images of the same shape and type. All random
numbers come from `Draw.generator`, so that an epoch of a seed looks the same on every machine. Add your own by
`recipe.AUGMENTATIONS["mine"] = mine`.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from recipe import AUGMENTATIONS


@dataclass(frozen=True)
class Draw:
    """One epoch to draw random numbers for: `count` images of `height` x `width`."""

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
    """Crop at random after reflect padding by an eighth of the side."""
    padding, height, width = draw.height // 8, draw.height, draw.width
    shift_y = torch.randint(-padding, padding + 1, (draw.count, 1), generator=draw.generator)
    shift_x = torch.randint(-padding, padding + 1, (draw.count, 1), generator=draw.generator)
    rows = _reflect(torch.arange(height) + shift_y, height).to(draw.device)
    columns = _reflect(torch.arange(width) + shift_x, width).to(draw.device)

    def view(images: torch.Tensor, part: slice, chosen: torch.Tensor) -> torch.Tensor:
        pixels = (rows[part, :, None] * width + columns[part, None, :]).flatten(1)
        index = pixels[:, None].expand(-1, images.shape[1], -1)
        return images.flatten(2).gather(2, index).unflatten(2, (height, width))

    return view


def flip(draw: Draw) -> View:
    """Mirror each image with probability one half, if the data set allows it."""
    return _mirror(torch.rand(draw.count, generator=draw.generator) < 0.5, draw)


def alternating_flip(draw: Draw) -> View:
    """Mirror each image in every other epoch, even or odd at random (Jordan, "94% on CIFAR-10 in 3.29 seconds", 2024).

    Random flips show an image the same way in two consecutive epochs half of the time; this never does.
    """
    first = torch.rand(draw.count, generator=torch.Generator().manual_seed(draw.seed)) < 0.5
    return _mirror((first ^ bool(draw.epoch % 2)), draw, of_image=True)


def cutout(draw: Draw) -> View:
    """Fill a square of half the side, at a random position, with the mean colour (DeVries and Taylor 2017)."""
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
    """Mix each image, with a share of one half to 1, with its neighbour in the batch (Zhang et al., ICLR 2018).

    The image keeps its label, that of the larger share. Use it with a teacher, which labels the mixture itself (Beyer
    et al., CVPR 2022).
    """
    shares = (0.5 + torch.rand(draw.count, generator=draw.generator) / 2).to(draw.device)

    def view(images: torch.Tensor, part: slice, chosen: torch.Tensor) -> torch.Tensor:
        share = shares[part, None, None, None]
        return (share * images + (1 - share) * images.roll(1, 0)).round().to(torch.uint8)

    return view


def resized_crop(draw: Draw) -> View:
    """Resize a random crop of 35 to 100 % of the area, 3:4 to 4:3, to the full size (Szegedy et al., CVPR 2015)."""
    area = 0.35 + 0.65 * torch.rand(draw.count, generator=draw.generator)
    ratio = torch.exp((torch.rand(draw.count, generator=draw.generator) * 2 - 1) * torch.tensor(4 / 3).log())
    sides = torch.stack([(area / ratio).sqrt() * draw.height, (area * ratio).sqrt() * draw.width], 1)
    whole = torch.tensor([draw.height, draw.width])
    sides = sides.round().long().clamp(min=1).minimum(whole)
    corners = (torch.rand(draw.count, 2, generator=draw.generator) * (whole - sides + 1)).long()
    boxes = torch.cat([corners, sides], 1).tolist()
    from torchvision.transforms.v2 import functional  # a second and a half of import, for those who use it

    def view(images: torch.Tensor, part: slice, chosen: torch.Tensor) -> torch.Tensor:
        size = [draw.height, draw.width]
        crops = (functional.resized_crop(image, *box, size) for image, box in zip(images, boxes[part], strict=True))
        return torch.stack(list(crops))

    return view


def _mirror(flipped: torch.Tensor, draw: Draw, of_image: bool = False) -> View:
    """Mirror images where `flipped` `[count]` is True, indexed by position in the epoch or, if `of_image`, by image."""
    if not draw.flip:
        return lambda images, part, chosen: images
    flipped = flipped.to(draw.device)

    def view(images: torch.Tensor, part: slice, chosen: torch.Tensor) -> torch.Tensor:
        return torch.where(flipped[chosen if of_image else part, None, None, None], images.flip(3), images)

    return view


def _reflect(index: torch.Tensor, size: int) -> torch.Tensor:
    """Mirror positions outside 0..size-1 back at the border, as `torch.nn.functional.pad(mode="reflect")` does."""
    return size - 1 - (size - 1 - index.abs()).abs()


AUGMENTATIONS |= {known.__name__: known for known in (crop, flip, alternating_flip, cutout, mixup, resized_crop)}
