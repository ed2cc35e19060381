"""Measurement of the kernels: what is timed is right, records survive, and the crossover is where the curves meet."""

from __future__ import annotations

import functools
import json
import shutil
from types import SimpleNamespace

import matplotlib
import numpy as np
import pandas as pd
import pytest
import torch

matplotlib.use("Agg")
import matplotlib.pyplot as plt

from cuda_kernels import cpu, gpu, measure, records, sparse, work
from cuda_kernels.dense import prepare_gemv
from cuda_kernels.launch import RUNNERS
from cuda_kernels.sparse import CSR, compress, prepare_spmv
from models import build
from plots import kernels as kernel_plots
from report.published_kernels import kernels_beside_published, published_kernels

TINY = work.Sizes(
    square_gemv=64,
    fully_connected=(128, 16, 304),
    square_gemm=64,
    square_spmm=48,
    spmm_columns=(16,),
    densities=(0.02, 0.1),
    study_densities=(0.85,),
    batches=(2,),
    layers=(("a", 16, 27, 24), ("b", 16, 32, 64)),
)
needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="the emulator needs g++, and there is none")


def record(**changed) -> dict:
    base = {
        "device": "Some GPU (TM)",
        "family": "gemv_fp32",
        "kernel": "gemv_vector4",
        "m": 3,
        "n": 1,
        "k": 4,
        "density": 0.1,
        "time_ms": 2.0,
        "timing": "graph",
        "bytes": 4_000_000,
        "operations": 8_000_000,
        "copy_gbytes_per_s": 4.0,
        "fp32_gops_per_s": 16.0,
        "int8_gops_per_s": 64.0,
    }
    return {**base, **changed}


@needs_compiler
def test_everything_that_is_timed_is_right() -> None:
    seen = set()
    for item in work.all_work(TINY, "cpu", lambda size: 2):
        assert len(item.runs) == 2 and item.bytes > 0 and item.operations >= 0
        assert work.relative_error(item) <= (0 if item.family == "gemm_int8" else 1e-6), (item.kernel, item.case)
        seen.add((item.family, item.maker))
    assert {maker for _, maker in seen} == {"ours", "cuBLAS", "cuBLASLt", "cuSPARSE"}


