"""The archive: a small file from which exactly the same model is restored.

    bytes       what
    4           magic
    1           format version
    8           BLAKE2b of everything after it, and of the five bytes before
    varint      length of all tensors in memory, in bytes
    varint      length of the packed spec
    ...         the spec: canonical JSON, deflated with a dictionary that every reader has
    4           BLAKE2b of the tensor table: names, types and shapes
    ...         one range-coded stream of all tensors (see `storage.modes`)

The tensor table follows from the network that the spec describes, so it is not stored; its checksum shows whether the
code still builds the same network. Small tensors of the same kind (the biases, the scales) are coded together. In
format version 2, the biases of an integer network are coded as multiples of input scale times weight scale; version 1
is written if there are none. The file holds no code, and every size in it is checked against a limit and against the
network before it is used.
"""

import hashlib
import json
import math
import stat
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from data import PIXELS
from models import ModelError, allow, on_paper, rebuild, spec_of
from models.quantized import bias_steps
from storage.coding import Coder, Reader, Writer
from storage.files import StorageError, atomic_write
from storage.modes import Shape, choose, code_words
from storage.weights import load_tensors

MAGIC, VERSION = b"\x8bNNA", 2
LIMIT = 1 << 30  # maximum bytes of a file, and of its tensors
TRUSTED, TRUSTED_RATIO = 256 << 20, 200  # default limit of the tensors: bytes, or multiple of the file's length
SPEC_LIMIT = 1 << 16
MEMBERS = 64  # maximum networks in a spec: building them takes time before any size can be checked
SMALL = 64  # smaller tensors are coded together with others of their kind
DICTIONARY = (
    b'"widths":[,"depths":[,"students":[{"members":[{"bits":"activation_bits":"weight_bits":false,"ensemble":'
    b'"sparsity":"channels":{"blocks.0.conv1":,"blocks.1.conv2":{"architecture":"resnet18","classes":10,'
    b'"quantized":true,"shape":[1,8,8]}{"architecture":"resnet20","classes":10,"quantized":true,"shape":[3,32,32]}'
)
REMEDY = "give a .nna file, such as those in results/cifar10/models"
KINDS: dict[int, np.dtype] = {1: np.dtype("i1"), 2: np.dtype("i2"), 4: np.dtype("i4"), 8: np.dtype("i8")}
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ArchiveError(StorageError):
    """An archive is damaged, too new, or holds a network that this code cannot build."""


@dataclass(frozen=True)
class Unit:
    """Tensors that are coded together: one large tensor, or all small ones of a kind."""

    names: tuple[str, ...]
    dtype: torch.dtype
    shape: Shape

    @property
    def kind(self) -> np.dtype:
        return KINDS[self.dtype.itemsize]


def save_archive(model: nn.Module, path: Path) -> None:
    """Write the archive of a model, after checking that it decodes to exactly the same model.

    Raises:
        ArchiveError: the model's spec does not describe it.
        StorageError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode(model))
        decoded, original = load_archive(temporary, LIMIT).state_dict(), model.state_dict()
        different = [name for name in original if not torch.equal(_words(original[name]), _words(decoded[name]))]
        if different:
            raise ArchiveError(f"{path} would not restore {different[0]}: not written; this is a bug, please report it")


def load_archive(path: Path, limit: int | None = None, network: str | None = None) -> nn.Module:
    """Load the model in an archive, in evaluation mode on the CPU.

    A few bytes may describe a gigabyte of zeros, so `limit` bounds the bytes of its tensors: by default 256 MiB, or 200
    times the length of the file if that is more. (A float network pruned by 98 % takes 100 times.)

    No code of the user's runs that he did not name: a network of `MODULE:FUNCTION` has to be named as `network`, if no
    recipe of this process did so before.

    Raises:
        ArchiveError: the file, which is named, is missing, not a regular file, damaged, too large, too new, or holds a
            network that this code builds differently, or that was not named.
    """
    if network is not None:
        allow([network])
    try:
        content = read_archive(path)
        if network is not None:
            found = {str(member.get("architecture")) for member in _members(split(content)[0])}
            if network not in found:
                raise ArchiveError(f"it is of the network {' and '.join(sorted(found))}, not of {network}")
        return decode(content, limit)
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error}") from None


def read_archive(path: Path, remedy: str = REMEDY) -> bytes:
    """Return a file's bytes. Refuse one that is too long, or a pipe, on which reading would block."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe or device"
            raise ArchiveError(f"cannot read it (a {kind}, not a file): {remedy}")
        if status.st_size > LIMIT:
            raise ArchiveError(f"it is longer than {LIMIT >> 20} MiB, the limit: {remedy}")
        return path.read_bytes()
    except OSError as error:
        raise ArchiveError(f"cannot read it ({error.strerror or error}): {remedy}") from None


