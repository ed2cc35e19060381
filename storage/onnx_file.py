"""The deployed model: one ONNX file, on which accuracy, size and latency are all measured."""

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

# Allowed difference between PyTorch and ONNX Runtime, relative to the norm of all logits. Integer kernels may round a
# value half-way between two levels the other way, which a deep network amplifies: quantized files may differ more.
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

    The file maps `images` `[batch, C, H, W]` (float32, normalized) to `logits` `[batch, classes]`, and holds `metadata`
    (JSON values) in its properties. With `raw_scale` from `pixel_scale`, the file takes uint8 images instead and
    normalizes them itself. `graphs` is a folder that caches exported graphs without weights, which saves seconds if a
    network of this form was exported before.

    The logits are compared on `images`, in the form that the file takes. Pass real images for an integer model: noise
    is far outside its ranges, where a single different rounding has a large effect.

    Raises:
        StorageError: the file cannot be written, or its logits differ from the model's.
    """
    model = model.eval().cpu().to(memory_format=torch.contiguous_format)
    file = _filled(model, raw_scale, graphs)
    form = "float32, (pixel / 255 - mean) / std" if raw_scale is None else "uint8, 0 to 255"
    properties = {"spec": spec_of(model), "images": form} | (raw_scale or {}) | (metadata or {})
    onnx.helper.set_model_props(file, {key: json.dumps(value) for key, value in properties.items()})
    with atomic_write(path) as temporary:
        temporary.write_bytes(file.SerializeToString())
        # Check before the file gets its final name, so that a wrong one never appears there.
        _check(model, temporary, path, images, raw_scale)


def export_with_scale(
    model: nn.Module, path: Path, dataset: Dataset, raw_images: bool = False, graphs: Path | None = None
) -> None:
    """Call `export_onnx` with a data set's classes and the mean and std of pixels, and check the file on its images.

    Raises:
        StorageError: the network takes images of another shape, or has another number of classes.
    """
    spec = spec_of(model)
    of_model, of_data = (tuple(spec["shape"]), spec["classes"]), (dataset.shape, len(dataset.classes))
    if of_model != of_data:
        raise StorageError(
            f"the network takes images {of_model[0]} of {of_model[1]} classes, {dataset.name} has {of_data[0]} of "
            f"{of_data[1]}: name the data set that it was trained on, with its ?side= if that is a folder"
        )
    scale, images = pixel_scale(spec_of(model), dataset), dataset.validation.images[:64]
    metadata = {"classes": dataset.classes} | scale
    if raw_images:
        export_onnx(model, path, metadata, images, scale, graphs)
    else:
        export_onnx(model, path, metadata, _normalized(images, scale), graphs=graphs)


def pixel_scale(spec: dict, dataset: Dataset | None = None) -> dict[str, list[float]]:
    """Return the `mean` and `std` per channel, of pixels in 0..1, that normalize a network's images.

    They come from the network's spec or, if it has none, from the data set.

    Raises:
        StorageError: neither is known, or the spec's are not a mean and std per channel.
    """
    pixels = spec.get("pixels")
    if pixels is None and dataset is not None:
        return dataset.pixels
    if pixels is None:
        raise StorageError(
            "the model does not say how its pixels are scaled: name the data set that it was trained on (--dataset)"
        )
    try:
        mean, std = torch.tensor(pixels["mean"]), torch.tensor(pixels["std"])
        is_valid = mean.shape == std.shape == (spec["shape"][0],) and bool((mean.isfinite() & (std > 0)).all())
    except (KeyError, TypeError, ValueError, RuntimeError):
        is_valid = False
    if not is_valid:
        raise StorageError(f"the model's scale of pixels is not a mean and std per channel: {pixels}")
    return {"mean": list(pixels["mean"]), "std": list(pixels["std"])}


def _filled(model: nn.Module, raw_scale: dict | None, graphs: Path | None) -> onnx.ModelProto:
    """Return the model as ONNX with batch norm folded, as a new object."""
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
    """Convert the mean or std of pixels in 0..1 to pixels in 0..255, as `[C, 1, 1]`."""
    return 255 * torch.tensor(values, dtype=torch.float32)[:, None, None]


def _normalized(images: torch.Tensor, scale: dict) -> torch.Tensor:
    """Do what `data.normalize` does."""
    return (images.float() - _by_channel(scale["mean"])) / _by_channel(scale["std"])


def _check(model: nn.Module, written: Path, path: Path, images: torch.Tensor | None, raw_scale: dict | None) -> None:
    if images is None:
        images = _noise(spec_of(model)["shape"], raw=raw_scale is not None)
    with torch.no_grad():
        expected = model(images if raw_scale is None else _normalized(images, raw_scale)).numpy()
    if not np.isfinite(expected).all():
        raise StorageError(f"the model of {path} gives NaN or infinity: its weights, or what computes them, are wrong")
    difference = np.linalg.norm(run_onnx(open_onnx(written), images.numpy()) - expected) / (
        np.linalg.norm(expected) or 1.0
    )
    tolerance = QUANTIZED_TOLERANCE if holds_integers(spec_of(model)) else FLOAT_TOLERANCE
    if not difference <= tolerance:
        raise StorageError(f"logits of {path} differ from its model's by {difference:.1%} of their norm: not used")


def _noise(shape: list[int], raw: bool) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    if raw:
        return torch.randint(256, (16, *shape), dtype=torch.uint8, generator=generator)
    return torch.randn(16, *shape, generator=generator)


def open_onnx(path: Path, threads: int = 0, optimized: Path | None = None) -> onnxruntime.InferenceSession:
    """Load a file into ONNX Runtime on the CPU, with `threads` threads (0: all cores).

    The runtime writes its optimized graph, with fused operators, to `optimized` if that is given.

    Raises:
        StorageError: the file is missing or not an ONNX model.
    """
    options = runtime_options(threads)
    if optimized is not None:
        options.optimized_model_filepath = str(optimized)
    try:
        return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # ONNX Runtime's own exceptions share no base class
        raise StorageError(f"{path} is missing or not a valid ONNX file: delete it, and it is made again") from error


def runtime_options(threads: int) -> onnxruntime.SessionOptions:
    """Return the options of every session, timed or not."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    if _saturates():  # the exact product takes up to three times as long, so use it only if needed
        options.add_session_config_entry("session.x64quantprecision", "1")
    # Threads that spin after a run take cores from the session that is timed next: a file timed alternately with
    # itself appeared 1.4 times as fast as itself.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return options


@lru_cache
def _saturates() -> bool:
    """Return whether the runtime's fast product of uint8 and int8 saturates at 16 bits, as on processors without VNNI.

    This has made logits wrong by a quarter of the largest. The test is a product whose pairwise sums exceed 16 bits.
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
    """Return the logits `[B, classes]` of normalized images `[B, C, H, W]`, float32."""
    return session.run(["logits"], {"images": images})[0]
