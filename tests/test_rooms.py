"""The rooms of the README: each imports only from rooms above it there, and no file in a circle."""

import ast
import re
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def rooms() -> list[str]:
    """The folders of code in the README's table of rooms, from the ground up."""
    table = (ROOT / "README.md").read_text().partition("## The rooms")[2].partition("\n## ")[0]
    names = re.findall(r"^\| `(\w+)/` \|", table, re.MULTILINE)
    return [name for name in names if (ROOT / name / "__init__.py").exists()]


ROOMS = rooms()


def modules(room: str) -> dict[str, Path]:
    """The files of a room by the name under which they are imported."""
    return {".".join(path.relative_to(ROOT).with_suffix("").parts): path for path in (ROOT / room).glob("*.py")}


def imports(path: Path, module: str) -> Iterator[tuple[str, int]]:
    """What a file imports, in functions too, and the line; not what only a type checker sees."""
    tree = ast.parse(path.read_text())
    unseen = {
        id(inner)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)
        for statement in node.body
        for inner in ast.walk(statement)
    }
    for node in ast.walk(tree):
        if id(node) in unseen:
            continue
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = module.split(".")[: -node.level] if node.level else []
            source = ".".join([*above, *filter(None, [node.module])])
            yield from ((f"{source}.{alias.name}", node.lineno) for alias in node.names)


def file_of(name: str, files: dict[str, Path]) -> str:
    """The file of a room that something is imported from: its own, or the room's `__init__`."""
    room, _, rest = name.partition(".")
    file = f"{room}.{rest.partition('.')[0]}"
    return file if file in files else f"{room}.__init__"


def test_the_table_has_every_folder_of_code():
    folders = {path.parent.name for path in ROOT.glob("*/__init__.py")}
    assert folders == set(ROOMS)
    assert len(ROOMS) == len(folders)


@pytest.mark.parametrize("room", ROOMS)
def test_a_room_imports_only_from_rooms_above_it(room):
    later = set(ROOMS[ROOMS.index(room) + 1 :])
    wrong = [
        f"{path.relative_to(ROOT)}:{line} imports {name}"
        for module, path in modules(room).items()
        for name, line in imports(path, module)
        if name.partition(".")[0] in later
    ]
    assert not wrong


@pytest.mark.parametrize("room", ROOMS)
def test_files_of_a_room_import_each_other_in_no_circle(room):
    files = modules(room)
    needs = {}
    for module, path in files.items():
        named = [name for name, _ in imports(path, module) if name.partition(".")[0] == room]
        needs[module] = {file_of(name, files) for name in named} - {module}
    try:
        TopologicalSorter(needs).prepare()
    except CycleError as error:
        pytest.fail(f"in a circle: {' > '.join(error.args[1])}")


def test_what_only_a_type_checker_sees_is_no_import(tmp_path):
    file = tmp_path / "file.py"
    file.write_text(
        "from typing import TYPE_CHECKING\n"
        "if TYPE_CHECKING:\n    import plots\n"
        "def late():\n    from . import beside\n    import data.sources as s\n"
    )
    found = {name for name, _ in imports(file, "room.file")}
    assert {"room.beside", "data.sources"} <= found
    assert "plots" not in found
