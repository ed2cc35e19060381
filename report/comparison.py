"""Tables that compare records with their FP32 bases and with each other: accuracy, size and time."""

from collections.abc import Iterable, Mapping

import pandas as pd

from combination.recommendation import pareto_front
from experiment.chance import difference, near_best
from recipe import steps_of
from report.tables import interval
from study.one_training import AT_ONCE

COSTS = {
    "archive_bytes": ("archive KB", 1e3),
    "latency_ms.batch1_one_thread.median": ("ms at batch 1 on one thread", 1.0),
    "macs": ("million MACs", 1e6),
}
NEAR_BEST = "within chance of the best"  # the 95 % intervals overlap


def compared(records: pd.DataFrame) -> pd.DataFrame:
    """Compare the records with their FP32 bases; return them with these additional columns.

    `lost`, `lost_on_validation`: percentage points of accuracy below the base, on test and on validation images.
    `smaller`: size of the base's FP32 file over that of the archive.
    `macs_left`: share of the base's multiply-accumulates.
    `training`: compute of the last training, in epochs of the base: its epochs times `macs_left`; 0 without training.
    `of_largest`: whether the base is the largest FP32 network in the table.
    `lost_to_largest` (validation images), `smaller_than_largest`: compared with that network.
    `steps`: the steps of the recipe.
    `density`: share of non-zero weights.
    """
    table = records.copy()
    bases = table.set_index("id").reindex(table["base"]).set_axis(table.index)
    table["lost"] = 100 * (bases["accuracy"] - table["accuracy"])
    table["lost_on_validation"] = 100 * (bases["validation_accuracy"] - table["validation_accuracy"])
    table["smaller"] = table["base_onnx_bytes"] / table["archive_bytes"]
    table["macs_left"] = table["macs"] / bases["macs"]
    epochs = [len(curves) if isinstance(curves, list) else 0 for curves in table["curves"]]
    table["training"] = epochs * table["macs_left"]  # not seconds, which depend on what else ran on the machine
    table["of_largest"] = False
    own = table[table["id"] == table["base"]]
    if not own.empty:
        same_size = own.loc[own["onnx_bytes"] == own["onnx_bytes"].max(), "label"]
        most_used = bases.loc[bases["label"].isin(same_size), "label"].mode()[0]  # if it was trained in several ways
        largest = own[own["label"] == most_used]  # its seeds
        table["of_largest"] = table["base"].isin(largest["id"])
        table["lost_to_largest"] = 100 * (largest["validation_accuracy"].mean() - table["validation_accuracy"])
        table["smaller_than_largest"] = largest["onnx_bytes"].mean() / table["archive_bytes"]
    table["steps"] = [steps_of(record) for record in table.to_dict("records")]
    table["density"] = table["nonzero_parameters"] / table["parameters"]
    return table


def beside(records: pd.DataFrame, reference: Mapping, *words: str) -> pd.DataFrame:
    """Compare each record with one of them: columns `words`, test accuracy (%), and the difference in points.

    `test`: McNemar's exact one of equal accuracy, or whether the intervals overlap: see `experiment.chance.difference`.
    """
    figures = {
        "accuracy %": 100 * records["accuracy"],
        "interval": records.apply(interval, axis="columns"),
        "points": 100 * (records["accuracy"] - reference["accuracy"]),
        "test": [difference(record, reference) for record in records.to_dict("records")],
    }
    return pd.concat([records[list(words)], pd.DataFrame(figures)], axis="columns").round(2)


def pairs(records: pd.DataFrame, name: str, kind: str, one: str, other: str) -> pd.DataFrame:
    """Compare, for each `name` with records of both kinds, their test accuracies (%), with the difference in points.

    `test` as in `beside`.
    """
    ours, others = (records[records[kind] == own].drop_duplicates(name).set_index(name) for own in (one, other))
    names = [own for own in ours.index if own in others.index]
    rows = [beside(ours.loc[[own]], others.loc[own]).iloc[0] for own in names]
    table = pd.DataFrame(rows, index=pd.Index(names, name=name)).rename(columns={"accuracy %": f"{one} %"})
    table.insert(0, f"{other} %", (100 * others.loc[names, "accuracy"]).round(2))
    return table.reset_index()


def by_sparsity(records: pd.DataFrame) -> pd.DataFrame:
    """Return one row per sparsity and criterion of pruned records, averaged over seeds: test accuracy, size and speed.

    The best of each sparsity is the one with the highest accuracy. The interval is that of a single seed.
    """
    images = int(records["test_images"].iloc[0])
    figures = pd.DataFrame(
        {
            "accuracy %": 100 * records["accuracy"],
            "accuracy_low": records["accuracy_low"],
            "accuracy_high": records["accuracy_high"],
            "weights not zero K": records["nonzero_parameters"] / 1e3,
            "archive KB": records["archive_bytes"] / 1e3,
            "x smaller": records["base_onnx_bytes"] / records["archive_bytes"],
            "x faster": records["latency_ms.batch1_one_thread.speedup"],
        }
    )
    seeds = figures.groupby([records["sparsity"], records["criterion"]], sort=False)
    table = seeds.mean()
    own = table.groupby(level="sparsity", sort=False)["accuracy %"]
    table.insert(1, "interval", table.apply(interval, axis="columns"))
    table.insert(2, "points to the best", table["accuracy %"] - own.transform("max"))
    table.insert(3, NEAR_BEST, own.transform(lambda values: near_best(values / 100, images)).astype(bool))
    table.insert(0, "seeds", seeds.size())
    return table.drop(columns=["accuracy_low", "accuracy_high"]).round(2).sort_index(level="sparsity").reset_index()


