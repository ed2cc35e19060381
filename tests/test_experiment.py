"""Recipes and records: identities that last, and a run that may be killed, damaged or repeated."""

import dataclasses
import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pytest

import storage.files
from combination import Joint
from distillation import Distill, Ensemble
from experiment import (
    Recipe,
    RecordError,
    aside,
    freshness,
    load_records,
    make,
    run,
    set_aside,
)
from experiment.freshness import outdated_record
from experiment.records import write_record
from experiment.store import ROOT, Store
from models import ModelError
from pruning import Prune, PruneChannels
from quantization import Quantize
from recipe import STEPS, DataError, Step, StepError, steps_of, words_of
from report import beside_published
from storage import StorageError, sha256, weights_checksum
from study.baseline import base_recipe
from training import Train

BASE = Recipe("digits", (Train("resnet20", epochs=1, batch_size=64),))
SETTINGS = ("batch1", "batch1_one_thread", "batch64", "batch64_one_thread")
CHANGES = ("latency_ms", "train_seconds", "images_per_second", "time", "seal")  # what may differ between two makings


def tiny(**fields) -> Recipe:
    return Recipe("digits", (Train("tiny", **{"epochs": 1, "batch_size": 64} | fields),))


def lasting(record: dict) -> dict:
    """A record without its times."""
    kept = {key: value for key, value in record.items() if key not in CHANGES}
    kept["curves"] = [{k: v for k, v in point.items() if k != "seconds"} for point in record["curves"]]
    return kept


@pytest.fixture
def trainings(folders, monkeypatch) -> list[Train]:
    """The trainings that were begun."""
    begun, apply = [], Train.apply
    monkeypatch.setattr(Train, "apply", lambda step, *given: begun.append(step) or apply(step, *given))
    return begun


def test_a_recipe_names_the_network_that_it_ends_with():
    assert BASE.then(Quantize()).model == "resnet20"
    assert BASE.then(Distill("resnet8")).then(Quantize()).model == "resnet8"
    assert Recipe("digits", (Ensemble((BASE, BASE)),)).model is None


def test_records_beside_the_published_figures():
    """By hand from the published tables: the teacher 90.3 %, 11.17 M, 44.7 MB, 0.856 ms; pruned 96 % 84.84 %."""
    own = {"accuracy": 0.93, "nonzero_parameters": 5e5, "onnx_bytes": 2e6, "archive_bytes": 3e5}
    records = pd.DataFrame(
        [{"label": name, "latency_ms.batch1_one_thread.median": 0.5, **own} for name in ("a", "b")], index=[7, 8]
    )
    table = beside_published(records, ["ResNet-18 teacher", "pruned 96 %"])
    assert table["recipe"].tolist() == ["a", "b"] and (table["accuracy %"] == 93).all()
    assert table["reported %"].tolist() == [90.3, 84.84] and table["reported K"].tolist() == [11170, 600]
    assert table["reported MB"].tolist() == [44.7, 2.44] and (table["archive MB"] == 0.3).all()
    assert table["reported ms"][0] == 0.856 and pd.isna(table["reported ms"][1])
    assert "reported ms" not in beside_published(records[:1], ["pruned 96 %"])


# --- Identity ---------------------------------------------------------------------------------------------------------


def test_identity_is_the_hash_of_the_canonical_json():
    step = {"step": "Train", "model": "resnet20", "epochs": 1, "batch_size": 64}
    by_hand = json.dumps({"dataset": "digits", "seed": 0, "steps": [step]}, sort_keys=True, separators=(",", ":"))
    assert BASE.id == hashlib.sha256(by_hand.encode()).hexdigest()[:12] == "f218b08dae25"


