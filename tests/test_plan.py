"""What must be made, each step once, and how long it takes on how many machines; workers without Ray."""

import json
import os
import sys

import pytest

from distillation import Distill, Ensemble
from experiment import __main__, make, run_all, runner
from experiment.plan import Job, critical_path, least_time, makespan, missing, plan, scaling, seconds
from experiment.records import write_record
from experiment.spread import make_all
from experiment.store import Store
from experiment.workers import pack, pack_modules, unpack
from quantization import Quantize
from recipe import Recipe, StepError, read_recipe
from storage import weights_checksum
from training import Train
from training.devices import WorkerError, connect

BASE = Recipe("digits", (Train("resnet8", epochs=1, batch_size=64),))


def student(model: str, **fields) -> Recipe:
    return BASE.then(Distill(model, **{"epochs": 2, "batch_size": 64} | fields))


def names(jobs: dict[str, Job]) -> list[tuple[str, list[str]]]:
    return [(job.words, [jobs[need].words for need in job.needs]) for job in jobs.values()]


def test_each_step_is_planned_once_after_what_it_needs(folders):
    one, other = student("student_6"), student("student_5", epochs=3)
    both = Recipe("digits", (Ensemble((one, other)),))
    jobs = plan([one.then(Quantize()), both, one, BASE])
    base, logits = "resnet8, seed 0", "logits of the teacher of {}, distilled, seed 0"
    assert names(jobs) == [
        (base, []),
        (logits.format("student_6"), [base]),
        ("student_6, distilled, seed 0", [base, logits.format("student_6")]),
        ("student_6, distilled, 8 bits without training, seed 0", ["student_6, distilled, seed 0"]),
        (logits.format("student_5"), [base]),
        (
            "student_5, distilled, seed 0",
            [base, logits.format("student_6"), logits.format("student_5")],
        ),
        (f"{both.words}, seed 0", ["student_6, distilled, seed 0", "student_5, distilled, seed 0"]),
    ]
    assert [list(job.epochs) for job in jobs.values() if job.epochs] == [[0, 1], [2]]  # the longer one asks for more


def test_what_is_at_hand_is_not_planned(folders):
    assert [job.recipe for job in plan([BASE.then(Quantize())], ready=lambda recipe: recipe == BASE).values()] == [
        BASE.then(Quantize())
    ]
    assert [job.recipe for job in missing([BASE.then(Quantize())]).values()] == [BASE, BASE.then(Quantize())]
    make(BASE)
    assert [job.recipe for job in missing([BASE.then(Quantize()), BASE]).values()] == [BASE.then(Quantize())]


def test_logits_of_a_single_student_are_its_own_affair():
    assert not [job for job in plan([student("student_6")], ready=lambda recipe: False).values() if job.epochs]


def test_recorded_seconds_also_of_what_was_only_started_from(folders):
    """By hand: a record of 100 s in all, 30 s of them in its own epochs, leaves 70 s for the start."""
    results, _ = folders
    further = Recipe("digits", (Train("resnet8", epochs=2, batch_size=64, start=BASE),))
    record = {"id": further.id, "label": "", "model": "resnet8", "dataset": "digits", "seed": 0, "accuracy": 0.5}
    record |= {"recipe": further.describe(), "onnx_bytes": 1, "archive_bytes": 1, "weights_sha256": "", "made_of": {}}
    record |= {"train_seconds": 100.0, "macs": 10, "curves": [{"seconds": 10.0}, {"seconds": 20.0}]}
    results.mkdir(parents=True)
    write_record(results / f"{further.id}.json", record)
    assert seconds(further) == 30 and seconds(BASE) == 70
    assert seconds(student("resnet8")) == 2 * 15  # two epochs, each as long as the median one of that network


def by_hand() -> dict[str, Job]:
    """Graham's example of 1969 in small: a chain of 2 + 4 beside four jobs of 1, 1, 2 and 2 seconds."""
    chain = {"a": Job(BASE, (), None, 2), "b": Job(BASE, ("a",), None, 4)}
    return chain | {key: Job(BASE, (), None, length) for key, length in zip("cdef", (1, 1, 2, 2), strict=True)}


def test_makespans_by_hand():
    jobs = by_hand()
    assert makespan(jobs, 1) == 12 and makespan(jobs, 2) == 6 and makespan(jobs, 256) == 6
    assert least_time(jobs, 1) == 12 and least_time(jobs, 2) == 6 and least_time(jobs, 3) == 6
    assert [job.seconds for job in critical_path(jobs)] == [2, 4]
    assert makespan({}, 4) == 0 and critical_path({}) == []


def test_scaling_says_how_busy_machines_are(monkeypatch):
    monkeypatch.setattr("experiment.plan.seconds", lambda recipe: 10.0)
    [one, two] = scaling([BASE, BASE.with_seed(1), BASE.then(Quantize())], [1, 2])
    assert one["hours"] == pytest.approx(30 / 3600) and two["hours"] == pytest.approx(20 / 3600)
    assert two["times as fast"] == 1.5 and two["busy %"] == 75


