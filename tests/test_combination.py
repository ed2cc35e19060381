"""The best model for a budget, against exhaustive search over random tables; takeaways and search on made-up ones."""

import hashlib
import itertools
import math
import statistics

import ipywidgets
import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import optuna
import pandas as pd
import pytest

from combination import (
    BudgetError,
    Joint,
    SearchError,
    model_search,
    pareto_front,
    recommend,
    search,
)
from combination.model_search import STARTUP
from distillation import Distill, Ensemble
from experiment import Recipe
from experiment.store import ROOT
from plots import pareto
from plots.pareto import budget_charts, budget_sliders, explore_budgets, pareto_chart, show_recommendation
from pruning import Prune, PruneChannels
from quantization import Quantize
from report import (
    beside_reported,
    compared,
    ends_of_fronts,
    export_table,
    loss_and_size,
    published_study,
    settings,
    takeaways,
)
from report.published import reported_label
from report.readme import smallest_within
from study import combination as study
from study.baseline import base_recipe
from training import Train

matplotlib.use("Agg")

COLUMNS = ["validation_accuracy", "archive_bytes", "latency_ms.batch1_one_thread.median", "macs"]


EMPTY = hashlib.sha256(b"").hexdigest()


def random_records(seed, rows=40):
    """Few distinct values, so that ties and dominated rows abound."""
    draws = np.random.default_rng(seed)
    return pd.DataFrame(
        {
            "id": [f"{i:012x}" for i in range(rows)],
            "label": [f"recipe {i}" for i in range(rows)],
            "words": [f"network {i}" for i in range(rows)],
            "validation_accuracy": draws.integers(50, 99, rows) / 100,
            "accuracy": draws.integers(50, 99, rows) / 100,
            "archive_bytes": 1000 * draws.integers(1, 12, rows),
            "latency_ms.batch1_one_thread.median": draws.integers(1, 12, rows) / 4,
            "macs": 10 * draws.integers(1, 12, rows),
        }
    )


def beats(a, b):
    """Whether row a is as good as b in everything and better in something."""
    pairs = [(a[COLUMNS[0]], b[COLUMNS[0]]), *((-a[c], -b[c]) for c in COLUMNS[1:])]
    return all(x >= y for x, y in pairs) and any(x > y for x, y in pairs)


@pytest.mark.parametrize("seed", range(5))
def test_pareto_front_against_brute_force(seed):
    records = random_records(seed)
    rows = records.to_dict("records")
    expected = [not any(beats(other, row) for other in rows) for row in rows]
    assert pareto_front(records).tolist() == expected
    for column in COLUMNS[1:]:
        better = [
            [
                other[COLUMNS[0]] >= row[COLUMNS[0]] and other[column] <= row[column]
                and (other[COLUMNS[0]], other[column]) != (row[COLUMNS[0]], row[column])
                for other in rows
            ]
            for row in rows
        ]  # fmt: skip
        assert pareto_front(records, (column,)).tolist() == [not any(of_row) for of_row in better]


def test_what_was_not_measured_is_not_on_the_front():
    records = random_records(0)
    records.loc[records.index[:5], "macs"] = np.nan
    assert not pareto_front(records).iloc[:5].any()


@pytest.mark.parametrize("seed", range(5))
def test_recommend_against_exhaustive_search(seed):
    records = random_records(seed)
    rows = records.to_dict("records")
    for accuracy, size, latency, macs in itertools.product([None, 0.7, 0.95], [None, 2, 8], [None, 0.5, 2], [None, 30]):
        budget = {"accuracy": accuracy, "size_kb": size, "latency_ms": latency, "macs": macs}
        budget = {name: value for name, value in budget.items() if value is not None}
        if not budget:
            continue

        def excess(row, budget=budget):
            factors = {
                "accuracy": (1 - row["validation_accuracy"]) / (1 - budget.get("accuracy", 0)),
                "size_kb": row["archive_bytes"] / 1000 / budget.get("size_kb", 1),
                "latency_ms": row["latency_ms.batch1_one_thread.median"] / budget.get("latency_ms", 1),
                "macs": row["macs"] / budget.get("macs", 1),
            }
            return max(factors[name] for name in budget)

        answer = recommend(records, **budget)
        costs = [COLUMNS[1 + place] for place, name in enumerate(("size_kb", "latency_ms", "macs")) if name in budget]
        chosen, better = answer.model, answer.next_better

        def factor(row, chosen=chosen, costs=costs or ["archive_bytes"]):
            return max(row[column] / chosen[column] for column in costs)

        more = [row for row in rows if row["validation_accuracy"] > chosen["validation_accuracy"]]
        assert (better is None) == (not more)
        if more:
            assert better["validation_accuracy"] > chosen["validation_accuracy"]
            assert factor(better) == pytest.approx(min(map(factor, more)))
            cheapest = [row["validation_accuracy"] for row in more if factor(row) <= factor(better)]
            assert better["validation_accuracy"] == max(cheapest)
        kept = [row for row in rows if excess(row) <= 1]
        if not kept:
            assert excess(answer.model) == pytest.approx(min(map(excess, rows)))
            assert answer.missed
            continue
        assert excess(answer.model) <= 1 and not answer.missed
        assert not any(beats(row, answer.model) for row in rows)
        free = [c for name, c in zip(("size_kb", "latency_ms", "macs"), COLUMNS[1:], strict=True) if name not in budget]
        if accuracy is None or not free:
            assert answer.model["validation_accuracy"] == max(row["validation_accuracy"] for row in kept)
        else:
            assert answer.model[free[0]] == min(row[free[0]] for row in kept)


def test_of_equals_the_smallest_is_recommended():
    records = random_records(0).iloc[:2].copy()
    records[COLUMNS] = [[0.9, 1_000_000, 1.00, 100], [0.9, 10_000, 1.01, 100]]
    for table in (records, records[::-1]):
        assert recommend(table, size_kb=2000).model["archive_bytes"] == 10_000


def test_the_binding_budget_is_named():
    records = random_records(0).iloc[:2].copy()
    records[COLUMNS] = [[0.9, 10_000, 1.0, 100], [0.8, 1_000, 1.0, 100]]
    records["accuracy"] = [0.88, 0.79]
    answer = recommend(records, accuracy=0.85, size_kb=5, macs=200)
    assert (
        "binds: accuracy or size_kb" in answer.reason and "validation accuracy >= 0.85, size_kb <= 5" in answer.reason
    )
    assert answer.missed == ("accuracy",) and answer.model["label"] == "recipe 1"  # 1.33x the errors beats 2x the bytes
    assert answer.next_better["label"] == "recipe 0"
    assert "+10.00 validation points for 10.00x the bytes" in answer.reason
    table = answer.table().set_index("")
    assert table["archive KB"].to_dict() == {
        "nearest": 1.0,
        "next better": 10.0,
    }  # not "recommended": a budget is missed
    assert table["validation %"].tolist() == [80, 90] and table["accuracy %"].tolist() == [79, 88]


