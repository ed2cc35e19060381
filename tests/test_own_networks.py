"""Networks of libraries and of the user, and weights from files."""

import dataclasses
import importlib
import importlib.util
import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision
from PIL import Image
from safetensors.torch import save_file

from data import load
from data.pictures import read_picture
from distillation import Distill
from experiment import load_records, make, run, store
from experiment.deploy import deploy_file
from experiment.records import archive_path
from models import (
    TRANSFORMATIONS,
    ModelError,
    build,
    elsewhere,
    named,
    rebuild,
    set_spec,
    spec_of,
    structure,
    transformation,
    with_done,
)
from pruning import Prune
from quantization import Quantize
from recipe import DataError, FolderOptions, Recipe, StepError, Technique, recipe_of
from storage import ArchiveError, StorageError, load_archive, load_weights, read_tensors, save_archive
from storage.__main__ import main as command
from training import Pretrained, Train, evaluate
from training.pretrained import load_into

ROOT = Path(__file__).resolve().parents[1]
NETS = """
    import torch
    from torch import nn

    def flower_net(num_classes, in_channels, channels=8):
        return nn.Sequential(nn.Conv2d(in_channels, channels, 3, padding=1), nn.BatchNorm2d(channels), nn.ReLU(),
                             nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(channels, num_classes))

    def scaled(num_classes, width):
        return nn.Sequential(nn.Flatten(), nn.Linear(192, num_classes))

    def no_module():
        return 3

    def six_classes(shape):
        return nn.Sequential(nn.Flatten(), nn.Linear(shape[0] * shape[1] * shape[2], 6))

    def raises(message="no such size"):
        raise ValueError(message)

    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(192, 3)

        def forward(self, images):
            raise ValueError

    def forward_raises():
        return Odd()

    def no_parameters():
        return nn.Flatten()

    def wrong_inside():
        return nn.Linear(None + 1, 3)

    def lazy():
        return nn.Sequential(nn.Flatten(), nn.LazyLinear(10))
"""


@pytest.fixture
def nets(tmp_path, monkeypatch):
    """A module of the user's, in a folder from which can be imported."""
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "my_own_nets.py").write_text(textwrap.dedent(NETS))
    monkeypatch.syspath_prepend(str(tmp_path / "own"))
    monkeypatch.setattr(elsewhere, "_allowed", set())
    yield "my_own_nets"
    sys.modules.pop("my_own_nets", None)


# --- Names ------------------------------------------------------------------------------------------------------------


def test_torchvisions_networks_are_torchvisions():
    torch.manual_seed(0)
    own = build("torchvision:resnet18", shape=(3, 64, 64), classes=7)
    torch.manual_seed(0)
    theirs = torchvision.models.resnet18(num_classes=7)
    assert all(torch.equal(a, b) for a, b in zip(own.state_dict().values(), theirs.state_dict().values(), strict=True))
    grey = build("torchvision:resnet18", shape=(1, 64, 64), classes=7)
    assert grey(torch.zeros(2, 1, 64, 64)).shape == (2, 7)


def test_arguments_are_part_of_the_name():
    name = named("torchvision:mobilenet_v3_small", dropout=0.5, width_mult=0.5)
    assert name == "torchvision:mobilenet_v3_small(dropout=0.5, width_mult=0.5)"
    model = build(name, shape=(3, 32, 32), classes=4)
    assert model.classifier[2].p == 0.5 and rebuild(spec_of(model)).classifier[2].p == 0.5
    plain = Recipe("digits", (Train("torchvision:mobilenet_v3_small"),))
    assert plain.id != Recipe("digits", (Train(name),)).id and plain.words == "torchvision:mobilenet_v3_small"


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("resnt20", "unknown model 'resnt20': did you mean resnet20"),
        ("torchvision:resnet81", "torchvision has no network 'resnet81' for classification: did you mean .*resnet18"),
        ("torchvision:zzz", r"torchvision has no network 'zzz' for classification"),
        ("torchvision:resnet18(drop=1)", "cannot be called with .* unexpected keyword argument 'drop'"),
        ("torchvision:resnet18(0.1)", "must be plain values by name"),
        ("torchvision:resnet18(x=open('f'))", "must be plain values by name"),
        ("torchvision:", "names no network: write 'torchvision:NAME'"),
        ("no_such_module_at_all:net", "no_such_module_at_all.* cannot be imported"),
    ],
)
def test_names_of_nothing(name, said):
    with pytest.raises(ModelError, match=said):
        build(name, shape=(3, 32, 32), classes=5)


