"""Records for readers who do not want their recipes."""

from collections.abc import Mapping

from combination.joint import Joint
from pruning import Prune, PruneChannels
from quantization import Quantize

# Of steps whose fields are named here even at their default, which a record leaves out.
PRUNE: dict[str, type[Prune | Joint]] = {"Prune": Prune, "Joint": Joint}
ROUND: dict[str, type[Quantize | Joint]] = {"Quantize": Quantize, "Joint": Joint}


def plain(steps: list[dict]) -> str:
    """A record's steps in a few words: `resnet20, distilled, pruned 72 %, ternary`. The record has the rest."""
    words: list[str] = []
    for step in steps:
        kind = step["step"]
        if "model" in step:  # another network than before
            wide = f" of width {step['width']:g}" if "width" in step else ""
            words = [step["model"] + wide] + ["distilled"] * (kind != "Train")
        if kind == "Ensemble":
            words = ["ensemble of " + " and ".join(plain(member["steps"]) for member in step["members"])]
        if kind in PRUNE:
            by = f" by {step['criterion']}" if "criterion" in step else ""
            words.append(f"pruned {100 * step.get('sparsity', PRUNE[kind].sparsity):g} %{by}")
        if kind == "PruneChannels":
            words.append(f"channels pruned to {100 * step.get('macs', PruneChannels.macs):g} % of the MACs")
        if kind in ROUND:
            words.append(bits_in_words(step, ROUND[kind]))
        if kind == "Quantize" and step.get("mode", Quantize.mode) == "static":
            words[-1] += " without training"
        if kind == "Joint":
            words.append(f"in one training of {step.get('epochs', Joint.epochs)} epochs")
    return ", ".join(words)


def bits_in_words(step: Mapping, kind: type[Quantize | Joint]) -> str:
    """Of a step that quantizes: `3 bits`; where layers have their own, `ternary and 4 bits`."""
    widths = {step.get("bits", kind.bits), *dict(step.get("layer_bits", ())).values()}
    numbers = sorted(width for width in widths if width != "ternary")
    parts = ["ternary"] * ("ternary" in widths) + [f"{' and '.join(map(str, numbers))} bits"] * bool(numbers)
    return " and ".join(parts)