@pytest.mark.parametrize(
    ("budget", "words"),
    [
        ({"size_kb": 20}, "The most accurate on validation of 2 that keep size_kb <= 20."),
        ({"accuracy": 0.7}, "The smallest archive of 2 that keep validation accuracy >= 0.7."),
        ({"accuracy": 0.7, "size_kb": 20}, "The fastest of 2"),
        ({"accuracy": 0.7, "size_kb": 20, "latency_ms": 3}, "The fewest multiply-accumulates of 2"),
    ],
)
def test_why_in_words(budget, words):
    records = random_records(0).iloc[:2].copy()
    records[COLUMNS] = [[0.9, 10_000, 2.0, 100], [0.8, 1_000, 1.0, 90]]
    answer = recommend(records, **budget)
    assert answer.reason.startswith(words) and answer.table()[""][0] == "recommended"


def test_seeds_of_a_recipe_count_as_their_mean():
    records = random_records(0).iloc[:3].copy()
    records["label"] = ["a", "a", "b"]
    records[COLUMNS] = [[0.95, 1000, 1.0, 10], [0.75, 1000, 1.0, 10], [0.9, 1000, 1.0, 10]]
    assert recommend(records, size_kb=2).model["label"] == "b"  # one lucky seed of a is no reason
    records = records.iloc[:2]
    assert recommend(records, size_kb=2).model["id"] == records["id"].iloc[0]


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ({}, "no budget given"),
        ({"size_mb": 1}, "unknown budget size_mb: use accuracy, size_kb, latency_ms, macs"),
        ({"accuracy": 91}, "write 0.9 for 90 %"),
        ({"accuracy": 1.0}, "below 1"),
        ({"size_kb": 0}, "size_kb must be above 0"),
        ({"latency_ms": -1}, "latency_ms must be above 0"),
        ({"macs": float("nan")}, "macs must be a finite number .* not nan"),
        ({"macs": 10**400}, "macs must be a finite number"),
        ({"size_kb": float("inf")}, "size_kb must be a finite number .* not inf"),
        ({"size_kb": True}, "size_kb must be a finite number .* not True"),
        ({"size_kb": "100"}, "size_kb must be a finite number .* not '100'"),
    ],
)
def test_bad_budgets(budget, message):
    with pytest.raises(BudgetError, match=message):
        recommend(random_records(0), **budget)


def test_a_budget_with_a_unit_of_its_own():
    with pytest.raises(BudgetError, match="number in the unit in its name, not '100 KB'"):
        recommend(random_records(0), size_kb="100 KB")


@pytest.mark.parametrize("records", [None, "cifar10"])
def test_what_is_no_table_of_records(records):
    with pytest.raises(BudgetError, match="records must be a table as returned by load_records, not"):
        recommend(records, size_kb=1)


def test_records_of_two_data_sets_are_not_compared():
    records = random_records(0).assign(dataset=["digits", "cifar10"] * 20)
    with pytest.raises(BudgetError, match="records of cifar10 and digits cannot be compared"):
        recommend(records, size_kb=1)


def test_no_records_says_how_to_make_them():
    with pytest.raises(BudgetError, match="make study"):
        recommend(pd.DataFrame(columns=["id", "label"]), size_kb=1)


# The takeaways

BASE = Recipe("cifar10", (Train("resnet18"),))
SMALL = BASE.then(Distill("resnet20"))


def model(name, recipe, accuracy, kilobytes, *, parameters=100, left=1.0, macs=400, speed=1.0, epochs=0, **figures):
    """A record of a made-up model: `left` is the share of weights that are not zero, `epochs` of its last training."""
    return {
        "id": name, "label": name, "seed": recipe.seed, "base": "base", "model": recipe.model or "ensemble",
        "method": " > ".join(step.name for step in recipe.steps), "kinds": recipe.letters, "words": recipe.words,
        "recipe.steps": recipe.describe()["steps"], "dataset": "cifar10",
        "accuracy": accuracy, "validation_accuracy": accuracy, "accuracy_low": accuracy - 0.01,
        "accuracy_high": accuracy + 0.01, "parameters": 1000 * parameters,
        "nonzero_parameters": 1000 * parameters * left, "archive_bytes": 1000 * kilobytes,
        "base_onnx_bytes": 1_000_000, "onnx_bytes": 1000 * kilobytes, "macs": macs,
        "curves": [{"epoch": 1 + epoch} for epoch in range(epochs)] or np.nan, "train_seconds": 10.0 + epochs,
        "latency_ms.batch1_one_thread.median": 4 / speed, "latency_ms.batch1_one_thread.speedup": speed,
        "latency_ms.batch64_one_thread.speedup": speed, "hardware.cpu": "a CPU", "hardware.instructions": ["avx2"],
        "operators.convolutions": 20, "operators.integer_convolutions": 20,
    } | figures  # fmt: skip


def study_records(**changes):
    """The base, and what each takeaway but those of students and ensembles asks for; `changes`: figures by name."""
    ternary = Quantize("qat", "ternary")
    rows = [
        model("base", BASE, 0.90, 1000, epochs=10, onnx_bytes=1_000_000),
        model("int8", BASE.then(Quantize("qat")), 0.899, 250, speed=1.4, epochs=1),
        model("half", BASE.then(Prune(sparsity=0.5)), 0.895, 550, left=0.5, speed=1.01, epochs=5),
        model("most", BASE.then(Prune(sparsity=0.9)), 0.891, 60, left=0.1, speed=1.02, epochs=6),
        model("too much", BASE.then(Prune(sparsity=0.96)), 0.80, 30, left=0.04, speed=1.02, epochs=7),
        model("small", SMALL, 0.885, 20, parameters=9, macs=40, speed=5, epochs=30),
        model("tiny", SMALL.then(Prune()).then(ternary), 0.882, 4, parameters=9, macs=40, speed=8, epochs=9),
    ]
    return pd.DataFrame([row | changes.get(row["id"].replace(" ", "_"), {}) for row in rows])


def more(*rows, **changes):
    return pd.concat([study_records(**changes), pd.DataFrame(rows)], ignore_index=True)


def answer(number, records, kernels=None):
    """What is said here of a takeaway, and whether it agrees."""
    return tuple(takeaways(records, kernels).loc[number, ["here", "agrees"]])


def test_as_many_takeaways_as_the_study_has():
    agrees = takeaways(study_records())["agrees"]
    assert len(agrees) == 12
    assert answer(1, study_records()) == ("missing: the published study's students (notebook 4)", "not measured")
    assert answer(11, study_records()) == ("missing: an ensemble (notebook 4)", "not measured")
    assert agrees[9] == agrees[10] == "cannot be told"  # which are of kernels on a GPU
    assert set(agrees.drop([1, 9, 10, 11])) <= {"yes", "no"}


def students(**accuracies):
    sizes = {"student_baseline": 655, "student_1": 399, "student_2": 376, "student_4": 253}
    return [
        model(name, BASE.then(Distill(name)), accuracies.get(name, 0.85), 100, parameters=size)
        for name, size in sizes.items()
    ]


def test_designing_a_student():
    easy = more(*students(student_2=0.81), model("wide", BASE.then(Distill("student_4", width=2)), 0.89, 400))
    easy = pd.concat([easy, pd.DataFrame([model("long", BASE.then(Distill("student_4", epochs=40)), 0.95, 100)])])
    text, agrees = answer(1, easy)
    assert agrees == "yes" and text.startswith("from 85.00 % (84.00 - 86.00): ")
    assert f"filters 81.00 % (80.00 - 82.00), -4.00 points, {655 / 376:.2f}x fewer parameters" in text
    assert "fewer channels 85.00 %" in text and "(published: -4.59 points at worst)" in text  # 85.495 - 80.9
    text, agrees = answer(1, more(*students(student_1=0.80)))
    assert "instead of FC 80.00 % (79.00 - 81.00), -5.00 points" in text and agrees == "no"


