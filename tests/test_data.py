"""Data sets and batches, against numpy, PIL and files made by hand."""

import contextlib
import dataclasses
import hashlib
import io
import json
import os
import pickle
import shutil
import sys
import unicodedata
import warnings
from types import SimpleNamespace

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from data import Dataset, Split, batches, load, normalize, signature, sources
from data.folders import picture_endings
from recipe import AUGMENTATIONS, DATASETS, DataError, Recipe, Training
from training import Train

pytestmark = pytest.mark.usefixtures("own_artifacts")
MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)


def random_images(count, height=32, width=32, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (count, height, width, 3), dtype=np.uint8)


def dataset_of(images, flip=True):
    split = Split(torch.from_numpy(images).permute(0, 3, 1, 2).contiguous(), torch.arange(len(images)))
    return Dataset("made up", split, split, split, ("a", "b"), MEAN, STD, flip)


def all_of(dataset, **which):
    return list(batches(dataset, dataset.train, 5, **which))


# Batches


@pytest.mark.parametrize("flip", [True, False])
@pytest.mark.parametrize(("height", "width"), [(32, 32), (16, 24)])
def test_augmentation_is_numpys_reflect_padding_a_crop_and_a_flip(height, width, flip):
    images, seed, epoch = random_images(23, height, width), 3, 4
    count, padding = len(images), height // 8
    draws = torch.Generator().manual_seed(1_000_003 * seed + epoch)
    order = torch.randperm(count, generator=draws).numpy()
    down = torch.randint(-padding, padding + 1, (count,), generator=draws).numpy()
    right = torch.randint(-padding, padding + 1, (count,), generator=draws).numpy()
    flipped = torch.rand(count, generator=draws).numpy() < 0.5
    assert {-padding, padding} <= set(down) | set(right) and 0 < flipped.sum() < count

    expected = []
    for position, image in enumerate(images[order]):
        padded = np.pad(image, ((padding, padding), (padding, padding), (0, 0)), mode="reflect")
        top, left = padding + down[position], padding + right[position]
        crop = padded[top : top + height, left : left + width]
        expected.append(crop[:, ::-1] if flip and flipped[position] else crop)
    expected = ((np.stack(expected) / 255 - MEAN) / STD).transpose(0, 3, 1, 2)

    got = all_of(dataset_of(images, flip), seed=seed, epoch=epoch)
    assert [batch.index for batch in got] == [0, 1, 2, 3] and {batch.epoch for batch in got} == {epoch}
    assert got[0].images.dtype == torch.float32 and got[0].images.shape == (5, 3, height, width)
    np.testing.assert_allclose(torch.cat([b.images for b in got]).numpy(), expected[:20], atol=2e-5)
    assert torch.cat([b.labels for b in got]).tolist() == order[:20].tolist()


def seen_of(dataset, augmentation, **which):
    """The pixels that come out, uint8 `[N, H, W, C]` in the order of the data set, and the images they came from."""
    got = list(batches(dataset, dataset.train, 4, augmentation=augmentation, **which))
    pixels = torch.cat([b.images for b in got]).permute(0, 2, 3, 1).double() * torch.tensor(STD) + torch.tensor(MEAN)
    labels = torch.cat([b.labels for b in got]).numpy()
    return (255 * pixels).round().numpy().astype(np.uint8), dataset.train.images.permute(0, 2, 3, 1).numpy()[labels]


def test_no_augmentation():
    seen, images = seen_of(dataset_of(random_images(8)), (), seed=1, epoch=2)
    np.testing.assert_array_equal(seen, images)


def test_an_alternating_flip_mirrors_each_image_in_every_other_epoch():
    dataset = dataset_of(random_images(40))
    ways = []
    for epoch in range(4):
        seen, images = seen_of(dataset, ("alternating_flip",), seed=5, epoch=epoch)
        order = np.argsort(images[:, 0, 0].astype(int) @ [65536, 256, 1])  # by what is in a corner, unlike in all
        mirrored = np.array([np.array_equal(a, b[:, ::-1]) for a, b in zip(seen, images, strict=True)])
        plain = np.array([np.array_equal(a, b) for a, b in zip(seen, images, strict=True)])
        assert (mirrored ^ plain).all() and 5 < mirrored.sum() < 35
        ways.append(mirrored[order])
    assert (ways[0] == ~ways[1]).all() and (ways[1] == ~ways[2]).all() and (ways[0] == ways[2]).all()
    seen, images = seen_of(dataset_of(random_images(8), flip=False), ("alternating_flip", "flip"), seed=5, epoch=0)
    np.testing.assert_array_equal(seen, images)


def test_cutout_leaves_a_square_in_the_mean_colour():
    seen, images = seen_of(dataset_of(random_images(40)), ("cutout",), seed=1, epoch=0)
    colour = [round(255 * value) for value in MEAN]
    for after, before in zip(seen, images, strict=True):
        rows, columns = np.nonzero((after != before).any(2))
        assert (after[rows, columns] == colour).all()
        assert 1 <= np.ptp(rows) + 1 <= 15 and 1 <= np.ptp(columns) + 1 <= 15  # less at the border: 2 * 8 - 1
    whole = [np.ptp(np.nonzero((a != b).any(2))[0]) + 1 for a, b in zip(seen, images, strict=True)]
    assert max(whole) == 15


