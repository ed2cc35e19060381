"""What a check of a kernel consists of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from .launch import Launch


@dataclass(frozen=True)
class Case:
    """One product: `prepare(out=...)` makes the launch, `truth` is the float64 or int64 result.

    size: the sums of the terms' magnitudes, to which errors are relative; None if every element must be equal.
    """

    kernel: str
    what: str
    prepare: Callable[..., Launch]
    dtype: torch.dtype
    truth: np.ndarray
    size: np.ndarray | None
    terms: int
