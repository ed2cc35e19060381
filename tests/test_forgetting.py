"""What compression forgets: tables and charts, by hand."""

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from combination import BudgetError, recommend
from measurement import mcnemar
from plots import behaviour as charts
from report import forgetting
from report.forgetting import (
    SAME,
    beside_largest,
    class_losses,
    ece_interval,
    equally_accurate,
    forgotten_images,
    in_words,
    little_changed,
    method_of,
    one_of_each,
    shared_forgetting,
    side_by_side,
)

CLASSES = ["cat", "dog"]
LABELS = np.arange(40) % 2
BINS = {"count": [0] * 14 + [40], "right": [0] * 14 + [30], "confidence": [0.0] * 14 + [0.95]}


def row(key: str, kinds: str, wrong: list[int], corrupted: float = 1.0, lost: float = 1.0, **more) -> dict:
    """A model of `observed`, wrong on these of 40 images, and right on this share of the corrupted versions of each."""
    right = ~np.isin(np.arange(40), wrong)
    versions = np.zeros((8, 3, 20), bool)
    versions.reshape(24, 20)[: round(24 * corrupted)] = True
    share = {name: right[label == LABELS].mean() for label, name in enumerate(CLASSES)}
    found = {
        "id": key, "base": "base", "kinds": kinds, "method": method_of(kinds), "words": key, "label": key,
        "right": right, "wrong": 1 - LABELS[~right], "right_corrupted": versions, "robustness": versions.mean(),
        "accuracy": right.mean(), "validation_accuracy": 0.95 - lost / 100, "lost_on_validation": lost,
        "archive_bytes": 1000, "onnx_bytes": 4000, "class_accuracy": share, "worst_class": "dog",
        "worst_class_accuracy": min(share.values()), "bins": BINS, "bins_scaled": BINS, "ece": 0.2, "ece_scaled": 0.1,
        "nll": 0.3, "nll_scaled": 0.2, "brier": 0.1, "auroc_noise": 0.9, "auroc_svhn": np.nan,
        "by_corruption": {kind: [0.9, 0.8, 0.7] for kind in forgetting.STRENGTHS},
    }  # fmt: skip
    return found | more


def table(*rows: dict) -> pd.DataFrame:
    rows = (row("base", "", [0], lost=0.0, onnx_bytes=9000), *rows)
    bases = {own["id"]: own for own in rows}
    return pd.DataFrame([own | forgetting._beside_base(own, bases["base"]) for own in rows])


@pytest.fixture
def models() -> pd.DataFrame:
    """Pruned models are wrong on dogs, and forget more of the corrupted images than distilled ones as accurate."""
    return table(
        row("d", "D", [0, 2], 0.75),
        row("d2", "D", [2, 4], 0.75, lost=1.4),
        row("p", "P", [1, 3, 5], 0.5, lost=1.2),
        row("far", "Q", [0, 2, 4], 0.5, lost=5.0),
        row("chain", "DPQ", [1, 3], 0.5, lost=1.1),
    )


def test_groups_of_methods():
    assert [method_of(kinds) for kinds in ("", "D", "P", "Q")] == [
        "uncompressed", "distillation", "pruning", "quantization",
    ]  # fmt: skip
    assert {method_of(kinds) for kinds in ("DP", "DPQ", "J", "PP")} == {"chain of methods"}
    assert method_of("E") is None and method_of("DL") is None  # ensembles, and methods of one's own


def test_beside_the_base_by_hand(models):
    own = models.set_index("id").loc["p"]
    assert (own["forgotten"], own["gained"]) == (3, 1) and own["p"] == 0.625  # 2 * (1 + 4) / 2 ** 4
    assert own["corrupted_points"] == -50 and own["corrupted_low"] == own["corrupted_high"] == -50  # all images alike
    assert (own["lost_class"], own["class_loss"]) == ("dog", pytest.approx(15))
    assert own["p"] == mcnemar(models["right"][0], own["right"])


