"""Run every notebook top to bottom: `python -m notebooks.run --dataset digits`.

Constants of a notebook's parameters cell can be given from here: `-p SEEDS "[0]" -p MODEL resnet8`, of those notebooks
that have them. `--smoke` gives all of them few seeds, criteria and epochs: a test of the notebooks, not a study.

With $RAY, "processes", "auto" or the address of a Ray cluster, models are made there before they are measured here: at
first all of those that the data set's known records are of.

Notebooks run one after the other, so that none disturbs what another one times. Where nothing has changed since all of
them ran, there is nothing to time, and they run side by side.
"""

import argparse
import ast
import hashlib
import json
import logging
import os
import sys
import tempfile
import time
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeGuard

import nbformat
import papermill

from recipe import DATASETS, CompressionError, check_dataset, root_variable

FOLDER = Path(__file__).parent
ROOT = FOLDER.parent
PATHS = ("RESULTS_DIR", "ARTIFACTS_DIR", "STORE", *map(root_variable, DATASETS))
SIDE_BY_SIDE = 4  # notebooks at most, each with torch in memory
DIGITS_SECONDS = "0.1"  # of each latency timing on digits, whose networks take a tenth of a millisecond


def main() -> int:
    """The command; 0 if every notebook ran to its end."""
    arguments, parser = _arguments()
    notebooks = _chosen(arguments.dataset, arguments.only)
    if not notebooks:
        names = ", ".join(path.stem for path in sorted(FOLDER.glob("[0-9]_*.ipynb")))
        parser.error(f"no notebook's name contains {arguments.only!r}: choose from {names}")
    try:
        parameters = _parameters(notebooks, dict(arguments.p), arguments.smoke)
        _prepare_environment(arguments.dataset)
    except (ValueError, CompressionError) as error:
        parser.error(str(error))
    if arguments.lab:
        jupyter = [sys.executable, "-m", "jupyter", "lab", str(FOLDER)]
        os.execv(jupyter[0], jupyter)  # in place of this process
    output = _artifacts() / "notebooks"
    logging.getLogger("papermill").setLevel(logging.ERROR)  # it knows fewer names of constants than `_constants`
    started, done = time.perf_counter(), output / "done.txt"  # what all of them ran on
    drawn = done.exists() and done.read_text() == _state(parameters)
    targets = [path if arguments.in_place else output / path.name for path in notebooks]
    if os.environ.get("RAY") and not drawn:
        try:
            _make_elsewhere(whole=not (arguments.only or arguments.p or arguments.smoke))
        except CompressionError as error:
            print(error, file=sys.stderr)
            return 1
    # Processes: two of Jupyter's clients in the threads of one have waited for each other for ever. Forked ones import
    # nothing again, where that is safe.
    processes = get_context("fork" if sys.platform == "linux" else "spawn")
    with ProcessPoolExecutor(min(SIDE_BY_SIDE, os.cpu_count() or 1), processes) as pool:
        jobs = list(zip(notebooks, targets, parameters.values(), strict=True))
        if drawn:
            jobs.reverse()  # the last takes the longest to draw
        each, run = zip(*jobs, strict=True), partial(_execute, bar=not drawn)
        if not all(pool.map(run, *each) if drawn else map(run, *each)):  # up to the first that fails
            return 1
    if not arguments.only:
        done.write_text(_state(parameters))
    print(f"Done in {time.perf_counter() - started:.0f} s.\nRecords: {_results()}\nNotebooks with charts: {output}")
    return 0


def _chosen(dataset: str, only: str) -> list[Path]:
    """The notebooks whose name contains `only`; a study of CIFAR-10 leaves out the one for images of one's own."""
    notebooks = [path for path in sorted(FOLDER.glob("[0-9]_*.ipynb")) if only in path.name]
    return [path for path in notebooks if only or dataset != "cifar10" or not path.name.startswith("0_")]


