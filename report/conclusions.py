"""The published study's twelve takeaways, each checked against the records.

The published study is Shettiwar and Shankar, "An Analysis of Compression Methods for Deep Learning Networks".
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import pandas as pd

from combination.recommendation import candidates
from experiment.chance import difference
from pruning import Prune, PruneChannels
from quantization import Quantize
from quantization.weights import bits_in_words
from recipe import CompressionError, Step
from report.comparison import compared
from report.published import as_the_study, published_study
from report.tables import percent

FLAT, NEAR, KEPT = 1.0, 2.0, 6.0  # points: what "flat", "at equal accuracy" and "most of the accuracy" mean here
LIKE = 1.25  # figures that differ by at most this factor agree
METHODS = {"quantization": "Q", "pruning": "P", "distillation": "D"}
# Figures of the published study that are given only in its text.
KINK, INT8_GAIN, SPARSE_GAIN = 0.9, 1.36, 2.9
SHARES_OF_TIME = {"quantization": 0.6, "pruning": 0.21, "distillation": 0.2}

# What the records say, and whether the published claim holds for them, None if they cannot tell.
Answer = tuple[str, bool | None]


class NotMeasured(CompressionError):
    """The records that an answer needs do not exist yet."""


@dataclass(frozen=True)
class Measured:
    """The measurements that answers use.

    models: one row per recipe, averaged over seeds, with the columns of `compared`.
    kernels: records of our kernels on the GPU that was measured last; may be empty.
    """

    models: pd.DataFrame
    kernels: pd.DataFrame

    @property
    def name(self) -> str:
        """The largest FP32 network. Takeaways 2 to 10 are about models made from it."""
        return self.of("", "an FP32 base (notebook 1)").iloc[0]["model"]

    def of(self, kinds: str, what: str) -> pd.DataFrame:
        """Return the models that these methods made from the largest network."""
        return _some(self.models[self.models["of_largest"] & (self.models["kinds"] == kinds)], what)

    def methods(self) -> dict[str, pd.DataFrame]:
        """Return the models that each of the three methods alone made from the largest network."""
        made = self.models[self.models["of_largest"]]
        methods = {name: made[made["kinds"] == letter] for name, letter in METHODS.items()}
        missing = [name for name, rows in methods.items() if rows.empty]
        if missing:
            raise NotMeasured(f"{' and '.join(missing)} of {self.name}")
        return methods

    def with_zeros(self) -> pd.DataFrame:
        """Return the largest network with single weights pruned: one row per `sparsity`, in ascending order.

        Of several criteria, the one with the best validation accuracy.
        """
        what = f"{self.name} with weights pruned (notebook 3)"
        rows = self.of("P", what)
        last = [steps[-1] for steps in rows["steps"]]
        rows = rows.assign(sparsity=[step.sparsity if isinstance(step, Prune) else None for step in last])
        rows = _some(rows.dropna(subset="sparsity"), what)
        return rows.sort_values("validation_accuracy").drop_duplicates("sparsity", keep="last").sort_values("sparsity")


def takeaways(records: pd.DataFrame, kernels: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return one row per takeaway: what the published study found, what the records say, and whether they agree.

    `kernels`: records from `cuda_kernels.records.load`, for the two takeaways about hardware. Points are differences of
    test accuracy to the network that was compressed; the models shown are selected on validation images.
    """
    verdicts = {True: "yes", False: "no", None: "cannot be told"}
    rows = []
    for number, (subject, found, answer) in enumerate(TAKEAWAYS, start=1):
        try:
            here, holds = answer(_measured(records, pd.DataFrame() if kernels is None else kernels))
            verdict = verdicts[holds]
        except NotMeasured as error:
            here, verdict = f"missing: {error}", "not measured"
        rows.append({"": number, "takeaway": subject, "published study": found, "here": here, "agrees": verdict})
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
    """Return the row with the least of a column among those that lose at most `within` validation points, or None."""
    near = rows[rows["lost_on_validation"].round(6) <= within]
    return None if near.empty else near.loc[near[column].idxmin()]


