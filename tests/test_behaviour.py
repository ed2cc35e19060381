"""What files answer: calibration, corruptions, paired tests, and what is kept of them beside the records."""

import json
import warnings

import numpy as np
import pandas as pd
import pytest
import torch
from scipy.io import savemat
from scipy.stats import binomtest, norm
from sklearn.metrics import brier_score_loss, confusion_matrix, log_loss, roc_auc_score
from torchmetrics.functional.classification import multiclass_calibration_error

from data import Dataset, Split
from experiment import Recipe, load_records, run, set_aside
from experiment.behaviour import (
    is_whole,
    labels_of_test,
    pictures_of_test,
    read_behaviour,
    right_answers,
    with_behaviour,
)
from experiment.chance import difference
from experiment.observe import observe
from experiment.records import read_record
from experiment.store import ROOT, Store
from measurement import behaviour as behaviour_module
from measurement import corruptions, mcnemar, paired_interval
from measurement.behaviour import behaviour, corrupted_splits, street_numbers
from measurement.calibration import BINS, calibration, temperature
from measurement.corruptions import KINDS, corrupted
from measurement.kept_answers import (
    IMAGES,
    STRENGTHS,
    answers_kept,
    classes_as_text,
    classes_of,
    corrupted_bits,
    packed,
    spaced,
    unpacked,
)
from quantization import Quantize
from recipe import DataError
from training import Train


def logits_of(probabilities) -> np.ndarray:
    return np.log(np.array(probabilities))


@pytest.fixture
def guesses(rng) -> tuple[np.ndarray, np.ndarray]:
    """Logits that are wrong now and then, and too sure, and labels."""
    labels = rng.integers(0, 7, 500)
    return 3 * (np.eye(7)[labels] + rng.standard_normal((500, 7))), labels


# Calibration


def test_calibration_error_by_hand():
    """Five images in two bins: 3/5 * |2/3 - 0.7| + 2/5 * |1/2 - 0.9|."""
    sure = [[0.7, 0.2, 0.1]] * 3 + [[0.05, 0.9, 0.05]] * 2
    found = calibration(logits_of(sure), np.array([0, 0, 2, 1, 0]))
    assert found["ece"] == pytest.approx(0.6 * abs(2 / 3 - 0.7) + 0.4 * 0.4)
    assert [found["bins"]["count"][place] for place in (10, 13)] == [3, 2] and sum(found["bins"]["count"]) == 5
    assert [found["bins"]["right"][place] for place in (10, 13)] == [2, 1]
    assert [found["bins"]["confidence"][place] for place in (10, 13)] == [0.7, 0.9]
    assert found["nll"] == pytest.approx(-np.log([0.7, 0.7, 0.1, 0.9, 0.05]).mean())
    brier = [0.09 + 0.04 + 0.01] * 2 + [0.49 + 0.04 + 0.81] + [2 * 0.0025 + 0.01] + [0.9025 + 0.81 + 0.0025]
    assert found["brier"] == pytest.approx(np.mean(brier))


def test_calibration_against_other_libraries(guesses):
    logits, labels = guesses
    probabilities = torch.from_numpy(logits).softmax(1)
    found = calibration(logits, labels)
    expected = multiclass_calibration_error(probabilities, torch.from_numpy(labels), 7, n_bins=BINS, norm="l1")
    assert found["ece"] == pytest.approx(float(expected), abs=1e-6)
    assert found["nll"] == pytest.approx(log_loss(labels, probabilities.numpy()))
    assert found["brier"] == pytest.approx(brier_score_loss(labels, probabilities.numpy(), scale_by_half=False))


def test_temperature_makes_scaled_logits_most_likely(guesses, rng):
    logits, _ = guesses
    labels = (logits / 2.5 + rng.gumbel(size=logits.shape)).argmax(1)  # drawn from their own softmax at 2.5
    found = temperature(logits, labels)
    assert 1.9 < found < 3.3
    tried = [calibration(logits / own, labels)["nll"] for own in (0.95 * found, found, 1.05 * found)]
    assert min(tried) == tried[1]
    assert temperature(3 * logits, labels) == pytest.approx(3 * found, rel=1e-3)


def test_an_extreme_temperature_stays_finite():
    sure = 100 * np.eye(3)
    for labels in ([0, 1, 2], [1, 2, 0]):  # all right, all wrong
        found = temperature(sure, np.array(labels))
        assert 0.04 < found < 21 and np.isfinite(calibration(sure / found, np.array(labels))["nll"])


# Corruptions