@needs_compiler
def test_a_measurement_writes_one_record_a_kernel(tmp_path, monkeypatch) -> None:
    """The GPU's part is replaced: its clock, its properties and its memory; the rest runs as it will there."""
    monkeypatch.setattr(gpu, "available", lambda: None)
    monkeypatch.setattr(measure, "time_runs", lambda runs: ([1.0, 2.0, 3.0], "graph"))
    ceilings = ("copy_gbytes", "fp32_gops", "int8_gops")
    monkeypatch.setattr(measure, "ceilings", lambda: {f"{name}_per_s": 1.0 for name in ceilings})
    monkeypatch.setattr(measure, "copy_records", lambda: [record(family="copy", kernel="copy pinned", device="A GPU")])
    monkeypatch.setattr(measure, "buffers_needed", lambda size: 1)
    facts = SimpleNamespace(name="A GPU", multi_processor_count=2, L2_cache_size=1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    every = list(work.all_work(TINY, "cpu", lambda size: 1))
    monkeypatch.setattr(measure, "all_work", lambda sizes, device, copies: iter(every))
    frame = measure.measure(TINY, tmp_path)
    assert len(frame) == len(every) + 1 == len(list(tmp_path.glob("*.json")))
    stored = records.load(tmp_path)
    assert (stored.time_ms == 2.0).all() and stored.commit.notna().any()
    assert (stored[["share_of_copy", "share_of_rate"]] > 0).all(axis=None)
    monkeypatch.setattr(measure, "measure_work", lambda item: pytest.fail("measured again what has a record"))
    assert len(measure.measure(TINY, tmp_path, again=False)) == len(every) + 1
    next(tmp_path.glob("*copy*")).unlink()  # as if it had been cut short
    assert len(measure.measure(TINY, tmp_path, again=False)) == len(every) + 1


def test_what_does_not_fit_the_memory_is_left_out(monkeypatch) -> None:
    def too_large(*_):
        raise torch.OutOfMemoryError("no room")
        yield

    monkeypatch.setattr(work, "spmv_work", too_large)
    monkeypatch.setattr(torch.cuda, "empty_cache", lambda: None)
    with pytest.warns(UserWarning, match="does not fit this GPU"):
        families = {item.family for item in work.all_work(TINY, "cpu", lambda size: 1)}
    assert families == {"gemv_fp32", "gemm_fp32", "gemm_int8", "spmm_csr"}


@pytest.mark.parametrize(("family", "answer"), [("gemm_fp32", [99.0, 100.0]), ("gemm_int8", [100_001, 100_000])])
def test_a_wrong_kernel_is_not_timed(family: str, answer: list) -> None:
    """INT8 must be equal: of large sums, one that is off by one is a small relative error."""
    out, truth = torch.tensor(answer, dtype=torch.int32 if family == "gemm_int8" else None), answer[-1]
    run, truth = (lambda: out.clone()), torch.full((2,), truth, dtype=torch.float64)
    item = work.Work(family, "k", "ours", "c", 1, 1, 1, 1.0, 4, 2, (run,), truth)
    with pytest.raises(RuntimeError, match="k on c is wrong"):
        measure.measure_work(item)


@needs_compiler
def test_a_kernel_that_writes_nothing_is_not_timed(monkeypatch) -> None:
    """Though the kernel before it has left the right answer in the output that they share."""
    idle = ("gemv_vector4", "gemm_blocked", "gemm_int8_mma", "spmv_warp_per_row", "spmm_row_split")
    run = RUNNERS["cpu"]
    monkeypatch.setitem(RUNNERS, "cpu", lambda launch: None if launch.kernel.startswith(idle) else run(launch))
    monkeypatch.setattr(measure, "time_runs", lambda runs: ([1.0], "graph"))
    for item in work.all_work(TINY, "cpu", lambda size: 1):
        if item.kernel.startswith(idle):
            with pytest.raises(RuntimeError, match="is wrong"):
                measure.measure_work(item)
        else:
            measure.measure_work(item)


def test_resnet18_is_measured_layer_by_layer() -> None:
    """The sizes are those of the network itself, as its layers receive images of 32 x 32."""
    found = set()

    def note(layer: torch.nn.Module, inputs: tuple, output: torch.Tensor) -> None:
        found.add((output[0, 0].numel() if output.ndim == 4 else 1, layer.weight[0].numel(), len(layer.weight)))

    network = build("resnet18", shape=(3, 32, 32), classes=10).eval()
    for layer in network.modules():
        if isinstance(layer, torch.nn.Conv2d | torch.nn.Linear):
            layer.register_forward_hook(note)
    network(torch.zeros(1, 3, 32, 32))
    layers = work.Sizes().layers
    assert {layer[1:] for layer in layers} == found
    assert len(layers) == len(found)


def test_spmm_is_measured_at_every_density_and_width(monkeypatch) -> None:
    sizes = work.Sizes()
    for name in ("gemv_work", "fp32_work", "int8_work", "spmv_work"):
        monkeypatch.setattr(work, name, lambda *_: iter(()))
    monkeypatch.setattr(work, "spmm_work", lambda case, k, n, density, *_: iter([(n, density)]))
    asked = list(work.all_work(sizes, "cpu", lambda size: 1))
    assert len(asked) == len(set(asked))
    assert set(asked) >= {(n, density) for n in (16, 64, 256, 1000, 4096) for density in sizes.densities}


def test_buffers_in_turn_outgrow_the_cache(monkeypatch) -> None:
    facts = SimpleNamespace(L2_cache_size=50 << 20)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: facts)
    smallest = min(m * k + n * k + 4 * m * n for _, m, k, n in work.Sizes().layers)  # an image through an INT8 layer
    for size in (smallest, 10**6, 10**9):
        assert measure.buffers_needed(size) * size >= 4 * facts.L2_cache_size


