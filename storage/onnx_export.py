"""Export of a network's ONNX graph without its weights. Exporting takes seconds, so each graph is cached."""

import contextlib
import copy
import hashlib
import io
import logging
import warnings
from collections.abc import Iterator, Sequence
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path

import torch
from torch import fx

import models.quantized
import storage.onnx_graph
from models.quantized import OPSET
from storage.files import StorageError, atomic_write
from storage.onnx_graph import name_zero_points, strip

IN_MEMORY = 8  # graphs
_graphs: dict[str, bytes] = {}  # serialized, so that they cannot be changed by accident


def graph_without_weights(model: fx.GraphModule, shape: Sequence[int], folder: Path | None) -> bytes:
    """Return the serialized ONNX graph of a network for images `[C, H, W]` of `shape`, without values of weights.

    Its tensors are named as in the network's state dict. It is cached in memory and, if `folder` is given, in a file
    for other processes; the file's name is a hash of everything that the graph depends on, and it begins with a
    checksum.

    Raises:
        StorageError: the exporter left out a tensor.
    """
    tensors = [(name, tuple(t.shape), t.dtype) for name, t in model.state_dict().items()]
    parts = (str(model), tuple(shape), tensors, _exporter())  # the text of a traced network includes its code
    name = hashlib.sha256(repr(parts).encode()).hexdigest()
    if name not in _graphs:
        if len(_graphs) == IN_MEMORY:
            del _graphs[next(iter(_graphs))]
        _graphs[name] = _cached(model, shape, folder / f"{name[:32]}.graph") if folder else _exported(model, shape)
    return _graphs[name]


@lru_cache
def _exporter() -> str:
    """Return versions and source checksums of the exporter and of layers whose code a traced network hides."""
    versions = [version(name) for name in ("torch", "onnx", "onnxscript")]
    files = [Path(str(module.__file__)) for module in (models.quantized, storage.onnx_graph)] + [Path(__file__)]
    return " ".join([*versions, *(hashlib.sha256(file.read_bytes()).hexdigest() for file in files)])


def _cached(model: fx.GraphModule, shape: Sequence[int], path: Path) -> bytes:
    """Return the graph in this file; if it is missing or damaged, export it and write the file."""
    with contextlib.suppress(OSError):
        content = path.read_bytes()
        if hashlib.sha256(content[32:]).digest() == content[:32]:
            return content[32:]
    graph = _exported(model, shape)
    with atomic_write(path) as temporary:
        temporary.write_bytes(hashlib.sha256(graph).digest() + graph)
    return graph


def _exported(model: fx.GraphModule, shape: Sequence[int]) -> bytes:
    """Export a graph that does not depend on the values of tensors, by making them inputs.

    The exporter still merges tensors of equal values, so all get different ones. Only zero points, which have one byte,
    may be equal; each is assigned to its scale afterwards.
    """
    model = copy.deepcopy(model)
    tensors = model.state_dict()
    generator = torch.Generator().manual_seed(0)
    for tensor in tensors.values():
        tensor.copy_(50 * torch.rand(tensor.shape, generator=generator) + 1)
    example = torch.randn(2, *shape, generator=generator)
    with quiet_exporter():
        program = torch.onnx.export(
            model, (example,), dynamo=True, opset_version=OPSET, verbose=False, optimize=False,
            input_names=["images"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )  # fmt: skip
        assert program is not None  # with dynamo=True
        graph = program.model.graph
        for name in tensors.keys() & graph.initializers.keys():
            value = graph.initializers.pop(name)
            value.const_value = None
            graph.inputs.append(value)
        program.optimize()
    file = program.model_proto
    del file.graph.input[1:]
    name_zero_points(file.graph, tensors.keys())
    used = {name for node in file.graph.node for name in node.input}
    lost = [name for name in tensors.keys() - used if not name.endswith("num_batches_tracked")]
    if lost:
        raise StorageError(f"the ONNX exporter merged or left out {min(lost)}: this is a bug, please report it")
    strip(file.graph, tensors.keys())
    return file.SerializeToString()


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Silence an exporter's progress reports and its warnings that do not concern the file."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
