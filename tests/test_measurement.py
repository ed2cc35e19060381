"""The one measurement, against formulas and counts by hand."""

import itertools
import math

import cpuinfo
import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch.utils.flop_counter import FlopCounterMode

from data import load
from measurement import accuracy, cost, latency, timing, wilson_interval
from models import ResNet, build
from storage import export_onnx, open_onnx


@pytest.mark.parametrize("correct, count", [(9321, 10000), (0, 359), (359, 359), (1, 2)])
def test_wilson_interval_is_the_closed_formula(correct, count):
    z, p = 1.959963984540054, correct / count
    middle = (p + z * z / (2 * count)) / (1 + z * z / count)
    half = z / (1 + z * z / count) * math.sqrt(p * (1 - p) / count + z * z / (4 * count**2))
    assert wilson_interval(p, count) == pytest.approx((middle - half, middle + half), abs=1e-9)


def test_accuracy_against_numpy(tmp_path):
    """A linear classifier in ONNX, and the same in numpy on pixels normalized by hand."""
    dataset = load("digits")
    weight = np.random.default_rng(3).standard_normal((64, 10)).astype(np.float32)
    nodes = [
        helper.make_node("Flatten", ["images"], ["flat"]),
        helper.make_node("MatMul", ["flat", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "linear",
        [helper.make_tensor_value_info("images", TensorProto.FLOAT, ["batch", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 10])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    onnx.save(model, tmp_path / "linear.onnx")
    pixels = dataset.test.images.numpy().astype(np.float64) / 255
    logits = ((pixels - dataset.mean[0]) / dataset.std[0]).reshape(-1, 64) @ weight
    expected = (logits.argmax(1) == dataset.test.labels.numpy()).mean()
    assert accuracy(open_onnx(tmp_path / "linear.onnx"), dataset, dataset.test) == pytest.approx(expected, abs=1e-9)


def test_cost_of_resnet18():
    model = build("resnet18", shape=(3, 32, 32), classes=10)
    # Side, input and output channels of each stage: four 3x3 convolutions, and a 1x1 where the shape changes.
    macs = 32**2 * 9 * 3 * 64 + 4 * 32**2 * 9 * 64 * 64 + 512 * 10
    for side, width in ((16, 128), (8, 256), (4, 512)):
        macs += side**2 * (9 * width // 2 * width + 3 * 9 * width * width + width // 2 * width)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        model.eval()(torch.zeros(1, 3, 32, 32))
    counted = cost(model)
    assert counted["macs"] == macs == counter.get_total_flops() // 2 == 555_422_720
    assert counted["parameters"] == 11_173_962

    with torch.no_grad():
        model.conv.weight[:32] = 0  # half of the stem
    after = cost(model)
    assert after["macs"] == macs and after["nonzero_macs"] == counted["nonzero_macs"] - 32**2 * 9 * 3 * 32
    assert after["nonzero_parameters"] == counted["nonzero_parameters"] - 9 * 3 * 32


def test_latency_of_a_file_against_itself(folders, tmp_path):
    model = ResNet((8, 16), (1, 1), 3, 10).eval()
    model.spec = {"architecture": "small", "shape": [3, 16, 16], "classes": 10}
    file = tmp_path / "small.onnx"
    export_onnx(model, file)
    result = latency(file, file, model)
    assert set(result) == {"contention", "batch1", "batch1_one_thread", "batch64", "batch64_one_thread"}
    for setting in set(result) - {"contention"}:
        times = result[setting]
        assert 0 < times["median"] <= times["p95"] and times["runs"] >= 7
        assert times["base_median"] > 0 and times["eager_median"] > 0
    assert 0 <= result["contention"] <= 1


@pytest.fixture
def clock(monkeypatch):
    """A clock that stands still but for what sleeps, so that times are those that a test says, on any machine."""

    class Clock:
        now = 0.0

        def sleep(self, seconds):
            self.now += seconds

        def perf_counter(self):
            self.now += 1e-6  # a tick, so that a loop until a deadline ends
            return self.now

    clock = Clock()
    monkeypatch.setattr(timing, "time", clock)
    return clock


def test_runs_are_timed_by_turns(clock):
    calls = []

    def takes(name, seconds):
        return lambda: (calls.append(name), clock.sleep(seconds))

    times = timing._alternate(takes("a", 0.001), takes("b", 0.004), takes("c", 0.002), seconds=1e-9)
    # In its turn each is called twice: once to be back in the caches, once for the clock.
    assert calls == ["a", "b", "c"] * timing.WARMUP_RUNS + ["a", "a", "b", "b", "c", "c"] * timing.RUNS[0]
    assert times == pytest.approx(np.array([[1.0], [4.0], [2.0]]).repeat(timing.RUNS[0], axis=1), abs=0.01)


@pytest.mark.parametrize(("awake", "milliseconds"), [(0.0, 2), (timing.AWAKE, 0)])
def test_threads_that_wake_slowly_are_awake_before_the_clock_starts(clock, monkeypatch, awake, milliseconds):
    monkeypatch.setattr(timing, "AWAKE", awake)
    last = woken = 0.0

    def sleepy():  # takes 2 ms longer in the first 5 ms after it was left alone for 8 ms
        nonlocal last, woken
        woken = clock.now if clock.now - last > 0.008 else woken
        clock.sleep(0.002 if clock.now - woken < 0.005 else 1e-5)
        last = clock.now

    times, _ = timing._alternate(sleepy, lambda: clock.sleep(1e-5), seconds=timing.SECONDS, pausing=True)
    assert np.median(times) == pytest.approx(milliseconds, abs=0.1)


def test_the_budget_bounds_the_runs_and_the_pauses(clock):
    """A hundredth of a second a call: as many runs as the budget has, at least 7, and pauses within it."""
    for seconds, least, most in ((1e-9, 7, 7), (1.0, 8, 50), (1000.0, 200, 200)):
        noise = iter(np.random.default_rng(0).uniform(0.005, 0.015, 10**5))  # never settles before 200 runs
        started = clock.now
        times = timing._alternate(*[lambda: clock.sleep(next(noise))] * 2, seconds=seconds, pausing=True)  # noqa: B023
        assert least <= times.shape[1] <= most
        assert clock.now - started < max(seconds, 0.5) + 0.1


def test_the_budget_comes_from_outside(monkeypatch):
    monkeypatch.delenv("MEASURE_SECONDS", raising=False)
    assert timing.measuring_seconds() == 1.5
    for text, seconds in (("0.02", 0.02), ("3", 3.0), ("", 1.5)):
        monkeypatch.setenv("MEASURE_SECONDS", text)
        assert timing.measuring_seconds() == seconds
    for text in ("fast", "0", "-1", "inf", "nan"):
        monkeypatch.setenv("MEASURE_SECONDS", text)
        with pytest.raises(ValueError, match=f"such as 0.5, not '{text}'"):
            timing.measuring_seconds()


def test_other_programs_are_what_this_one_did_not_take():
    before = timing._ProcessorSeconds(total=100.0, busy=40.0, own=7.0)
    assert timing._others_share(before, timing._ProcessorSeconds(110.0, 49.0, 11.0)) == pytest.approx(0.5)
    assert timing._others_share(before, timing._ProcessorSeconds(110.0, 44.0, 11.1)) == 0  # clocks of two grains


def test_contention_is_warned_of_once_and_stands_in_every_record(tmp_path, monkeypatch):
    model = ResNet((4,), (1,), 1, 2).eval()
    model.spec = {"architecture": "small", "shape": [1, 8, 8], "classes": 2}
    monkeypatch.setattr(timing, "time_by_turns", lambda *given: {})
    file = tmp_path / "small.onnx"
    turns = itertools.cycle([timing._ProcessorSeconds(0.0, 0.0, 0.0), timing._ProcessorSeconds(10.0, 7.0, 5.0)])
    monkeypatch.setattr(timing, "_processor_seconds", lambda: next(turns))
    timing._warn_of_contention.cache_clear()
    with pytest.warns(UserWarning, match="more than 10% of the cores") as warned:
        assert [latency(file, file, model)["contention"] for _ in range(3)] == [0.2] * 3
    assert len(warned) == 1


def test_timing_ends_when_the_ratio_is_known():
    draws = np.random.default_rng(0)
    # Medians of 2,000 repetitions: their spread against the standard error that ends the timing.
    noise = np.exp(draws.normal(0, 0.05, (2000, 60)))
    assert np.std(np.median(np.log(noise), axis=1)) == pytest.approx(np.sqrt(np.pi / 2) * 0.05 / np.sqrt(60), rel=0.1)
    rows = [[1.0, value, 1.0] for value in noise[0]]
    assert timing._settled(rows) and not timing._settled(rows[:25]) and not timing._settled(rows[:19] * 1)


def test_the_processor_is_the_one_that_py_cpuinfo_finds(monkeypatch):
    name, flags = timing._processor()
    info = cpuinfo.get_cpu_info()
    assert name == info["brand_raw"] and {"avx2", "sse4_2"} & flags == {"avx2", "sse4_2"} & set(info["flags"])
    monkeypatch.setattr(timing.Path, "read_text", lambda path: "no such lines")  # as on other systems
    assert timing._processor() == (name, set(info["flags"]))
