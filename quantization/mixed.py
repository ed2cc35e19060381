"""Mixed precision: how sensitive each layer is to rounding, and the best bits per layer for a byte budget."""

import copy
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from data import Dataset, Split, normalize
from models.operators import integer_layers, trace
from models.quantized import by_channel
from quantization.weights import Bits, best_scale, round_weight
from recipe import StepError
from training import scaled_for


@torch.no_grad()
def sensitivity(model: nn.Module, dataset: Dataset, bits: Iterable[Bits], images: int = 1000) -> list[dict]:
    """Round the weight of one layer at a time and measure the model on the first `images` validation images.

    Returns one row per (layer, bits): `weights`, their number; `accuracy` (0..1); and `added_loss`, the increase of the
    cross-entropy over the float model's, which is sensitive to changes that are too small to affect accuracy.
    """
    model = copy.deepcopy(model).eval()
    scaled = scaled_for(model, dataset)
    first = Split(dataset.validation.images[:images], dataset.validation.labels[:images])
    labels = first.labels

    def measure() -> tuple[float, float]:
        parts = (normalize(part, scaled).contiguous(memory_format=torch.channels_last) for part, _ in first.parts(250))
        logits = torch.cat([model(part) for part in parts])
        return (logits.argmax(1) == labels).float().mean().item(), cross_entropy(logits, labels).item()

    _, float_loss = measure()
    layers = integer_layers(trace(model))
    rows = []
    for name, layer in tqdm(layers.items(), desc="sensitivity", unit="layer", leave=False):
        weight = layer.weight.detach().clone()
        for width in bits:
            scale = best_scale(weight, width)
            layer.weight.copy_(round_weight(weight, scale, width) * by_channel(scale, weight))
            accuracy, loss = measure()
            row = {"layer": name, "bits": width, "weights": weight.numel(), "accuracy": accuracy}
            rows.append(row | {"added_loss": loss - float_loss})
        layer.weight.copy_(weight)
    return rows


def allocate(weights: Mapping[str, int], harm: Mapping[tuple[str, int], float], budget_bytes: float) -> dict[str, int]:
    """Return the bits per layer with the least total harm within a byte budget, by an exact integer program.

    Args:
        weights: number of weights of each layer.
        harm: the cost of each (layer, bits), for instance `added_loss`; costs are assumed to be additive.
        budget_bytes: upper bound on the sum of bits * weights / 8 over the layers.

    Raises:
        StepError: no assignment fits the budget; the message gives the smallest size.
    """
    pairs = list(harm)
    size = np.array([bits * weights[name] / 8 for name, bits in pairs])
    smallest = sum(min(b * weights[n] / 8 for n, b in pairs if n == name) for name in weights)
    if budget_bytes < smallest:
        raise StepError(f"no assignment of bits fits {budget_bytes:.0f} bytes: the smallest takes {smallest:.0f}")
    one_each = np.array([[float(name == pair[0]) for pair in pairs] for name in weights])
    from scipy.optimize import Bounds, LinearConstraint, milp  # imported here, since it takes half a second

    solved = milp(
        np.array([harm[pair] for pair in pairs]),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(size[None], -np.inf, budget_bytes)],
        integrality=np.ones(len(pairs)),
        bounds=Bounds(0, 1),
    )
    return {name: bits for (name, bits), chosen in zip(pairs, solved.x, strict=True) if chosen > 0.5}
