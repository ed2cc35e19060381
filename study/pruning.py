"""Cases of notebook 3, each a description and a recipe, and its tables."""

import copy
import dataclasses
from collections.abc import Iterable, Sequence
from functools import partial

import pandas as pd
import torch
from torch import nn
from torch.optim.swa_utils import update_bn

from data import Dataset, load, normalize
from experiment import kept_table, make, validated
from experiment.store import artifacts_folder
from models import build
from pruning.channels import PruneChannels
from pruning.criteria import BY_ITSELF, COMPARABLE, CRITERIA
from pruning.graph import layer_graph, layers_of
from pruning.masks import select
from pruning.prune import Prune
from pruning.sparse_products import median_seconds
from recipe import Recipe, check_fields, training_of
from storage import Checkpoint
from study.baseline import batch_size
from training import Context, evaluate, scaled_for

Case = tuple[dict, Recipe]
EPOCHS = {"cifar10": 3, "digits": 3}  # of training with pruning, that a laptop can manage
EARLY = 0.1  # share of the base's training to whose end weights are rewound
BRIEF, DENSE = {"cifar10": 1}, 0.9  # epochs of a large network, which loses little up to this sparsity


def pruned(base: Recipe, criterion: str, sparsity: float, **fields) -> Recipe:
    """Return a base pruned gradually during one training, by default with the epochs of this repository's study."""
    check_fields(Prune, fields)
    return base.then(Prune(criterion, sparsity, **_training(base) | fields))


def under_itself(base: Recipe, criterion: str, sparsity: float, **fields) -> Recipe:
    """Return a large base pruned under its own logits, for which few epochs suffice."""
    kind = base.dataset.partition(":")[0]
    brief = {"epochs": BRIEF[kind]} if sparsity <= DENSE and kind in BRIEF else {}
    return pruned(base, criterion, sparsity, **{"teacher": base} | brief | fields)


def narrowed(base: Recipe, criterion: str, macs: float, **fields) -> Recipe:
    """Return a base whose channels are pruned to a share of its multiply-accumulates, trained equally long."""
    check_fields(PruneChannels, fields)
    return base.then(PruneChannels(macs, criterion, **_training(base) | fields))


def shares_of_channels(base: Recipe, criteria: Sequence[str], shares: Sequence[float], **fields) -> list[Case]:
    """Return the base with its channels pruned by each criterion to each share of its multiply-accumulates."""
    return [
        ({"kind": f"channels by {criterion}", "macs kept": share}, narrowed(base, criterion, share, **fields))
        for criterion in criteria
        for share in shares
    ]


def sparsities(bases: Iterable[Recipe], criteria: Sequence[str], values: Sequence[float], **fields) -> list[Case]:
    """Return each base pruned by each criterion to each sparsity."""
    return [
        ({"criterion": criterion, "sparsity": value}, pruned(base, criterion, value, **fields))
        for base in bases
        for criterion in criteria
        for value in values
    ]


def one_shot(base: Recipe, values: Sequence[float]) -> pd.DataFrame:
    """Return the validation accuracy (0..1) after pruning without training, by every criterion.

    Columns: criterion, sparsity, accuracy, recalibrated, seed. For `accuracy`, batch norms use the statistics of the
    unpruned network; for `recalibrated`, those of the pruned one (Li et al., "EagleEye", ECCV 2020).
    """

    def rows() -> list[dict]:
        dataset, found = load(base.dataset), []
        for name, criterion in CRITERIA.items():
            model = make(base)
            graph = layer_graph(model)
            scores = criterion(model, graph, _context(base, scaled_for(model, dataset)))
            kept = {layer: graph[layer].module.weight.detach().clone() for layer in graph}
            for value in values:
                for layer, mask in select(scores, value, "global", name in COMPARABLE).items():
                    graph[layer].module.weight.data.copy_(kept[layer] * mask)
                accuracy = evaluate(model, dataset, dataset.validation)
                anew = evaluate(recalibrated(model, dataset, base.seed), dataset, dataset.validation)
                words = {"criterion": name, "sparsity": value, "seed": base.seed}
                found.append(words | {"accuracy": accuracy, "recalibrated": anew})
        return found

    arguments = {"base": base.id, "sparsities": list(values), "criteria": list(CRITERIA)}
    return kept_table("pruned-alone", base.dataset, rows, arguments)


def recalibrated(model: nn.Module, dataset: Dataset, seed: int, images: int = 2048) -> nn.Module:
    """Return a copy of the model with batch norm statistics of `images` random training images."""
    model = copy.deepcopy(model)
    drawn = torch.randperm(len(dataset.train), generator=torch.Generator().manual_seed(seed))[:images]
    scaled = scaled_for(model, dataset)
    update_bn((normalize(dataset.train.at(part), scaled) for part in drawn.chunk(8)), model)
    return model


def after_an_epoch(base: Recipe, sparsity: float) -> pd.DataFrame:
    """Return the validation accuracy (0..1) after one-shot pruning and one epoch: columns criterion, accuracy."""
    training = _training(base) | {"epochs": 1}
    recipes = {name: base.then(Prune(name, sparsity, schedule="one_shot", **training)) for name in CRITERIA}
    return validated("one-shot-tuned", [({"criterion": name}, recipe) for name, recipe in recipes.items()])


