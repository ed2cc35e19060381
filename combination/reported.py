"""The published study's figures beside ours, where it reports the same method on the same kind of network.

Shettiwar and Shankar, "An Analysis of Compression Methods for Deep Learning Networks".
"""

from collections.abc import Mapping, Sequence

import pandas as pd

from combination.comparison import compared
from distillation.study import STUDENTS
from experiment import published_study
from pruning import Prune

CHAINS = {
    "DP": "distilled and pruned 77 %",
    "DQ": "distilled and quantized",
    "PQ": "pruned 77 % and quantized",
    "DPQ": "distilled and pruned 77 % and quantized",
}


def beside_reported(table: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """A `summary` of records with two columns more: what the published study reports, accuracy in % and size in MB."""
    study = published_study().set_index("label")
    first = compared(records).drop_duplicates("label").set_index("label", drop=False)
    labels = [reported_label(first.loc[recipe]) for recipe in table["recipe"]]
    found = study.reindex(labels)[["accuracy", "size_mb"]].reset_index(drop=True)
    columns = {"published %": found["accuracy"], "published MB": found["size_mb"]}
    return table.reset_index(drop=True).assign(**columns)


def reported_label(record: Mapping) -> str | None:
    """The published study's row for a record (with the columns of `compared`), None where it has none."""
    kinds, model, steps = record["kinds"], record["model"], record["recipe.steps"]
    if kinds == "E":
        members = [member["steps"] for member in steps[0]["members"]]
        plain = steps[0].keys() == {"step", "members"} and all(map(as_the_study, members))
        names = [member[-1]["model"] for member in members]
        return "ensemble of 4 5 6" if plain and names == ["student_4", "student_5", "student_6"] else None
    if steps[0].get("model") != "resnet18" or not as_the_study(steps):
        return None
    sparsity = next((step.get("sparsity", Prune.sparsity) for step in steps if step["step"] == "Prune"), None)
    if kinds == "D" and model in STUDENTS:
        return STUDENTS[model][0]
    if kinds in CHAINS and model == ("resnet18" if kinds == "PQ" else "student_3conv"):
        return CHAINS[kinds] if ("P" not in kinds or sparsity == 0.77) and steps[-1].get("bits", 8) == 8 else None
    if model != "resnet18":
        return None
    if kinds == "P":
        return f"pruned {100 * sparsity:.0f} %" if sparsity is not None else None
    if kinds == "Q" and steps[-1].get("bits", 8) == 8:
        return "QAT INT8" if steps[-1].get("mode") == "qat" else "static INT8"
    return "ResNet-18 teacher" if kinds == "" else None


def as_the_study(steps: Sequence[Mapping]) -> bool:
    """Whether a chain's networks, loss and criteria are the published ones, as far as a recipe's JSON says it.

    No network is narrowed or widened, students learn from the answers of one teacher under the usual share of its
    loss, and weights go by magnitude or lookahead.
    """
    return not any(
        step.keys() & {"width", "features", "alpha", "teachers"}
        or (step["step"] == "Prune" and step.get("criterion", Prune.criterion) not in ("magnitude", "lookahead"))
        for step in steps
    )
