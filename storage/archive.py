"""The archive: the smallest file from which exactly the same model comes back.

    bytes       what
    4           magic
    1           format version
    8           BLAKE2b of everything after it, and of the five bytes before
    varint      length of all tensors in memory, in bytes
    varint      length of the packed spec
    ...         the spec: canonical JSON, deflated with a dictionary that every reader has
    4           BLAKE2b of the tensor table: names, types and shapes
    ...         one range-coded stream of all tensors (see `storage.modes`)

The network that the spec describes gives the tensor table, so that it need not be stored; its checksum tells when the
code has come to build another network. Small tensors of the same kind (the biases, the scales) are coded as one.
In format version 2 the biases of an integer network are coded as the whole multiples that they are of the scales of
input and weight; version 1 is written where there are none.
Nothing in the file is code, and no size in it is believed before it is compared with a limit and with the network's.
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
LIMIT = 1 << 30  # bytes of a file, and of the tensors in one
TRUSTED, TRUSTED_RATIO = 256 << 20, 200  # bytes of tensors that are loaded unasked, and times the file's own
SPEC_LIMIT = 1 << 16
MEMBERS = 64  # networks in a spec, at most: building them takes time before any size can be compared
SMALL = 64  # tensors of fewer values are coded together with others of their kind
DICTIONARY = (
    b'"widths":[,"depths":[,"students":[{"members":[{"bits":"activation_bits":"weight_bits":false,"ensemble":'
    b'"sparsity":"channels":{"blocks.0.conv1":,"blocks.1.conv2":{"architecture":"resnet18","classes":10,'
    b'"quantized":true,"shape":[1,8,8]}{"architecture":"resnet20","classes":10,"quantized":true,"shape":[3,32,32]}'
)
REMEDY = "give a .nna file, such as those in results/cifar10/models"
KINDS: dict[int, np.dtype] = {1: np.dtype("i1"), 2: np.dtype("i2"), 4: np.dtype("i4"), 8: np.dtype("i8")}
WORDS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


class ArchiveError(StorageError):
    """An archive that is damaged, too new, or of no network that this code can build."""


@dataclass(frozen=True)
class Unit:
    """Tensors that are coded together: one large one, or the small ones of a kind."""

    names: tuple[str, ...]
    dtype: torch.dtype
    shape: Shape

    @property
    def kind(self) -> np.dtype:
        return KINDS[self.dtype.itemsize]


def save_archive(model: nn.Module, path: Path) -> None:
    """Write the archive of a model, once what it decodes to is the same bit for bit.

    Raises:
        ArchiveError: the model's spec does not describe it.
        StorageError: the file cannot be written.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(encode(model))
        again, own = load_archive(temporary, LIMIT).state_dict(), model.state_dict()
        different = [name for name in own if not torch.equal(_words(own[name]), _words(again[name]))]
        if different:
            raise ArchiveError(f"{path} would give another {different[0]}: not written; this is a fault to report")


def load_archive(path: Path, limit: int | None = None, network: str | None = None) -> nn.Module:
    """The model that an archive holds, in evaluation mode on the CPU.

    A few bytes may describe tensors of a gigabyte, all zero. More than `limit` bytes of tensors are not loaded: by
    default 256 MiB, or 200 times the length of the file if that is more. (A float network pruned by 98 % takes 100.)

    No code of the user's runs that he did not name: a network of `MODULE:FUNCTION` has to be named as `network`, if no
    recipe of this process did so before.

    Raises:
        ArchiveError: the file, which is named, is missing, no file, damaged, too large, too new, or of a network that
            is built otherwise now, or that was not named.
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


def read_archive(path: Path) -> bytes:
    """An archive's bytes, unless there are too many of them, or it is a pipe that would be waited for."""
    try:
        status = path.stat()
        if not stat.S_ISREG(status.st_mode):
            kind = "folder" if stat.S_ISDIR(status.st_mode) else "pipe or device"
            raise ArchiveError(f"cannot read it (a {kind} and no file): {REMEDY}")
        if status.st_size > LIMIT:
            raise ArchiveError(f"this is no archive of a network, it is longer than {LIMIT >> 20} MiB: {REMEDY}")
        return path.read_bytes()
    except OSError as error:
        raise ArchiveError(f"cannot read it ({error.strerror or error}): {REMEDY}") from None