def test_records_are_written_whole_and_read_back(tmp_path) -> None:
    path = records.write(record(), tmp_path)
    assert path.name == "some-gpu-tm-gemv-vector4-3x1x4-d0.1.json"
    whole = json.loads(path.read_text())
    assert records.read(record(), tmp_path) == record() == {key: own for key, own in whole.items() if key != "seal"}
    assert records.read(record(density=0.2), tmp_path) is None
    assert list(tmp_path.iterdir()) == [path]
    assert records.load(tmp_path / "nowhere").empty
    for text in (
        json.dumps(whole | {"time_ms": 1e-6}),
        json.dumps(record()),
        path.read_text()[:100],
        "[]",
        "{}",
        "null",
    ):
        path.write_text(text)
        with pytest.warns(UserWarning, match="is not a readable record .*: skipped"):
            assert records.load(tmp_path).empty and records.read(record(), tmp_path) is None


def test_records_follow_the_results_folder(tmp_path, monkeypatch) -> None:
    """As it is when they are written or read, and not as it was when the module was imported."""
    for name in ("one", "two"):
        monkeypatch.setenv("RESULTS_DIR", str(tmp_path / name))
        assert records.load().empty and records.read(record()) is None
        assert records.write(record()).parent == tmp_path / name / "kernels"
        assert records.read(record()) == record() and len(records.load()) == 1


def test_rates_are_bytes_and_operations_over_time() -> None:
    rates = {"gbytes_per_s": 2.0, "gops_per_s": 4.0, "share_of_copy": 0.5, "share_of_rate": 0.25}
    assert records.rates(record()) == rates
    assert records.rates(record(family="gemm_int8"))["share_of_rate"] == 4 / 64


def test_crossover_is_where_the_curves_meet() -> None:
    curve = pd.DataFrame({"density": [0.4, 0.1, 0.01], "time_ms": [4.0, 1.0, 0.1]})  # 10 ms x density
    assert records.crossover(curve, 2.0) == pytest.approx(0.2)
    assert records.crossover(curve, 100.0) is None and records.crossover(curve, 0.01) is None


def test_summary_is_the_median_and_its_spread() -> None:
    summary = records.summarize(list(range(1, 102)))
    assert summary["time_ms"] == 51 and summary["time_ms_p25"] == 26 and summary["samples"] == 101


def test_cpu_products_are_right() -> None:
    for run, _, operations in cpu.product_runs(3, 5, 7, 1):
        assert np.shape(run()[0]) == (3, 5) and operations == 2 * 3 * 5 * 7
    (dense, dense_bytes, _), (csr, csr_bytes, _) = cpu.spmv_runs(50, 0.1)
    np.testing.assert_allclose(dense(), csr(), atol=1e-4)
    assert csr_bytes < dense_bytes


def test_cpu_is_measured_once_then_read(tmp_path, monkeypatch) -> None:
    asked = {"products": [(2, 8, 16)], "square": 32, "densities": (0.1, 0.5), "seconds": 0.001, "folder": tmp_path}
    first = cpu.measure_cpu(**asked)
    assert {"onnx_fp32", "onnx_int8", "numpy_dense", "scipy_csr"} == set(first.kernel)
    monkeypatch.setattr(cpu, "time_alternately", lambda *a: pytest.fail("measured again what has a record"))
    again = cpu.measure_cpu(**asked)
    assert sorted(again.time_ms) == sorted(first.time_ms)


def test_the_study_is_quoted() -> None:
    table = published_kernels()
    assert table.loc[table.what == "INT8", "reported_ms"].item() == 125.0 and len(table) == 8


def gpu_records() -> pd.DataFrame:
    """Made-up records: two kernels and two libraries, three densities."""
    rows = []
    for kernel, maker, factor in (
        ("spmv_delta8_fp32", "ours", 5),
        ("spmv_warp_per_row", "ours", 8),
        ("torch.sparse mv", "cuSPARSE", 9),
    ):
        for density in (0.01, 0.1, 0.5):
            rows.append(
                record(
                    kernel=kernel,
                    maker=maker,
                    family="spmv_csr",
                    case="square 8",
                    density=density,
                    time_ms=factor * density,
                    time_ms_p25=factor * density * 0.9,
                    share_of_copy=0.5,
                    time_ms_p75=factor * density * 1.1,
                    label=f"{kernel} {density}",
                )
            )
    return pd.DataFrame(rows)


def test_our_fastest_stands_beside_the_library() -> None:
    table = records.beside_libraries(gpu_records())
    assert list(table["kernel ours"]) == ["spmv_delta8_fp32"] * 3
    np.testing.assert_allclose(table.speed, 9 / 5)


