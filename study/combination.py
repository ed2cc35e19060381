"""Cases of notebook 6: chains of methods, headline models, and the search for small models."""

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, NamedTuple

import pandas as pd
from torch import nn

from combination.joint import Joint
from combination.model_search import FIELDS, SearchError, check_space, search
from experiment import kept_table
from models import build
from quantization.weights import Bits, bits_by_layer
from recipe import Recipe, check_whole, training_of
from study.distillation import long_student, patient, student, student_training
from study.pruning import pruned, under_itself
from study.quantization import trained

Case = tuple[dict, Recipe]
SPARSITY = 0.77  # the published study's
DEPTHWISE_BITS = 4  # least in the headline models: depthwise filters are few, and have only nine weights each
# The network that becomes a headline model, or "base"; its sparsity, its bits, and the epochs of pruning and rounding.
Headline = tuple[str, float, Bits, int, int]
Fields = Mapping[str, Any]  # fields of a step that differ from the usual ones
USUAL: Fields = {}


class Long(NamedTuple):
    """A long training of tiny_mixer, and its quantization; `late_bits` are those of the network's second half."""

    width: float
    epochs: int
    bits: Bits
    late_bits: Bits
    rounding_epochs: int
    seeds: int


def chains(
    base: Recipe,
    model: str,
    bits: Bits = 8,
    sparsity: float = SPARSITY,
    *,
    distil: Fields = USUAL,
    prune: Fields = USUAL,
    quantize: Fields = USUAL,
) -> list[Case]:
    """Return the published study's combinations and the three methods alone: D distil, P prune, Q quantize."""
    distilled, pruned_base = student(base, model, **distil), under_itself(base, "lookahead", sparsity, **prune)
    both = pruned(distilled, "lookahead", sparsity, **prune)
    made = {
        "Q": trained(base, bits, **quantize),
        "D": distilled,
        "P": pruned_base,
        "DP": both,
        "DQ": trained(distilled, bits, **quantize),
        "PQ": trained(pruned_base, bits, **{"teacher": base} | dict(quantize)),
        "DPQ": trained(both, bits, **quantize),
    }
    return [({"methods": name}, recipe) for name, recipe in made.items()]


def headline(base: Recipe, model: str, rows: Sequence[Headline]) -> list[Case]:
    """Return patient students of the base, and what `rows` make of them and of the base, always taught by the base."""
    whole = {"student": patient(base, model), "tiny_mixer": patient(base, "tiny_mixer"), "base": base}
    cases: list[Case] = [
        ({"network": recipe.model, "sparsity": 0.0, "bits": 32}, recipe)
        for name, recipe in whole.items()
        if name != "base" and name in {network for network, *_ in rows}
    ]
    for network, sparsity, bits, pruning, rounding in rows:
        small = whole[network]
        if sparsity:
            small = pruned(small, "lookahead", sparsity, teacher=base, epochs=pruning)
        words = {"network": small.model, "sparsity": sparsity, "bits": bits}
        own = depthwise(str(small.model)) if bits == "ternary" or bits < DEPTHWISE_BITS else ()
        cases.append((words, trained(small, bits, teacher=base, epochs=rounding, layer_bits=own)))
    return cases


def long_trainings(base: Recipe, rows: Iterable[Sequence], **fields) -> list[Case]:
    """Return tiny_mixer trained long under the base, and its quantized form, for each of `rows` (see `Long`) and seed.

    `fields` are those of the students' training. In the description, `epochs` are those of the last training: the
    student's own, or that with rounding.
    """
    cases: list[Case] = []
    spared = depthwise("tiny_mixer")
    late = [name for name in second_half("tiny_mixer") if name not in dict(spared)]
    for long in (Long(*row) for row in rows):
        own = spared if long.bits == "ternary" else ()
        if long.late_bits != long.bits:
            own = tuple((name, long.late_bits) for name in late)
        bits = " and ".join(map(str, dict.fromkeys((long.bits, long.late_bits))))
        for seed in range(long.seeds):
            small = long_student(base, "tiny_mixer", long.width, seed, epochs=long.epochs, **fields)
            rounded = trained(small, long.bits, teacher=base, epochs=long.rounding_epochs, layer_bits=own)
            for width, recipe in (("32", small), (bits, rounded)):
                epochs = training_of(recipe.steps[-1]).epochs
                cases.append(({"width": long.width, "bits": width, "epochs": epochs}, recipe))
    return cases


