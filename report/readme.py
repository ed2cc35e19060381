"""Writes the README's results, from the records and results/onnx_files.csv: `python -m report.readme`."""

import re
from collections.abc import Iterable, Mapping

import pandas as pd

from combination.recommendation import candidates, pareto_front
from experiment import load_records
from experiment.behaviour import labels_of_test
from experiment.store import ROOT
from report.forgetting import in_words, little_changed, observed
from report.published import published_study
from report.tables import interval

DATASET = "cifar10"
FEWEST = 10  # little-changed models, for anything to be said of what compression forgets
HEAD = (
    "| CIFAR-10 | accuracy % (95 % interval) | points to ResNet-18 | seeds | archive KB | x smaller than ResNet-18 "
    "| ms, one thread |"
)
STUDY = ("ResNet-18 teacher", "QAT INT8", "ensemble of 4 5 6", "pruned 96 %", "distilled and pruned 77 % and quantized")


def results() -> str:
    """Return Markdown: the smallest models by points lost, and a table.

    The table has the FP32 bases, the records on the front of accuracy and bytes, and the published study's figures.
    """
    records = load_records(DATASET)
    if records.empty:
        return "No records yet.\n"
    study = published_study().set_index("label")
    whole = 1000 * study.loc["ResNet-18 teacher", "size_mb"]  # KB
    rows = candidates(records)  # one row per recipe, averaged over seeds
    base = rows.loc[rows["base_onnx_bytes"].idxmax()]
    label = records.set_index("id")["label"]
    base = rows[rows["label"] == label[base["base"]]].iloc[0]  # the ResNet-18; its seeds share a row
    lines = [smallest_within(records, base, (1, 2, 5)), "", HEAD, "|---|---|---|---|---|---|---|"]
    rows["seeds"] = rows["label"].map(records.groupby("label").size())
    bases = records.loc[records["id"] != records["base"], "base"]  # bases of at least one other record
    shown = pareto_front(rows, ("archive_bytes",)) | rows["label"].isin(label.reindex(bases))
    for row in rows[shown].sort_values("archive_bytes").to_dict("records"):
        kilobytes = row["archive_bytes"] / 1e3
        lines.append(
            f"| [{row['words']}](results/{DATASET}/{row['id']}.json) "
            f"| {100 * row['accuracy']:.2f} ({interval(row)}) | {100 * (row['accuracy'] - base['accuracy']):+.2f} "
            f"| {row['seeds']} | {kilobytes:.1f} "
            f"| {whole / kilobytes:.0f} | {row['latency_ms.batch1_one_thread.median']:.2f} |"
        )
    for label in STUDY:
        row = study.loc[label]
        smaller = whole / (1000 * row["size_mb"])
        lines.append(
            f"| *published study: {label}* | {row['accuracy']:.2f} "
            f"| {row['accuracy'] - study.loc['ResNet-18 teacher', 'accuracy']:+.2f} | 1 | {1000 * row['size_mb']:,.0f} "
            f"| {smaller:.0f} | |"
        )
    machines = {
        f"{cpu}, {cores} cores, {', '.join(instructions)}"
        for cpu, cores, instructions in records[["hardware.cpu", "hardware.cores", "hardware.instructions"]].to_numpy()
    }
    lines += ["", f"Latencies: batch 1, one thread, median, on {' or '.join(sorted(machines))}."]
    return "\n".join(lines) + "\n"


def points(lost: float) -> str:
    """Return a loss of accuracy in words: `1.10 points lost`, `0.20 points gained`."""
    return f"{abs(lost):.2f} points {'gained' if lost < 0 else 'lost'}"


