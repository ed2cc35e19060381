"""Networks with some of their channels cut away: how wide each layer is left, and such a network built anew."""

import torch
from torch import nn

from models.errors import ModelError

KINDS = (nn.Conv2d, nn.Linear, nn.BatchNorm2d, nn.BatchNorm1d)
Sized = nn.Conv2d | nn.Linear | nn.BatchNorm2d | nn.BatchNorm1d


def channel_table(model: nn.Module) -> list[list[int]]:
    """What is left of each convolution (outputs, inputs, groups), linear layer (outputs, inputs) and batch norm."""
    return [_sizes(module) for module in model.modules() if isinstance(module, KINDS)]


def cut(model: nn.Module, table: list[list[int]]) -> nn.Module:
    """Give the layers of a fresh network the sizes that `channel_table` found; their weights are to be loaded.

    Raises:
        ModelError: the table belongs to another network.
    """
    modules = [module for module in model.modules() if isinstance(module, KINDS)]
    fits = len(modules) == len(table) and all(
        len(sizes) == len(whole) and all(isinstance(n, int) and 0 < n <= m for n, m in zip(sizes, whole, strict=True))
        for sizes, whole in zip(table, map(_sizes, modules), strict=False)
    )
    if not fits:
        raise ModelError("the table of channels belongs to another network: its layers are not those")
    for module, sizes in zip(modules, table, strict=True):
        _resize(module, sizes)
    return model


def _sizes(module: Sized) -> list[int]:
    if isinstance(module, nn.Conv2d):
        return [module.out_channels, module.in_channels, module.groups]
    return [module.out_features, module.in_features] if isinstance(module, nn.Linear) else [module.num_features]


def _resize(module: Sized, sizes: list[int]) -> None:
    outputs = sizes[0]
    shapes: dict[str, tuple[int, ...]] = dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (outputs,))
    if isinstance(module, nn.Conv2d):
        module.out_channels, module.in_channels, module.groups = sizes
        shapes["weight"] = (outputs, sizes[1] // sizes[2], *module.kernel_size)
    elif isinstance(module, nn.Linear):
        module.out_features, module.in_features = sizes
        shapes["weight"] = tuple(sizes)
    else:
        module.num_features = outputs
    for name, shape in shapes.items():
        old = getattr(module, name, None)
        if old is not None:
            new = torch.zeros(shape, dtype=old.dtype, device=old.device)
            setattr(module, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