def depthwise(model: str) -> tuple[tuple[str, Bits], ...]:
    """Return the `layer_bits` that give a network's depthwise convolutions `DEPTHWISE_BITS`."""
    layers = build(model, shape=(3, 32, 32), classes=10).named_modules()  # their names do not depend on the shape
    own = [name for name, layer in layers if isinstance(layer, nn.Conv2d) and layer.groups > 1]
    return tuple((name, DEPTHWISE_BITS) for name in own)


def second_half(model: str) -> list[str]:
    """Return the names of the layers in a network's second half, where most weights are, without the last."""
    layers = list(bits_by_layer(build(model, shape=(3, 32, 32), classes=10), 8, 8))
    return layers[len(layers) // 2 : -1]


def orders(
    base: Recipe,
    model: str,
    bits: Bits = 8,
    sparsity: float = SPARSITY,
    *,
    distil: Fields = USUAL,
    prune: Fields = USUAL,
    quantize: Fields = USUAL,
) -> list[Case]:
    """Return all sensible orders: integers come last, and the student of a pruned teacher may be pruned itself."""
    of_pruned = student(under_itself(base, "lookahead", sparsity, **prune), model, **distil)
    twice = pruned(of_pruned, "lookahead", sparsity, **prune)
    usual = chains(base, model, bits, sparsity, distil=distil, prune=prune, quantize=quantize)[-1][1]
    return [
        ({"order": "distil, prune, quantize"}, usual),
        ({"order": "prune the teacher, distil, prune, quantize"}, trained(twice, bits, **quantize)),
        ({"order": "prune the teacher, distil, quantize"}, trained(of_pruned, bits, **quantize)),
    ]


def smallest(base: Recipe, space: Mapping[str, Sequence], *, candidates: int, epochs: int) -> pd.DataFrame:
    """Search over fields of Joint (`model`, `width`, `sparsity`, ...): see `search`. Kept as a table.

    `late_bits`, which is not a field, are those of the layers in the network's second half, where most weights are.
    """
    check_whole("candidates", candidates)
    check_space(space)
    if "model" not in space:
        raise SearchError("the space needs networks to choose from: add 'model', such as {'model': ['resnet8']}")

    def rows() -> list[dict]:
        journal = f"joint-{base.id}-{epochs}-{settings}"  # each space has its own search
        found = search(journal, space, partial(_candidate, base), budget=candidates * epochs, epochs=epochs)
        return found.to_dict("records")

    # Settings that are not searched, such as the learning rate, depend on the model: an example of each covers them.
    first = {key: choices[0] for key, choices in space.items()}
    examples = [_candidate(base, first | {"model": model}, epochs).id for model in space["model"]]
    settings = hashlib.sha256(json.dumps([dict(space), *examples], sort_keys=True).encode()).hexdigest()[:8]
    arguments = {
        "base": base.id,
        "candidates": candidates,
        "epochs": epochs,
        "space": dict(space),
        "examples": examples,
    }
    table = kept_table("search-joint", base.dataset, rows, arguments)
    # Turn layer_bits, which are lists in JSON, back into tuples.
    return table.map(lambda value: tuple(map(tuple, value)) if isinstance(value, list) else value)


def at_length(base: Recipe, found: pd.DataFrame, epochs: int) -> list[Case]:
    """Return the front of a search, each trained for `epochs`: short trainings select, long ones are reported."""
    chosen = found[found["front"]].sort_values("archive_bytes")
    choices = chosen.drop(columns=["validation_accuracy", "archive_bytes", "front"]).to_dict("records")
    return [({k: v for k, v in row.items() if k != "model"}, _candidate(base, row, epochs)) for row in choices]


def _candidate(base: Recipe, choices: Mapping, epochs: int) -> Recipe:
    if unknown := [key for key in choices if key not in ("late_bits", *FIELDS)]:
        raise SearchError(f"Joint has no {unknown[0]!r} to choose: use some of late_bits, {', '.join(FIELDS)}")
    fields = student_training(base, choices["model"]) | dict(choices) | {"epochs": epochs}
    bits = fields.get("bits", Joint.bits)
    if (late := fields.pop("late_bits", bits)) != bits:
        late_ones = tuple((name, late) for name in second_half(choices["model"]))
        fields["layer_bits"] = late_ones + fields.get("layer_bits", ())
    return base.then(Joint(**fields))