def encode(model: nn.Module) -> bytes:
    """Return the archive of a model as bytes; the same model always gives the same bytes."""
    spec, table = spec_of(model), _checked(model)
    multiples, writer = _multiples(model), Writer()
    state = model.state_dict() | multiples
    for unit in units(table | multiples):
        code_unit(writer, unit, state)
    return sealed(_head(spec, table, version=2 if multiples else 1), writer.content())


def decode(content: bytes, limit: int | None = None) -> nn.Module:
    """Return the model in an archive's bytes, in evaluation mode on the CPU.

    Raises:
        ArchiveError: as `load_archive`.
    """
    return _built(*_opened(content, limit))


def _opened(content: bytes, limit: int | None) -> tuple[int, dict, int, bytes, Reader]:
    """Return version, spec, length, checksum of the table, and a reader with its own copy of the stream."""
    spec, size, digest, stream = split(content)
    limit = max(TRUSTED, TRUSTED_RATIO * len(content)) if limit is None else limit
    if size > limit:
        raise ArchiveError(
            f"its tensors take {size:,} bytes in memory, and the limit is {limit:,}: if you trust the file, set a "
            "higher limit (limit=, or --limit)"
        )
    try:
        return content[4], spec, size, digest, Reader(stream)
    except ValueError as error:
        raise ArchiveError(f"the archive's stream cannot be read ({error})") from None


def _built(version: int, spec: dict, size: int, digest: bytes, reader: Reader) -> nn.Module:
    try:
        model = _on_paper(spec)
        table = model.state_dict()
        if _size(table) != size:
            raise ArchiveError("the archive's tensors do not have the length of its network's")
        if _table_digest(table) != digest:
            raise ArchiveError("the archive is of a network that this version of the code builds differently")
        steps = bias_steps(model) if version >= 2 else {}
        coded = table | {name: table[name].to(torch.int32) for name in steps}
        tensors: dict[str, torch.Tensor] = {}
        for unit in units(coded):
            tensors |= decode_unit(reader, unit, coded)
        for bias, scales in steps.items():
            tensors[bias] = _multiplied(tensors[bias], tensors[scales[0]] * tensors[scales[1]])
        return _filled(model, spec, tensors)
    except ArchiveError:
        raise
    except ModelError as error:
        raise ArchiveError(str(error)) from None
    except Exception as error:  # malformed input may raise anything
        raise ArchiveError(f"the archive does not decode ({type(error).__name__}: {error})") from None


def split(content: bytes) -> tuple[dict, int, bytes, memoryview]:
    """Check an archive's checksum; return spec, length of the tensors, checksum of the table, and coded stream."""
    check_sealed(content, MAGIC, VERSION, f"this is not an archive of a network: {REMEDY}")
    try:
        size, start = varint(content, 13)
        length, start = varint(content, start)
        if size > LIMIT or length > min(SPEC_LIMIT, len(content) - start - 4):
            raise ArchiveError("the archive declares more than an archive may hold")
        spec = _unpacked(content[start : start + length])
    except (IndexError, KeyError, ValueError, RecursionError, zlib.error) as error:
        raise ArchiveError(f"the archive's header cannot be read ({error})") from None
    start += length
    return spec, size, content[start : start + 4], memoryview(content)[start + 4 :]


def archive_table(path: Path, limit: int | None = None, network: str | None = None) -> list[dict]:
    """Return the bytes spent on an archive's header, each large tensor, and each kind of small tensor: one row each.

    `density` is the share of non-zero values, `entropy` the order-0 entropy in bits per value (for floats, summed over
    their bytes), without the cost of transmitting frequencies, and `bits` the bits per value in the file. `bytes` add
    up to the length of the file. `limit` and `network` are those of `load_archive`.
    """
    model, content, writer = load_archive(path, limit, network), read_archive(path), Writer()
    state = model.state_dict() | (_multiples(model) if content[4] >= 2 else {})
    rows: list[dict[str, Any]] = []
    head = len(content) - len(split(content)[3])
    end = head
    rows.append({"layer": "header", "mode": "", "type": "", "shape": "", "bytes": head})
    for unit in units(state):
        code_unit(writer, unit, state)
        start, end = end, head + writer.bits // 8
        rows.append(_row(unit, state, end - start))
    rows[-1]["bytes"] += len(content) - end
    return rows


