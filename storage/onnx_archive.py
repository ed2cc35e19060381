"""Archives of arbitrary ONNX files: smaller, and restored byte for byte.

    bytes       what
    4           magic
    1           format version
    8           BLAKE2b of everything after it, and of the five bytes before
    varint      length of the ONNX file
    varint      length of the packed head
    ...         the head: a JSON list of tensors, each an offset, type and shape, or, if it repeats an earlier one, an
                offset and that one's index in the list; then the file without them (LZMA)
    ...         one range-coded stream of the tensors (see `storage.modes`)

Only tensors whose values are stored as in memory (raw data, or a field of floats) are coded this way, also those of
subgraphs; the graph and everything else stay in the head. Version 1 is written if no tensor repeats another.
"""

import contextlib
import hashlib
import json
import lzma
import math
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import onnx
import torch
from google.protobuf.message import DecodeError

from storage.archive import (
    LIMIT,
    ArchiveError,
    check_sealed,
    code_unit,
    decode_unit,
    read_archive,
    sealed,
    units,
    varint,
    with_varint,
)
from storage.coding import Meter, Reader, Writer
from storage.files import atomic_write

MAGIC, VERSION = b"\x8bNNO", 2
LEAST = 128  # bytes from which on a tensor is coded separately
SIGN = 0x80
REMEDY = "give one that `python -m storage pack` wrote"
TYPES: dict[int, torch.dtype] = {
    onnx.TensorProto.FLOAT: torch.float32,
    onnx.TensorProto.DOUBLE: torch.float64,
    onnx.TensorProto.FLOAT16: torch.float16,
    onnx.TensorProto.BFLOAT16: torch.bfloat16,
    onnx.TensorProto.INT8: torch.int8,
    onnx.TensorProto.UINT8: torch.int8,  # shifted by 128, since the zero points of weights are there
    onnx.TensorProto.INT16: torch.int16,
    onnx.TensorProto.INT32: torch.int32,
    onnx.TensorProto.INT64: torch.int64,
}
Place = tuple[int, int, list[int]]  # a tensor's offset in the file, its ONNX type and its shape
Copy = tuple[int, int]  # a tensor's offset, and the index in the list of an earlier one of the same bytes


def pack_onnx(path: Path, output: Path) -> int:
    """Write the archive of an ONNX file, after checking that it decodes to the same bytes; return its length in bytes.

    Raises:
        ArchiveError: the file, which is named, is missing, damaged, not an ONNX file, too large, or keeps its tensors
            in other files.
    """
    with _named(path):
        content = read_archive(path, "give the path of an ONNX file")
        packed = encode_onnx(content)
    if decode_onnx(packed) != content:
        raise ArchiveError(f"the archive of {path} would not decode to the same file: not written; report this bug")
    with atomic_write(output) as temporary:
        temporary.write_bytes(packed)
    return len(packed)


def unpack_onnx(path: Path, output: Path) -> int:
    """Write the ONNX file in an archive; return its length in bytes. Raises ArchiveError if the archive is damaged."""
    with _named(path):
        content = decode_onnx(read_archive(path, REMEDY))
    with atomic_write(output) as temporary:
        temporary.write_bytes(content)
    return len(content)


def is_onnx_archive(path: Path) -> bool:
    """Return whether a file begins like an archive of an ONNX file. A pipe, on which reading would block, does not."""
    if not path.is_file():
        return False
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


@contextlib.contextmanager
def _named(path: Path) -> Iterator[None]:
    """Put the file's path in front of errors."""
    try:
        yield
    except ArchiveError as error:
        raise ArchiveError(f"{path}: {error}") from None


def encode_onnx(content: bytes) -> bytes:
    """Return the archive of an ONNX file, from its bytes."""
    first: dict[bytes, int] = {}  # the digest of a tensor's bytes, and its index in the list
    listed: list[Place | Copy] = []
    for place in places(content):
        digest = hashlib.blake2b(_bytes(content, place)).digest()
        if digest in first:
            listed.append((place[0], first[digest]))
        elif _pays(content, place):
            first[digest] = len(listed)
            listed.append(place)
    return min(_packed(content, listed), _packed(content, []), key=len)


def _packed(content: bytes, listed: list[Place | Copy]) -> bytes:
    """Return the archive in which these tensors of the file are coded."""
    table = {str(index): tensor_at(content, place) for index, place in enumerate(listed) if len(place) == 3}
    skeleton, end = [], 0
    for place, length in zip(listed, _lengths(listed), strict=True):
        skeleton.append(content[end : place[0]])
        end = place[0] + length
    head = json.dumps(listed, separators=(",", ":")).encode() + b"\0" + b"".join([*skeleton, content[end:]])
    packed = lzma.compress(head, format=lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)
    writer = Writer()
    for unit in units(table):
        code_unit(writer, unit, table)
    body = with_varint(len(content)) + with_varint(len(packed)) + packed + bytes(writer.content())
    return sealed(MAGIC + bytes([2 if len(table) < len(listed) else 1]) + body)


def _pays(content: bytes, place: Place) -> bool:
    """Return whether a tensor takes fewer bytes in our coding than in LZMA, which finds repeated sequences."""
    table, meter = {"0": tensor_at(content, place)}, Meter()
    for unit in units(table):
        code_unit(meter, unit, table)
    raw = _bytes(content, place)
    preset = {"id": lzma.FILTER_LZMA1, "preset": 9, "dict_size": max(4096, len(raw))}  # a larger one takes time to make
    return meter.bits / 8 < len(lzma.compress(raw, format=lzma.FORMAT_RAW, filters=[preset]))


