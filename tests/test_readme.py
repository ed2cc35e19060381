"""The README's figures are those of the committed records."""

import re

import pytest

from combination import readme
from experiment.records import ROOT


def test_readme_shows_the_records_figures(monkeypatch):
    monkeypatch.delenv("RESULTS_DIR", raising=False)
    text = (ROOT / "README.md").read_text()
    assert readme.written(text) == text, "run `python -m combination.readme`"


def test_its_pictures_and_links_are_there():
    text = (ROOT / "README.md").read_text()
    for place in re.findall(r"\]\((?!http)([^)#]+)\)", text):
        assert (ROOT / place).exists(), place


@pytest.mark.parametrize("room", sorted(path.parent.name for path in ROOT.glob("*/__init__.py")))
def test_readme_names_every_room(room):
    assert f"`{room}/`" in (ROOT / "README.md").read_text()
