"""The records beside their FP32 bases: what each lost, how much smaller it became, and words for both."""

from collections.abc import Iterable, Mapping

import pandas as pd

from combination.recommendation import candidates, pareto_front
from recipe import steps_of
from report.tables import interval, percent, seeds_in_words

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


def loss_and_size(table: pd.DataFrame, bases: Iterable[dict], *words: str) -> pd.DataFrame:
    """A row a recipe, its seeds averaged: columns `words` of the table, test accuracy and its distance to the base.

    Each record is compared with the one of `bases` that it started from, of the same seed. `spread`, where there are
    several seeds, is the standard deviation of the accuracy over them; the interval is that of one. Trainings are
    those after the base (or `seconds`, where the table has them), in seconds where all are short.
    """
    base = pd.json_normalize(list(bases)).set_index("id").loc[table["base"]].set_axis(table.index)
    # Where it is a teacher, its training is not counted.
    after = pd.Series([steps_of(record)[0].base is None for record in table.to_dict("records")], table.index)
    seconds = table.get("seconds", table["train_seconds"] - base["train_seconds"].where(after, 0))
    unit, name = (60, "min") if seconds.max() >= 600 else (1, "s")
    figures = pd.DataFrame(
        {
            "accuracy %": 100 * table["accuracy"],
            "accuracy_low": table["accuracy_low"],
            "accuracy_high": table["accuracy_high"],
            "points to the base": 100 * (table["accuracy"] - base["accuracy"]),
            "weights not zero K": table["nonzero_parameters"] / 1e3,
            "archive KB": table["archive_bytes"] / 1e3,
            "x smaller": base["onnx_bytes"] / table["archive_bytes"],
            "x faster": table["latency_ms.batch1_one_thread.speedup"],
            f"training {name}": seconds / unit,
        }
    )
    keys = list(dict.fromkeys([*words, "label"]))  # bits by layer, for instance, are in no label
    by_recipe = figures.groupby([table[key] for key in keys], sort=False, dropna=False)
    means = by_recipe.mean()
    means.insert(1, "interval", means.apply(interval, axis="columns"))
    means = means.drop(columns=["accuracy_low", "accuracy_high"])
    if len(table) > len(means):
        means.insert(2, "seeds", by_recipe.size())
        means.insert(3, "spread", by_recipe["accuracy %"].std())
    means = means.round(2).round({"weights not zero K": 1, "archive KB": 1, "x smaller": 1, f"training {name}": 1})
    return means.reset_index()[[*words, *means.columns]]


def by_width(table: pd.DataFrame) -> pd.DataFrame:
    """A row a network and width from records of `widths`: test accuracy (%), points to the float one, archive."""
    rows = []
    for (model, bits), group in table[table["how"] != "float"].groupby(["model", "bits"], sort=False):
        float_accuracy = 100 * table.loc[(table["model"] == model) & (table["how"] == "float"), "accuracy"].mean()
        mean = group.groupby("how")[["accuracy", "archive_bytes"]].mean().reindex(["static", "trained"])
        rounded, trained = 100 * mean["accuracy"][["static", "trained"]]
        rows.append(
            {
                "model": model,
                "bits": bits,
                "rounded only %": rounded,
                "points": rounded - float_accuracy,
                "trained %": trained,
                "points, trained": trained - float_accuracy,
                "archive KB": mean["archive_bytes"]["trained"] / 1e3,
                "x smaller": group["base_onnx_bytes"].iloc[0] / mean["archive_bytes"]["trained"],
            }
        )
    return pd.DataFrame(rows).round(2)
