"""Records never pass for those of other data, code or settings: each way in which they could, as it was tried."""

import contextlib
import dataclasses
import hashlib
import inspect
import json
import shutil
import unicodedata
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from torch import nn

from combination import Joint
from data import load, signature
from distillation import Distill, Ensemble, SoftTargets
from experiment import Recipe, RecordError, kept_table, load_records, make, measured_on, run, set_aside
from experiment import __main__ as command
from experiment import records as records_module
from experiment.aside import outdated_ids
from experiment.store import folder_name
from models import ARCHITECTURES, structure
from pruning import Prune, PruneChannels, Sparsify
from quantization import Quantize, Round
from recipe import Step, StepError, identity
from storage import Checkpoint, load_archive, weights_checksum
from training import Context, Labels, Train

COLOURS = {"blue": (0, 0, 255), "green": (0, 255, 0), "red": (255, 0, 0)}


def draw(folder: Path, part: str, name: str, count: int, colour: tuple, light: float = 1.0) -> None:
    """Pictures of a colour with noise, the same each time."""
    draws = np.random.default_rng(len(name) + 1000 * (part == "test"))
    (folder / part / name).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        noise = draws.integers(0, 60, (32, 32, 3))
        pixels = (np.clip(np.array(colour) * 0.7 + noise, 0, 255) * light).astype(np.uint8)
        Image.fromarray(pixels).save(folder / part / name / f"{index:03}.png")


@pytest.fixture
def pictures(tmp_path) -> Path:
    """A folder of three classes, told apart by their colour: 20 images of each for training, 10 for testing."""
    folder = tmp_path / "colours"
    for name, colour in COLOURS.items():
        draw(folder, "train", name, 20, colour)
        draw(folder, "test", name, 10, colour)
    return folder


def of(folder: Path) -> Recipe:
    return Recipe(f"folder:{folder}", (Train("tiny", epochs=8, batch_size=18, learning_rate=0.1),))


# --- Changed images ---------------------------------------------------------------------------------------------------


def test_images_added_to_a_folder_are_noticed(folders, pictures):
    recipe = of(pictures)
    before = run(recipe)
    assert before["test_images"] == 30 and run(recipe) == before
    draw(pictures, "test", "red", 100, COLOURS["red"])
    with pytest.raises(RecordError, match=r"120 test images now, 30 then.*set_aside") as caught:
        run(recipe)
    assert "\n" not in str(caught.value)
    with pytest.warns(UserWarning, match="1 of 1 records .* left out.*120 test images now"):
        assert load_records(recipe.dataset).empty
    after = run(recipe, remeasure=True)  # the same model, asked for on the images that there are now
    assert after["test_images"] == 120 and after["weights_sha256"] == before["weights_sha256"]
    assert run(recipe) == after


def test_classes_that_swap_their_names_are_noticed(folders, pictures):
    recipe = of(pictures)
    run(recipe)
    for part in ("train", "test"):
        (pictures / part / "red").rename(pictures / part / "spare")
        (pictures / part / "blue").rename(pictures / part / "red")
        (pictures / part / "spare").rename(pictures / part / "blue")
    for later in (recipe, recipe.then(Quantize(images=9)), recipe.then(Prune(epochs=1)), recipe.then(Distill("tiny"))):
        with pytest.raises(RecordError, match="other training images|other labels of training images"):
            run(later)


def test_a_class_that_is_added_is_refused_also_when_measured_again(folders, pictures):
    recipe = of(pictures)
    run(recipe)
    for part, count in (("train", 20), ("test", 10)):
        draw(pictures, part, "amber", count, (200, 150, 0))
    message = "the classes are amber, blue, green, red now, they were blue, green, red"
    for remeasure in (False, True):
        with pytest.raises(RecordError, match=message):
            run(recipe, remeasure=remeasure)
    for step in (Prune(epochs=1), Quantize("qat", 4, epochs=1, images=9)):
        with pytest.raises(RecordError, match=message):
            run(recipe.then(step))