def test_the_kink_is_that_of_the_best_criterion_on_the_largest_network():
    records = more(
        model("random", BASE.then(Prune("random", 0.7)), 0.30, 100, left=0.3),
        model("channels", BASE.then(PruneChannels()), 0.40, 100),
        model(
            "of another", Recipe("cifar10", (Train("resnet20"),)).then(Prune(sparsity=0.6)), 0.1, 9, base="elsewhere"
        ),
    )
    low = {"validation_accuracy": 0.88}
    magnitude = model("by magnitude", BASE.then(Prune("magnitude", 0.96)), 0.895, 30, left=0.04)
    for tried, between, agrees in (
        (records, "90 and 96", "yes"),
        (study_records(half=low), "90 and 96", "yes"),  # chance, where 90 % is within
        (study_records(half=low, most=low), "0 and 50", "no"),
        (more(magnitude), "96 and 100", "no"),
        (study_records(too_much={"validation_accuracy": 0.899}), "96 and 100", "no"),
    ):
        text, verdict = answer(2, tried)
        assert f"point is first lost between {between} %;" in text and verdict == agrees
    assert answer(2, records)[0].endswith("96 %: 80.00 % (79.00 - 81.00), -10.00 points")
    few = study_records().set_index("id", drop=False)
    assert "resnet18 with between 90 and 100 % of its weights" in answer(2, few.drop("too much"))[0]
    assert "resnet18 with between 50 and 96 % of its weights" in answer(2, few.drop("most"))[0]


def test_each_method_keeps_most():
    text, agrees = answer(3, study_records())
    assert "quantization 89.90 % (88.90 - 90.90), -0.10 points, 4.0x" in text and agrees == "yes"
    assert "pruning 89.50 % (88.50 - 90.50), -0.50 points, 1.8x" in text
    text, agrees = answer(3, study_records(small={"accuracy": 0.83}, int8={"accuracy": 0.91}))
    assert "-7.00 points" in text and "+1.00 points, 4.0x" in text and agrees == "no"


def test_what_shrinks_most_and_has_the_fewest_weights():
    text, agrees = answer(4, study_records())
    assert text.endswith("quantization 4x; pruning 17x; distillation 50x") and agrees == "yes"
    assert answer(4, study_records(small={"archive_bytes": 500_000}))[1] == "no"
    text, agrees = answer(4, study_records(small={"validation_accuracy": 0.85}))
    assert text.endswith("distillation none") and agrees == "no"
    text, agrees = answer(5, study_records())
    assert text.endswith("quantization 100 K; pruning 10 K; distillation 9 K") and agrees == "yes"
    assert answer(5, study_records(small={"nonzero_parameters": 11_000}))[1] == "no"


def test_only_the_largest_network_counts():
    other, facts = Recipe("cifar10", (Train("resnet20"),)), {"base": "other", "base_onnx_bytes": 90_000, "speed": 9}
    rows = [
        model("other", other, 0.95, 90, **facts),
        model("its int8", other.then(Quantize()), 0.95, 1, epochs=900, **facts),
        model("its half", other.then(Prune(sparsity=0.97)), 0.95, 1, left=0.01, **facts),
    ]
    assert takeaways(more(*rows)).iloc[1:10].equals(takeaways(study_records()).iloc[1:10])


def test_shares_of_time():
    like = {name: {"latency_ms.batch1_one_thread.speedup": 4.6} for name in ("half", "most")}
    like |= {name: {"latency_ms.batch1_one_thread.speedup": x} for name, x in (("small", 5.2), ("int8", 1.7))}
    text, agrees = answer(6, study_records(**like))
    assert "quantization 0.59x (resnet18, 8 bits, 100 % of the MACs); pruning 0.22x (resnet18, pruned 50 %" in text
    assert text.endswith("distillation 0.19x (resnet20, distilled, 10 % of the MACs)") and agrees == "yes"
    text, agrees = answer(6, study_records())
    assert "pruning 0.98x" in text and agrees == "no"


def test_steps_of_size():
    text, agrees = answer(7, study_records())
    assert "quantization 1 (8 bits), 250.0 - 250.0 KB; pruning 3, 30.0 - 550.0 KB" in text and agrees == "yes"
    again = more(
        model("minmax", BASE.then(Quantize(calibration="minmax")), 0.89, 260),  # the same step
        model("int4", BASE.then(Quantize("qat", 4)), 0.89, 120),
        model("mixed", BASE.then(Quantize("qat", 4, layer_bits=(("conv", 2),))), 0.89, 110),
    )
    text, agrees = answer(7, again)
    assert "quantization 3 (2 and 4 bits, 4 bits, 8 bits)" in text and agrees == "no"


def test_effort():
    text, agrees = answer(8, study_records())
    assert text.endswith("quantization 1.00 (1.00 - 1.00); pruning 6.00 (5.00 - 7.00); distillation 3.00 (3.00 - 3.00)")
    assert agrees == "yes"
    assert answer(8, study_records(small={"macs": 400}, int8={"curves": 9 * [{}]}))[1] == "no"  # 30, pruning the least
    assert answer(8, study_records(int8={"curves": 4 * [{}]}))[1] == "no"  # distillation takes the least


def kernels(device="cpu"):
    """Gains of 2 in INT8 and of 3 with zeros in a GPU's kernels; an older GPU and a library's are of no account."""
    rows = [
        ("gemm_fp32", "fully connected", 1.0, 4.0, "ours", "new", "2"),
        ("gemm_fp32", "fully connected", 1.0, 6.0, "ours", "new", "2"),
        ("gemm_int8", "fully connected", 1.0, 2.0, "ours", "new", "2"),
        ("gemm_int8", "fully connected", 1.0, 0.1, "cuBLASLt", "new", "2"),
        ("gemm_int8", "fully connected", 1.0, 0.1, "ours", "old", "1"),
        ("gemv_fp32", "square 25088", 1.0, 9.0, "ours", "new", "2"),
        ("spmv_csr", "square 25088", 0.1, 3.0, "ours", "new", "2"),
        ("spmv_csr", "square 25088", 0.01, 0.3, "ours", "new", "2"),
    ]
    table = pd.DataFrame(rows, columns=["family", "case", "density", "time_ms", "maker", "device", "time"])
    names = ["tiled", "naive", "dp4a", "library", "older", "row a warp", "delta", "delta"]
    return table.assign(kind=device, kernel=names)


def test_int8_in_hardware():
    best = model("int4", BASE.then(Quantize("qat", 4)), 0.91, 120, speed=9)  # more accurate, but not in 8 bits
    text, agrees = answer(9, more(best), kernels("cpu"))
    assert "1.40x at batch 1" in text and "(20/20 convolutions integer; a CPU, avx2)" in text
    assert text.endswith("no kernel of ours measured on a GPU") and agrees == "cannot be told"
    text, agrees = answer(9, study_records(), kernels("gpu"))
    assert text.endswith("2.00x on new (dp4a over tiled)") and agrees == "no"
    assert answer(9, more(best).query("id != 'int8'")) == ("missing: resnet18 in 8 bits (notebook 2)", "not measured")