def _each(found: Mapping[str, pd.Series | None], words: Callable[[pd.Series], str]) -> str:
    return "; ".join(f"{name} {'none' if row is None else words(row)}" for name, row in found.items())


def _points(row: pd.Series) -> str:
    return f"{percent(row)}, {-row['lost']:+.2f} points"


def _like(ours: float, theirs: float) -> bool:
    return theirs / LIKE <= ours <= theirs * LIKE


def design(measured: Measured) -> Answer:
    """Answer whether each change to the baseline student costs no more accuracy than published."""
    rows = measured.models[measured.models["kinds"] == "D"]
    rows = rows[rows["steps"].map(as_the_study).astype(bool)]
    epochs = rows["steps"].map(lambda steps: steps[-1].epochs)
    rows = rows[epochs.isin(epochs[rows["model"] == "student_baseline"])]  # leaves out longer trainings
    students = rows.sort_values("validation_accuracy", ascending=False).drop_duplicates("model").set_index("model")
    changes = {
        "smaller filters": ("student_2", "Model 2"),
        "fewer channels": ("student_4", "Model 4"),
        "convolution instead of FC": ("student_1", "Model 1"),
    }
    if not {"student_baseline", *(model for model, _ in changes.values())} <= set(students.index):
        raise NotMeasured("the published study's students (notebook 4)")
    theirs = published_study().set_index("label")["accuracy"]
    start = students.loc["student_baseline"]
    worst = max(theirs["Baseline student"] - theirs[label] for _, label in changes.values())
    found = {name: students.loc[model] for name, (model, _) in changes.items()}
    found = {name: row.copy() for name, row in found.items()}
    for row in found.values():
        row["lost"], row["fewer"] = 100 * (start["accuracy"] - row["accuracy"]), start["parameters"] / row["parameters"]
    text = _each(found, lambda row: f"{_points(row)}, {row['fewer']:.2f}x fewer parameters")
    holds = all(row["lost"] <= worst for row in found.values())
    return f"from {percent(start)}: {text} (published: {-worst:.2f} points at worst)", holds


def kink(measured: Measured) -> Answer:
    """Answer up to which sparsity accuracy stays flat, and whether the kink is where it was published."""
    rows = measured.with_zeros()
    flat = rows[rows["lost_on_validation"] <= FLAT]
    start = 0.0 if flat.empty else flat["sparsity"].iloc[-1]
    beyond = rows[rows["sparsity"] > start]
    end = 1.0 if beyond.empty else beyond["sparsity"].iloc[0]
    between = f"between {100 * start:g} and {100 * end:g} %"
    holds = start - 0.05 <= KINK <= end + 0.05
    if holds and (beyond.empty or end - start > 0.2):  # the range is too wide to locate the kink
        raise NotMeasured(f"{measured.name} with {between} of its weights removed (notebook 3)")
    shown = flat.iloc[-1] if beyond.empty else beyond.iloc[0]
    return f"more than {FLAT:g} validation point is first lost {between}; {100 * shown['sparsity']:g} %: " + (
        _points(shown)
    ), holds


def all_keep(measured: Measured) -> Answer:
    """Answer how much accuracy the best model of each method loses."""
    best = {name: _best(rows) for name, rows in measured.methods().items()}
    text = _each(best, lambda row: f"{_points(row)}, {row['smaller']:.1f}x smaller")
    return text, all(row["lost"] <= KEPT for row in best.values())


def shrinks_most(measured: Measured) -> Answer:
    """Answer which method has the smallest file at nearly equal accuracy."""
    found = {name: _least(rows, "archive_bytes", NEAR) for name, rows in measured.methods().items()}
    text = _each(found, lambda row: f"{row['smaller']:.0f}x")
    return f"within {NEAR:g} validation points, in real files: {text}", _distillation_least(found, "archive_bytes")


