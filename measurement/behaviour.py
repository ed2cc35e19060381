"""What a deployed file answers, beyond its accuracy: image by image, by class, how surely, and on corrupted images."""

import os
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnxruntime
import torch

from data import Dataset, Split
from measurement.calibration import calibration, temperature
from measurement.corruptions import KINDS, corrupted
from measurement.kept_answers import IMAGES, OUTSIDERS, SEVERITIES, answers_kept, packed, spaced
from measurement.scoring import logits
from recipe import DataError

MEMORY = 256e6  # bytes of corrupted images of a split, at most
NOISE_SEED = 20_300


class Corrupted(NamedTuple):
    """Corrupted images `[N, C, H, W]` uint8, a tensor for each kind and severity in turn, with `labels` `[N]`."""

    images: list[torch.Tensor]
    labels: np.ndarray


def corrupted_splits(dataset: Dataset) -> dict[str, Corrupted]:
    """Return some images of `test` and of `validation` corrupted: evenly spaced, at most `IMAGES`, within `MEMORY`."""
    found = {}
    for name, most in IMAGES.items():
        split: Split = getattr(dataset, name)
        each = len(KINDS) * len(SEVERITIES) * split.images[0].numel()
        chosen = spaced(len(split), max(1, min(most, int(MEMORY // each))))
        clean = split.images[chosen]
        parts = [corrupted(clean, chosen, kind, severity) for kind in KINDS for severity in SEVERITIES]
        found[name] = Corrupted(parts, split.labels[chosen].numpy())
    return found


def behaviour(session: onnxruntime.InferenceSession, dataset: Dataset, corrupt: dict[str, Corrupted]) -> dict[str, Any]:
    """Return what the file in `session` does with the test images of `dataset`, whose pixels are on the file's scale.

    `corrupt`: `corrupted_splits` of the data set.

    `answers`: see `answers_kept`. `classes`: the share of right answers by class and split. `calibration`: the
    temperature fitted on the validation images, and `calibration` on the test images `before` and `after` scaling by
    it. `corrupted`: by split, the number of `images`, the share of right answers by kind and severity, and `right`, a
    bit for each kind, severity and image. `outsiders`: see `outsiders`.
    """
    scores = {name: logits(session, dataset, getattr(dataset, name)) for name in IMAGES}
    labels = {name: getattr(dataset, name).labels.numpy() for name in IMAGES}
    degree = temperature(scores["validation"], labels["validation"])
    test = scores["test"], labels["test"]
    return {
        "answers": answers_kept(test[0].argmax(1), test[1]),
        "classes": {name: _by_class(scores[name].argmax(1), labels[name], dataset.classes) for name in IMAGES},
        "calibration": {
            "temperature": degree,
            "before": calibration(*test),
            "after": calibration(test[0] / degree, test[1]),
        },
        "corrupted": {name: _on_corrupted(session, dataset, part) for name, part in corrupt.items()},
        "outsiders": outsiders(session, dataset, test[0]),
    }


def _by_class(answered: np.ndarray, labels: np.ndarray, classes: tuple[str, ...]) -> dict[str, float | None]:
    """Return the share of right answers among the images of each class; None for a class without images."""
    own = {name: answered[labels == label] == label for label, name in enumerate(classes)}
    return {name: float(right.mean()) if len(right) else None for name, right in own.items()}


def outsiders(session: onnxruntime.InferenceSession, dataset: Dataset, scores: np.ndarray) -> dict[str, Any]:
    """Return, for images of no class, how well the top probability tells them from the test images, with `scores`.

    That is the area under the receiver operating characteristic, `auroc`: 0.5 says nothing, 1 all (Hendrycks and
    Gimpel, ICLR 2017). `noise` are uniform pixels, and `svhn` street numbers, None if they are not at hand.

    Raises:
        DataError: $SVHN_ROOT has no readable test_32x32.mat.
    """
    from sklearn.metrics import roc_auc_score

    inside = _confidence(scores)
    result: dict[str, Any] = {}
    for name, images in (("noise", _noise(dataset.shape)), ("svhn", street_numbers(dataset.shape))):
        if images is None:
            result[name] = None
            continue
        outside = _confidence(logits(session, dataset, Split(images, torch.zeros(len(images), dtype=torch.int64))))
        member = np.repeat([True, False], [len(inside), len(outside)])
        result[name] = {"images": len(images), "auroc": float(roc_auc_score(member, np.append(inside, outside)))}
    return result


def street_numbers(shape: tuple[int, int, int]) -> torch.Tensor | None:
    """Return test images of SVHN (Netzer et al. 2011) from $SVHN_ROOT, `[N, 3, 32, 32]` uint8, evenly spaced.

    None if it is not set, or if the network takes images of another `shape`.

    Raises:
        DataError: $SVHN_ROOT has no readable test_32x32.mat.
    """
    root = os.environ.get("SVHN_ROOT")
    if not root or shape != (3, 32, 32):
        return None
    from scipy.io import loadmat

    path = Path(root) / "test_32x32.mat"
    try:
        images = torch.from_numpy(loadmat(path)["X"]).permute(3, 2, 0, 1)
    except Exception as error:  # scipy raises many kinds for a damaged file
        raise DataError(f"{path} is not SVHN's test file ({error}): put it there, or leave SVHN_ROOT unset") from None
    return images[spaced(len(images), OUTSIDERS)].contiguous()


def _noise(shape: tuple[int, int, int]) -> torch.Tensor:
    drawn = np.random.default_rng(NOISE_SEED).integers(0, 256, (OUTSIDERS, *shape), dtype=np.uint8)
    return torch.from_numpy(drawn)


def _confidence(scores: np.ndarray) -> np.ndarray:
    """Return the top probability `[N]` of logits `[N, classes]`."""
    exact = scores.astype(np.float64)
    return 1 / np.exp(exact - exact.max(1, keepdims=True)).sum(1)


def _on_corrupted(session: onnxruntime.InferenceSession, dataset: Dataset, corrupt: Corrupted) -> dict[str, Any]:
    labels = torch.from_numpy(corrupt.labels)
    answered = [logits(session, dataset, Split(images, labels)).argmax(1) for images in corrupt.images]
    right = np.stack(answered) == corrupt.labels
    shares = right.mean(1).reshape(len(KINDS), len(SEVERITIES))
    return {
        "images": len(corrupt.labels),
        "accuracy": dict(zip(KINDS, shares.tolist(), strict=True)),
        "right": packed(right),
    }
