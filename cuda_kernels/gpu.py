"""The launcher: PyCUDA compiles a .cu file once and starts its kernels on torch's CUDA tensors, without copies.

PyCUDA is imported at the first launch only, so that nothing here needs it where there is no GPU.
"""

from __future__ import annotations

import functools
import shutil
from types import ModuleType

import torch

from .launch import RUNNERS, SOURCES, Launch


def available() -> str | None:
    """None if kernels can run on a GPU here, else the one sentence that says why not."""
    if not torch.cuda.is_available():
        return "there is no CUDA GPU that torch can use on this machine"
    if shutil.which("nvcc") is None:
        return "there is a GPU, but no nvcc on the PATH; install the CUDA toolkit and add its bin folder to the PATH"
    try:
        import pycuda  # noqa: F401
    except ImportError:
        return "there is a GPU, but PyCUDA is not installed; run pip install -r requirements-gpu.txt"
    return None


def require() -> None:
    """RuntimeError, in one sentence, unless kernels can run on a GPU here."""
    reason = available()
    if reason is not None:
        raise RuntimeError(f"kernels cannot run on a GPU: {reason}")


@functools.cache
def _driver() -> ModuleType:
    require()
    torch.cuda.init()
    # The primary context is the one that torch uses: its tensors' addresses are valid in it. `pycuda.autoinit`
    # would make a second context, in which they are not.
    import pycuda.autoprimaryctx
    import pycuda.driver

    return pycuda.driver


@functools.cache
def stream():
    """The stream for measurements, PyCUDA's own; torch sees the same one through `torch_stream`."""
    return _driver().Stream()


@functools.cache
def torch_stream() -> torch.cuda.ExternalStream:
    """`stream` as torch knows it: work of both goes into one queue, and into one CUDA graph."""
    return torch.cuda.ExternalStream(stream().handle)


@functools.cache
def _module(source: str, defines: tuple[tuple[str, int], ...], stamp: int):
    _driver()
    from pycuda.compiler import SourceModule

    text = (SOURCES / f"{source}.cu").read_text()
    options = ["-std=c++17", "-O3", *[f"-D{name}={value}" for name, value in defines]]
    return SourceModule(text, options=options, include_dirs=[str(SOURCES)], no_extern_c=True)


@functools.cache
def _function(
    source: str, kernel: str, defines: tuple[tuple[str, int], ...], formats: str, shared_bytes: int, stamp: int
):
    function = _module(source, defines, stamp).get_function(kernel)
    if shared_bytes > 48 << 10:  # beyond the default a kernel has to ask
        attribute = _driver().function_attribute.MAX_DYNAMIC_SHARED_SIZE_BYTES
        function.set_attribute(attribute, shared_bytes)
    # A prepared call packs by this format. (The unprepared one caches by value, where an int equals a pointer.)
    return function.prepare(formats)


def launch(work: Launch) -> None:
    """Queue the launch on torch's current stream: the default one, or `torch_stream`."""
    if work.output.device.index:
        raise RuntimeError(
            f"kernels run on the first GPU, but the tensors lie on {work.output.device}; choose the "
            "card with CUDA_VISIBLE_DEVICES"
        )
    formats = "".join("i" if isinstance(argument, int) else "P" for argument in work.arguments)
    function = _function(work.source, work.kernel, work.defines, formats, work.shared_bytes, work.stamp)
    current = torch.cuda.current_stream(work.output.device).cuda_stream
    if current not in (0, stream().handle):
        raise RuntimeError(
            "kernels run on torch's default stream or on cuda_kernels.gpu.torch_stream(); leave the "
            "other stream's context before calling them"
        )
    values = [
        argument if isinstance(argument, int) else 0 if argument is None else argument.data_ptr()
        for argument in work.arguments
    ]
    function.prepared_async_call(
        work.grid, work.block, stream() if current else None, *values, shared_size=work.shared_bytes
    )


RUNNERS["cuda"] = launch
