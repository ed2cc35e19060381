"""`python -m storage info FILE`, `unpack FILE -o model.onnx`, `pack model.onnx -o FILE`: archives of models."""

import argparse
import sys
from pathlib import Path

import pandas as pd

from data import load
from models import ModelError, imported, spec_of
from recipe import DataError
from storage import StorageError, archive_table, export_onnx, export_with_scale, load_archive, pixel_scale, sha256
from storage.onnx_archive import is_onnx_archive, pack_onnx, unpack_onnx

IMPORT = "a module of yours that registers a transformation of networks: its code runs"


def info(path: Path, limit: int | None, network: str | None) -> None:
    """Print the network in the file and what its bytes are spent on."""
    if is_onnx_archive(path):
        raise StorageError(f"{path} holds an ONNX file, not a network of ours: unpack restores it")
    model = load_archive(path, limit, network)
    table = pd.DataFrame(archive_table(path, limit, network))
    total = path.stat().st_size
    print(f"{path}: {total:,} bytes, SHA-256 {sha256(path)}\n{spec_of(model)}\n")
    with pd.option_context("display.max_rows", None, "display.width", 160):
        print(table.round(3).to_string(index=False, na_rep=""))
    values = table["values"].sum()
    print(f"\n{values:,.0f} values in {total:,} bytes: {8 * total / values:.3f} bits a value")


def unpack(
    path: Path, limit: int | None, network: str | None, output: Path, name: str | None, raw_images: bool
) -> None:
    """Write the model as ONNX; if a data set is given, with its classes and the mean and std of pixels."""
    _check_output(path, output)
    if is_onnx_archive(path):
        print(f"{output}: {unpack_onnx(path, output):,} bytes, the very file that was packed")
        return
    model = load_archive(path, limit, network)
    if name is not None:
        export_with_scale(model, output, load(name), raw_images)
    else:
        export_onnx(model, output, raw_scale=pixel_scale(spec_of(model)) if raw_images else None)
    print(f"{output}: {output.stat().st_size:,} bytes")


def pack(path: Path, output: Path) -> None:
    """Write an ONNX file, whoever made it, as a smaller archive from which the same file comes back byte for byte."""
    _check_output(path, output)
    length, before = pack_onnx(path, output), path.stat().st_size
    print(f"{output}: {length:,} bytes, {before / length:.2f} times smaller")


def _check_output(path: Path, output: Path) -> None:
    if output.exists() and path.exists() and output.samefile(path):
        raise StorageError(f"{output} is the file that is read: write to another one")


def _bytes(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of bytes: give a whole number above 0")
    return int(text)


def main() -> int:
    """Run the command; return 0 if the file could be read."""
    parser = argparse.ArgumentParser(prog="python -m storage", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    for name, run in (("info", info), ("unpack", unpack), ("pack", pack)):
        command = commands.add_parser(name, help=run.__doc__)
        command.add_argument("file", type=Path)
        if name != "info":
            command.add_argument("-o", "--output", type=Path, required=True)
        if name == "pack":
            continue
        command.add_argument("--limit", type=_bytes, help="maximum size of its tensors in memory, in bytes")
        command.add_argument("--network", help="MODULE:FUNCTION, of a network of yours: its code runs")
        command.add_argument("--import", dest="modules", action="append", default=[], metavar="MODULE", help=IMPORT)
    commands.choices["unpack"].add_argument("--dataset", help="cifar10 and the like, folder:PATH or parquet:PATH")
    commands.choices["unpack"].add_argument(
        "--raw-images", action="store_true", help="let the model take uint8 images and normalize them itself"
    )
    arguments = parser.parse_args()
    try:
        for module in getattr(arguments, "modules", []):
            imported(module)
        if arguments.command == "info":
            info(arguments.file, arguments.limit, arguments.network)
        elif arguments.command == "pack":
            pack(arguments.file, arguments.output)
        else:
            file, limit, network = arguments.file, arguments.limit, arguments.network
            unpack(file, limit, network, arguments.output, arguments.dataset, arguments.raw_images)
    except (StorageError, DataError, ModelError) as error:
        print(error, file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
