"""The published study's twelve takeaways, each answered anew from the records."""

from collections.abc import Callable

import pandas as pd

CLOSE = 1.0  # points: what "keeps the accuracy" means here
METHODS = {"quantization": "Q", "pruning": "P", "distillation": "D"}
LETTERS = {"Quantize": "Q", "Prune": "P", "Distill": "D", "Ensemble": "E", "Joint": "J"}


class NotMeasured(Exception):
    """The records that an answer needs are not there yet."""


def takeaways(records: pd.DataFrame) -> pd.DataFrame:
    """A row a takeaway: its subject, what the study found, and what the records say (or that they do not yet)."""
    table = compared(records)
    rows = []
    for number, (subject, found, answer) in enumerate(TAKEAWAYS, start=1):
        try:
            ours = answer(table)
        except NotMeasured as error:
            ours = f"Not measured yet: {error}."
        rows.append({"": number, "takeaway": subject, "the study": found, "here": ours})
    return pd.DataFrame(rows).set_index("")


def compared(records: pd.DataFrame) -> pd.DataFrame:
    """The records beside their FP32 bases, with seven columns more.

    `lost` and `lost_on_validation`: points of accuracy below the base, on the test images and on those that choose;
    `smaller`: the base's FP32 file over the archive; `lost_to_largest` (on the images that choose) and
    `smaller_than_largest`: the same against the largest FP32 network there is; `kinds`: letters
    of the methods in order of use (D distil, P prune, Q quantize, E ensemble, J joint; empty for the base itself);
    `density`: share of the weights that are not zero.
    """
    table = records.copy()
    by_id = table.set_index("id")
    for name, column in (("lost", "accuracy"), ("lost_on_validation", "validation_accuracy")):
        table[name] = 100 * (table["base"].map(by_id[column]) - table[column])
    table["smaller"] = table["base_onnx_bytes"] / table["archive_bytes"]
    bases = table[table["id"] == table["base"]]
    if not bases.empty:
        largest = bases.loc[bases["onnx_bytes"].idxmax()]
        table["lost_to_largest"] = 100 * (largest["validation_accuracy"] - table["validation_accuracy"])
        table["smaller_than_largest"] = largest["onnx_bytes"] / table["archive_bytes"]
    table["kinds"] = [_letters(method) for method in table["method"]]
    table["density"] = table["nonzero_parameters"] / table["parameters"]
    return table


def _letters(method: str) -> str:
    return "".join(
        letter for step in method.split(" > ") for prefix, letter in LETTERS.items() if step.startswith(prefix)
    )


def _some(table: pd.DataFrame, what: str) -> pd.DataFrame:
    if table.empty:
        raise NotMeasured(what)
    return table


def _of(table: pd.DataFrame, kinds: str, what: str) -> pd.DataFrame:
    return _some(table[table["kinds"] == kinds], what)


def _students(table: pd.DataFrame) -> pd.DataFrame:
    """The study's students, distilled; the best of each by validation."""
    widened = table["recipe.steps"].map(lambda steps: "width" in steps[-1])
    students = _of(table[~widened], "D", "distilled students (notebook 4)")
    students = students.sort_values("validation_accuracy", ascending=False).drop_duplicates("model")
    return students.set_index("model")


def _methods(table: pd.DataFrame) -> dict[str, pd.DataFrame]:
    methods = {name: table[table["kinds"] == letter] for name, letter in METHODS.items()}
    missing = [name for name, rows in methods.items() if rows.empty]
    if missing:
        raise NotMeasured(" and ".join(missing))
    return methods


def _smallest_close(rows: pd.DataFrame, points: float, lost: str = "lost_on_validation") -> pd.Series | None:
    """The smallest archive that loses at most so many points of validation accuracy, or None."""
    near = rows[rows[lost] <= points]
    return None if near.empty else near.loc[near["archive_bytes"].idxmin()]


