"""`python -m storage info FILE`, `unpack FILE -o model.onnx`, `check FILE --dataset cifar10`: what an archive holds."""

import argparse
import sys
import tempfile
from pathlib import Path

import pandas as pd

from data import DataError, Dataset, load, normalize
from measurement import accuracy, wilson_interval  # a command stands above the rooms
from models import ModelError
from storage import StorageError, archive_table, export_onnx, load_archive, open_onnx, sha256


def info(path: Path) -> None:
    """Where the file's bytes go, and of what network it is."""
    model, table = load_archive(path), pd.DataFrame(archive_table(path))
    total = path.stat().st_size
    print(f"{path}: {total:,} bytes, SHA-256 {sha256(path)}\n{model.spec}\n")
    with pd.option_context("display.max_rows", None, "display.width", 160):
        print(table.round(3).to_string(index=False, na_rep=""))
    values = table["values"].sum()
    print(f"\n{values:,.0f} values in {total:,} bytes: {8 * total / values:.3f} bits a value")


def unpack(path: Path, output: Path, name: str | None) -> None:
    """Write the model as ONNX; with a data set its classes and its scale of pixels go with it, as in the study."""
    if name is None:
        export_onnx(load_archive(path), output)
    else:
        _export(path, output, load(name))
    print(f"{output}: {output.stat().st_size:,} bytes")


def check(path: Path, name: str) -> None:
    """Accuracy on the test images, from the archive alone."""
    dataset = load(name)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        _export(path, file, dataset)
        share = accuracy(open_onnx(file), dataset, dataset.test)
    low, high = wilson_interval(share, len(dataset.test))
    print(f"{path}: {100 * share:.2f} % of {len(dataset.test):,} test images ({100 * low:.2f} - {100 * high:.2f})")


def _export(path: Path, output: Path, dataset: Dataset) -> None:
    model = load_archive(path)
    of_model, of_data = (tuple(model.spec["shape"]), model.spec["classes"]), (dataset.shape, len(dataset.classes))
    if of_model != of_data:
        raise StorageError(
            f"{path} takes images {of_model[0]} of {of_model[1]} classes, {dataset.name} has {of_data[0]} of "
            f"{of_data[1]}: name the data set that it was trained on"
        )
    metadata = {"classes": dataset.classes, "mean": dataset.mean, "std": dataset.std}
    export_onnx(model, output, metadata, normalize(dataset.validation.images[:64], dataset))


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m storage", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, help in (("info", info.__doc__), ("unpack", unpack.__doc__), ("check", check.__doc__)):
        commands.add_parser(name, help=help).add_argument("file", type=Path)
    commands.choices["unpack"].add_argument("-o", "--output", type=Path, required=True)
    for name, required in (("unpack", False), ("check", True)):
        commands.choices[name].add_argument("--dataset", required=required, help="digits, cifar10 or folder:PATH")
    arguments = parser.parse_args()
    try:
        if arguments.command == "info":
            info(arguments.file)
        elif arguments.command == "unpack":
            unpack(arguments.file, arguments.output, arguments.dataset)
        else:
            check(arguments.file, arguments.dataset)
    except (StorageError, DataError, ModelError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
