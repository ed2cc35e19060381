"""CUDA kernels for the products in compressed networks: dense FP32, INT8 and sparse.

    from cuda_kernels import gemv
    y = gemv(a, x)            # torch tensors on the GPU run there; on the CPU, in the emulator

`python -m cuda_kernels check` compares every kernel with numpy, on the GPU or in the emulator; `python -m cuda_kernels
measure` times them and writes one record each to results/kernels/.
"""

import data.telemetry  # noqa: F401 (before ONNX Runtime is imported)

from . import emulator, gpu  # noqa: F401 (they register themselves as runners)
from .dense import fold_layer, gemm_fp32, gemm_int8, gemv
from .sparse import CSR, Delta8, compress, spmm, spmv

__all__ = ["CSR", "Delta8", "compress", "fold_layer", "gemm_fp32", "gemm_int8", "gemv", "spmm", "spmv"]