def encode(model: nn.Module) -> bytes:
    """The archive of a model as bytes; the same bytes for the same model."""
    spec, table = spec_of(model), _checked(model)
    multiples, writer = _multiples(model), Writer()
    state = model.state_dict() | multiples
    for unit in units(table | multiples):
        code_unit(writer, unit, state)
    return _sealed(_head(spec, table, version=2 if multiples else 1), writer.content())


def decode(content: bytes, limit: int | None = None) -> nn.Module:
    """The model in an archive's bytes, in evaluation mode on the CPU.

    Raises:
        ArchiveError: as `load_archive`.
    """
    return _built(*_opened(content, limit))


def _opened(content: bytes, limit: int | None) -> tuple[int, dict, int, bytes, Reader]:
    """Version, spec, length, checksum of the table, and a reader with a copy of the stream: the bytes may go."""
    spec, size, digest, stream = split(content)
    limit = max(TRUSTED, TRUSTED_RATIO * len(content)) if limit is None else limit
    if size > limit:
        raise ArchiveError(
            f"its tensors take {size:,} bytes in memory, and the limit is {limit:,}: if you trust the file, give a "
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
            raise ArchiveError("the archive's length of tensors is not that of its network")
        if _table_digest(table) != digest:
            raise ArchiveError("the archive is of a network that this version of the code builds otherwise")
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
    except Exception as error:  # whatever a spec or a stream that nobody wrote may set off
        raise ArchiveError(f"the archive does not decode ({type(error).__name__}: {error})") from None


def split(content: bytes) -> tuple[dict, int, bytes, memoryview]:
    """Spec, length of the tensors, checksum of the table, and coded stream of an archive whose checksum is right."""
    if len(content) > LIMIT or content[:4] != MAGIC or len(content) < 13:
        raise ArchiveError(f"this is no archive of a network: {REMEDY}")
    if content[4] > VERSION:
        raise ArchiveError(
            f"the archive has format version {content[4]}, this code reads up to {VERSION}: update the code"
        )
    if digest_of(content[:5], memoryview(content)[13:]) != content[5:13]:
        raise ArchiveError("the archive is damaged (its checksum differs): fetch or make it again")
    try:
        size, place = varint(content, 13)
        length, place = varint(content, place)
        if size > LIMIT or length > min(SPEC_LIMIT, len(content) - place - 4):
            raise ArchiveError("the archive declares more than an archive may hold")
        spec = _unpacked(content[place : place + length])
    except (IndexError, KeyError, ValueError, RecursionError, zlib.error) as error:
        raise ArchiveError(f"the archive's header cannot be read ({error})") from None
    place += length
    return spec, size, content[place : place + 4], memoryview(content)[place + 4 :]


def archive_table(path: Path, limit: int | None = None, network: str | None = None) -> list[dict]:
    """Where an archive's bytes go: a row for its header, each large tensor, and the small tensors of each kind.

    `density` is the share of values that are not zero; `entropy` the order-0 entropy in bits a value (of floats, of
    their bytes, each place by itself), with nothing for telling frequencies; `bits` what a value takes; `bytes` add up
    to the length of the file. `limit` and `network` are those of `load_archive`.
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
    """The order-0 entropy of integers, in bits a value (Shannon 1948)."""
    share = np.unique(values, return_counts=True)[1] / len(values)
    return float(-(share * np.log2(share)).sum())


def units(table: dict[str, torch.Tensor]) -> list[Unit]:
    """How the tensors of a state dict are put together, in the order of their coding."""
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
    """Encode, or meter, the tensors of a unit."""
    words = np.concatenate([_words(state[name]).numpy() for name in unit.names])
    code_words(coder, words, unit.shape, unit.kind, unit.dtype == torch.float32)


def decode_unit(reader: Reader, unit: Unit, table: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """The tensors of a unit by name, of the types and shapes that `table` has."""
    words = torch.from_numpy(code_words(reader, None, unit.shape, unit.kind, unit.dtype == torch.float32))
    own = words.split([table[name].numel() for name in unit.names])
    own = own if len(own) == 1 else [part.clone() for part in own]
    return {name: part.view(unit.dtype).reshape(table[name].shape) for name, part in zip(unit.names, own, strict=True)}


def _multiples(model: nn.Module) -> dict[str, torch.Tensor]:
    """The biases of an integer network as multiples of their steps, int32: 2k, or -2k - 1 of a negative k.

    Nothing, if one of them is none, as in a network that was not calibrated, or is beyond 30 bits.
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
    """The tensors, on paper, of the network that is rebuilt from the model's spec. The model's must be like them."""
    table = _on_paper(spec_of(model)).state_dict()
    for name, tensor in table.items():
        if tensor.layout != torch.strided or tensor.dtype.itemsize not in KINDS or tensor.is_quantized:
            raise ArchiveError(f"{name} is a {tensor.dtype} tensor of a kind that archives do not hold")
    own = model.state_dict()
    if own.keys() != table.keys() or _table_digest({name: own[name] for name in table}) != _table_digest(table):
        raise ArchiveError("the model has other tensors than the network that its spec describes: correct model.spec")
    if _size(table) > LIMIT:
        raise ArchiveError(f"the model is larger than the {LIMIT >> 20} MiB that an archive may hold")
    return table


def _on_paper(spec: dict) -> nn.Module:
    if _networks(spec) > MEMBERS:
        raise ArchiveError(f"the archive is of more than {MEMBERS} networks in one")
    return on_paper(lambda: rebuild(spec))


def _members(spec: dict) -> list[dict]:
    """The descriptions of an ensemble's members, or that of the network itself."""
    return [one for member in spec["members"] for one in _members(member)] if "members" in spec else [spec]


def _networks(spec: dict) -> int:
    return sum(map(_networks, spec["members"])) if "members" in spec else 1


def _filled(model: nn.Module, spec: dict, tensors: dict[str, torch.Tensor]) -> nn.Module:
    load_tensors(model, tensors, assign=True)
    if any(tensor.is_meta for tensor in (*model.parameters(), *model.buffers())):
        model = rebuild(spec)  # it has tensors of its own making beside those in its state dict
        load_tensors(model, tensors)
    return model.eval()


def _words(tensor: torch.Tensor) -> torch.Tensor:
    """A tensor's bits as integers, `[numel]`."""
    return tensor.detach().cpu().contiguous().reshape(-1).view(WORDS[tensor.dtype.itemsize])


def _size(table: dict[str, torch.Tensor]) -> int:
    return sum(tensor.numel() * tensor.dtype.itemsize for tensor in table.values())


def _table_digest(table: dict[str, torch.Tensor]) -> bytes:
    text = json.dumps([[name, str(tensor.dtype), list(tensor.shape)] for name, tensor in table.items()])
    return hashlib.blake2b(text.encode(), digest_size=4).digest()


def _head(spec: dict, table: dict[str, torch.Tensor], version: int) -> bytes:
    packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=DICTIONARY)
    known = [name for name, pixels in PIXELS.items() if pixels == spec.get("pixels")]
    spec = spec | {"pixels": known[0]} if known else spec  # by name: the numbers take up to 60 bytes
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
        raise ValueError("its spec is too long, or not whole")
    spec = json.loads(text)
    if isinstance(spec, dict) and isinstance(spec.get("pixels"), str):
        spec["pixels"] = PIXELS[spec["pixels"]]
    return spec


def _sealed(head: bytes, stream: bytes | memoryview = b"") -> bytes:
    """The archive with its checksum put in after magic and version."""
    return b"".join([head[:5], digest_of(head, stream), head[5:], stream])


def digest_of(*parts: bytes | memoryview) -> bytes:
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


def varint(content: bytes, place: int) -> tuple[int, int]:
    """The number at a place, seven bits a byte from the lowest on, and the place after it."""
    value = 0
    for digit in range(6):
        byte = content[place + digit]
        value += byte % 128 << 7 * digit
        if byte < 128:
            return value, place + digit + 1
    raise ValueError("a length beyond all limits")
