"""The deployed model: one ONNX file, from which accuracy, size and latency are all taken."""

import json
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import torch
from torch import nn

from data import Dataset
from models import spec_of
from models.quantized import folded, holds_integers
from storage.files import StorageError, atomic_write
from storage.onnx_export import graph_without_weights
from storage.onnx_graph import normalize_inside, settle_zero_points, shorten_names

# Of the norm of all logits, between PyTorch and ONNX Runtime. Integer kernels may round a value that lies half-way the
# other way, and a deep network carries such a step on, so that quantized files are held to less.
FLOAT_TOLERANCE, QUANTIZED_TOLERANCE = 1e-3, 0.1


def export_onnx(
    model: nn.Module,
    path: Path,
    metadata: dict | None = None,
    images: torch.Tensor | None = None,
    raw_scale: dict | None = None,
    graphs: Path | None = None,
) -> None:
    """Write `model` as ONNX with a free batch size, then run the file and compare its logits with the model's.

    The file maps `images` `[batch, C, H, W]` (float32, normalized) to `logits` `[batch, classes]`, and carries
    `metadata` (anything that JSON can say) in its properties. With `raw_scale`, as `pixel_scale` gives it, the file
    takes uint8 images instead and normalizes them itself. `graphs` is a folder where the exporter's graphs are kept,
    without weights, which saves seconds where a network of this form was exported before.

    The logits are compared on `images`, in the form that the file takes. They should be real ones for an integer
    model: on noise, far outside its ranges, one rounding more or less carries far.

    Raises:
        StorageError: the file cannot be written, or computes something else than the model.
    """
    model = model.eval().cpu().to(memory_format=torch.contiguous_format)
    file = _filled(model, raw_scale, graphs)
    form = "float32, (pixel / 255 - mean) / std" if raw_scale is None else "uint8, 0 to 255"
    properties = {"spec": spec_of(model), "images": form} | (raw_scale or {}) | (metadata or {})
    onnx.helper.set_model_props(file, {key: json.dumps(value) for key, value in properties.items()})
    with atomic_write(path) as temporary:
        temporary.write_bytes(file.SerializeToString())
        # Before it takes its place, so that a wrong file is never found there.
        _check(model, temporary, path, images, raw_scale)


def export_with_scale(
    model: nn.Module, path: Path, dataset: Dataset, raw_images: bool = False, graphs: Path | None = None
) -> None:
    """`export_onnx` for a data set: its classes and the scale of pixels go into the file, its images check it.

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
    scale, images = pixel_scale(spec_of(model), dataset), dataset.validation.images[:64]
    metadata = {"classes": dataset.classes} | scale
    if raw_images:
        export_onnx(model, path, metadata, images, scale, graphs)
    else:
        export_onnx(model, path, metadata, _normalized(images, scale), graphs=graphs)


def pixel_scale(spec: dict, dataset: Dataset | None = None) -> dict[str, list[float]]:
    """The `mean` and `std` per channel, of pixels in 0..1, with which a network's images are normalized.

    They are the network's own, or those of the data set if the network has none.

    Raises:
        StorageError: neither is known, or the network's own are no such numbers.
    """
    own = spec.get("pixels")
    if own is None and dataset is not None:
        return dataset.pixels
    if own is None:
        raise StorageError(
            "the model does not say how its pixels are scaled: name the data set that it was trained on (--dataset)"
        )
    try:
        mean, std = torch.tensor(own["mean"]), torch.tensor(own["std"])
        is_right = mean.shape == std.shape == (spec["shape"][0],) and bool((mean.isfinite() & (std > 0)).all())
    except (KeyError, TypeError, ValueError, RuntimeError):
        is_right = False
    if not is_right:
        raise StorageError(f"the model's scale of pixels is no mean and std per channel: {own}")
    return {"mean": list(own["mean"]), "std": list(own["std"])}


def _filled(model: nn.Module, raw_scale: dict | None, graphs: Path | None) -> onnx.ModelProto:
    """The model as ONNX, batch norm folded, to change at will."""
    graph_module = folded(model)
    tensors = graph_module.state_dict()
    file = onnx.ModelProto.FromString(graph_without_weights(graph_module, spec_of(model)["shape"], graphs))
    file.graph.initializer.extend(onnx.numpy_helper.from_array(t.numpy(), name) for name, t in tensors.items())
    settle_zero_points(file.graph)
    if raw_scale is not None:
        normalize_inside(file.graph, *(_by_channel(raw_scale[name]).numpy() for name in ("mean", "std")))
    shorten_names(file.graph, {name for name, _ in graph_module.named_parameters()})
    return file


def _by_channel(values: Sequence[float]) -> torch.Tensor:
    """Means or deviations of pixels in 0..1 as `[C, 1, 1]`, of pixels in 0..255."""
    return 255 * torch.tensor(values, dtype=torch.float32)[:, None, None]


def _normalized(images: torch.Tensor, scale: dict) -> torch.Tensor:
    """As `data.normalize`."""
    return (images.float() - _by_channel(scale["mean"])) / _by_channel(scale["std"])


def _check(model: nn.Module, written: Path, path: Path, images: torch.Tensor | None, raw_scale: dict | None) -> None:
    if images is None:
        images = _noise(spec_of(model)["shape"], raw=raw_scale is not None)
    with torch.no_grad():
        expected = model(images if raw_scale is None else _normalized(images, raw_scale)).numpy()
    difference = np.linalg.norm(run_onnx(open_onnx(written), images.numpy()) - expected) / np.linalg.norm(expected)
    tolerance = QUANTIZED_TOLERANCE if holds_integers(spec_of(model)) else FLOAT_TOLERANCE
    if not difference <= tolerance:
        raise StorageError(f"{path} computes other logits than its model (by {difference:.1%} of their norm): not used")


def _noise(shape: list[int], raw: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if raw:
        return torch.randint(256, (16, *shape), dtype=torch.uint8, generator=generator)
    return torch.randn(16, *shape, generator=generator)


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
