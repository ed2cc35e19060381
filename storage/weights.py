"""Weights as safetensors. The header says which network they belong to and carries their checksum."""

import hashlib
import json
import warnings
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from models import ModelError, rebuild, spec_of
from storage.files import StorageError, atomic_write


def save_weights(model: nn.Module, path: Path, log: dict) -> None:
    """Write a model's weights, its `spec`, and the `log` of how it was made (anything that JSON can say).

    A tensor whose values all fit bfloat16 is stored as bfloat16: nothing is lost and the file is half as long.
    """
    _save(_stored(model), {"spec": spec_of(model)}, path, log)


def weights_checksum(model: nn.Module) -> str:
    """SHA-256 of the model's weights and spec; the same before saving and after loading."""
    return _checksum(_stored(model), {"spec": spec_of(model)})


def load_weights(path: Path, checksum: str | None = None) -> tuple[nn.Module, dict]:
    """Rebuild the model whose weights `path` holds, in evaluation mode, and its log.

    Raises:
        StorageError: the file is missing, damaged, or not the one that `checksum` names.
    """
    tensors, header, own = _load(path, "spec")
    if checksum is not None and own != checksum:
        raise StorageError(f"{path} holds other weights than its record says: delete it, and it is made again")
    try:
        model = rebuild(header["spec"])
        model.load_state_dict(tensors)
    except (ModelError, RuntimeError) as error:
        raise StorageError(
            f"{path} is of a network that is built otherwise now ({str(error).splitlines()[0]}): delete it, and it is "
            "made again"
        ) from None
    return model.eval(), header.get("log", {})


class Checkpoint:
    """What a running training keeps between epochs, so that a killed one goes on."""

    def __init__(self, path: Path):
        self.path = path

    def save(self, tensors: dict[str, torch.Tensor], state: dict) -> None:
        """Replace what was kept. `state` is anything that JSON can say."""
        _save({name: tensor.detach().cpu() for name, tensor in tensors.items()}, {"state": state}, self.path)

    def load(self) -> tuple[dict[str, torch.Tensor], dict] | None:
        """What was kept last, or None; a damaged file is passed over with a warning."""
        if not self.path.exists():
            return None
        try:
            tensors, header, _ = _load(self.path, "state")
            return tensors, header["state"]
        except StorageError as error:
            warnings.warn(f"{error}; it is passed over, and what it held is computed again", stacklevel=2)
            return None

    def clear(self) -> None:
        self.path.unlink(missing_ok=True)


def _stored(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: _shortest(tensor.detach().cpu()) for name, tensor in model.state_dict().items()}


def _shortest(tensor: torch.Tensor) -> torch.Tensor:
    tensor = tensor.contiguous()
    if tensor.dtype == torch.float32 and torch.equal(tensor, tensor.bfloat16().float()):
        return tensor.bfloat16()
    return tensor


def _save(tensors: dict[str, torch.Tensor], header: dict, path: Path, log: dict | None = None) -> None:
    # Copies, because safetensors refuses tensors that share memory.
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    header = header | {"sha256": _checksum(tensors, header), "log": log or {}}
    with atomic_write(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"header": json.dumps(header)})
        except SafetensorError as error:  # it wraps a full disk or a folder that may not be written to
            raise OSError(str(error)) from error


def _load(path: Path, what: str) -> tuple[dict[str, torch.Tensor], dict, str]:
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["header"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
        checksum, _ = header["sha256"], header[what]
    except (SafetensorError, OSError, AttributeError, KeyError, TypeError, ValueError) as error:
        raise StorageError(
            f"{path} is missing or no readable weight file ({error}): delete it, and it is made again"
        ) from None
    if _checksum(tensors, header) != checksum:
        raise StorageError(f"{path} is damaged (its checksum differs): delete it, and it is made again")
    return tensors, header, checksum


def _checksum(tensors: dict[str, torch.Tensor], header: dict) -> str:
    """Of all but the log, which holds times and so differs between two makings of the same weights."""
    covered = {key: value for key, value in header.items() if key not in ("sha256", "log")}
    digest = hashlib.sha256(json.dumps(covered, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
