"""What notebook 6 compares: chains of methods, one training against a chain, and the search for small models."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial

import pandas as pd

from combination.joint import Joint
from combination.search import search
from distillation.study import student, student_training
from experiment import Recipe, kept_table
from pruning.study import pruned, under_itself
from quantization.study import trained
from quantization.weights import Bits

Case = tuple[dict, Recipe]
SPARSITY = 0.77  # the published study's
# The headline models: what becomes small, a student of the base or the base itself; how much of it goes, at how many
# bits, and the epochs of pruning and of rounding. Of a ResNet-18 and its ResNet-20 the last two are below 1/1000.
HEADLINE: tuple[tuple[str, float, Bits, int, int], ...] = (
    ("student", 0.0, 4, 0, 3),
    ("base", 0.97, "ternary", 3, 4),
    ("base", 0.98, "ternary", 3, 4),
    ("student", 0.6, "ternary", 6, 10),
    ("student", 0.72, "ternary", 6, 10),
)


def chains(base: Recipe, model: str, bits: Bits = 8, sparsity: float = SPARSITY) -> list[Case]:
    """The published study's combinations, in its order, with the three methods alone: D distil, P prune, Q quantize."""
    distilled, pruned_base = student(base, model), under_itself(base, "lookahead", sparsity)
    both = pruned(distilled, "lookahead", sparsity)
    made = {
        "Q": trained(base, bits),
        "D": distilled,
        "P": pruned_base,
        "DP": both,
        "DQ": trained(distilled, bits),
        "PQ": trained(pruned_base, bits, teacher=base),
        "DPQ": trained(both, bits),
    }
    return [({"methods": name}, recipe) for name, recipe in made.items()]


def headline(base: Recipe, model: str) -> list[Case]:
    """A student of the base, and what is made of it and of the base, with the base as the teacher to the end."""
    whole = {"student": student(base, model), "base": base}
    cases: list[Case] = [({"network": model, "sparsity": 0.0, "bits": 32}, whole["student"])]
    for network, sparsity, bits, pruning, rounding in HEADLINE:
        small = whole[network]
        if sparsity:
            small = pruned(small, "lookahead", sparsity, teacher=base, epochs=pruning)
        words = {"network": small.model, "sparsity": sparsity, "bits": bits}
        cases.append((words, trained(small, bits, teacher=base, epochs=rounding)))
    return cases


def orders(base: Recipe, model: str, bits: Bits = 8, sparsity: float = SPARSITY) -> list[Case]:
    """All orders that make sense: integers come last, and a student of a pruned teacher is pruned itself or not."""
    of_pruned = student(under_itself(base, "lookahead", sparsity), model)
    twice = pruned(of_pruned, "lookahead", sparsity)
    return [
        ({"order": "distil, prune, quantize"}, chains(base, model, bits, sparsity)[-1][1]),
        ({"order": "prune the teacher, distil, prune, quantize"}, trained(twice, bits)),
        ({"order": "prune the teacher, distil, quantize"}, trained(of_pruned, bits)),
    ]


def joint(base: Recipe, model: str, sparsity: float, bits: Bits, share: float = 1.0, **fields) -> Recipe:
    """One training with `share` of the epochs that distilling, pruning and quantizing in a row take together."""
    chain = chains(base, model, bits, sparsity)[-1][1]
    epochs = round(share * sum(step.epochs for step in chain.steps[len(base.steps) :]))
    return base.then(Joint(model, sparsity, bits, **student_training(base, model) | {"epochs": epochs} | fields))


def loss_and_size(table: pd.DataFrame, base: dict) -> pd.DataFrame:
    """Of each case the points of test accuracy it loses against the base, how much smaller and faster it is."""
    return pd.DataFrame(
        {
            "accuracy %": 100 * table["accuracy"],
            "interval": [
                f"{100 * low:.2f} - {100 * high:.2f}"
                for low, high in zip(table["accuracy_low"], table["accuracy_high"], strict=True)
            ],
            "points lost": 100 * (base["accuracy"] - table["accuracy"]),
            "weights not zero K": table["nonzero_parameters"] / 1e3,
            "archive KB": table["archive_bytes"] / 1e3,
            "x smaller": base["onnx_bytes"] / table["archive_bytes"],
            "x faster": base["latency_ms"]["batch1"]["median"] / table["latency_ms.batch1.median"],
            "training min": table["train_seconds"] / 60,
        }
    ).round(
        {
            "accuracy %": 2,
            "points lost": 2,
            "weights not zero K": 1,
            "archive KB": 1,
            "x smaller": 1,
            "x faster": 2,
            "training min": 1,
        }
    )


def smallest(
    base: Recipe, space: Mapping[str, Sequence], *, candidates: int, epochs: int, name: str = "joint"
) -> pd.DataFrame:
    """The search over Joint's fields (`model`, `width`, `sparsity`, `bits`), kept as a table: see `search`."""

    def rows() -> list[dict]:
        budget = candidates * epochs
        found = search(
            f"{name}-{base.id}-{epochs}", base.dataset, space, partial(_candidate, base), budget=budget, epochs=epochs
        )
        return found.to_dict("records")

    settings = hashlib.sha256(json.dumps(space, sort_keys=True).encode()).hexdigest()[:8]
    return kept_table(f"search-{name}-{base.id}-{candidates}x{epochs}-{settings}", base.dataset, rows)


def at_length(base: Recipe, found: pd.DataFrame, epochs: int) -> list[Case]:
    """The front of a search, each trained for so many epochs: short trainings chose, long ones are reported."""
    chosen = found[found["front"]].sort_values("archive_bytes")
    choices = chosen.drop(columns=["validation_accuracy", "archive_bytes", "front"]).to_dict("records")
    return [({k: v for k, v in row.items() if k != "model"}, _candidate(base, row, epochs)) for row in choices]


def _candidate(base: Recipe, choices: Mapping, epochs: int) -> Recipe:
    return base.then(Joint(**student_training(base, choices["model"]) | choices | {"epochs": epochs}))