def test_mixup_keeps_the_larger_share_of_its_own():
    seen, images = seen_of(dataset_of(random_images(40)), ("mixup",), seed=1, epoch=0)
    for place in range(0, 40, 4):  # its neighbour in the batch is the one before
        for after, own, other in zip(
            seen[place:][:4], images[place:][:4], np.roll(images[place:][:4], 1, 0), strict=True
        ):
            a, own, other = (x.astype(float).ravel() for x in (after, own, other))
            share = ((a - other) @ (own - other)) / ((own - other) @ (own - other))
            assert share + 1e-3 >= 0.5 and share <= 1.001
            assert np.abs(share * own + (1 - share) * other - a).max() < 1.5


def test_resized_crops_are_parts_of_the_image():
    """Of an image whose colours are its coordinates: what is seen is a rectangle of it, evenly stretched."""
    ramp = np.stack(np.meshgrid(np.arange(32) * 8, np.arange(32) * 8, indexing="ij"), -1).astype(np.uint8)
    ramp = np.concatenate([ramp, ramp[..., :1]], -1)
    seen, _ = seen_of(dataset_of(np.stack([ramp] * 40)), ("resized_crop",), seed=1, epoch=0)
    seen = seen.astype(float)
    heights, widths = (np.ptp(seen[..., axis], axis=(1, 2)) / 8 + 1 for axis in (0, 1))
    areas = heights * widths / 32**2
    assert 0.25 < areas.min() < 0.5 and areas.max() <= 1.01 and seen.shape[1:3] == (32, 32)
    assert 0.6 < (heights / widths).min() < 0.95 and 1.05 < (heights / widths).max() < 1.6