def smallest_within(records: pd.DataFrame, base: Mapping, limits: Iterable[float] = (1, 2, 3, 5)) -> str:
    """Return Markdown: the smallest model, averaged over seeds, within each of `limits` points of its base.

    Models are selected by validation accuracy; the loss on the test images is shown as well.
    """
    rows = candidates(records)
    lost = 100 * (base["validation_accuracy"] - rows["validation_accuracy"])
    lines = []
    for limit in limits:
        within = rows[lost.round(6) <= limit]  # 93.7 - 91.7 is a bit more than 2 in floats
        start = f"- within {limit:g} point{'s' * (limit != 1)} on validation:"
        if within.empty:
            lines.append(f"{start} none")
            continue
        best = within.loc[within["archive_bytes"].idxmin()]
        seeds = records.loc[records["label"] == best["label"], "seed"].nunique()
        lines.append(
            f"{start} **{base['onnx_bytes'] / best['archive_bytes']:,.0f}x smaller**, "
            f"{best['archive_bytes'] / 1e3:.1f} KB ({best['words']}), "
            f"{points(100 * (base['accuracy'] - best['accuracy']))} on the test images, {seeds_in_words(seeds)}"
        )
    return f"The fewest bytes, by points of accuracy below the FP32 {base['model']}:\n\n" + "\n".join(lines)


def seeds_in_words(count: int) -> str:
    """Return `one seed` or `mean of 3 seeds`."""
    return "one seed" if count == 1 else f"mean of {count} seeds"


def onnx_files() -> str:
    """Return Markdown: the bytes of ONNX files that packages ship, by general compressors and by ours.

    The last two columns are of the integer tensors alone, by NNCodec and by ours: NNCodec does not keep floats.
    """
    table = pd.read_csv(ROOT / "results" / "onnx_files.csv").sort_values("bytes")
    lines = [
        "| file, of a package (licence) | KB | zstd -19 | xz -9 | `storage pack` | its integers by NNCodec | by ours |",
        "|---|---|---|---|---|---|---|",
    ]
    for row in table.to_dict("records"):
        columns = ["bytes", "zstd_bytes", "xz_bytes", "archive_bytes"]
        columns += [f"integer_tensor_{kind}_bytes" for kind in ("nncodec", "archive") if row["integer_tensor_bytes"]]
        sizes = [f"{row[column] / 1e3:,.1f}" for column in columns] + [""] * (6 - len(columns))
        name = f"{row['file'].rpartition('/')[2]}, {row['package']} {row['version']} ({row['licence']})"
        lines.append(f"| {name} | {' | '.join(sizes)} |")
    saved = 1 - table["archive_bytes"] / table[["xz_bytes", "zstd_bytes"]].min(axis=1)
    floats = table.filter(like="float_tensor").sum()
    share = {
        kind: f"{100 * floats[f'float_tensor_{kind}_bytes'] / floats['float_tensor_bytes']:.0f} %"
        for kind in ("nncodec", "archive")
    }
    lines += [
        "",
        f"Ours is {100 * saved.min():.0f} to {100 * saved.max():.0f} % smaller than the better of xz and zstd. NNCodec "
        "(ISO/IEC 15938-17) keeps integers exactly and rounds floats; given the bits of floats as integers, it takes "
        f"{share['nncodec']} of their bytes, and ours {share['archive']}.",
    ]
    return "\n".join(lines) + "\n"


def behaviour() -> str:
    """Return Markdown: what compression forgets, in three sentences and a chart; little until enough is measured."""
    records = load_records(DATASET)
    table = observed(records, DATASET) if len(records) else records
    if table.empty or len(little_changed(table)) < FEWEST:
        return f"Too few networks are measured yet: `python -m experiment behaviour {DATASET}` measures the others.\n"
    classes = list(table["class_accuracy"].iloc[0])
    lines = [f"- {sentence}" for sentence in in_words(table, labels_of_test(DATASET), classes)]
    lines += ["", f"![Accuracy on corrupted images](results/figures/robustness_{DATASET}.png)"]
    return "\n".join(lines) + "\n"


def written(readme: str) -> str:
    """Return the README with its tables and sentences replaced by those of the records and of the ONNX files."""
    for name, text in (("results", results()), ("behaviour", behaviour()), ("onnx files", onnx_files())):
        readme = _filled(readme, name, text)
    return readme


def _filled(readme: str, name: str, table: str) -> str:
    place = re.compile(rf"(<!-- {name}: .*? -->\n).*?(<!-- /{name} -->)", re.DOTALL)
    return place.sub(lambda match: match[1] + table + match[2], readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(written(path.read_text()))