def chosen_on_validation(table: pd.DataFrame, images: int) -> pd.DataFrame:
    """Replace `validation_accuracy` (0..1), measured on `images` images, by % and whether it is near the best.

    Near the best means that the 95 % intervals overlap.
    """
    near = near_best(table["validation_accuracy"], images)
    return table.drop(columns="validation_accuracy").assign(
        **{"validation %": (100 * table["validation_accuracy"]).round(2), NEAR_BEST: near}
    )


def beside_the_chain(table: pd.DataFrame) -> pd.DataFrame:
    """Compare each single training of `at_once_or_in_a_row` with the chains of its seeds: points, and share of time.

    `points` are the mean over seeds; if there are several, they are listed too. `test` is that of the first seed. Seeds
    without a chain, whose training may have diverged, are left out.
    """
    together = table["how"] == AT_ONCE
    chains = table[~together].set_index("seed")
    together &= table["seed"].isin(chains.index)
    words, rows = ["epochs", "prunes from", "rounds from"], []
    for key, once in table[together].groupby(words, sort=False):
        chain = chains.loc[once["seed"]]
        apart = 100 * (once["accuracy"].to_numpy() - chain["accuracy"])
        row = dict(zip(words, key, strict=True)) | {"points to the chain": round(apart.mean(), 2)}
        if len(chains) > 1:
            row["points by seed"] = ", ".join(f"{seed}: {value:+.2f}" for seed, value in apart.items())
        row["test"] = difference(once.iloc[0], chain.iloc[0])
        row["% of its time"] = round(100 * (once["seconds"].to_numpy() / chain["seconds"]).mean())
        rows.append(row)
    return pd.DataFrame(rows)


def ends_of_fronts(records: pd.DataFrame) -> pd.DataFrame:
    """Return the cheapest and the most accurate record on the front of validation accuracy against each of `COSTS`.

    `front`: how many records are on the front.
    """
    rows = []
    for column, (name, unit) in COSTS.items():
        front = records[pareto_front(records, (column,))].sort_values(column)
        for end, row in zip(("cheapest", "most accurate"), front.iloc[[0, -1]].to_dict("records"), strict=True):
            figures = {"cost": row[column] / unit, "accuracy %": 100 * row["accuracy"], "interval": interval(row)}
            rows.append({"front": f"{len(front)} of {len(records)}", "against": name, "end": end} | figures)
            rows[-1] |= {"model": row["words"]}
    return pd.DataFrame(rows).round(3)


def loss_and_size(table: pd.DataFrame, bases: Iterable[dict], *words: str) -> pd.DataFrame:
    """Return one row per recipe, averaged over seeds: columns `words`, accuracy, distance to the base, size and time.

    Each record is compared with its base among `bases`, of the same seed. With several seeds, `spread` is the standard
    deviation of their accuracies; the interval is that of a single seed. The training time, in minutes or seconds, is
    the table's `seconds` if it has them, else that of the trainings after the base.
    """
    base = pd.json_normalize(list(bases)).set_index("id").loc[table["base"]].set_axis(table.index)
    # A base that is named as teacher is not counted in the record's training time.
    after = pd.Series([steps_of(record)[0].base is None for record in table.to_dict("records")], table.index)
    seconds = table.get("seconds", table["train_seconds"] - base["train_seconds"].where(after, 0))
    unit, name = (60, "min") if seconds.max() >= 600 else (1, "s")
    figures = pd.DataFrame(
        {
            "accuracy %": 100 * table["accuracy"],
            "accuracy_low": table["accuracy_low"],
            "accuracy_high": table["accuracy_high"],
            "points to the base": 100 * (table["accuracy"] - base["accuracy"]),
            "zeros %": 100 * (1 - table["nonzero_parameters"] / table["parameters"]),
            "weights not zero K": table["nonzero_parameters"] / 1e3,
            "archive KB": table["archive_bytes"] / 1e3,
            "x smaller": base["onnx_bytes"] / table["archive_bytes"],
            "x faster": table["latency_ms.batch1_one_thread.speedup"],
            f"training {name}": seconds / unit,
        }
    )
    keys = list(dict.fromkeys([*words, "label"]))  # labels omit bits by layer, for instance
    by_recipe = figures.groupby([table[key] for key in keys], sort=False, dropna=False)
    means = by_recipe.mean()
    means.insert(1, "interval", means.apply(interval, axis="columns"))
    means = means.drop(columns=["accuracy_low", "accuracy_high"])
    if len(table) > len(means):
        means.insert(2, "seeds", by_recipe.size())
        means.insert(3, "spread", by_recipe["accuracy %"].std())
    means = means.round(2).round(
        {"zeros %": 1, "weights not zero K": 1, "archive KB": 1, "x smaller": 1, f"training {name}": 1}
    )
    return means.reset_index()[[*words, *means.columns]]


def by_width(table: pd.DataFrame) -> pd.DataFrame:
    """Return one row per network and bits from records of `widths`: test accuracy (%), points to float, archive."""
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