def test_sparsity_in_hardware():
    narrow = model("narrow", BASE.then(PruneChannels()), 0.89, 500, macs=200, speed=1.9)
    text, agrees = answer(10, more(narrow), kernels("cpu"))
    assert text.startswith(
        "96 % of the weights at zero: 1.02x in the dense runtime; whole channels removed: up to 1.90x"
    )
    assert agrees == "cannot be told"
    text, agrees = answer(10, study_records(), kernels("gpu"))
    assert text.endswith("3.00x on new (delta over row a warp)") and agrees == "yes"
    alone = more(narrow)[lambda table: ~table["id"].isin(["half", "most", "too much"])]
    assert answer(10, alone)[0] == "missing: resnet18 with weights pruned (notebook 3)"


def test_ensembles():
    together = model("both", Recipe("cifar10", (Ensemble((SMALL, SMALL)),)), 0.895, 40, parameters=18, macs=80)
    other = model("another design", BASE.then(Distill("ds_cnn")), 0.92, 40, parameters=18)
    assert answer(11, more(together, other))[0].startswith("missing: a member widened")

    def single(accuracy):
        wide = model("wide", BASE.then(Distill("resnet20", width=1.4)), accuracy, 40, parameters=18.5, macs=40)
        return answer(11, more(together, other, wide))

    text, agrees = single(0.87)
    assert text.startswith("89.50 % (88.50 - 90.50) with 18 K against 87.00 % (86.00 - 88.00) with 18 K (resnet20 of")
    assert text.endswith("distilled, 0.50 of its MACs); intervals apart") and agrees == "yes"
    text, agrees = single(0.90)
    assert text.endswith("; intervals overlap") and agrees == "no"


def test_combinations():
    text, agrees = answer(12, study_records())
    assert "within 1 none; within 2 250x (resnet20, distilled, pruned 90 %, ternary, 88.20 % (87.20 - 89.20));" in text
    assert (
        text.endswith(f"{8 * 4000 / 9000:.2f} bits a weight in its archive, the published one 8.5") and agrees == "no"
    )
    assert answer(12, study_records(tiny={"archive_bytes": 8500}))[1] == "yes"  # 1000 / 8.5 = 118
    text, verdict = answer(12, study_records(tiny={"validation_accuracy": 0.8}))
    assert text.endswith("within 7.4 none") and verdict == "no"
    assistant = model("assistant", SMALL.then(Distill("resnet8")), 0.90, 1)  # distilled twice: one method
    assert answer(12, more(assistant)) == answer(12, study_records())


def test_seeds_are_averaged_first():
    unlucky = study_records().query("id == 'tiny'").assign(id="tiny 1", seed=1, accuracy=0.86, validation_accuracy=0.86)
    text, _ = answer(12, pd.concat([study_records(), unlucky], ignore_index=True))
    assert "within 2 none; within 4 250x (resnet20, distilled, pruned 90 %, ternary, 87.10 %" in text  # of 88.2 and 86
    seeded = study_records().assign(id=lambda t: t["id"] + " 1", base="base 1", seed=1)
    seeded[["accuracy", "validation_accuracy"]] += 0.02  # the base too: nothing is lost or won
    both = pd.concat([study_records(), seeded], ignore_index=True)
    assert "quantization 90.90 % (88.90 - 90.90), -0.10 points" in answer(3, both)[0]
    assert answer(4, both) == answer(4, study_records())
    assert "within 2 250x (resnet20, distilled, pruned 90 %, ternary, 89.20 %" in answer(12, both)[0]


@pytest.mark.parametrize("records", [pd.DataFrame(columns=["id", "label", "seed", "accuracy", "onnx_bytes"]), None])
def test_takeaways_of_little_say_what_is_missing(records):
    records = study_records().iloc[:1] if records is None else records
    assert (takeaways(records)["agrees"] == "not measured").all()


def test_the_largest_network_is_the_training_that_most_is_made_of():
    longer = Recipe("cifar10", (Train("resnet18", epochs=20),))
    trial = model("another", longer, 0.95, 1000, onnx_bytes=1_000_000) | {"base": "another"}
    table = compared(pd.concat([pd.DataFrame([trial]), study_records()], ignore_index=True)).set_index("id")
    assert not table.loc["another", "of_largest"] and table.loc["int8", "of_largest"]


def test_compared_by_hand():
    table = compared(study_records()).set_index("id")
    assert table["kinds"].to_dict() == {
        "base": "", "int8": "Q", "half": "P", "most": "P", "too much": "P", "small": "D", "tiny": "DPQ",
    }  # fmt: skip
    assert table["lost"].round(6).tolist() == [0, 0.1, 0.5, 0.9, 10, 1.5, 1.8]
    assert table["macs_left"].tolist() == [1, 1, 1, 1, 1, 0.1, 0.1] and table["of_largest"].all()
    assert table["training"].round(6).tolist() == [10, 1, 5, 6, 7, 3, 0.9]  # students' epochs cost a tenth
    assert table["smaller"].tolist() == table["smaller_than_largest"].tolist() == [
        1, 4, 1000 / 550, 1000 / 60, 1000 / 30, 50, 250,
    ]  # fmt: skip


RESNET20 = Recipe("cifar10", (Train("resnet20"),))
STUDENT = BASE.then(Distill("student_3conv"))
MEMBERS = [BASE.then(Distill(f"student_{number}")) for number in (4, 5, 6)]


@pytest.mark.parametrize(
    ("recipe", "label"),
    [
        (BASE, "ResNet-18 teacher"),
        (RESNET20, None),
        (BASE.then(Quantize()), "static INT8"),
        (BASE.then(Quantize("qat")), "QAT INT8"),
        (BASE.then(Quantize("qat", 4)), None),
        (BASE.then(Prune(sparsity=0.96)), "pruned 96 %"),
        (BASE.then(Prune("magnitude", 0.9)), "pruned 90 %"),
        (BASE.then(Prune("random", 0.9)), None),
        (BASE.then(PruneChannels()), None),
        (BASE.then(Distill("student_3")), "Model 3"),
        (BASE.then(Distill("student_4", width=1.7)), None),
        (BASE.then(Distill("student_4", alpha=0.47)), None),
        (BASE.then(Distill("student_4", features="hints")), None),
        (BASE.then(Distill("student_4", teachers=(BASE, RESNET20))), None),
        (RESNET20.then(Distill("student_4")), None),
        (Recipe("cifar10", (Train("resnet18", width=0.5),)).then(Distill("student_4")), None),
        (STUDENT.then(Prune(sparsity=0.77)).then(Quantize()), "distilled and pruned 77 % and quantized"),
        (STUDENT.then(Prune(sparsity=0.9)).then(Quantize()), None),
        (STUDENT.then(Prune("snip", sparsity=0.77)), None),
        (STUDENT.then(PruneChannels()), None),
        (BASE.then(Prune(sparsity=0.77)).then(Quantize()), "pruned 77 % and quantized"),
        (SMALL.then(Prune(sparsity=0.77)).then(Quantize()), None),
        (Recipe("cifar10", (Ensemble(tuple(MEMBERS)),)), "ensemble of 4 5 6"),
        (Recipe("cifar10", (Ensemble(tuple(MEMBERS), optimize_weights=True),)), None),
        (Recipe("cifar10", (Ensemble((*MEMBERS[:2], BASE.then(Distill("student_6", width=2)))),)), None),
    ],
    ids=lambda value: value.label if isinstance(value, Recipe) else None,
)
def test_what_the_study_reports_of_the_same(recipe, label):
    record = compared(pd.DataFrame([model("base", BASE, 0.9, 100), model("this", recipe, 0.8, 10)])).iloc[1]
    assert reported_label(record) == label
    assert label is None or label in set(published_study()["label"])


