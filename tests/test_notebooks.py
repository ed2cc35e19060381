"""Every notebook runs top to bottom on digits, into a temporary results folder; a second run only reads records."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import nbformat
import pytest

from notebooks import run as runner

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = sorted((ROOT / "notebooks").glob("[0-9]_*.ipynb"))


@pytest.fixture
def environment(tmp_path, artifacts) -> dict[str, str]:
    return os.environ | {"RESULTS_DIR": str(tmp_path / "results"), "ARTIFACTS_DIR": str(artifacts)}


def study(environment: dict, *arguments: str) -> None:
    command = [sys.executable, "-m", "notebooks.run", "--dataset", "digits", *arguments]
    finished = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stdout + finished.stderr[-2000:]


def kept(environment: dict) -> dict[Path, tuple[int, int]]:
    """Each file of what is made, and when it was written: a training, a measurement or a search writes some of them."""
    made = {".json", ".safetensors", ".checkpoint", ".onnx", ".nna", ".journal"}
    roots = (root for name in ("RESULTS_DIR", "ARTIFACTS_DIR") for root in Path(environment[name]).glob("*digits*"))
    files = [file for root in roots for file in root.rglob("*") if file.suffix in made]
    assert files
    return {file: (file.stat().st_mtime_ns, file.stat().st_size) for file in files}


@pytest.mark.longest
@pytest.mark.parametrize("numbers", ["27", *(pytest.param(own, marks=pytest.mark.slow) for own in ("0", "13", "456"))])
def test_notebooks_run_in_a_small_way_and_the_last_reads_back(numbers, environment):
    """The last of them reads everything back: nothing is trained, measured or written again.

    A base that is not there is trained. All but two notebooks, which show how it is done, are in the slow tier.
    """
    small = environment | {"MEASURE_SECONDS": "0.02"}
    for number in numbers:
        study(small, "--smoke", "--only", f"{number}_")
    before = kept(small)
    assert {file.suffix for file in before} >= {".json", ".safetensors", ".onnx", ".nna"}
    study(small, "--smoke", "--only", f"{numbers[-1]}_")
    assert kept(small) == before


@pytest.mark.slow
@pytest.mark.longest
def test_the_whole_study_runs_and_then_reads_back(environment):
    study(environment)
    before = kept(environment)
    study(environment)
    assert kept(environment) == before


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_committed_notebook_is_thin_and_has_parameters(path):
    cells = nbformat.read(path, as_version=4).cells
    assert sum("parameters" in cell.metadata.get("tags", []) for cell in cells) == 1
    for cell in cells:
        if cell.cell_type == "code":
            assert len(cell.source.splitlines()) <= 30
            assert not any(output.output_type == "error" for output in cell.outputs)


# --- What the runner is told ------------------------------------------------------------------------------------------


def test_the_smoke_profile_is_of_constants_that_there_are():
    profile = json.loads((ROOT / "notebooks" / "smoke.json").read_text())
    constants = {path.stem: runner._constants(path) for path in NOTEBOOKS}
    assert all(given.keys() <= constants[name].keys() for name, given in profile.items())


def test_no_constant_follows_from_another_but_the_data_set(tmp_path):
    """Else one that papermill sets would leave another as it was: each is what it is by itself."""
    for path in NOTEBOOKS:
        source = next(c.source for c in nbformat.read(path, as_version=4).cells if "parameters" in c.metadata["tags"])
        own = runner._constants(path).keys()
        for line in source.splitlines():
            name, _, value = line.partition(" = ")
            assert not any(other in value.split("#")[0].replace("[", " ").split() for other in own - {name}), line


def test_a_study_of_cifar10_leaves_out_the_notebook_for_images_of_ones_own():
    assert runner._chosen("digits", "") == runner._chosen("folder:pictures", "") == NOTEBOOKS
    assert runner._chosen("cifar10", "") == NOTEBOOKS[1:] and NOTEBOOKS[0].stem == "0_your_network"
    assert runner._chosen("cifar10", "0_") == NOTEBOOKS[:1]


def test_parameters_go_to_the_notebooks_that_have_them():
    given = runner._parameters(NOTEBOOKS, {"SEEDS": "[0]", "MODEL": "resnet8", "TRY": "true"}, smoke=False)
    assert given["1_baseline"] == {"SEEDS": [0], "TRY": True}
    assert given["3_pruning"] == {"SEEDS": [0], "MODEL": "resnet8"} and given["7_comparison"] == {}
    with pytest.raises(ValueError, match="SEED_ is no constant of these notebooks: choose from .*, SEEDS, "):
        runner._parameters(NOTEBOOKS, {"SEED_": "0"}, smoke=False)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--only", "zzz"], "no notebook's name contains 'zzz': choose from 0_your_network, 1_baseline"),
        (["-p", "TEACHER_", "x"], "TEACHER_ is no constant"),
        (["-p", "SPARSITIES", "[]"], "SPARSITIES is empty: give at least one"),
        (["-p", "DATASET", "cifar10"], "use --dataset"),
        (["--dataset", "nope"], "unknown data set 'nope'"),
        (["-p", "SEEDS", "5"], "SEEDS is a list, such as [0, 1], in the notebook, not 5"),
        (["-p", "HEADLINE", "x"], 'HEADLINE is a list, such as [0, 1], in the notebook, not "x"'),
        (["-p", "FIELDS", "[1]"], 'FIELDS is a mapping, such as {"epochs": 1}, in the notebook, not [1]'),
        (["-p", "MODEL", '["resnet8"]'], 'MODEL is a single value in the notebook, not ["resnet8"]'),
        (["--in-place", "--smoke"], "leave -p and --smoke out"),
    ],
)
def test_the_runner_refuses_in_a_sentence(arguments, said, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["notebooks.run", *arguments])
    with pytest.raises(SystemExit, match="2"):
        runner.main()
    assert said in capsys.readouterr().err


def test_folders_are_whole_and_never_empty(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "environ", {"HOME": str(tmp_path / "home"), "RESULTS_DIR": "~/r", "ARTIFACTS_DIR": "a b"})
    for given, meant in (("folder:~/my pics", "home/my pics"), ("folder:it's (1) & $x", "it's (1) & $x")):
        runner._prepare_environment(given)
        assert os.environ["DATASET"] == f"folder:{tmp_path / meant}"
    assert os.environ["RESULTS_DIR"] == str(tmp_path / "home/r")
    assert os.environ["ARTIFACTS_DIR"] == str(tmp_path / "a b")
    for name in ("RESULTS_DIR", "ARTIFACTS_DIR"):  # a file lies where the folder would be
        (tmp_path / name).touch()
        with monkeypatch.context() as patch:
            patch.setitem(os.environ, name, str(tmp_path / name / "below"))
            with pytest.raises(ValueError, match=rf"cannot write to .*below.*: set {name} to a folder of yours"):
                runner._prepare_environment("digits")
    for empty in ("", "  "):
        os.environ["RESULTS_DIR"] = empty
        with pytest.raises(ValueError, match="RESULTS_DIR is empty: name a folder, or leave it unset"):
            runner._prepare_environment("digits")


AWKWARD = [
    "with blanks",
    "it's",
    'a "quoted" one',
    "(1) & touch stolen",
    "$HOME $(shell touch stolen) `touch stolen`",
    "a;b|c>d",
    "#1",
]


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
@pytest.mark.parametrize("target", ["study", "lab"])
@pytest.mark.parametrize("name", AWKWARD)
def test_make_hands_on_what_it_is_given(target, name, tmp_path):
    """By a stub of Python that writes down its environment and arguments."""
    stub = tmp_path / ".venv" / "bin" / "python"
    stub.parent.mkdir(parents=True)
    stub.write_text(
        f'#!{sys.executable}\nimport json, os, sys\njson.dump([dict(os.environ), sys.argv], open("told", "w"))\n'
    )
    stub.chmod(0o755)
    shutil.copy(ROOT / "Makefile", tmp_path)
    ready = {"MAKEFLAGS": "", "PATH": os.environ["PATH"], "HOME": "/home/of-a-test"}
    for how in ("argument", "environment"):
        given = {"DATASET": f"folder:{name}", "RESULTS_DIR": name}
        words = [f"{key}={value}" for key, value in given.items()] if how == "argument" else []
        command = ["make", "--assume-old=.venv/.ready", "--silent", target, *words]
        finished = subprocess.run(
            command, cwd=tmp_path, env=ready | ({} if words else given), capture_output=True, text=True
        )
        assert finished.returncode == 0, finished.stderr
        told, arguments = json.loads((tmp_path / "told").read_text())
        assert {key: told[key] for key in given} == given and "ARTIFACTS_DIR" not in told
        assert not any(name in argument for argument in arguments)
    assert {path.name for path in tmp_path.iterdir()} == {".venv", "Makefile", "told"}
