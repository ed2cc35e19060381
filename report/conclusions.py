"""The twelve takeaways of the published study, each answered anew from the records.

The published study is Shettiwar and Shankar, "An Analysis of Compression Methods for Deep Learning Networks".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from combination.recommendation import candidates
from experiment.chance import overlap
from pruning import Prune, PruneChannels
from quantization import Quantize
from quantization.weights import bits_in_words
from recipe import CompressionError, Step
from report.comparison import compared, points
from report.published import as_the_study, published_study
from report.tables import percent

FLAT, NEAR, KEPT = 1.0, 2.0, 6.0  # points: what "flat", "at equal accuracy" and "most of the accuracy" mean here
LIKE = 1.25  # figures within this factor of each other agree
METHODS = {"quantization": "Q", "pruning": "P", "distillation": "D"}
# The published study's figures that stand in its text alone.
KINK, INT8_GAIN, SPARSE_GAIN = 0.9, 1.36, 2.9
SHARES_OF_TIME = {"quantization": 0.6, "pruning": 0.21, "distillation": 0.2}

# What the records say; why the published claim does not hold of them: empty if it does, None if they cannot tell.
Answer = tuple[str, str | None]


class NotMeasured(CompressionError):
    """The records that an answer needs are not there yet."""


@dataclass(frozen=True)
class Measured:
    """What is answered from: the models, a row each with seeds averaged (see `compared`), and records of our kernels.

    Those are of the GPU that was measured last; none without one.
    """

    models: pd.DataFrame
    kernels: pd.DataFrame

    @property
    def name(self) -> str:
        """The largest FP32 network: the takeaways 2 to 10 are of what is made of it."""
        return self.of("", "an FP32 base (notebook 1)").iloc[0]["model"]

    def of(self, kinds: str, what: str) -> pd.DataFrame:
        """Of the largest network, what these methods made."""
        return _some(self.models[self.models["of_largest"] & (self.models["kinds"] == kinds)], what)

    def methods(self) -> dict[str, pd.DataFrame]:
        """Of the largest network, what each of the three methods alone made."""
        made = self.models[self.models["of_largest"]]
        methods = {name: made[made["kinds"] == letter] for name, letter in METHODS.items()}
        missing = [name for name, rows in methods.items() if rows.empty]
        if missing:
            raise NotMeasured(f"{' and '.join(missing)} of {self.name}")
        return methods

    def with_zeros(self) -> pd.DataFrame:
        """The largest network with weights pruned one by one, a row a `sparsity`, least first.

        Of several criteria the one that is best on the validation images.
        """
        what = f"{self.name} with weights pruned (notebook 3)"
        rows = self.of("P", what)
        last = [steps[-1] for steps in rows["steps"]]
        rows = rows.assign(sparsity=[step.sparsity if isinstance(step, Prune) else None for step in last])
        rows = _some(rows.dropna(subset="sparsity"), what)
        return rows.sort_values("validation_accuracy").drop_duplicates("sparsity", keep="last").sort_values("sparsity")


def takeaways(records: pd.DataFrame, kernels: pd.DataFrame | None = None) -> pd.DataFrame:
    """A row a takeaway: its subject, what the published study found, and what the records say.

    `kernels`: the records of `cuda_kernels.records.load`, for the two takeaways about hardware.
    """
    rows = []
    for number, (subject, found, answer) in enumerate(TAKEAWAYS, start=1):
        try:
            text, why = answer(_measured(records, pd.DataFrame() if kernels is None else kernels))
            verdict = "No verdict yet." if why is None else f"Differs: {why}." if why else "Agrees."
            ours = f"{text} {verdict}"
        except NotMeasured as error:
            ours = f"Not measured yet: {error}."
        rows.append({"": number, "takeaway": subject, "published study": found, "here": ours})
    return pd.DataFrame(rows).set_index("")


def _measured(records: pd.DataFrame, kernels: pd.DataFrame) -> Measured:
    if records.empty:
        raise NotMeasured("any record (notebooks 1 to 6)")
    on_gpu = kernels[kernels["kind"] == "gpu"].sort_values("time") if len(kernels) else kernels
    if len(on_gpu):
        on_gpu = on_gpu[(on_gpu["device"] == on_gpu["device"].iloc[-1]) & (on_gpu["maker"] == "ours")]
    return Measured(candidates(compared(records)), on_gpu)


def _some(table: pd.DataFrame, what: str) -> pd.DataFrame:
    if table.empty:
        raise NotMeasured(what)
    return table


def _best(rows: pd.DataFrame) -> pd.Series:
    return rows.loc[rows["validation_accuracy"].idxmax()]


def _least(rows: pd.DataFrame, column: str, within: float) -> pd.Series | None:
    """The row with the least of a column among those that lose at most so many validation points, or None."""
    near = rows[rows["lost_on_validation"].round(6) <= within]
    return None if near.empty else near.loc[near[column].idxmin()]


def _each(found: Mapping[str, pd.Series | None], words: Callable[[pd.Series], str]) -> str:
    return "; ".join(f"{name} {'none' if row is None else words(row)}" for name, row in found.items())


def _unlike(ours: float, theirs: float) -> bool:
    return not theirs / LIKE <= ours <= theirs * LIKE


def design(measured: Measured) -> Answer:
    """Whether each change to the baseline student costs no more accuracy than published."""
    rows = measured.models[measured.models["kinds"] == "D"]
    rows = rows[rows["steps"].map(as_the_study).astype(bool)]
    epochs = rows["steps"].map(lambda steps: steps[-1].epochs)
    rows = rows[epochs.isin(epochs[rows["model"] == "student_baseline"])]  # some were trained longer
    students = rows.sort_values("validation_accuracy", ascending=False).drop_duplicates("model").set_index("model")
    changes = {
        "smaller filters": ("student_2", "Model 2"),
        "fewer channels": ("student_4", "Model 4"),
        "convolution instead of FC": ("student_1", "Model 1"),
    }
    if not {"student_baseline", *(model for model, _ in changes.values())} <= set(students.index):
        raise NotMeasured("the published study's students (notebook 4)")
    theirs = published_study().set_index("label")["accuracy"]
    start, parts, fails = students.loc["student_baseline"], [], []
    worst = max(theirs["Baseline student"] - theirs[label] for _, label in changes.values())
    for name, (model, _) in changes.items():
        row = students.loc[model]
        lost, fewer = 100 * (start["accuracy"] - row["accuracy"]), start["parameters"] / row["parameters"]
        parts.append(f"{name} {percent(row)}, {points(lost)}, for {fewer:.2f}x fewer parameters")
        if lost > worst:
            fails.append(f"{name} has {points(lost)}, there {worst:.2f} at most")
    return f"From {percent(start)}: {'; '.join(parts)}.", "; ".join(fails)


def kink(measured: Measured) -> Answer:
    """Up to which sparsity accuracy stays flat, and whether the kink lies where it was published."""
    rows = measured.with_zeros()
    flat = rows[rows["lost_on_validation"] <= FLAT]
    start = 0.0 if flat.empty else flat["sparsity"].iloc[-1]
    beyond = rows[rows["sparsity"] > start]
    end = 1.0 if beyond.empty else beyond["sparsity"].iloc[0]
    between = f"{100 * start:g} and {100 * end:g} %"
    holds = start - 0.05 <= KINK <= end + 0.05
    if holds and (beyond.empty or end - start > 0.2):  # it may lie elsewhere as well
        raise NotMeasured(f"{measured.name} with between {between} of its weights removed (notebook 3)")
    shown = (flat if beyond.empty else beyond).iloc[-1 if beyond.empty else 0]
    text = (
        f"{measured.name}, by the best criterion, is within {FLAT:g} validation point up to {100 * start:g} % of its "
        f"weights removed; with {100 * shown['sparsity']:g} % it has {percent(shown)}, {points(shown['lost'])}."
    )
    return text, "" if holds else f"the kink lies between {between}"


def all_keep(measured: Measured) -> Answer:
    """What the best model of each method loses."""
    best = {name: _best(rows) for name, rows in measured.methods().items()}
    text = _each(best, lambda row: f"{percent(row)}, {points(row['lost'])}, at {row['smaller']:.1f}x")
    fails = [f"{name} loses {row['lost']:.2f} points" for name, row in best.items() if row["lost"] > KEPT]
    return f"The best of each made of {measured.name}, by validation: {text}.", " and ".join(fails)


def shrinks_most(measured: Measured) -> Answer:
    """Which method has the smallest file at nearly equal accuracy."""
    found = {name: _least(rows, "archive_bytes", NEAR) for name, rows in measured.methods().items()}
    text = f"Within {NEAR:g} validation points of {measured.name}, in real files: "
    return text + _each(found, lambda row: f"{row['smaller']:.0f}x") + ".", _not_distillation(
        found, "archive_bytes", lambda row: f"shrinks it {row['smaller']:.0f}x"
    )


def parameters(measured: Measured) -> Answer:
    """Which method has the fewest non-zero weights at nearly equal accuracy."""
    found = {name: _least(rows, "nonzero_parameters", NEAR) for name, rows in measured.methods().items()}
    text = f"The fewest weights not zero within {NEAR:g} validation points of {measured.name}: "
    return text + _each(found, lambda row: f"{row['nonzero_parameters'] / 1e3:,.0f} K") + ".", _not_distillation(
        found, "nonzero_parameters", lambda row: f"leaves {row['nonzero_parameters'] / 1e3:,.0f} K"
    )


def _not_distillation(found: Mapping[str, pd.Series | None], column: str, words: Callable[[pd.Series], str]) -> str:
    """Why distillation does not have the least, empty where it has."""
    if found["distillation"] is None:
        return "no distilled student comes that near"
    rows = {name: row for name, row in found.items() if row is not None}
    least = min(rows, key=lambda name: rows[name][column])
    return "" if least == "distillation" else f"{least} {words(rows[least])}"


def latencies(measured: Measured) -> Answer:
    """The fastest model of each method, as a share of the base's time."""
    found = {
        name: _least(rows.assign(share=1 / rows["latency_ms.batch1_one_thread.speedup"]), "share", KEPT)
        for name, rows in measured.methods().items()
    }
    fails = [
        f"{name} takes {row['share']:.2f}, not {SHARES_OF_TIME[name]:g}, with {100 * row['macs_left']:.0f} % of the "
        "multiply-accumulates"
        for name, row in found.items()
        if row is not None and _unlike(row["share"], SHARES_OF_TIME[name])
    ]
    fails += [f"{name} keeps no model within {KEPT:g} points" for name, row in found.items() if row is None]
    shares = _each(found, lambda row: f"{row['share']:.2f} ({row['words']})")
    text = (
        f"The fastest of each within {KEPT:g} validation points, as a share of {measured.name}'s time at batch 1 on "
        f"one thread of the same runtime: {shares}."
    )
    return text, "; ".join(fails)


