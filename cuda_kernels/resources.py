"""What the compiler gives each kernel: registers, shared memory, stack and spills, for three generations of GPUs."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sysconfig
import tempfile
from pathlib import Path

import pandas as pd

from .launch import SOURCES, sources

TABLE = Path(__file__).parent / "resources.csv"  # committed
TARGETS = ("75", "80", "90a")  # Turing, Ampere, Hopper
FLAGS = ("-std=c++17", "-O3", "-cubin", "-Xptxas", "-v")
COLUMNS = ["source", "kernel", "target", "registers", "shared_bytes", "stack_bytes", "spill_stores", "spill_loads"]
ENTRY = re.compile(
    r"entry function '(\w+)' for 'sm_(\w+)'.*?"
    r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads.*?Used (\d+) registers([^\n]*)",
    re.DOTALL,
)


def nvcc() -> str | None:
    """Return the path of nvcc: on the PATH, or from the Python package nvidia-cuda-nvcc; None if there is none."""
    packages = Path(sysconfig.get_path("purelib")) / "nvidia"
    return shutil.which("nvcc") or next((str(path) for path in sorted(packages.glob("cu*/bin/nvcc"))), None)


def compile_source(source: str, target: str) -> pd.DataFrame:
    """Compile a .cu file for sm_<target>; return one row per kernel. RuntimeError if it does not compile, or warns."""
    compiler = nvcc()
    if compiler is None:
        raise RuntimeError(
            "there is no nvcc: install the CUDA toolkit, or pip install nvidia-cuda-nvcc nvidia-nvvm nvidia-cuda-crt "
            "nvidia-cuda-cccl nvidia-cuda-runtime"
        )
    with tempfile.TemporaryDirectory() as folder:
        out = os.path.join(folder, "out.cubin")
        command = [compiler, *FLAGS, f"-gencode=arch=compute_{target},code=sm_{target}", "-o", out]
        done = subprocess.run([*command, str(SOURCES / f"{source}.cu")], capture_output=True, text=True)
    said = done.stderr + done.stdout
    if done.returncode or "warning" in said:
        raise RuntimeError(f"{source}.cu does not compile for sm_{target} without a complaint: {said.strip()[:2000]}")
    return pd.DataFrame([_row(source, *match.groups()) for match in ENTRY.finditer(said)], columns=COLUMNS)


def _row(
    source: str, kernel: str, target: str, stack: str, stores: str, loads: str, registers: str, rest: str
) -> tuple:
    shared = re.search(r"(\d+) bytes smem", rest)
    numbers = (int(registers), int(shared[1]) if shared else 0, int(stack), int(stores), int(loads))
    return (source, kernel, f"sm_{target}", *numbers)


def write_resources() -> pd.DataFrame:
    """Compile everything, and write the table with the compiler's version; takes minutes."""
    table = pd.concat([compile_source(source, target) for source in sources() for target in TARGETS])
    table["nvcc"] = _version()
    table.to_csv(TABLE, index=False)
    return table


def by_generation(table: pd.DataFrame) -> pd.DataFrame:
    """Return registers, shared memory and spilled bytes with one row per kernel and a column per generation."""
    table = table.assign(spills=table["spill_stores"] + table["spill_loads"])
    wide = table.pivot(index=["source", "kernel"], columns="target", values=["registers", "shared_bytes", "spills"])
    return wide.astype(int)


def _version() -> str:
    said = subprocess.run([str(nvcc()), "--version"], capture_output=True, text=True).stdout
    found = re.search(r"V([\d.]+)", said)
    return found[1] if found else "unknown"
