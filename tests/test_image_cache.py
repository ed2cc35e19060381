"""Pictures decoded once into a mapped file: what it holds, when it is made anew, and how much memory it takes."""

import errno
import os
import re
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from data import Dataset, Split, batches, datasets, load, pictures
from measurement import scoring
from recipe import DataError
from training import evaluate

COLOURS = {"cat": (250, 0, 0), "owl": (0, 250, 0), "elk": (0, 0, 250)}


@pytest.fixture
def folder(tmp_path, own_artifacts):
    """Ten 8x8 pictures of each class to train on and three to test on, each of one colour, darker by its number."""
    for part, count in (("train", 10), ("test", 3)):
        for name, colour in COLOURS.items():
            (tmp_path / f"pets/{part}/{name}").mkdir(parents=True)
            for number in range(count):
                plain = Image.new("RGB", (8, 8), tuple(max(0, value - number) for value in colour))
                plain.save(tmp_path / f"pets/{part}/{name}/{number}.png")
    return tmp_path / "pets"


@pytest.fixture
def cache(own_artifacts):
    """Return the names of the files of decoded pictures."""
    return lambda: sorted(path.name for path in (own_artifacts / "images").glob("*") if path.suffix != ".lock")


@pytest.fixture
def decoding(monkeypatch):
    """The files that are decoded, as they are."""
    found, read = [], pictures.read_picture
    monkeypatch.setattr(pictures, "read_picture", lambda file, options: (found.append(file), read(file, options))[1])
    return found


def refused(name, *words):
    with pytest.raises(DataError) as caught:
        load(name)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


# What is in it


def test_each_split_is_a_part_of_one_mapped_file(folder, cache):
    dataset = load(f"folder:{folder}?side=4")
    (file,) = (Path(os.environ["ARTIFACTS_DIR"]) / "images" / name for name in cache())
    raw = np.fromfile(file, np.uint8).reshape(-1, 3, 4, 4)
    splits = (dataset.train, dataset.validation, dataset.test)
    assert [len(split) for split in splits] == [27, 3, 9]
    np.testing.assert_array_equal(raw, np.concatenate([split.images.numpy() for split in splits]))
    for split in splits:  # every image has the colour of its label, and all numbers are there once
        for image, label in zip(split.images, split.labels, strict=True):
            assert image.amax((1, 2)).argmax() == list(COLOURS).index(dataset.classes[int(label)])
    assert sorted(dataset.validation.labels.tolist()) == [0, 1, 2]  # by class
    brightest = torch.cat([dataset.train.images, dataset.validation.images]).amax((1, 2, 3))
    assert sorted(brightest.tolist()) == sorted(3 * list(range(241, 251)))


def test_mean_and_std_are_numpys(folder):
    dataset = load(f"folder:{folder}?side=64")  # in several parts
    values = dataset.train.images.numpy().astype(float) / 255
    np.testing.assert_allclose(dataset.mean, values.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, values.std((0, 2, 3)), rtol=1e-9)


def test_writing_to_the_images_leaves_the_file_alone(folder):
    load(f"folder:{folder}").train.images.zero_()
    assert load(f"folder:{folder}").train.images.amax() == 250


# When it is made


def test_pictures_are_decoded_once(folder, cache, decoding):
    first = load(f"folder:{folder}")
    assert len(decoding) == 39
    again, mirrored = load(f"folder:{folder}"), load(f"folder:{folder}?mirror=no")
    assert len(decoding) == 39 and len(cache()) == 1
    assert first.fingerprint == again.fingerprint == mirrored.fingerprint
    for option in ("?side=16", "?colours=grey"):
        load(f"folder:{folder}{option}")
    assert len(decoding) == 3 * 39 and len(cache()) == 3


@pytest.mark.parametrize("change", ["other picture", "touched", "renamed", "removed"])
def test_a_changed_folder_is_decoded_anew_and_the_old_file_deleted(folder, cache, change):
    before, (old,) = load(f"folder:{folder}"), cache()
    file = folder / "test/cat/1.png"
    if change == "other picture":
        Image.new("RGB", (8, 8), (7, 7, 7)).save(file)
    elif change == "touched":
        os.utime(file, ns=(1, 1))
    elif change == "renamed":
        file.rename(folder / "test/cat/9.png")
    else:
        file.unlink()
    now, (new,) = load(f"folder:{folder}"), cache()
    assert old != new and len(now.test) == 9 - (change == "removed")
    assert bool((now.test.images == 7).all((1, 2, 3)).any()) == (change == "other picture")
    assert before.test.images.amax() == 250  # what is mapped can be read on


def test_the_old_file_makes_room_for_the_new_one(folder, cache, monkeypatch):
    load(f"folder:{folder}")
    os.utime(folder / "test/cat/1.png", ns=(1, 1))
    left = []
    monkeypatch.setattr(pictures, "_check_room", lambda path, needed: left.append(cache()))
    load(f"folder:{folder}")
    assert left == [[]] and len(cache()) == 1


def test_another_file_in_the_folder_changes_nothing(folder, decoding):
    load(f"folder:{folder}")
    (folder / "notes.txt").write_text("of no concern")
    with pytest.warns(UserWarning, match="skipped"):
        load(f"folder:{folder}")
    assert len(decoding) == 39


def test_two_folders_of_one_name_have_two_files(folder, cache, tmp_path):
    other = tmp_path / "other/pets"
    other.parent.mkdir()
    folder.rename(other)
    load(f"folder:{other}")
    other.rename(folder)
    load(f"folder:{folder}")
    assert len(cache()) == 2