def steps_of_size(measured: Measured) -> Answer:
    """How many sizes each method gives to choose from."""
    methods, parts = measured.methods(), []
    settings = {
        name: rows["steps"].map(lambda steps: _setting(steps[-1])).drop_duplicates().sort_values()
        for name, rows in methods.items()
    }
    for name, rows in methods.items():
        low, high = rows["archive_bytes"].min() / 1e3, rows["archive_bytes"].max() / 1e3
        parts.append(f"{name} {len(settings[name])} from {low:,.1f} to {high:,.1f} KB")
    widths = settings["quantization"]
    why = f"quantization has {len(widths)} ({', '.join(widths)})" if len(widths) > 1 else ""
    return f"Steps tried with {measured.name}: {'; '.join(parts)}.", why


def _setting(step: Step) -> str:
    """What sets the size in a method's step, in words."""
    if isinstance(step, Quantize):
        return bits_in_words(step.bits, step.layer_bits)
    return f"{step.network} {', '.join(step.words())}"


def effort(measured: Measured) -> Answer:
    """How much training each method takes."""
    spent = {name: rows["training"] for name, rows in measured.methods().items()}
    parts = [f"{name} {own.median():.2f} ({own.min():.2f} - {own.max():.2f})" for name, own in spent.items()]
    order = sorted(spent, key=lambda name: spent[name].median())
    wrong = [f"{order[-1]} takes the longest"] * (order[-1] != "pruning")
    wrong += [f"{order[0]} the least" if wrong else f"{order[0]} takes the least"] * (order[0] != "quantization")
    text = (
        f"Training in epochs of {measured.name} (epochs times multiply-accumulates, over its own), "
        f"median (least - most): {', '.join(parts)}; without its forward passes as a teacher."
    )
    return text, " and ".join(wrong)