def test_widths_are_refused_where_there_are_none(nets):
    with pytest.raises(ModelError, match="has no width to scale"):
        Train("torchvision:resnet18", width=0.5)
    with pytest.raises(ModelError, match="takes no width"):
        build(f"{nets}:flower_net", shape=(3, 8, 8), classes=3, width=0.5)


@pytest.mark.parametrize(
    ("function", "said"),
    [
        ("no_module", "returns a int: return a torch.nn.Module"),
        ("lazy", "has lazy layers of unknown size"),
        ("flower_nt", "has no function 'flower_nt': did you mean flower_net"),
        ("flower_net(channels=4, more=1)", "cannot be called with .* unexpected keyword argument 'more'"),
        ("raises", "my_own_nets:raises raises ValueError: no such size: correct it, or its arguments in the name"),
        ("raises(message='')", "my_own_nets:raises.* raises ValueError: correct it"),
        ("wrong_inside", "my_own_nets:wrong_inside raises TypeError: unsupported operand"),
    ],
)
def test_functions_that_give_no_network(nets, function, said):
    with pytest.raises(ModelError, match=said):
        build(f"{nets}:{function}", shape=(3, 8, 8), classes=3)


def test_modules_that_cannot_be_imported(nets, tmp_path):
    for source, said in (("1 +", "SyntaxError: invalid syntax"), ("int('a')", "ValueError: invalid literal")):
        (tmp_path / "own" / "my_odd_nets.py").write_text(source)
        with pytest.raises(ModelError, match=f"the module 'my_odd_nets' cannot be imported .{said}.*: correct it"):
            build("my_odd_nets:net", shape=(3, 8, 8), classes=3)
    with pytest.raises(ModelError, match="torch:relu does not say which arguments it takes"):
        build("torch:relu", shape=(3, 8, 8), classes=3)


def test_networks_of_other_classes_or_sides(nets, folders):
    with pytest.raises(ModelError, match="one logit per class"):
        run(Recipe("digits", (Train(f"{nets}:six_classes", epochs=1),)))
    with pytest.raises(ModelError, match=r"my_own_nets:forward_raises does not take images .*\(ValueError\): correct"):
        run(Recipe("digits", (Train(f"{nets}:forward_raises", epochs=1),)))
    with pytest.raises(ModelError, match="my_own_nets:no_parameters has no parameters, so there is nothing to train"):
        run(Recipe("digits", (Train(f"{nets}:no_parameters", epochs=1),)))
    with pytest.raises(
        ModelError, match=r"torchvision:alexnet does not take .*\(1, 8, 8\) .* at features.2\): correct.*\?side="
    ):
        run(Recipe("digits", (Train("torchvision:alexnet", epochs=1),)))


# --- One's own code ---------------------------------------------------------------------------------------------------


def test_ones_own_network_through_a_chain(nets, folders):
    base = Recipe("digits", (Train(f"{nets}:flower_net(channels=12)", epochs=1, batch_size=64),))
    chain = base.then(Prune(sparsity=0.5, epochs=1, batch_size=64)).then(Quantize())
    record = run(chain)
    assert record["label"].startswith(f"{nets}:flower_net(channels=12) > Prune") and run(chain) == record
    assert load_records("digits")["kinds"].tolist() == ["PQ"]
    assert load_archive(archive_path(record))(torch.zeros(1, 1, 8, 8)).shape == (1, 10)