def decode_onnx(packed: bytes) -> bytes:
    """Return the bytes of the ONNX file in an archive.

    Raises:
        ArchiveError: the archive is damaged, too new, or not one of an ONNX file.
    """
    check_sealed(packed, MAGIC, VERSION, f"this is not an archive of an ONNX file: {REMEDY}")
    try:
        size, place = varint(packed, 13)
        length, place = varint(packed, place)
        if size > LIMIT or length > len(packed) - place:
            raise ValueError("the declared lengths are too large")
        unpacker = lzma.LZMADecompressor(format=lzma.FORMAT_ALONE)
        head = unpacker.decompress(packed[place : place + length], max_length=2 * size + 4096)
        listed, _, skeleton = head.partition(b"\0")
        return _restored(json.loads(listed), skeleton, size, Reader(packed[place + length :]))
    except ArchiveError:
        raise
    except Exception as error:  # malformed input may raise anything
        raise ArchiveError(f"the archive does not decode ({type(error).__name__}: {error})") from None


def _restored(listed: list[Place | Copy], skeleton: bytes, size: int, reader: Reader) -> bytes:
    lengths = _lengths(listed)
    if len(skeleton) + sum(lengths) != size or min(lengths, default=1) < 1:
        raise ArchiveError("the archive's lengths do not add up to the length of its file")
    table = {
        str(index): torch.empty(place[2], dtype=TYPES[place[1]], device="meta")
        for index, place in enumerate(listed)
        if len(place) == 3
    }
    tensors: dict[str, torch.Tensor] = {}
    for unit in units(table):
        tensors |= decode_unit(reader, unit, table)
    found: list[bytes] = []
    parts, written, used = [], 0, 0
    for index, (place, length) in enumerate(zip(listed, lengths, strict=True)):
        found.append(_raw(tensors[str(index)], place[1]) if len(place) == 3 else found[place[1]])
        gap = place[0] - written
        parts += [skeleton[used : used + gap], found[-1]]
        used, written = used + gap, place[0] + length
    return b"".join([*parts, skeleton[used:]])


def places(content: bytes) -> list[Place]:
    """Return where the values of each large tensor are in a serialized ONNX model, in order and without overlaps.

    Raises:
        ArchiveError: the content is damaged, not an ONNX model, or its tensors are in other files.
    """
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise ArchiveError(f"this is not an ONNX file, or a damaged one ({error}): fetch or export it again") from None
    tensors = list(_tensors(model.graph))
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise ArchiveError(
            "its tensors are in other files (external data): save it as one file, by onnx.save(onnx.load(file), other)"
        )
    if not model.graph.node:
        raise ArchiveError("this is not an ONNX file: it has no graph; give one that an exporter wrote")
    found: list[Place] = []
    for tensor in tensors:
        raw, shape = tensor.raw_data or np.array(tensor.float_data, "<f4").tobytes(), list(tensor.dims)
        if tensor.data_type in TYPES and LEAST <= len(raw) == _length(tensor.data_type, shape):
            found += _found(content, raw, tensor.data_type, shape, {start for start, _, _ in found})
    kept, end = [], 0
    for place in sorted(found):
        if place[0] >= end:
            kept.append(place)
            end = place[0] + _length(*place[1:])
    return kept


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Yield the tensors of a graph and of the graphs in its nodes, such as the branches of an If."""
    yield from graph.initializer
    for attribute in (attribute for node in graph.node for attribute in node.attribute):
        yield from [attribute.t] if attribute.HasField("t") else attribute.tensors
        for inner in [attribute.g] if attribute.HasField("g") else attribute.graphs:
            yield from _tensors(inner)


def _found(content: bytes, raw: bytes, kind: int, shape: list[int], taken: set[int]) -> list[Place]:
    """Return the place of these bytes outside those `taken`, since equal tensors each have their own."""
    start = content.find(raw)
    while start in taken:
        start = content.find(raw, start + 1)
    return [(start, kind, shape)] if start >= 0 else []


def _length(kind: int, shape: list[int]) -> int:
    return math.prod(shape) * TYPES[kind].itemsize


def _lengths(listed: list[Place | Copy]) -> list[int]:
    """Return the length of each tensor in bytes. Raises ValueError if one is a copy of what is not before it."""
    lengths: list[int] = []
    for index, place in enumerate(listed):
        if len(place) == 2 and not 0 <= place[1] < index:
            raise ValueError("a tensor is a copy of a later one")
        lengths.append(lengths[place[1]] if len(place) == 2 else _length(place[1], place[2]))
    return lengths


def _bytes(content: bytes, place: Place) -> bytes:
    return content[place[0] : place[0] + _length(*place[1:])]


def tensor_at(content: bytes, place: Place) -> torch.Tensor:
    """Return the tensor at a place of an ONNX file; uint8 is shifted to int8."""
    _, kind, shape = place
    raw = torch.frombuffer(bytearray(_bytes(content, place)), dtype=torch.uint8)
    if kind == onnx.TensorProto.UINT8:
        return (raw ^ SIGN).view(torch.int8).reshape(shape)
    return raw.view(TYPES[kind]).reshape(shape)


def _raw(tensor: torch.Tensor, kind: int) -> bytes:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8)
    return (raw ^ SIGN if kind == onnx.TensorProto.UINT8 else raw).numpy().tobytes()
