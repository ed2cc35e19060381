"""Every notebook runs top to bottom on digits, into a temporary results folder; a second run only reads records."""

import os
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]_*.ipynb"))


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("study")
    return os.environ | {"RESULTS_DIR": str(root / "results"), "ARTIFACTS_DIR": str(root / "artifacts")}


def run(environment: dict) -> float:
    started = time.perf_counter()
    command = [sys.executable, "-m", "notebooks.run", "--dataset", "digits"]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr[-2000:]
    return time.perf_counter() - started


def test_all_notebooks_run_and_then_read_back(folders):
    run(folders)
    digits = Path(folders["RESULTS_DIR"]) / "digits"
    before = {file: file.read_bytes() for file in digits.glob("*.json")}
    assert before
    assert run(folders) < 120
    assert {file: file.read_bytes() for file in digits.glob("*.json")} == before


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_is_thin_and_has_parameters(path):
    cells = nbformat.read(path, as_version=4).cells
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    for cell in cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 30
            assert not any(output.output_type == "error" for output in cell.outputs)
