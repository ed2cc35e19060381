"""What compression forgets beyond accuracy: robustness, classes, single images and calibration, each with its test."""

from collections.abc import Iterator, Mapping
from itertools import combinations
from typing import Any

import numpy as np
import pandas as pd

from experiment.behaviour import with_behaviour
from experiment.chance import p_in_words
from measurement import mcnemar, paired_interval
from measurement.kept_answers import STRENGTHS, spaced
from measurement.paired import LEVEL
from report.comparison import compared

# The groups that are compared, by the letters of a record's methods; those of several methods are chains.
METHODS = {"": "uncompressed", "D": "distillation", "P": "pruning", "Q": "quantization"}
CHAIN = "chain of methods"
ALIKE = 0.5  # validation points within which two models count as equally accurate
NEAR = 2.0  # validation points below its base within which a model counts as little changed
SENTENCE = 3  # differences named in a sentence, the largest ones
DRAWS = 2000  # of the bootstrap of a calibration error


def observed(records: pd.DataFrame, dataset: str) -> pd.DataFrame:
    """Return the records whose behaviour, and that of their base, is measured, with these columns besides theirs.

    Those of `compared` and of `with_behaviour`; `method`, one of `METHODS` or `CHAIN`; and in comparison with the
    record's base, on the same test images: `forgotten` and `gained`, how many only the base and only the record answers
    right, with `p` of McNemar's test; `corrupted_points`, the difference of right answers to corrupted images in
    points, from `corrupted_low` to `corrupted_high`; `class_loss`, the points that the class with the greatest loss
    loses, and `lost_class`, its name. Ensembles and methods of your own are left out.
    """
    table = with_behaviour(compared(records), dataset)
    table = table[table["robustness"].notna()]
    table = table[table["base"].isin(table["id"])]
    methods = [method_of(kinds) for kinds in table["kinds"]]
    table = table.assign(method=methods)[[own is not None for own in methods]]
    bases = table.set_index("id")
    rows = [_beside_base(row, bases.loc[row["base"]]) for row in table.to_dict("records")]
    return pd.concat([table, pd.DataFrame(rows, table.index, columns=BESIDE)], axis="columns").reset_index(drop=True)


BESIDE = ["forgotten", "gained", "p", "corrupted_points", "corrupted_low", "corrupted_high", "class_loss", "lost_class"]


def method_of(kinds: str) -> str | None:
    """Return the group of a record with these letters of methods, None if it has none."""
    if kinds in METHODS:
        return METHODS[kinds]
    return CHAIN if set(kinds) <= {*"DPQJ"} else None


def _beside_base(row: Mapping[str, Any], base: Mapping[str, Any]) -> dict[str, Any]:
    ours, theirs = row["right"], base["right"]
    lost = {name: 100 * (base["class_accuracy"][name] - share) for name, share in row["class_accuracy"].items()}
    lost_class = max(lost, key=lambda name: lost[name])
    points, low, high = paired_interval(100 * (by_image(row) - by_image(base)))
    return {
        "forgotten": int((theirs & ~ours).sum()),
        "gained": int((ours & ~theirs).sum()),
        "p": mcnemar(ours, theirs),
        "corrupted_points": points,
        "corrupted_low": low,
        "corrupted_high": high,
        "class_loss": lost[lost_class],
        "lost_class": lost_class,
    }


def by_image(row: Mapping[str, Any]) -> np.ndarray:
    """Return, for each corrupted test image `[N]`, the share of its versions that a record answers right."""
    return row["right_corrupted"].mean((0, 1))


def beside_largest(table: pd.DataFrame, within: float) -> pd.DataFrame:
    """Compare models of `observed` with the largest uncompressed one of them, whose words are in `attrs["largest"]`.

    `points` of right answers to corrupted test images, from `low` to `high`, and `clean points` of test accuracy.
    Models that lose more than `within` validation points to it are left out.
    """
    bases = table[table["id"] == table["base"]]
    largest = bases.loc[bases["onnx_bytes"].idxmax()]
    lost = 100 * (largest["validation_accuracy"] - table["validation_accuracy"])
    table = table[lost.round(6) <= within]
    found = [paired_interval(100 * (by_image(row) - by_image(largest))) for row in table.to_dict("records")]
    figures = pd.DataFrame(found, table.index, columns=["points", "low", "high"])
    figures["clean points"] = 100 * (table["accuracy"] - largest["accuracy"])
    result = pd.concat([table, figures], axis="columns")
    result.attrs["largest"] = largest["words"]
    return result


