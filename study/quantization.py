"""Cases of notebook 2, each a description and a recipe, and its tables."""

from collections.abc import Iterable

import pandas as pd
import torch

from data import load, normalize
from experiment import kept_table, make
from experiment.store import artifacts_folder
from quantization.mixed import allocate, sensitivity
from quantization.noise import signal_to_noise
from quantization.paths import PATHS, paths
from quantization.quantize import Quantize
from quantization.static import METHODS
from quantization.weights import Bits
from recipe import Recipe, check_fields
from storage import Checkpoint
from study.baseline import batch_size
from training import Context, scaled_for

Case = tuple[dict, Recipe]
# Fewer bits need more epochs; a laptop can manage these.
EPOCHS: dict[str | tuple[str, str], dict[Bits, int]] = {
    ("cifar10", "resnet18"): {8: 1, 4: 1, 3: 1, 2: 2, "ternary": 2},  # five minutes each on two cores
    "cifar10": {8: 1, 4: 3, 3: 3, 2: 6, "ternary": 4},
    "digits": {8: 1, 4: 2, 3: 3, 2: 4, "ternary": 4},
}
# Learning rates: with fewer bits, weights have to move further. Numbers of bits in between use the next lower entry.
RATES: dict[Bits, float] = {8: 0.002, 4: 0.01, 3: 0.01, 2: 0.02, "ternary": 0.02}
CANDIDATES = (2, 3, 4)  # bits to choose from for mixed precision


def trained(base: Recipe, bits: Bits, **fields) -> Recipe:
    """Return a base after quantization-aware training under its own logits, with epochs and rate by `bits`."""
    large = (base.dataset, base.model or "")
    epochs = EPOCHS[large] if large in EPOCHS else EPOCHS.get(base.dataset, EPOCHS["digits"])
    known = bits
    if bits != "ternary" and bits not in RATES:
        known = max(width for width in RATES if width != "ternary" and width < bits)
    training = {"epochs": epochs[known], "learning_rate": RATES[known], "batch_size": batch_size(base.dataset)}
    check_fields(Quantize, fields)
    return base.then(Quantize("qat", bits, **{"teacher": base} | training | fields))


def calibrations(base: Recipe, images: Iterable[int]) -> list[Case]:
    """Return static INT8 with each calibration and number of images, and, for the last, with per-tensor weights."""
    counts = list(images)
    cases = [
        ({"calibration": method, "images": count, "weights": "per channel"}, Quantize(calibration=method, images=count))
        for count in counts
        for method in METHODS
    ]
    for count in counts[-1:]:
        step = Quantize(images=count, per_channel=False)
        cases.append(({"calibration": "percentile", "images": count, "weights": "per tensor"}, step))
    return [(case, base.then(step)) for case, step in cases]


def widths(base: Recipe, rows: Iterable[tuple[Bits, int, float]], **fields) -> list[Case]:
    """Return a float base, and for each number of bits the base rounded only and trained with rounding.

    `rows`: bits, and the epochs and learning rate of the training. `fields`: other fields of that training's
    `Quantize`.
    """
    cases: list[Case] = [({"bits": 32, "how": "float"}, base)]
    for bits, epochs, rate in rows:
        cases.append(({"bits": bits, "how": "static"}, base.then(Quantize(bits=bits))))
        recipe = trained(base, bits, **{"epochs": epochs, "learning_rate": rate} | fields)
        cases.append(({"bits": bits, "how": "trained"}, recipe))
    return cases


def layer_sensitivity(base: Recipe, images: int = 1000) -> pd.DataFrame:
    """Return `sensitivity` of the base's layers, kept as a table."""
    bits = (*CANDIDATES, 8)
    arguments = {"base": base.id, "bits": list(bits), "images": images}
    return kept_table(
        "sensitivity", base.dataset, lambda: sensitivity(make(base), load(base.dataset), bits, images), arguments
    )


def noise(base: Recipe, step: Quantize | None = None, images: int = 200) -> pd.DataFrame:
    """Return `signal_to_noise` of the base quantized by a static `step`, on validation images: layer, what, db."""
    recipe, dataset_name = base.then(step or Quantize()), base.dataset

    def rows() -> list[dict]:
        model = make(base)
        dataset = scaled_for(model, load(dataset_name))
        return signal_to_noise(model, make(recipe), normalize(dataset.validation.images[:images], dataset))

    return kept_table("noise", dataset_name, rows, {"model": recipe.id, "images": images})


def ways(base: Recipe) -> pd.DataFrame:
    """Return `paths` from the base, kept as a table of this machine's times."""

    def rows() -> list[dict]:
        folder = artifacts_folder(base.dataset)  # nothing is trained, so nothing is written there
        unused = Checkpoint(folder / "paths.checkpoint")
        model = make(base)
        dataset = scaled_for(model, load(base.dataset))
        context = Context(dataset, base.seed, torch.device("cpu"), unused, make, folder / "cache")
        return paths(model, context)

    return kept_table("paths", base.dataset, rows, {"base": base.id, "paths": list(PATHS)}, timed=True)


def mixed(base: Recipe, average: int = 3, **fields) -> Recipe:
    """Return the base with the least harmful bits per inner layer at that average, trained as with `average` bits.

    `fields` of `Quantize` override the training's settings.
    """
    table = layer_sensitivity(base)
    layers = table["layer"].drop_duplicates().tolist()
    table = table[table["layer"].isin(layers[1:-1]) & table["bits"].isin(CANDIDATES)]
    weights = table.drop_duplicates("layer").set_index("layer")["weights"].to_dict()
    harm = table.set_index(["layer", "bits"])["added_loss"].to_dict()
    chosen = allocate(weights, harm, average * sum(weights.values()) / 8)
    return trained(base, average, layer_bits=tuple(sorted(chosen.items())), **fields)
