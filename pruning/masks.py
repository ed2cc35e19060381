"""Selection of the weights to prune, by score: the number is exact, and there is no loop over weights."""

import warnings
from collections.abc import Mapping

import torch

from recipe import StepError

# log(0.90) / log(0.85): the published study (Shettiwar and Shankar) took 10 % of the last layer, and 15 % elsewhere.
LAST_SHARE = 0.648


def select(
    scores: Mapping[str, torch.Tensor], sparsity: float, scope: str, comparable: bool, may_empty: bool = False
) -> dict[str, torch.Tensor]:
    """Return masks (True: kept) of the shape of each layer's scores, in the order of the forward pass.

    A negative score marks a weight that is already pruned, and stays pruned.

    scope "global": prunes the lowest scores of the whole network. Unless `comparable`, each layer's scores are divided
        by their norm first, so that layers of different scale compete fairly.
    scope "layer": prunes the same share of each layer, but nothing of the first and less of the last, as in the
        published study. The share is such that the network as a whole has the sparsity.

    Unless `may_empty`, a layer keeps its best weight, with a warning.
    """
    masks = _global(scores, sparsity, comparable) if scope == "global" else _by_layer(scores, sparsity)
    for name, mask in masks.items():
        if not mask.any() and not may_empty and (scores[name] >= 0).any():
            warnings.warn(f"every weight of {name} would be pruned: its best one is kept", stacklevel=2)
            masks[name] = largest(scores[name], 1)
    return masks


def _global(scores: Mapping[str, torch.Tensor], sparsity: float, comparable: bool) -> dict[str, torch.Tensor]:
    # Negative scores mark pruned weights, which must not contribute to a layer's norm.
    parts = [s if comparable else s / s.clamp(min=0).norm().clamp(min=1e-30) for s in scores.values()]
    whole = torch.cat([part.flatten() for part in parts])
    mask = largest(whole, len(whole) - round(sparsity * len(whole)))
    return {
        name: own.reshape(score.shape)
        for (name, score), own in zip(scores.items(), mask.split([p.numel() for p in parts]), strict=True)
    }


def _by_layer(scores: Mapping[str, torch.Tensor], sparsity: float) -> dict[str, torch.Tensor]:
    sizes = {name: score.numel() for name, score in scores.items()}
    live = {name: int((score >= 0).sum()) for name, score in scores.items()}
    kept = {name: min(round(part * sizes[name]), live[name]) for name, part in layer_shares(sizes, sparsity).items()}
    total = sum(sizes.values())
    owed = total - round(sparsity * total) - sum(kept.values())
    # The largest layers make up for rounding and for layers that have already lost more; the first layer comes last.
    for name in sorted(sizes, key=lambda name: (name == next(iter(sizes)), -sizes[name])):
        change = max(-kept[name], min(owed, live[name] - kept[name]))
        kept[name], owed = kept[name] + change, owed - change
    return {name: largest(score, kept[name]) for name, score in scores.items()}


def largest(scores: torch.Tensor, count: int) -> torch.Tensor:
    """Return a mask with exactly `count` True, at the largest scores; of equal scores, the first."""
    flat = scores.flatten()
    if count <= 0:
        return torch.zeros_like(scores, dtype=torch.bool)
    bound = flat.kthvalue(len(flat) - count + 1).values
    mask, ties = flat > bound, flat == bound
    mask |= ties & (ties.cumsum(0) <= count - mask.sum())
    return mask.reshape(scores.shape)


def layer_shares(sizes: Mapping[str, int], sparsity: float) -> dict[str, float]:
    """Return the share of weights that each layer keeps with scope "layer".

    Raises:
        StepError: the sparsity cannot be reached without pruning the first layer.
    """
    names = list(sizes)
    first, last = names[0], names[-1]

    def shares(kept: float) -> dict[str, float]:
        return {name: 1.0 if name == first else kept**LAST_SHARE if name == last else kept for name in sizes}

    total = sum(sizes.values())
    if 1 - sizes[first] / total <= sparsity:
        raise StepError(
            f"a sparsity of {sparsity} needs the first layer, which scope 'layer' does not prune: use scope 'global'"
        )
    low, high = 0.0, 1.0
    for _ in range(60):
        middle = (low + high) / 2
        removed = 1 - sum(shares(middle)[name] * size for name, size in sizes.items()) / total
        low, high = (middle, high) if removed > sparsity else (low, middle)
    return shares(high)