def parameters(measured: Measured) -> Answer:
    """Answer which method has the fewest non-zero weights at nearly equal accuracy."""
    found = {name: _least(rows, "nonzero_parameters", NEAR) for name, rows in measured.methods().items()}
    text = _each(found, lambda row: f"{row['nonzero_parameters'] / 1e3:,.0f} K")
    return f"not zero, within {NEAR:g} validation points: {text}", _distillation_least(found, "nonzero_parameters")


def _distillation_least(found: Mapping[str, pd.Series | None], column: str) -> bool:
    rows = {name: row[column] for name, row in found.items() if row is not None}
    return "distillation" in rows and min(rows, key=lambda name: rows[name]) == "distillation"


def latencies(measured: Measured) -> Answer:
    """Answer how fast the fastest model of each method is, as a share of the base's time."""
    found = {
        name: _least(rows.assign(share=1 / rows["latency_ms.batch1_one_thread.speedup"]), "share", KEPT)
        for name, rows in measured.methods().items()
    }
    text = _each(found, lambda row: f"{row['share']:.2f}x ({row['words']}, {100 * row['macs_left']:.0f} % of the MACs)")
    holds = all(row is not None and _like(row["share"], SHARES_OF_TIME[name]) for name, row in found.items())
    return f"within {KEPT:g} validation points, batch 1, one thread: {text}", holds


def steps_of_size(measured: Measured) -> Answer:
    """Answer how many sizes each method offers."""
    parts, counts = [], {}
    for name, rows in measured.methods().items():
        tried = rows["steps"].map(lambda steps: _setting(steps[-1])).drop_duplicates().sort_values()
        low, high = rows["archive_bytes"].min() / 1e3, rows["archive_bytes"].max() / 1e3
        which = f" ({', '.join(tried)})" if name == "quantization" else ""
        parts.append(f"{name} {len(tried)}{which}, {low:,.1f} - {high:,.1f} KB")
        counts[name] = len(tried)
    return f"tried: {'; '.join(parts)}", counts["quantization"] == 1


def _setting(step: Step) -> str:
    """Return the setting of a step that determines the model's size, in words."""
    if isinstance(step, Quantize):
        return bits_in_words(step.bits, step.layer_bits)
    return f"{step.network} {', '.join(step.words())}"


def effort(measured: Measured) -> Answer:
    """Answer how much training each method takes."""
    spent = {name: rows["training"] for name, rows in measured.methods().items()}
    parts = [f"{name} {own.median():.2f} ({own.min():.2f} - {own.max():.2f})" for name, own in spent.items()]
    order = sorted(spent, key=lambda name: spent[name].median())
    text = f"in epochs of {measured.name} by MACs, without its forward passes as a teacher, median (least - most): "
    return text + "; ".join(parts), (order[0], order[-1]) == ("quantization", "pruning")


def int8_hardware(measured: Measured) -> Answer:
    """Answer how much faster INT8 is, in the whole network and in our kernel."""
    what = f"{measured.name} in 8 bits (notebook 2)"
    rows = measured.of("Q", what)
    row = _best(_some(rows[rows["steps"].map(lambda steps: _setting(steps[-1]) == "8 bits")], what))
    one, many = (row[f"latency_ms.{batch}_one_thread.speedup"] for batch in ("batch1", "batch64"))
    integer = f"{row['operators.integer_convolutions']:.0f}/{row['operators.convolutions']:.0f} convolutions integer"
    hardware = f"{row['hardware.cpu']}, {', '.join(row['hardware.instructions']) or 'no vector instructions'}"
    kernel = _kernel_gain(measured.kernels, "fully connected", "gemm_fp32", "gemm_int8", 1.0)
    text = f"whole network, one thread: {one:.2f}x at batch 1, {many:.2f}x at batch 64 ({integer}; {hardware}); "
    return text + _kernel_words(measured.kernels, kernel), kernel and _like(kernel.times, INT8_GAIN)


