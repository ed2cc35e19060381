"""Weights as safetensors files. The header holds the network's spec, the origin of the weights, and their checksum."""

import contextlib
import hashlib
import json
import warnings
from collections import OrderedDict
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from models import ModelError, rebuild, spec_of
from storage.files import StorageError, atomic_write

UNSEALED = {"spec", "state", "sha256", "log"}  # header keys of files written before seals were introduced


def save_weights(model: nn.Module, path: Path, log: dict, of: Mapping | None = None) -> None:
    """Write a model's weights, its `spec`, the `log` of its training and the origin `of` the weights (JSON values).

    A float32 tensor whose values are all exact in bfloat16 is stored as bfloat16, which halves the file without loss.
    """
    _save(_stored(model), {"spec": spec_of(model)}, path, {"log": log, "of": dict(of or {})})


def weights_checksum(model: nn.Module) -> str:
    """Return the SHA-256 of weights and spec (without `pixels`); it is the same after saving and loading."""
    return _checksum(_stored(model), {"spec": spec_of(model)})


def weights_of(path: Path) -> dict:
    """Return the `of` that a file was saved with, and its checksum as `sha256`.

    Only the header is read. Raises StorageError if the file is missing or damaged.
    """
    with _opened(path) as (_, header):
        return header.get("of", {}) | {"sha256": header["sha256"]}


def load_weights(path: Path, checksum: str | None = None) -> tuple[nn.Module, dict]:
    """Return the model whose weights `path` holds, in evaluation mode, and its log.

    Raises:
        StorageError: the file is missing or damaged, or its checksum is not `checksum`.
    """
    tensors, header = _load(path, "spec")
    if checksum is not None and header["sha256"] != checksum:
        raise StorageError(f"{path} holds other weights than its record says: delete it, and it is made again")
    try:
        model = rebuild(header["spec"])
        load_tensors(model, tensors)
    except (ModelError, RuntimeError) as error:
        raise StorageError(
            f"{path} is of a network that is built differently now ({str(error).splitlines()[0]}): delete it, and it "
            "is made again"
        ) from None
    return model.eval(), header.get("log", {})


def load_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor], assign: bool = False) -> None:
    """Load tensors as if they were saved by this version of the modules, which may number versions of their state."""
    state = OrderedDict(tensors)
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state, assign=assign)


class Checkpoint:
    """State of a running training, saved between epochs so that an interrupted training can resume.

    `of` identifies the training by JSON values (recipe, data, networks). It is saved in the file, and a file with
    another `of` is ignored.
    """

    def __init__(self, path: Path, of: Mapping | None = None):
        self.path, self.of = path, of or {}

    def save(self, tensors: dict[str, torch.Tensor], state: dict) -> None:
        """Replace the saved state. `state` holds JSON values."""
        tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        _save(tensors, {"state": state}, self.path, {"of": dict(self.of)})

    def load(self) -> tuple[dict[str, torch.Tensor], dict] | None:
        """Return what was saved last, or None. A file that is damaged or has another `of` is ignored with a warning."""
        if not self.path.exists():
            return None
        try:
            tensors, header = _load(self.path, "state")
            then, now = header.get("of", {}), json.loads(json.dumps(dict(self.of)))
            if then != now:
                different = ", ".join(key for key in sorted({*then, *now}) if then.get(key) != now.get(key))
                raise StorageError(f"{self.path} does not hold what is needed ({different} differs)")
            return tensors, header["state"]
        except StorageError as error:
            warnings.warn(f"{error}; it is ignored, and its content is computed again", stacklevel=2)
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


def _save(tensors: dict[str, torch.Tensor], covered: dict, path: Path, more: dict) -> None:
    # Copied, because safetensors refuses tensors that share memory.
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    header = covered | more | {"sha256": _checksum(tensors, covered)}
    header["seal"] = _seal(header)
    with atomic_write(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"header": json.dumps(header)})
        except SafetensorError as error:  # wraps a full disk or a read-only folder
            raise OSError(str(error)) from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[safe_open, dict]]:
    """Open a file and yield it with its header, after checking the header's seal."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["header"])
            if header.keys() - UNSEALED and header["seal"] != _seal(header):
                raise ValueError("its header was changed")
            yield file, header
    except (AttributeError, KeyError, TypeError):
        raise StorageError(
            f"{path} was not written by save_weights: move it elsewhere; Pretrained(..., weights=PATH) reads such files"
        ) from None
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise StorageError(
            f"{path} is missing or not a readable weight file ({error}): delete it, and it is made again"
        ) from None


def _load(path: Path, what: str) -> tuple[dict[str, torch.Tensor], dict]:
    with _opened(path) as (file, header):
        covered = {what: header[what]}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a mapping)
    if _checksum(tensors, covered) != header["sha256"]:
        raise StorageError(f"{path} is damaged (its checksum differs): delete it, and it is made again")
    return tensors, header


def _seal(header: dict) -> str:
    """Return the checksum of the header, including the log; the weights' checksum excludes it, since it holds times."""
    rest = {key: value for key, value in header.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _checksum(tensors: dict[str, torch.Tensor], covered: dict) -> str:
    """Return the checksum of the tensors and of their spec or state.

    `pixels` is left out: it follows from the images, which are checked separately, and existing records have checksums
    without it.
    """
    if "spec" in covered:
        covered = {"spec": {key: value for key, value in covered["spec"].items() if key != "pixels"}}
    digest = hashlib.sha256(json.dumps(covered, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