def pictures(count: int, channels: int = 3, side: int = 32) -> torch.Tensor:
    """Smooth uint8 images `[count, channels, side, side]`, away from black and white."""
    coarse = torch.rand(count, channels, 4, 4, generator=torch.Generator().manual_seed(3))
    smooth = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic", align_corners=True)
    return (60 + 130 * smooth.clamp(0, 1)).to(torch.uint8)


def test_strengths_are_of_the_kinds():
    assert list(KINDS) == list(STRENGTHS)


@pytest.mark.parametrize("kind", KINDS)
def test_severity_0_is_the_identity(kind):
    """Each also by its own definition, at the strength that does nothing; JPEG loses something at any quality."""
    images = pictures(3)
    assert torch.equal(corrupted(images, [0, 1, 2], kind, 0), images)
    neutral = {"noise": 0.0, "blur": 0.01, "elastic": 0.0, "haze": 0.0, "jpeg": 100}.get(kind, 1.0)
    found = torch.stack([KINDS[kind](image, neutral) for image in images])
    assert (found.int() - images).abs().max() <= (12 if kind == "jpeg" else 0)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("shape", [(3, 32, 32), (1, 8, 8), (3, 40, 24)])
def test_more_severe_is_further_from_the_image(kind, shape):
    images = pictures(6, shape[0], max(shape))[..., : shape[1], : shape[2]]
    before = corrupted(images, list(range(6)), kind, 1)
    assert before.shape == images.shape and before.dtype == torch.uint8
    away = [
        (corrupted(images, list(range(6)), kind, severity).float() - images).square().mean().item()
        for severity in (1, 2, 3)
    ]
    if shape[1] == 32:
        assert away[0] < away[1] < away[2]
    assert away[0] <= away[2]  # the few pixels of a small image may fall on the same ones again


def test_noise_has_the_signal_to_noise_of_its_definition():
    images = torch.full((40, 3, 32, 32), 128, dtype=torch.uint8)
    for severity, sigma in enumerate(STRENGTHS["noise"], start=1):
        away = corrupted(images, list(range(40)), "noise", severity).float() - 128
        assert away.std().item() / 255 == pytest.approx(sigma, rel=0.05)  # cut to whole levels
        assert 20 * np.log10(255 / away.std().item()) == pytest.approx(-20 * np.log10(sigma), abs=0.4)  # decibels


def test_contrast_brightness_and_haze_by_their_formulas():
    images = pictures(4)
    grey = (images.float() * torch.tensor([0.2989, 0.587, 0.114])[:, None, None]).sum(1, keepdim=True)
    mean = grey.floor().mean((1, 2, 3), keepdim=True)
    expected = 0.4 * images + 0.6 * mean
    assert (corrupted(images, [0] * 4, "contrast", 2).float() - expected).abs().max() <= 1
    expected = (1.4 * images.float()).clamp(max=255)
    assert (corrupted(images, [0] * 4, "brightness", 2).float() - expected).abs().max() <= 1
    share = (corrupted(images, [0] * 4, "haze", 3).float() - images) / (255 - images.float())
    assert share.min() > 0.34 and share.max() < 0.71


def test_an_elastic_way_is_as_long_as_it_says():
    ramp = (7 * torch.arange(32)).to(torch.uint8).expand(60, 1, 32, 32).contiguous()
    for images in (ramp, ramp.transpose(2, 3).contiguous()):
        away = corrupted(images, list(range(60)), "elastic", 2).float() - images
        assert (away[..., 8:-8, 8:-8] / 7).std().item() == pytest.approx(1.0, rel=0.15)


def test_corruption_is_drawn_by_kind_and_image_alone():
    images = pictures(3)
    before = torch.random.get_rng_state()
    for kind in KINDS:
        together = corrupted(images, [4, 5, 6], kind, 2)
        torch.rand(5)
        alone = corrupted(images[2:], [6], kind, 2)
        assert torch.equal(together[2:], alone)
    torch.random.set_rng_state(before)
    first = corrupted(images[:1], [0], "noise", 1)
    assert not torch.equal(first, corrupted(images[:1], [1], "noise", 1))
    assert torch.equal(torch.random.get_rng_state(), before)  # others' numbers are as they were


def test_spaced_indices():
    assert spaced(10, 3) == [0, 3, 6] and spaced(2, 5) == [0, 1] and spaced(10_000, 500)[-1] == 9980
    assert len(set(spaced(359, 150))) == 150


# Paired comparisons


def test_mcnemar_against_scipy(rng):
    one, other = rng.random(400) < 0.9, rng.random(400) < 0.8
    ours, theirs = int((one & ~other).sum()), int((~one & other).sum())
    assert mcnemar(one, other) == mcnemar(other, one) == binomtest(ours, ours + theirs, 0.5).pvalue
    assert mcnemar(one, one) == 1