def design(table: pd.DataFrame) -> str:
    students = _students(table)
    changes = {"smaller filters": "student_2", "fewer channels": "student_4", "convolution instead of FC": "student_1"}
    if not {"student_baseline", *changes.values()} <= set(students.index):
        raise NotMeasured("the study's students (notebook 4)")
    start = students.loc["student_baseline"]
    parts = []
    for name, model in changes.items():
        row = students.loc[model]
        points = 100 * (row["accuracy"] - start["accuracy"])
        parts.append(f"{name} {points:+.2f} points for {start['parameters'] / row['parameters']:.2f}x fewer parameters")
    return "; ".join(parts) + "."


def kink(table: pd.DataFrame) -> str:
    rows = _of(table, "P", "pruned networks (notebook 3)")
    rows = _some(rows[rows["density"] < 0.9], "networks with weights pruned one by one (notebook 3)")  # no channels
    rows = rows[rows["model"] == rows["model"].mode()[0]].sort_values("density", ascending=False)
    kept = rows[rows["lost_on_validation"] <= CLOSE]
    if kept.empty:
        return f"No pruned network stays within {CLOSE:g} point; the least pruned loses {rows['lost'].iloc[0]:.2f}."
    last = kept.iloc[-1]
    beyond = rows[rows["density"] < last["density"]]
    text = f"Within {CLOSE:g} point up to {100 * (1 - last['density']):.0f} % of the weights removed"
    if beyond.empty:
        return text + ", the most that was tried."
    row = beyond.iloc[0]
    return f"{text}; at {100 * (1 - row['density']):.0f} % it loses {row['lost']:.2f}."


def all_keep(table: pd.DataFrame) -> str:
    parts = []
    for name, rows in _methods(table).items():
        best = rows.loc[rows["validation_accuracy"].idxmax()]
        parts.append(f"{name} {best['lost']:+.2f} points lost at {best['smaller']:.1f}x")
    return "The best of each by validation: " + "; ".join(parts) + "."


def shrinks_most(table: pd.DataFrame) -> str:
    found = {name: _smallest_close(rows, 2.0) for name, rows in _methods(table).items()}
    parts = [f"{name} {row['smaller']:.0f}x" for name, row in found.items() if row is not None]
    return f"Within 2 points of the base, in real files: {', '.join(parts) or 'none'}."


def parameters(table: pd.DataFrame) -> str:
    parts = []
    for name, rows in _methods(table).items():
        row = _smallest_close(rows, 2.0)
        if row is not None:
            parts.append(f"{name} {row['nonzero_parameters'] / 1e3:,.0f} K")
    return f"Non-zero parameters of the smallest within 2 points: {', '.join(parts) or 'none'}."


def latencies(table: pd.DataFrame) -> str:
    parts = [
        f"{name} {rows['latency_ms.batch1.speedup'].min():.2f} to {rows['latency_ms.batch1.speedup'].max():.2f}x"
        for name, rows in _methods(table).items()
    ]
    return f"Speed over the FP32 base at batch 1, same runtime, timed by turns: {', '.join(parts)}."


def steps_of_size(table: pd.DataFrame) -> str:
    parts = [
        f"{name} {len(rows)} sizes from {rows['archive_bytes'].min() / 1e3:,.1f} to "
        f"{rows['archive_bytes'].max() / 1e3:,.1f} KB"
        for name, rows in _methods(table).items()
    ]
    return "; ".join(parts) + ". Bits per layer give quantization steps too."


def effort(table: pd.DataFrame) -> str:
    base = table.set_index("id")["train_seconds"]
    parts = []
    for name, rows in _methods(table).items():
        share = (rows["train_seconds"] - rows["base"].map(base)) / rows["base"].map(base)
        parts.append(f"{name} {share.min():.2f} to {share.max():.2f}x")
    return f"Time beyond the base's training, as a multiple of it: {', '.join(parts)}; one line of a recipe each."


