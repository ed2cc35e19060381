"""A Ray cluster of three nodes on this machine, without a shared folder, and what may happen to it."""

import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest

from data import load
from distillation import Distill
from experiment import Recipe, make, run_all
from experiment.plan import plan
from experiment.spread import make_all
from experiment.store import ROOT, Store
from experiment.workers import work
from quantization import Quantize
from storage import StorageError, files, load_weights, weights_checksum
from storage.weights import _load, weights_of
from training import Train
from training.devices import WorkerError

ray = pytest.importorskip("ray")  # in the extra of that name
pytestmark = pytest.mark.slow
HOST = "127.0.0.2"  # Ray replaces 127.0.0.1 by the machine's own address
BASE = Recipe("digits", (Train("resnet8", epochs=1, batch_size=64),))
# A step that says where and when it ran, in a file of the user's.
STEPS = """
import os, time
from dataclasses import dataclass
from recipe import Step

@dataclass(frozen=True)
class Slow(Step):
    letter, kind = "S", "slow"
    called: str
    folder: str
    seconds: float = 0.0
    fails: bool = False

    def apply(self, model, context):
        with open(f"{self.folder}/log", "a") as file:
            file.write(f"{self.called} {os.getpid()}\\n")
        time.sleep(self.seconds)
        if self.fails:
            raise ValueError("no such luck")
        return model
"""
READER = """
import json, sys
sys.path.insert(0, sys.argv[1])
import slow_steps
from pathlib import Path
from experiment.plan import plan
from experiment.spread import make_all
from recipe import read_recipe
print(make_all([read_recipe(one) for one in json.loads(sys.argv[2])], sys.argv[3], plan))
"""


def processes_of(session: str) -> list[psutil.Process]:
    found = []
    for process in psutil.process_iter(["cmdline"]):
        if any(session in word for word in process.info["cmdline"] or ()):
            found.append(process)
    return found


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """The reader's node and two of one core each, which are gone afterwards with all of their processes."""
    from ray.cluster_utils import Cluster

    with pytest.MonkeyPatch.context() as environment:
        environment.setenv("RAY_AUTH_MODE", "disabled")
        environment.setenv("OMP_NUM_THREADS", "1")
        environment.setenv("RAY_memory_monitor_refresh_ms", "0")  # what else runs here is no reason to kill workers
        environment.setenv("RAY_agent_register_timeout_ms", "300000")
        made = Cluster()
        try:
            for cores in (0, 1, 1):
                add_node(made, cores)
            yield made
        finally:
            session = Path(made.head_node.get_session_dir_path()).name if made.head_node else "no session"
            ray.shutdown()
            made.shutdown()
        wait_until(lambda: not processes_of(session), "processes are left")


def add_node(cluster: Any, cores: int = 1) -> Any:
    return cluster.add_node(
        num_cpus=cores, node_ip_address=HOST, object_store_memory=100 * 2**20, include_dashboard=False
    )


