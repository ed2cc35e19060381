"""What a user installs: the lists of requirements, the lock, and the wheel."""

import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]


def lines(name: str) -> list[str]:
    text = (ROOT / name).read_text()
    return [line for line in text.splitlines() if line and not line.startswith("#")]


def plain_name(requirement: str) -> str:
    return re.split(r"[^\w.-]", requirement)[0].lower().replace("_", "-").replace(".", "-")


def test_requirements_are_those_of_pyproject():
    assert lines("requirements.txt") == [*PROJECT["dependencies"], *EXTRAS["dev"]], "run `make requirements`"
    assert lines("requirements-gpu.txt") == EXTRAS["gpu"], "run `make requirements`"


def test_the_lock_has_a_version_of_every_requirement_and_nothing_but_versions():
    locked = lines("requirements.lock")
    assert all(re.fullmatch(r"[a-z0-9-]+==[0-9][\w.]*", line) for line in locked)
    wanted = {plain_name(requirement) for requirement in [*PROJECT["dependencies"], *EXTRAS["dev"]]}
    assert wanted <= {line.partition("==")[0] for line in locked}
    ignored = subprocess.run(["git", "check-ignore", "-q", "requirements.lock"], cwd=ROOT)
    assert ignored.returncode != 0, ".gitignore hides the lock"


@pytest.mark.slow
def test_the_wheel_has_every_source_and_says_what_it_needs(tmp_path):
    source = tmp_path / "source"
    rooms = [path.parent for path in ROOT.glob("*/__init__.py") if path.parent.name != "notebooks"]
    for room in rooms:
        shutil.copytree(room, source / room.name, ignore=shutil.ignore_patterns("__pycache__", "raw"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    build = ["-m", "pip", "wheel", "--quiet", "--no-deps", "--no-build-isolation", "--wheel-dir", tmp_path, source]
    subprocess.run([sys.executable, *build], check=True, capture_output=True)
    (file,) = tmp_path.glob("*.whl")
    with zipfile.ZipFile(file) as wheel:
        names = set(wheel.namelist())
        (metadata,) = (wheel.read(name).decode() for name in names if name.endswith("/METADATA"))
    sources = {
        path.relative_to(source).as_posix()
        for room in rooms
        for path in (source / room.name).rglob("*.*")
        if path.suffix in (".py", ".cu", ".cuh", ".h")
    }
    assert sources and sources <= names
    needs = re.findall(r"^Requires-Dist: ([\w.-]+)[^;\n]*$", metadata, re.MULTILINE)
    assert {plain_name(name) for name in needs} == {plain_name(text) for text in PROJECT["dependencies"]}
