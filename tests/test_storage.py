"""Files that are there whole or not at all, and weights bit for bit."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from models import build
from storage import Checkpoint, StorageError, atomic_write, files, load_weights, save_weights, sha256
from storage.weights import weights_checksum

LOG = {"train_seconds": 1.5}


def network():
    torch.manual_seed(0)
    model = build("resnet20", shape=(1, 8, 8), classes=10)
    model.train()(torch.randn(8, 1, 8, 8))  # running statistics that are not all zero and one
    return model


def same_bits(a, b):
    return a.dtype == b.dtype and a.shape == b.shape and a.numpy().tobytes() == b.numpy().tobytes()


# atomic_write


def test_a_file_is_replaced_whole(tmp_path):
    path = tmp_path / "new" / "folder" / "file.bin"
    for content in (b"old", b"newer"):
        with atomic_write(path) as temporary:
            temporary.write_bytes(content)
            assert temporary.parent == path.parent  # a rename across disks would not be atomic
            assert not path.exists() or path.read_bytes() == b"old"
        assert path.read_bytes() == content and list(path.parent.iterdir()) == [path]


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_exception_leaves_the_old_file_and_nothing_else(tmp_path, error):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    with pytest.raises(error), atomic_write(path) as temporary:
        temporary.write_bytes(b"half")
        raise error
    assert path.read_bytes() == b"old" and list(tmp_path.iterdir()) == [path]


def refused(path, write):
    """The one-sentence StorageError of `write()`, after which `path` holds what it held and nothing lies beside it."""
    with pytest.raises(StorageError) as caught:
        write()
    assert path.read_bytes() == b"old" and list(path.parent.iterdir()) == [path]
    message = str(caught.value)
    assert "\n" not in message and str(path) in message
    return message


def test_full_disk(tmp_path, monkeypatch):
    def fsync(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr(files.os, "fsync", fsync)
    message = refused(path, lambda: save_weights(network(), path, LOG))
    assert "No space left on device" in message and "free some space" in message


def test_read_only_folder(tmp_path, monkeypatch):
    def save_file(tensors, filename, metadata):
        open(os.path.join(os.devnull, "file"), "wb")  # noqa: SIM115 (fails for root too)

    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr("storage.weights.save_file", save_file)
    assert "a folder you may write to" in refused(path, lambda: save_weights(network(), path, LOG))


def test_a_folder_that_is_a_file(tmp_path):
    (tmp_path / "taken").write_bytes(b"")
    with pytest.raises(StorageError, match="cannot write .*taken"):
        save_weights(network(), tmp_path / "taken" / "weights.safetensors", LOG)


def test_safetensors_own_error_is_a_sentence_too(tmp_path, monkeypatch):
    from safetensors import SafetensorError

    def save_file(tensors, filename, metadata):
        raise SafetensorError("I/O error: No space left on device (os error 28)")

    path = tmp_path / "weights.safetensors"
    path.write_bytes(b"old")
    monkeypatch.setattr("storage.weights.save_file", save_file)
    assert "No space left" in refused(path, lambda: save_weights(network(), path, LOG))


KILLED = """
import importlib.util, os, pathlib, signal, sys
spec = importlib.util.spec_from_file_location("files", sys.argv[1])
files = importlib.util.module_from_spec(spec)
spec.loader.exec_module(files)
with files.atomic_write(pathlib.Path(sys.argv[2])) as temporary:
    temporary.write_bytes(b"half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_kill_9_during_a_write_leaves_the_old_file(tmp_path):
    path = tmp_path / "file.bin"
    path.write_bytes(b"old")
    done = subprocess.run([sys.executable, "-c", KILLED, files.__file__, str(path)], timeout=60)
    assert done.returncode == -signal.SIGKILL
    assert path.read_bytes() == b"old"
    assert all(left.suffix == ".tmp" for left in tmp_path.iterdir() if left != path)  # git ignores these
    with atomic_write(path) as temporary:  # nor do they stand in the way
        temporary.write_bytes(b"new")
    assert path.read_bytes() == b"new"


def test_sha256_of_a_known_file(tmp_path):
    (tmp_path / "abc").write_bytes(b"abc")  # FIPS 180-2, appendix B.1
    expected = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert sha256(tmp_path / "abc") == expected


# Weights


def test_round_trip_bit_for_bit(tmp_path):
    model, path = network(), tmp_path / "w.safetensors"
    with torch.no_grad():
        model.linear.weight[0, :4] = torch.tensor([-0.0, 1e-45, 3.4e38, 1 / 3])
        model.linear.bias.copy_(model.linear.bias.bfloat16().float())
    save_weights(model, path, LOG)
    checksum = weights_checksum(model)
    again, log = load_weights(path, checksum)
    assert log == LOG
    assert not again.training and again.spec == model.spec
    own, read = model.state_dict(), again.state_dict()
    assert own.keys() == read.keys() and all(same_bits(own[name], read[name]) for name in own)
    assert weights_checksum(again) == checksum


def test_bfloat16_where_nothing_is_lost_and_only_there(tmp_path):
    model, path = network(), tmp_path / "w.safetensors"
    with torch.no_grad():
        for convolution in (m for m in model.modules() if isinstance(m, torch.nn.Conv2d)):
            convolution.weight.copy_(convolution.weight.bfloat16().float())
        model.conv.weight[0, 0, 0, 0] = 1 + 2**-8  # one bit more than bfloat16's eight hold
    save_weights(model, path, LOG)
    with safe_open(path, framework="pt") as file:
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)
    for name, tensor in model.state_dict().items():
        short = tensor.dtype == torch.float32 and bool((tensor.numpy().view("uint32") & 0xFFFF == 0).all())
        assert stored[name].dtype == (torch.bfloat16 if short else tensor.dtype), name
    assert stored["conv.weight"].dtype == torch.float32 and stored["blocks.0.conv1.weight"].dtype == torch.bfloat16