def _arguments() -> tuple[argparse.Namespace, argparse.ArgumentParser]:
    parser = argparse.ArgumentParser(
        prog="python -m notebooks.run", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    dataset = os.environ.get("DATASET", "digits")
    parser.add_argument(
        "--dataset", default=dataset, help="cifar10 and the like, folder:PATH or parquet:PATH ($DATASET)"
    )
    parser.add_argument("--only", default="", help="run only notebooks whose name contains this")
    constant: dict[str, Any] = {"nargs": 2, "metavar": ("NAME", "VALUE"), "help": "a constant; JSON or text"}
    parser.add_argument("-p", action="append", default=[], **constant)
    parser.add_argument("--smoke", action="store_true", help="the constants of notebooks/smoke.json")
    parser.add_argument("--in-place", action="store_true", help="write the outputs back into notebooks/")
    parser.add_argument("--lab", action="store_true", help="open JupyterLab instead")
    arguments = parser.parse_args()
    if arguments.in_place and (arguments.p or arguments.smoke):
        parser.error("--in-place writes what the notebooks say themselves: leave -p and --smoke out")
    return arguments, parser


def _parameters(notebooks: list[Path], given: dict[str, str], smoke: bool) -> dict[str, dict]:
    """By notebook: the constants of its parameters cell that are given, or those of the smoke profile.

    Raises:
        ValueError: no notebook has such a constant, or it is of another kind there.
    """
    profile = json.loads((FOLDER / "smoke.json").read_text()) if smoke else {}
    values = {name: _value(text) for name, text in given.items()}
    constants = {path.stem: _constants(path) for path in notebooks}
    if "DATASET" in values:
        raise ValueError("the data set is no constant to give with -p: use --dataset")
    if unknown := sorted(set(values).difference(*constants.values())):
        known = ", ".join(sorted(set().union(*constants.values())))
        raise ValueError(f"{unknown[0]} is no constant of these notebooks: choose from {known}")
    for own in constants.values():
        for name in values.keys() & own.keys():
            if _shape(own[name]) != _shape(values[name]):
                raise ValueError(f"{name} is {_shape(own[name])} in the notebook, not {json.dumps(values[name])}")
            if values[name] == [] and not any(isinstance(n, ast.List) and not n.elts for n in ast.walk(own[name])):
                raise ValueError(f"{name} is empty: give at least one")
    return {
        name: profile.get(name, {}) | {key: value for key, value in values.items() if key in own}
        for name, own in constants.items()
    }


def _constants(path: Path) -> dict[str, ast.expr]:
    """The names that a notebook's parameters cell assigns, and the expressions that it gives them.

    DATASET, which others follow from, is an argument here, and what only compares it is no constant to change.
    """
    cells = nbformat.read(path, as_version=4).cells
    source = next(cell.source for cell in cells if "parameters" in cell.metadata.get("tags", []))
    # `A = 1`, and `A, B = 1, 2` of single values.
    assigned = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.Assign)]
    names = [(name.id, node.value) for node in assigned for name in ast.walk(node.targets[0]) if _is_constant(name)]
    return {name: value for name, value in names if name != "DATASET" and not isinstance(value, ast.Compare)}


def _is_constant(node: ast.AST) -> TypeGuard[ast.Name]:
    return isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store) and node.id.isupper()