def test_reading_runs_no_code_that_was_not_named(nets, folders, tmp_path):
    """In a process of its own: an archive and a record that name a module, whose import leaves a file behind."""
    trace = tmp_path / "was_imported"
    source = Path(sys.modules[nets].__file__ if nets in sys.modules else tmp_path / "own" / f"{nets}.py")
    record = run(Recipe("digits", (Train(f"{nets}:flower_net", epochs=1, batch_size=64),)))
    source.write_text(source.read_text() + f"\nopen({str(trace)!r}, 'w').close()\n")
    file, name = archive_path(record), f"{nets}:flower_net"
    code = f"""
import warnings
from experiment import load_records
from storage import load_archive, ArchiveError
from pathlib import Path
assert load_records("digits")["id"].tolist() == [{record["id"]!r}]
try:
    load_archive(Path({str(file)!r}))
except ArchiveError as error:
    assert "is only run if you name it" in str(error), error
else:
    raise SystemExit("it was read")
assert not Path({str(trace)!r}).exists()
load_archive(Path({str(file)!r}), network={name!r})
assert Path({str(trace)!r}).exists()
"""
    environment = os.environ | {"PYTHONPATH": f"{source.parent}:{ROOT}"}
    finished = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-2000:]
    command = [sys.executable, "-m", "storage", "unpack", str(file), "-o", str(tmp_path / "m.onnx")]
    refused = subprocess.run(command, env=environment, capture_output=True, text=True, cwd=ROOT)
    assert refused.returncode == 1 and f"--network {name}" in refused.stderr
    given = subprocess.run([*command, "--network", name], env=environment, capture_output=True, text=True, cwd=ROOT)
    assert given.returncode == 0 and (tmp_path / "m.onnx").exists(), given.stderr


def test_an_archive_of_another_network_than_named(tmp_path):
    save_archive(build("resnet8", shape=(1, 8, 8), classes=10), tmp_path / "a.nna")
    with pytest.raises(ArchiveError, match="it is of the network resnet8, not of torchvision:alexnet"):
        load_archive(tmp_path / "a.nna", network="torchvision:alexnet")


def test_an_archive_of_a_transformation_of_ones_own_from_the_command_line(tmp_path, monkeypatch, capsys):
    source = """
from torch import nn
from models import transformation

@transformation("with_scales")
def with_scales(model, channels):
    model.scales = nn.Parameter(model.linear.weight[:channels, 0].detach().clone())
    return model
"""
    (tmp_path / "my_scales.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    model = importlib.import_module("my_scales").with_scales(build("resnet8", shape=(1, 8, 8), classes=10), 4)
    set_spec(model, with_done(spec_of(model), "with_scales", 4))
    save_archive(model, tmp_path / "m.nna")
    del TRANSFORMATIONS["with_scales"], sys.modules["my_scales"]
    monkeypatch.setattr(sys, "argv", ["storage", "info", str(tmp_path / "m.nna")])
    assert command() == 1 and "my_scales" not in sys.modules
    assert "unknown transformation 'with_scales' of the network: import the module" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--import", "my_scals"])
    assert command() == 1 and "the module 'my_scals' cannot be imported" in capsys.readouterr().err
    monkeypatch.setattr(sys, "argv", [*sys.argv[:-1], "my_scales"])
    assert command() == 0 and "with_scales" in capsys.readouterr().out
    del TRANSFORMATIONS["with_scales"], sys.modules["my_scales"]


# --- Weights ----------------------------------------------------------------------------------------------------------


def tiny(classes=10):
    torch.manual_seed(3)
    return build("resnet8", shape=(1, 8, 8), classes=classes)


def saved(how, path):
    state = tiny().state_dict()
    wrapped = {f"module.{name}": value for name, value in state.items()}
    if how == "safetensors":
        path = path.with_suffix(".safetensors")
        save_file(state, path)
    elif how == "state_dict":
        torch.save(state, path)
    elif how == "wrapped":
        torch.save({"epoch": 3, "best": 0.9, "state_dict": wrapped}, path)
    elif how == "compiled in parallel":
        torch.save({"model": {f"_orig_mod.{name}": value for name, value in wrapped.items()}}, path)
    return path


@pytest.mark.parametrize("how", ["safetensors", "state_dict", "wrapped", "compiled in parallel"])
def test_weights_of_any_wrapping_are_the_same_model(how, tmp_path):
    model = build("resnet8", shape=(1, 8, 8), classes=10)
    assert load_into(model, read_tensors(saved(how, tmp_path / "w.pth")), "w.pth") == []
    assert all(
        torch.equal(a, b) for a, b in zip(model.state_dict().values(), tiny().state_dict().values(), strict=True)
    )


def test_a_pickle_of_code_is_refused_and_not_run(tmp_path):
    torch.save(tiny(), tmp_path / "whole.pth")
    with pytest.raises(StorageError, match="is not run: save the network's state_dict"):
        read_tensors(tmp_path / "whole.pth")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "not a readable torch.save file"),
        (b"PK\x03\x04 damaged", "not a readable torch.save file"),
        (b"\x80\x04no pickle", "is not run|not a readable torch.save file"),
    ],
)
def test_damaged_files_of_weights(content, said, tmp_path):
    (tmp_path / "w.pth").write_bytes(content)
    with pytest.raises(StorageError, match=said):
        read_tensors(tmp_path / "w.pth")
    (tmp_path / "w.safetensors").write_bytes(content)
    with pytest.raises(StorageError, match="not a readable safetensors file"):
        read_tensors(tmp_path / "w.safetensors")
    for value, what in (([1, 2], "holds a list, not a state_dict"), ({"lr": 1}, "holds no tensors")):
        torch.save(value, tmp_path / "w.pth")
        with pytest.raises(StorageError, match=what):
            read_tensors(tmp_path / "w.pth")


