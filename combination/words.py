"""Records for readers who do not want their recipes."""

from combination.joint import Joint
from pruning import Prune, PruneChannels
from quantization import Quantize

KINDS = {"Prune": Prune, "Quantize": Quantize, "Joint": Joint}  # of steps, whose fields at their default are left out


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
        if kind in ("Prune", "Joint"):
            by = f" by {step['criterion']}" if "criterion" in step else ""
            words.append(f"pruned {100 * step.get('sparsity', KINDS[kind].sparsity):g} %{by}")
        if kind == "PruneChannels":
            words.append(f"channels pruned to {100 * step.get('macs', PruneChannels.macs):g} % of the MACs")
        if kind in ("Quantize", "Joint"):
            words.append(bits_in_words(step, KINDS[kind]))
        if kind == "Quantize" and step.get("mode", Quantize.mode) == "static":
            words[-1] += " without training"
        if kind == "Joint":
            words.append(f"in one training of {step.get('epochs', Joint.epochs)} epochs")
    return ", ".join(words)


def bits_in_words(step: dict, kind: type) -> str:
    """Of a step that quantizes: `3 bits`; where layers have their own, `ternary and 4 bits`."""
    widths = {step.get("bits", kind.bits), *dict(step.get("layer_bits", ())).values()}
    numbers = sorted(width for width in widths if width != "ternary")
    parts = ["ternary"] * ("ternary" in widths) + [f"{' and '.join(map(str, numbers))} bits"] * bool(numbers)
    return " and ".join(parts)