def test_the_scale_of_pixels_is_the_networks(folders, pictures):
    """Training images darkened: the same weights and test images give the same accuracy."""
    recipe = of(pictures)
    before = run(recipe)
    trained_on = load(recipe.dataset)
    assert before["accuracy"] == 1.0
    for name, colour in COLOURS.items():
        draw(pictures, "train", name, 20, colour, light=0.2)
    assert load(recipe.dataset).mean != trained_on.mean
    with pytest.raises(RecordError, match="other training images"):
        run(recipe)
    after = run(recipe, remeasure=True)
    assert after["accuracy"] == 1.0 and after["weights_sha256"] == before["weights_sha256"]
    archive = load_archive(folders[0].parent / "folder-colours" / "models" / f"{recipe.id}.nna")
    assert archive.spec["pixels"] == {"mean": list(trained_on.mean), "std": list(trained_on.std)}


def test_where_the_images_are_not_at_hand_records_are_read_as_before(folders, pictures, tmp_path):
    recipe = of(pictures)
    record = run(recipe)
    pictures.rename(tmp_path / "elsewhere")
    assert run(recipe) == record and len(load_records(recipe.dataset)) == 1


def test_records_move_with_the_folder_and_the_machine(folders, pictures, tmp_path):
    record = run(of(pictures))
    (tmp_path / "other").mkdir()
    moved = pictures.rename(tmp_path / "other" / "colours")
    assert of(moved).id == record["id"] and run(of(moved)) == record
    assert str(tmp_path) not in json.dumps(record)


def test_stale_records_are_listed_and_put_away(folders, pictures, monkeypatch, capsys):
    recipe = of(pictures)
    old = run(recipe)
    run(recipe.then(Quantize(images=9)))
    monkeypatch.setattr("sys.argv", ["experiment", "stale", f"folder:{pictures}-gone/colours"])
    assert command.main() == 0 and "are not at hand: only networks and files are compared" in capsys.readouterr().out
    draw(pictures, "train", "red", 40, COLOURS["red"])
    monkeypatch.setattr("sys.argv", ["experiment", "stale", recipe.dataset])
    assert command.main() == 0 and "72 training images now, 54 then" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["experiment", "set-aside", recipe.dataset])
    assert command.main() == 0 and old["id"] in capsys.readouterr().out.splitlines()[-1]
    new = run(recipe)
    assert new["data"]["train"]["count"] == 72 and new["weights_sha256"] != old["weights_sha256"]
    assert json.loads((folders[0].parent / "folder-colours/set_aside" / f"{old['id']}.json").read_text()) == old


def test_a_data_sets_files_are_known_by_their_times_without_being_read(pictures):
    name = f"folder:{pictures}"
    before = signature(name)
    assert signature(name) == before
    draw(pictures, "test", "red", 11, COLOURS["red"])
    assert signature(name) != before and signature(f"folder:{pictures}-gone") is None


# --- Changed code -----------------------------------------------------------------------------------------------------


class Small(nn.Module):
    """A network of one's own."""

    def __init__(self, channels: int, kind: type[nn.Module], shape: tuple, classes: int):
        super().__init__()
        self.conv = nn.Conv2d(shape[0], channels, 3, padding=1)
        self.between = kind()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(channels, classes)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(self.flatten(self.pool(self.between(self.conv(x)))))


@pytest.mark.parametrize(("channels", "kind"), [(64, nn.ReLU), (8, nn.Tanh)], ids=["wider", "another function"])
def test_another_network_under_the_same_name_is_noticed(folders, monkeypatch, channels, kind):
    def define(channels, kind):
        monkeypatch.setitem(ARCHITECTURES, "own", lambda shape, classes, width: Small(channels, kind, shape, classes))

    define(8, nn.ReLU)
    recipe = Recipe("digits", (Train("own", epochs=1, batch_size=64),))
    record = run(recipe)
    define(8, nn.ReLU)  # the same cell run again
    assert run(recipe) == record
    define(channels, kind)
    later = [recipe, recipe.then(Quantize(images=9)), Recipe("digits", (Distill("tiny", teachers=(recipe,)),))]
    for asked in later:
        with pytest.raises(RecordError, match="the code of own builds another network now"):
            run(asked)
    with pytest.raises(RecordError, match="the code of own builds another network now"):
        run(recipe, remeasure=True)
    with pytest.warns(UserWarning, match="left out"):
        assert load_records("digits").empty
    monkeypatch.delitem(ARCHITECTURES, "own")  # in a process that does not know it, charts are drawn all the same
    assert list(load_records("digits")["id"]) == [record["id"]]