def test_weights_of_another_network_name_the_first_tensor(tmp_path):
    with pytest.raises(
        StorageError, match=r"other.pth holds weights of another network than resnet14: blocks.1.conv1.weight"
    ):
        load_into(build("resnet14", shape=(1, 8, 8), classes=10), tiny().state_dict(), "other.pth")


def test_a_head_of_other_classes_and_a_first_layer_of_other_channels_are_made_anew_and_said():
    model = build("resnet8", shape=(3, 8, 8), classes=7)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.warns(UserWarning, match="shape in w.pth differs: conv.weight, linear.weight, linear.bias"):
        anew = load_into(model, tiny().state_dict(), "w.pth")
    assert anew == ["conv.weight", "linear.weight", "linear.bias"]
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name] if name in anew else tiny().state_dict()[name])


def test_pretrained_is_what_everything_starts_from(folders, tmp_path):
    """Its identity is the file's contents and not its place; its scale of pixels goes along the chain."""
    trained = Recipe("digits", (Train("tiny", epochs=3, batch_size=64),))
    file = tmp_path / "w.pth"
    torch.save(make(trained).state_dict(), file)
    step = Pretrained("tiny", weights=file, pixels=((0.5,), (0.25,)))
    base = Recipe("digits", (step,))
    (tmp_path / "elsewhere").mkdir()
    moved = file.rename(tmp_path / "elsewhere" / "other name.pth")
    assert Recipe("digits", (Pretrained("tiny", weights=str(moved), pixels=((0.5,), (0.25,))),)).id == base.id
    base = Recipe("digits", (Pretrained("tiny", weights=moved, pixels=((0.5,), (0.25,))),))
    own = Recipe("digits", (Pretrained("tiny", weights=moved),))
    assert run(own)["accuracy"] == run(trained)["accuracy"] and own.id != base.id
    record = run(base)
    assert str(tmp_path) not in str(record) and recipe_of(record, "digits") == base
    short = {"epochs": 1, "batch_size": 64}
    for recipe in (
        Recipe("digits", (Train("tiny", start=base, **short),)),
        base.then(Prune(sparsity=0.5, **short)),
        base.then(Quantize()),
        base.then(Distill("tiny", **short)),
    ):
        assert spec_of(make(recipe))["pixels"] == {"mean": [0.5], "std": [0.25]}, recipe.label
        assert run(recipe)["base"] in (base.id, recipe.id)


