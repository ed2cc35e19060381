"""The one measurement, against formulas and counts by hand."""

import math
import time

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
    assert 0.3 < result["batch64_one_thread"]["speedup"] < 3  # about 1; the machine may be busy


def test_runs_are_timed_by_turns(monkeypatch):
    calls = []
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(timing, "AWAKE", 0.0)
    slow = lambda: (calls.append("b"), time.sleep(0.004))  # noqa: E731
    times = timing._alternate(lambda: calls.append("a"), slow, lambda: calls.append("c"))
    # In its turn each is called twice: once to be back in the caches, once for the clock.
    assert calls == ["a", "b", "c"] * timing.WARMUP_RUNS + ["a", "a", "b", "b", "c", "c"] * timing.RUNS[0]
    assert times.shape == (3, timing.RUNS[0])
    assert (times[1] >= 4).all() and np.median(times[0]) < 1 and np.median(times[2]) < 1


@pytest.mark.parametrize(("awake", "milliseconds"), [(0.0, 2), (timing.AWAKE, 0)])
def test_threads_that_wake_slowly_are_awake_before_the_clock_starts(monkeypatch, awake, milliseconds):
    monkeypatch.setattr(timing, "SECONDS", 0.0)
    monkeypatch.setattr(timing, "AWAKE", awake)
    last = woken = 0.0

    def sleepy():  # takes 2 ms longer in the first 5 ms after it was left alone for 8 ms
        nonlocal last, woken
        now = time.perf_counter()
        woken = now if now - last > 0.008 else woken
        time.sleep(0.002 if now - woken < 0.005 else 0)
        last = time.perf_counter()

    times = timing._alternate(sleepy, pause=0.01)
    assert milliseconds <= np.median(times) < milliseconds + 1


def test_timing_ends_when_the_ratio_is_known():
    draws = np.random.default_rng(0)
    # Medians of 2,000 repetitions: their spread against the standard error that ends the timing.
    noise = np.exp(draws.normal(0, 0.05, (2000, 60)))
    assert np.std(np.median(np.log(noise), axis=1)) == pytest.approx(np.sqrt(np.pi / 2) * 0.05 / np.sqrt(60), rel=0.1)
    rows = [[1.0, value, 1.0] for value in noise[0]]
    assert timing._settled(rows) and not timing._settled(rows[:25]) and not timing._settled(rows[:19] * 1)