def test_a_new_field_leaves_old_identities_alone():
    def older():
        @dataclass(frozen=True)
        class Shrink(Step):
            letter, kind = "S", "shrunk"

            share: float
            epochs: int = 3

            def apply(self, model, context):
                return model

        return Shrink

    def newer():
        @dataclass(frozen=True)
        class Shrink(Step):
            letter, kind = "S", "shrunk"

            share: float
            epochs: int = 3
            schedule: str = "cubic"

            def apply(self, model, context):
                return model

        return Shrink

    old, new = BASE.then(older()(0.5)), BASE.then(newer()(0.5))
    assert old.id == new.id
    assert BASE.then(newer()(0.5, schedule="linear")).id != old.id


def test_every_number_counts():
    others = [
        BASE.with_seed(1),
        dataclasses.replace(BASE, dataset="cifar10"),
        Recipe("digits", (Train("resnet20", epochs=2, batch_size=64),)),
        Recipe("digits", (Train("resnet18", epochs=1, batch_size=64),)),
        Recipe("digits", (Train("resnet20", epochs=1, batch_size=64, learning_rate=0.1),)),
        BASE.then(Quantize()),
        BASE.then(Quantize(images=64)),
    ]
    assert len({recipe.id for recipe in (BASE, *others)}) == len(others) + 1


def written(value):
    """A recipe from its JSON, or what its fields hold."""
    if isinstance(value, list):
        return tuple(map(written, value))
    if not isinstance(value, dict):
        return value
    if "steps" in value:
        return Recipe(value["dataset"], written(value["steps"]), value["seed"])
    return STEPS[value["step"]](**{name: written(own) for name, own in value.items() if name != "step"})


def test_no_recipe_that_was_run_is_refused_since_or_has_another_identity():
    """Of the committed records; their names are the identities that they had when they were made."""
    records = [json.loads(path.read_text()) for path in (ROOT / "results").glob("*/*.json")]
    recipes = {record["id"]: written(record["recipe"]) for record in records if "recipe" in record}
    assert recipes and all(identity == recipe.id for identity, recipe in recipes.items())
    for record in filter(lambda record: "recipe" in record, records):
        recipe = recipes[record["id"]]
        assert steps_of(record) == recipe.steps and words_of(record) == recipe.words
        assert record["made_of"]["recipe"].keys() <= recipe.resolved().keys()
        assert outdated_record(record, record["dataset"], recipe, images=False) is None


# --- What cannot be written down --------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "wrong, error, names",
    [
        (lambda: Recipe("digits", ()), StepError, "at least one step"),
        (lambda: Recipe("digits", (Quantize(),)), StepError, "start the recipe with Train"),
        (lambda: BASE.then(Quantize()).then(Quantize()), StepError, "cannot follow Quantize"),
        (lambda: BASE.then(Train("resnet20")), StepError, "starts a recipe"),
        (lambda: Recipe("digits", (Ensemble((BASE,)), Quantize())), StepError, "quantize its members"),
        (lambda: Quantize(mode="magic"), StepError, "magic"),
        (lambda: Quantize(bits=9), StepError, "9"),
        (lambda: Quantize(images=0), StepError, "0"),
        (lambda: Train("resnet21"), ModelError, "unknown model .resnet21.: did you mean resnet20"),
        (lambda: Train("resnet20", width=math.inf), ModelError, "width.* finite, not inf"),
        (lambda: Distill("resnet20", width=math.inf), ModelError, "width.* finite, not inf"),
        (lambda: Joint("resnet20", width=math.inf), ModelError, "width.* finite, not inf"),
        (lambda: Recipe("digits", Train("resnet20")), StepError, r"steps must be a tuple of steps, \(a,\)"),
        (lambda: BASE.then("prune"), StepError, r"such as Train\('resnet20'\) or Quantize\(\), not 'prune'"),
        (lambda: BASE.then(Prune), StepError, "a step is a value such as"),
        (lambda: BASE.then(BASE), StepError, "a step is a value such as"),
        (lambda: Recipe("digitz", BASE.steps), DataError, "unknown data set 'digitz': use 'digits', 'cifar10',"),
        (lambda: base_recipe("mnist", "resnet20"), DataError, "unknown data set 'mnist'"),
        (lambda: load_records("CIFAR10"), DataError, "unknown data set 'CIFAR10'"),
        (lambda: load_records("folder:"), DataError, "names no folder"),
        (lambda: BASE.prefix(9), StepError, "has 1 step\\(s\\): it has no prefix of 9"),
        (lambda: run("resnet20"), StepError, "run takes a recipe, such as"),
    ],
)
def test_wrong_recipes_are_refused_when_written_down(wrong, error, names):
    with pytest.raises(error, match=names) as caught:
        wrong()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "step, names",
    [
        (lambda other: Train("resnet20", start=other), "start of Train"),
        (lambda other: Ensemble((BASE, other)), "members of Ensemble"),
        (lambda other: Distill("resnet8", teachers=(BASE, other)), "teachers of Distill"),
        (lambda other: Quantize("qat", teacher=other), "teacher of Quantize"),
        (lambda other: Prune(teacher=other), "teacher of Prune"),
        (lambda other: Prune(schedule="rewind", rewind_to=other), "rewind_to of Prune"),
        (lambda other: PruneChannels(teacher=other), "teacher of PruneChannels"),
    ],
    ids=["start", "members", "teachers", "quantize", "prune", "rewind", "channels"],
)
def test_recipes_of_another_data_set_are_refused_before_anything_is_made(step, names):
    first = (Train("resnet20"),) if names.endswith(("Quantize", "Prune", "PruneChannels")) else ()
    Recipe("digits", (*first, step(BASE)))
    with pytest.raises(StepError, match=f"{names} must use the recipe.s data set digits, not cifar10"):
        Recipe("digits", (*first, step(dataclasses.replace(BASE, dataset="cifar10"))))