def test_files_of_weights_that_are_not_there_or_others(tmp_path):
    with pytest.raises(DataError, match="is not a file: set weights to a file"):
        Pretrained("resnet8", weights=tmp_path / "no.pth")
    torch.save(tiny().state_dict(), tmp_path / "w.pth")
    with pytest.raises(DataError, match="it is another file"):
        Pretrained("resnet8", weights=tmp_path / "w.pth", sha256="0" * 64)
    with pytest.raises(StepError, match="needs weights"):
        Pretrained("resnet8")
    for pixels in ("cifar", (0.5, 0.2), ((0.5,), (0.0,)), ((0.5, 0.5), (0.1,))):
        with pytest.raises(StepError, match="pixels must be 'imagenet', or"):
            Pretrained("resnet8", weights=tmp_path / "w.pth", pixels=pixels)


def test_a_changed_function_is_noticed(nets, folders):
    """Its structure is in the record, as that of our networks is."""
    found = structure(f"{nets}:flower_net", shape=(1, 8, 8), classes=10)
    assert found != structure(f"{nets}:flower_net(channels=4)", shape=(1, 8, 8), classes=10)


# --- To deploy --------------------------------------------------------------------------------------------------------


def test_own_network_weights_and_pictures_to_a_folder_that_runs_by_itself(nets, folders, tmp_path, monkeypatch):
    """Stripes and checks of 24x24, a network and weights of the user's: the deployed folder tells them apart."""
    rng, pictures = np.random.default_rng(0), tmp_path / "my pictures"
    for index in range(40):
        stripes, checks = np.zeros((2, 24, 24), np.uint8)
        stripes[:, index % 2 :: 2] = 200
        checks[index % 2 :: 2, ::2] = 200
        for name, picture in (("stripes", stripes), ("checks", checks)):
            (pictures / name).mkdir(parents=True, exist_ok=True)
            Image.fromarray(picture + rng.integers(0, 30, picture.shape, np.uint8)).save(
                pictures / name / f"{index}.png"
            )
    data = f"folder:{pictures}?side=24&colours=grey"
    torch.save(
        {"state_dict": build(f"{nets}:flower_net", shape=(1, 24, 24), classes=2).state_dict()}, tmp_path / "w.pt"
    )
    with pytest.warns(UserWarning, match="split by a fixed seed"):
        base = Recipe(data, (Pretrained(f"{nets}:flower_net", weights=tmp_path / "w.pt"),))
        tuned = Recipe(data, (Train(f"{nets}:flower_net", start=base, epochs=12, batch_size=16, augmentation=()),))
        record = run(tuned.then(Quantize(images=32)))
    assert record["accuracy"] == 1 and record["operators"]["integer_convolutions"] == 1
    path = store.Store.of(tuned.then(Quantize(images=32))).record
    deploy_file(path, tmp_path / "out", f"{nets}:flower_net")
    command = [sys.executable, "-I", str(tmp_path / "out" / "predict.py"), str(pictures / "stripes" / "3.png")]
    said = subprocess.run(command, cwd="/", capture_output=True, text=True)
    assert said.returncode == 0 and ": stripes (" in said.stdout, said.stderr
    assert (tmp_path / "out" / "labels.txt").read_text() == "checks\nstripes\n"
    assert {file.name for file in (tmp_path / "out").iterdir()} == {
        "model.onnx", "labels.txt", "predict.py", "model.nna", "record.json",
    }  # fmt: skip
    with pytest.raises(StorageError, match="is not a record"):
        deploy_file(tmp_path / "w.pt", tmp_path / "out")
    source = Path(sys.modules[nets].__file__)
    source.write_text(source.read_text().replace("nn.ReLU()", "nn.SiLU()"))
    monkeypatch.delitem(sys.modules, nets)
    with pytest.raises(StorageError, match="the code of .*flower_net builds another network now"):
        deploy_file(path, tmp_path / "other", f"{nets}:flower_net")


