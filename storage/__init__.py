"""Models in files: safetensors for weights, ONNX for deployment, an archive for the smallest file. All are checked."""

import data.telemetry  # noqa: F401 (before ONNX Runtime is imported)
from storage.archive import ArchiveError, archive_table, load_archive, save_archive
from storage.files import StorageError, atomic_write, sha256
from storage.foreign import read_tensors
from storage.onnx_export import quiet_exporter
from storage.onnx_file import (
    export_onnx,
    export_with_scale,
    open_onnx,
    pixel_scale,
    run_onnx,
    runtime_options,
)
from storage.weights import Checkpoint, load_weights, save_weights, weights_checksum, weights_of

__all__ = [
    "ArchiveError",
    "Checkpoint",
    "StorageError",
    "archive_table",
    "atomic_write",
    "export_onnx",
    "export_with_scale",
    "load_archive",
    "load_weights",
    "open_onnx",
    "pixel_scale",
    "quiet_exporter",
    "read_tensors",
    "run_onnx",
    "runtime_options",
    "save_archive",
    "save_weights",
    "sha256",
    "weights_checksum",
    "weights_of",
]