def test_times_taken_differently_do_not_stand_beside_each_other() -> None:
    frame = gpu_records()
    frame.loc[(frame.maker == "cuSPARSE") & (frame.density == 0.1), "timing"] = "queued"
    assert list(records.beside_libraries(frame).density) == [0.01, 0.5]


def test_the_study_stands_beside_ours() -> None:
    ours = pd.DataFrame([record(kernel="gemv_vector4", case="square 25088", density=1.0, time_ms=0.5)])
    table = kernels_beside_published(ours).set_index("what")
    assert table.loc["dense FP32 matrix-vector", "reported / fastest"] == pytest.approx(10.428 / 0.5)
    assert (
        table["fastest, ms"].notna().sum() == 1 and kernels_beside_published(pd.DataFrame())["fastest, ms"].isna().all()
    )


def test_charts_show_what_they_are_given() -> None:
    frame = gpu_records()
    ax = kernel_plots.time_over_density(frame, 1.0, {"spmv_warp_per_row": 0.125})
    assert [line.get_ydata()[0] for line in ax.lines if len(line.get_ydata()) == 1] == [1.0]
    assert any("12.5%" in text.get_text() for text in ax.get_legend().get_texts())
    bars = kernel_plots.kernel_bars(frame)
    assert [bar.get_width() for bar in bars.patches] == list(frame.time_ms[::-1])
    roof = kernel_plots.roofline(frame, 100.0, {"FP32": 500.0})
    x, y = roof.lines[0].get_data()
    np.testing.assert_allclose(y, np.minimum(100 * x, 500))
    plt.close("all")


def test_the_launcher_passes_pointers_and_sizes(monkeypatch) -> None:
    """PyCUDA's function is replaced: what reaches it is the format, the addresses and the integers, in order."""
    calls = []
    function = SimpleNamespace(prepared_async_call=lambda *values, **named: calls.append((values, named)))
    monkeypatch.setattr(gpu, "_function", lambda *key: calls.append(key) or function)
    monkeypatch.setattr(gpu, "stream", lambda: SimpleNamespace(handle=7))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    a, x = torch.ones(5, 8), torch.ones(8)
    launch = prepare_gemv(a, x)
    gpu.launch(launch)
    assert calls[0][:-1] == ("gemv_fp32", "gemv_vector4", (), "PPPii")
    assert calls[1] == (
        ((2, 1, 1), (128, 1, 1), None, a.data_ptr(), x.data_ptr(), launch.output.data_ptr(), 5, 8),
        {"shared_size": 0},
    )
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=3))
    with pytest.raises(RuntimeError, match="default stream"):
        gpu.launch(launch)


def test_shared_memory_is_asked_for_once(monkeypatch) -> None:
    """PyCUDA's function is replaced by the driver's rule: a launch takes at most what was last set for its function."""
    allowed = [48 << 10]
    function = SimpleNamespace(
        get_attribute=lambda name: {"static": 1024}[name],
        set_attribute=lambda name, value: allowed.append({"dynamic": value}[name]),
        prepare=lambda formats: function,
        prepared_async_call=lambda *_, shared_size: launched.append(shared_size <= allowed[-1]),
    )
    launched: list[bool] = []
    attributes = SimpleNamespace(SHARED_SIZE_BYTES="static", MAX_DYNAMIC_SHARED_SIZE_BYTES="dynamic")
    monkeypatch.setattr(gpu, "_driver", lambda: SimpleNamespace(function_attribute=attributes))
    monkeypatch.setattr(gpu, "_module", lambda *key: SimpleNamespace(get_function=lambda name: function))
    monkeypatch.setattr(gpu, "_function", functools.cache(gpu._function.__wrapped__))
    monkeypatch.setattr(gpu, "stream", lambda: SimpleNamespace(handle=7))
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: SimpleNamespace(cuda_stream=0))
    for module in (gpu, sparse):
        monkeypatch.setattr(module, "shared_memory_limit", lambda device: 227 << 10)
    for k in (25088, 13000, 25088):
        gpu.launch(prepare_spmv(compress(CSR.from_dense(torch.ones(1, k))), torch.ones(k)))
    assert launched == [True] * 3 and allowed[1:] == [(227 << 10) - 1024]
