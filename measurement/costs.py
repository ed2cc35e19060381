"""Costs of a model: parameters, multiply-accumulates, and the number of operators that run on integers."""

import tempfile
from collections import Counter
from pathlib import Path

import onnx
import torch
from torch import nn

from models import spec_of
from models.operators import operator_of_module
from storage import open_onnx


@torch.no_grad()
def cost(model: nn.Module) -> dict[str, int]:
    """Count parameters and multiply-accumulates (MACs) for one image, in total and for non-zero weights only.

    MACs cover the layers that have a count in the table of operators. Each weight counts once per output position,
    padding included, as in a dense kernel; attention also has the products of its tokens.
    """
    macs = {"macs": 0, "nonzero_macs": 0}

    def count(layer: nn.Module, inputs: tuple[torch.Tensor, ...], output: torch.Tensor | tuple) -> None:
        result = output if isinstance(output, torch.Tensor) else output[0]
        macs_of = operator_of_module(layer).macs
        assert macs_of is not None
        macs["macs"] += macs_of(layer, inputs[0], result, torch.Tensor.numel)
        macs["nonzero_macs"] += macs_of(layer, inputs[0], result, _nonzero)

    layers = [module for module in model.modules() if operator_of_module(module).macs]
    hooks = [layer.register_forward_hook(count) for layer in layers]
    try:
        model(torch.zeros(1, *spec_of(model)["shape"], device=next(model.parameters()).device))
    finally:
        for hook in hooks:
            hook.remove()
    return {
        "parameters": sum(p.numel() for p in model.parameters()),
        "nonzero_parameters": sum(map(_nonzero, model.parameters())),
        **macs,
    }


def _nonzero(weight: torch.Tensor) -> int:
    return int(weight.count_nonzero())


def operator_counts(path: Path) -> dict[str, int]:
    """Count convolutions and additions, and those of them that ONNX Runtime runs on integers.

    The latter are counted in the graph that the runtime optimized for this machine. An operator that stays in floating
    point pays for the quantizers around it without gaining from them.
    """
    with tempfile.TemporaryDirectory() as folder:
        rewritten = Path(folder) / "optimized.onnx"
        open_onnx(path, optimized=rewritten)
        operators = Counter(node.op_type for node in onnx.load(rewritten).graph.node)
    original = Counter(node.op_type for node in onnx.load(path, load_external_data=False).graph.node)
    return {
        "convolutions": original["Conv"],
        "integer_convolutions": operators["QLinearConv"] + operators["ConvInteger"],
        "additions": original["Add"],
        "integer_additions": operators["QLinearAdd"],
    }