def test_structure_tells_networks_apart_and_nothing_else(monkeypatch):
    def found(channels=8, kind=nn.ReLU, **changed):
        monkeypatch.setitem(ARCHITECTURES, "own", lambda shape, classes, width: Small(channels, kind, shape, classes))
        return structure("own", **{"shape": (3, 8, 8), "classes": 5} | changed)

    others = [found(9), found(kind=nn.Tanh), found(kind=nn.ReLU6), found(shape=(1, 8, 8)), found(classes=6)]
    assert found() == found() and len({found(), *others}) == 6


@dataclass(frozen=True)
class FromFile(Step):
    """A step of one's own that adds the number in a file to the last bias."""

    letter, kind = "", "changed"

    path: str

    def apply(self, model: nn.Module, context: Context) -> nn.Module:
        with torch.no_grad():
            list(model.parameters())[-1].add_(float(Path(self.path).read_text()))
        return model


def test_a_file_that_a_step_reads_is_part_of_the_recipe(folders, tmp_path):
    recipe = Recipe("digits", (Train("tiny", epochs=1, batch_size=64), FromFile(str(tmp_path / "number"))))
    (tmp_path / "number").write_text("1")
    record = run(recipe)
    assert run(recipe) == record
    (tmp_path / "number").write_text("2")
    with pytest.raises(RecordError, match="number holds something else now"):
        run(recipe)


# --- Changed settings -------------------------------------------------------------------------------------------------


def test_a_changed_default_is_noticed(folders, monkeypatch):
    recipe = Recipe("digits", (Train("tiny", epochs=1, batch_size=64),))
    record = run(recipe)
    student = Recipe("digits", (Distill("tiny", teachers=(recipe,), epochs=1, batch_size=64),))
    made = run(student)
    assert made["made_of"]["recipe"]["steps"][0]["teachers"][0]["steps"][0]["label_smoothing"] == 0.1
    monkeypatch.setitem(Train.__init__.__kwdefaults__, "label_smoothing", 0.2)
    monkeypatch.setattr(Train.__dataclass_fields__["label_smoothing"], "default", 0.2)
    changed = Recipe("digits", (Train("tiny", epochs=1, batch_size=64),))
    assert changed.id == record["id"] and changed.steps[0].label_smoothing == 0.2
    for asked in (changed, Recipe("digits", (Distill("tiny", teachers=(changed,), epochs=1, batch_size=64),))):
        with pytest.raises(RecordError, match="label_smoothing of Train is 0.2 now, it was 0.1"):
            run(asked)
    with pytest.warns(UserWarning, match="2 of 2 records of digits are outdated.* it was 0.1"):
        assert load_records("digits").empty
    assert set(outdated_ids("digits")) == {record["id"], made["id"]}


def test_a_factory_is_a_default_as_any_other():
    @dataclass(frozen=True)
    class Own(Step):
        """A step with a default that is made."""

        letter, kind = "O", "own"

        share: float = 0.5
        layers: tuple = field(default_factory=tuple)

        def apply(self, model, context):
            return model

    base = Recipe("digits", (Train("resnet8"),))
    assert base.then(Own()).describe()["steps"][1] == {"step": "Own"}
    assert base.then(Own(layers=("conv",))).describe()["steps"][1] == {"step": "Own", "layers": ["conv"]}
    assert base.then(Own()).label.endswith("> Own") and base.then(Own()).resolved()["steps"][1]["layers"] == []


