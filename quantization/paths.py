"""Compares ways to convert one FP32 network to an INT8 file, as measured in ONNX Runtime."""

import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_dynamic, quantize_static
from torch import nn

from data import Dataset, normalize
from measurement import accuracy, available_cores, operator_counts, time_by_turns
from models import set_spec, spec_of
from models.quantized import OPSET, Quantizer
from quantization.quantize import Quantize
from storage import export_onnx, open_onnx, quiet_exporter
from training import Context

Way = Callable[[nn.Module, Path, Path, Context], None]


def paths(model: nn.Module, context: Context) -> list[dict]:
    """Convert a float `model` along each of `PATHS` and return one row per path.

    Columns: `path`; `latency_ms` and `speedup` (batch 1, all threads, alternating with the FP32 file); `file_bytes`;
    `integer_operators`, the number of convolutions and additions on integers, out of `operators`; and `accuracy` on the
    validation images (0..1).
    """
    dataset, rows = context.dataset, []
    example = np.random.default_rng(0).standard_normal((1, *dataset.shape), dtype=np.float32)
    with tempfile.TemporaryDirectory() as folder:
        base = Path(folder) / "base.onnx"
        export_onnx(model, base, images=normalize(dataset.validation.images[:64], dataset))
        whole = operator_counts(base)
        for name, make in PATHS.items():
            file = Path(folder) / "path.onnx"
            with quiet_exporter():
                make(model, base, file, context)
            counts, times = operator_counts(file), time_by_turns(file, base, model, example, available_cores())
            rows.append(
                {
                    "path": name,
                    "latency_ms": times["median"],
                    "speedup": times["speedup"],
                    "file_bytes": file.stat().st_size,
                    "integer_operators": counts["integer_convolutions"] + counts["integer_additions"],
                    "operators": whole["convolutions"] + whole["additions"],
                    "accuracy": accuracy(open_onnx(file), dataset, dataset.validation),
                }
            )
    return rows


def _float(model: nn.Module, base: Path, file: Path, context: Context) -> None:
    file.write_bytes(base.read_bytes())


def _ours(model: nn.Module, base: Path, file: Path, context: Context, **fields) -> None:
    integer = Quantize(**fields).apply(model, context)
    export_onnx(integer, file, images=normalize(context.dataset.validation.images[:64], context.dataset))


def _weights_only(model: nn.Module, base: Path, file: Path, context: Context) -> None:
    """Integer weights in the file, float arithmetic in the runtime."""
    integer = Quantize(images=64).apply(model, context)
    for name, module in list(integer.named_modules()):
        if isinstance(module, Quantizer):
            integer.set_submodule(name, nn.Identity())
    set_spec(integer, spec_of(integer) | {"activations": "float"})  # so that no cached graph with quantizers is used
    export_onnx(integer, file, images=normalize(context.dataset.validation.images[:64], context.dataset))


def _dynamic(model: nn.Module, base: Path, file: Path, context: Context) -> None:
    """Integer weights; the range of each activation is computed at run time."""
    quantize_dynamic(base, file, weight_type=QuantType.QUInt8)


def _runtimes_own(activations: QuantType, weights: QuantType, form: QuantFormat) -> Way:
    """Return a path by ONNX Runtime's static quantization of the float file, calibrated by min-max."""

    def make(model: nn.Module, base: Path, file: Path, context: Context) -> None:
        images = _Images(context.dataset)
        types = {"activation_type": activations, "weight_type": weights}
        quantize_static(base, file, images, quant_format=form, per_channel=form == QuantFormat.QDQ, **types)

    return make


@torch.no_grad()
def _pt2e(model: nn.Module, base: Path, file: Path, context: Context) -> None:
    """PyTorch's export quantization (PT2E), with torchao's quantizer for x86 processors, exported to ONNX."""
    from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
    from torchao.quantization.pt2e.quantizer import x86_inductor_quantizer as x86

    example = (normalize(context.dataset.train.images[:2], context.dataset),)
    free = ({0: torch.export.Dim("batch", min=1)},)
    quantizer = x86.X86InductorQuantizer().set_global(x86.get_default_x86_inductor_quantization_config())
    traced = torch.export.export(model.eval(), example, dynamic_shapes=free).module(check_guards=False)
    prepared = prepare_pt2e(traced, quantizer)
    for images in _Images(context.dataset).batches:
        prepared(images)
    program = torch.export.export(convert_pt2e(prepared), example, dynamic_shapes=free)
    torch.onnx.export(
        program,
        example,
        file,
        input_names=["images"],
        output_names=["logits"],
        dynamo=True,
        opset_version=OPSET,
        external_data=False,
    )


class _Images(CalibrationDataReader):
    """Training images in batches, for ONNX Runtime's calibration."""

    def __init__(self, dataset: Dataset, count: int = 256):
        images = normalize(dataset.train.images[:count], dataset)
        self.batches: Iterator[torch.Tensor] = iter(images.split(64))

    def get_next(self) -> dict[str, np.ndarray] | None:
        batch = next(self.batches, None)
        return None if batch is None else {"images": batch.numpy()}


PATHS: dict[str, Way] = {
    "FP32": _float,
    "ours: U8S8, per channel": _ours,
    "ours: U8S8, per tensor": lambda *given: _ours(*given, per_channel=False),
    "integer weights only": _weights_only,
    "dynamic ranges": _dynamic,
    "PT2E, quantizer for x86": _pt2e,
    "runtime's own: U8S8": _runtimes_own(QuantType.QUInt8, QuantType.QInt8, QuantFormat.QDQ),
    "runtime's own: S8S8": _runtimes_own(QuantType.QInt8, QuantType.QInt8, QuantFormat.QDQ),
    "runtime's own: S8S8, operators": _runtimes_own(QuantType.QInt8, QuantType.QInt8, QuantFormat.QOperator),
    "runtime's own: U8U8, operators": _runtimes_own(QuantType.QUInt8, QuantType.QUInt8, QuantFormat.QOperator),
}
