"""Parquet files as the Hugging Face hub lays them out, written here by pyarrow in each of its ways."""

import io
import json

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

from data import load, pictures, signature
from recipe import DataError, Recipe, identity
from training import Train

pytestmark = pytest.mark.usefixtures("own_artifacts")
CLASSES = ["cat", "owl", "elk"]


def encoded(value, form="PNG"):
    buffer = io.BytesIO()
    Image.new("RGB", (8, 8), (value, 0, 255 - value)).save(buffer, form)
    return buffer.getvalue()


def write(path, labels, images=None, *, names=("image", "label"), features=None, group=None, flat=False):
    """A file of pictures whose red is their row, or that of `images`, with the hub's description if `features`."""
    data = [encoded(row) for row in range(len(labels))] if images is None else images
    image = data if flat else [{"bytes": one, "path": f"{row}.png"} for row, one in enumerate(data)]
    table = pyarrow.table({names[0]: image, names[1]: labels})
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    path.parent.mkdir(parents=True, exist_ok=True)
    pyarrow.parquet.write_table(table, path, row_group_size=group)
    return path


def described(image="image", label="label"):
    return {image: {"_type": "Image"}, label: {"_type": "ClassLabel", "names": CLASSES}}


def reds(split):
    return {(int(image[0, 0, 0]), int(label)) for image, label in zip(split.images, split.labels, strict=True)}


def refused(name, *words):
    with pytest.raises(DataError) as caught:
        load(name)
    message = str(caught.value)
    assert "\n" not in message and all(word in message for word in words), message


def test_a_repository_of_the_hub(tmp_path):
    """Two training shards, a test one and the cache that a download leaves; labels are numbers with names."""
    labels = [row % 3 for row in range(30)]
    write(tmp_path / "pets/data/train-00000-of-00002.parquet", labels[:20], features=described(), group=7)
    write(tmp_path / "pets/data/train-00001-of-00002.parquet", labels[20:], features=described())
    write(tmp_path / "pets/data/test-00000-of-00001.parquet", labels[:6], features=described())
    write(tmp_path / "pets/.cache/data/train-00000-of-00002.parquet", [0])
    (tmp_path / "pets/README.md").write_text("---\n")
    dataset = load(f"parquet:{tmp_path / 'pets'}?side=8")
    assert dataset.classes == tuple(CLASSES) and dataset.shape == (3, 8, 8) and dataset.flip
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [27, 3, 6]
    first, second = ({(row, label) for row, label in enumerate(own)} for own in (labels[:20], labels[20:]))
    assert reds(dataset.train) | reds(dataset.validation) == first | second
    assert reds(dataset.test) == {(row, row % 3) for row in range(6)}
    assert dataset.test.labels.tolist() == labels[:6]  # in the order of the file
    assert sorted(dataset.validation.labels.tolist()) == [0, 1, 2]


@pytest.mark.parametrize(
    ("train", "validation", "test"),
    [
        ("train.parquet", "val.parquet", "test.parquet"),
        ("default/train/0000.parquet", "default/validation/0000.parquet", "default/test/0000.parquet"),
        ("my_training_file.parquet", "dev-1.parquet", "evaluation.parquet"),
    ],
)
def test_names_of_splits(tmp_path, train, validation, test):
    write(tmp_path / train, [0, 1, 2, 0])
    write(tmp_path / validation, [0, 1])
    write(tmp_path / test, [2, 1, 0])
    dataset = load(f"parquet:{tmp_path}?side=8")
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [4, 2, 3]
    assert dataset.classes == ("0", "1", "2") and dataset.test.labels.tolist() == [2, 1, 0]


def test_validation_stands_for_test(tmp_path):
    write(tmp_path / "train.parquet", [0, 1] * 10)
    write(tmp_path / "validation.parquet", [1, 0])
    dataset = load(f"parquet:{tmp_path}?side=8")
    assert [len(split) for split in (dataset.train, dataset.validation, dataset.test)] == [18, 2, 2]


def test_one_file_is_split_and_that_is_said(tmp_path):
    """Text for labels; one row without any."""
    file = write(tmp_path / "pictures.parquet", [*(["owl"] * 10), *(["cat"] * 5), None, "elk"])
    with pytest.warns(UserWarning) as warned:
        dataset = load(f"parquet:{file}?side=8")
    said = " ".join(str(warning.message) for warning in warned)
    assert "1 row(s)" in said and "16 pictures are split by a fixed seed, 13 for training and 3 for testing" in said
    assert dataset.classes == ("cat", "elk", "owl") and sorted(dataset.test.labels.tolist()) == [0, 2, 2]
    every = reds(dataset.train) | reds(dataset.validation) | reds(dataset.test)
    assert every == {*((row, 2) for row in range(10)), *((row, 0) for row in range(10, 15)), (16, 1)}