def int8_hardware(table: pd.DataFrame) -> str:
    rows = _of(table, "Q", "quantized networks (notebook 2)")
    row = rows.loc[rows["validation_accuracy"].idxmax()]
    instructions = ", ".join(row["hardware.instructions"]) or "no vector instructions"
    return (
        f"{row['latency_ms.batch1.speedup']:.2f}x over FP32 at batch 1 and {row['latency_ms.batch64.speedup']:.2f}x at "
        f"batch 64 on {row['hardware.cpu']} ({instructions}), {row['operators.integer_convolutions']:.0f} of "
        f"{row['operators.convolutions']:.0f} convolutions integer."
    )


def sparse_hardware(table: pd.DataFrame) -> str:
    pruned = _of(table, "P", "pruned networks (notebook 3)")
    zeros, narrow = pruned[pruned["density"] < 0.9], pruned[pruned["density"] >= 0.9]
    text = ""
    if not zeros.empty:
        sparsest = zeros.loc[zeros["density"].idxmin()]
        text = (
            f"Zeros alone buy nothing in a dense runtime: {sparsest['latency_ms.batch1.speedup']:.2f}x with "
            f"{100 * (1 - sparsest['density']):.0f} % of them"
        )
    if narrow.empty:
        return text + "."
    fastest = narrow.loc[narrow["latency_ms.batch1.speedup"].idxmax()]
    return f"{text}; whole channels removed give {fastest['latency_ms.batch1.speedup']:.2f}x."


def ensembles(table: pd.DataFrame) -> str:
    rows = _of(table, "E", "an ensemble (notebook 4)")
    best = rows.loc[rows["validation_accuracy"].idxmax()]
    singles = table[table["kinds"].isin(["", "D"]) & (table["parameters"] <= 1.05 * best["parameters"])]
    single = _some(singles, "a single student of the ensemble's size")
    single = single.loc[single["validation_accuracy"].idxmax()]
    return (
        f"{100 * best['accuracy']:.2f} % with {best['parameters'] / 1e3:,.0f} K parameters; the best "
        f"single network no larger ({single['model']}, {single['parameters'] / 1e3:,.0f} K) has "
        f"{100 * single['accuracy']:.2f} %, at {single['macs'] / best['macs']:.2f} of its MACs."
    )


def combinations(table: pd.DataFrame) -> str:
    several = table["kinds"].str.contains("J") | (table["kinds"].str.count("[DPQ]") > 1)
    rows = _some(table[several], "combinations (notebook 6)")
    parts, before = [], None
    for points in (1, 2, 4):
        row = _smallest_close(rows, points, "lost_to_largest")
        if row is not None and row["id"] != before:
            factor = f"{row['smaller_than_largest']:,.0f}x"
            parts.append(f"{factor} within {points} point{'s' * (points > 1)} ({row['label']})")
            before = row["id"]
    text = "; ".join(parts) or "no combination stays within 4 points"
    return f"Against the largest FP32 network: {text}."


Answer = Callable[[pd.DataFrame], str]
TAKEAWAYS: tuple[tuple[str, str, Answer], ...] = (
    ("Designing a student", "smaller filters, fewer channels, convolution instead of FC all work", design),
    ("Accuracy over sparsity", "flat, then a kink at about 90 %", kink),
    ("Each method keeps most of the accuracy", "within 2 to 6 points", all_keep),
    ("What shrinks most", "distillation: 40x at equal accuracy", shrinks_most),
    ("Parameters", "distillation has the fewest", parameters),
    ("Latency", "distillation 0.2x, pruning 0.21x, QAT 0.6x of the base's", latencies),
    ("Steps of size", "quantization one, distillation a few, pruning any", steps_of_size),
    ("Retraining and effort", "pruning the longest, quantization the least", effort),
    ("INT8 in hardware", "1.36x in its kernel", int8_hardware),
    ("Sparsity in hardware", "2.9x at 10 % density in its kernel", sparse_hardware),
    ("Ensembles", "88.02 % with 631 K parameters against 85.5 % with 654 K", ensembles),
    ("Combinations", "118x against ResNet-18's 44.7 MB for 7.4 points", combinations),
)
