"""Reads Parquet files in the layout of the Hugging Face hub, by the names and kinds of their columns."""

import json
import re
import unicodedata
import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import torch
from pyarrow import types

from data.pictures import BROKEN, Pictures, first_line, split_classes
from recipe import DataError, FolderOptions, readable

# The words of a split in the name of a file or of a folder around it, as the hub reads them.
WORDS = {
    "train": {"train", "training"},
    "validation": {"validation", "valid", "val", "dev"},
    "test": {"test", "testing", "eval", "evaluation"},
}
IMAGE_NAMES, LABEL_NAMES = ("image", "img", "picture", "photo"), ("label", "labels", "class", "category", "target")
AT_ONCE = 64  # rows read at once
DAMAGED = (pyarrow.ArrowException, AttributeError, KeyError, *BROKEN)


@dataclass(frozen=True)
class Columns:
    """The columns of pictures and labels of a Parquet file, and the names of the classes if the file holds them.

    Labels are text or, with or without `classes`, whole numbers.
    """

    image: str
    label: str
    is_text: bool
    classes: tuple[str, ...]


def read_parquet(root: Path, options: FolderOptions) -> Pictures:
    """Return the pictures in a Parquet file, or in all those below a folder, which are of one data set.

    Files are of the split that their name or a folder's around them says, such as data/train-00000-of-00002.parquet or
    train/0000.parquet. Without test images, those for validation take their place, or else a fifth of each class, with
    a warning. The column of pictures holds structs with `bytes`, or bytes; that of labels whole numbers or text. Rows
    without a label (none, or below zero) are left out, with a warning. Pictures are read as those of a folder.

    Raises:
        DataError: there are no files, columns cannot be found, or files are damaged or do not belong together.
    """
    files = _files_by_part(root)
    columns = _common_columns([file for own in files.values() for file in own], options.label)
    labels = {part: [label for file in own for label in read_labels(file, columns)] for part, own in files.items()}
    classes = columns.classes or tuple(map(str, sorted({label for label in labels["train"] if label is not None})))
    numbers, rows, first = {}, {}, 0
    for part, own in labels.items():
        numbered = _numbered(own, columns, classes, f"the {part} files of {readable(root)}")
        kept = numbered >= 0
        if bool(kept.any()):
            numbers[part], rows[part] = numbered[kept], first + kept.nonzero().flatten()
        first += len(own)
    _warn_of_unlabelled(root, first - sum(map(len, rows.values())))
    if "train" not in numbers or int(numbers["train"].unique().numel()) < 2:
        raise DataError(f"{readable(root)} has training images of fewer than two classes: at least two are needed")
    if "test" not in numbers and "validation" in numbers:
        numbers["test"], rows["test"] = numbers.pop("validation"), rows.pop("validation")
    if "test" not in numbers:
        numbers, rows = _split(root, numbers["train"], rows["train"], len(classes))
    every = [file for own in files.values() for file in own]

    def encoded() -> Iterator[tuple[str, bytes | None]]:
        return (picture for file in every for picture in read_encoded(file, columns))

    return Pictures(root, options, every, classes, numbers, rows, encoded)


def parquet_files(root: Path) -> list[Path]:
    """Return the Parquet files below a folder, except hidden ones, or the file itself."""
    if root.is_file():
        return [root]
    found = sorted(root.rglob("*.parquet"))
    return [file for file in found if not any(part.startswith(".") for part in file.relative_to(root).parts)]


def find_columns(file: Path, label: str = "") -> Columns:
    """Return the columns of pictures and labels: by the hub's description in the file, else by their kind and name.

    Raises:
        DataError: there is no such column, or several; the message names those of the file.
    """
    try:
        schema = pyarrow.parquet.read_schema(file)
        described = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = described.get("info", {}).get("features", {})
    except DAMAGED as error:
        raise _damaged(file, error) from None
    kinds = {name: own.get("_type") for name, own in features.items() if isinstance(own, dict)}
    images = [name for name, kind in kinds.items() if kind == "Image"]
    images = images or [field.name for field in schema if _holds_pictures(field.type)]
    labels = [name for name, kind in kinds.items() if kind == "ClassLabel"]
    labels = labels or [field.name for field in schema if _holds_labels(field.type)]
    image = _one_of(images, IMAGE_NAMES)
    label = label or _one_of(labels, LABEL_NAMES) or ""
    there = ", ".join(schema.names)
    if image is None:
        raise DataError(f"{readable(file)} has no column of pictures, or several (its columns are {there}): keep one")
    if label not in schema.names:
        missing = f"no column {label!r}" if label else "no column of labels, or several"
        raise DataError(f"{readable(file)} has {missing}: add ?label= with one of {there}")
    kind = schema.field(label).type
    if not _holds_labels(kind):
        raise DataError(f"the column {label!r} of {readable(file)} holds {kind}: labels are whole numbers or text")
    is_text = _is_text(kind)
    return Columns(image, label, is_text, () if is_text else tuple(features.get(label, {}).get("names") or ()))


def read_labels(file: Path, columns: Columns) -> list[int | str | None]:
    """Return the labels in a file, None where there is none.

    Raises:
        DataError: the file is damaged.
    """
    try:
        labels = pyarrow.parquet.read_table(file, columns=[columns.label])[columns.label].to_pylist()
    except DAMAGED as error:
        raise _damaged(file, error) from None
    if columns.is_text:
        return [None if label is None else unicodedata.normalize("NFC", label) for label in labels]
    return [None if label is None or label < 0 else int(label) for label in labels]