def test_an_augmentation_of_ones_own(monkeypatch):
    monkeypatch.setitem(AUGMENTATIONS, "dark", lambda draw: lambda images, part, chosen: images // 2)
    seen, images = seen_of(dataset_of(random_images(8)), ("dark",), seed=1, epoch=0)
    np.testing.assert_array_equal(seen, images // 2)
    assert Training(augmentation=["dark"]).augmentation == ("dark",)


def test_batches_follow_from_seed_and_epoch_alone():
    dataset = dataset_of(random_images(23))
    first = all_of(dataset, seed=1, epoch=2)
    torch.rand(7)  # the global random state plays no part
    for a, b in zip(first, all_of(dataset, seed=1, epoch=2), strict=True):
        assert torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels)
    labels = torch.cat([b.labels for b in first])
    for other in ({"seed": 1, "epoch": 3}, {"seed": 2, "epoch": 2}):
        assert not torch.equal(labels, torch.cat([b.labels for b in all_of(dataset, **other)]))


def test_no_image_twice_in_an_epoch_and_every_one_sooner_or_later():
    dataset, seen = dataset_of(random_images(23)), set()
    for epoch in range(12):
        labels = torch.cat([b.labels for b in all_of(dataset, seed=0, epoch=epoch)]).tolist()
        assert len(labels) == len(set(labels)) == 20
        seen |= set(labels)
    assert seen == set(range(23))


def test_a_batch_larger_than_the_data_set_is_the_data_set():
    dataset = dataset_of(random_images(4))
    (batch,) = all_of(dataset, seed=0, epoch=0)
    assert sorted(batch.labels.tolist()) == [0, 1, 2, 3]


def test_normalize_against_numpy():
    images = random_images(3)
    got = normalize(torch.from_numpy(images).permute(0, 3, 1, 2), dataset_of(images))
    np.testing.assert_allclose(got.permute(0, 2, 3, 1).numpy(), (images / 255 - MEAN) / STD, atol=2e-5)


def test_the_images_are_left_alone():
    dataset = dataset_of(random_images(6))
    before = dataset.train.images.clone()
    all_of(dataset, seed=0, epoch=0)
    normalize(dataset.train.images, dataset)
    assert torch.equal(dataset.train.images, before)


# Digits


def test_digits_against_scikit_learn():
    from sklearn.datasets import load_digits

    dataset, truth = load("digits"), load_digits()
    assert dataset.shape == (1, 8, 8) and dataset.classes == tuple("0123456789") and not dataset.flip
    assert [len(s) for s in (dataset.train, dataset.validation, dataset.test)] == [1294, 144, 359]
    np.testing.assert_allclose(dataset.test.images[:, 0].numpy() / 255, truth.images[4::5] / 16, atol=0.5 / 255 + 1e-9)
    assert dataset.test.labels.tolist() == truth.target[4::5].tolist()
    together = torch.cat([dataset.train.labels, dataset.validation.labels])
    np.testing.assert_array_equal(np.bincount(together), np.bincount(np.delete(truth.target, np.s_[4::5])))


def test_digits_are_never_flipped():
    dataset = load("digits")
    ramp = torch.arange(8, dtype=torch.uint8).expand(40, 1, 8, 8).contiguous()  # brighter to the right
    split = Split(ramp, torch.zeros(40, dtype=torch.int64))
    for batch in batches(dataset, split, 40, seed=0, epoch=0):
        assert (batch.images[..., 6] > batch.images[..., 1]).all()


def test_mean_and_std_are_those_of_the_training_images():
    dataset = load("digits")
    pixels = dataset.train.images.numpy().astype(np.float64) / 255
    np.testing.assert_allclose(dataset.mean, [pixels.mean()], rtol=1e-12)
    np.testing.assert_allclose(dataset.std, [pixels.std()], rtol=1e-12)


# CIFAR-10 in the hub's layout


def png(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def write_parquet(path, images, labels):
    encoded = [image if isinstance(image, bytes) else png(image) for image in images]
    rows = {"img": [{"bytes": e, "path": f"{i}.png"} for i, e in enumerate(encoded)], "label": labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(pyarrow.table(rows), path)


IMAGES = random_images(30, seed=1)
LABELS = [i % 10 for i in range(30)]


@pytest.fixture
def cifar(tmp_path, monkeypatch):
    """20 training images in two shards and 10 for testing; nothing can be downloaded."""
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path))
    monkeypatch.setitem(DATASETS, "cifar10", dataclasses.replace(DATASETS["cifar10"], images=(20, 10)))
    monkeypatch.setattr(sources, "_download", lambda name, row, root: pytest.fail("downloads"))
    folder = tmp_path / "plain_text"
    write_parquet(folder / "train-00000-of-00002.parquet", IMAGES[:12], LABELS[:12])
    write_parquet(folder / "train-00001-of-00002.parquet", IMAGES[12:20], LABELS[12:20])
    write_parquet(folder / "test-00000-of-00001.parquet", IMAGES[20:], LABELS[20:])
    return folder


def test_cifar10_from_parquet(cifar):
    dataset = load("cifar10")
    assert dataset.classes[0] == "airplane" and dataset.classes[9] == "truck" and dataset.flip
    assert dataset.shape == (3, 32, 32) and dataset.train.labels.dtype == torch.int64
    np.testing.assert_array_equal(dataset.test.images.permute(0, 2, 3, 1).numpy(), IMAGES[20:])
    assert dataset.test.labels.tolist() == LABELS[20:]
    assert (len(dataset.train), len(dataset.validation)) == (18, 2)

    def pairs(split):
        return {(i.permute(1, 2, 0).numpy().tobytes(), int(c)) for i, c in zip(split.images, split.labels, strict=True)}

    train, validation = pairs(dataset.train), pairs(dataset.validation)
    assert not train & validation
    assert train | validation == {(i.tobytes(), c) for i, c in zip(IMAGES[:20], LABELS[:20], strict=True)}
    pixels = dataset.train.images.numpy() / 255
    np.testing.assert_allclose(dataset.mean, pixels.mean((0, 2, 3)), rtol=1e-12)
    np.testing.assert_allclose(dataset.std, pixels.std((0, 2, 3)), rtol=1e-12)


def test_the_split_is_fixed(cifar):
    torch.manual_seed(1)
    first = load("cifar10")
    torch.manual_seed(2)
    again = load("cifar10")
    for part in ("train", "validation", "test"):
        assert torch.equal(getattr(first, part).images, getattr(again, part).images)
    assert first.mean == again.mean


def refused(name, *words):
    """The one-sentence DataError of `load(name)`, which must hold all of `words`."""
    with pytest.raises(DataError) as caught:
        load(name)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message
    return message


SHARD = "train-00001-of-00002.parquet"


@pytest.mark.parametrize("share", [0, 0.5, 0.99])
def test_truncated_parquet(cifar, share):
    whole = (cifar / SHARD).read_bytes()
    (cifar / SHARD).write_bytes(whole[: int(share * len(whole))])
    refused("cifar10", SHARD, "truncated or corrupt", "fetch it again")


@pytest.mark.parametrize("bad", [b"no image", b"", png(IMAGES[0])[:-500], png(IMAGES[0][:16])])
def test_corrupt_image_in_parquet(cifar, bad):
    write_parquet(cifar / SHARD, [*IMAGES[12:19], bad], LABELS[12:20])
    refused("cifar10", SHARD, "fetch it again")


@pytest.mark.parametrize("name", [SHARD, "test-00000-of-00001.parquet"])
def test_missing_shard(cifar, name):
    (cifar / name).unlink()
    refused("cifar10", "12 of 20" if name == SHARD else "0 of 10", "a shard is missing")


@pytest.mark.parametrize("label", [10, -1, None, "cat"])
def test_wrong_label(cifar, label):
    labels = ["dog"] * 7 + [label] if isinstance(label, str) else [*LABELS[12:19], label]
    write_parquet(cifar / SHARD, IMAGES[12:20], labels)
    refused("cifar10", "label")


@pytest.mark.parametrize(
    ("rows", "said"),
    [({"label": [1]}, "no column of pictures"), ({"img": [b"flat"], "label": [1]}, "fetch it again")],
)
def test_another_layout(cifar, rows, said):
    pyarrow.parquet.write_table(pyarrow.table(rows), cifar / SHARD)
    refused("cifar10", SHARD, said)


def test_unknown_name():
    refused("mnist", "'mnist'", "'digits'", "'cifar10'", "folder:PATH")


# CIFAR-10 in torchvision's layout


def write_batches(root, payload):
    folder = root / "cifar-10-batches-py"
    folder.mkdir(parents=True)
    for name in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch", "batches.meta"):
        (folder / name).write_bytes(payload(name))
    return folder


class Executed:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_pickle_with_a_wrong_checksum_is_never_executed(tmp_path, monkeypatch):
    trap = tmp_path / "executed"
    bomb = pickle.dumps(Executed(trap))
    pickle.loads(bomb).close()
    assert trap.exists()  # it would work
    trap.unlink()
    write_batches(tmp_path / "root", lambda name: bomb)
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path / "root"))
    refused("cifar10", "cifar-10-batches-py", "another checksum", "delete what there is")
    assert not trap.exists()