def sparse_hardware(measured: Measured) -> Answer:
    """Answer how much faster sparsity is, in the whole network and in our kernel."""
    sparsest = measured.with_zeros().iloc[-1]
    network = sparsest["latency_ms.batch1_one_thread.speedup"]
    text = f"{100 * sparsest['sparsity']:g} % of the weights at zero: {network:.2f}x in the dense runtime; "
    narrowed = measured.models["steps"].map(lambda steps: isinstance(steps[-1], PruneChannels))
    narrow = measured.models[measured.models["of_largest"] & narrowed]
    if not narrow.empty:
        text += f"whole channels removed: up to {narrow['latency_ms.batch1_one_thread.speedup'].max():.2f}x; "
    kernel = _kernel_gain(measured.kernels, "square 25088", "gemv_fp32", "spmv_csr", 0.1)
    # The published claim is about kernels, so only our kernel can confirm or refute it.
    return text + _kernel_words(measured.kernels, kernel), kernel and _like(kernel.times, SPARSE_GAIN)


class Gain(NamedTuple):
    """By which factor one kernel is faster than another."""

    times: float
    fast: str
    slow: str


def _kernel_gain(kernels: pd.DataFrame, case: str, dense: str, other: str, density: float) -> Gain | None:
    """Compare our fastest kernel of the family `other`, at a density, with that of `dense`; None if not measured."""
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
        return "no kernel of ours measured on a GPU"
    return f"our kernel: {gain.times:.2f}x on {kernels['device'].iloc[0]} ({gain.fast} over {gain.slow})"


def ensembles(measured: Measured) -> Answer:
    """Answer whether an ensemble beats a single network of its size."""
    models = measured.models
    best = _best(_some(models[models["kinds"] == "E"], "an ensemble (notebook 4)"))
    near = models["parameters"].between(best["parameters"] / 1.05, 1.05 * best["parameters"])
    members = {member.model for member in best["steps"][0].members}
    singles = models[models["kinds"].isin(["", "D"]) & near & models["model"].isin(members)]
    single = _best(_some(singles, "a member widened to the ensemble's size (notebook 4)"))
    text = (
        f"{percent(best)} with {best['parameters'] / 1e3:,.0f} K against {percent(single)} with "
        f"{single['parameters'] / 1e3:,.0f} K ({single['words']}, {single['macs'] / best['macs']:.2f} of its MACs); "
        f"{difference(best, single)}"
    )
    return text, bool(best["accuracy"] > single["accuracy"])


def combinations(measured: Measured) -> Answer:
    """Answer how much smaller combined methods are at the published combination's loss of accuracy."""
    models = measured.models
    several = models["kinds"].map(lambda kinds: "J" in kinds or len({*kinds} & {*"DPQ"}) > 1)
    rows = _some(models[several], "combinations (notebook 6)")
    rows = rows.assign(lost_on_validation=rows["lost_to_largest"])
    study = published_study().set_index("label")
    teacher, theirs = study.loc["ResNet-18 teacher"], study.loc["distilled and pruned 77 % and quantized"]
    lost, factor = teacher["accuracy"] - theirs["accuracy"], teacher["size_mb"] / theirs["size_mb"]
    found = {f"within {limit:.3g}": _least(rows, "archive_bytes", limit) for limit in (1, 2, 4, lost)}
    text = _each(found, lambda row: f"{row['smaller_than_largest']:,.0f}x ({row['words']}, {percent(row)})")
    last = list(found.values())[-1]
    if last is None:
        return f"by validation points: {text}", False
    bits = 8 * last["archive_bytes"] / last["parameters"]
    their_bits = 8e3 * theirs["size_mb"] / study.loc["3-conv student", "parameters_k"]
    text += f"; the last has {bits:.2f} bits a weight in its archive, the published one {their_bits:.1f}"
    return f"by validation points: {text}", _like(last["smaller_than_largest"], factor)


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
