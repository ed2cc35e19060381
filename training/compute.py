"""The floating-point operations of trainings, counted by torch."""

import torch
from torch import nn
from torch.nn.functional import interpolate
from torch.utils.flop_counter import FlopCounterMode

from recipe import Training


def flop(model: nn.Module, images: torch.Tensor, *, backward: bool = False) -> int:
    """Return the operations of a forward pass, and of the `backward` pass after it, on images `[B, C, H, W]`.

    As torch counts them: two per multiply-accumulate of convolutions and products of matrices, nothing else. The model
    is run in evaluation mode, so that nothing in it changes, and left in the mode it was in.
    """
    was_training = model.training
    model.eval()
    with FlopCounterMode(display=False) as counter, torch.set_grad_enabled(backward):
        logits = model(images)
        if backward:
            logits.sum().backward()
    model.train(was_training)
    if backward:
        model.zero_grad(set_to_none=True)
    return counter.get_total_flops()


def resized(images: torch.Tensor, side: int | None) -> torch.Tensor:
    """Return images `[B, C, H, W]` at another side, or as they are."""
    if side is None:
        return images
    return interpolate(images, size=(side, side), mode="bilinear", antialias=True)


def side_in(training: Training, epoch: int) -> int | None:
    """Return the smaller side that an epoch, from 0, is trained at, or None for the images' own."""
    return training.small_side if epoch < round(training.small_share * training.epochs) else None


def training_pflop(model: nn.Module, training: Training, image: torch.Tensor, images_per_epoch: int) -> float:
    """Return the PFLOP (1e15) of a whole training, forward and backward, from the image `[1, C, H, W]`."""
    sides = [side_in(training, epoch) for epoch in range(training.epochs)]
    per_image = {side: flop(model, resized(image, side), backward=True) for side in set(sides)}
    return 1e-15 * images_per_epoch * sum(per_image[side] for side in sides)