def test_cifar10_from_torchvisions_batches(tmp_path, monkeypatch):
    from torchvision.datasets import CIFAR10

    def payload(name):
        if name == "batches.meta":
            return pickle.dumps({"label_names": list(DATASETS["cifar10"].classes)})
        first = 25 if name == "test_batch" else 5 * (int(name[-1]) - 1)
        rows = IMAGES[first : first + 5].transpose(0, 3, 1, 2).reshape(5, -1)
        return pickle.dumps({"data": rows, "labels": LABELS[first : first + 5]})

    def listed(*names):
        return [[name, hashlib.md5(payload(name)).hexdigest()] for name in names]

    write_batches(tmp_path, payload)
    monkeypatch.setenv("CIFAR10_ROOT", str(tmp_path))
    monkeypatch.setattr(CIFAR10, "train_list", listed(*(f"data_batch_{i}" for i in range(1, 6))))
    monkeypatch.setattr(CIFAR10, "test_list", listed("test_batch"))
    meta = {"filename": "batches.meta", "key": "label_names", "md5": listed("batches.meta")[0][1]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    arrays = sources.read_published("cifar10", tmp_path)
    np.testing.assert_array_equal(arrays.train_images.permute(0, 2, 3, 1).numpy(), IMAGES[:25])
    np.testing.assert_array_equal(arrays.test_images.permute(0, 2, 3, 1).numpy(), IMAGES[25:])
    assert arrays.train_labels.tolist() == LABELS[:25] and arrays.test_labels.tolist() == LABELS[25:]


# Downloads


@pytest.fixture
def origins(tmp_path, monkeypatch):
    """A fake hub and a fake torchvision, and the list of who was asked. Both fail until a test says otherwise."""
    import huggingface_hub
    import torchvision.datasets

    root, hub = tmp_path / "raw", tmp_path / "hub"
    write_parquet(hub / "plain_text/train-00000-of-00001.parquet", IMAGES[:20], LABELS[:20])
    write_parquet(hub / "plain_text/test-00000-of-00001.parquet", IMAGES[20:], LABELS[20:])
    state = SimpleNamespace(root=root, asked=[], hub_works=False, damage=b"", torchvision=None)

    def list_repo_tree(self, repository, folder, repo_type):
        state.asked.append("hub")
        if not state.hub_works:
            raise ConnectionError("hub out of reach\nand a long second line")
        assert (repository, repo_type) == ("uoft-cs/cifar10", "dataset")
        yield SimpleNamespace(path=f"{folder}/README.md")
        for file in sorted((hub / folder).iterdir()):
            checksum = hashlib.sha256(file.read_bytes()).hexdigest()
            yield SimpleNamespace(path=f"{folder}/{file.name}", lfs=SimpleNamespace(sha256=checksum))

    def hf_hub_download(repository, path, repo_type, local_dir):
        target = local_dir / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes((hub / path).read_bytes() + state.damage)
        return str(target)

    def torchvision_cifar10(folder, train, download):
        state.asked.append("torchvision")
        if state.torchvision is None:
            raise OSError("origin out of reach")
        state.torchvision()

    monkeypatch.setenv("CIFAR10_ROOT", str(root))
    monkeypatch.setitem(DATASETS, "cifar10", dataclasses.replace(DATASETS["cifar10"], images=(20, 10)))
    monkeypatch.setattr(huggingface_hub.HfApi, "list_repo_tree", list_repo_tree)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", hf_hub_download)
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", torchvision_cifar10)
    return state


def test_the_hub_comes_first_and_only_once(origins):
    origins.hub_works = True
    np.testing.assert_array_equal(load("cifar10").test.images.permute(0, 2, 3, 1).numpy(), IMAGES[20:])
    load("cifar10")
    assert origins.asked == ["hub"]


def test_then_torchvision(origins, monkeypatch):
    came = object()
    origins.torchvision = lambda: (origins.root / "cifar-10-batches-py").mkdir(parents=True)
    monkeypatch.setattr(sources, "_read_torchvision", lambda row, root: came)
    assert sources.read_published("cifar10", origins.root) is came
    assert origins.asked == ["hub", "torchvision"]


def test_both_out_of_reach(origins):
    message = refused("cifar10", "hub out of reach", "origin out of reach", "CIFAR10_ROOT", str(origins.root))
    assert "second line" not in message and origins.asked == ["hub", "torchvision"]


def test_a_damaged_download_is_refused(origins):
    origins.hub_works, origins.damage = True, b"!"
    refused("cifar10", "arrived damaged")
    assert not list(origins.root.rglob("*.parquet"))


def test_a_download_that_leaves_nothing_behind_ends(origins):
    origins.torchvision = lambda: None
    refused("cifar10", "0 of 20")
    assert origins.asked == ["hub", "torchvision"]


# Other published data sets


def md5(path):
    return hashlib.md5(path.read_bytes()).hexdigest()


def write_cifar100(root, monkeypatch):
    from torchvision.datasets import CIFAR100

    folder = root / "cifar-100-python"
    folder.mkdir(parents=True)
    for name, part in (("train", slice(0, 20)), ("test", slice(20, 30))):
        rows = IMAGES[part].transpose(0, 3, 1, 2).reshape(-1, 3072)
        content = {"data": rows, "fine_labels": LABELS[part], "coarse_labels": [0] * len(rows)}
        (folder / name).write_bytes(pickle.dumps(content))
        monkeypatch.setattr(CIFAR100, f"{name}_list", [[name, md5(folder / name)]])
    (folder / "meta").write_bytes(pickle.dumps({"fine_label_names": [f"c{i}" for i in range(10)]}))
    meta = {"filename": "meta", "key": "fine_label_names", "md5": md5(folder / "meta")}
    monkeypatch.setattr(CIFAR100, "meta", meta)


def write_svhn(root, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    root.mkdir(parents=True)
    sums = {}
    for name, part in (("train", slice(0, 20)), ("test", slice(20, 30))):
        labels = np.array([[label or 10] for label in LABELS[part]], np.uint8)  # as published: a zero is called 10
        savemat(root / f"{name}_32x32.mat", {"X": IMAGES[part].transpose(1, 2, 3, 0), "y": labels})
        sums[name] = ["", f"{name}_32x32.mat", md5(root / f"{name}_32x32.mat")]
    monkeypatch.setattr(SVHN, "split_list", sums)


def write_fashionmnist(root, monkeypatch):
    folder = root / "FashionMNIST/raw"
    folder.mkdir(parents=True)
    for name, part in (("train", slice(0, 20)), ("t10k", slice(20, 30))):
        images, labels = IMAGES[part, :28, :28, 0], np.array(LABELS[part], np.uint8)
        for kind, values in (("images-idx3", images), ("labels-idx1", labels)):  # a magic number, the shape, the bytes
            header = np.array([0x800 + values.ndim, *values.shape], ">i4").tobytes()
            (folder / f"{name}-{kind}-ubyte").write_bytes(header + values.tobytes())


PUBLISHED = {"cifar100": write_cifar100, "svhn": write_svhn, "fashionmnist": write_fashionmnist}


@pytest.mark.parametrize("name", PUBLISHED)
def test_torchvisions_files(name, tmp_path, monkeypatch):
    PUBLISHED[name](tmp_path / "root", monkeypatch)
    monkeypatch.setenv(f"{name.upper()}_ROOT", str(tmp_path / "root"))
    dataset = load(name)
    images = IMAGES[20:, :28, :28, :1] if name == "fashionmnist" else IMAGES[20:]
    np.testing.assert_array_equal(dataset.test.images.permute(0, 2, 3, 1).numpy(), images)
    assert dataset.test.labels.tolist() == LABELS[20:] and dataset.test.labels.dtype == torch.int64
    classes = {"cifar100": ["c0", "c1"], "svhn": ["0", "1"], "fashionmnist": ["T-shirt/top", "Trouser"]}
    assert list(dataset.classes[:2]) == classes[name] and len(dataset.classes) == 10
    assert dataset.flip == (name != "svhn")  # a mirrored digit is no digit
    assert sorted(dataset.validation.labels.tolist()) == list(range(10))  # one of the two of each class
    before = signature(name)
    os.utime(max((tmp_path / "root").rglob("*t*")), ns=(1, 1))
    assert signature(name) != before


@pytest.mark.parametrize("name", PUBLISHED)
def test_damaged_files_of_torchvision(name, tmp_path, monkeypatch):
    PUBLISHED[name](tmp_path / "root", monkeypatch)
    monkeypatch.setenv(f"{name.upper()}_ROOT", str(tmp_path / "root"))
    for file in (path for path in (tmp_path / "root").rglob("*") if path.is_file()):
        file.write_bytes(file.read_bytes()[:-100])
    refused(name, DATASETS[name].stored, "damaged", "delete what there is and run again")


def test_the_hubs_files_of_several_data_sets_in_one_folder(tmp_path, monkeypatch):
    """data/raw/ is that of all: each is found by its folder in the hub's repository."""
    for name in ("CIFAR10", "CIFAR100", "SVHN", "FASHIONMNIST"):
        monkeypatch.setenv(f"{name}_ROOT", str(tmp_path))
        row = DATASETS[name.lower()]
        monkeypatch.setitem(DATASETS, name.lower(), dataclasses.replace(row, images=(20, 10)))
    names = [f"c{i}" for i in range(10)]
    features = {"img": {"_type": "Image"}, "fine_label": {"_type": "ClassLabel", "names": names}}
    features["coarse_label"] = {"_type": "ClassLabel", "names": ["all"]}
    for part, rows in (("train", slice(0, 20)), ("test", slice(20, 30))):
        file = f"{part}-00000-of-00001.parquet"
        write_parquet(tmp_path / "plain_text" / file, IMAGES[rows], LABELS[rows])
        write_parquet(tmp_path / "cropped_digits" / file, 255 - IMAGES[rows], LABELS[rows])
        write_parquet(tmp_path / "fashion_mnist" / file, IMAGES[rows, :28, :28, 0], LABELS[rows])
        rows = {"img": [png(image[::-1]) for image in IMAGES[rows]], "fine_label": LABELS[rows]}
        table = pyarrow.table(rows | {"coarse_label": [0] * len(rows["img"])})
        (tmp_path / "cifar100").mkdir(exist_ok=True)
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
        pyarrow.parquet.write_table(table, tmp_path / "cifar100" / file)
    expected = {
        "cifar10": IMAGES[20:], "cifar100": IMAGES[20:, ::-1], "svhn": 255 - IMAGES[20:],
        "fashionmnist": IMAGES[20:, :28, :28, :1],
    }  # fmt: skip
    for name, images in expected.items():
        dataset = load(name)
        np.testing.assert_array_equal(dataset.test.images.permute(0, 2, 3, 1).numpy(), images)
        assert dataset.test.labels.tolist() == LABELS[20:]
    assert load("cifar100").classes == tuple(names) and load("svhn").classes == tuple("0123456789")


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_files_that_are_nowhere(name, tmp_path, monkeypatch):
    import torchvision.datasets

    def no_network(*given):
        raise OSError("no network\nat all")

    monkeypatch.setenv(f"{name.upper()}_ROOT", str(tmp_path / "root"))
    monkeypatch.setattr(sources, "_download_from_hub", no_network)
    monkeypatch.setattr(getattr(torchvision.datasets, DATASETS[name].torchvision), "download", no_network)
    where = (str(tmp_path / "root"), DATASETS[name].stored, f"{name.upper()}_ROOT")
    refused(name, "cannot be downloaded (hub: no network; origin: no network)", *where)


# One's own images


@pytest.fixture
def folder(tmp_path):
    for number, file in enumerate(f"{p}/{c}/{i}.png" for p in ("train", "test") for c in ("cat", "owl") for i in "012"):
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(IMAGES[number]).save(tmp_path / file)
    return tmp_path


def test_folder(folder):
    dataset = load(f"folder:{folder}")
    assert dataset.classes == ("cat", "owl") and dataset.test.labels.tolist() == [0, 0, 0, 1, 1, 1]
    np.testing.assert_array_equal(dataset.test.images.permute(0, 2, 3, 1).numpy(), IMAGES[6:12])
    assert (len(dataset.train), len(dataset.validation)) == (4, 2)


def test_folder_crops_resizes_and_converts(folder):
    wide = np.zeros((64, 128), dtype=np.uint8)
    wide[:, 32:96] = 200  # gray, white within the centre square that is kept
    Image.fromarray(wide).save(folder / "test/cat/0.png")
    image = load(f"folder:{folder}").test.images[0]
    assert image.shape == (3, 32, 32) and (image[:, :, 2:30] == 200).all()


OTHERS = (
    "train/cat/notes.txt",
    "train/cat/._0.png",  # macOS puts one beside each file on other file systems
    "train/cat/.DS_Store",
    "train/owl/scan.pdf",
    "train/owl/film.MPG",
    "train/owl/table.h5",
    "train/owl/weather.grib",
    "train/owl/drawing.eps",
    "train/.ipynb_checkpoints/0.png",
    "train/__MACOSX/0.png",
    "test/__MACOSX/cat/0.png",
    "test/Thumbs.db",
)


def test_folder_passes_over_other_files_and_counts_them_once(folder):
    for file in OTHERS:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        (folder / file).write_bytes(b"not an image")
    with pytest.warns(UserWarning, match=f"{len(OTHERS)} file") as warned:
        dataset = load(f"folder:{folder}")
    assert len(warned) == 1
    assert (len(dataset.train), len(dataset.test), dataset.classes) == (4, 6, ("cat", "owl"))


def test_folder_of_nothing_but_pictures_warns_of_nothing(folder):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load(f"folder:{folder}")


def test_every_still_picture_that_pillow_writes_is_one_of_ours(folder):
    """Formats are tried: what Pillow writes and reads back is read, and what it cannot read back is skipped."""
    Image.init()
    read, passed_over = set(), set()
    for ending, form in Image.registered_extensions().items():
        file = folder / f"train/cat/picture{ending}"
        try:
            Image.fromarray(IMAGES[0]).save(file, form)
        except (OSError, KeyError, ValueError, AttributeError):  # a format that Pillow reads only, or not of colours
            file.unlink(missing_ok=True)
            continue
        try:
            Image.open(file).load()
            read.add(ending)
        except (OSError, ValueError):
            passed_over.add(ending)
    assert read >= {".png", ".jpg", ".bmp", ".tiff", ".webp", ".gif", ".ppm"} and ".pdf" in passed_over
    with pytest.warns(UserWarning, match="are skipped") if passed_over else contextlib.nullcontext():
        dataset = load(f"folder:{folder}")
    assert len(dataset.train) + len(dataset.validation) == 6 + len(read - {".eps", ".ps"})
    assert not picture_endings() & {".h5", ".hdf", ".mpg", ".mpeg", ".pdf", ".grib", ".bufr", ".eps", ".wmf"}


@pytest.mark.parametrize("first", ["NFC", "NFD"])
def test_accents_composed_or_not_are_the_same_class(folder, first):
    second = {"NFC": "NFD", "NFD": "NFC"}[first]
    (folder / "train/owl").rename(folder / "train" / unicodedata.normalize(first, "m\u00f6we"))
    (folder / "test/owl").rename(folder / "test" / unicodedata.normalize(second, "m\u00f6we"))
    dataset = load(f"folder:{folder}")
    assert dataset.classes == ("cat", "m\u00f6we") and dataset.test.labels.tolist() == [0, 0, 0, 1, 1, 1]


def test_both_spellings_in_one_folder_are_one_class(folder):
    shutil.copytree(folder / "train/owl", folder / "train/m\u00f6we")
    (folder / "train/owl").rename(folder / "train/mo\u0308we")
    (folder / "test/owl").rename(folder / "test/m\u00f6we")
    dataset = load(f"folder:{folder}")
    assert dataset.classes == ("cat", "m\u00f6we") and len(dataset.train) + len(dataset.validation) == 3 + 2 * 3


@pytest.mark.skipif(sys.platform != "linux", reason="file systems elsewhere take UTF-8 only")
def test_names_that_are_no_utf8(folder):
    """Latin-1 names, as old archives unpack them: in the path, the class and the file, readable as text afterwards."""
    root = os.fsencode(folder)
    for part in (b"train", b"test"):
        os.rename(root + b"/" + part + b"/owl", root + b"/" + part + b"/m\xf6we")
        os.rename(root + b"/" + part + b"/m\xf6we/0.png", root + b"/" + part + b"/m\xf6we/\xe4.png")
    os.rename(root, root + b"-\xfc")
    moved = "folder:" + os.fsdecode(root + b"-\xfc")
    dataset = load(moved)
    assert dataset.classes == ("cat", r"m\xf6we") and len(dataset.test) == 6
    "".join(dataset.classes).encode()  # what is printed, charted and stored

    with open(root + b"-\xfc/train/m\xf6we/\xe4.png", "wb") as file:
        file.write(b"nothing")
    with pytest.raises(DataError, match="not a readable image") as error:
        load(moved)
    assert r"m\xf6we/\xe4.png" in str(error.value).encode().decode()


def test_folder_that_is_not_there(tmp_path):
    refused(f"folder:{tmp_path / 'no'}", "is not a folder", "train", "CLASS/*.png")
    refused(f"folder:{tmp_path}", "holds 0 class folder(s)")


@pytest.mark.parametrize("part", ["train", "test"])
def test_empty_class_folder(folder, part):
    for file in (folder / part / "owl").iterdir():
        file.unlink()
    refused(f"folder:{folder}", "owl", part, "holds no image")


def test_one_class(folder):
    for part in ("train", "test"):
        (folder / part / "owl").rename(folder / f"{part}-owl")
    refused(f"folder:{folder}", "1 class", "give two or more")


def test_test_class_unknown_to_train(folder):
    (folder / "test/dodo").mkdir()
    refused(f"folder:{folder}", "dodo", "train", "lacks")


@pytest.mark.parametrize("share", [0, 0.01, 0.3, 0.9])
def test_corrupt_png(folder, share):
    file = folder / "train/cat/1.png"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(share * len(whole))])
    refused(f"folder:{folder}", str(file), "not a readable image", "replace or remove")