def test_equal_accuracy_by_hand(models):
    found = equally_accurate(models).set_index(["method", "other"])
    assert list(found.index) == [  # neither the base nor the far one is within half a point of another
        ("distillation", "pruning"), ("distillation", "chain of methods"), ("pruning", "chain of methods"),
    ]  # fmt: skip
    first = found.loc["distillation", "pruning"]
    assert first["pairs"] == 2 and first["points"] == pytest.approx(2.5) and first["corrupted points"] == 25
    assert found["forgets more"].tolist() == ["pruning", "chain of methods", SAME]


def test_an_interval_with_zero_shows_no_difference(rng):
    one, other = row("d", "D", [0]), row("p", "P", [0])
    for own in (one, other):
        own["right_corrupted"] = rng.random((8, 3, 20)) < 0.5
    (found,) = equally_accurate(table(one, other)).query("method == 'distillation'").to_dict("records")
    means = one["right_corrupted"].mean((0, 1)) - other["right_corrupted"].mean((0, 1))
    assert found["corrupted points"] == pytest.approx(100 * means.mean())
    assert found["low"] < found["corrupted points"] < found["high"]
    assert (found["forgets more"] == SAME) == (found["low"] <= 0 <= found["high"])


def test_one_of_each_is_near_what_all_reach(models):
    found = one_of_each(models).set_index("method")["id"]
    assert found.to_dict() == {
        "uncompressed": "base", "distillation": "d2", "pruning": "p", "quantization": "far",
        "chain of methods": "chain",
    }  # fmt: skip


def test_classes_that_suffer_by_hand(models):
    found = class_losses(models, LABELS, CLASSES).set_index(["method", "class"])
    assert found.loc[("pruning", "dog"), "points"] == pytest.approx(100 * 3 / 20)
    assert found.loc[("pruning", "cat"), "points"] == pytest.approx(-100 / 20)  # the base's one error is gained
    assert found.loc[("pruning", "dog"), "beyond"] == pytest.approx(20)
    assert found.loc[("distillation", "cat"), "points"] == pytest.approx(100 * (1 + 1) / 2 / 20)
    assert "quantization" not in found.index.get_level_values(0)  # not little changed
    assert set(little_changed(models)["id"]) == {"d", "d2", "p", "chain"}


def test_forgotten_images_by_hand(models):
    found = forgotten_images(models, 3)
    assert found["image"].tolist() == [1, 2, 3] and found["share"].tolist() == [0.5, 0.5, 0.5]
    assert found["answer"].tolist() == [0, 1, 0]
    assert found["by method"][0] == {"distillation": 0, "pruning": 1, "chain of methods": 1}
    assert len(forgotten_images(models, 40)) == 5  # no model forgets another one
    assert forgotten_images(models[models["id"] == "base"], 3).empty


def test_shared_forgetting_against_a_simulation(models, rng):
    found, chance = shared_forgetting(models)
    assert found == 3  # 1, 2 and 3, by two of four
    known = np.flatnonzero(models["right"][0])
    drawn = np.zeros((4000, 40), int)
    for count in (1, 2, 3, 2):  # images that d, d2, p and the chain forget
        drawn[:, known] += rng.random((4000, len(known))) < count / len(known)
    assert chance == pytest.approx((drawn >= 2).sum(1).mean(), rel=0.15)


def test_interval_of_a_calibration_error():
    sure = {"count": [0, 50], "right": [0, 50], "confidence": [0.0, 0.8]}
    assert ece_interval(sure) == pytest.approx((0.2, 0.2))  # there is nothing to draw
    low, high = ece_interval({"count": [100], "right": [50], "confidence": [0.9]})
    assert (low, high) == pytest.approx((0.4 - 1.96 * 0.05, 0.4 + 1.96 * 0.05), abs=0.015)