def _row(unit: Unit, state: dict[str, torch.Tensor], length: int) -> dict:
    words = np.concatenate([_words(state[name]).numpy() for name in unit.names])
    values = len(words)
    parts = [words] if unit.kind.itemsize == 1 else list(words.view(np.uint8).reshape(values, -1).T)
    kind = unit.names[0] if len(unit.names) == 1 else f"{len(unit.names)} x {unit.names[0].rpartition('.')[2]}"
    return {
        "layer": kind,
        "mode": choose(words, unit.shape, unit.dtype == torch.float32).mode if values else "",
        "type": str(unit.dtype).removeprefix("torch."),
        "shape": " x ".join(map(str, state[unit.names[0]].shape)) if len(unit.names) == 1 else "",
        "values": values,
        "density": float(np.count_nonzero(words)) / values if values else None,
        "entropy": sum(map(entropy, parts)) if values else None,
        "bits": 8 * length / values if values else None,
        "bytes": length,
    }


def entropy(values: np.ndarray) -> float:
    """Return the order-0 entropy of integers, in bits per value (Shannon 1948)."""
    share = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(share * np.log2(share)).sum())


def units(table: dict[str, torch.Tensor]) -> list[Unit]:
    """Group the tensors of a state dict into units, in coding order."""
    groups: dict[tuple, list[str]] = {}
    for name, tensor in table.items():
        small = tensor.ndim < 2 or tensor.numel() < SMALL
        key = (name.rpartition(".")[2], tensor.dtype) if small else (name,)
        groups.setdefault(key, []).append(name)
    result = []
    for names in groups.values():
        first = table[names[0]]
        shape = (1, sum(table[name].numel() for name in names), 1, 1)
        if first.ndim >= 2 and first.numel() >= SMALL:
            *kernel, columns = 1, *first.shape[2:]
            shape = (*first.shape[:2], math.prod(kernel), columns)
        result.append(Unit(tuple(names), first.dtype, shape))
    return result


def code_unit(coder: Coder, unit: Unit, state: dict[str, torch.Tensor]) -> None:
    """Encode the tensors of a unit, or measure their length with a Meter."""
    words = np.concatenate([_words(state[name]).numpy() for name in unit.names])
    code_words(coder, words, unit.shape, unit.kind, unit.dtype == torch.float32)