def test_all_unreadable_pictures_are_named_at_once(folder):
    bad = [folder / name for name in ("train/cat/0.png", "train/owl/2.png", "test/cat/1.png", "test/owl/0.png")]
    for file in bad:
        file.write_bytes(b"nothing")
    refused(f"folder:{folder}", "4 files", *map(str, bad))


def test_many_unreadable_pictures_are_counted(folder):
    for file in folder.rglob("*.png"):
        file.write_bytes(b"nothing")
    with pytest.raises(DataError, match="12 files") as error:
        load(f"folder:{folder}")
    assert str(error.value).count(".png (") == 5 and "7 more" in str(error.value)


def test_png_with_flipped_bytes_is_read_or_refused(folder):
    file = folder / "train/cat/1.png"
    whole = file.read_bytes()
    for position in range(0, len(whole), 1 if len(whole) < 60 else len(whole) // 60):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            load(f"folder:{folder}")
        except DataError as error:
            assert str(file) in str(error)


def picture(file, values, mode=None, **fields):
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values, mode).save(file, **fields)


def test_pictures_are_upright(folder):
    """Orientation 6: the camera was held upright, and the file is to be turned by 90 degrees (vision#7977)."""
    upright = np.zeros((32, 32, 3), np.uint8)
    upright[:16] = 250  # the sky
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(np.rot90(upright).copy()).save(folder / "test/cat/0.png", exif=exif)
    image = load(f"folder:{folder}").test.images[0]
    assert (image[:, :16] == 250).all() and (image[:, 16:] == 0).all()