# --- Records ----------------------------------------------------------------------------------------------------------


def test_records_chains_and_repetition(folders, trainings, monkeypatch):
    results, _ = folders
    base = run(tiny())
    integer = run(tiny().then(Quantize(images=64)))
    assert len(trainings) == 1  # the chain went on from the weights at hand

    for record in (base, integer):
        assert set(record) == {
            "id", "label", "model", "method", "dataset", "seed", "recipe", "base", "accuracy", "accuracy_low",
            "accuracy_high", "validation_accuracy", "test_images", "agreement", "parameters", "nonzero_parameters",
            "macs", "nonzero_macs", "onnx_bytes", "base_onnx_bytes", "archive_bytes", "archive_sha256", "operators",
            "float_layers", "latency_ms", "made_on", "train_seconds", "hardware", "versions", "weights_sha256",
            "onnx_sha256", "commit", "time", "threads", "made_of", "data", "seal",
        } | ({"curves", "images_per_second", "precision", "train_pflop"} if record is base else set())  # fmt: skip
        assert set(record["latency_ms"]) == {"contention", *SETTINGS}
        assert record["base"] == base["id"] and record["test_images"] == 359
        assert record["accuracy_low"] <= record["accuracy"] <= record["accuracy_high"]
        assert json.loads((results / f"{record['id']}.json").read_text()) == record
    assert integer["method"] == "Train > Quantize" and integer["train_seconds"] >= base["train_seconds"]

    def never(*_):
        raise AssertionError("the record was there")

    freshness._loaded.clear()
    with monkeypatch.context() as context:
        context.setattr(freshness, "load", never)
        assert run(tiny()) == base
    assert len(trainings) == 1

    # A damaged record is named, left out of the table, and made again from the same weights.
    path = results / f"{base['id']}.json"
    path.write_text(path.read_text()[:100])
    with pytest.warns(UserWarning, match=path.name):
        assert list(load_records("digits")["id"]) == [integer["id"]]
    with pytest.warns(UserWarning, match=path.name):
        assert run(tiny())["weights_sha256"] == base["weights_sha256"]
    assert len(load_records("digits")) == 2 and len(trainings) == 1