def _shape(value: Any) -> str:
    """What a value is besides its size, or the expression that gives one."""
    while isinstance(value, ast.IfExp):
        value = value.body
    if isinstance(value, dict | ast.Dict):
        return 'a mapping, such as {"epochs": 1},'
    if isinstance(value, list | ast.List):
        return "a list, such as [0, 1],"
    return "a single value"


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _prepare_environment(dataset: str) -> None:
    """What the kernels read: where the code is, the data set, and folders, whole, since they run in their own.

    Raises:
        ValueError: a folder that is set and empty, or cannot be written to.
        DataError: there is no such data set.
    """
    check_dataset(dataset)
    os.environ["DATASET"] = _absolute(dataset)
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    for name in PATHS:
        if name in os.environ:
            if not os.environ[name].strip():
                raise ValueError(f"{name} is empty: name a folder, or leave it unset")
            os.environ[name] = str(Path(os.environ[name]).expanduser().resolve())
    for name, folder in (("RESULTS_DIR", _results()), ("ARTIFACTS_DIR", _artifacts() / "notebooks")):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            tempfile.TemporaryFile(dir=folder).close()
        except OSError as error:
            raise ValueError(f"cannot write to {folder} ({error.strerror}): set {name} to a folder of yours") from None
    if dataset == "digits":
        os.environ.setdefault("MEASURE_SECONDS", DIGITS_SECONDS)


def _make_elsewhere(whole: bool) -> None:
    """Connect to the Ray cluster that $RAY names, for the kernels too, and make what the data set's records are of.

    Without `whole`, because of other constants, say, notebooks make what they need themselves.
    """
    import combination  # noqa: F401 (the steps of recipes)
    from experiment.plan import known_recipes
    from experiment.spread import make_all
    from training.devices import connect

    if os.environ["RAY"] != "processes":
        os.environ["RAY"] = connect(os.environ["RAY"]).get_runtime_context().gcs_address
    for name, error in make_all(known_recipes(os.environ["DATASET"]) if whole else []).items():
        print(f"failed: {name}: {error}", file=sys.stderr)


def _absolute(dataset: str) -> str:
    kind, _, path = dataset.partition(":")
    return f"{kind}:{os.path.abspath(os.path.expanduser(path))}" if path else dataset


def _results() -> Path:
    return Path(os.environ.get("RESULTS_DIR", ROOT / "results"))


def _artifacts() -> Path:
    return Path(os.environ.get("STORE") or os.environ.get("ARTIFACTS_DIR") or ROOT / "artifacts")


def _state(parameters: dict[str, dict]) -> str:
    """A hash of what the notebooks' records follow from: code, constants and data set; and of which files there are.

    The code is that of every room, and of the notebooks without their outputs.
    """
    state = hashlib.sha256(json.dumps([os.environ["DATASET"], str(_results()), parameters]).encode())
    for path in sorted(ROOT.glob("*/*.py")):
        state.update(path.read_bytes())
    for path in sorted(FOLDER.glob("*.ipynb")):
        state.update("\n".join(cell.source for cell in nbformat.read(path, as_version=4).cells).encode())
    kept = (str(path) for path in _results().rglob("*.json"))
    return state.hexdigest() + hashlib.sha256("\n".join(sorted(kept)).encode()).hexdigest()


def _execute(notebook: Path, target: Path, parameters: dict, *, bar: bool) -> bool:
    """Run a notebook and say so; whether it ran to its end."""
    started = time.perf_counter()
    print(f"{notebook.name} on {os.environ['DATASET']}", flush=True)
    try:
        papermill.execute_notebook(
            str(notebook), str(target), parameters, cwd=str(FOLDER), kernel_name="python3", progress_bar=bar,
            stderr_file=sys.stderr, request_save_on_cell_execute=bar,  # what takes seconds is written once
            extra_arguments=["--IPKernelApp.log_level=50"],  # of a kernel of one's own: it warns that it is no other's
        )  # fmt: skip
    except papermill.PapermillExecutionError as error:
        print(f"{notebook.name} stopped: {error.ename}: {error.evalue}\nIts cells so far: {target}")
        return False
    if target == notebook:
        _tidy(notebook)
    print(f"{notebook.name} took {time.perf_counter() - started:.0f} s", flush=True)
    return True


def _tidy(path: Path) -> None:
    """Leave in a notebook what its readers want: no times and paths of this run, no warnings, no progress bars."""
    from storage import atomic_write  # with torch, whose import takes seconds that most runs do without

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


if __name__ == "__main__":
    sys.exit(main())