@pytest.mark.parametrize(
    ("ending", "values"),
    [
        ("png", (np.arange(32) * 65535 / 31).round().astype(np.uint16)),
        ("tiff", (np.arange(32) * 4095 / 31).round().astype(np.uint16)),  # 12 bits in 16
        ("tiff", (np.arange(32) / 31).astype(np.float32)),
        ("tiff", (np.arange(32) * 1e6).round().astype(np.int32)),
    ],
)
def test_a_ramp_stays_a_ramp(folder, ending, values):
    """Pillow clips pictures of more than 8 bits to white (vision#2218)."""
    picture(folder / f"train/owl/ramp.{ending}", np.broadcast_to(values, (32, 32)).copy())
    for file in folder.glob("test/cat/*"):
        file.unlink()
    picture(folder / f"test/cat/ramp.{ending}", np.broadcast_to(values, (32, 32)).copy())
    image = load(f"folder:{folder}").test.images[0]
    expected = np.round(values.astype(float) / values.max() * 255)
    assert np.abs(image[0].numpy() - expected).max() <= 1


def test_what_is_transparent_is_black(folder):
    noise = np.random.default_rng(0).integers(0, 256, (32, 32, 4), np.uint8)
    noise[..., 3] = 0
    noise[:16, :, 3] = 255
    picture(folder / "test/cat/0.png", noise)
    image = load(f"folder:{folder}").test.images[0].permute(1, 2, 0).numpy()
    assert (image[:16] == noise[:16, :, :3]).all() and (image[16:] == 0).all()


