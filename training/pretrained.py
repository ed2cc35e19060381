"""`Pretrained`: loads the weights of a network from a file."""

import warnings
from collections.abc import Mapping
from dataclasses import KW_ONLY, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import nn

from models import check_model, spec_of
from recipe import DataError, Step, StepError, is_number
from storage import StorageError, read_tensors, sha256
from training.context import Context
from training.train import fresh

SCALES = {"imagenet": {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}}


@dataclass(frozen=True)
class Pretrained(Step):
    """Load a network's weights from a file: `Pretrained("torchvision:resnet18", weights="resnet18.pth")`.

    weights: a file of safetensors or of torch.save, read with `weights_only=True`, so that none of its code is run.
        Tensors may be nested under "state_dict" and the like, and their names may begin with "module.". The last layer
        gets fresh weights if the number of classes differs, and the first if the number of channels does.
    sha256: the file's checksum, which identifies the file in the recipe. Computed if not given.
    pixels: normalization of the pixels that the network was trained on: "imagenet", or (mean, std) with a number per
        channel, of pixels in 0..1. None for the data set's own.
    """

    letter: ClassVar[str] = ""
    kind: ClassVar[str] = "FP32"
    begins: ClassVar[bool] = True

    model: str
    _: KW_ONLY
    weights: str | Path = field(default="", compare=False, metadata={"identity": False})
    sha256: str = ""
    width: float = 1.0
    pixels: str | tuple[tuple[float, ...], tuple[float, ...]] | None = None

    def check(self) -> None:
        check_model(self.model, self.width)
        _check_pixels(self.pixels)
        if not self.weights and not self.sha256:
            raise StepError("Pretrained needs weights: give it the file, as weights='resnet18.pth'")
        if not self.weights:
            return
        if not isinstance(self.weights, str | Path):
            raise StepError(f"weights must be the path of a file, not {self.weights!r}")
        path = Path(self.weights).expanduser()
        if not path.is_file():
            raise DataError(f"{path} is not a file: set weights to a file of safetensors or of torch.save")
        found = sha256(path)
        if self.sha256 not in ("", found):
            raise DataError(f"{path} has the SHA-256 {found[:12]}..., not {self.sha256[:12]}...: it is another file")
        object.__setattr__(self, "sha256", found)

    @property
    def network(self) -> tuple[str, float]:
        return self.model, self.width

    def words(self) -> list[str]:
        return ["from a file of weights"]

    def apply(self, model: nn.Module | None, context: Context) -> nn.Module:
        if not self.weights:
            raise StepError(f"give the file of weights whose SHA-256 is {self.sha256}: Pretrained(..., weights=PATH)")
        model = fresh(self.model, self.width, context)
        tensors = read_tensors(Path(self.weights).expanduser())
        context.log["fresh_layers"] = load_into(model, tensors, str(self.weights))
        if self.pixels is not None:
            spec_of(model)["pixels"] = _scale(self.pixels, context.dataset.shape[0])
        return model


def load_into(model: nn.Module, tensors: Mapping[str, torch.Tensor], file: str) -> list[str]:
    """Load tensors into a network; return the names of those in its first and last layer that keep fresh weights.

    Raises:
        StorageError: a tensor is missing, has another shape, or holds NaN or infinity; the message names the first one.
    """
    state = model.state_dict()
    tensors = _without_prefix(tensors, state)
    layers = [name for name, module in model.named_modules() if isinstance(module, nn.Conv2d | nn.Linear)]
    ends = {layers[0], *_last(model, layers)} if layers else set()
    fresh_ones: list[str] = []
    for name, own in state.items():
        given = tensors.get(name)
        if given is not None and given.shape == own.shape:
            continue
        if name.rpartition(".")[0] in ends and given is not None:
            fresh_ones.append(name)
            continue
        if given is None and name.endswith("num_batches_tracked"):
            continue
        other = "is missing" if given is None else f"is {list(given.shape)} there and {list(own.shape)} in the network"
        raise StorageError(f"{file} holds weights of another network than {_name(model)}: {name} {other}")
    if unknown := [name for name in tensors if name not in state]:
        warnings.warn(f"{len(unknown)} tensors of {file} are not in {_name(model)}: {unknown[0]}", stacklevel=2)
    if fresh_ones:
        warnings.warn(f"fresh weights, since the shape in {file} differs: {', '.join(fresh_ones)}", stacklevel=2)
    used = {name: tensors[name] for name in state if name in tensors and name not in fresh_ones}
    if broken := [name for name, tensor in used.items() if not tensor.double().isfinite().all()]:
        raise StorageError(f"{file} holds NaN or infinity in {broken[0]}: take weights from before training diverged")
    model.load_state_dict(used, strict=False)
    return fresh_ones


def _without_prefix(tensors: Mapping[str, torch.Tensor], state: Mapping) -> Mapping[str, torch.Tensor]:
    """Return the tensors without a prefix that all of their names have and the network's do not, such as `module.`."""
    while not tensors.keys() & state.keys():
        first = {name.partition(".")[0] for name in tensors}
        if len(first) > 1 or not all("." in name for name in tensors):
            break
        tensors = {name.partition(".")[2]: value for name, value in tensors.items()}
    return tensors


def _last(model: nn.Module, layers: list[str]) -> list[str]:
    """Return the layer, if any, that may compute the logits: the last with as many outputs as there are classes."""
    classes = spec_of(model)["classes"]
    outputs = {name: len(model.get_submodule(name).get_parameter("weight")) for name in layers}
    return [name for name in layers if outputs[name] == classes][-1:]


def _name(model: nn.Module) -> str:
    return spec_of(model)["architecture"]


def _scale(pixels: Any, channels: int) -> dict:
    mean, std = SCALES[pixels].values() if isinstance(pixels, str) else pixels
    if channels == 1 and len(mean) == 3:  # a grey image counts as three equal channels
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)
    if len(mean) != channels:
        raise StepError(f"pixels has {len(mean)} channels, the images have {channels}: give one number per channel")
    return {"mean": list(mean), "std": list(std)}


def _check_pixels(pixels: Any) -> None:
    if pixels is None or (isinstance(pixels, str) and pixels in SCALES):
        return
    if isinstance(pixels, tuple) and len(pixels) == 2 and all(isinstance(part, tuple) and part for part in pixels):
        mean, std = pixels
        if len(mean) == len(std) and all(map(is_number, (*mean, *std))) and min(std) > 0:
            return
    raise StepError(
        "pixels must be 'imagenet', or (mean, std) with one number per channel, such as "
        f"((0.5, 0.5, 0.5), (0.2, 0.2, 0.2)), not {pixels!r}"
    )