def test_the_studys_figures_stand_in_their_rows():
    table = beside_reported(pd.DataFrame({"recipe": ["base", "small"]}), study_records())
    assert table["published %"].fillna(0).tolist() == [90.3, 0] and table["published MB"][0] == 44.7


def test_settings_are_every_field_of_every_step():
    half = STUDENT.then(Prune(sparsity=0.5, teacher=BASE))
    table = settings(half, STUDENT.then(Quantize("qat", layer_bits=(("conv", 2),))))
    assert list(table.columns) == ["Train", "Distill", "Prune", "Quantize"]  # what both begin with once
    assert table.loc["model"].tolist() == ["resnet18", "student_3conv", "", ""]
    assert table.loc["epochs"].tolist() == [15, 30, 5, 3] and table.loc["augmentation", "Train"] == "crop, flip"
    assert table.loc["teacher", "Prune"] == "resnet18" and table.loc["layer_bits", "Quantize"] == "conv, 2"
    assert "teachers" not in table.index  # which none of them has
    assert table.loc["optimizer"].tolist() == 4 * ["sgd"]


def test_a_base_of_other_settings_is_another_recipe():
    usual = base_recipe("cifar10", "resnet20")
    assert base_recipe("cifar10", "resnet20", epochs=40, optimizer="sgd").id == usual.id
    other = base_recipe("cifar10", "resnet20", 1, optimizer="adamw", augmentation=["crop"])
    assert other.seed == 1 and other.steps[0].epochs == 40
    assert (other.steps[0].optimizer, other.steps[0].augmentation) == ("adamw", ("crop",))


def test_chains_with_settings_of_their_own():
    usual = study.chains(BASE, "student_3conv")
    assert [recipe.id for _, recipe in study.chains(BASE, "student_3conv", distil={"epochs": 20})] == [
        recipe.id for _, recipe in usual
    ]
    changes = {"distil": {"epochs": 2}, "prune": {"epochs": 4}, "quantize": {"epochs": 6, "learning_rate": 0.5}}
    for cases in (study.chains(BASE, "student_3conv", **changes)[-1:], study.orders(BASE, "student_3conv", **changes)):
        steps = cases[0][1].steps[1:]
        assert [step.epochs for step in steps] == [2, 4, 6] and steps[-1].learning_rate == 0.5


def test_exported_tables_escape_what_latex_reads(tmp_path, monkeypatch):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    table = pd.DataFrame({"recipe_ & %": ["resnet20 > Quantize #ab12 & x_y 50 %"], "accuracy": [0.5]})
    csv, latex = export_table(table, "exported")
    row = next(line for line in latex.read_text().splitlines() if "Quantize" in line)
    assert row == r"resnet20 $>$ Quantize \#ab12 \& x\_y 50 \% & 0.5 \\"
    assert r"recipe\_ \& \% & accuracy \\" in latex.read_text()
    assert pd.read_csv(csv).equals(table)


def test_the_file_named_is_there(tmp_path, monkeypatch):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    monkeypatch.setenv("ARTIFACTS_DIR", str(tmp_path / "artifacts"))
    choice = recommend(
        random_records(0).assign(dataset="digits", weights_sha256="0" * 64, archive_sha256=EMPTY), size_kb=100
    )
    assert choice.table()["file"][0] == "not here: run its recipe"
    beside = tmp_path / "digits" / "models" / f"{choice.model['id']}.nna"
    beside.parent.mkdir(parents=True)
    beside.touch()
    assert (ROOT / choice.table()["file"][0]).resolve() == beside.resolve()
    beside.write_bytes(b"of another model")
    with pytest.warns(UserWarning, match="is not the archive that its record was measured with"):
        assert choice.table()["file"][0] == "not here: run its recipe"


# Charts


def test_the_drawn_front_and_its_ends():
    records = compared(study_records())
    records["validation_accuracy"] = [0.9, 0.9, 0.85, 0.88, 0.7, 0.89, 0.89]
    records.loc[records["id"] == "half", "latency_ms.batch1_one_thread.median"] = 0.1  # the fastest: on another front
    ax = pareto_chart(records, "archive_bytes", ax=plt.figure().add_subplot())
    line = next(line for line in ax.lines if line.get_label() == "front by validation")
    assert np.allclose(line.get_xydata(), [[4, 88.2], [250, 89.9]])  # KB and test accuracy of "tiny" and "int8"
    ends = ends_of_fronts(records)
    assert ends["front"].tolist()[:2] == ["2 of 7", "2 of 7"] and len(ends) == 6
    assert ends["model"].tolist()[:2] == ["resnet20, distilled, pruned 90 %, ternary", "resnet18, 8 bits"]
    assert ends[["cost", "accuracy %"]].to_numpy()[:2].tolist() == [[4, 88.2], [250, 89.9]]
    assert ends["interval"][0] == "87.20 - 89.20"
    one = ends_of_fronts(records.iloc[:1])  # both ends of a front of one are that one
    assert one["model"].tolist() == 6 * ["resnet18"] and set(one["front"]) == {"1 of 1"}


def test_the_fewest_bytes_within_some_points():
    """By validation accuracy, averaged over seeds: 'tiny' has 1.8 and 2.4 points less than the base there."""
    other = model("tiny of seed 1", SMALL.then(Prune()), 0.876, 4, seed=1, label="tiny")
    records = more(other, tiny={"accuracy": 0.86}).assign(base="base")
    text = smallest_within(records, study_records().iloc[0], (0.5, 0.05, 2, 2.2))
    lines = text.splitlines()[2:]
    assert lines[0] == (
        "- within 0.5 points on validation: **4x smaller**, 250.0 KB (resnet18, 8 bits), 0.10 points lost on the test "
        "images, one seed"
    )
    assert lines[1].startswith("- within 0.05 points on validation: **1x smaller**, 1000.0 KB (resnet18), 0.00 points")
    assert lines[2].startswith("- within 2 points on validation: **50x smaller**, 20.0 KB (resnet20, distilled), 1.50")
    assert "**250x smaller**, 4.0 KB" in lines[3] and "3.20 points lost on the test images, mean of 2 seeds" in lines[3]
    none = smallest_within(records.iloc[4:5], study_records().iloc[0], [1])
    assert none.endswith("- within 1 point on validation: none")


