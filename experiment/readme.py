"""The README's result table, from the records: `python -m experiment.readme` writes it."""

import re

from experiment.records import ROOT, load_records
from experiment.study import published_study, summary

DATASET = "cifar10"
PLACE = re.compile(r"(<!-- results: .*? -->\n).*?(<!-- /results -->)", re.DOTALL)


def table() -> str:
    """Markdown: our CIFAR-10 records, and the published study's quantization figures under them."""
    records = load_records(DATASET)
    if records.empty:
        return "No records yet.\n"
    lines = [
        "| CIFAR-10 | accuracy % (95 % interval) | seeds | file MB | archive KB | x smaller than its base's file "
        "| latency ms | x faster than its FP32 base |"
    ]
    lines.append("|---|---|---|---|---|---|---|---|")
    for row in summary(records).to_dict("records"):
        lines.append(
            f"| {row['recipe']} | {row['accuracy %']:.2f} ({row['interval']}) | {row['seeds']} "
            f"| {row['size MB']:.3f} | {row['archive KB']:.1f} | {row['x smaller as archive']:.1f} "
            f"| {row['latency ms']:.2f} | {row['x faster']:.2f} |"
        )
    study = published_study().query("technique == 'quantization'")
    for row in study.itertuples():
        speedup = study["latency_ms"].iloc[0] / row.latency_ms
        lines.append(
            f"| *published study: {row.label}* | {row.accuracy:.2f} | 1 | {row.size_mb:.1f} "
            f"| | | {row.latency_ms:.2f} | {speedup:.2f} |"
        )
    first = records.iloc[0]
    machine = f"{first['hardware.cpu']}, {first['hardware.cores']} cores, {', '.join(first['hardware.instructions'])}"
    lines += ["", f"Our latencies: batch 1, all threads, median, on {machine}."]
    return "\n".join(lines) + "\n"


def written(readme: str) -> str:
    """The README with its table replaced by that of the records."""
    return PLACE.sub(lambda match: match[1] + table() + match[2], readme)


if __name__ == "__main__":
    path = ROOT / "README.md"
    path.write_text(written(path.read_text()))
