"""Compares our records with the published study's figures for the same method and kind of network.

Shettiwar and Shankar, "An Analysis of Compression Methods for Deep Learning Networks".
"""

from collections.abc import Iterable, Mapping, Sequence

import pandas as pd

from distillation import Ensemble
from experiment.store import ROOT
from pruning import Prune
from quantization import Quantize
from recipe import Step
from report.comparison import compared
from study.distillation import STUDENTS

CHAINS = {
    "DP": "distilled and pruned 77 %",
    "DQ": "distilled and quantized",
    "PQ": "pruned 77 % and quantized",
    "DPQ": "distilled and pruned 77 % and quantized",
}


def published_study() -> pd.DataFrame:
    """Return the published study's figures: technique, label, accuracy (%), size_mb, latency_ms, parameters_k.

    Shettiwar and Shankar, "An Analysis of Compression Methods for Deep Learning Networks", a course project.
    """
    return pd.read_csv(ROOT / "results" / "published_study.csv")


def beside_published(records: pd.DataFrame, labels: Iterable[str]) -> pd.DataFrame:
    """Compare each of our records with the figures that the published study reports under the same one of `labels`.

    Its parameters are the non-zero ones. Its sizes are those of files that it does not describe, or derived from the
    parameters. Columns without any reported figure are left out, and so are records whose label it does not have.
    """
    study = published_study().set_index("label")
    named = pd.Series(list(labels), index=records.index, dtype=object)
    known = named.isin(study.index)
    ours, reported = records[known].reset_index(drop=True), study.loc[named[known]].reset_index()
    pairs = {
        "accuracy %": (100 * ours["accuracy"], reported["accuracy"]),
        "parameters K": (ours["nonzero_parameters"] / 1e3, reported["parameters_k"]),
        "file MB": (ours["onnx_bytes"] / 1e6, reported["size_mb"]),
        "latency ms": (ours["latency_ms.batch1_one_thread.median"], reported["latency_ms"]),
    }
    table = pd.DataFrame({"recipe": ours["label"], "its name there": reported["label"]})
    for name, (own, other) in pairs.items():
        table[name], table[f"reported {name.rpartition(' ')[2]}"] = own, other.astype(float)
        if name == "file MB":
            table["archive MB"] = ours["archive_bytes"] / 1e6
    return table.dropna(axis="columns", how="all").round(3)


def beside_reported(table: pd.DataFrame, records: pd.DataFrame) -> pd.DataFrame:
    """Add the published study's accuracy (%) and size (MB) to a `summary` of records, as two columns."""
    study = published_study().set_index("label")
    first = compared(records).drop_duplicates("label").set_index("label", drop=False)
    labels = [reported_label(first.loc[recipe]) for recipe in table["recipe"]]
    found = study.reindex(labels)[["accuracy", "size_mb"]].reset_index(drop=True)
    columns = {"published %": found["accuracy"], "published MB": found["size_mb"]}
    return table.reset_index(drop=True).assign(**columns)


def reported_label(record: Mapping) -> str | None:
    """Return the published study's label for a record (with the columns of `compared`), or None if it has none."""
    kinds, model, steps = record["kinds"], record["model"], record["steps"]
    if isinstance(steps[0], Ensemble):
        members = steps[0].members
        alike = kinds == "E" and not steps[0].optimize_weights and all(as_the_study(own.steps) for own in members)
        names = [own.model for own in members]
        return "ensemble of 4 5 6" if alike and names == ["student_4", "student_5", "student_6"] else None
    if steps[0].network != ("resnet18", 1) or not as_the_study(steps):
        return None
    sparsity = next((step.sparsity for step in steps if isinstance(step, Prune)), None)
    last = steps[-1]
    eight_bits = isinstance(last, Quantize) and last.bits == 8
    if kinds == "D" and model in STUDENTS:
        return STUDENTS[model][0]
    if kinds in CHAINS and model == ("resnet18" if kinds == "PQ" else "student_3conv"):
        return CHAINS[kinds] if ("P" not in kinds or sparsity == 0.77) and (eight_bits or kinds == "DP") else None
    if model != "resnet18":
        return None
    if kinds == "P":
        return f"pruned {100 * sparsity:.0f} %" if sparsity is not None else None
    if kinds == "Q" and eight_bits:
        return "QAT INT8" if last.mode == "qat" else "static INT8"
    return "ResNet-18 teacher" if kinds == "" else None


def as_the_study(steps: Sequence[Step]) -> bool:
    """Return whether a chain's networks, loss and criteria are the published ones, as far as its recipe tells.

    Networks have their original width, students learn from the logits of one teacher with the usual alpha, and weights
    are pruned by magnitude or lookahead.
    """
    return not any(
        step.changed & {"width", "features", "alpha", "teachers"}
        or (isinstance(step, Prune) and step.criterion not in ("magnitude", "lookahead"))
        for step in steps
    )


def quantized_beside_published(records: pd.DataFrame) -> pd.DataFrame:
    """Compare records in floats and 8 bits (columns of `study.quantization.widths`) with the published study."""
    names = {"float": "FP32 baseline", "static": "static INT8", "trained": "QAT INT8"}
    rows = records[records["bits"].isin([32, 8])]
    return beside_published(rows, rows["how"].map(names))


def pruned_beside_published(records: pd.DataFrame) -> pd.DataFrame:
    """Compare records of pruned models (columns sparsity, and those of a record) with the published study."""
    return beside_published(records, [f"pruned {100 * value:.0f} %" for value in records["sparsity"]])


def students_beside_published(records: pd.DataFrame) -> pd.DataFrame:
    """Compare records of students (columns student, and those of a record) with the published study."""
    names = {"resnet18": "ResNet-18 teacher", "ensemble of 4 5 6": "ensemble of 4 5 6"}
    names |= {name: own for name, (own, _) in STUDENTS.items()}
    ours = records[records["student"].isin(names)].drop_duplicates("student")
    return beside_published(ours, ours["student"].map(names))
