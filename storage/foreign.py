"""Weights saved by other projects: safetensors, or torch.save files read without running any code in them."""

import pickle
import warnings
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from storage.files import StorageError

INSIDE = ("state_dict", "model_state_dict", "model", "net", "network", "model_ema", "ema", "weights")


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Return the tensors of a file by name, also if they are nested in a dictionary with other entries.

    Raises:
        StorageError: the file is missing, damaged, of another format, or cannot be read without running code.
    """
    if path.suffix == ".safetensors":
        try:
            return _unwrapped(load_file(path), path)
        except (SafetensorError, OSError) as error:
            raise StorageError(f"{path} is not a readable safetensors file ({error}): fetch it again") from None
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of odd pickles, which are errors below
            loaded = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError:
        raise StorageError(
            f"{path} holds more than tensors, or is damaged; only code in the file could build the rest, and it is not "
            "run: save the network's state_dict() alone, best as safetensors"
        ) from None
    except Exception as error:  # a damaged file may raise anything
        raise StorageError(f"{path} is not a readable torch.save file ({_reason(error)}): fetch it again") from None
    return _unwrapped(loaded, path)


def _reason(error: BaseException) -> str:
    """Return the first line of an error that is in words; torch lets through others, such as `KeyError: 101`."""
    line = str(error).partition("\n")[0]
    return line if " " in line else "it is damaged"


def _unwrapped(loaded: object, path: Path) -> dict[str, torch.Tensor]:
    while isinstance(loaded, Mapping) and not any(isinstance(value, torch.Tensor) for value in loaded.values()):
        inside = next((loaded[name] for name in INSIDE if isinstance(loaded.get(name), Mapping)), None)
        if inside is None:
            break
        loaded = inside
    if not isinstance(loaded, Mapping):
        raise StorageError(f"{path} holds a {type(loaded).__name__}, not a state_dict: save model.state_dict()")
    tensors = {str(name): value.detach() for name, value in loaded.items() if isinstance(value, torch.Tensor)}
    if not tensors:
        raise StorageError(f"{path} holds no tensors: save model.state_dict()")
    return tensors
