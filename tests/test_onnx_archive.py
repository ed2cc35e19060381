"""Any ONNX file as an archive, and back byte for byte."""

import json
import lzma
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
import zstandard
from onnx import TensorProto, helper, numpy_helper

from models import build
from storage import ArchiveError, export_onnx
from storage.archive import sealed, with_varint
from storage.onnx_archive import decode_onnx, encode_onnx, pack_onnx, unpack_onnx

ROOT = Path(__file__).resolve().parents[1]
SHIPPED = sorted((Path(onnx.__file__).parent / "backend/test/data").rglob("*.onnx"))  # by the onnx package


def model_of(tensors, attribute=None):
    """A graph of one node whose initializers are these arrays."""
    node = helper.make_node("Identity", ["x"], ["y"])
    if attribute is not None:
        node = helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(attribute, "value"))
    info = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in ("x", "y")]
    graph = helper.make_graph([node], "g", info[:1], info[1:], [numpy_helper.from_array(t, str(i)) for i, t in tensors])
    return helper.make_model(graph).SerializeToString()


def drawn(seed):
    rng = np.random.default_rng(seed)
    kinds = ("f4", "f8", "f2", "i1", "u1", "i2", "i4", "i8", "?", "u2")
    arrays = []
    for kind in rng.choice(kinds, 8):
        shape = tuple(rng.integers(1, 12, rng.integers(0, 5)))
        arrays.append((rng.standard_normal(shape) * 50).astype(kind))
    return list(enumerate(arrays + arrays[:2]))  # two twice: equal bytes stand in two places


@pytest.mark.parametrize("case", range(20))
def test_files_of_any_types_and_shapes_come_back(case, seed):
    content = model_of(drawn((seed, case)), np.arange(200, dtype=np.float32) if case % 2 else None)
    assert decode_onnx(encode_onnx(content)) == content


def normal(*shape):
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def branches(*tensors):
    """A graph of one If, each branch of which returns one of the tensors."""
    info = helper.make_tensor_value_info("y", TensorProto.FLOAT, None)
    names = ("then_branch", "else_branch")
    inner = {
        name: helper.make_graph([helper.make_node("Constant", [], ["y"], value=tensor)], name, [], [info])
        for name, tensor in zip(names, tensors, strict=True)
    }
    condition = helper.make_tensor_value_info("x", TensorProto.BOOL, [])
    graph = helper.make_graph([helper.make_node("If", ["x"], ["y"], **inner)], "g", [condition], [info])
    return helper.make_model(graph).SerializeToString()


def test_tensors_of_subgraphs_and_fields_of_floats_are_coded_and_a_repeated_one_once():
    values, other = normal(32, 16, 3, 3), np.exp(normal(32, 16, 3, 3))
    fields, raw = helper.make_tensor("w", TensorProto.FLOAT, values.shape, values.flat), numpy_helper.from_array(values)
    assert not fields.raw_data and raw.raw_data
    for once in (branches(fields, numpy_helper.from_array(other)), branches(raw, numpy_helper.from_array(other))):
        packed = encode_onnx(once)
        assert decode_onnx(packed) == once and packed[4] == 1
        assert len(packed) < 0.97 * len(lzma.compress(once, preset=9 | lzma.PRESET_EXTREME))
    repeated = branches(raw, fields)
    twice = encode_onnx(repeated)
    assert decode_onnx(twice) == repeated and twice[4] == 2
    assert len(twice) < 0.55 * len(packed)


def test_a_copy_of_a_later_tensor_is_refused():
    content = branches(*[numpy_helper.from_array(normal(64, 64))] * 2)
    packed = encode_onnx(content)
    listed = json.dumps([[9, 0], [9999, 1, [64, 64]]]).encode() + b"\0"
    head = lzma.compress(listed, format=lzma.FORMAT_ALONE)
    damaged = sealed(packed[:5] + with_varint(len(content)) + with_varint(len(head)) + head)
    with pytest.raises(ArchiveError, match="a copy of a later one"):
        decode_onnx(damaged)


def test_what_general_compressors_do_better_is_left_to_them():
    """Tensors that repeat each other in part: LZMA finds it."""
    values = np.random.default_rng(0).integers(-9, 9, 40_000, np.int8)
    content = model_of([(i, values[i:]) for i in range(6)])
    packed = encode_onnx(content)
    assert decode_onnx(packed) == content
    assert len(packed) < len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)) + 100


def test_files_that_the_onnx_package_ships_come_back_and_are_never_larger_than_by_xz_and_zstd():
    assert len(SHIPPED) > 100
    ours = xz = zstd = 0
    for path in SHIPPED[:: len(SHIPPED) // 40]:
        content = path.read_bytes()
        packed = encode_onnx(content)
        assert decode_onnx(packed) == content, path
        ours, xz = ours + len(packed), xz + len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))
        zstd += len(zstandard.ZstdCompressor(level=19).compress(content))
    assert ours < min(xz, zstd)


def test_a_network_packed_and_unpacked_by_the_command(tmp_path):
    model = build("resnet8", shape=(3, 16, 16), classes=10).eval()
    export_onnx(model, tmp_path / "model.onnx")
    for arguments in (["pack", "model.onnx", "-o", "model.nno"], ["unpack", "model.nno", "-o", "again.onnx"]):
        command = [sys.executable, "-m", "storage", *(str(tmp_path / a) if "." in a else a for a in arguments)]
        finished = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
        assert finished.returncode == 0, finished.stderr
    content = (tmp_path / "model.onnx").read_bytes()
    assert (tmp_path / "again.onnx").read_bytes() == content
    assert (tmp_path / "model.nno").stat().st_size < len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME))


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (None, "x.onnx: cannot read it .No such file or directory.: give the path of an ONNX file"),
        (b"", "x.onnx: this is not an ONNX file"),
        (b"text", "x.onnx: this is not an ONNX file, or a damaged one .*: fetch or export it again"),
        (model_of([(0, np.zeros((64, 64), np.float32))])[:9999], "or a damaged one .*: fetch or export it again"),
        (b"\x08\x09", "not an ONNX file: it has no graph"),
    ],
)
def test_what_is_no_onnx_file(content, said, tmp_path):
    if content is not None:
        (tmp_path / "x.onnx").write_bytes(content)
    with pytest.raises(ArchiveError, match=said):
        pack_onnx(tmp_path / "x.onnx", tmp_path / "x.nno")
    assert not (tmp_path / "x.nno").exists()


def test_tensors_in_other_files_are_refused(tmp_path):
    model = onnx.ModelProto.FromString(model_of([(0, np.zeros((64, 64), np.float32))]))
    onnx.save(model, tmp_path / "x.onnx", save_as_external_data=True, size_threshold=0)
    with pytest.raises(ArchiveError, match="external data.*: save it as one file"):
        pack_onnx(tmp_path / "x.onnx", tmp_path / "x.nno")


def test_damaged_archives_are_refused(tmp_path):
    packed = encode_onnx(model_of(drawn(0)))
    for place in range(0, len(packed), max(1, len(packed) // 200)):
        for damaged in (packed[:place], packed[:place] + bytes([packed[place] ^ 1]) + packed[place + 1 :]):
            (tmp_path / "x.nno").write_bytes(damaged)
            with pytest.raises(ArchiveError):
                unpack_onnx(tmp_path / "x.nno", tmp_path / "x.onnx")
    assert not (tmp_path / "x.onnx").exists()
    with pytest.raises(ArchiveError, match="x.onnx: cannot read it .*: give one that `python -m storage pack` wrote"):
        unpack_onnx(tmp_path / "x.onnx", tmp_path / "y.onnx")