def test_weights_damaged_and_restored(folders, trainings):
    results, artifacts = folders
    record = run(tiny())
    weights, archive = (artifacts / f"{record['id']}.safetensors", results / "models" / f"{record['id']}.nna")
    content = bytearray(weights.read_bytes())
    shutil.rmtree(artifacts)
    again = run(tiny(), remeasure=True)  # from the archive beside the record
    assert len(trainings) == 1 and lasting(again) == lasting(record)
    assert archive.stat().st_size == record["archive_bytes"] and sha256(archive) == record["archive_sha256"]

    archive.unlink()
    content[-50] ^= 1
    weights.write_bytes(content)
    with pytest.warns(UserWarning, match=weights.name):
        again = run(tiny(), remeasure=True)
    assert len(trainings) == 2 and again["weights_sha256"] == record["weights_sha256"]


def test_archives_that_do_not_belong_to_the_record(folders, trainings):
    results, artifacts = folders
    record, other = run(tiny()), run(tiny(epochs=2))
    archives = {r["id"]: results / "models" / f"{r['id']}.nna" for r in (record, other)}
    shutil.rmtree(artifacts)
    shutil.copy(archives[other["id"]], archives[record["id"]])
    with pytest.warns(UserWarning, match="other weights than its record says"):
        assert run(tiny(), remeasure=True)["weights_sha256"] == record["weights_sha256"]
    assert len(trainings) == 3
    shutil.rmtree(artifacts)
    archives[record["id"]].write_bytes(archives[record["id"]].read_bytes()[:-9])
    with pytest.warns(UserWarning, match="damaged"):
        run(tiny(), remeasure=True)
    assert len(trainings) == 4


@pytest.mark.parametrize("reason", ["Read-only file system", "No space left on device"])
@pytest.mark.parametrize("folder", [0, 1], ids=["results", "artifacts"])
def test_folders_that_cannot_be_written(folders, monkeypatch, reason, folder):
    replace = os.replace

    def refuse(source, target):
        if folders[folder] in Path(target).parents:
            raise OSError(28, reason)
        replace(source, target)

    monkeypatch.setattr(storage.files.os, "replace", refuse)
    with pytest.raises(StorageError, match=reason) as caught:
        run(tiny())
    assert "\n" not in str(caught.value)
    assert not [file for folder in folders for file in folder.glob("*") if file.suffix in (".json", ".tmp")]


def test_recipes_that_differ_in_more_than_seeds_have_labels_of_their_own(folders):
    records = [run(tiny()), run(tiny().with_seed(1)), run(tiny(epochs=2))]
    labels = load_records("digits").set_index("id")["label"]
    first, second, other = (labels[record["id"]] for record in records)
    assert first == second != other and all(label.startswith("tiny #") for label in labels)


def test_a_model_made_again_with_other_weights_touches_no_other_file(folders, trainings, monkeypatch):
    """It is said, both weights are named, and putting the record and all that was made from it away is its own call."""
    results, artifacts = folders
    base, integer, other = tiny(), tiny().then(Quantize(images=64)), tiny(epochs=2)
    student = Recipe("digits", (Ensemble((other, base)),)).then(Distill("resnet8"))
    heirs = [integer, base.then(Prune()), Recipe("digits", (Distill("resnet8", teachers=(base,)),)), student]
    strangers = [other, other.then(Quantize()), base.with_seed(1)]
    results.mkdir(parents=True)
    for recipe in (base, *heirs, *strangers):
        own = {"id": recipe.id, "label": recipe.label, "model": "tiny", "dataset": "digits", "seed": recipe.seed}
        own |= {"recipe": recipe.describe(), "accuracy": 0.5, "onnx_bytes": 1, "archive_bytes": 1}
        write_record(results / f"{recipe.id}.json", own | {"weights_sha256": "0" * 64, "made_of": {}})
    before = {path: path.read_bytes() for path in results.glob("*.json")}
    with pytest.warns(UserWarning, match=rf"has weights [0-9a-f]{{12}} here, and 0{{12}} in its record {base.id}"):
        made = weights_checksum(make(base))
    with pytest.warns(UserWarning, match="models made from it use the weights here"):
        make(integer)
    assert len(trainings) == 1 and {path: path.read_bytes() for path in results.glob("*.json")} == before
    with pytest.raises(RecordError, match=rf"{made[:12]} here, and 0{{12}} in its record"), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        run(base, remeasure=True)

    assert set(set_aside(base)) == {recipe.id for recipe in (base, *heirs)}
    assert {path.stem for path in (results / "set_aside").glob("*.json")} == {recipe.id for recipe in (base, *heirs)}
    assert {path.stem for path in results.glob("*.json")} == {recipe.id for recipe in strangers}
    assert (artifacts / "set_aside" / f"{integer.id}.safetensors").exists() and not list(
        artifacts.glob("*.safetensors")
    )
    assert run(base)["weights_sha256"] == made


