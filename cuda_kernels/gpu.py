"""The launcher: PyCUDA compiles a .cu file once and starts its kernels on torch's CUDA tensors, without copies.

PyCUDA is imported at the first launch only, so that it is not needed on a machine without a GPU.
"""

from __future__ import annotations

import atexit
import functools
import shutil
from types import ModuleType

import torch

from . import hopper
from .launch import RUNNERS, SOURCES, Launch, shared_memory_limit

DEVICE = 0  # torch's index of the GPU that kernels run on


def available() -> str | None:
    """Return None if kernels can run on a GPU here, else a sentence that says why not."""
    if not torch.cuda.is_available():
        return "there is no CUDA GPU that torch can use on this machine"
    if shutil.which("nvcc") is None:
        return "there is a GPU, but no nvcc on the PATH; install the CUDA toolkit and add its bin folder to the PATH"
    try:
        import pycuda.driver  # noqa: F401 (this module loads the libraries, `pycuda` does not)
    except ModuleNotFoundError:
        return "there is a GPU, but PyCUDA is not installed; run pip install -r requirements-gpu.txt"
    except ImportError as error:
        return f"there is a GPU, but PyCUDA does not load ({error}); see the GPU notes in the README"
    return None


def require() -> None:
    """Raise RuntimeError unless kernels can run on a GPU here."""
    reason = available()
    if reason is not None:
        raise RuntimeError(f"kernels cannot run on a GPU: {reason}")


@functools.cache
def _driver() -> ModuleType:
    require()
    torch.cuda.init()
    from pycuda import driver

    # torch uses the primary context, in which its tensors' addresses are valid. PyCUDA's own initializers create a
    # second context, or use the GPU named in $CUDA_DEVICE or ~/.cuda_device.
    driver.init()
    context = driver.Device(DEVICE).retain_primary_context()
    context.push()
    atexit.register(context.pop)
    return driver


@functools.cache
def stream():
    """Return PyCUDA's stream for measurements; `torch_stream` is the same one for torch."""
    return _driver().Stream()


@functools.cache
def torch_stream() -> torch.cuda.ExternalStream:
    """Return `stream` as torch's stream, so that work of both goes into one queue and one CUDA graph."""
    return torch.cuda.ExternalStream(stream().handle)


@functools.cache
def _module(source: str, defines: tuple[tuple[str, int], ...], stamp: int):
    _driver()
    from pycuda.compiler import SourceModule

    text = (SOURCES / f"{source}.cu").read_text()
    options = ["-std=c++17", "-O3", *[f"-D{name}={value}" for name, value in defines]]
    arch = "sm_90a" if source == hopper.SOURCE else None  # None: the GPU's own
    return SourceModule(text, options=options, include_dirs=[str(SOURCES)], no_extern_c=True, arch=arch)


@functools.cache
def _function(source: str, kernel: str, defines: tuple[tuple[str, int], ...], formats: str, stamp: int):
    function = _module(source, defines, stamp).get_function(kernel)
    attributes = _driver().function_attribute
    # More than 48 KB must be requested: once, for everything beside static arrays. A launch uses what it needs.
    largest = shared_memory_limit(torch.device("cuda", DEVICE)) - function.get_attribute(attributes.SHARED_SIZE_BYTES)
    function.set_attribute(attributes.MAX_DYNAMIC_SHARED_SIZE_BYTES, largest)
    # A prepared call packs by this format. (An unprepared one caches by value, so an int may be taken for a pointer.)
    return function.prepare(formats)


def launch(work: Launch) -> None:
    """Queue the launch on torch's current stream: the default one, or `torch_stream`."""
    if (work.output.device.index or 0) != DEVICE:
        raise RuntimeError(
            f"kernels run on the first GPU, but the tensors are on {work.output.device}; choose the "
            "card with CUDA_VISIBLE_DEVICES"
        )
    formats = "".join({int: "i", float: "f"}.get(type(argument), "P") for argument in work.arguments)
    function = _function(work.source, work.kernel, work.defines, formats, work.stamp)
    current = torch.cuda.current_stream(work.output.device).cuda_stream
    if current not in (0, stream().handle):
        raise RuntimeError(
            "kernels run on torch's default stream or on cuda_kernels.gpu.torch_stream(); leave the "
            "other stream's context before calling them"
        )
    values = [
        argument.data_ptr() if isinstance(argument, torch.Tensor) else argument or 0 for argument in work.arguments
    ]
    function.prepared_async_call(
        work.grid, work.block, stream() if current else None, *values, shared_size=work.shared_bytes
    )


RUNNERS["cuda"] = launch
