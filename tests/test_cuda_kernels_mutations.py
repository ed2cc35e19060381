"""The checks of the CUDA kernels fail where a barrier or a wait is missing, too weak or too late."""

from __future__ import annotations

import ctypes
import re
import shutil
from collections.abc import Callable, Iterator

import numpy as np
import pytest

from cuda_kernels import check, check_layers, dense, emulator
from cuda_kernels import launch as launching
from cuda_kernels.launch import SOURCES, Launch, sources

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++, and there is none"),
]

WEAKER = {"__syncthreads": ("", "__syncwarp();"), "__syncwarp": ("",)}
# A barrier that says that a buffer is free, and the lines after it that stage the next tile there.
STAGED = {"gemm_fp32": 1, "gemm_int8": 2, "conv_int8": 1, "gemm_int8_hopper": 1}  # how many a source has
STAGING = re.compile(r"__syncthreads\(\);(\s+(?:if \(chunk \+ 1 < end\) stage[^;]*;|int ahead[^}]*}))")


def mutated(text: str) -> tuple[str, list[str]]:
    """The source with all mutations in it, and what they are; the variable `mutant` says which one is at work."""
    made = ["as it is"]

    def choice(what: str, mutation: str, original: str) -> str:
        made.append(f"{what} ({len(made)})")
        return f"if (mutant == {len(made) - 1}) {{ {mutation} }} else {{ {original} }}"

    def stage_early(match: re.Match) -> str:  # on one line, and with a space by which `weaken` does not find it
        staging = match[1].replace("\n", " ")
        return choice("staged before the barrier", f"{staging} __syncthreads ();", match[0])

    def weaken(match: re.Match) -> str:
        line = match.string.count("\n", 0, match.start()) + 1
        original, name, groups = match.group(0, 1, 2)
        wait = (f"copy_async_wait<{groups} + 1>();",) if groups else ()
        for mutation in WEAKER.get(name, wait):
            original = choice(f"line {line}: {mutation or 'nothing'} for {match[0]}", mutation, original)
        return original

    text = STAGING.sub(stage_early, text)
    text = re.sub(r"\b(__sync\w+|copy_async_wait)(?:<(.*)>)?\(\);", weaken, text)
    return 'extern "C" { int mutant = 0; }\n' + text, made


def with_main_loop(text: str) -> str:
    """The source with the header in it that holds the barriers of the INT8 products."""
    return text.replace('#include "int8_tiles.cuh"', (SOURCES / "int8_tiles.cuh").read_text())


def small_cases(source: str, rng: np.random.Generator) -> Iterator[check.Case]:
    """Sizes at which a loop goes round often enough for a buffer to be used again."""
    if source == "gemv_fp32":
        yield from check.gemv_cases(rng, "cpu", 5, 131)
    elif source == "gemm_fp32":
        yield from check.gemm_cases(rng, "cpu", 65, 17, 772)
    elif source == "gemm_int8":
        cases = check.int8_cases(rng, "cpu", 33, 16, 1040)
        yield from (case for case in cases if case.what.endswith("sums") and case.kernel != dense.HOPPER)
    elif source == "gemm_int8_hopper":
        cases = check.int8_cases(rng, "cpu", 33, 16, 1040)
        yield from (case for case in cases if case.kernel == dense.HOPPER and case.what.endswith("sums"))
    elif source == "conv_int8":
        window = check_layers._window((3, 3), (5, 4), (1, 1), (1, 1))
        for tile in ((64, 16), (16, 64)):
            yield from check_layers.conv_cases(rng, "cpu", (1, 5, 4, 64), 16, window, tile)
    elif source == "layers_int8":
        yield from check_layers.sparse_layer_cases(rng, "cpu", (1, 5, 4, 16))
    else:
        cases = check.sparse_cases(rng, "cpu", 9, 131, 0.5)
        yield from (case for case in cases if case.kernel.startswith(source[:4]))


def runner(number: int, reverse: bool) -> Callable[[Launch], None]:
    def run(work: Launch) -> None:
        library = emulator._library(work.source, work.defines, work.stamp)
        ctypes.c_int.in_dll(library, "mutant").value = number
        emulator.launch(work, reverse)

    return run


def right(case: check.Case, number: int, reverse: bool) -> bool:
    try:
        return check.run_case(case, "cpu", runner(number, reverse)).passed
    except RuntimeError:
        return False


@pytest.mark.parametrize("source", sources())
def test_no_barrier_can_be_left_out(source: str, rng, tmp_path, monkeypatch) -> None:
    folder = shutil.copytree(SOURCES, tmp_path / "kernels")
    text, made = mutated(with_main_loop((folder / f"{source}.cu").read_text()))
    (folder / f"{source}.cu").write_text(text)
    for module in (emulator, launching):
        monkeypatch.setattr(module, "SOURCES", folder)
    assert sum(what.startswith("staged") for what in made) == STAGED.get(source, 0)
    cases = list(small_cases(source, rng))
    wrong = {
        what: any(not right(case, number, reverse) for case in cases for reverse in (False, True))
        for number, what in enumerate(made)
    }
    assert not wrong.pop("as it is")
    assert wrong and all(wrong.values()), [what for what, shown in wrong.items() if not shown]
