"""Weights as safetensors. The header says which network they belong to, what they were made of, and their checksum."""

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

UNSEALED = {"spec", "state", "sha256", "log"}  # the header of files from before there were seals


def save_weights(model: nn.Module, path: Path, log: dict, of: Mapping | None = None) -> None:
    """Write a model's weights, its `spec`, the `log` of how it was made and what it is `of` (anything JSON can say).

    A tensor whose values all fit bfloat16 is stored as bfloat16: nothing is lost and the file is half as long.
    """
    _save(_stored(model), {"spec": spec_of(model)}, path, {"log": log, "of": dict(of or {})})


def weights_checksum(model: nn.Module) -> str:
    """SHA-256 of the model's weights and of its spec without the scale of pixels; the same after saving and loading."""
    return _checksum(_stored(model), {"spec": spec_of(model)})


def weights_of(path: Path) -> dict:
    """What `save_weights` or a checkpoint was told that a file is of, empty if nothing; `sha256` is its checksum.

    Only the header is read. Raises StorageError if the file is missing or damaged.
    """
    with _opened(path) as (_, header):
        return header.get("of", {}) | {"sha256": header["sha256"]}


def load_weights(path: Path, checksum: str | None = None) -> tuple[nn.Module, dict]:
    """Rebuild the model whose weights `path` holds, in evaluation mode, and its log.

    Raises:
        StorageError: the file is missing, damaged, or not the one that `checksum` names.
    """
    tensors, header = _load(path, "spec")
    if checksum is not None and header["sha256"] != checksum:
        raise StorageError(f"{path} holds other weights than its record says: delete it, and it is made again")
    try:
        model = rebuild(header["spec"])
        load_tensors(model, tensors)
    except (ModelError, RuntimeError) as error:
        raise StorageError(
            f"{path} is of a network that is built otherwise now ({str(error).splitlines()[0]}): delete it, and it is "
            "made again"
        ) from None
    return model.eval(), header.get("log", {})


def load_tensors(model: nn.Module, tensors: Mapping[str, torch.Tensor], assign: bool = False) -> None:
    """Load tensors as those of a network of this code, whatever versions its modules keep of their state."""
    state = OrderedDict(tensors)
    state._metadata = model.state_dict()._metadata  # type: ignore[attr-defined]
    model.load_state_dict(state, assign=assign)


class Checkpoint:
    """What a running training keeps between epochs, so that a killed one goes on.

    `of` says which training it is (recipe, data, networks: anything that JSON can say). The file says so too, and one
    of another training is passed over.
    """

    def __init__(self, path: Path, of: Mapping | None = None):
        self.path, self.of = path, of or {}

    def save(self, tensors: dict[str, torch.Tensor], state: dict) -> None:
        """Replace what was kept. `state` is anything that JSON can say."""
        tensors = {name: tensor.detach().cpu() for name, tensor in tensors.items()}
        _save(tensors, {"state": state}, self.path, {"of": dict(self.of)})

    def load(self) -> tuple[dict[str, torch.Tensor], dict] | None:
        """What was kept last, or None; a file that is damaged or of something else is passed over with a warning."""
        if not self.path.exists():
            return None
        try:
            tensors, header = _load(self.path, "state")
            then, now = header.get("of", {}), json.loads(json.dumps(dict(self.of)))
            if then != now:
                different = ", ".join(key for key in sorted({*then, *now}) if then.get(key) != now.get(key))
                raise StorageError(f"{self.path} is of something else than what is asked for (other {different})")
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


def _save(tensors: dict[str, torch.Tensor], covered: dict, path: Path, more: dict) -> None:
    # Copies, because safetensors refuses tensors that share memory.
    tensors = {name: tensor.contiguous().clone() for name, tensor in tensors.items()}
    header = covered | more | {"sha256": _checksum(tensors, covered)}
    header["seal"] = _seal(header)
    with atomic_write(path) as temporary:
        try:
            save_file(tensors, temporary, metadata={"header": json.dumps(header)})
        except SafetensorError as error:  # it wraps a full disk or a folder that may not be written to
            raise OSError(str(error)) from error


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[tuple[safe_open, dict]]:
    """The open file and its header, once the header is whole and is what was written."""
    try:
        with safe_open(path, framework="pt") as file:
            header = json.loads(file.metadata()["header"])
            if header.keys() - UNSEALED and header["seal"] != _seal(header):
                raise ValueError("its header was changed")
            yield file, header
    except (SafetensorError, OSError, AttributeError, KeyError, TypeError, ValueError, RecursionError) as error:
        raise StorageError(
            f"{path} is missing or no readable weight file ({error}): delete it, and it is made again"
        ) from None


def _load(path: Path, what: str) -> tuple[dict[str, torch.Tensor], dict]:
    with _opened(path) as (file, header):
        covered = {what: header[what]}
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    if _checksum(tensors, covered) != header["sha256"]:
        raise StorageError(f"{path} is damaged (its checksum differs): delete it, and it is made again")
    return tensors, header


def _seal(header: dict) -> str:
    """Checksum of the header, log included, which the one of the weights leaves out: it holds times."""
    rest = {key: value for key, value in header.items() if key != "seal"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def _checksum(tensors: dict[str, torch.Tensor], covered: dict) -> str:
    """Of the tensors, and of the spec or state that they go with.

    The scale of pixels is left out: it follows from the images, which are checked by themselves, and the checksums of
    records are older than it.
    """
    if "spec" in covered:
        covered = {"spec": {key: value for key, value in covered["spec"].items() if key != "pixels"}}
    digest = hashlib.sha256(json.dumps(covered, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        digest.update(f"{name} {tensor.dtype} {list(tensor.shape)}".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()