def test_budgets_are_drawn_and_the_choice_is_ringed():
    records = study_records(tiny={"macs": 30})
    budget = {"accuracy": 0.88, "size_kb": 100, "latency_ms": 1.0}
    choice = recommend(records, **budget)
    assert choice.model["id"] == "tiny"  # of those that keep all three, the one with the fewest multiply-accumulates
    figure = budget_charts(compared(records), choice, budget)
    size, time = figure.axes
    for ax, bound, place in ((size, 100, 4), (time, 1.0, 0.5)):
        lines = {line.get_label(): line.get_xydata() for line in ax.lines}
        upright = [xy for label, xy in lines.items() if label.startswith("bound of") and "accuracy" not in label]
        assert len(upright) == 1 and (upright[0][:, 0] == bound).all()
        assert (lines["bound of validation accuracy"][:, 1] == 88).all()
        ring = next(line for line in ax.lines if line.get_markersize() == 16)
        assert np.allclose(ring.get_xydata(), [[place, 88.2]])
        assert ring.get_label() == "recommended" and not any("mean" in label for label in lines)
    plt.close("all")


def test_budget_charts_share_one_legend():
    """60 and 70 KB are just apart in a panel as wide as it becomes; what these two take otherwise is the same."""
    records = study_records(most={"accuracy": 0.1}, too_much={"accuracy": 0.11, "archive_bytes": 69_700})
    budget = {"accuracy": 0.5, "size_kb": 100, "latency_ms": 1.0, "macs": 500}
    figure = budget_charts(compared(records), recommend(records, **budget), budget)
    figure.canvas.draw()
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()] == [
        "FP32", "distilled", "pruned", "quantized", "chain of methods",
        "off the chart (accuracy as written)", "front by validation", "bound of the cost", "recommended",
    ]  # fmt: skip
    assert len(figure.axes) == 3 and not any(ax.get_legend() for ax in figure.axes)
    assert [bool(ax.get_ylabel()) for ax in figure.axes] == [True, False, False]
    frame, box = figure.bbox, legend.get_window_extent()
    assert frame.x0 <= box.x0 and box.x1 <= frame.x1 and frame.y0 <= box.y0
    for ax in figure.axes:
        assert not box.overlaps(ax.get_tightbbox()) and 4 < ax.get_window_extent().width / figure.dpi < 5
    written = [[text.get_text() for text in ax.texts] for ax in figure.axes]
    assert written == [["10 %", "11 %"], ["10, 11 %"], ["10, 11 %"]]
    plt.close("all")


def test_the_mean_over_seeds_that_is_ringed_is_marked():
    """At 4 and 6 KB, 88 and 86 %: the ring is around 5 KB and 87 %, where neither has its mark."""
    other = model("again", SMALL.then(Prune()), 0.86, 6, macs=40, speed=8, seed=1, label="tiny")
    records = more(other, tiny={"accuracy": 0.88})
    choice = recommend(records, size_kb=10)
    (ax,) = budget_charts(compared(records), choice, {"size_kb": 10}).axes
    lines = {line.get_label(): line.get_xydata() for line in ax.lines}
    assert np.allclose(lines["recommended"], [[5, 87]]) and np.allclose(lines["mean of its 2 seeds"], [[5, 87]])
    assert "mean of its 2 seeds" in [text.get_text() for text in ax.figure.legends[0].get_texts()]
    plt.close("all")


def test_what_is_recommended_off_the_chart_is_ringed_at_its_edge():
    records = study_records(tiny={"accuracy": 0.3})
    choice = recommend(records, size_kb=5)
    (ax,) = budget_charts(compared(records), choice, {"size_kb": 5}).axes
    ring = next(line for line in ax.lines if line.get_label() == "recommended")
    assert ring.get_xydata().tolist() == [[4, ax.get_ylim()[0]]] and ax.get_ylim()[0] > 30 and not ring.get_clip_on()
    plt.close("all")


@pytest.mark.parametrize("seed", range(5))
def test_sliders_tell_models_apart(seed):
    """Between any two figures 1 % apart there is a step; the loosest bound keeps all, the tightest the least."""
    draws = np.random.default_rng(seed)
    records = random_records(seed)
    for column in COLUMNS[1:]:
        records[column] = 10 ** (draws.integers(-1, 8) + draws.uniform(0, 4, len(records)))
    records.loc[0, COLUMNS[1:]] = 1000.0  # a whole power
    for (name, slider), column in zip(budget_sliders(records).items(), COLUMNS, strict=True):
        if name == "accuracy":
            continue
        figures = (records[column] / (1000 if name == "size_kb" else 1)).to_numpy()
        positions = slider.min + slider.step * np.arange(round((slider.max - slider.min) / slider.step) + 1)
        bounds = slider.base**positions
        assert figures.min() <= bounds[0] < 1.01 * figures.min()
        assert figures.max() <= slider.value <= 1.01 * figures.max() and slider.value == slider.base**slider.max
        for low, high in itertools.pairwise(sorted(figures)):
            assert high < 1.01 * low or ((low <= bounds) & (bounds < high)).any()
        assert recommend(records, **{name: slider.value}).missed == ()
        records.loc[figures.argmax(), column] *= slider.value / figures.max() * (1 + 1e-15)  # as good as on a step
        loosest = budget_sliders(records)[name].value
        assert recommend(records.nlargest(1, column), **{name: loosest}).missed == ()


def test_an_interactive_recommendation_says_that_a_budget_is_missed(monkeypatch):
    shown = []
    monkeypatch.setattr(pareto, "display", lambda *things: shown.extend(things))
    monkeypatch.setattr(plt, "show", lambda: None)
    sliders = budget_sliders(study_records())
    spans = {name: (slider.min, slider.max, slider.value) for name, slider in sliders.items()}
    assert spans["accuracy"] == (0.8, 0.9, 0.8)
    for name, low, high in (("size_kb", 4, 1000), ("latency_ms", 0.5, 4), ("macs", 40, 400)):
        assert spans[name] == pytest.approx((math.log10(low), math.log10(high), high), rel=0.01)
    assert budget_sliders(study_records(base={"validation_accuracy": 1.0}))["accuracy"].max < 1  # 1 is no budget
    show_recommendation(study_records(), size_kb=2)
    assert shown[0].data.startswith("No model keeps size_kb <= 2; this one is nearest. What binds: size_kb")
    assert shown[1][""][0] == "nearest" and shown[1]["record"][0] == "tiny"
    assert "nearest" in [text.get_text() for text in plt.gcf().legends[0].get_texts()]
    plt.close("all")


def test_a_slider_that_is_moved_draws_what_is_recommended_for_all_of_them(monkeypatch):
    budgets = []
    monkeypatch.setattr(pareto, "show_recommendation", lambda records, **budget: budgets.append(budget))
    *sliders, drawing = explore_budgets(study_records()).children
    assert not budgets and isinstance(drawing, ipywidgets.Output)
    sliders[1].value = 10.0
    assert budgets == [pytest.approx({"accuracy": 0.8, "size_kb": 10, "latency_ms": 4, "macs": 400}, rel=0.01)]


# What notebook 6 compares


