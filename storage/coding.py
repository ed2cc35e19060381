"""Symbols as an entropy-coded stream, with counts that learn as they go.

What codes symbols does so in three ways, given a `Writer`, a `Reader`, or a `Meter` that only adds up what encoding
would cost: both directions run the same lines, and so cannot differ. Weights are integers, so that every machine turns
them into the same fixed-point probabilities. The coder is constriction's range coder (Bamler, arXiv:2201.01741).
"""

import math

import numpy as np
from constriction import stream

SEEN = 1 << 16  # what one counted symbol weighs
SYMBOL = np.uint16  # of which there may be 65,536 kinds
FIRST, GROWTH = 8, 2  # symbols in the first chunk; another is at most 1 / GROWTH of what was seen before


class Writer:
    """Encodes symbols."""

    def __init__(self):
        self._coder = stream.queue.RangeEncoder()

    def symbols(self, weights: np.ndarray, count: int, values: np.ndarray | None) -> np.ndarray:
        """Code `count` integers 0..n-1, whose probabilities are as the n positive integers `weights`."""
        assert values is not None
        self._coder.encode(np.ascontiguousarray(values, np.int32), _categorical(weights))
        return values

    def uniform(self, size: int, count: int, values: np.ndarray | None) -> np.ndarray:
        """Code `count` integers 0..size-1, all as likely."""
        assert values is not None
        self._coder.encode(np.ascontiguousarray(values, np.int32), stream.model.Uniform(size))
        return values

    @property
    def bits(self) -> int:
        """Length so far, in steps of the coder's words of 32 bits."""
        return self._coder.num_bits()

    def content(self) -> memoryview:
        return self._coder.get_compressed().astype("<u4", copy=False).view(np.uint8).data


class Reader:
    """Decodes what a Writer has encoded; other bytes give other symbols, or AssertionError."""

    def __init__(self, content: bytes | memoryview):
        self._coder = stream.queue.RangeDecoder(np.frombuffer(content, "<u4").astype(np.uint32, copy=False))

    def symbols(self, weights: np.ndarray, count: int, values: np.ndarray | None) -> np.ndarray:
        return self._coder.decode(_categorical(weights), count)

    def uniform(self, size: int, count: int, values: np.ndarray | None) -> np.ndarray:
        return self._coder.decode(stream.model.Uniform(size), count)


class Meter:
    """Adds up the bits that a Writer would write."""

    def __init__(self):
        self.bits = 0.0

    def symbols(self, weights: np.ndarray, count: int, values: np.ndarray | None) -> np.ndarray:
        assert values is not None
        seen = np.bincount(values, minlength=len(weights))
        self.bits += float(seen @ (math.log2(weights.sum()) - np.log2(weights)))
        return values

    def uniform(self, size: int, count: int, values: np.ndarray | None) -> np.ndarray:
        assert values is not None
        self.bits += count * math.log2(size)
        return values


Coder = Writer | Reader | Meter


def number(coder: Coder, size: int, value: int | None) -> int:
    """Code one integer 0..size-1, all as likely; large ones in digits of 16 bits."""
    result, place = 0, 1
    while place < size:
        digits = min(1 << 16, -(-size // place))
        if digits > 1:
            given = None if value is None else np.array([value // place % digits])
            result += place * int(coder.uniform(digits, 1, given)[0])
        place <<= 16
    if result >= size:
        raise ValueError("a number beyond its limit")
    return result


class Counts:
    """An adaptive model: how often each symbol was seen, added to a prior.

    The model stands still over a chunk, so that a chunk is one call, and chunks grow with what was seen.
    """

    def __init__(self, prior: np.ndarray):
        """`prior`: positive integers in units of 1 / SEEN of a symbol."""
        self._weights = prior.astype(np.int64)
        self._total = 0

    def code(self, coder: Coder, count: int, values: np.ndarray | None) -> np.ndarray:
        """Code `count` symbols; `values` are they, or None for a Reader."""
        result, start = np.zeros(count, SYMBOL), 0
        while start < count and len(self._weights) > 1:
            chunk = min(max(FIRST, self._total // GROWTH), count - start)
            given = None if values is None else values[start : start + chunk]
            part = coder.symbols(self._weights, chunk, given)
            self._weights += SEEN * np.bincount(part, minlength=len(self._weights))
            self._total += chunk
            result[start : start + chunk] = part
            start += chunk
        return result


def code_classes(
    coder: Coder, counts: list[Counts], classes: np.ndarray | None, count: int, values: np.ndarray | None
) -> np.ndarray:
    """Code `count` symbols, each with the counts of its class (None: all are of class 0)."""
    if count == 0 or classes is None:
        return counts[0].code(coder, count, values) if count else np.empty(0, SYMBOL)
    result = np.empty(count, SYMBOL)
    for index, own in enumerate(counts):
        members = np.flatnonzero(classes == index)
        if len(members):
            result[members] = own.code(coder, len(members), None if values is None else values[members])
    return result


def _categorical(weights: np.ndarray) -> stream.model.Categorical:
    # Integers below 2**53 are exact as float64, and so are their sums, in any order.
    return stream.model.Categorical(weights.astype(np.float64), perfect=False)