def equally_accurate(table: pd.DataFrame) -> pd.DataFrame:
    """Compare every two methods by their equally accurate models, of `observed`: one row for each two that have some.

    All pairs of a model of each whose validation accuracies are at most `ALIKE` points apart count the same: `pairs`.
    `points` and `corrupted points` are the first method's right answers less the second's, on clean and on corrupted
    test images, averaged over the pairs. The interval is paired by image, and wide enough for as many comparisons as
    there are rows (Bonferroni): where it holds 0, no difference is shown. It does not cover the choice of models.
    """
    found = [(one, other, pairs) for one, other in _method_pairs(table) if (pairs := list(_pairs(table, one, other)))]
    rows = []
    for one, other, pairs in found:
        clean, corrupted = (
            100 * np.mean([figures(ours).astype(float) - figures(theirs) for ours, theirs in pairs], axis=0)
            for figures in (lambda row: row["right"], by_image)
        )
        points, low, high = paired_interval(corrupted, LEVEL / len(found))
        worse = one if high < 0 else other if low > 0 else SAME
        row = {"method": one, "other": other, "pairs": len(pairs), "points": clean.mean()}
        rows.append(row | {"corrupted points": points, "low": low, "high": high, "forgets more": worse})
    return pd.DataFrame(rows, columns=PAIRED)


SAME = "no difference shown"
PAIRED = ["method", "other", "pairs", "points", "corrupted points", "low", "high", "forgets more"]


def _method_pairs(table: pd.DataFrame) -> Iterator[tuple[str, str]]:
    return combinations([name for name in (*METHODS.values(), CHAIN) if name in set(table["method"])], 2)


def _pairs(table: pd.DataFrame, one: str, other: str) -> Iterator[tuple[Mapping, Mapping]]:
    ours, theirs = (table[table["method"] == name].to_dict("records") for name in (one, other))
    for first in ours:
        for second in theirs:
            apart = 100 * abs(first["validation_accuracy"] - second["validation_accuracy"])
            if round(apart, 6) <= ALIKE:
                yield first, second


def one_of_each(table: pd.DataFrame) -> pd.DataFrame:
    """Return one model per method, of `observed`, all as accurate as can be compared: nearest to one level.

    The level is the best validation accuracy of the method whose best is the lowest; of equally near models, the
    smallest archive.
    """
    methods = table[table["method"] != METHODS[""]]
    level = (methods if len(methods) else table).groupby("method")["validation_accuracy"].max().min()
    order = table.assign(apart=(table["validation_accuracy"] - level).abs().round(6))
    order = order.sort_values(["apart", "archive_bytes"]).drop_duplicates("method")
    names = [*METHODS.values(), CHAIN]
    return order.sort_values("method", key=lambda column: column.map(names.index)).drop(columns="apart")


def side_by_side(table: pd.DataFrame) -> pd.DataFrame:
    """Return the figures of each model of `observed`, in %, points and counts, beside its own base.

    `ECE` is the expected calibration error, with its 95 % interval of `ece_interval`, and `scaled` after temperature
    scaling.
    """
    rows = []
    for row in table.to_dict("records"):
        low, high = ece_interval(row["bins"])
        rows.append(
            {
                "method": row["method"],
                "model": row["words"],
                "archive KB": round(row["archive_bytes"] / 1e3, 1),
                "accuracy %": round(100 * row["accuracy"], 2),
                "forgotten": row["forgotten"],
                "gained": row["gained"],
                "McNemar": p_in_words(row["p"]) if row["id"] != row["base"] else "",
                "corrupted %": round(100 * row["robustness"], 1),
                "points to the base": _with_interval(row),
                "worst class": f"{row['worst_class']}, {100 * row['worst_class_accuracy']:.1f} %",
                "loses most": f"{row['lost_class']}, {row['class_loss']:.1f} points" if row["class_loss"] > 0 else "",
                "ECE %": f"{100 * row['ece']:.1f} ({100 * low:.1f} - {100 * high:.1f})",
                "scaled %": round(100 * row["ece_scaled"], 1),
                "NLL": round(row["nll"], 3),
                "NLL scaled": round(row["nll_scaled"], 3),
                "Brier": round(row["brier"], 3),
                "AUROC noise": round(row["auroc_noise"], 3),
                "AUROC SVHN": "not measured" if pd.isna(row["auroc_svhn"]) else f"{row['auroc_svhn']:.3f}",
            }
        )
    return pd.DataFrame(rows)


def _with_interval(row: Mapping[str, Any]) -> str:
    if row["id"] == row["base"]:
        return ""
    return f"{row['corrupted_points']:+.1f} ({row['corrupted_low']:+.1f} to {row['corrupted_high']:+.1f})"