def test_loss_and_size_by_hand():
    bases = [
        {"id": name, "accuracy": value, "onnx_bytes": 1_000_000, "train_seconds": 10.0}
        for name, value in (("base", 0.9), ("base 1", 0.92))
    ]
    seeded = study_records().assign(id=lambda t: t["id"] + " 1", base="base 1", seed=1)
    seeded["accuracy"] += 0.03
    both = pd.concat([study_records(), seeded], ignore_index=True).assign(words="some")
    table = loss_and_size(both, bases, "label", "words")
    assert table["label"].tolist() == study_records()["label"].tolist() and set(table["words"]) == {"some"}
    row = table[table["label"] == "half"].iloc[0]
    assert row["accuracy %"] == 91 and row["seeds"] == 2  # 89.5 and 92.5
    assert (
        row["zeros %"] == 50 and row["points to the base"] == 0 and row["x smaller"] == round(1000 / 550, 1)
    )  # half a point lost, and won
    assert row["spread"] == round(statistics.stdev([89.5, 92.5]), 2) and row["training s"] == 5
    assert "seeds" not in loss_and_size(study_records(), bases)
    long = study_records(half={"train_seconds": 1210.0})
    assert loss_and_size(long, bases, "label").set_index("label")["training min"]["half"] == 20


def test_recipes_that_share_a_label_are_apart_where_their_words_are():
    two = study_records().iloc[[1, 1]].assign(late_bits=[2, 3], accuracy=[0.8, 0.9])
    base = {"id": "base", "accuracy": 0.9, "onnx_bytes": 1_000_000, "train_seconds": 10.0}
    table = loss_and_size(two, [base], "late_bits")
    assert table["accuracy %"].tolist() == [80, 90]


def test_training_times_without_the_base_where_it_is_a_teacher():
    base = {"id": "base", "accuracy": 0.9, "onnx_bytes": 1_000_000, "train_seconds": 10.0}
    teacher = Recipe("cifar10", (Distill("resnet20", teachers=(BASE,)),))
    rows = pd.DataFrame([model("a", SMALL, 0.9, 1, epochs=3), model("b", teacher, 0.9, 1, epochs=3)])
    assert loss_and_size(rows, [base], "label")["training s"].tolist() == [3, 13]


def test_long_trainings_have_one_teacher_and_seeds_of_their_own():
    base = base_recipe("cifar10", "resnet18")
    rows = [(1.5, 120, 4, 4, 5, 1), (1.0, 110, 4, 3, 6, 2), (0.875, 120, "ternary", "ternary", 10, 1)]
    cases = study.long_trainings(base, rows, batch_size=512, views=20)
    assert [words["bits"] for words, _ in cases] == ["32", "4"] + 2 * ["32", "4 and 3"] + ["32", "ternary"]
    assert [recipe.seed for _, recipe in cases] == [0, 0, 0, 0, 1, 1, 0, 0]
    for _, recipe in cases:
        first = recipe.steps[0]
        assert recipe.base == base and first.teachers == (base,) and (first.batch_size, first.views) == (512, 20)
    rounded = [recipe.steps[1] for _, recipe in cases if len(recipe.steps) == 2]
    assert {step.teacher for step in rounded} == {base} and rounded[0].layer_bits == ()
    late, ternary = dict(rounded[1].layer_bits), dict(rounded[-1].layer_bits)
    assert set(late.values()) == {3} and {name[:2] for name in late} == {"9.", "10", "13", "14", "15"}
    assert not any("around" in name for name in late)  # the depthwise ones keep 4
    assert set(ternary.values()) == {4} and len(ternary) == 7 and all("around" in name for name in ternary)
    assert [recipe.steps[0].epochs for _, recipe in cases] == [120, 120, 110, 110, 110, 110, 120, 120]
    assert [step.epochs for step in rounded] == [5, 6, 6, 10]


def test_late_bits_are_those_of_the_second_half():
    base = base_recipe("digits", "resnet20")
    step = study._candidate(base, {"model": "resnet8", "bits": 4, "late_bits": 2, "first_last_bits": 8}, 3).steps[-1]
    names = [f"blocks.{block}.{layer}" for block in (1, 2) for layer in ("conv1", "conv2", "shortcut.0")]
    assert dict(step.layer_bits) == dict.fromkeys(names[2:], 2)  # of ten layers the last five, but for the linear one
    assert study._candidate(base, {"model": "resnet8", "bits": 4, "late_bits": 4}, 3).steps[-1].layer_bits == ()


# The search

SPACE = {"width": (0.25, 0.5, 1.0), "bits": (2, 4, 8)}


def searched(monkeypatch, tmp_path, tried, space=SPACE, fields=None, **changes):
    """A search over made-up trainings, whose accuracy and bytes follow from the choices."""

    def measure(recipe, error):
        step = recipe.steps[-1]
        tried.append((step.width, step.bits))
        return step.width**0.1 * (1 - 0.1 / step.bits), int(1000 * step.width * step.bits)

    def made(choices, epochs):
        return BASE.then(Joint("resnet8", epochs=epochs, **choices, **(fields or {})))

    monkeypatch.setenv("ARTIFACTS_DIR", str(tmp_path))
    monkeypatch.setattr(model_search, "_try", measure)
    settings = {"name": "small", "candidate": made, "budget": 24, "epochs": 3, "seed": 1} | changes
    return search(space=space, **settings)


@pytest.mark.parametrize("seed", range(4))
def test_search_spends_its_budget_on_distinct_choices_and_marks_the_front(monkeypatch, tmp_path, seed):
    tried = []
    table = searched(monkeypatch, tmp_path, tried, seed=seed)
    assert len(tried) == len(set(tried)) == len(table) == 8  # 24 epochs pay for so many of three
    for row in table.itertuples():
        beaten = (table["validation_accuracy"] >= row.validation_accuracy) & (
            table["archive_bytes"] < row.archive_bytes
        )
        beaten |= (table["validation_accuracy"] > row.validation_accuracy) & (
            table["archive_bytes"] <= row.archive_bytes
        )
        assert row.front == (not beaten.any())


def test_a_search_ends_when_everything_was_tried(monkeypatch, tmp_path):
    searched(monkeypatch, tmp_path, tried := [], budget=3000)
    assert sorted(tried) == sorted(itertools.product(*SPACE.values()))


def test_a_search_goes_on_where_it_stopped(monkeypatch, tmp_path):
    searched(monkeypatch, tmp_path, first := [], budget=12)
    searched(monkeypatch, tmp_path, second := [], budget=24)
    assert (len(first), len(second)) == (4, 4) and not set(first) & set(second)
    table = searched(monkeypatch, tmp_path, third := [], budget=24)
    assert not third and len(table) == 8
    fewer = searched(monkeypatch, tmp_path, third, budget=12)  # the first ones, as they were; `front` is among them
    assert not third and list(zip(fewer["width"], fewer["bits"], strict=True)) == first
    pd.testing.assert_frame_equal(fewer.drop(columns="front"), table.head(4).drop(columns="front"))
    assert (fewer["front"] == pareto_front(fewer, ("archive_bytes",))).all()
    searched(monkeypatch, tmp_path / "whole", whole := [], budget=24)
    assert first == whole[:4]


def test_the_first_candidates_are_drawn_at_random(monkeypatch, tmp_path):
    """As Optuna's random sampler draws them from the seed, ten of them; no choice comes twice out of so many."""
    space = {"width": [width / 100 for width in range(1, 101)], "bits": list(range(2, 9))}
    searched(monkeypatch, tmp_path, tried := [], space=space, budget=39)
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=1))
    trials = [study.ask() for _ in tried]
    drawn = [tuple(trial.suggest_categorical(key, values) for key, values in space.items()) for trial in trials]
    assert tried[:10] == drawn[:10] and tried[10] != drawn[10]