@pytest.fixture
def slow(folders, tmp_path, monkeypatch) -> Any:
    """`recipe(called, ...)` makes a recipe with a slow step; `ran()` tells how often each ran; `wait_for` one."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "slow_steps.py").write_text(STEPS)
    monkeypatch.syspath_prepend(tmp_path / "own")
    sys.modules.pop("slow_steps", None)
    import slow_steps

    log = tmp_path / "log"

    def ran() -> Counter:
        return Counter(line.split()[0] for line in (log.read_text().splitlines() if log.exists() else ()))

    def process(called: str) -> int:
        return [int(line.split()[1]) for line in log.read_text().splitlines() if line.split()[0] == called][-1]

    return SimpleNamespace(
        recipe=lambda called, **fields: BASE.then(slow_steps.Slow(called, str(tmp_path), **fields)),
        after=lambda recipe, called, **fields: recipe.then(slow_steps.Slow(called, str(tmp_path), **fields)),
        ran=ran,
        process=process,
        wait_for=lambda called: wait_until(lambda: ran()[called], f"{called} never began"),
        folder=tmp_path / "own",
    )


def wait_until(happened: Callable[[], object], otherwise: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not happened():
        assert time.monotonic() < end, otherwise
        time.sleep(0.1)


def in_background(call: Callable[[], Any]) -> Callable[[], Any]:
    """Start a call in a thread; return what waits for its result."""
    from concurrent.futures import ThreadPoolExecutor

    return ThreadPoolExecutor(1).submit(call).result


def reader(slow: Any, cluster: Any, *recipes: Recipe) -> subprocess.Popen:
    described = json.dumps([recipe.describe() for recipe in recipes])
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", READER, str(slow.folder), described, cluster.address]
    return subprocess.Popen(command, env=environment, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def checksums(*recipes: Recipe) -> list[str]:
    return [weights_of(Store.of(recipe).weights)["sha256"] for recipe in recipes]


def test_three_nodes_without_a_shared_folder_make_the_same_models(cluster, slow, tmp_path, monkeypatch):
    students = [BASE.then(Distill(name, epochs=2, batch_size=64)) for name in ("student_5", "student_6")]
    recipes = [BASE, BASE.then(Quantize()), *students, slow.recipe("once"), slow.after(slow.recipe("once"), "then")]
    records = run_all(recipes, on=cluster.address)
    assert slow.ran() == {"once": 1, "then": 1}
    assert {record["threads"] for record in records} == {1}
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "alone"))
    monkeypatch.setenv("ARTIFACTS_DIR", str(tmp_path / "alone"))
    monkeypatch.setattr("torch.get_num_threads", lambda: 1)
    assert [weights_checksum(make(recipe)) for recipe in recipes] == [r["weights_sha256"] for r in records]


def test_a_killed_worker_is_replaced(cluster, slow):
    recipes = [slow.recipe("long", seconds=5), slow.recipe("short")]
    result = in_background(lambda: make_all(recipes, cluster.address, plan))
    slow.wait_for("long")
    os.kill(slow.process("long"), signal.SIGKILL)
    assert result() == {} and slow.ran() == {"long": 2, "short": 1}
    assert len(set(checksums(BASE, *recipes))) == 1  # the steps change nothing


def test_a_node_is_taken_away(cluster, slow):
    recipe = slow.recipe("long", seconds=20)
    result = in_background(lambda: make_all([recipe], cluster.address, plan))
    slow.wait_for("long")
    raylet = psutil.Process(slow.process("long")).ppid()
    [node] = [one for one in cluster.worker_nodes if one.all_processes["raylet"][0].process.pid == raylet]
    cluster.remove_node(node, allow_graceful=False)
    assert result() == {} and slow.ran() == {"long": 2}
    add_node(cluster)


def test_an_exception_in_a_recipe(cluster, slow):
    wrong = slow.recipe("wrong", fails=True)
    recipes = [slow.after(wrong, "after"), wrong, slow.recipe("fine")]
    with pytest.raises(WorkerError, match=rf"2 of 3 recipes failed: .*{recipes[0].id}.*no such luck.*{wrong.id}"):
        run_all(recipes, on=cluster.address)
    assert slow.ran() == {"wrong": 1, "fine": 1} and Store.of(recipes[2]).record.exists()


def test_a_full_disk_at_the_reader(cluster, slow, monkeypatch):
    recipe, replace = slow.recipe("kept"), os.replace

    def refuse(source: Path, target: Path) -> None:
        if Path(target).suffix == ".safetensors":
            raise OSError(28, "No space left on device")
        replace(source, target)

    with monkeypatch.context() as context:
        context.setattr(files.os, "replace", refuse)
        with pytest.raises(StorageError, match="No space left on device") as caught:
            make_all([recipe], cluster.address, plan)
    assert "\n" not in str(caught.value) and not list(Store.of(recipe).artifacts.glob("*.safetensors"))
    assert make_all([recipe], cluster.address, plan) == {} and Store.of(recipe).weights.exists()


def test_the_next_reader_takes_up_what_a_killed_one_had(cluster, slow):
    first = slow.recipe("first")
    last = slow.after(first, "last", seconds=4)
    killed = reader(slow, cluster, last)
    slow.wait_for("last")
    wait_until(Store.of(first).weights.exists, "nothing was kept")
    killed.kill()
    killed.wait()
    assert make_all([last], cluster.address, plan) == {} and slow.ran() == {"first": 1, "last": 2}


def test_two_readers_of_one_store(cluster, slow):
    recipes = [slow.recipe("one", seconds=2), slow.recipe("other", seconds=2)]
    both = [reader(slow, cluster, *recipes), reader(slow, cluster, *reversed(recipes))]
    assert [process.communicate(timeout=300)[0] for process in both] == ["{}\n", "{}\n"]
    assert slow.ran() == {"one": 1, "other": 1}


def test_with_a_shared_store_a_training_goes_on_from_its_last_epoch(cluster, slow, tmp_path, monkeypatch):
    monkeypatch.setenv("STORE", str(tmp_path / "shared"))
    (tmp_path / "shared").mkdir()
    recipe = Recipe("digits", (Train("resnet8", epochs=12, batch_size=32),))
    result = in_background(lambda: make_all([recipe], cluster.address, plan))
    checkpoint = Store.of(recipe).checkpoint
    wait_until(checkpoint.exists, "no epoch was kept")
    [worker] = [p for p in psutil.process_iter(["cmdline"]) if "ray::resnet8" in " ".join(p.info["cmdline"] or ())]
    kept = _load(checkpoint, "state")[1]["state"]["curves"]
    worker.kill()
    assert result() == {}
    curves = load_weights(Store.of(recipe).weights)[1]["curves"]
    assert len(curves) == 12 and curves[: len(kept)] == kept  # their seconds too


def test_a_store_that_a_worker_does_not_see_is_named():
    with pytest.raises(StorageError, match="the folder STORE, is not on .*: mount it, or leave STORE out"):
        work(b"", 1, load("digits"), "/missing/shared")
