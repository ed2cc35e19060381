"""What tables say, in words."""

from collections import Counter
from collections.abc import Iterable, Mapping

import pandas as pd

from experiment.chance import alike, best_and_alike, overlap
from recipe import Recipe, training_of
from report.tables import percent, seeds_in_words
from study.one_training import AT_ONCE


def sentence(group: pd.DataFrame) -> str:
    """What static INT8 costs and buys a model: `group` holds the records of its FP32 and static INT8 versions."""
    by_seed = group.pivot(index="seed", columns="kinds", values="accuracy")
    change = 100 * (by_seed["Q"] - by_seed[""]).mean()
    integer = group[group["kinds"] == "Q"]
    first = integer.iloc[0]
    speedup, over_eager = (
        {batch: integer[f"latency_ms.{batch}_one_thread.{ratio}"].median() for batch in ("batch1", "batch64")}
        for ratio in ("speedup", "speedup_over_eager")
    )
    return (
        f"- **{first['model']}**: static INT8 changes accuracy by {change:+.2f} points "
        f"({seeds_in_words(len(by_seed))}); the file is "
        f"{100 * first['onnx_bytes'] / first['base_onnx_bytes']:.1f} % of the FP32 one; "
        f"{first['operators.integer_convolutions']} of {first['operators.convolutions']} convolutions and "
        f"{first['operators.integer_additions']} of {first['operators.additions']} additions run on integers; "
        f"on one thread, at batch 1 it is {speedup['batch1']:.2f}x as fast as FP32 in ONNX Runtime and "
        f"{over_eager['batch1']:.1f}x as fast as eager PyTorch, at batch 64 "
        f"{speedup['batch64']:.2f}x and {over_eager['batch64']:.1f}x."
    )


def mixed_in_words(layer_bits: Iterable[tuple[str, int]], mixed: Mapping, uniform: Mapping, images: int) -> str:
    """How many layers have which bits, and what that changes: `mixed` beside the record of one width everywhere.

    Choices are made on so many validation images.
    """
    counts = Counter(bits for _, bits in layer_bits)
    chosen = ", ".join(f"{n} layer{'s' * (n > 1)} at {bits} bits" for bits, n in sorted(counts.items()))
    accuracies = mixed["validation_accuracy"], uniform["validation_accuracy"]
    overlap = "the 95 % intervals overlap" if alike(*accuracies, images) else "the 95 % intervals do not overlap"
    return (
        f"Chosen: {chosen}. Beside one width everywhere that changes validation accuracy by "
        f"{100 * (accuracies[0] - accuracies[1]):+.2f} points ({overlap}), and the archive's bytes by "
        f"{100 * (mixed['archive_bytes'] / uniform['archive_bytes'] - 1):+.1f} %."
    )


def best_by_sparsity(records: pd.DataFrame) -> str:
    """A line a sparsity: the criterion with the highest test accuracy, and those that chance may have set below it.

    `records`: columns criterion, sparsity and those of a record. Seeds are averaged, the interval is that of one.
    """
    images = int(records["test_images"].iloc[0])
    means = records.pivot_table(index="sparsity", columns="criterion", values="accuracy", sort=False)
    return "\n".join(f"- {value:.0%} pruned: {best_and_alike(row, images)}" for value, row in means.iterrows())


def on_rewinding(base: Recipe, epochs: int) -> str:
    """Whether `ways` at so many epochs are fair to rewinding, which learns anew what took the base all its epochs."""
    whole = training_of(base.steps[0]).epochs
    if epochs >= whole:
        return f"Rewound weights were trained for as long as the base was, {whole} epochs."
    few = "one epoch" if epochs == 1 else f"{epochs} epochs"
    return f"Rewinding cannot show its strength in {few}: what the base learnt in {whole} has to be learnt anew."


def beside_ensemble(compared: pd.DataFrame) -> str:
    """Markdown: the ensemble, and beside it each other network of `compared`, the records of `against_ensembles`.

    Latencies are compared through the base, with which each was timed by turns.
    """
    place = (compared["kind"] == "ensemble").idxmax()
    compared = compared.assign(slowness=1 / compared["latency_ms.batch1_one_thread.speedup"])
    whole = compared.loc[place]
    shares = {"file": "onnx_bytes", "MACs": "macs", "latency": "slowness"}
    lines = [
        f"The {whole['student']} has {percent(whole)} in {whole['onnx_bytes'] / 1e3:,.0f} KB, at "
        f"{whole['macs'] / 1e6:,.2f} million MACs and {whole['latency_ms.batch1_one_thread.median']:.3f} ms. "
        "Beside it, latencies through the base timed by turns:\n"
    ]
    for _, row in compared.drop(index=place).iterrows():
        beside = ", ".join(f"{row[column] / whole[column]:.2f} of its {word}" for word, column in shares.items())
        lines.append(f"- {row['student']} ({row['kind']}): {percent(row)}, {overlap(row, whole)}; {beside}")
    return "\n".join(lines)


def beside_the_chain(table: pd.DataFrame) -> str:
    """Markdown: each training of `at_once_or_in_a_row` beside the chain of its seed; means over seeds."""
    together = table["how"] == AT_ONCE
    chains = table[~together].set_index("seed")
    lines = []
    together &= table["seed"].isin(chains.index)  # the chain of another may have diverged
    for words, once in table[together].groupby(["epochs", "prunes from", "rounds from"], sort=False):
        chain = chains.loc[once["seed"]]
        apart = 100 * (once["accuracy"].to_numpy() - chain["accuracy"])
        time = (once["seconds"].to_numpy() / chain["seconds"]).mean()
        chance = overlap(once.iloc[0], chain.iloc[0])
        if len(once) > 1:
            chance = f"{', '.join(f'{value:+.2f}' for value in apart)} of the seeds {', '.join(map(str, apart.index))}"
        lines.append(
            f"- {words[0]} of its epochs, pruning from {words[1]} of them on and rounding from {words[2]}: "
            f"{apart.mean():+.2f} points in {time:.0%} of its time; {chance}"
        )
    return "Beside the chain, one training:\n\n" + "\n".join(lines)


def changed_errors(confusion: pd.DataFrame, one: str, other: str) -> str:
    """How often each of two models in a table of `confusions` is wrong, and where the other gains and loses most."""
    wrong = confusion[confusion["actual"] != confusion["answer"]]
    errors = wrong.pivot(index=["actual", "answer"], columns="model", values="images")
    text = f"{one} is wrong on {_images(errors[one].sum())}, {other} on {_images(errors[other].sum())}."
    fewer = errors[one] - errors[other]
    for word, name, change in (("gain", "fewer", fewer), ("loss", "more", -fewer)):
        if change.max() > 0:
            (actual, answer), *alike = change.index[change == change.max()]
            pairs = f" (and {len(alike)} other pair{'s' * (len(alike) > 1)} alike)" if alike else ""
            text += f" Its largest {word}: {actual} taken for {answer} on {_images(change.max(), name)}{pairs}."
    return text


def _images(count: int, which: str = "") -> str:
    return f"{count} {which}{' ' * bool(which)}image{'' if count == 1 else 's'}"