def test_mcnemar_by_hand():
    one = np.array([True] * 6 + [False] + [True] * 50)  # 6 against 1 of 7: 2 * (1 + 7) / 2 ** 7
    other = np.array([False] * 6 + [True] + [True] * 50)
    assert mcnemar(one, other) == pytest.approx(2 * (1 + 7) / 2**7)


def test_paired_interval_by_hand(rng):
    mean, low, high = paired_interval(np.array([1.0, 2.0, 3.0]))  # t of 2 degrees of freedom is 4.303
    assert (mean, low, high) == pytest.approx((2, 2 - 4.3027 / 3**0.5, 2 + 4.3027 / 3**0.5), abs=1e-3)
    many = rng.standard_normal(4000)
    assert np.diff(paired_interval(many, 0.01)[1:])[0] == pytest.approx(2 * norm.ppf(0.995) / 4000**0.5, rel=0.05)
    assert paired_interval(np.array([1.0])) == (1, -np.inf, np.inf)


# What is kept


def test_answers_are_kept_whole(rng):
    labels, answered = rng.integers(0, 1000, 501), rng.integers(0, 1000, 501)
    answered[::3] = labels[::3]
    kept = answers_kept(answered, labels)
    right = unpacked(kept["right"], (501,))
    again = labels.copy()
    again[~right] = classes_of(kept["wrong"])
    assert (right == (labels == answered)).all() and (again == answered).all()
    assert (classes_of(classes_as_text(labels)) == labels).all()


def test_damaged_answers_are_refused():
    text = packed(np.ones(16, bool))
    for wrong in (text[:-4], "AAAA", "no base64!", packed(np.ones(17, bool))):
        with pytest.raises(ValueError):
            unpacked(wrong, (16,))


class Fixed:
    """A session of ONNX Runtime that answers by the first pixel of an image."""

    def __init__(self, table: np.ndarray) -> None:
        self.table = table

    def run(self, names: list, fed: dict) -> list[np.ndarray]:
        return [self.table[np.rint(fed["images"][:, 0, 0, 0] * 255).astype(int)]]


def small_dataset(labels: np.ndarray, side: int = 4) -> Dataset:
    """Images whose pixels are all their index, of three classes."""
    images = torch.arange(len(labels), dtype=torch.uint8)[:, None, None, None].expand(-1, 1, side, side).contiguous()
    split = Split(images, torch.from_numpy(labels))
    return Dataset("small", split, split, split, ("a", "b", "c"), (0.0,), (1.0,), False)


def test_behaviour_against_a_confusion_matrix(rng, monkeypatch):
    monkeypatch.setitem(IMAGES, "test", 120)
    monkeypatch.setitem(IMAGES, "validation", 5)
    labels, table = rng.integers(0, 3, 120), rng.standard_normal((256, 3)).astype(np.float32)
    dataset = small_dataset(labels)
    found = behaviour(Fixed(table), dataset, corrupted_splits(dataset))
    matrix = confusion_matrix(labels, table[:120].argmax(1))
    assert list(found["classes"]["test"].values()) == pytest.approx(matrix.diagonal() / matrix.sum(1))
    assert unpacked(found["answers"]["right"], (120,)).sum() == np.trace(matrix)
    wrong = classes_of(found["answers"]["wrong"])
    assert np.bincount(wrong, minlength=3).tolist() == (matrix.sum(0) - matrix.diagonal()).tolist()
    noise = torch.from_numpy(table).softmax(1).max(1).values.numpy()
    drawn = behaviour_module._noise((1, 4, 4))[:, 0, 0, 0].numpy()
    expected = roc_auc_score([1] * 120 + [0] * len(drawn), [*noise[:120], *noise[drawn]])
    assert found["outsiders"] == {"noise": {"images": len(drawn), "auroc": pytest.approx(expected)}, "svhn": None}
    bits = corrupted_bits(found["corrupted"]["test"])
    assert bits.shape == (8, 3, 120) and bits[1, 0].mean() == np.trace(matrix) / 120  # a flat image cannot be blurred
    assert found["corrupted"]["test"]["accuracy"]["haze"] == pytest.approx(bits[7].mean(1))


def test_a_class_without_images_has_no_accuracy():
    dataset = small_dataset(np.array([0, 1, 1]))
    found = behaviour(Fixed(np.eye(3, dtype=np.float32)[np.arange(256) % 3]), dataset, corrupted_splits(dataset))
    assert found["classes"]["test"] == {"a": 1.0, "b": 0.5, "c": None}