def test_test_rows_of_the_hub_without_labels(tmp_path):
    """The hub writes -1 for labels that are kept secret: then the validation images are those to test on."""
    write(tmp_path / "train.parquet", [0, 1] * 10, features=described())
    write(tmp_path / "validation.parquet", [2, 1], features=described())
    write(tmp_path / "test.parquet", [-1, -1, -1], features=described())
    with pytest.warns(UserWarning, match=r"3 row\(s\) .* have no label and are left out"):
        dataset = load(f"parquet:{tmp_path}?side=8")
    assert dataset.test.labels.tolist() == [2, 1] and dataset.classes == tuple(CLASSES)


@pytest.mark.parametrize("flat", [False, True])
@pytest.mark.parametrize("kind", ["text", "dictionary", "numbers", "yes and no"])
def test_kinds_of_columns(tmp_path, flat, kind):
    values = ["b", "a", "b", "a"]
    labels = {
        "text": pyarrow.array(values, pyarrow.large_string()),
        "dictionary": pyarrow.array(values).dictionary_encode(),
        "numbers": pyarrow.array([7, 3, 7, 3], pyarrow.uint8()),
        "yes and no": pyarrow.array([True, False, True, False]),
    }[kind]
    for part in ("train", "test"):
        write(tmp_path / f"{part}.parquet", labels, names=("jpg", "kind"), flat=flat)
    dataset = load(f"parquet:{tmp_path}?side=8")
    classes = {"numbers": ("3", "7"), "yes and no": ("0", "1")}.get(kind, ("a", "b"))
    assert dataset.classes == classes and dataset.test.labels.tolist() == [1, 0, 1, 0]


def test_two_columns_of_labels(tmp_path):
    """As in the hub's CIFAR-100: fine and coarse."""
    features = described(label="fine") | {"coarse": {"_type": "ClassLabel", "names": ["pet", "wild"]}}
    for part in ("train", "test"):
        table = {"image": [encoded(row) for row in range(4)], "fine": [0, 1, 2, 1], "coarse": [0, 1, 1, 0]}
        table = pyarrow.table(table).replace_schema_metadata(
            {"huggingface": json.dumps({"info": {"features": features}})}
        )
        pyarrow.parquet.write_table(table, tmp_path / f"{part}.parquet")
    refused(f"parquet:{tmp_path}", "no column of labels, or several", "?label=", "image, fine, coarse")
    refused(f"parquet:{tmp_path}?label=other", "no column 'other'", "image, fine, coarse")
    refused(f"parquet:{tmp_path}?label=image", "labels are whole numbers or text")
    assert load(f"parquet:{tmp_path}?label=coarse&side=8").test.labels.tolist() == [0, 1, 1, 0]
    assert load(f"parquet:{tmp_path}?side=8&label=fine").classes == tuple(CLASSES)


def test_options_and_names(tmp_path):
    for part in ("train", "test"):
        write(tmp_path / f"pets/{part}.parquet", [0, 1, 0, 1], features=described())
    name = f"parquet:{tmp_path / 'pets'}?side=4&colours=grey&mirror=no"
    dataset = load(name)
    assert dataset.shape == (1, 4, 4) and not dataset.flip
    assert identity(name) == "parquet:pets?side=4&colours=grey&mirror=no"
    base = Recipe(name, (Train("resnet8"),))
    assert base.id != Recipe(name.replace("parquet:", "folder:"), (Train("resnet8"),)).id
    refused(f"folder:{tmp_path}?label=x", "the folders of the pictures are their labels")


def test_a_changed_file_is_noticed_and_decoded_anew(tmp_path, monkeypatch):
    name = f"parquet:{tmp_path}?side=8"
    for part in ("train", "test"):
        write(tmp_path / f"{part}.parquet", [0, 1, 0, 1])
    before, then = signature(name), load(name)
    (tmp_path / "notes.txt").write_text("of no concern")
    assert signature(name) == before
    count, read = [], pictures.read_picture
    monkeypatch.setattr(pictures, "read_picture", lambda file, options: (count.append(file), read(file, options))[1])
    load(name)
    assert not count
    write(tmp_path / "test.parquet", [0, 1, 1, 1, 0])
    assert signature(name) != before and len(count) == 0
    assert len(load(name).test) == 5 != len(then.test) and len(count) == 9


