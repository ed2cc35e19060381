"""Charts whose words or lines must be true of their tables, and whose names must be readable."""

import itertools
from dataclasses import dataclass

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.colors import to_hex
from matplotlib.transforms import Bbox

from experiment import chance
from experiment.chance import alike, intervals_overlap, near_best, validation_images
from measurement import wilson_interval
from plots import accuracy_against_size
from plots.distillation import accuracy_by_parameters
from plots.pareto import pareto_chart
from plots.pruning import accuracy_and_speed
from plots.quantization import accuracy_by_calibration, latency_by_path, noise_by_layer
from plots.style import PALETTE, method_names, method_style
from pruning import Prune
from recipe import STEPS, Recipe, Step, letters_of, words_of
from report import beside, by_sparsity, chosen_on_validation, pairs
from training import Train

matplotlib.use("Agg")


@pytest.fixture(autouse=True)
def _closed():
    yield
    plt.close("all")


def records(seed, rows=30):
    """Few distinct values, so that ties abound; some accuracies far below the best, mostly of small files."""
    draws = np.random.default_rng(seed)
    accuracy = draws.choice([0.1, 0.4, 0.6, 0.66, 0.7, 0.8, 0.85, 0.9], rows)
    table = pd.DataFrame(
        {"accuracy": accuracy, "archive_bytes": 1e3 * (draws.integers(1, 4, rows) + 10 * accuracy // 1)}
    )
    table["validation_accuracy"] = table["accuracy"] + draws.choice([-0.01, 0, 0.01], rows)
    return table.assign(
        accuracy_low=accuracy - 0.02, accuracy_high=accuracy + 0.02, kinds=draws.choice(["", "QP"], rows)
    )


@pytest.mark.parametrize("seed", range(8))
def test_the_drawn_front_against_brute_force(seed):
    """Of all records, those too that are below the chart; and each record is one mark, in it or at its edge."""
    table = records(seed)
    ax = pareto_chart(table, "archive_bytes", ax=plt.figure().add_subplot())
    front = next(line for line in ax.lines if line.get_label() == "front by validation")
    rows = table.to_dict("records")
    by_hand = {
        (row["archive_bytes"] / 1e3, row["validation_accuracy"])
        for row in rows
        if not any(
            other["validation_accuracy"] >= row["validation_accuracy"]
            and other["archive_bytes"] <= row["archive_bytes"]
            and (other["validation_accuracy"], -other["archive_bytes"])
            != (row["validation_accuracy"], -row["archive_bytes"])
            for other in rows
        )
    }
    drawn = front.get_xydata()
    assert drawn[:, 0].tolist() == sorted(size for size, _ in by_hand)
    validation = [dict(by_hand)[size] for size in drawn[:, 0]]
    assert np.abs(drawn[:, 1] / 100 - validation).max() < 0.0101  # they are drawn at their test accuracy
    low, high = ax.get_ylim()
    below = 100 * table["accuracy"] < low
    edge = [line for line in ax.lines if not line.get_clip_on()]
    assert high > 90 and low < 66 and below.any()
    assert sorted(line.get_xdata()[0] for line in edge) == sorted(table.loc[below, "archive_bytes"] / 1e3)
    assert {line.get_ydata()[0] for line in edge} == {low}
    marks = np.concatenate([bars.lines[0].get_xydata() for bars in ax.containers])
    assert np.isfinite(marks).all(axis=1).sum() == (~below).sum()
    assert words(ax.get_legend()).count("off the chart (accuracy as written)") == 1


def words(legend):
    return [text.get_text() for text in legend.get_texts()]


def test_no_word_of_marks_below_a_chart_that_has_none():
    ax = pareto_chart(records(0).query("accuracy > 0.8"), "archive_bytes", ax=plt.figure().add_subplot())
    assert not any("off" in word for word in words(ax.get_legend())) and not ax.texts


def far_below(seed):
    """A dozen records far below the best six, half of them near one another, and figures of others above them."""
    draws = np.random.default_rng(seed)
    pair = [2.5, 2.561]  # apart, were it not for the room that the legend takes
    size = [*draws.normal(1.5, 0.04, 6), *draws.uniform(0.5, 4, 4), *pair, *draws.uniform(0.5, 4, 4), 0.5, 4]
    table = pd.DataFrame({"archive_bytes": 1e3 * 10 ** np.array(size)})
    table["accuracy"] = [*draws.choice([0.1, 0.11, 0.3, 0.6], 12), *draws.uniform(0.84, 0.9, 5), 0.93]
    table = table.assign(accuracy_low=lambda t: t["accuracy"] - 0.01, accuracy_high=lambda t: t["accuracy"] + 0.01)
    table["kinds"] = [*draws.choice(["Q", "P"], 12), *["", "D"] * 3]
    x = [30.0, *10 ** draws.uniform(0.5, 4, 4)]
    reported = pd.DataFrame({"x": x, "accuracy": [81.0, *draws.uniform(80, 82, 4)]}).iloc[: draws.integers(1, 6)]
    return table.assign(validation_accuracy=table["accuracy"]).set_axis([0] * 18), reported


@pytest.mark.parametrize("layout", ["constrained", None])
@pytest.mark.parametrize("seed", range(6))
def test_triangles_that_overlap_have_one_word(seed, layout):
    """As each triangle's outline in the drawn chart says; and no word covers a figure of others, or another word."""
    table, reported = far_below(seed)
    figure = plt.figure(figsize=(9, 4.5), layout=layout)
    ax = pareto_chart(table, reported=reported, ax=figure.add_subplot())
    figure.canvas.draw()
    edge = [line for line in ax.lines if not line.get_clip_on()]
    assert len(edge) == 12
    spans = sorted(
        (line.get_window_extent().x0, line.get_window_extent().x1, line.get_xdata()[0], line.get_color())
        for line in edge
    )
    groups = [spans[:1]]
    for span in spans[1:]:
        near = span[0] - groups[-1][-1][1] < figure.dpi / 72  # a point, for the line around each
        groups = [*groups[:-1], [*groups[-1], span]] if near else [*groups, [span]]
    assert 1 < len(groups) < 12
    expected = []
    for group in groups:
        inside = table["archive_bytes"].between(1e3 * group[0][2] - 1e-6, 1e3 * group[-1][2] + 1e-6)
        percents = {f"{100 * accuracy:.0f}" for accuracy in table.loc[inside & (table["accuracy"] < 0.7), "accuracy"]}
        colors = {color for *_, color in group}
        expected.append((", ".join(sorted(percents)) + " %", "0.35" if len(colors) > 1 else colors.pop()))
    assert sorted((text.get_text(), text.get_color()) for text in ax.texts) == sorted(expected)
    boxes = [text.get_window_extent() for text in ax.texts]
    assert not any(one.overlaps(other) for one, other in itertools.combinations(boxes, 2))
    half = 3 * figure.dpi / 72
    for x, y in ax.transData.transform(reported[["x", "accuracy"]].to_numpy()):
        mark = Bbox([[x - half, y - half], [x + half, y + half]])
        covers = filter(None, (Bbox.intersection(mark, box) for box in boxes))
        assert sum(cover.width * cover.height for cover in covers) < 0.2 * mark.width * mark.height
    for text, group in zip(sorted(ax.texts, key=lambda text: text.xy[0]), groups, strict=True):
        assert group[0][2] * 0.999 <= text.xy[0] <= group[-1][2] * 1.001  # it belongs to these


def test_a_published_figure_stands_before_the_marks():
    table, reported = far_below(0)
    ax = pareto_chart(table, reported=reported, ax=plt.figure().add_subplot())
    published = next(line for line in ax.lines if line.get_label().startswith("published"))
    assert published.get_markerfacecolor() == "none"
    assert all(published.zorder > bars.lines[0].zorder for bars in ax.containers)


DECLARED = ["FP32", "distilled", "ensemble", "joint training", "pruned", "quantized", "chain of methods"]


@pytest.mark.parametrize("seed", range(6))
def test_the_legend_has_its_methods_in_one_order(seed):
    """Whichever are there, and in whatever order; those too of which all are off the chart."""
    draws = np.random.default_rng(seed)
    letters = dict(zip(["", "D", "E", "J", "P", "Q", "QP", "DQ"], [*DECLARED, DECLARED[-1]], strict=True))
    kinds = draws.permutation(list(letters))[: draws.integers(2, 9)]
    table = pd.DataFrame({"kinds": kinds, "accuracy": [0.9, 0.1, *draws.choice([0.1, 0.5, 0.9], len(kinds) - 2)]})
    accuracy = table["accuracy"]
    table = table.assign(accuracy_low=accuracy - 0.02, accuracy_high=accuracy + 0.02, validation_accuracy=accuracy)
    table["macs"] = 1e6 * draws.integers(1, 9, len(kinds))
    reported = pd.DataFrame({"x": [2.0], "accuracy": [88.0]})
    ax = pareto_chart(table, "macs", reported=reported, budget={"accuracy": 0.9, "macs": 3e6})
    present = {letters[kind] for kind in kinds}
    assert words(ax.get_legend()) == [name for name in DECLARED if name in present] + [
        "published study (as reported)",
        "off the chart (accuracy as written)",
        "front by validation",
        "bound of validation accuracy",
        "bound of the cost",
    ]
    handles = dict(zip(words(ax.get_legend()), ax.get_legend().legend_handles, strict=True))
    colors = {bars.get_label(): bars.lines[0].get_color() for bars in ax.containers}
    assert all(to_hex(handles[name].get_color()[0]) == to_hex(color) for name, color in colors.items())


@pytest.mark.parametrize(("bound", "drawn"), [(0.6, False), (0.88, True), (0.999, False)])
def test_a_bound_outside_the_window_is_not_in_the_legend(bound, drawn):
    table = records(0).query("accuracy > 0.8")
    ax = pareto_chart(table, budget={"accuracy": bound, "size_kb": 5}, ax=plt.figure().add_subplot())
    low, high = ax.get_ylim()
    assert (low < 100 * bound < high) == drawn
    assert ("bound of validation accuracy" in words(ax.get_legend())) == drawn
    levels = [set(line.get_ydata()) for line in ax.lines if line.get_linestyle() == "--"]
    assert levels == ([{100 * bound}] if drawn else [])
    assert "bound of the cost" in words(ax.get_legend())


def covered(ax):
    """Names outside the axes, and pairs of names that cover each other."""
    ax.figure.canvas.draw()
    boxes = {text.get_text(): text.get_window_extent() for text in ax.texts}
    frame = ax.get_window_extent()
    outside = [name for name, box in boxes.items() if not (frame.containsx(box.x0) and frame.containsx(box.x1))]
    outside += [name for name, box in boxes.items() if not (frame.containsy(box.y0) and frame.containsy(box.y1))]
    return outside, [pair for pair in itertools.combinations(boxes, 2) if boxes[pair[0]].overlaps(boxes[pair[1]])]


@pytest.mark.parametrize("seed", range(6))
def test_names_stay_within_the_axes_and_apart(seed):
    draws = np.random.default_rng(seed)
    accuracy = draws.uniform(0.84, 0.92, 12)
    table = pd.DataFrame({"student": [f"student {'long ' * (i % 3)}{i}" for i in range(12)], "kind": "taught"})
    table = table.assign(accuracy=accuracy, accuracy_low=accuracy - 0.006, accuracy_high=accuracy + 0.006)
    ax = plt.figure(figsize=(7.5, 4.5), layout="constrained").add_subplot()
    accuracy_by_parameters(table.assign(parameters=1e5 * draws.uniform(1, 9, 12)), "kind", ax=ax).set_title(
        "of students"
    )
    assert covered(ax) == ([], [])


def test_a_name_stands_beside_the_error_bars():
    """Two bars side by side: each name goes to the side where there is none."""
    table = pd.DataFrame({"model": ["resnet20", "resnet20", "resnet18"], "kinds": ["", "Q", ""], "accuracy": 0.9})
    table = table.assign(accuracy_low=0.88, accuracy_high=0.92, archive_bytes=[3.5e5, 2.5e5, 9e6])
    ax = accuracy_against_size(table, ax=plt.figure(figsize=(7.5, 4.5)).add_subplot())
    ax.figure.canvas.draw()
    sides = {tuple(text.xy): text.get_ha() for text in ax.texts}
    assert sides[0.35, 90.0] == "left" and sides[0.25, 90.0] == "right"


def test_the_interval_of_the_base_is_shaded():
    table = pd.DataFrame(
        {"calibration": "mse", "weights": "per channel", "images": [32, 64], "validation_accuracy": 0.9}
    )
    ax = accuracy_by_calibration(table, 0.9, (0.89, 0.91), plt.figure().add_subplot())
    (band,) = ax.patches
    assert band.get_y() == pytest.approx(89) and band.get_height() == pytest.approx(2)


def test_every_weight_and_activation_has_its_name():
    rows = [("conv", "weights", 40.0), ("linear", "weights", np.inf)]
    rows += [("x", "activations", 50.0), ("relu", "activations", 30.0), ("pool", "activations", 20.0)]
    figure = noise_by_layer(pd.DataFrame(rows, columns=["layer", "what", "db"]))
    for ax, what, names in zip(figure.axes, ("weights", "activations"), (rows[:2], rows[2:]), strict=True):
        assert [text.get_text() for text in ax.get_yticklabels()] == [name for name, *_ in names]
        assert np.array_equal(ax.lines[0].get_ydata(), range(len(names))) and ax.get_xlabel().startswith(what)
        assert ax.get_xlim()[0] == 0 and ax.get_xlim()[1] > 50  # both panels have one scale


def test_bars_of_paths_are_explained():
    table = pd.DataFrame({"path": ["a", "b", "c"], "latency_ms": [1.0, 2, 3], "speedup": 1.0, "operators": 4})
    ax = latency_by_path(table.assign(integer_operators=[0, 2, 4]))
    names = {text.get_text(): patch.get_facecolor() for text, patch in
             zip(ax.get_legend().get_texts(), ax.get_legend().get_patches(), strict=True)}  # fmt: skip
    bars = {bar.get_y() + bar.get_height() / 2: bar.get_facecolor() for bar in ax.patches}
    assert names == {"none of them": bars[0], "some of them": bars[1], "all of them on integers": bars[2]}
    table["integer_operators"] = 4
    assert len(latency_by_path(table).get_legend().get_texts()) == 1


def test_single_weights_do_not_pile_up():
    table = pd.DataFrame({"kind": "single weights", "nonzero_parameters": [2e5, 1e6, 4e6], "speedup": [1.0, 1.0, 1.0]})
    table = table.assign(accuracy=[0.91, 0.92, 0.93], accuracy_low=0.9, accuracy_high=0.94)
    left, right = accuracy_and_speed(table, {"accuracy": 0.935, "parameters": 1e7}).axes
    assert left.lines[0].get_xdata().tolist() == right.lines[0].get_xdata().tolist() == [200, 1000, 4000]
    assert right.lines[-1].get_xydata().tolist() == [[10000, 1]]


# Words about chance


def test_intervals_that_overlap_by_hand():
    (low, _), (_, high) = wilson_interval(0.8608, 5000), wilson_interval(0.8428, 5000)
    assert low < high and alike(0.8608, 0.8428, 5000) and alike(0.8428, 0.8608, 5000)
    assert not alike(0.8608, 0.8328, 5000) and alike(0.5, 0.5, 10)
    accuracies = pd.Series({"random": 0.1, "snip": 0.8328, "look, ahead": 0.8428, "lamp": 0.8608})
    assert near_best(accuracies, 5000).tolist() == [False, False, True, True]
    assert near_best(accuracies[["random", "lamp"]], 5000).tolist() == [False, True]
    assert near_best(accuracies, 50).tolist() == [False, True, True, True]
    low, mid, high = ({"accuracy_low": x, "accuracy_high": x + 0.1} for x in (0.5, 0.6, 0.7))
    assert intervals_overlap(low, mid) and intervals_overlap(mid, low) and not intervals_overlap(high, low)


def test_validation_images_are_counted_once(folders, monkeypatch):
    assert validation_images("digits") > 100
    monkeypatch.setattr(chance, "load", None)  # read back
    assert validation_images("digits") > 100


def test_the_best_of_a_sparsity_is_that_of_means_over_seeds():
    rows = [(0.9, "magnitude", 0.60), (0.9, "lookahead", 0.80), (0.5, "magnitude", 0.90), (0.5, "magnitude", 0.92)]
    rows += [(0.5, "lookahead", 0.912), (0.5, "lookahead", 0.912)]
    table = pd.DataFrame(rows, columns=["sparsity", "criterion", "accuracy"]).assign(test_images=1000)
    table = table.assign(accuracy_low=0.5, accuracy_high=0.95, nonzero_parameters=5000, archive_bytes=2000)
    table["base_onnx_bytes"], table["latency_ms.batch1_one_thread.speedup"] = 8000, 1.5
    found = by_sparsity(table)
    assert found["sparsity"].tolist() == [0.5, 0.5, 0.9, 0.9] and found["seeds"].tolist() == [2, 2, 1, 1]
    found = found.set_index(["sparsity", "criterion"])
    assert found["points to the best"].to_dict() == {
        (0.5, "magnitude"): -0.2, (0.5, "lookahead"): 0, (0.9, "magnitude"): -20, (0.9, "lookahead"): 0,
    }  # fmt: skip
    assert found.index[~found["within chance of the best"]].tolist() == [(0.9, "magnitude")]
    assert (found["x smaller"] == 4).all() and (found["archive KB"] == 2).all()


def test_records_beside_one_of_them_by_hand():
    names = {"student": ["a", "a", "b", "c"], "kind": ["with", "without", "with", "without"]}
    table = pd.DataFrame(names | {"accuracy": [0.91, 0.90, 0.5, 0.6]})
    table["accuracy_low"], table["accuracy_high"] = table["accuracy"] - 0.004, table["accuracy"] + 0.004
    found = beside(table, table.iloc[1], "student")
    assert found["points"].tolist() == [1, 0, -40, -30] and found["student"].tolist() == ["a", "a", "b", "c"]
    assert found["test"].tolist() == ["intervals apart", "intervals overlap", "intervals apart", "intervals apart"]
    assert found["interval"][0] == "90.60 - 91.40"
    (pair,) = pairs(table, "student", "kind", "with", "without").to_dict("records")
    assert (pair["student"], pair["with %"], pair["without %"], pair["points"]) == ("a", 91, 90, 1)
    assert pair["test"] == "intervals apart"


def test_what_validation_chooses_by_hand():
    table = pd.DataFrame({"bits": ["mixed", "uniform", "few"], "validation_accuracy": [0.9104, 0.9134, 0.5]})
    found = chosen_on_validation(table, 5000)
    assert found["validation %"].tolist() == [91.04, 91.34, 50]
    assert found["within chance of the best"].tolist() == [True, True, False]
    assert chosen_on_validation(table, 10**6)["within chance of the best"].tolist() == [False, True, False]


def test_a_technique_of_ones_own_has_its_letter_words_and_colour():
    """A step in one class, and nothing else: it is no FP32 network in any table or chart."""

    @dataclass(frozen=True)
    class LowRank(Step):
        letter, kind = "L", "low rank"

        share: float = 0.5

        def words(self) -> list[str]:
            return [f"rank {100 * self.share:g} %"]

        def apply(self, model, context):
            return model

    try:
        base = Recipe("cifar10", (Train("resnet18"),))
        recipe = base.then(LowRank(0.25)).then(Prune(sparsity=0.5))
        record = {"id": recipe.id, "dataset": "cifar10", "seed": 0, "recipe": recipe.describe()}
        assert recipe.letters == letters_of(record) == "LP" and recipe.base == base
        assert recipe.words == words_of(record) == "resnet18, rank 25 %, pruned 50 %"
        names = [method_style(kinds)[0] for kinds in ("", "L", "P", "LP")]
        assert names == ["FP32", "low rank", "pruned", "chain of methods"] and "low rank" in method_names()
        looks = [method_style(kinds)[1:] for kinds in ("", "D", "E", "J", "P", "Q", "L", "LP")]
        assert len(set(looks)) == len(looks)
        assert method_style("D")[1:] == (PALETTE[0], "D") and method_names()[-2:] == [
            "another method",
            "chain of methods",
        ]
    finally:
        del STEPS["LowRank"]
    assert words_of(record) == "resnet18, LowRank, pruned 50 %" and letters_of(record) == "?P"  # where it is not known