def ece_interval(bins: Mapping[str, list], level: float = LEVEL) -> tuple[float, float]:
    """Return an interval of a calibration error: the right answers of each bin are drawn again, `DRAWS` times.

    Drawing adds its own error, so that a small calibration error lies near the lower end, or below it.
    """
    count, right, confidence = (np.array(bins[name]) for name in ("count", "right", "confidence"))
    drawn = np.random.default_rng(0).binomial(count, right / np.maximum(count, 1), (DRAWS, len(count)))
    errors = np.abs(drawn - count * confidence).sum(1) / count.sum()
    low, high = np.quantile(errors, [level / 2, 1 - level / 2])
    return float(low), float(high)


def by_corruption(table: pd.DataFrame) -> pd.DataFrame:
    """Return the points of accuracy that corruption costs each model of `observed`, on the same images, by its kind."""
    rows = {
        (row["method"], row["words"]): {
            kind: 100 * (np.mean(shares) - clean_of(row)) for kind, shares in row["by_corruption"].items()
        }
        for row in table.to_dict("records")
    }
    return pd.DataFrame(rows).T.rename_axis(["method", "model"])[list(STRENGTHS)].round(1).reset_index()


def clean_of(row: Mapping[str, Any]) -> float:
    """Return the accuracy (0..1) on those test images that are corrupted, before they are."""
    return float(row["right"][spaced(len(row["right"]), row["right_corrupted"].shape[2])].mean())


def class_losses(table: pd.DataFrame, labels: np.ndarray, classes: list[str]) -> pd.DataFrame:
    """Return what little-changed models of `observed` lose by method and class, beside their bases.

    These are models at most `NEAR` validation points below their base. `points`: of accuracy lost in that class, the
    mean over models; `beyond`: these less those of the other classes' images, with an interval over the images of both,
    wide enough for as many comparisons as there are classes. Where it holds 0, no difference is shown.

    labels: of the test images `[N]`.
    """
    rows = []
    for method, lost in _lost(table).items():
        for label, name in enumerate(classes):
            own, others = lost[labels == label], lost[labels != label]
            if not len(own):
                continue
            low, high = _welch(own, others, LEVEL / len(classes))
            row = {"method": method, "class": name, "points": own.mean(), "beyond": own.mean() - others.mean()}
            rows.append(row | {"low": low, "high": high})
    return pd.DataFrame(rows, columns=["method", "class", "points", "beyond", "low", "high"])


def little_changed(table: pd.DataFrame) -> pd.DataFrame:
    """Return the compressed models of `observed` that lose at most `NEAR` validation points to their base."""
    return table[(table["id"] != table["base"]) & (table["lost_on_validation"].round(6) <= NEAR)]


def _lost(table: pd.DataFrame) -> dict[str, np.ndarray]:
    """Return by method the points lost on each test image `[N]`, the mean over its little-changed models."""
    bases, near = table.set_index("id")["right"], little_changed(table)
    found = {}
    for method, rows in near.groupby("method", sort=False):
        lost = [100 * (bases[base].astype(float) - own) for base, own in zip(rows["base"], rows["right"], strict=True)]
        found[str(method)] = np.mean(lost, axis=0)
    return found


def _welch(one: np.ndarray, other: np.ndarray, level: float) -> tuple[float, float]:
    """Return the interval of the difference of two means, without assuming equal variances (Welch 1947)."""
    from scipy.stats import ttest_ind

    if len(one) < 2 or len(other) < 2 or one.std() + other.std() == 0:
        difference = float(one.mean() - other.mean()) if len(one) and len(other) else 0.0
        return (difference, difference) if one.std() + other.std() == 0 else (-np.inf, np.inf)
    interval = ttest_ind(one, other, equal_var=False).confidence_interval(1 - level)
    return float(interval.low), float(interval.high)


def forgotten_images(table: pd.DataFrame, count: int) -> pd.DataFrame:
    """Return the `count` test images that little-changed models forget most often: their base answers right, they not.

    Compression-identified exemplars (Hooker et al., "What Do Compressed Deep Neural Networks Forget?", 2019). `share`
    is that of the models, `by method` the same by method, and `answer` the number of the class that most of them give.
    Images that no model forgets are left out.
    """
    bases, near = table.set_index("id")["right"], little_changed(table)
    if near.empty:
        return pd.DataFrame(columns=["image", "share", "answer", "by method"])
    forgotten = np.array([bases[base] & ~own for base, own in zip(near["base"], near["right"], strict=True)])
    share = forgotten.mean(0)
    rows = []
    for image in np.argsort(-share, kind="stable")[:count]:
        if share[image] == 0:
            break
        wrong = [_answer(row, image) for row in near[~np.stack(near["right"].tolist())[:, image]].to_dict("records")]
        by_method = {
            str(method): forgotten[(near["method"] == method).to_numpy(), image].mean()
            for method in near["method"].unique()
        }
        answer = int(np.bincount(wrong).argmax())
        rows.append({"image": int(image), "share": share[image], "answer": answer, "by method": by_method})
    return pd.DataFrame(rows)