def test_pictures_are_read_as_in_a_folder(tmp_path):
    """Upright by EXIF, black where transparent, cropped to a square."""
    sideways = np.zeros((8, 16, 4), np.uint8)
    sideways[:, :8] = (200, 200, 200, 255)
    buffer, exif = io.BytesIO(), Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(sideways).save(buffer, "PNG", exif=exif)
    for part in ("train", "test"):
        write(tmp_path / f"{part}.parquet", [0, 1, 0], [buffer.getvalue(), encoded(1), encoded(2, "JPEG")])
    image = load(f"parquet:{tmp_path}?side=8").test.images[0]
    assert (image[:, :4] == 200).all() and (image[:, 4:] == 0).all()


@pytest.mark.parametrize(("place", "said"), [(0.5, "truncated or corrupt"), (0.97, "truncated or corrupt"), (0, "")])
def test_a_damaged_file(tmp_path, place, said):
    for part in ("train", "test"):
        write(tmp_path / f"{part}.parquet", [0, 1, 0, 1])
    file = tmp_path / "test.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[: int(place * len(whole))])
    refused(f"parquet:{tmp_path}", "test.parquet", said, "fetch it again")


def test_a_file_whose_pages_are_damaged(tmp_path):
    """The end, which describes the rest, is whole: what is in between is refused in a sentence or still decoded."""
    write(tmp_path / "test.parquet", [0, 1, 0, 1])
    file = write(tmp_path / "train.parquet", [0, 1, 0, 1] * 3)
    whole = file.read_bytes()
    for position in range(4, len(whole), len(whole) // 40):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 0xFF]) + whole[position + 1 :])
        try:
            load(f"parquet:{tmp_path}?side=4")
        except DataError as error:
            assert "train.parquet" in str(error) and "\n" not in str(error)


def test_unreadable_pictures_are_named_by_their_rows(tmp_path):
    write(tmp_path / "train.parquet", [0, 1, 0, 1], [encoded(0), b"nothing", None, encoded(3)])
    write(tmp_path / "test.parquet", [0, 1])
    refused(f"parquet:{tmp_path}", "2 files are not readable", "row 1 of", "row 2 of", "train.parquet")


@pytest.mark.parametrize(
    ("files", "said"),
    [
        ({}, "holds no Parquet file"),
        ({"test.parquet": [0, 1]}, "holds no file for training"),
        ({"train.parquet": [0, 0, 0], "test.parquet": [0]}, "fewer than two classes"),
        ({"train.parquet": ["a", "b"], "test.parquet": ["c"]}, "classes that those for training lack: c"),
        ({"train.parquet": [0, 1], "test.parquet": ["a"]}, "has other columns or classes than"),
        ({"train.parquet": [0.5, 1.5], "test.parquet": [0.5]}, "no column of labels, or several"),
        ({"train.parquet": [0, 1], "test.parquet": [0]}, "no class has two training images"),
        ({"all.parquet": [0, 1]}, "a single picture of each class"),
    ],
)
def test_what_is_no_data_set(tmp_path, files, said):
    for name, labels in files.items():
        write(tmp_path / name, labels)
    refused(f"parquet:{tmp_path}", said)


def test_labels_beyond_the_names(tmp_path):
    write(tmp_path / "train.parquet", [0, 1, 3], features=described())
    write(tmp_path / "test.parquet", [0, 1], features=described())
    refused(f"parquet:{tmp_path}", "a label 3, but only 3 classes have names")


def test_files_of_no_split_are_skipped_and_counted(tmp_path):
    for name in ("train", "test", "unsupervised"):
        write(tmp_path / f"{name}.parquet", [0, 1, 0, 1])
    with pytest.warns(UserWarning, match=r"1 file\(s\) .* are skipped, such as unsupervised.parquet"):
        assert len(load(f"parquet:{tmp_path}?side=8").test) == 4


def test_nothing_there(tmp_path):
    refused(f"parquet:{tmp_path / 'no'}", "is not there: name a Parquet file, or a folder of them")
    refused("parquet:", "names no folder: write 'parquet:PATH'")
    assert signature(f"parquet:{tmp_path / 'no'}") is None


def test_a_file_for_a_training_that_is_run(tmp_path):
    """The labels stand by their images to the end: a batch shows the pair that the file holds."""
    from data import batches

    write(tmp_path / "train.parquet", [row % 2 for row in range(60)], group=9)
    write(tmp_path / "test.parquet", [0, 1])
    dataset = load(f"parquet:{tmp_path}?side=8")
    scale = torch.tensor(dataset.std)[:, None, None] * 255, torch.tensor(dataset.mean)[:, None, None] * 255
    for batch in batches(dataset, dataset.train, 9, seed=0, epoch=0, augmentation=()):
        red = (batch.images * scale[0] + scale[1])[:, 0, 0, 0].round().int()
        assert (red % 2 == batch.labels).all()