def test_infinite_and_no_number_come_back(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state")
    tensors = {"a": torch.tensor([float("nan"), float("inf"), -0.0]), "b": torch.tensor(3), "c": torch.empty(0, 2)}
    checkpoint.save(tensors, {"curves": [{"loss": 1.5}]})
    read, state = checkpoint.load()
    assert state == {"curves": [{"loss": 1.5}]} and all(same_bits(tensors[name], read[name]) for name in tensors)


def test_another_checksum(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(network(), path, LOG)
    with pytest.raises(StorageError, match="other weights than its record says"):
        load_weights(path, "0" * 64)


@pytest.mark.parametrize("content", [None, b"", b"no weights at all", b"\xff" * 100, b"\x02" + bytes(7) + b"{}"])
def test_no_weight_file(tmp_path, content):
    path = tmp_path / "w.safetensors"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(StorageError, match="delete it, and it is made again|was not written by save_weights"):
        load_weights(path)


def test_a_weight_file_of_another_program(tmp_path):
    from safetensors.torch import save_file

    for number, metadata in enumerate((None, {"format": "pt"}, {"header": "[]"}, {"header": '"text"'})):
        path = tmp_path / str(number)
        save_file({"a": torch.zeros(3)}, path, metadata=metadata)
        with pytest.raises(StorageError):
            load_weights(path)


def test_a_checkpoint_is_no_weight_file(tmp_path):
    Checkpoint(tmp_path / "state").save({"a": torch.zeros(3)}, {"curves": []})
    with pytest.raises(StorageError):
        load_weights(tmp_path / "state")


@pytest.mark.parametrize("share", [0.001, 0.01, 0.5, 0.999])
def test_truncated(tmp_path, share):
    path = tmp_path / "w.safetensors"
    save_weights(network(), path, LOG)
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(StorageError, match="delete it"):
        load_weights(path)


def test_a_flipped_byte_in_the_weights(tmp_path):
    path = tmp_path / "w.safetensors"
    save_weights(network(), path, LOG)
    whole = path.read_bytes()
    for position in (-1, -len(whole) // 2):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(StorageError, match="damaged"):
            load_weights(path)


def test_any_flipped_byte_is_noticed(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state")
    tensors = {"a": torch.tensor([1.5, -2.25]), "b": torch.tensor([7])}
    checkpoint.save(tensors, {"epoch": 3})
    whole = checkpoint.path.read_bytes()
    assert json.loads(whole[8 : 8 + int.from_bytes(whole[:8], "little")])
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        checkpoint.path.write_bytes(damaged)
        with pytest.warns(UserWarning, match="ignored, and its content is computed again"):
            assert checkpoint.load() is None, position  # also a teacher's logits, of no training of their own


def test_checkpoint_before_and_after(tmp_path):
    checkpoint = Checkpoint(tmp_path / "state")
    assert checkpoint.load() is None
    checkpoint.clear()
    checkpoint.save({"a": torch.zeros(1)}, {})
    checkpoint.clear()
    assert checkpoint.load() is None and not list(Path(tmp_path).iterdir())


def test_weights_are_no_checkpoint(tmp_path):
    save_weights(network(), tmp_path / "w", LOG)
    with pytest.warns(UserWarning, match="ignored, and its content is computed again"):
        assert Checkpoint(tmp_path / "w").load() is None
