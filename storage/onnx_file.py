"""The deployed model: one ONNX file, from which accuracy, size and latency are all taken."""

import contextlib
import copy
import io
import json
import logging
import warnings
from collections.abc import Iterator
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnx_ir
import onnxruntime
import torch
from torch import nn
from torch.fx.experimental.optimization import fuse

from data import Dataset, normalize
from models import spec_of
from models.quantized import OPSET
from storage.files import StorageError, atomic_write

# Of the norm of all logits, between PyTorch and ONNX Runtime. Integer kernels may round a value that lies half-way the
# other way, and a deep network carries such a step on, so that quantized files are held to less.
FLOAT_TOLERANCE, QUANTIZED_TOLERANCE = 1e-3, 0.1
_graphs: dict[str, onnx_ir.Model] = {}  # by the description of the network


def export_onnx(model: nn.Module, path: Path, metadata: dict | None = None, images: torch.Tensor | None = None) -> None:
    """Write `model` as ONNX with a free batch size, then run the file and compare its logits with the model's.

    The file maps `images` `[batch, C, H, W]` (float32, normalized) to `logits` `[batch, classes]`, and carries
    `metadata` (anything that JSON can say) in its properties. The logits are compared on `images`, normalized, which
    should be real ones for an integer model: on noise, far outside its ranges, one rounding more or less carries far.

    Raises:
        StorageError: the file cannot be written, or computes something else than the model.
    """
    model = model.eval().cpu().to(memory_format=torch.contiguous_format)
    file = _graph(model)
    for key, value in ({"spec": spec_of(model)} | (metadata or {})).items():
        file.metadata_props[key] = json.dumps(value)
    with atomic_write(path) as temporary:
        onnx_ir.save(file, str(temporary))
        _check(model, temporary, path, images)  # before it takes its place: a wrong file is never found there


def export_with_scale(model: nn.Module, path: Path, dataset: Dataset) -> None:
    """`export_onnx` for a data set: its classes and its scale of pixels go into the file, its images check it.

    Raises:
        StorageError: the network takes images of another shape, or has other classes.
    """
    spec = spec_of(model)
    of_model, of_data = (tuple(spec["shape"]), spec["classes"]), (dataset.shape, len(dataset.classes))
    if of_model != of_data:
        raise StorageError(
            f"the network takes images {of_model[0]} of {of_model[1]} classes, {dataset.name} has {of_data[0]} of "
            f"{of_data[1]}: name the data set that it was trained on"
        )
    metadata = {"classes": dataset.classes, "mean": dataset.mean, "std": dataset.std}
    export_onnx(model, path, metadata, normalize(dataset.validation.images[:64], dataset))


def _graph(model: nn.Module) -> onnx_ir.Model:
    """The model as ONNX, batch norm folded.

    The exporter takes seconds, and its graph depends on the architecture alone: it is kept and filled with weights.
    """
    folded = model if spec_of(model).get("quantized") else fuse(model)
    tensors = folded.state_dict()
    key = json.dumps([spec_of(model), {name: tensor.shape for name, tensor in tensors.items()}], sort_keys=True)
    if key not in _graphs:
        _graphs[key] = _exported(folded, spec_of(model)["shape"])
    for name, tensor in tensors.items():
        _graphs[key].graph.initializers[name].const_value = onnx_ir.tensor(tensor.numpy().copy(), name=name)
    return _graphs[key]


def _exported(model: nn.Module, shape: list[int]) -> onnx_ir.Model:
    """The graph of a network, with an initializer for each of its tensors.

    The exporter merges tensors of equal values, which those of another model need not be: so all are made different.
    """
    model = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(0)
    for index, tensor in enumerate(model.state_dict().values()):
        scalar = tensor.numel() == 1 and not tensor.is_floating_point()
        tensor.copy_(torch.tensor(index) if scalar else 50 * torch.rand(tensor.shape, generator=generator) + 1)
    example = torch.randn(2, *shape, generator=generator)
    with quiet_exporter():
        program = torch.onnx.export(
            model, (example,), dynamo=True, opset_version=OPSET, verbose=False,
            input_names=["images"], output_names=["logits"],
            dynamic_shapes=({0: torch.export.Dim("batch", min=1)},),
        )  # fmt: skip
    assert program is not None  # with dynamo=True
    for node in program.model.graph:  # the exporter notes where in its own source each node came from
        node.metadata_props.clear()
    _separate_zero_points(program.model.graph)
    return program.model


