"""CUDA kernels for the products in compressed networks: dense FP32, INT8 and sparse.

    from cuda_kernels import gemv
    y = gemv(a, x)            # torch tensors on the GPU run there; on the CPU, in the emulator

    from cuda_kernels import network
    net = network(load_archive(Path("model.nna")))     # a whole integer network, as one CUDA graph
    logits = net(images)

On the command line, `python -m cuda_kernels`:

    check               compare every kernel with numpy, on the GPU or in the emulator
    run FILE.nna --dataset cifar10    a whole network, beside the integer model
    measure             time the kernels; one record each to results/kernels/
    measure-networks    time whole networks beside eager PyTorch, torch.compile and cuBLASLt
    resources           registers, shared memory and spills of every kernel, for three generations of GPUs
"""

import data.telemetry  # noqa: F401 (before ONNX Runtime is imported)

from . import emulator, gpu  # noqa: F401 (they register themselves as runners)
from .dense import fold_layer, gemm_fp32, gemm_int8, gemv
from .networks import Network, network
from .sparse import CSR, Delta8, compress, spmm, spmv

__all__ = [
    "CSR",
    "Delta8",
    "Network",
    "compress",
    "fold_layer",
    "gemm_fp32",
    "gemm_int8",
    "gemv",
    "network",
    "spmm",
    "spmv",
]