# --- Elsewhere --------------------------------------------------------------------------------------------------------


def test_a_model_travels_as_files(folders, tmp_path, monkeypatch):
    files, weights = (make(BASE), pack(BASE))[1], weights_checksum(make(BASE))
    assert list(files) == [("artifacts", f"{BASE.id}.safetensors")]
    monkeypatch.setenv("ARTIFACTS_DIR", str(tmp_path / "elsewhere"))
    unpack(files, "digits")
    monkeypatch.setattr(Train, "apply", lambda *_: pytest.fail("it is there"))
    assert weights_checksum(make(BASE)) == weights


def test_own_modules_travel_and_what_a_notebook_defines_is_named(tmp_path, monkeypatch):
    (tmp_path / "my_shapes.py").write_text("from models import ResNet\ndef net(shape, num_classes): pass\n")
    monkeypatch.syspath_prepend(tmp_path)
    recipe = Recipe("digits", (Train("my_shapes:net"),))
    assert list(pack_modules(recipe)) == [("modules", "my_shapes.py")] and pack_modules(BASE) == {}
    monkeypatch.setattr(Quantize, "__module__", "__main__")
    with pytest.raises(WorkerError, match="workers cannot import Quantize: move it from the notebook to a file"):
        pack_modules(BASE.then(Quantize()))


def test_without_workers_nothing_is_made_beforehand(folders, monkeypatch):
    monkeypatch.delenv("RAY", raising=False)
    monkeypatch.setattr(runner, "_made", lambda *_: pytest.fail("not here"))
    assert make_all([BASE]) == {}


def test_ray_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(WorkerError, match=r"Ray, .* is not installed: run pip install -e '\.\[ray\]'") as caught:
        make_all([BASE.with_seed(99)], "auto")
    assert "\n" not in str(caught.value)


def test_no_cluster_answers():
    pytest.importorskip("ray")
    with pytest.raises(WorkerError, match="no Ray cluster answers at '127.0.0.1:1'"):
        connect("127.0.0.1:1")


def test_devices_share_a_batch():
    assert BASE.id == Recipe("digits", (Train("resnet8", epochs=1, batch_size=64, devices=1),)).id
    with pytest.raises(StepError, match="devices share a batch: 65 of them"):
        Train("resnet8", batch_size=64, devices=65)
    with pytest.raises(StepError, match="on one device"):
        student("student_6", features="attention", devices=2)


# --- The commands -----------------------------------------------------------------------------------------------------


def command(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["experiment", *words])
    return __main__.main()


def test_recipes_in_a_file_others_finish_and_the_failing_one_is_named(folders, tmp_path, monkeypatch, capsys):
    diverging = Recipe("digits", (Train("tiny", epochs=1, batch_size=64, learning_rate=1e30),))
    fine = Recipe("digits", (Train("tiny", epochs=1, batch_size=64),))
    assert read_recipe(fine.describe()) == fine
    file = tmp_path / "recipes.json"
    file.write_text(json.dumps([diverging.describe(), fine.describe()]))
    assert command(monkeypatch, "plan", str(file)) == 0
    assert "2 steps are missing, of 2 recipes" in capsys.readouterr().out
    assert command(monkeypatch, "run", str(file)) == 1
    shown = capsys.readouterr()
    assert Store.of(fine).record.name in shown.out and f"failed: tiny ({diverging.id})" not in shown.out
    assert f"({diverging.id}): " in shown.err and "lower learning_rate" in shown.err
    assert command(monkeypatch, "plan", str(file)) == 0
    assert "1 steps are missing" in capsys.readouterr().out


@pytest.mark.parametrize(
    "text, says",
    [
        ("[", "is not a readable JSON file"),
        ('[{"dataset": "digits"}]', "not a recipe"),
        ('[{"dataset": "digits", "steps": [{"step": "Trian", "model": "resnet8"}]}]', "not a recipe .*Trian"),
        ('[{"dataset": "digits", "steps": [{"step": "Train", "modle": "resnet8"}]}]', "not a recipe .*modle"),
        ("[3]", "not a recipe"),
    ],
)
def test_a_file_without_recipes(tmp_path, monkeypatch, capsys, text, says):
    import re

    (tmp_path / "wrong.json").write_text(text)
    assert command(monkeypatch, "run", str(tmp_path / "wrong.json")) == 1
    error = capsys.readouterr().err
    assert re.search(says, error) and error.count("\n") == 1


@pytest.mark.slow
def test_processes_make_the_same_models_each_once(folders, monkeypatch, tmp_path):
    recipes = [student("student_6"), student("student_5"), BASE.then(Quantize())]
    monkeypatch.setenv("RAY", "processes")
    records = run_all(recipes)
    monkeypatch.delenv("RAY")
    monkeypatch.setenv("ARTIFACTS_DIR", str(tmp_path / "alone"))
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "alone"))
    environment = os.environ.get("OMP_NUM_THREADS")
    if environment == "1":  # as the processes have
        assert [weights_checksum(make(recipe)) for recipe in recipes] == [r["weights_sha256"] for r in records]