def at_once(base: Recipe, values: Sequence[float]) -> pd.DataFrame:
    """Combine `one_shot` and `after_an_epoch` at the last of `values`: one row per criterion, one column per stage."""
    alone = one_shot(base, values).query("sparsity == @values[-1]").set_index("criterion")
    trained = after_an_epoch(base, values[-1]).set_index("criterion")["accuracy"]
    stages = {"pruned": alone["accuracy"], "batch norm recalibrated": alone["recalibrated"]}
    return pd.DataFrame(stages | {"trained for an epoch": trained})


def ways(base: Recipe, criterion: str, sparsity: float, **training) -> pd.DataFrame:
    """Compare schedules, scopes and orders at equal epochs, by validation accuracy (0..1): columns way, accuracy.

    Orders are compared for one-shot pruning: along a schedule, every update would score the network once per layer.
    """
    start = base.steps[0]
    epochs = max(1, round(EARLY * training_of(start).epochs))
    early = Recipe(base.dataset, (dataclasses.replace(start, epochs=epochs),), base.seed)
    fields: dict[str, dict] = {
        "gradual": {},
        "gradual, scope layer": {"scope": "layer"},
        "iterative": {"schedule": "iterative"},
        "at once": {"schedule": "one_shot"},
        "at once, forward": {"schedule": "one_shot", "order": "forward"},
        "at once, backward": {"schedule": "one_shot", "order": "backward"},
        "rewound to fresh weights": {"schedule": "rewind"},
        "rewound to early weights": {"schedule": "rewind", "rewind_to": early},
    }
    if criterion in BY_ITSELF:  # the order makes no difference
        fields = {way: own for way, own in fields.items() if "order" not in own}
    cases = [({"way": way}, pruned(base, criterion, sparsity, **training | own)) for way, own in fields.items()]
    return validated("ways-to-prune", cases)


def layer_sensitivity(base: Recipe, values: Sequence[float]) -> pd.DataFrame:
    """Return the validation accuracy (0..1) with one layer pruned by magnitude: columns layer, sparsity, accuracy."""

    def rows() -> list[dict]:
        dataset, model = load(base.dataset), make(base)
        found = []
        for name, layer in layers_of(model).items():
            weight = layer.module.weight.detach().clone()
            for value in values:
                mask = select({name: weight.abs()}, value, "global", comparable=True)[name]
                layer.module.weight.data.copy_(weight * mask)
                accuracy = evaluate(model, dataset, dataset.validation)
                found.append({"layer": name, "sparsity": value, "accuracy": accuracy})
            layer.module.weight.data.copy_(weight)
        return found

    return kept_table("pruning-sensitivity", base.dataset, rows, {"base": base.id, "sparsities": list(values)})


def densities(recipe: Recipe) -> pd.DataFrame:
    """Return the share of non-zero weights in each layer of a pruned model: columns layer, weights, density."""

    def rows() -> list[dict]:
        return [
            {
                "layer": name,
                "weights": layer.module.weight.numel(),
                "density": float((layer.module.weight != 0).double().mean()),
            }
            for name, layer in layers_of(make(recipe)).items()
        ]

    return kept_table("density", recipe.dataset, rows, {"model": recipe.id})


def neighbours(base: Recipe) -> pd.DataFrame:
    """Return the layer graph as a table: columns layer, fed by, feeds. The identity is the residual connection."""

    def words(names: list[str | None]) -> str:
        return ", ".join("identity" if name is None else name for name in names)

    def rows() -> list[dict]:
        return [
            {"layer": layer.name, "fed by": words(layer.producers), "feeds": words(layer.consumers)}
            for layer in layer_graph(make(base)).values()
        ]

    return kept_table("graph", base.dataset, rows, {"model": base.id})


def scoring_costs(base: Recipe, criteria: Sequence[str], widths: Sequence[float]) -> pd.DataFrame:
    """Time the scoring of all weights of the base's network at several widths.

    Columns: width, parameters, criterion, seconds. Kept as a table of this machine's times.
    """

    def rows() -> list[dict]:
        dataset, found = load(base.dataset), []
        context = _context(base, dataset)
        for width in widths:
            model = build(str(base.model), shape=dataset.shape, classes=len(dataset.classes), width=width).eval()
            graph, count = layer_graph(model), sum(p.numel() for p in model.parameters())
            for name in criteria:
                seconds = median_seconds(partial(CRITERIA[name], model, graph, context), 3)
                found.append({"width": width, "parameters": count, "criterion": name, "seconds": seconds})
        return found

    arguments = {"base": base.id, "criteria": list(criteria), "widths": list(widths)}
    return kept_table("scoring", base.dataset, rows, arguments, timed=True)


def _training(base: Recipe) -> dict:
    kind = base.dataset.partition(":")[0]
    return {"epochs": EPOCHS.get(kind, EPOCHS["digits"]), "batch_size": batch_size(base.dataset)}


def _context(base: Recipe, dataset: Dataset) -> Context:
    folder = artifacts_folder(base.dataset)  # scoring trains nothing, so nothing is written there
    unused = Checkpoint(folder / "scoring.checkpoint")
    return Context(dataset, base.seed, torch.device("cpu"), unused, make, folder / "cache")