# --- Several processes, and death at any moment -----------------------------------------------------------------------

SCRIPT = """
import os, signal, sys
from experiment import Recipe, run, runner
from models import ARCHITECTURES, ResNet
from storage import Checkpoint
from training import Train

def die(*_):
    os.kill(os.getpid(), signal.SIGKILL)

moment, log = sys.argv[1:]
ARCHITECTURES["tiny"] = lambda shape, classes, width: ResNet((8, 16), (1, 1), shape[0], classes)
apply, save, replace = Train.apply, Checkpoint.save, os.replace

def logged(*given):
    with open(log, "a") as file:
        file.write("trained\\n")
    return apply(*given)

Train.apply = logged
if moment == "epoch":
    Checkpoint.save = lambda *given: (save(*given), die())
if moment == "write":
    os.replace = lambda a, b: die() if str(b).endswith(".safetensors") else replace(a, b)
if moment == "measurement":
    runner.latency = die
run(Recipe("digits", (Train("tiny", epochs=2, batch_size=64),)))
"""


def start(moment: str, log: Path) -> subprocess.Popen:
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    return subprocess.Popen([sys.executable, "-c", SCRIPT, moment, str(log)], env=environment, cwd=ROOT)


def test_killed_at_any_moment(folders, trainings, tmp_path, monkeypatch):
    """After the first epoch, while the weights are written, and in the measurement: each goes on where it stopped."""
    results, artifacts = folders
    recipe, log = tiny(epochs=2), tmp_path / "log"
    for moment, left in (("epoch", ".checkpoint"), ("write", ".checkpoint"), ("measurement", ".safetensors")):
        assert start(moment, log).wait(120) == -signal.SIGKILL
        assert (artifacts / f"{recipe.id}{left}").exists() and not list(results.glob("*.json"))
    after = run(recipe)
    assert trainings == [] and len(log.read_text().split()) == 3
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path / "other"))
    monkeypatch.setenv("ARTIFACTS_DIR", str(tmp_path / "others"))
    assert lasting(after) == lasting(run(recipe)) and len(trainings) == 1


def test_two_processes_train_once(folders, tmp_path):
    processes = [start("never", tmp_path / "log") for _ in range(2)]
    assert [process.wait(120) for process in processes] == [0, 0]
    assert (tmp_path / "log").read_text().split() == ["trained"]
    assert len(list(folders[0].glob("*.json"))) == 1


def test_who_waits_says_for_whom(folders, monkeypatch, capsys):
    """Another process holds the lock of a recipe: after a while its number is named, and then it is waited for."""
    _, artifacts = folders
    store = Store.of(tiny())
    code = (
        "import sys, time\nfrom experiment.store import Store\n"
        "with Store('digits', sys.argv[1]).locked():\n    print('held', flush=True)\n    time.sleep(3)"
    )
    command = [sys.executable, "-c", code, store.id]
    with subprocess.Popen(
        command, cwd=ROOT, stdout=subprocess.PIPE, env=os.environ | {"PYTHONPATH": str(ROOT)}
    ) as other:
        other.stdout.readline()
        monkeypatch.setattr("experiment.store.PATIENCE", 0.2)
        with store.locked(), store.locked():  # who holds it may take it again
            assert json.loads((artifacts / f"{store.id}.owner").read_text())["process"] == os.getpid()
    assert f"Waiting for process {other.pid} on " in capsys.readouterr().err


