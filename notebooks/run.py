"""Run every notebook top to bottom: `python -m notebooks.run --dataset digits`."""

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
import papermill

from storage import atomic_write

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent


def main() -> int:
    """The command; 0 if every notebook ran to its end."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--dataset", default="digits", help="digits (default), cifar10 or folder:PATH")
    parser.add_argument("--only", default="", help="run only notebooks whose name contains this")
    parser.add_argument("--in-place", action="store_true", help="write the outputs back into notebooks/")
    arguments = parser.parse_args()
    output = Path(os.environ.get("ARTIFACTS_DIR", ROOT / "artifacts")) / "notebooks"
    output.mkdir(parents=True, exist_ok=True)
    os.environ["DATASET"] = _absolute(arguments.dataset)  # read by every notebook's parameters cell
    for name in ("CIFAR10_ROOT", "RESULTS_DIR", "ARTIFACTS_DIR"):  # notebooks run in their own folder
        if name in os.environ:
            os.environ[name] = str(Path(os.environ[name]).resolve())
    started = time.perf_counter()
    for notebook in sorted(FOLDER.glob("[0-9]_*.ipynb")):
        if arguments.only not in notebook.name:
            continue
        print(f"{notebook.name} on {arguments.dataset}", flush=True)
        target = notebook if arguments.in_place else output / notebook.name
        try:
            papermill.execute_notebook(
                str(notebook), str(target), cwd=str(FOLDER),
                kernel_name="python3", progress_bar=True, stderr_file=sys.stderr,
            )  # fmt: skip
        except papermill.PapermillExecutionError as error:
            print(f"{notebook.name} stopped: {error.ename}: {error.evalue}\nIts cells so far: {target}")
            return 1
        if arguments.in_place:
            _tidy(notebook)
    results = os.environ.get("RESULTS_DIR", ROOT / "results")
    print(f"Done in {time.perf_counter() - started:.0f} s.\nRecords: {results}\nNotebooks with charts: {output}")
    return 0


def _tidy(path: Path) -> None:
    """Leave in a notebook what its readers want: no times and paths of this run, no warnings, no progress bars."""
    notebook = nbformat.read(path, as_version=4)
    notebook.metadata.pop("widgets", None)
    for part in (notebook, *notebook.cells):
        part.metadata.pop("papermill", None)
        part.metadata.pop("execution", None)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = [o for o in cell.outputs if o.get("name") != "stderr" and not _is_bar(o)]
    with atomic_write(path) as temporary:
        nbformat.write(notebook, temporary)


def _is_bar(output: dict) -> bool:
    return "application/vnd.jupyter.widget-view+json" in output.get("data", {})


def _absolute(dataset: str) -> str:
    kind, _, path = dataset.partition(":")
    return f"{kind}:{Path(path).resolve()}" if path else dataset


if __name__ == "__main__":
    sys.exit(main())