def test_street_numbers_are_read_where_they_lie(tmp_path, monkeypatch):
    monkeypatch.delenv("SVHN_ROOT", raising=False)
    assert street_numbers((3, 32, 32)) is None
    monkeypatch.setenv("SVHN_ROOT", str(tmp_path))
    with pytest.raises(DataError, match="test_32x32.mat is not SVHN's test file"):
        street_numbers((3, 32, 32))
    pixels = np.arange(32 * 32 * 3 * 4).reshape(32, 32, 3, 4).astype(np.uint8)
    savemat(tmp_path / "test_32x32.mat", {"X": pixels})
    found = street_numbers((3, 32, 32))
    assert found.shape == (4, 3, 32, 32) and found[2, 1, 5, 7] == pixels[5, 7, 1, 2]
    assert street_numbers((1, 8, 8)) is None


# Beside the records


@pytest.fixture
def base(folders, monkeypatch) -> Recipe:
    monkeypatch.setitem(IMAGES, "test", 20)
    monkeypatch.setitem(IMAGES, "validation", 10)
    return Recipe("digits", (Train("tiny", epochs=1, batch_size=64),))


def test_a_record_keeps_its_answers_and_then_the_rest(base, folders, monkeypatch):
    results, _ = folders
    record, other = run(base), run(base.then(Quantize(images=64)))
    store = Store("digits", record["id"])
    kept = read_behaviour(store, record)
    assert not is_whole(kept) and right_answers(record).mean() == record["accuracy"]
    p = mcnemar(right_answers(record), right_answers(other))
    assert difference(record, other) == (f"p = {p:.3f}" if p >= 0.001 else "p < 0.001")
    assert observe("digits") == []
    table = with_behaviour(load_records("digits"), "digits").set_index("id")
    for own in (record, other):
        row = table.loc[own["id"]]
        assert row["right"].mean() == own["accuracy"] and row["right_corrupted"].shape == (8, 3, 20)
        assert row["robustness"] == pytest.approx(row["right_corrupted"].mean())
    labels = labels_of_test("digits")
    assert pd.Series(table["right"][record["id"]]).groupby(labels).mean().min() == row_minimum(table, record)
    written = store.behaviour.stat().st_mtime_ns
    assert observe("digits") == [] and run(base, remeasure=True)["accuracy"] == record["accuracy"]
    assert is_whole(read_behaviour(store, record)) and store.behaviour.stat().st_mtime_ns == written
    monkeypatch.setattr("experiment.behaviour.dataset_at_hand", None)  # both are read back
    assert (labels_of_test("digits") == labels).all()
    assert set_aside(base) and not store.behaviour.exists()
    assert (results / "set_aside" / "behaviour" / f"{record['id']}.json").exists()


def row_minimum(table: pd.DataFrame, record: dict) -> float:
    return pytest.approx(table.loc[record["id"], "worst_class_accuracy"])


def test_what_is_not_of_the_record_is_not_read(base):
    record = run(base)
    store = Store("digits", record["id"])
    assert read_behaviour(store, record | {"weights_sha256": "other"}) is None
    kept = json.loads(store.behaviour.read_text())
    store.behaviour.write_text(json.dumps(kept | {"answers": {"right": "", "wrong": ""}}))
    with pytest.warns(UserWarning, match="changed since it was written"):
        assert read_behaviour(store, record) is None
    with pytest.warns(UserWarning), warnings.catch_warnings(record=False):
        assert difference(record, record) == "intervals overlap"
    with pytest.warns(UserWarning, match="cannot be used"):
        assert observe("digits") == []  # measured again
    assert is_whole(read_behaviour(store, record))


def test_pictures_are_kept_with_their_indices(folders):
    found = pictures_of_test("digits", [3, 1])
    from data import load

    assert (found == load("digits").test.images[[3, 1]].numpy()).all() and found.dtype == np.uint8


def test_committed_behaviour_is_of_its_record(monkeypatch):
    monkeypatch.delenv("RESULTS_DIR", raising=False)
    files = sorted((ROOT / "results" / "cifar10" / "behaviour").glob("*.json"))
    for path in files:
        record = read_record(path.parents[1] / path.name)
        kept = read_behaviour(Store("cifar10", path.stem), record)
        assert is_whole(kept), path
        assert unpacked(kept["answers"]["right"], (10_000,)).mean() == pytest.approx(record["accuracy"], abs=0.002)
        assert len(classes_of(kept["answers"]["wrong"])) == round(
            10_000 * (1 - unpacked(kept["answers"]["right"], (10_000,)).mean())
        )


def test_an_unknown_kind_is_refused():
    with pytest.raises(KeyError):
        corrupted(pictures(1), [0], "fog of war", 1)
    assert corruptions.SMOOTH > 0