def _separate_zero_points(graph: onnx_ir.Graph) -> None:
    """Give every int8 weight a zero point of its own.

    The exporter merges equal constants; ONNX Runtime, where it rewrites int8 weights as uint8 (see `open_onnx`), then
    finds a shared zero point rewritten already and refuses the file.
    """
    for node in graph:
        weight = node.inputs[0] if node.op_type == "DequantizeLinear" else None
        if weight is not None and weight.is_initializer() and weight.dtype == onnx_ir.DataType.INT8:
            shared = node.inputs[2]
            assert shared is not None and shared.const_value is not None
            zeros = onnx_ir.tensor(shared.const_value.numpy(), name=f"{weight.name}_zero_point")
            own = onnx_ir.Value(
                name=zeros.name,
                shape=onnx_ir.Shape(shared.const_value.shape.numpy()),
                type=onnx_ir.TensorType(zeros.dtype),
            )
            own.const_value = zeros
            graph.register_initializer(own)
            node.replace_input_with(2, own)


def _check(model: nn.Module, written: Path, path: Path, images: torch.Tensor | None) -> None:
    if images is None:
        images = torch.randn(16, *spec_of(model)["shape"], generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        expected = model(images).numpy()
    difference = np.linalg.norm(run_onnx(open_onnx(written), images.numpy()) - expected) / np.linalg.norm(expected)
    tolerance = QUANTIZED_TOLERANCE if spec_of(model).get("quantized") else FLOAT_TOLERANCE
    if not difference <= tolerance:
        raise StorageError(f"{path} computes other logits than its model (by {difference:.1%} of their norm): not used")


def open_onnx(path: Path, threads: int = 0, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """Load a file into ONNX Runtime on the CPU, with `threads` threads (0: all cores).

    `optimized` names a file for the graph as the runtime rewrote it, operators fused.

    Raises:
        StorageError: the file is missing or no ONNX model.
    """
    options = runtime_options(threads)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise StorageError(f"{path} is missing or no ONNX file that runs: delete it, and it is made again") from error


def runtime_options(threads: int) -> onnxruntime.SessionOptions:
    """How every session of this study runs, timed or not."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if _saturates():  # the exact product, which takes up to three times as long, only where it must be
        options.add_session_config_entry("session.x64quantprecision", "1")
    # Its threads would spin after a run and take the cores of the session that is timed next: a file timed by turns
    # with itself came out 1.4 times as fast as itself.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@lru_cache
def _saturates() -> bool:
    """Whether the runtime's fast product of uint8 and int8 saturates at 16 bits here, as it does without VNNI.

    Logits off by a quarter of the largest were seen. Tried on a product whose sums of pairs are beyond 16 bits.
    """
    weights = np.full((64, 16), 127, np.int8)
    graph = onnx.helper.make_graph(
        [onnx.helper.make_node("MatMulInteger", ["x", "w"], ["y"])],
        "product",
        [onnx.helper.make_tensor_value_info("x", onnx.TensorProto.UINT8, [4, 64])],
        [onnx.helper.make_tensor_value_info("y", onnx.TensorProto.INT32, [4, 16])],
        [onnx.numpy_helper.from_array(weights, "w")],
    )
    model = onnx.helper.make_model(graph, opset_imports=[onnx.helper.make_opsetid("", 17)], ir_version=8)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    products = session.run(None, {"x": np.full((4, 64), 255, np.uint8)})[0]
    return bool((products != 64 * 255 * 127).any())


def run_onnx(session: onnxruntime.InferenceSession, images: np.ndarray) -> np.ndarray:
    """Logits `[B, classes]` of normalized images `[B, C, H, W]`, float32."""
    return session.run(["logits"], {"images": images})[0]


@contextlib.contextmanager
def quiet_exporter() -> Iterator[None]:
    """Around the exporter: it reports its progress on the screen, and warns of what does not concern the file."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
