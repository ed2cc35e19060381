"""Run the .cu files on a CPU, compiled by a C++ compiler with kernels/emulator.h, to check correctness only."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import os
import shlex
import shutil
import subprocess
import tempfile
from pathlib import Path

from .launch import RUNNERS, SOURCES, Argument, Launch, kernel_names

FLAGS = ("-std=c++17", "-O1", "-fPIC", "-shared", "-fno-strict-aliasing", "-w", "-DCUDA_EMULATOR")


def compiler() -> list[str]:
    """Return the C++ compiler and its flags: $CXX, such as "g++ -m64", or g++. RuntimeError if there is none."""
    name, *flags = shlex.split(os.environ.get("CXX", "")) or ["g++"]
    found = shutil.which(name)
    if found is None:
        raise RuntimeError("the emulator needs a C++ compiler and found none; install g++ or name one in $CXX")
    return [found, *flags]


def launch(work: Launch, reverse: bool = False) -> None:
    """Run every thread of the launch on this CPU.

    reverse: run blocks, warps and lanes in the opposite order, and complete asynchronous copies at once instead of when
    they are waited for; the result must not depend on it. Blocks run one after another, so races between blocks are not
    found. RuntimeError if the kernel breaks a rule of the thread model (misaligned vector, barrier not reached by all).
    """
    run = getattr(_library(work.source, work.defines, work.stamp), f"launch_{work.kernel}")
    run.restype = ctypes.c_char_p
    values = [_value(argument) for argument in work.arguments]
    pointers = (ctypes.c_void_p * len(values))(*[ctypes.addressof(value) for value in values])
    error = run((ctypes.c_uint * 6)(*work.grid, *work.block), ctypes.c_uint(work.shared_bytes), reverse, pointers)
    if error:
        raise RuntimeError(f"kernel {work.kernel} failed in the emulator: {error.decode()}")


def _value(argument: Argument) -> ctypes._SimpleCData:
    if isinstance(argument, int | float):
        return ctypes.c_int(argument) if isinstance(argument, int) else ctypes.c_float(argument)
    return ctypes.c_void_p(None if argument is None else argument.data_ptr())


@functools.cache
def _library(source: str, defines: tuple[tuple[str, int], ...], stamp: int) -> ctypes.CDLL:
    headers = sorted([*SOURCES.glob("*.cuh"), *SOURCES.glob("*.h")])
    texts = "".join(path.read_text() for path in (SOURCES / f"{source}.cu", *headers))
    macros = [f"-D{name}={value}" for name, value in defines]
    key = hashlib.sha256("\n".join([texts, *compiler(), *FLAGS, *macros]).encode()).hexdigest()[:16]
    try:
        return _loaded(source, macros, _artifacts() / f"{source}-{key}.so")
    except OSError:  # a read-only checkout, or a full disk
        return _loaded(source, macros, Path(_temporary().name) / f"{source}-{key}.so")


def _artifacts() -> Path:
    return Path(os.environ.get("ARTIFACTS_DIR") or Path(__file__).parents[1] / "artifacts") / "emulator"


@functools.cache
def _temporary() -> tempfile.TemporaryDirectory:
    """Return a folder that is deleted when this process ends."""
    return tempfile.TemporaryDirectory(prefix="emulator-")


def _loaded(source: str, macros: list[str], library: Path) -> ctypes.CDLL:
    if not library.exists():
        _compile(source, macros, library)
    return ctypes.CDLL(str(library))


def _compile(source: str, macros: list[str], library: Path) -> None:
    """Compile the source with one plain C function per kernel, through which ctypes can start it."""
    entries = "".join(
        f'extern "C" const char* launch_{name}(const unsigned* shape, unsigned shared, bool reverse, void** values) '
        f"{{ return emulator::launch({name}, {bound}, shape, shared, reverse, values); }}\n"
        for name, bound in kernel_names(source).items()
    )
    library.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=library.parent) as folder:
        code, built = Path(folder) / f"{source}.cpp", Path(folder) / "library.so"
        code.write_text(f'#include "{source}.cu"\n{entries}')
        command = [*compiler(), *FLAGS, *macros, "-I", str(SOURCES), "-o", str(built), str(code)]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"{source}.cu does not compile for the emulator: {done.stderr.strip()[:2000]}")
        os.replace(built, library)


RUNNERS["cpu"] = launch