def _answer(row: Mapping[str, Any], image: int) -> int:
    """Return the class that a record answers for an image that it answers wrong."""
    return int(row["wrong"][int((~row["right"][:image]).sum())])


def shared_forgetting(table: pd.DataFrame) -> tuple[int, float]:
    """Return how many images at least half of the little-changed models forget, and how many would be by chance.

    By chance: if each model forgot as many images as it does, drawn at random from those that its base answers right.
    """
    bases, near = table.set_index("id")["right"], little_changed(table)
    chances, found = np.ones((table["right"].iloc[0].size, 1)), np.zeros(table["right"].iloc[0].size, int)
    for base, own in zip(near["base"], near["right"], strict=True):
        forgotten = bases[base] & ~own
        rate = bases[base] * forgotten.sum() / max(1, bases[base].sum())
        grown = np.pad(chances, ((0, 0), (0, 1)))
        grown[:, 1:] += chances * rate[:, None]
        grown[:, :-1] -= chances * rate[:, None]
        chances, found = grown, found + forgotten
    half = -(-len(near) // 2)
    return int((found >= max(1, half)).sum()), float(chances[:, max(1, half) :].sum())


def in_words(table: pd.DataFrame, labels: np.ndarray, classes: list[str]) -> list[str]:
    """Return what `observed` shows, as three sentences: equal accuracy, classes and images, calibration."""
    return [_methods_in_words(equally_accurate(table)), _classes_in_words(table, labels, classes), _belief(table)]


def _methods_in_words(pairs: pd.DataFrame) -> str:
    start = f"Between equally accurate models (at most {ALIKE:g} points apart on validation images), "
    shown = pairs[pairs["forgets more"] != SAME]
    if pairs.empty:
        return f"{start}nothing can be compared yet: no two methods have one each."
    if shown.empty:
        return f"{start}no method is shown to forget more on corrupted images than another."
    parts, order = [], shown["corrupted points"].abs().sort_values(ascending=False).index
    for row in shown.loc[order].head(SENTENCE).to_dict("records"):
        other = row["other"] if row["forgets more"] == row["method"] else row["method"]
        low, high = sorted((abs(row["low"]), abs(row["high"])))
        points = abs(row["corrupted points"])
        parts.append(f"{row['forgets more']} than {other}, by {points:.1f} points ({low:.1f} - {high:.1f})")
    more = f"; in {len(shown) - SENTENCE} other pairs of methods, one forgets more too" if len(shown) > SENTENCE else ""
    same = len(pairs) - len(shown)
    none = f"; in {same} pair{'s' * (same > 1)} of methods no difference is shown" if same else ""
    return f"{start}corrupted images are forgotten more by {'; by '.join(parts)}{more}{none}."


def _classes_in_words(table: pd.DataFrame, labels: np.ndarray, classes: list[str]) -> str:
    near = little_changed(table)
    if near.empty:
        return f"No compressed model is within {NEAR:g} points of its base, so no class can be said to suffer."
    bases = table[table["id"] == table["base"]]
    whole = pd.concat([near.assign(method="all"), bases])  # the models of every method together
    losses = class_losses(whole, labels, classes)
    most = losses.loc[losses["beyond"].idxmax()]
    overall = np.mean(_lost(whole)["all"])
    shown = most["low"] > 0
    found, chance = shared_forgetting(table)
    same = (
        f"; half of the models forget the same {found:,} test images, where chance would have {chance:.1f}"
        if len(near) > 2
        else ""
    )
    return (
        f"Of {len(near)} models at most {NEAR:g} points below their bases, {most['class']} suffers most: "
        f"{most['points']:.1f} points, where all classes together lose {overall:.1f}"
        f"{'' if shown else ', which may be chance'}{same}."
    )


def _belief(table: pd.DataFrame) -> str:
    near = little_changed(table)
    if near.empty:
        return "Nothing can be said about calibration yet."
    of_bases = table.set_index("id").loc[near["base"], "ece"].to_numpy()
    lows, highs = np.array([ece_interval(bins) for bins in near["bins"]]).T
    worse, better = (lows > of_bases).sum(), (highs < of_bases).sum()
    before, after = (100 * near[column] for column in ("ece", "ece_scaled"))
    return (
        f"Their probabilities are further off than their base's in {worse} of these {len(near)} models and nearer in "
        f"{better} (expected calibration error {before.median():.1f} % in the median, from {before.min():.1f} to "
        f"{before.max():.1f}); one temperature, fitted on validation images, leaves {after.median():.1f} %, at most "
        f"{after.max():.1f}."
    )
