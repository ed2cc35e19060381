"""What a model costs: parameters, multiply-accumulates, and which of its operators run on integers."""

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
    """Parameters and multiply-accumulates (MACs) for one image, in all and of non-zero weights only.

    MACs are those of the layers that the table of operators counts: each weight once for each position of the output,
    padding included, as a dense kernel computes them; of attention also the products of its tokens.
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
    """How many convolutions and additions ONNX Runtime runs on integers, and how many there are.

    Counted in the graph as the runtime has rewritten it on this machine: an operator that kept its float form pays
    for the quantizers around it without gaining from them.
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