@pytest.mark.parametrize("seed", range(3))
def test_choices_that_come_again_are_none_of_the_first(monkeypatch, tmp_path, seed):
    """Of so few, some come again: `STARTUP` candidates are drawn at random all the same, and no more."""
    random, drawn_at = optuna.samplers.RandomSampler.sample_independent, set()

    def watched(sampler, *given):
        drawn_at.add(len(tried))
        return random(sampler, *given)

    monkeypatch.setattr(optuna.samplers.RandomSampler, "sample_independent", watched)
    space = {"width": (0.25, 0.5, 1.0), "bits": (2, 3, 4, 5, 6, 7, 8)}
    searched(monkeypatch, tmp_path, tried := [], space=space, budget=60, seed=seed)
    assert len(tried) == 20 and max(drawn_at) == STARTUP - 1


def test_choices_may_be_tuples(monkeypatch, tmp_path):
    space = {"layer_bits": ((), (("conv", 2),), (("conv", 2), ("linear", "ternary"))), "first_last_bits": (None, 8)}
    whole = searched(monkeypatch, tmp_path, tried := [], space=space, budget=18)
    assert len(tried) == 6 and set(whole["layer_bits"]) == set(space["layer_bits"])
    pd.testing.assert_frame_equal(searched(monkeypatch, tmp_path, tried, space=space, budget=18), whole)
    assert len(tried) == 6
    with pytest.raises(SearchError, match="started with another space"):
        searched(monkeypatch, tmp_path, tried, space=space | {"layer_bits": ((), (("conv", 4),))})


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"epochs": 4}, "epochs"),
        ({"seed": 2}, "seed"),
        ({"space": SPACE | {"bits": (2, 4)}}, "space"),
        ({"fields": {"sparsity": 0.9}}, "recipe"),  # what is not chosen
    ],
)
def test_a_search_resumed_with_other_settings_is_refused(monkeypatch, tmp_path, changes, named):
    searched(monkeypatch, tmp_path, [], budget=6)
    with pytest.raises(SearchError, match=f"started with another .*{named}"):
        searched(monkeypatch, tmp_path, [], **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"budget": 1}, "pays for no candidate of 3: raise it"), ({"budget": "6"}, "budget .* whole number .* not '6'"),
        ({"budget": math.nan}, "budget must be a whole number .* not nan"), ({"budget": 24.0}, "budget .* not 24.0"),
        ({"epochs": None}, "epochs must be a whole number .* not None"), ({"epochs": 0}, "epochs .* from 1 .* not 0"),
        ({"epochs": True}, "epochs .* not True"), ({"seed": None}, "seed must be a whole number from 0 .* not None"),
        ({"seed": "a"}, "seed .* not 'a'"), ({"seed": -1}, "seed .* not -1"), ({"seed": 2**32}, "seed .* 2147483647"),
        *(({"name": name}, "name must be a file name of up to 50") for name in ("a/b", "", None, " ", "..", 60 * "a")),
        ({"space": {"width": 0.5}}, "width needs a list or tuple of at least one choice, .* not 0.5"),
        ({"space": {"width": ()}}, r"width needs .* not \(\)"), ({"space": {"criterion": "snip"}}, "criterion needs"),
        *(({"space": space}, "space must map names to choices, such as") for space in ({}, None, [0.5], {1: (2,)})),
        ({"space": {"layer_bits": ([("conv", 2)],)}}, "cannot be a choice of layer_bits: use numbers, text, None"),
        ({"space": {"colour": (1, 2)}}, "{'colour': 1} .*: name fields of its step, for Joint some of model, sparsity"),
        ({"candidate": lambda choices, epochs: None}, "candidate must return a recipe, not None"),
    ],
)  # fmt: skip
def test_wrong_searches(monkeypatch, tmp_path, changes, message):
    with pytest.raises(SearchError, match=message):
        searched(monkeypatch, tmp_path, [], **changes)
    assert not list(tmp_path.iterdir())


def test_a_kept_search_is_of_its_settings(monkeypatch, tmp_path):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    found = [{"model": "resnet8", "validation_accuracy": 0.9, "archive_bytes": 1, "front": True}]
    begun = []
    monkeypatch.setattr(study, "search", lambda name, *given, **settings: begun.append(settings) or pd.DataFrame(found))
    base = base_recipe("digits", "resnet20")

    def asked(**space):
        return study.smallest(base, {"model": ["resnet8"]} | space, candidates=2, epochs=3)

    asked(), asked(), asked(bits=[4])
    assert len(begun) == 2  # the second of three was read back
    monkeypatch.setattr(study, "student_training", lambda base, model: {"batch_size": 16})
    asked()
    assert len(begun) == 3
    asked(model=["resnet8", "ds_cnn"])
    monkeypatch.setattr(study, "student_training", lambda base, model: {"batch_size": 64 if model == "resnet8" else 32})
    asked(), asked(model=["resnet8", "ds_cnn"])
    assert len(begun) == 5  # of the second network's settings, too


def test_a_kept_search_gives_tuples_back(monkeypatch, tmp_path):
    monkeypatch.setenv("RESULTS_DIR", str(tmp_path))
    row = {"model": "resnet8", "layer_bits": (("conv", 2),), "validation_accuracy": 0.9, "archive_bytes": 1}
    monkeypatch.setattr(study, "search", lambda *given, **settings: pd.DataFrame([row | {"front": True}]))
    space, base = {"model": ["resnet8"], "layer_bits": [row["layer_bits"]]}, base_recipe("digits", "resnet20")
    for _ in range(2):  # made, then read
        found = study.smallest(base, space, candidates=1, epochs=3)
        assert study.at_length(base, found, 6)[0][1].steps[-1].layer_bits == row["layer_bits"]


def test_the_committed_search_is_found(monkeypatch):
    monkeypatch.setenv("RESULTS_DIR", str(ROOT / "results"))
    monkeypatch.setattr(study, "search", lambda *given, **settings: pytest.fail("it would be searched anew"))
    space = {"model": ["resnet8", "resnet14", "resnet20"], "width": [0.5, 1.0], "sparsity": [0.3, 0.6, 0.8]}
    space |= {"bits": [3, 4], "late_bits": [2, 3, 4], "first_last_bits": [4, 8]}  # as notebook 6 has it
    assert len(study.smallest(base_recipe("cifar10", "resnet18"), space, candidates=10, epochs=3)) == 10


@pytest.mark.parametrize(
    ("space", "message"),
    [
        ({"bits": (2, 4)}, "add 'model', such as"), ({"model": "resnet8"}, "model needs a list or tuple"),
        ({"model": ["resnet8"], "colour": [1]}, "no 'colour' to choose: use some of late_bits, model, sparsity, bits"),
        ({"model": ["resnet8"], "epochs": [1, 2]}, "no 'epochs' to choose"), (None, "space must map names to"),
    ],
)  # fmt: skip
def test_wrong_spaces(space, message):
    with pytest.raises(SearchError, match=message):
        study.smallest(base_recipe("digits", "resnet20"), space, candidates=2, epochs=3)