def test_val_stands_for_test_and_beside_it_chooses(folder):
    shutil.copytree(folder / "test", folder / "Val")
    (folder / "train").rename(folder / "Train")
    dataset = load(f"folder:{folder}")
    assert (len(dataset.train), len(dataset.validation), len(dataset.test)) == (6, 6, 6)
    assert torch.equal(dataset.validation.images, dataset.test.images)
    shutil.rmtree(folder / "test")
    assert len(load(f"folder:{folder}").test) == 6 and len(load(f"folder:{folder}").validation) == 2


def test_classes_without_train_and_test_are_split_and_that_is_said(tmp_path):
    """A fifth of each class, in folders further down too; a class of one picture is trained on."""
    for index, image in enumerate(IMAGES[:10]):
        picture(tmp_path / f"flowers/rose/{index % 2}/{index}.png", image)
    for index, image in enumerate(IMAGES[:5]):
        picture(tmp_path / f"flowers/tulip/{index}.png", image + 1)
    picture(tmp_path / "flowers/daisy/only.png", IMAGES[11])
    with pytest.warns(UserWarning, match="16 pictures are split by a fixed seed, 13 for training and 3 for testing"):
        dataset = load(tmp_path / "flowers")
    assert dataset.classes == ("daisy", "rose", "tulip") and dataset.test.labels.tolist() == [1, 1, 2]
    assert sorted(dataset.validation.labels.tolist()) == [1, 2] and 0 in dataset.train.labels
    every = [*dataset.train.images, *dataset.validation.images, *dataset.test.images]
    assert len({bytes(image.numpy()) for image in every}) == 16