def test_every_default_is_the_one_that_records_were_made_with():
    """Changing one would give new models under old identities: give a new field a default that changes nothing."""
    training = {
        "batch_size": 128, "weight_decay": 5e-4, "optimizer": "sgd", "lr_schedule": "one_cycle",
        "augmentation": ("crop", "flip"), "small_side": None, "small_share": 0.5, "average": 0.0, "views": None,
        "view_seed": None, "devices": 1,
    }  # fmt: skip
    own = {"during": (), "objective": None}
    taught = {"temperature": 4.0, "alpha": 0.9}
    teacher = {"teacher": None, **taught}
    pinned = {
        Train: {"epochs": 15, "learning_rate": 0.2, **training, "label_smoothing": 0.1, "width": 1.0, "start": None,
                **own},
        Distill: {
            "epochs": 30, "learning_rate": 0.2, **training, **taught, "width": 1.0, "teachers": (), "features": None,
            "features_weight": 1.0, **own,
        },
        Ensemble: {"optimize_weights": False},
        Labels: {"smoothing": 0.0},
        SoftTargets: taught,
        Sparsify: {
            "sparsity": 0.9, "criterion": "lookahead", "scope": "global", "schedule": "gradual", "rounds": 5,
            "order": "together", "skip": (), "may_empty": False, "start": 0.0,
        },
        Round: {
            "bits": 8, "first_last_bits": 8, "layer_bits": (), "images": 512, "percentile": 99.99,
            "calibration": "percentile", "start": 0.0,
        },
        Quantize: {
            "mode": "static", "bits": 8, "images": 512, "percentile": 99.99, "calibration": "percentile",
            "per_channel": True, "first_last_bits": 8, "layer_bits": (), "epochs": 3, "learning_rate": 0.01,
            **training, "weight_decay": 1e-4, **teacher,
        },
        Prune: {
            "criterion": "lookahead", "sparsity": 0.9, "schedule": "gradual", "scope": "global", "order": "together",
            "rounds": 5, "may_empty": False, "skip": (), "rewind_to": None, "epochs": 5, "learning_rate": 0.05,
            **training, **teacher,
        },
        PruneChannels: {
            "macs": 0.5, "criterion": "lookahead", "multiple": 8, "epochs": 5, "learning_rate": 0.05, **training,
            **teacher,
        },
        Joint: {
            "sparsity": 0.5, "bits": 4, "epochs": 30, "prune_from": 0.0, "quantize_from": 0.6,
            "criterion": "lookahead", "first_last_bits": 8, "images": 512, "percentile": 99.99, "learning_rate": 0.2,
            **training, **taught, "width": 1.0, "layer_bits": (), "teachers": (),
        },
    }  # fmt: skip
    for step, defaults in pinned.items():
        found = {own.name: own.default for own in dataclasses.fields(step) if own.default is not dataclasses.MISSING}
        assert found == defaults, step.__name__
        signature_ = {name: p.default for name, p in inspect.signature(step).parameters.items() if name in defaults}
        assert signature_ == defaults


# --- Names ------------------------------------------------------------------------------------------------------------


def test_folders_whose_names_differ_in_letters_outside_ascii_are_apart(folders, tmp_path):
    names = ["blätter", "blütter", "bl tter", "bl-tter", "花", "鳥"]
    assert len({folder_name(f"folder:{name}") for name in names}) == len(names)
    assert folder_name("folder:/a/flowers") == folder_name("folder:flowers") == "folder-flowers"
    assert folder_name("digits") == "digits" and folder_name("cifar10") == "cifar10"
    composed, apart = (unicodedata.normalize(form, "folder:blätter") for form in ("NFC", "NFD"))
    assert composed != apart and folder_name(composed) == folder_name(apart)
    for count, name in enumerate(names[:2], 3):
        for part in ("train", "test"):
            for kind in COLOURS:
                draw(tmp_path / name, part, kind, count, COLOURS[kind])
        table = kept_table("count", f"folder:{tmp_path / name}", lambda count=count: [{"images": 3 * count}])
        assert table["images"].tolist() == [3 * count]