def decode_unit(reader: Reader, unit: Unit, table: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a unit by name, of the types and shapes that `table` has."""
    words = torch.from_numpy(code_words(reader, None, unit.shape, unit.kind, unit.dtype == torch.float32))
    parts = words.split([table[name].numel() for name in unit.names])
    parts = parts if len(parts) == 1 else [part.clone() for part in parts]
    return {
        name: part.view(unit.dtype).reshape(table[name].shape) for name, part in zip(unit.names, parts, strict=True)
    }


def _multiples(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the biases of an integer network as multiples k of their steps: int32, 2k, or -2k - 1 if k is negative.

    Empty if any bias is not an exact multiple (uncalibrated network) or needs more than 30 bits.
    """
    state, multiples = model.state_dict(), {}
    for bias, scales in bias_steps(model).items():
        step = state[scales[0]] * state[scales[1]]
        k = torch.round(state[bias] / step).nan_to_num().clamp(-(2**30), 2**30 - 1).to(torch.int32)
        multiples[bias] = torch.where(k < 0, -2 * k - 1, 2 * k)
        if not torch.equal(_words(_multiplied(multiples[bias], step)), _words(state[bias])):
            return {}
    return multiples


def _multiplied(multiples: torch.Tensor, step: torch.Tensor) -> torch.Tensor:
    k = torch.where(multiples % 2 == 1, -(multiples // 2) - 1, multiples // 2)
    return k.float() * step


def _checked(model: nn.Module) -> dict[str, torch.Tensor]:
    """Return the meta tensors of the network that the model's spec describes; check that the model's match."""
    table = _on_paper(spec_of(model)).state_dict()
    for name, tensor in table.items():
        if tensor.layout != torch.strided or tensor.dtype.itemsize not in KINDS or tensor.is_quantized:
            raise ArchiveError(f"{name} is a {tensor.dtype} tensor of a kind that archives do not support")
    state = model.state_dict()
    if state.keys() != table.keys() or _table_digest({name: state[name] for name in table}) != _table_digest(table):
        raise ArchiveError("the model's tensors differ from the network that its spec describes: correct model.spec")
    if _size(table) > LIMIT:
        raise ArchiveError(f"the model is larger than the {LIMIT >> 20} MiB that an archive may hold")
    return table


def _on_paper(spec: dict) -> nn.Module:
    if _networks(spec) > MEMBERS:
        raise ArchiveError(f"the archive holds more than {MEMBERS} networks")
    return on_paper(lambda: rebuild(spec))


def _members(spec: dict) -> list[dict]:
    """The descriptions of an ensemble's members, or that of the network itself."""
    return [one for member in spec["members"] for one in _members(member)] if "members" in spec else [spec]


def _networks(spec: dict) -> int:
    return sum(map(_networks, spec["members"])) if "members" in spec else 1


def _filled(model: nn.Module, spec: dict, tensors: dict[str, torch.Tensor]) -> nn.Module:
    load_tensors(model, tensors, assign=True)
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        model = rebuild(spec)  # it has tensors that are not in its state dict
        load_tensors(model, tensors)
    return model.eval()


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """Return a tensor's bits as integers, `[numel]`."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(WORDS[tensor.dtype.itemsize])


def _size(table: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in table.values())


def _table_digest(table: dict[str, torch.Tensor]) -> bytes:
    text = json.dumps([[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in table.items()])
    return hashlib.blake2b(text.encode(), digest_size=4).digest()


def _head(spec: dict, table: dict[str, torch.Tensor], version: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=DICTIONARY)
    known = [name for name, pixels in PIXELS.items() if pixels == spec.get("pixels")]
    spec = spec | {"pixels": known[0]} if known else spec  # by name, since the numbers take up to 60 bytes
    text = json.dumps(spec, sort_keys=True, separators=(",", ":")).encode()
    packed = packer.compress(text) + packer.flush()
    if max(len(text), len(packed)) > SPEC_LIMIT:
        raise ArchiveError(f"the model's spec is longer than {SPEC_LIMIT} bytes: shorten it")
    lengths = with_varint(_size(table)) + with_varint(len(packed))
    return MAGIC + bytes([version]) + lengths + packed + _table_digest(table)


def _unpacked(packed: bytes) -> dict:
    unpacker = zlib.decompressobj(-15, zdict=DICTIONARY)
    text = unpacker.decompress(packed, SPEC_LIMIT)
    if not unpacker.eof or unpacker.unused_data:
        raise ValueError("its spec is too long or incomplete")
    spec = json.loads(text)
    if isinstance(spec, dict) and isinstance(spec.get("pixels"), str):
        spec["pixels"] = PIXELS[spec["pixels"]]
    return spec


def sealed(head: bytes, stream: bytes | memoryview = b"") -> bytes:
    """Return the archive, with its checksum inserted after magic and version."""
    return b"".join([head[:5], _digest(head, stream), head[5:], stream])


def check_sealed(content: bytes, magic: bytes, version: int, otherwise: str) -> None:
    """Raise ArchiveError if the content does not begin with `magic` (`otherwise`), is too new, or was damaged."""
    if len(content) > LIMIT or content[:4] != magic or len(content) < 13:
        raise ArchiveError(otherwise)
    if content[4] > version:
        raise ArchiveError(
            f"the archive has format version {content[4]}, this code reads up to {version}: update the code"
        )
    if _digest(content[:5], memoryview(content)[13:]) != content[5:13]:
        raise ArchiveError("the archive is damaged (its checksum differs): download or make it again")


def _digest(*parts: bytes | memoryview) -> bytes:
    """Eight bytes of BLAKE2b of all parts together."""
    digest = hashlib.blake2b(digest_size=8)
    for part in parts:
        digest.update(part)
    return digest.digest()


def with_varint(value: int) -> bytes:
    """A number as seven bits per byte, the lowest first, all but the last byte with the highest bit set."""
    digits = []
    while value >= 128:
        digits.append(value % 128 + 128)
        value //= 128
    return bytes([*digits, value])


def varint(content: bytes, start: int) -> tuple[int, int]:
    """Return the number at `start`, seven bits per byte and lowest first, and the index after it."""
    value = 0
    for digit in range(6):
        byte = content[start + digit]
        value += byte % 128 << 7 * digit
        if byte < 128:
            return value, start + digit + 1
    raise ValueError("a length is too large")