def test_the_side_the_colours_and_mirroring_are_part_of_the_name(folder):
    grey = load(f"folder:{folder}?side=48&colours=grey&mirror=no")
    assert grey.shape == (1, 48, 48) and not grey.flip and load(f"folder:{folder}").flip
    plain, large = (Recipe(f"folder:{folder}{end}", (Train("resnet8"),)) for end in ("?side=32", "?side=48"))
    assert plain.dataset == f"folder:{folder}" == Recipe(folder, (Train("resnet8"),)).dataset
    assert plain.id == Recipe(f"folder:{folder}", (Train("resnet8"),)).id != large.id
    assert large.describe()["dataset"] == f"folder:{folder.name}?side=48"


@pytest.mark.parametrize(
    ("end", "said"),
    [
        ("?sides=48", "option 'sides': use side=96"), ("?side=0", "side is a whole number of pixels"),
        ("?side=x", "side is a whole number"), ("?colours=red", "colours is rgb or grey"), ("?mirror=1", "mirror is"),
    ],
)  # fmt: skip
def test_options_that_are_none(folder, end, said):
    refused(f"folder:{folder}{end}", said)


def test_a_question_mark_in_a_path_is_one(folder):
    folder.rename(folder.with_name("what?"))
    assert load(f"folder:{folder.with_name('what?')}").shape == (3, 32, 32)


def test_a_dataset_cannot_be_changed():
    with pytest.raises(dataclasses.FrozenInstanceError):
        dataset_of(random_images(2)).flip = False