def int8_hardware(measured: Measured) -> Answer:
    """What INT8 gains in time: in the whole network, and in our kernel."""
    what = f"{measured.name} in 8 bits (notebook 2)"
    rows = measured.of("Q", what)
    row = _best(_some(rows[rows["steps"].map(lambda steps: _setting(steps[-1]) == "8 bits")], what))
    network = row["latency_ms.batch1_one_thread.speedup"]
    integer = f"{row['operators.integer_convolutions']:.0f} of {row['operators.convolutions']:.0f} convolutions"
    many = row["latency_ms.batch64_one_thread.speedup"]
    instructions = ", ".join(row["hardware.instructions"]) or "no vector instructions"
    text = (
        f"The whole {measured.name} in 8 bits: {network:.2f}x over FP32 at batch 1 on one thread and "
        f"{many:.2f}x at batch 64 on {row['hardware.cpu']} ({instructions}), {integer} "
        "integer"
    )
    kernel = _kernel_gain(measured.kernels, "fully connected", "gemm_fp32", "gemm_int8", 1.0)
    return f"{text}; {_kernel_words(measured.kernels, kernel)}.", _kernel_verdict(kernel, INT8_GAIN)


def sparse_hardware(measured: Measured) -> Answer:
    """What zeros gain in time: in the whole network, and in our kernel."""
    sparsest = measured.with_zeros().iloc[-1]
    network = sparsest["latency_ms.batch1_one_thread.speedup"]
    text = f"{100 * sparsest['sparsity']:g} % of {measured.name}'s weights at zero: {network:.2f}x in the dense runtime"
    narrowed = measured.models["steps"].map(lambda steps: isinstance(steps[-1], PruneChannels))
    narrow = measured.models[measured.models["of_largest"] & narrowed]
    if not narrow.empty:
        text += f"; whole channels removed: up to {narrow['latency_ms.batch1_one_thread.speedup'].max():.2f}x"
    kernel = _kernel_gain(measured.kernels, "square 25088", "gemv_fp32", "spmv_csr", 0.1)
    return f"{text}; {_kernel_words(measured.kernels, kernel)}.", _kernel_verdict(kernel, SPARSE_GAIN)