def test_tables_and_sentences(models):
    shown = side_by_side(one_of_each(models)).set_index("method")
    assert shown.loc["uncompressed", "McNemar"] == ""
    assert shown.loc["pruning", "points to the base"] == "-50.0 (-50.0 to -50.0)"
    assert shown.loc["pruning", "McNemar"] == "p = 0.625" and shown.loc["pruning", "loses most"] == "dog, 15.0 points"
    methods, classes, belief = in_words(models, LABELS, CLASSES)
    assert "pruning than distillation, by 25.0 points (25.0 - 25.0)" in methods and "in 1 pair of methods no" in methods
    assert "Of 4 models at most 2 points below their bases, dog suffers most" in classes
    assert "in 0 of these 4 models" in belief
    alone = in_words(models[models["id"] == "base"], LABELS, CLASSES)
    assert "nothing can be compared yet" in alone[0] and "No compressed model" in alone[1]


def test_charts_show_what_is_in_the_tables(models):
    largest = beside_largest(models, within=2)
    assert largest.attrs["largest"] == "base" and "far" not in set(largest["id"])
    left, right = charts.robustness_charts(largest).axes
    names = left.get_legend_handles_labels()[1]
    assert names == ["FP32", "distilled", "pruned", "chain of methods"]
    assert [-25, -25] in [list(line.get_ydata()) for line in right.lines if len(line.get_ydata()) == 2]
    before, after = charts.calibration_curves(one_of_each(models)).axes
    assert before.lines[-1].get_xydata().tolist() == [[95, 75]] and len(after.lines) == 6
    ax = charts.class_losses_chart(class_losses(models, LABELS, CLASSES))
    texts = [text.get_text() for text in ax.texts]
    assert len(texts) == 6 and any(text.startswith("15.0") for text in texts)
    forgotten = forgotten_images(models, 7)
    titles = charts.forgotten_titles(forgotten, LABELS, CLASSES)
    assert titles[0] == "dog, forgotten by\n50 %: cat"
    figure = charts.picture_sheet(np.zeros((7, 3, 4, 4), np.uint8), [*titles, "", ""])
    assert len(figure.axes) == 12 and sum(bool(ax.images) for ax in figure.axes) == 7
    plt.close("all")


def test_recommendation_with_bounds_on_what_is_forgotten():
    latency = "latency_ms.batch1_one_thread.median"
    rows = [("small", 0.90, 10, 0.60, 0.5), ("robust", 0.89, 20, 0.80, 0.8), ("best", 0.95, 30, 0.85, 0.7)]
    records = pd.DataFrame(rows, columns=["id", "validation_accuracy", "archive_bytes", "worst", "robust"])
    records["archive_bytes"] *= 1000
    records = records.assign(label=records["id"], words=records["id"], macs=5.0, accuracy=0.9, **{latency: 1.0})
    with pytest.raises(BudgetError, match="python -m experiment behaviour"):
        recommend(records, worst_class=0.7)
    names = {"worst": "validation_worst_class_accuracy", "robust": "validation_robustness"}
    records = records.rename(columns=names)
    for name in ("worst_class_accuracy", "robustness"):
        records[name] = records[f"validation_{name}"] - 0.01
    assert recommend(records, accuracy=0.88).model["id"] == "small"
    assert recommend(records, accuracy=0.88, worst_class=0.7).model["id"] == "robust"
    choice = recommend(records, robustness=0.75)  # "robust" is beaten by "small" in all but that
    assert choice.model["id"] == "robust" and "accuracy on corrupted validation images >= 0.75" in choice.reason
    assert choice.table()["corrupted %"].tolist()[0] == 79
    nearest = recommend(records, robustness=0.9, worst_class=0.7)
    assert nearest.model["id"] == "robust" and nearest.missed == ("robustness",)
    with pytest.raises(BudgetError, match="robustness must be from 0 to below 1, not 90"):
        recommend(records, robustness=90)
    partly = records.assign(validation_robustness=[np.nan, 0.8, 0.7])
    assert recommend(partly, accuracy=0.5, robustness=0.1).model["id"] == "robust"
