"""What the tests of the rooms share: folders of their own, a network small enough to train in a test, short timing."""

from functools import lru_cache
from pathlib import Path

import pytest

from experiment import runner
from measurement import timing
from models import ARCHITECTURES, ResNet
from training import loop


@pytest.fixture
def folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Results and artifacts of the digits in folders of this test alone, and the network `tiny` to train."""
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setenv("ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    monkeypatch.setitem(ARCHITECTURES, "tiny", lambda shape, classes, width: ResNet((8, 16), (1, 1), shape[0], classes))
    monkeypatch.setenv("MEASURE_SECONDS", "0.02")
    monkeypatch.setattr(runner, "hardware", lru_cache(timing.hardware))
    return tmp_path / "results" / "digits", tmp_path / "artifacts" / "digits"


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bfloat16 on any machine, for comparisons that are sharper than its rounding."""
    monkeypatch.setattr(loop, "_has_bfloat16", lambda device: False)
