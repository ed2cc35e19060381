"""Damaged or forged archives: ArchiveError or a model, never another exception, a hang, or much memory."""

import contextlib
import random
import time
import tracemalloc
import zlib

import pytest
import torch

from models import ARCHITECTURES, ResNet, build
from models.quantized import insert_quantizers, round_biases
from storage import ArchiveError
from storage.archive import DICTIONARY, MAGIC, VERSION, decode, encode, sealed, varint, with_varint

MANY = [1, pytest.param(10, marks=pytest.mark.slow)]  # times as many; the more in the slow tier


@pytest.fixture(scope="module")
def content():
    ARCHITECTURES["mutant"] = lambda shape, classes, width: ResNet((4,), (1,), shape[0], classes)
    torch.manual_seed(0)
    model = build("mutant", shape=(1, 8, 8), classes=3)
    model.train()(torch.randn(8, 1, 8, 8))
    integer = insert_quantizers(model.eval())
    round_biases(integer)
    content = encode(integer)
    assert content[4] == VERSION
    yield content
    del ARCHITECTURES["mutant"]


def outcome(damaged: bytes) -> bytes | None:
    """What the archive's model encodes to, or None where it is refused; anything else fails the test."""
    try:
        return encode(decode(damaged))
    except ArchiveError as error:
        assert "\n" not in str(error)[:200]
        return None


def damaged(content: bytes, draw: random.Random) -> bytes:
    kind = draw.randrange(6)
    position = draw.randrange(len(content))
    if kind == 0:
        return content[:position] + bytes([content[position] ^ 1 << draw.randrange(8)]) + content[position + 1 :]
    if kind == 1:
        return content[:position]
    if kind == 2:
        return content + draw.randbytes(draw.randrange(1, 9))
    if kind == 3:
        return content[:position] + draw.randbytes(draw.randrange(1, 20)) + content[position:]
    if kind == 4:
        return content[:position] + content[position + draw.randrange(1, 9) :]
    place, length = draw.randrange(40), draw.randrange(1, 9)  # two fields of the header change places
    swapped = content[place + length : place + 2 * length] + content[place : place + length]
    return content[:place] + swapped + content[place + 2 * length :]


@pytest.mark.parametrize("times", MANY)
def test_damaged_archives_are_refused(content, times, seed):
    draw = random.Random(seed)
    for number in range(900 * times):
        changed = damaged(content, draw)
        assert changed == content or outcome(changed) is None, number


@pytest.mark.parametrize("times", MANY)
def test_forged_archives_with_a_right_checksum(content, times, seed):
    """The bytes are changed and the checksum with them: what is read may be another model, never another exception."""
    draw, slowest, body = random.Random(seed + 1), 0.0, content[:5] + content[13:]
    for number in range(100 * times):
        changed = damaged(body, draw)
        forged = sealed(changed if number % 2 else body[:5] + damaged(body[5:], draw))
        started = time.perf_counter()
        with contextlib.suppress(ArchiveError):
            decode(forged)
        slowest = max(slowest, time.perf_counter() - started)
    assert slowest < 20


def forged(content: bytes, spec: bytes | None = None, size: int | None = None, length: int | None = None) -> bytes:
    """The archive with another spec, declared length of tensors, or length of the spec, and a right checksum."""
    own_size, place = varint(content, 13)
    own_length, place = varint(content, place)
    packed = content[place : place + own_length]
    if spec is not None:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15, zdict=DICTIONARY)
        packed = packer.compress(spec) + packer.flush()
    lengths = with_varint(own_size if size is None else size) + with_varint(length or len(packed))
    return sealed(MAGIC + bytes([VERSION]) + lengths + packed + content[place + own_length :])


HUGE = b'{"architecture":"mutant","classes":%d,"quantized":true,"shape":[1,8,8]}'


CROWD = b'{"architecture":"ensemble","classes":3,"shape":[1,8,8],"members":[%s]}' % b",".join([HUGE % 3] * 99)


@pytest.mark.parametrize(
    "fields",
    [
        {"spec": HUGE % 10**9},
        {"spec": HUGE % 10**18},
        {"spec": HUGE % 10**9, "size": 1 << 29},
        {"spec": HUGE % -5},
        {"size": 1 << 40},
        {"size": (1 << 30) + 1},
        {"size": 0},
        {"length": 1 << 30},
        {"spec": b" " * 10**7},
        {"spec": b"[" * 60_000},
        {"spec": CROWD},
        {"spec": b"null"},
        {"spec": b'"text"'},
        {"spec": b"\xff\xfe"},
        {"spec": b'{"architecture":["mutant"],"classes":3,"shape":[1,8,8]}'},
        {"spec": b'{"architecture":"mutant","classes":"3","shape":[1,8,8]}'},
        {"spec": b'{"architecture":"mutant","classes":1e999,"shape":[1,8,8]}'},
        {"spec": b'{"architecture":"mutant","classes":3,"shape":[]}'},
    ],
)
def test_what_it_declares_is_refused_before_it_is_allocated(content, fields):
    tracemalloc.start()
    with pytest.raises(ArchiveError):
        decode(forged(content, **fields))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 20e6


def test_the_forger_of_these_tests_changes_nothing_else(content):
    assert forged(content) == content and outcome(content) == content


def test_a_newer_version_says_so(content):
    with pytest.raises(ArchiveError, match="version 3, this code reads up to 2: update"):
        decode(MAGIC + bytes([VERSION + 1]) + content[5:])


@pytest.mark.parametrize("bytes_", [b"", MAGIC, b"PK\x03\x04" * 10, bytes(100)])
def test_no_archive(bytes_):
    with pytest.raises(ArchiveError, match="not an archive"):
        decode(bytes_)