class Gain(NamedTuple):
    """How many times faster one kernel is than another."""

    times: float
    fast: str
    slow: str


def _kernel_verdict(gain: Gain | None, found: float) -> str | None:
    """The published study speaks of its kernels: only a kernel can agree or differ."""
    if gain is None:
        return None
    return f"our {gain.fast} gains {gain.times:.2f}x" if _unlike(gain.times, found) else ""


def _kernel_gain(kernels: pd.DataFrame, case: str, dense: str, other: str, density: float) -> Gain | None:
    """Our fastest kernel of `other`, at a density, over that of `dense`; None if unknown."""
    if kernels.empty:
        return None
    rows = kernels[kernels["case"] == case]
    near = (rows["density"] - density).abs() < 1e-6
    slow, fast = rows[rows["family"] == dense], rows[near & (rows["family"] == other)]
    if slow.empty or fast.empty:
        return None
    slow, fast = (some.loc[some["time_ms"].idxmin()] for some in (slow, fast))
    return Gain(slow["time_ms"] / fast["time_ms"], fast["kernel"], slow["kernel"])


def _kernel_words(kernels: pd.DataFrame, gain: Gain | None) -> str:
    if gain is None:
        return "none of our kernels was measured on a GPU"
    device = kernels["device"].iloc[0]
    return f"{gain.times:.2f}x in our kernel on {device} ({gain.fast} over {gain.slow}, our fastest ones)"


