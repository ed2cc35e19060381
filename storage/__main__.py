"""`python -m storage info FILE`, `unpack FILE -o model.onnx`: what an archive holds."""

import argparse
import sys
from pathlib import Path

import pandas as pd

from data import DataError, load
from models import ModelError, spec_of
from storage import StorageError, archive_table, export_onnx, export_with_scale, load_archive, sha256


def info(path: Path) -> None:
    """Where the file's bytes go, and of what network it is."""
    model, table = load_archive(path), pd.DataFrame(archive_table(path))
    total = path.stat().st_size
    print(f"{path}: {total:,} bytes, SHA-256 {sha256(path)}\n{spec_of(model)}\n")
    with pd.option_context("display.max_rows", None, "display.width", 160):
        print(table.round(3).to_string(index=False, na_rep=""))
    values = table["values"].sum()
    print(f"\n{values:,.0f} values in {total:,} bytes: {8 * total / values:.3f} bits a value")


def unpack(path: Path, output: Path, name: str | None) -> None:
    """Write the model as ONNX; with a data set its classes and its scale of pixels go with it, as in the study."""
    if name is None:
        export_onnx(load_archive(path), output)
    else:
        export_with_scale(load_archive(path), output, load(name))
    print(f"{output}: {output.stat().st_size:,} bytes")


def main() -> int:
    """The command; 0 if the file could be read."""
    parser = argparse.ArgumentParser(prog="python -m storage", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, command in (("info", info), ("unpack", unpack)):
        commands.add_parser(name, help=command.__doc__).add_argument("file", type=Path)
    commands.choices["unpack"].add_argument("-o", "--output", type=Path, required=True)
    commands.choices["unpack"].add_argument("--dataset", help="digits, cifar10 or folder:PATH")
    arguments = parser.parse_args()
    try:
        if arguments.command == "info":
            info(arguments.file)
        else:
            unpack(arguments.file, arguments.output, arguments.dataset)
    except (StorageError, DataError, ModelError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
