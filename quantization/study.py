"""What notebook 2 compares: lists of cases, each some words about it and its recipe."""

from collections import Counter
from collections.abc import Iterable, Mapping

import pandas as pd
import torch

from data import load, normalize
from experiment import batch_size, beside_published, kept_table, make, run_table, seeds_in_words
from experiment.chance import alike
from experiment.store import artifacts_folder
from quantization.mixed import allocate, sensitivity
from quantization.noise import signal_to_noise
from quantization.paths import PATHS, paths
from quantization.quantize import Quantize
from quantization.static import METHODS
from quantization.weights import Bits
from recipe import Recipe
from storage import Checkpoint
from training import Context

Case = tuple[dict, Recipe]
# Fewer bits take longer to settle. A laptop bears these epochs.
EPOCHS: dict[str | tuple[str, str], dict[Bits, int]] = {
    ("cifar10", "resnet18"): {8: 1, 4: 1, 3: 1, 2: 2, "ternary": 2},  # five minutes each on two cores
    "cifar10": {8: 1, 4: 3, 3: 3, 2: 6, "ternary": 4},
    "digits": {8: 1, 4: 2, 3: 3, 2: 4, "ternary": 4},
}
# The fewer the bits, the further the weights have to go.
RATES: dict[Bits, float] = {8: 0.002, 4: 0.01, 3: 0.01, 2: 0.02, "ternary": 0.02}  # widths between: as the next below
CANDIDATES = (2, 3, 4)  # bits that mixed precision chooses from


def trained(base: Recipe, bits: Bits, **fields) -> Recipe:
    """Quantization-aware training of a base under its own logits, for as long as so many bits take here."""
    large = (base.dataset, base.model or "")
    epochs = EPOCHS[large] if large in EPOCHS else EPOCHS.get(base.dataset, EPOCHS["digits"])
    known = bits
    if bits != "ternary" and bits not in RATES:
        known = max(width for width in RATES if width != "ternary" and width < bits)
    training = {"epochs": epochs[known], "learning_rate": RATES[known], "batch_size": batch_size(base.dataset)}
    return base.then(Quantize("qat", bits, **{"teacher": base} | training | fields))


def calibrations(base: Recipe, images: Iterable[int]) -> list[Case]:
    """Static INT8 by each calibration on so many images, and with one scale for all channels of a weight."""
    cases = []
    for count in images:
        for method in METHODS:
            step = Quantize(calibration=method, images=count)
            cases.append(({"calibration": method, "images": count, "weights": "per channel"}, base.then(step)))
    step = Quantize(images=count, per_channel=False)
    return [*cases, ({"calibration": "percentile", "images": count, "weights": "per tensor"}, base.then(step))]


def widths(base: Recipe, bits: Iterable[Bits]) -> list[Case]:
    """A base as it is, and at each width of its weights, rounded only and trained."""
    cases: list[Case] = [({"bits": 32, "how": "float"}, base)]
    for width in bits:
        cases.append(({"bits": width, "how": "static"}, base.then(Quantize(bits=width))))
        cases.append(({"bits": width, "how": "trained"}, trained(base, width)))
    return cases


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


def layer_sensitivity(base: Recipe, images: int = 1000) -> pd.DataFrame:
    """`sensitivity` of the base's layers, kept as a table."""
    bits = (*CANDIDATES, 8)
    arguments = {"base": base.id, "bits": list(bits), "images": images}
    return kept_table(
        "sensitivity", base.dataset, lambda: sensitivity(make(base), load(base.dataset), bits, images), arguments
    )


def noise(base: Recipe, step: Quantize | None = None, images: int = 200) -> pd.DataFrame:
    """`signal_to_noise` of the base quantized by a static `step`, on validation images: columns layer, what, db."""
    recipe, dataset_name = base.then(step or Quantize()), base.dataset

    def rows() -> list[dict]:
        dataset = load(dataset_name)
        return signal_to_noise(make(base), make(recipe), normalize(dataset.validation.images[:images], dataset))

    return kept_table("noise", dataset_name, rows, {"model": recipe.id, "images": images})


def ways(base: Recipe) -> pd.DataFrame:
    """`paths` from the base, kept as a table of this machine's times."""

    def rows() -> list[dict]:
        folder = artifacts_folder(base.dataset)  # nothing is trained, and so nothing kept there
        unused = Checkpoint(folder / "paths.checkpoint")
        context = Context(load(base.dataset), base.seed, torch.device("cpu"), unused, make, folder / "cache")
        return paths(make(base), context)

    return kept_table("paths", base.dataset, rows, {"base": base.id, "paths": list(PATHS)}, timed=True)


def mixed(base: Recipe, average: int = 3) -> Recipe:
    """Bits per layer that harm least at that average over the inner layers, trained as long as that width is."""
    table = layer_sensitivity(base)
    layers = table["layer"].drop_duplicates().tolist()
    table = table[table["layer"].isin(layers[1:-1]) & table["bits"].isin(CANDIDATES)]
    weights = table.drop_duplicates("layer").set_index("layer")["weights"].to_dict()
    harm = table.set_index(["layer", "bits"])["added_loss"].to_dict()
    chosen = allocate(weights, harm, average * sum(weights.values()) / 8)
    return trained(base, average, layer_bits=tuple(sorted(chosen.items())))


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


def beside_the_study(base: Recipe) -> pd.DataFrame:
    """The published study's three rows of 8 bits, as reported, beside ours of `base`."""
    cases = {"FP32 baseline": base, "static INT8": base.then(Quantize()), "QAT INT8": trained(base, 8)}
    return beside_published(run_table((({}, recipe) for recipe in cases.values()), whole=True), cases)


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