def test_a_folder_is_one_however_it_is_written(folders, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    recipes = [of(name) for name in (tmp_path / "a b", "a b", "~/a b", "./x/../a b/")]
    assert len({(recipe.dataset, recipe.id) for recipe in recipes}) == 1
    assert recipes[0].describe()["dataset"] == identity(recipes[0].dataset) == "folder:a b"


# --- Numbers as loops give them ---------------------------------------------------------------------------------------


def test_numbers_of_arrays_and_tables_are_taken_as_what_they_are():
    plain = Recipe("digits", (Train("resnet20", epochs=4, learning_rate=0.5, width=2.0),), 3)
    frame = pd.DataFrame({"epochs": [4], "rate": [0.5], "seed": [3], "width": [2]})
    row = frame.iloc[0]
    of_row = Train("resnet20", epochs=row.epochs, learning_rate=row.rate, width=row.width)
    of_arrays = Train("resnet20", epochs=torch.tensor(4).item(), learning_rate=np.float64(0.5), width=np.int16(2))
    others = [
        Recipe("digits", [Train("resnet20", epochs=np.int64(4), learning_rate=np.float32(0.5), width=2)], np.uint8(3)),
        Recipe("digits", (of_row,), frame["seed"][0]),
        Recipe("digits", (of_arrays,), 3),
    ]
    for other in others:
        assert other == plain and other.id == plain.id and json.dumps(other.describe()) == json.dumps(plain.describe())
    for bits in np.array([2, 4]):
        assert plain.then(Quantize("qat", bits)).id == plain.then(Quantize("qat", int(bits))).id
    for sparsity in np.linspace(0.5, 0.9, 5):
        assert plain.then(Prune(sparsity=sparsity)).id == plain.then(Prune(sparsity=float(sparsity))).id


def test_lists_are_taken_for_tuples_and_a_mapping_for_pairs():
    base = Recipe("digits", (Train("resnet20"),))
    pairs = (("blocks.0.conv1", 3), ("conv", 2))
    assert Quantize("qat", layer_bits={"conv": 2, "blocks.0.conv1": 3}) == Quantize("qat", layer_bits=pairs)
    assert Quantize("qat", layer_bits=[list(pair) for pair in pairs]) == Quantize("qat", layer_bits=pairs)
    assert Prune(skip=["conv"]) == Prune(skip=("conv",)) and Ensemble([base]) == Ensemble((base,))
    assert Distill("resnet8", teachers=[base]) == Distill("resnet8", teachers=(base,))
    assert Recipe("digits", [Train("resnet20")]) == base


@pytest.mark.parametrize("seed", ["0", "[", 1.5, None, True, 2**70, -1, np.float64(0.5)])
def test_a_seed_that_is_none_is_one_sentence(seed):
    with pytest.raises(StepError, match="a seed is a whole number from 0 to") as caught:
        Recipe("digits", (Train("resnet20"),), seed)
    assert "\n" not in str(caught.value)


def test_learning_rate_1_is_learning_rate_1_0(folders):
    assert Train("resnet20", learning_rate=1) == Train("resnet20", learning_rate=1.0)
    recipes = [Recipe("digits", (Train("resnet20", learning_rate=rate),)) for rate in (1, 1.0)]
    assert recipes[0].id == recipes[1].id


# --- Kept tables ------------------------------------------------------------------------------------------------------


def test_tables_are_kept_by_their_arguments(folders):
    made = []

    def table(**arguments):
        def rows():
            made.append(arguments)
            return [{"value": len(made)}]

        return kept_table("values", "digits", rows, arguments)["value"].tolist()

    assert [table(a=1), table(a=2), table(a=1, b=[1]), table(a=1), table(a=2)] == [[1], [2], [3], [1], [2]]
    first, second, _ = sorted((folders[0] / "tables").glob("values-*.json"), key=lambda path: path.stat().st_mtime_ns)
    shutil.copy(second, first)  # another one's
    with pytest.warns(UserWarning, match="it has other arguments"):
        assert table(a=1) == [4]
    first.write_text(first.read_text().replace('"value": 4', '"value": 5'))
    with pytest.warns(UserWarning, match="changed since it was written"):
        assert table(a=1) == [5]


@pytest.mark.parametrize("content", ["null", "[]", "3", '{"rows": 1}', "[" * 100_000, '{"table": "values"}', ""])
def test_a_table_that_is_none_is_made_again(folders, content):
    kept_table("values", "digits", lambda: [{"value": 1}])
    (path,) = (folders[0] / "tables").glob("*.json")
    path.write_text(content)
    with pytest.warns(UserWarning, match="made again"):
        assert kept_table("values", "digits", lambda: [{"value": 2}])["value"].tolist() == [2]
    assert kept_table("values", "digits", lambda: [{"value": 3}])["value"].tolist() == [2]


def test_times_of_another_machine_are_shown_as_such_and_measured_here_when_asked(folders, monkeypatch):
    def times(milliseconds):
        return kept_table("times", "digits", lambda: [{"ms": milliseconds}], {"a": 1}, timed=True)

    monkeypatch.setattr(records_module, "machine", lambda: "one")
    assert times(1)["ms"].tolist() == [1] and measured_on(times(2)) == "measured on this machine"
    monkeypatch.setattr(records_module, "machine", lambda: "other")
    assert times(3)["ms"].tolist() == [1] and measured_on(times(3)) == "measured on another machine: one"
    monkeypatch.setenv("MEASURE_HERE", "1")
    assert times(4)["ms"].tolist() == [4] and measured_on(times(5)) == "measured on this machine"
    monkeypatch.delenv("MEASURE_HERE")
    assert times(6)["ms"].tolist() == [4] and len(list((folders[0] / "tables").glob("times-*.json"))) == 2


def test_tables_of_other_images_are_made_again(folders, pictures):
    name = f"folder:{pictures}"
    assert kept_table("values", name, lambda: [{"value": 1}])["value"].tolist() == [1]
    draw(pictures, "test", "red", 11, COLOURS["red"])
    with pytest.warns(UserWarning, match="31 test images now, 30 then"):
        assert kept_table("values", name, lambda: [{"value": 2}])["value"].tolist() == [2]


# --- Files that are believed only when they say what they are of ------------------------------------------------------


def test_weights_of_another_recipe_are_not_taken(folders):
    _, artifacts = folders
    one, other = (Recipe("digits", (Train("tiny", epochs=epochs, batch_size=64),)) for epochs in (1, 2))
    checksums = [weights_checksum(make(recipe)) for recipe in (one, other)]
    shutil.copy(artifacts / f"{other.id}.safetensors", artifacts / f"{one.id}.safetensors")
    with pytest.warns(UserWarning, match=f"ignored, and made again: it was made by the recipe {other.id}"):
        assert weights_checksum(make(one)) == checksums[0]


def test_what_was_made_from_lost_weights_is_made_again(folders, monkeypatch):
    """The base trained anew comes out otherwise (another machine): what was made from the old one is not kept."""
    _, artifacts = folders
    base = Recipe("digits", (Train("tiny", epochs=1, batch_size=64),))
    integer = base.then(Quantize(images=9))
    before = weights_checksum(make(integer))
    (artifacts / f"{base.id}.safetensors").unlink()
    apply = Train.apply

    def otherwise(step, model, context):
        made = apply(step, model, context)
        with torch.no_grad():
            made.linear.bias.add_(1)
        return made

    monkeypatch.setattr(Train, "apply", otherwise)
    make(base)
    with pytest.warns(UserWarning, match=f"the weights of {base.id}, from which it was made, have changed"):
        assert weights_checksum(make(integer)) != before


def test_checkpoints_of_another_training_are_passed_over(tmp_path):
    of = {"id": "a", "seed": 3, "models": {}}
    Checkpoint(tmp_path / "state", of).save({"a": torch.ones(2)}, {"epoch": 1})
    assert Checkpoint(tmp_path / "state", dict(of)).load()[1] == {"epoch": 1}
    for other in ({**of, "id": "b"}, {**of, "seed": 4}, {**of, "models": {"x": "y"}}, {}):
        with pytest.warns(UserWarning, match="does not hold what is needed"):
            assert Checkpoint(tmp_path / "state", other).load() is None


def test_a_record_that_was_changed_is_noticed(folders):
    results, _ = folders
    recipe = Recipe("digits", (Train("tiny", epochs=1, batch_size=64),))
    record = run(recipe)
    path = results / f"{recipe.id}.json"
    whole = path.read_text()
    changed = [
        whole.replace(f'"accuracy": {record["accuracy"]}', '"accuracy": 0.999'),
        whole.replace('"epochs": 1', '"epochs": 2'),
        whole.replace('"seal"', '"sael"'),
        json.dumps({key: value for key, value in record.items() if key not in ("seal", "made_of")}),
        whole.replace('"made_on"', '"nade_on"'),
        "null", "[]", "3", "[" * 100_000, "{" * 1000,
    ]  # fmt: skip
    for text in changed:
        assert text != whole
        path.write_text(text)
        with pytest.warns(UserWarning, match="not a readable record"):
            assert load_records("digits").empty
    draws = np.random.default_rng(7)
    for _ in range(200):
        place = int(draws.integers(len(whole)))
        text = whole[:place] + chr(ord(whole[place]) ^ 1) + whole[place + 1 :]
        with contextlib.suppress(ValueError):
            if json.loads(text) == record:  # the seventeenth digit of a number may change nothing
                continue
        path.write_text(text)
        with pytest.warns(UserWarning, match="not a readable record"):
            assert records_module.read_record(path) is None
    path.write_text(whole)
    assert run(recipe) == record


def test_a_log_overrides_no_measurement(folders, monkeypatch):
    apply = Train.apply

    def boast(step, model, context):
        context.log.update(accuracy=1.5, weights_sha256="0" * 64, id="mine")
        return apply(step, model, context)

    monkeypatch.setattr(Train, "apply", boast)
    recipe = Recipe("digits", (Train("tiny", epochs=1, batch_size=64),))
    record = run(recipe)
    assert record["accuracy"] <= 1 and record["id"] == recipe.id
    assert record["weights_sha256"] == weights_checksum(make(recipe))


def test_a_damaged_base_file_is_not_timed(folders):
    _, artifacts = folders
    base = Recipe("digits", (Train("tiny", epochs=1, batch_size=64),))
    record = run(base)
    (file,) = artifacts.glob(f"{base.id}-*.onnx")
    content = bytearray(file.read_bytes())
    assert hashlib.sha256(content).hexdigest() == record["onnx_sha256"]
    content[len(content) // 2] ^= 1
    file.write_bytes(content)
    assert run(base.then(Quantize(images=9)))["base_onnx_bytes"] == record["onnx_bytes"]
    (file,) = artifacts.glob(f"{base.id}-*.onnx")
    assert hashlib.sha256(file.read_bytes()).hexdigest() == record["onnx_sha256"]


def test_set_aside_takes_the_tables_along(folders):
    base = Recipe("digits", (Train("tiny", epochs=1, batch_size=64),))
    run(base)
    kept_table("of the base", "digits", lambda: [{"value": 1}], {"base": base.id})
    kept_table("of none", "digits", lambda: [{"value": 1}])
    assert set_aside(base) == [base.id]
    assert [path.name.rpartition("-")[0] for path in (folders[0] / "tables").glob("*.json")] == ["of-none"]


@pytest.mark.parametrize("wrong", ["zzzz", "*", "../kernels/amd-epyc", "", "05E3C9F7A8C8"])
def test_what_is_no_id_moves_nothing(folders, monkeypatch, capsys, wrong):
    monkeypatch.setattr("sys.argv", ["experiment", "set-aside", "digits", "000000000000", wrong])
    assert command.main() == 1 and capsys.readouterr().err.startswith(f"{wrong!r} is not the id of a record")
    monkeypatch.setattr("sys.argv", ["experiment", "set-aside", "digits", "000000000000"])
    assert command.main() == 1 and capsys.readouterr().err.startswith("there are no files of 000000000000 under digits")
    assert not list(folders[0].parent.rglob("*.json"))
