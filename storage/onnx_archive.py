"""Archives of arbitrary ONNX files: smaller, and restored byte for byte.

    bytes       what
    4           magic
    1           format version
    8           BLAKE2b of everything after it, and of the five bytes before
    varint      length of the ONNX file
    varint      length of the packed head
    ...         the head: a JSON list of each tensor's offset, type and shape; then the file without them (LZMA)
    ...         one range-coded stream of the tensors (see `storage.modes`)

Only tensors stored as raw data are coded this way; the graph and everything else stay in the head.
"""

import json
import lzma
import math
from pathlib import Path

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

MAGIC, VERSION = b"\x8bNNO", 1
LEAST = 128  # bytes from which on a tensor is coded separately
SIGN = 0x80
FILTERS = [{"id": lzma.FILTER_LZMA1, "preset": 9}]
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


def pack_onnx(path: Path, output: Path) -> int:
    """Write the archive of an ONNX file, after checking that it decodes to the same bytes; return its length in bytes.

    Raises:
        ArchiveError: the file is missing, damaged, not an ONNX file, too large, or keeps its tensors in other files.
    """
    content = read_archive(path)
    packed = encode_onnx(content)
    if decode_onnx(packed) != content:
        raise ArchiveError(f"the archive of {path} would not decode to the same file: not written; report this bug")
    with atomic_write(output) as temporary:
        temporary.write_bytes(packed)
    return len(packed)


def unpack_onnx(path: Path, output: Path) -> int:
    """Write the ONNX file in an archive; return its length in bytes. Raises ArchiveError if the archive is damaged."""
    content = decode_onnx(read_archive(path))
    with atomic_write(output) as temporary:
        temporary.write_bytes(content)
    return len(content)


def is_onnx_archive(path: Path) -> bool:
    """Return whether a file begins like an archive of an ONNX file."""
    try:
        with path.open("rb") as file:
            return file.read(4) == MAGIC
    except OSError:
        return False


def encode_onnx(content: bytes) -> bytes:
    """Return the archive of an ONNX file, from its bytes."""
    places = [place for place in _places(content) if _pays(content, place)]
    table = {str(index): _tensor(content, place) for index, place in enumerate(places)}
    skeleton, end = [], 0
    for start, kind, shape in places:
        skeleton.append(content[end:start])
        end = start + _length(kind, shape)
    head = json.dumps(places, separators=(",", ":")).encode() + b"\0" + b"".join([*skeleton, content[end:]])
    packed = lzma.compress(head, format=lzma.FORMAT_ALONE, preset=9 | lzma.PRESET_EXTREME)
    writer = Writer()
    for unit in units(table):
        code_unit(writer, unit, table)
    body = with_varint(len(content)) + with_varint(len(packed)) + packed + bytes(writer.content())
    return sealed(MAGIC + bytes([VERSION]) + body)


def _pays(content: bytes, place: Place) -> bool:
    """Return whether a tensor takes fewer bytes in our coding than in LZMA, which finds repeated sequences."""
    start, kind, shape = place
    table, meter = {"0": _tensor(content, place)}, Meter()
    for unit in units(table):
        code_unit(meter, unit, table)
    raw = content[start : start + _length(kind, shape)]
    return meter.bits / 8 < len(lzma.compress(raw, format=lzma.FORMAT_RAW, filters=FILTERS))


def decode_onnx(packed: bytes) -> bytes:
    """Return the bytes of the ONNX file in an archive.

    Raises:
        ArchiveError: the archive is damaged, too new, or not one of an ONNX file.
    """
    remedy = "give one that `python -m storage pack` wrote"
    check_sealed(packed, MAGIC, VERSION, f"this is not an archive of an ONNX file: {remedy}")
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


def _restored(places: list[Place], skeleton: bytes, size: int, reader: Reader) -> bytes:
    lengths = [_length(kind, shape) for _, kind, shape in places]
    if len(skeleton) + sum(lengths) != size or min(lengths, default=1) < 1:
        raise ArchiveError("the archive's lengths do not add up to the length of its file")
    table = {
        str(index): torch.empty(shape, dtype=TYPES[kind], device="meta")
        for index, (_, kind, shape) in enumerate(places)
    }
    tensors: dict[str, torch.Tensor] = {}
    for unit in units(table):
        tensors |= decode_unit(reader, unit, table)
    parts, written, used = [], 0, 0
    for index, ((start, kind, _), length) in enumerate(zip(places, lengths, strict=True)):
        gap = start - written
        parts += [skeleton[used : used + gap], _raw(tensors[str(index)], kind)]
        used, written = used + gap, start + length
    return b"".join([*parts, skeleton[used:]])


def _places(content: bytes) -> list[Place]:
    """Return where the raw data of each tensor is in a serialized ONNX model, in order and without overlaps."""
    try:
        model = onnx.ModelProto.FromString(content)
    except DecodeError as error:
        raise ArchiveError(f"this is not an ONNX file, or it is damaged ({error})") from None
    tensors = [*model.graph.initializer, *(a.t for node in model.graph.node for a in node.attribute if a.HasField("t"))]
    if any(tensor.data_location == onnx.TensorProto.EXTERNAL for tensor in tensors):
        raise ArchiveError("its tensors are in other files (external data): save it as one file, with onnx.save(model)")
    if not model.graph.node:
        raise ArchiveError("this is not an ONNX file: it has no graph")
    places: list[Place] = []
    for tensor in tensors:
        raw, shape = tensor.raw_data, list(tensor.dims)
        if tensor.data_type in TYPES and LEAST <= len(raw) == _length(tensor.data_type, shape):
            places += _found(content, raw, tensor.data_type, shape, {start for start, _, _ in places})
    places.sort()
    kept, end = [], 0
    for place in places:
        if place[0] >= end:
            kept.append(place)
            end = place[0] + _length(*place[1:])
    return kept


def _found(content: bytes, raw: bytes, kind: int, shape: list[int], taken: set[int]) -> list[Place]:
    """Return the place of these bytes outside those `taken`, since equal tensors each have their own."""
    start = content.find(raw)
    while start in taken:
        start = content.find(raw, start + 1)
    return [(start, kind, shape)] if start >= 0 else []


def _length(kind: int, shape: list[int]) -> int:
    return math.prod(shape) * TYPES[kind].itemsize


def _tensor(content: bytes, place: Place) -> torch.Tensor:
    start, kind, shape = place
    raw = torch.frombuffer(bytearray(content[start : start + _length(kind, shape)]), dtype=torch.uint8)
    if kind == onnx.TensorProto.UINT8:
        return (raw ^ SIGN).view(torch.int8).reshape(shape)
    return raw.view(TYPES[kind]).reshape(shape)


def _raw(tensor: torch.Tensor, kind: int) -> bytes:
    raw = tensor.contiguous().reshape(-1).view(torch.uint8)
    return (raw ^ SIGN if kind == onnx.TensorProto.UINT8 else raw).numpy().tobytes()
