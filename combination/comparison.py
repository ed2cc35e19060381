"""The records beside their FP32 bases: what each lost, how much smaller it became, and words for both."""

from collections.abc import Iterable, Mapping

import pandas as pd

from combination.recommendation import candidates, pareto_front
from experiment import percent, seeds_in_words
from recipe import steps_of

UNITS = {
    "archive_bytes": (1e3, "KB"),
    "latency_ms.batch1_one_thread.median": (1.0, "ms at batch 1 on one thread"),
    "macs": (1e6, "million multiply-accumulates"),
}


def compared(records: pd.DataFrame) -> pd.DataFrame:
    """The records beside their FP32 bases, with these columns more.

    `lost` and `lost_on_validation`: points of accuracy below the base, on the test images and on those that choose;
    `smaller`: the base's FP32 file over the archive; `macs_left`: the share of the base's multiply-accumulates;
    `training`: what its last training computed, in epochs of the base (its epochs times its own multiply-accumulates
    over the base's; 0 without training); `of_largest`: whether the base is the largest FP32 network there is;
    `lost_to_largest` (on the images that choose) and `smaller_than_largest`: against that one; `steps` of the recipe;
    `density`: share of the weights that are not zero.
    """
    table = records.copy()
    bases = table.set_index("id").reindex(table["base"]).set_axis(table.index)
    table["lost"] = 100 * (bases["accuracy"] - table["accuracy"])
    table["lost_on_validation"] = 100 * (bases["validation_accuracy"] - table["validation_accuracy"])
    table["smaller"] = table["base_onnx_bytes"] / table["archive_bytes"]
    table["macs_left"] = table["macs"] / bases["macs"]
    epochs = [len(curves) if isinstance(curves, list) else 0 for curves in table["curves"]]
    table["training"] = epochs * table["macs_left"]  # seconds would tell as much of what else ran on the machine
    table["of_largest"] = False
    own = table[table["id"] == table["base"]]
    if not own.empty:
        alike = own.loc[own["onnx_bytes"] == own["onnx_bytes"].max(), "label"]
        most_used = bases.loc[bases["label"].isin(alike), "label"].mode()[0]  # of several trainings
        largest = own[own["label"] == most_used]  # its seeds
        table["of_largest"] = table["base"].isin(largest["id"])
        table["lost_to_largest"] = 100 * (largest["validation_accuracy"].mean() - table["validation_accuracy"])
        table["smaller_than_largest"] = largest["onnx_bytes"].mean() / table["archive_bytes"]
    table["steps"] = [steps_of(record) for record in table.to_dict("records")]
    table["density"] = table["nonzero_parameters"] / table["parameters"]
    return table


def points(lost: float) -> str:
    """Points of accuracy lost, in words: `1.10 points lost`, or `0.20 points gained`."""
    return f"{abs(lost):.2f} points {'gained' if lost < 0 else 'lost'}"


def smallest_within(records: pd.DataFrame, base: Mapping, limits: Iterable[float] = (1, 2, 3, 5)) -> str:
    """Markdown: of models of one base, seeds averaged, the fewest bytes within so many points of it.

    The images that choose say what is within; what it lost on the test images stands beside it.
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


def front_in_words(records: pd.DataFrame, column: str) -> str:
    """What `pareto_chart` shows of records against `column`: from where to where the front by validation goes."""
    unit, name = UNITS[column]
    front = records[pareto_front(records, (column,))].sort_values(column)
    cheapest, best = (
        f"**{row['words']}**, {row[column] / unit:,.2f} {name} and {percent(row)}"
        for _, row in front.iloc[[0, -1]].iterrows()
    )
    if len(front) == 1:
        return f"Of {len(records)} records one beats all others on validation: {cheapest}."
    return f"{len(front)} of {len(records)} records are on the front by validation, from {cheapest}, to {best}."