def ensembles(measured: Measured) -> Answer:
    """Whether an ensemble beats a single network of its size."""
    models = measured.models
    best = _best(_some(models[models["kinds"] == "E"], "an ensemble (notebook 4)"))
    near = models["parameters"].between(best["parameters"] / 1.05, 1.05 * best["parameters"])
    members = {member.model for member in best["steps"][0].members}
    singles = models[models["kinds"].isin(["", "D"]) & near & models["model"].isin(members)]
    single = _best(_some(singles, "a member widened to the ensemble's size (notebook 4)"))
    text = (
        f"{percent(best)} with {best['parameters'] / 1e3:,.0f} K parameters; a member widened to "
        f"{single['parameters'] / 1e3:,.0f} K ({single['words']}) has {percent(single)}, at "
        f"{single['macs'] / best['macs']:.2f} of its multiply-accumulates."
    )
    more = 100 * (single["accuracy"] - best["accuracy"])
    return text, f"the single network has {more:.2f} points more, {overlap(single, best)}" if more >= 0 else ""


def combinations(measured: Measured) -> Answer:
    """How much smaller combined methods are, at the accuracy that the published combination loses."""
    models = measured.models
    several = models["kinds"].map(lambda kinds: "J" in kinds or len({*kinds} & {*"DPQ"}) > 1)
    rows = _some(models[several], "combinations (notebook 6)")
    name, parts, before = measured.name, [], None
    rows = rows.assign(lost_on_validation=rows["lost_to_largest"])
    for within in (1, 2, 4):
        row = _least(rows, "archive_bytes", within)
        if row is not None and row["id"] != before:
            factor = f"{row['smaller_than_largest']:,.0f}x within {within} point{'s' * (within > 1)}"
            parts.append(f"{factor} ({row['words']}, {percent(row)})")
            before = row["id"]
    text = f"Against {name} in FP32, by validation: {'; '.join(parts) or 'no combination stays within 4 points'}."
    study = published_study().set_index("label")
    teacher, theirs = study.loc["ResNet-18 teacher"], study.loc["distilled and pruned 77 % and quantized"]
    lost, factor = teacher["accuracy"] - theirs["accuracy"], teacher["size_mb"] / theirs["size_mb"]
    row = _least(rows, "archive_bytes", lost)
    if row is None:
        return text, f"no combination stays within {lost:.1f} points"
    bits = 8 * row["archive_bytes"] / row["parameters"]
    their_bits = 8e3 * theirs["size_mb"] / study.loc["3-conv student", "parameters_k"]
    why = (
        f"within {lost:.1f} points there is {row['smaller_than_largest']:,.0f}x, a weight in {bits:.2f} bits of the "
        f"archive, there in {their_bits:.1f}"
    )
    return text, why if _unlike(row["smaller_than_largest"], factor) else ""


TAKEAWAYS: tuple[tuple[str, str, Callable[[Measured], Answer]], ...] = (
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
