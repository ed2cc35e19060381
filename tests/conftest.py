"""What the tests of the rooms share: folders of their own, a network small enough to train in a test, short timing."""

import os
from datetime import date
from functools import lru_cache
from pathlib import Path

import numpy as np
import pytest
import torch

from experiment import runner, store
from measurement import timing
from models import ARCHITECTURES, ResNet
from training import loop


def pytest_configure(config: pytest.Config) -> None:
    if "PYTEST_XDIST_WORKER" in os.environ:  # as many workers as cores: one each, and its subprocesses too
        torch.set_num_threads(1)
        os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest first, so that no worker is left with one at the end; the tests of a file share a worker, and models.

    But for the longest, which are begun by as many workers.
    """
    items.sort(key=lambda item: item.get_closest_marker("longest") is None)
    for item in items:
        longest = item.get_closest_marker("longest")
        item.add_marker(pytest.mark.xdist_group(item.name if longest else item.path.stem))


@pytest.fixture
def seed() -> int:
    """The day's seed, or $TEST_SEED; pytest shows it where a test fails."""
    seed = int(os.environ.get("TEST_SEED") or date.today().strftime("%Y%m%d"))
    print(f"\nTEST_SEED={seed} draws the same again")
    return seed


@pytest.fixture
def rng(seed: int) -> np.random.Generator:
    """Numbers that are others every day, drawn from `seed`."""
    return np.random.default_rng(seed)


@pytest.fixture
def artifacts(tmp_path: Path) -> Path:
    """A folder of this test alone, but for what takes long and follows from code alone: ONNX graphs, the emulator."""
    folder = tmp_path / "artifacts"
    folder.mkdir()
    for name in ("graphs", "emulator"):
        built = (store.artifacts_root() / name).resolve()
        built.mkdir(parents=True, exist_ok=True)
        (folder / name).symlink_to(built)
    return folder


@pytest.fixture
def own_artifacts(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder of artifacts, outside that of the test: decoded pictures go there."""
    folder = tmp_path_factory.mktemp("artifacts")
    monkeypatch.setenv("ARTIFACTS_DIR", str(folder))
    return folder


@pytest.fixture
def folders(tmp_path: Path, artifacts: Path, monkeypatch: pytest.MonkeyPatch) -> tuple[Path, Path]:
    """Results and artifacts of the digits in folders of this test alone, and the network `tiny` to train."""
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "results"))
    monkeypatch.setenv("ARTIFACTS_DIR", str(artifacts))
    monkeypatch.setitem(ARCHITECTURES, "tiny", lambda shape, classes, width: ResNet((8, 16), (1, 1), shape[0], classes))
    monkeypatch.setenv("MEASURE_SECONDS", "0.02")
    monkeypatch.setattr(runner, "hardware", lru_cache(timing.hardware))
    return tmp_path / "results" / "digits", artifacts / "digits"


@pytest.fixture
def float32(monkeypatch: pytest.MonkeyPatch) -> None:
    """No bfloat16 on any machine, for comparisons that are sharper than its rounding."""
    monkeypatch.setattr(loop, "_has_bfloat16", lambda device: False)
