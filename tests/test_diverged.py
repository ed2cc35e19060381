"""Trainings that go astray: noticed, never kept, and a study that goes on without them."""

import math
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from PIL import Image
from sklearn.datasets import load_digits

from combination.model_search import SearchError, search
from experiment import Recipe, make, run, run_table, validated
from quantization import Quantize, qat
from report import beside_the_chain, by_width
from study import one_training
from training import Train, TrainingDiverged

GOOD = Recipe("digits", (Train("student_6", epochs=1, batch_size=256, learning_rate=0.05),))
BAD = Recipe("digits", (Train("student_6", epochs=2, batch_size=256, learning_rate=1e9),))


def test_nothing_of_a_diverged_training_is_kept(folders):
    results, artifacts = folders
    for _ in range(2):
        with pytest.raises(TrainingDiverged, match="lower learning_rate"):
            run(BAD)
    assert not list(results.glob("*.json")) and not list(artifacts.glob("*.safetensors"))


def test_a_table_leaves_out_what_diverged_in_one_line_each(folders):
    cases = [({"which": "bad"}, BAD), ({"which": "good"}, GOOD), ({"which": "of bad"}, BAD.then(Quantize()))]
    with pytest.warns(UserWarning, match="left out") as warned:
        table = run_table(cases)
    lines = [str(w.message) for w in warned if "left out" in str(w.message)]
    assert [line.split(",")[0] for line in lines] == [
        "left out: student_6 (seed 0)",
        "left out: student_6 > Quantize (seed 0)",
    ]
    assert all("lower learning_rate" in line and "\n" not in line for line in lines)
    assert table["which"].tolist() == ["good"] and table["id"].tolist() == [GOOD.id]


def test_where_every_row_is_needed_the_error_is_that_of_the_training(folders):
    with pytest.raises(TrainingDiverged, match="lower learning_rate"):
        run_table([({}, GOOD), ({}, BAD)], whole=True)
    with pytest.raises(TrainingDiverged, match="lower learning_rate"), pytest.warns(UserWarning, match="left out"):
        run_table([({}, BAD)])


def test_a_table_of_validation_accuracies_too(folders):
    with pytest.warns(UserWarning, match="left out: student_6"):
        table = validated("rates", [({"rate": 1e9}, BAD), ({"rate": 0.05}, GOOD)])
    assert table["rate"].tolist() == [0.05] and 0 <= table["accuracy"][0] <= 1


def test_a_search_leaves_out_what_diverged_and_does_not_try_it_again(folders):
    rates, tried = (0.02, 0.05, 1e9), []

    def candidate(choices, epochs):
        tried.append(choices)
        return Recipe("digits", (Train("student_6", epochs=epochs, batch_size=256, **choices),))

    def found(space):
        return search("rates", {"learning_rate": space}, candidate, budget=3, epochs=1)

    with pytest.warns(UserWarning, match="left out: student_6"):
        table = found(rates)
    assert sorted(table["learning_rate"]) == [0.02, 0.05] and table["front"].any()
    made = len(tried)
    pd.testing.assert_frame_equal(found(rates), table)  # read back from the journal
    assert len(tried) == made + 1  # the example that every search looks at


def test_a_search_of_which_all_diverged(folders):
    with pytest.warns(UserWarning, match="left out"), pytest.raises(SearchError, match="all 1 candidates diverged"):
        search(
            "rates",
            {"learning_rate": (1e9,)},
            lambda choices, epochs: Recipe("digits", (Train("student_6", epochs=epochs, batch_size=256, **choices),)),
            budget=1,
            epochs=1,
        )


def test_tables_without_the_row_that_they_compare_with():
    once = {"how": one_training.AT_ONCE, "epochs": "56%", "prunes from": "20%", "rounds from": "85%"}
    rows = [once | {"seed": 0, "accuracy": 0.9, "seconds": 1.0, "accuracy_low": 0.8, "accuracy_high": 0.95}]
    assert beside_the_chain(pd.DataFrame(rows)).empty
    row = {"model": "tiny", "accuracy": 0.9, "archive_bytes": 1000, "base_onnx_bytes": 4000}
    table = pd.DataFrame([row | {"bits": 32, "how": "float"}, row | {"bits": 2, "how": "static"}])
    widths = by_width(table)
    assert widths["rounded only %"][0] == 90 and math.isnan(widths["trained %"][0])


# Few images


@pytest.fixture
def few_images(tmp_path: Path) -> str:
    """48 images of two classes to train on, as a folder: one batch an epoch."""
    digits = load_digits()
    for label, name in ((0, "zero"), (1, "one")):
        images = np.round(digits.images[digits.target == label] * (255 / 16)).astype(np.uint8)
        for index, image in enumerate(images[:36]):
            file = tmp_path / "images" / ("train" if index < 24 else "test") / name / f"{index:02}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(image).save(file)
    return f"folder:{tmp_path / 'images'}"


def test_quantization_aware_training_after_few_updates_has_a_record(folders, few_images):
    """Three updates of the float network, six with rounding: steps were lost, and layers rounded to nothing."""
    base = Recipe(few_images, (Train("resnet8", epochs=3, batch_size=32, width=0.5),))
    trained = base.then(Quantize("qat", "ternary", epochs=6, learning_rate=0.1, batch_size=32))
    record = run(trained)
    assert record["agreement"] == 1 and record["operators"]["integer_convolutions"] > 0
    scales = [float(tensor) for name, tensor in make(trained).state_dict().items() if name.endswith(".scale")]
    assert min(scales) > 10 * qat.SMALLEST_STEP
