"""`python -m measurement FILE.nna --dataset cifar10`: print a model's test accuracy, from its archive alone."""

import argparse
import sys
import tempfile
from pathlib import Path

from data import load
from measurement import accuracy, wilson_interval
from models import ModelError, imported, spec_of
from recipe import DataError
from storage import StorageError, export_with_scale, load_archive, open_onnx


def main() -> int:
    """Run the command; return 0 if the file could be measured."""
    parser = argparse.ArgumentParser(prog="python -m measurement", description=__doc__)
    parser.add_argument("file", type=Path)
    parser.add_argument("--dataset", required=True, help="cifar10 and the like, folder:PATH or parquet:PATH")
    parser.add_argument("--network", help="MODULE:FUNCTION, of a network of yours: its code runs")
    parser.add_argument("--import", dest="modules", action="append", default=[], help="a module of yours, which runs")
    arguments = parser.parse_args()
    try:
        for module in arguments.modules:
            imported(module)
        dataset = load(arguments.dataset)
        with tempfile.TemporaryDirectory() as folder:
            file = Path(folder) / "model.onnx"
            model = load_archive(arguments.file, network=arguments.network)
            export_with_scale(model, file, dataset)
            share = accuracy(open_onnx(file), dataset.on_scale(spec_of(model).get("pixels")), dataset.test)
    except (StorageError, DataError, ModelError) as error:
        print(error, file=sys.stderr)
        return 1
    low, high = wilson_interval(share, len(dataset.test))
    print(
        f"{arguments.file}: {100 * share:.2f} % of {len(dataset.test):,} test images "
        f"({100 * low:.2f} - {100 * high:.2f})"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