def test_what_killed_processes_left_is_removed_by_the_next(folders):
    results, artifacts = folders
    record = run(tiny())
    left = [artifacts / f".{record['id']}-1a2b3c4d.tmp", results / f".{record['id']}-1a2b3c4d.tmp"]
    left.append(artifacts / f"{record['id']}.checkpoint")
    strangers = [artifacts / ".abcdefabcdef-1a2b3c4d.tmp", artifacts / "abcdefabcdef.checkpoint"]
    for path in (*left, *strangers):
        path.write_text("half")
    make(tiny())
    assert not any(path.exists() for path in left) and all(path.exists() for path in strangers)


def test_a_shared_folder_stays_shared(tmp_path):
    """In a process that lets its group write, weights and locks do so, too."""
    code = (
        "import os\nos.umask(0o002)\nfrom pathlib import Path\nfrom models import build\n"
        "from experiment.store import Store\nfrom storage import save_weights\n"
        "store = Store('digits', 'a' * 12)\n"
        "with store.locked():\n"
        "    save_weights(build('resnet8', shape=(1, 8, 8), classes=10), store.weights, {})\n"
        "    lock = store.weights.with_suffix('.lock')\n"
        "    print(*(oct(path.stat().st_mode)[-3:] for path in (store.weights, lock)))"
    )
    environment = os.environ | {"PYTHONPATH": str(ROOT), "ARTIFACTS_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.stdout.split() == ["664", "664"], done.stderr


def test_putting_away_that_is_interrupted_goes_on(folders, monkeypatch):
    base, integer = tiny(), tiny().then(Quantize(images=64))
    run(integer), run(base)
    moves, move = [], aside._move

    def stop_after_two(*given):
        move(*given)
        moves.append(given)
        if len(moves) == 2:
            raise KeyboardInterrupt

    monkeypatch.setattr(aside, "_move", stop_after_two)
    with pytest.raises(KeyboardInterrupt):
        set_aside(base)
    assert (folders[0] / f"{base.id}.json").exists()  # it goes last
    monkeypatch.setattr(aside, "_move", move)
    assert base.id in set_aside(base)
    assert not list(folders[0].glob("*.json")) and not list(folders[1].glob("*.safetensors"))


def test_what_was_put_away_before_is_kept(folders):
    path = folders[0] / "models" / "a.nna"
    for content in "123":
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        aside._move(path, folders[0])
    kept = {str(file.relative_to(folders[0])): file.read_text() for file in folders[0].rglob("a.nna")}
    assert kept == {f"set_aside{number}/models/a.nna": text for number, text in (("", "1"), ("/2", "2"), ("/3", "3"))}


def test_damaged_records_are_put_away_too_or_named(folders):
    base, results = tiny(), folders[0]
    integer, other = base.then(Quantize(images=64)), tiny(epochs=2)
    results.mkdir(parents=True)
    for recipe in (base, integer, other):
        (results / f"{recipe.id}.json").write_text(json.dumps({"recipe": recipe.describe()}))  # without a seal
    cut = results / f"{other.id}.json"
    cut.write_text(cut.read_text()[:-9])
    with pytest.raises(StorageError, match=f"{cut.name} is damaged, so what it was made from is unknown: rest"):
        set_aside(base)
    assert len(list(results.glob("*.json"))) == 3
    cut.unlink()
    (results / f"{base.id}.json").write_text("")  # what is put away may be damaged itself
    assert set(set_aside(base)) == {base.id, integer.id}