def test_the_deployed_script_reads_pictures_as_the_data_set_does(tmp_path):
    spec = importlib.util.spec_from_file_location("predict", ROOT / "experiment" / "deployed" / "predict.py")
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    rng = np.random.default_rng(1)
    exif = Image.Exif()
    exif[0x0112] = 8
    pictures = {
        "deep.png": (rng.integers(0, 4000, (20, 30), np.uint16), {}),
        "float.tiff": (rng.random((20, 30), np.float32), {}),
        "whole.tiff": (rng.integers(0, 10**6, (20, 30), np.int32), {}),
        "alpha.png": (rng.integers(0, 256, (20, 30, 4), np.uint8), {}),
        "turned.jpg": (rng.integers(0, 256, (20, 30, 3), np.uint8), {"exif": exif}),
    }
    for name, (values, fields) in pictures.items():
        Image.fromarray(values).save(tmp_path / name, **fields)
        for channels, colours in ((3, "rgb"), (1, "grey")):
            ours = read_picture(tmp_path / name, FolderOptions(16, colours)).transpose(2, 0, 1)[None]
            assert np.array_equal(script.read(str(tmp_path / name), channels, 16, 16), ours), name


def test_names_that_are_taken_and_widths_given_twice(nets):
    with pytest.raises(TypeError, match="pruning.sparsify has a Sparsify already"):
        type("Sparsify", (Technique,), {"letter": "S", "kind": "mine"})
    with pytest.raises(ModelError, match="models.channels has a transformation 'channels' already"):
        transformation("channels")(lambda model, value: model)
    with pytest.raises(ModelError, match="width is given twice"):
        build(f"{nets}:scaled(width=2)", shape=(3, 8, 8), classes=3, width=0.5)
    with pytest.raises(ModelError, match="did you mean torchvision"):
        build("torchvison:resnet18", shape=(3, 32, 32), classes=3)


def test_a_model_is_evaluated_on_the_scale_that_it_was_trained_on(folders):
    data, model = load("digits"), make(Recipe("digits", (Train("tiny", epochs=3, batch_size=64),)))
    moved = dataclasses.replace(data, mean=(0.9,), std=(0.01,))
    assert evaluate(model, moved, moved.validation) == evaluate(model, data, data.validation)


def test_timms_networks_are_timms():
    timm = pytest.importorskip("timm", reason="an extra of the project")
    torch.manual_seed(0)
    own = build("timm:resnet18d(drop_rate=0.1)", shape=(1, 32, 32), classes=5)
    torch.manual_seed(0)
    theirs = timm.create_model("resnet18d", num_classes=5, in_chans=1, drop_rate=0.1)
    assert all(torch.equal(theirs.state_dict()[name], value) for name, value in own.state_dict().items())


# --- Files of other things --------------------------------------------------------------------------------------------


def test_damaged_pickles_are_one_sentence_in_words(tmp_path):
    path = tmp_path / "w.pth"
    torch.save({"a.weight": torch.ones(4, 4)}, path, _use_new_zipfile_serialization=False)
    good = path.read_bytes()
    for place in range(0, len(good), 3):
        path.write_bytes(good[:place] + bytes([good[place] ^ 0x65]) + good[place + 1 :])
        try:
            read_tensors(path)
        except StorageError as error:
            assert re.fullmatch(r"\S+ (is|holds) [^\n]+: (fetch|save|only)?[^\n]+", str(error)), error
            assert not re.search(r"\(\d+\)", str(error)), error


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers_are_refused_and_named(value):
    state = tiny().state_dict()
    state["blocks.1.conv1.weight"][0, 0] = value
    with pytest.raises(StorageError, match=r"w.pth holds NaN or infinity in blocks.1.conv1.weight: take weights from"):
        load_into(build("resnet8", shape=(1, 8, 8), classes=10), state, "w.pth")


def test_a_file_of_another_program_is_not_called_damaged(tmp_path):
    save_file(tiny().state_dict(), tmp_path / "w.safetensors")
    with pytest.raises(StorageError, match=r"was not written by save_weights: .*Pretrained\(..., weights=PATH\) reads"):
        load_weights(tmp_path / "w.safetensors")
