"""Bits per layer under a byte budget: what each layer bears, and the best assignment."""

import copy
from collections.abc import Iterable, Mapping

import numpy as np
import torch
from torch import nn
from torch.nn.functional import cross_entropy
from tqdm.auto import tqdm

from data import Dataset, normalize
from models.operators import integer_layers, trace
from models.quantized import by_channel
from quantization.weights import Bits, best_scale, round_weight
from recipe import StepError


@torch.no_grad()
def sensitivity(model: nn.Module, dataset: Dataset, bits: Iterable[Bits], images: int = 1000) -> list[dict]:
    """Accuracy (0..1) and cross-entropy on validation images with one layer's weight at so many bits, the rest float.

    Returns a row a (layer, bits), with `weights`, their number, and `added_loss`, the cross-entropy beyond that of the
    untouched model, which tells small harms apart where accuracy does not.
    """
    model = copy.deepcopy(model).eval()
    inputs = normalize(dataset.validation.images[:images], dataset).contiguous(memory_format=torch.channels_last)
    labels = dataset.validation.labels[:images]

    def measure() -> tuple[float, float]:
        logits = torch.cat([model(part) for part in inputs.split(250)])
        return (logits.argmax(1) == labels).float().mean().item(), cross_entropy(logits, labels).item()

    _, whole = measure()
    layers = integer_layers(trace(model))
    rows = []
    for name, layer in tqdm(layers.items(), desc="sensitivity", unit="layer", leave=False):
        weight = layer.weight.detach().clone()
        for width in bits:
            scale = best_scale(weight, width)
            layer.weight.copy_(round_weight(weight, scale, width) * by_channel(scale, weight))
            accuracy, loss = measure()
            row = {"layer": name, "bits": width, "weights": weight.numel(), "accuracy": accuracy}
            rows.append(row | {"added_loss": loss - whole})
        layer.weight.copy_(weight)
    return rows


def allocate(weights: Mapping[str, int], harm: Mapping[tuple[str, int], float], budget_bytes: float) -> dict[str, int]:
    """Bits of each layer with the least harm in all, in at most so many bytes of weights: an exact integer program.

    Args:
        weights: number of weights of each layer.
        harm: what each (layer, bits) costs, for instance `added_loss`; harms are taken to add up.
        budget_bytes: bits times weights over eight, summed over the layers, stay within it.

    Raises:
        StepError: no assignment is that small; says the smallest there is.
    """
    pairs = list(harm)
    size = np.array([bits * weights[name] / 8 for name, bits in pairs])
    smallest = sum(min(b * weights[n] / 8 for n, b in pairs if n == name) for name in weights)
    if budget_bytes < smallest:
        raise StepError(f"no assignment of bits fits {budget_bytes:.0f} bytes: the smallest takes {smallest:.0f}")
    one_each = np.array([[float(name == pair[0]) for pair in pairs] for name in weights])
    from scipy.optimize import Bounds, LinearConstraint, milp  # half a second of import, for those who optimize

    solved = milp(
        np.array([harm[pair] for pair in pairs]),
        constraints=[LinearConstraint(one_each, 1, 1), LinearConstraint(size[None], -np.inf, budget_bytes)],
        integrality=np.ones(len(pairs)),
        bounds=Bounds(0, 1),
    )
    return {name: bits for (name, bits), chosen in zip(pairs, solved.x, strict=True) if chosen > 0.5}