def read_encoded(file: Path, columns: Columns) -> Iterator[tuple[str, bytes | None]]:
    """Yield, for each row of a file, what to call its picture and the bytes of a PNG, JPEG and the like.

    Raises:
        DataError: the file is damaged.
    """
    row = 0
    try:
        with pyarrow.parquet.ParquetFile(file, buffer_size=1 << 20, pre_buffer=False) as opened:
            for batch in opened.iter_batches(AT_ONCE, columns=[columns.image], use_threads=False):
                column = batch.column(0)
                if types.is_struct(column.type):
                    column = column.field("bytes")
                for value in column.to_pylist():
                    yield f"row {row} of {readable(file)}", value
                    row += 1
    except DAMAGED as error:
        raise _damaged(file, error) from None


def _files_by_part(root: Path) -> dict[str, list[Path]]:
    """Return the files of each split, those for training first; all are for training if no name says anything."""
    if not root.exists():
        raise DataError(f"{readable(root)} is not there: name a Parquet file, or a folder of them")
    found = parquet_files(root)
    if not found:
        raise DataError(f"{readable(root)} holds no Parquet file: put train-*.parquet and test-*.parquet there")
    parts = {file: _part(file.relative_to(root) if file != root else Path(file.name)) for file in found}
    if not any(parts.values()):
        return {"train": found}
    files = {part: [file for file in found if parts[file] == part] for part in WORDS}
    if others := [file for file in found if parts[file] is None]:
        warnings.warn(
            f"{len(others)} file(s) in {readable(root)} are skipped, such as {readable(others[0].name)}: their names "
            "say neither train nor validation nor test",
            stacklevel=4,
        )
    if not files["train"]:
        if root.is_dir():
            raise DataError(f"{readable(root)} holds no file for training: put train-*.parquet there")
        return {"train": found}
    return {part: own for part, own in files.items() if own}


def _part(name: Path) -> str | None:
    """Return the split that a file's name says, else that which the folders around it say."""
    for text in (name.stem, *(folder.name for folder in name.parents)):
        said = set(re.split(r"[^a-z]+", text.lower()))
        for part, words in WORDS.items():
            if said & words:
                return part
    return None


def _common_columns(files: list[Path], label: str) -> Columns:
    first, *others = [find_columns(file, label) for file in files]
    for file, columns in zip(files[1:], others, strict=True):
        if columns != first:
            raise DataError(
                f"{readable(file)} has other columns or classes than {readable(files[0])}: name the folder of one data "
                "set alone"
            )
    return first


def _one_of(names: list[str], usual: tuple[str, ...]) -> str | None:
    """Return the only one of `names`, or else the first of the usual ones."""
    return names[0] if len(names) == 1 else next((name for name in usual if name in names), None)


def _holds_pictures(kind: pyarrow.DataType) -> bool:
    if types.is_struct(kind):
        return kind.get_field_index("bytes") >= 0
    return types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind)


def _holds_labels(kind: pyarrow.DataType) -> bool:
    return _is_text(kind) or types.is_integer(kind) or types.is_boolean(kind)


def _is_text(kind: pyarrow.DataType) -> bool:
    kind = kind.value_type if types.is_dictionary(kind) else kind
    return types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)


def _numbered(labels: list, columns: Columns, classes: tuple[str, ...], where: str) -> torch.Tensor:
    """Return the classes' numbers `[N]` int64, -1 where there is no label."""
    if columns.classes:
        if too_large := [label for label in labels if label is not None and label >= len(classes)]:
            raise DataError(f"{where} hold a label {max(too_large)}, but only {len(classes)} classes have names")
        return torch.from_numpy(np.array([-1 if label is None else label for label in labels], np.int64))
    numbers = {name: number for number, name in enumerate(classes)}
    if unknown := sorted({str(label) for label in labels if label is not None} - set(classes)):
        raise DataError(f"{where} have classes that those for training lack: {', '.join(unknown[:6])}")
    return torch.from_numpy(np.array([-1 if label is None else numbers[str(label)] for label in labels], np.int64))


def _warn_of_unlabelled(root: Path, count: int) -> None:
    if count:
        warnings.warn(f"{count} row(s) in {readable(root)} have no label and are left out", stacklevel=4)


def _split(
    root: Path, labels: torch.Tensor, rows: torch.Tensor, classes: int
) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Split the training rows: a fifth of each class for testing, never its only picture."""
    is_test = torch.zeros(len(labels), dtype=torch.bool)
    places = [(labels == label).nonzero().flatten() for label in range(classes)]
    for own, (test, _) in zip(places, split_classes([len(own) for own in places]), strict=True):
        is_test[own[test]] = True
    if not bool(is_test.any()):
        raise DataError(f"{readable(root)} has a single picture of each class, so none is left to test on: add some")
    warnings.warn(
        f"{readable(root)} names no file for testing: its {len(labels)} pictures are split by a fixed seed, "
        f"{int((~is_test).sum())} for training and {int(is_test.sum())} for testing",
        stacklevel=4,
    )
    return {"train": labels[~is_test], "test": labels[is_test]}, {"train": rows[~is_test], "test": rows[is_test]}


def _damaged(file: Path, error: BaseException) -> DataError:
    return DataError(f"{readable(file)} is truncated or corrupt ({first_line(error)}): fetch it again")
