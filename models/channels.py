"""Networks with some channels removed: record the size of each layer, and build a network with those sizes."""

import torch
from torch import nn

from models.errors import ModelError
from models.spec import transformation

# The sizes recorded for each kind of module that may lose channels, outputs first.
SIZES: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Conv1d: ("out_channels", "in_channels", "groups"),
    nn.Conv2d: ("out_channels", "in_channels", "groups"),
    nn.Conv3d: ("out_channels", "in_channels", "groups"),
    nn.Linear: ("out_features", "in_features"),
    nn.modules.batchnorm._NormBase: ("num_features",),  # of batch and instance norm
    nn.GroupNorm: ("num_channels", "num_groups"),
    nn.PReLU: ("num_parameters",),
}


def channel_table(model: nn.Module) -> list[list[int]]:
    """Return the sizes of each convolution (outputs, inputs, groups), linear layer (outputs, inputs), norm and PReLU.

    For any other module with parameters of its own, such as a layer scale, their shapes.
    """
    return [sizes for module in model.modules() if (sizes := _sizes(module))]


@transformation("channels")
def cut(model: nn.Module, table: list[list[int]]) -> nn.Module:
    """Resize the layers of a fresh network to a `channel_table`; weights must be loaded afterwards.

    Raises:
        ModelError: the table belongs to another network.
    """
    modules = [module for module in model.modules() if _sizes(module)]
    fits = len(modules) == len(table) and all(
        len(sizes) == len(whole) and all(isinstance(n, int) and 0 < n <= m for n, m in zip(sizes, whole, strict=True))
        for sizes, whole in zip(table, map(_sizes, modules), strict=False)
    )
    if not fits:
        raise ModelError("the table of channels belongs to another network: the layers differ")
    for module, sizes in zip(modules, table, strict=True):
        _resize(module, sizes)
    return model


def _names(module: nn.Module) -> tuple[str, ...]:
    return next((names for kind, names in SIZES.items() if isinstance(module, kind)), ())


def _sizes(module: nn.Module) -> list[int]:
    if isinstance(module, nn.LayerNorm):
        return list(module.normalized_shape)
    own = [size for parameter in module.parameters(recurse=False) for size in parameter.shape]
    return [getattr(module, name) for name in _names(module)] or own


def _resize(module: nn.Module, sizes: list[int]) -> None:
    for name, shape in _shapes(module, sizes).items():
        old = getattr(module, name)
        new = torch.zeros(shape, dtype=old.dtype, device=old.device)
        setattr(module, name, nn.Parameter(new) if isinstance(old, nn.Parameter) else new)
    for name, size in zip(_names(module), sizes, strict=False):
        setattr(module, name, size)
    if isinstance(module, nn.LayerNorm):
        module.normalized_shape = tuple(sizes)


def _shapes(module: nn.Module, sizes: list[int]) -> dict[str, tuple[int, ...]]:
    """Return the shapes of a module's own tensors, except scalars."""
    if isinstance(module, nn.LayerNorm):
        return {name: tuple(sizes) for name, _ in module.named_parameters(recurse=False)}
    if not _names(module):
        remaining = iter(sizes)
        return {
            name: tuple(next(remaining) for _ in parameter.shape)
            for name, parameter in module.named_parameters(recurse=False)
        }
    own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
    shapes = {name: (sizes[0],) for name, tensor in own if tensor.ndim}
    if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d):
        return shapes | {"weight": (sizes[0], sizes[1] // sizes[2], *module.kernel_size)}
    return shapes | ({"weight": tuple(sizes)} if isinstance(module, nn.Linear) else {})