def test_two_at_once_decode_once(folder, cache, decoding):
    with ThreadPoolExecutor(2) as pool:
        one, other = pool.map(load, 2 * [f"folder:{folder}"])
    assert len(decoding) == 39 and len(cache()) == 1 and one.fingerprint == other.fingerprint


def test_waiting_for_another_process_is_said(folder, own_artifacts, monkeypatch, capsys):
    monkeypatch.setattr(pictures, "PATIENCE", 0.01)
    load(f"folder:{folder}")
    (lock,) = (own_artifacts / "images").glob("*.lock")
    taken = threading.Event()

    def hold():
        with pictures.FileLock(lock):
            taken.set()
            time.sleep(0.2)

    threading.Thread(target=hold).start()
    taken.wait()
    load(f"folder:{folder}")
    assert "Waiting for another process, which decodes the same pictures" in capsys.readouterr().err


# When it is not made


def test_nothing_is_left_of_unreadable_pictures(folder, cache):
    (folder / "train/cat/3.png").write_bytes(b"nothing")
    refused(f"folder:{folder}", "1 file is not a readable image", "3.png")
    assert cache() == []


def test_what_a_killed_process_left_is_removed(folder, own_artifacts, cache):
    load(f"folder:{folder}")
    (name,) = cache()
    (own_artifacts / "images" / name).write_bytes(b"cut short")
    (own_artifacts / "images" / f".{name[:-7]}-12345678.tmp").write_bytes(b"half")
    assert load(f"folder:{folder}").test.images.amax() == 250 and cache() == [name]


def test_no_room_on_the_disk(folder, cache, monkeypatch):
    monkeypatch.setattr(pictures.shutil, "disk_usage", lambda path: SimpleNamespace(free=1000))
    refused(f"folder:{folder}", f"need {39 * 32 * 32 * 3:,} bytes", "1,000 are free", "ARTIFACTS_DIR", "?side=")
    assert cache() == []


def test_a_disk_that_fills_up(folder, cache, monkeypatch):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(pictures.os, "fsync", full)
    refused(f"folder:{folder}", "No space left on device", "free some space")
    assert cache() == []


def test_a_place_that_cannot_be_written(folder, tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("ARTIFACTS_DIR", str(tmp_path / "file"))
    refused(f"folder:{folder}", "cannot write the decoded pictures to", "set ARTIFACTS_DIR")


def test_a_folder_that_changes_meanwhile(folder, cache, monkeypatch):
    read = pictures.read_picture

    def copying(file, options):
        os.utime(folder / "test/owl/0.png", ns=(5, 5))
        return read(file, options)

    monkeypatch.setattr(pictures, "read_picture", copying)
    refused(f"folder:{folder}", "was changed while its pictures were decoded: run again")
    assert cache() == []


# How much memory it takes


def resident():
    """What is resident of this process, in MB: its own memory, and its pages of the mapped pictures.

    Pages of libraries are left out: a machine short of memory drops them and reads them again at any time.
    """
    own = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    maps = re.findall(r"\.images\n(?:\w+:.*\n)*?Rss:\s+(\d+) kB", Path("/proc/self/smaps").read_text())
    return int(own[1]) / 1000, sum(map(int, maps)) / 1000


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells what is resident")
def test_resident_memory_is_that_of_a_few_images(tmp_path, own_artifacts, monkeypatch):
    """240 pictures of 512x512, 63 MB: all that is done with them takes a part of that, whatever their number."""
    for index in range(240):
        file = tmp_path / f"pictures/{'test' if index % 2 else 'train'}/{'ab'[index // 2 % 2]}/{index}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.new("L", (4, 4), index % 256).save(file)
    model, seen = nn.Sequential(nn.AvgPool2d(64), nn.Flatten(), nn.Linear(64, 2)), []
    evaluate(model, of_noise(), of_noise().test)  # what the first call of torch needs
    load(name := f"folder:{tmp_path / 'pictures'}?side=512&colours=grey")
    before, release = resident()[0], pictures.release  # the threads that decode leave memory of theirs behind

    def measured(images):  # when most is in memory
        seen.append(resident())
        release(images)

    monkeypatch.setattr(datasets, "release", measured)
    dataset = load(name)
    assert dataset.fingerprint["test"]["count"] == 120
    for batch in batches(dataset, dataset.train, 4, seed=0, epoch=0, augmentation=("flip",)):
        assert batch.images.shape == (4, 1, 512, 512)
    evaluate(model, dataset, dataset.test)
    scoring.agreement(model, np.zeros(len(dataset.test)), dataset, dataset.test)
    own, mapped = (max(values) for values in zip(*seen, strict=True))
    assert own - before < 50 and mapped < 30 and len(seen) > 50
    for split in (dataset.train, dataset.validation, dataset.test):
        assert split.images.amax() > 0
    assert resident()[1] > 45  # what is read at once is seen
    release(dataset.test.images)
    assert resident()[1] < 1


def of_noise():
    split = Split(torch.randint(256, (8, 1, 512, 512), dtype=torch.uint8), torch.zeros(8, dtype=torch.int64))
    return Dataset("noise", split, split, split, ("a", "b"), (0.5,), (0.5,), True)


@pytest.mark.parametrize(("side", "sizes"), [(8, [30]), (32, [30]), (64, [20, 10]), (224, [8, 8, 8, 6])])
def test_parts_have_as_many_pixels_as_small_images(side, sizes):
    split = Split(torch.zeros(30, 1, side, side, dtype=torch.uint8), torch.arange(30))
    parts = list(split.parts(80))
    assert [len(images) for images, _ in parts] == sizes
    assert torch.cat([labels for _, labels in parts]).tolist() == list(range(30))
