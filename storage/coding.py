"""Adaptive entropy coding of symbols.

The same code encodes with a `Writer`, decodes with a `Reader` and measures the length with a `Meter`, so encoder and
decoder cannot diverge. Weights of symbols are integers, so that every machine turns them into the same fixed-point
probabilities. The coder is constriction's range coder (Bamler, arXiv:2201.01741).
"""

import math

import numpy as np
from constriction import stream

SEEN = 1 << 16  # weight of one counted symbol
SYMBOL = np.uint16  # type of symbols: at most 65,536 kinds
FIRST, GROWTH = 8, 2  # symbols in the first chunk; later ones are at most 1 / GROWTH of the symbols before


class Writer:
    """Encodes symbols."""

    def __init__(self):
        self._coder = stream.queue.RangeEncoder()

    def symbols(self, weights: np.ndarray, count: int, values: np.ndarray | None) -> np.ndarray:
        """Code `count` integers 0..n-1 with probabilities proportional to the n positive integers `weights`."""
        assert values is not None
        self._coder.encode(np.ascontiguousarray(values, np.int32), _categorical(weights))
        return values

    def uniform(self, size: int, count: int, values: np.ndarray | None) -> np.ndarray:
        """Code `count` integers 0..size-1 with equal probabilities."""
        assert values is not None
        self._coder.encode(np.ascontiguousarray(values, np.int32), stream.model.Uniform(size))
        return values

    @property
    def bits(self) -> int:
        """Length so far, in bits, a multiple of the coder's 32-bit words."""
        return self._coder.num_bits()

    def content(self) -> memoryview:
        return self._coder.get_compressed().astype("<u4", copy=False).view(np.uint8).data


class Reader:
    """Decodes what a Writer has encoded. Any other bytes give arbitrary symbols or AssertionError."""

    def __init__(self, content: bytes | memoryview):
        self._coder = stream.queue.RangeDecoder(np.frombuffer(content, "<u4").astype(np.uint32, copy=False))

    def symbols(self, weights: np.ndarray, count: int, values: np.ndarray | None) -> np.ndarray:
        return self._coder.decode(_categorical(weights), count)

    def uniform(self, size: int, count: int, values: np.ndarray | None) -> np.ndarray:
        return self._coder.decode(stream.model.Uniform(size), count)


class Meter:
    """Counts the bits that a Writer would write."""

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
    """Code one integer 0..size-1 with equal probabilities, in digits of 16 bits."""
    result, unit = 0, 1
    while unit < size:
        digits = min(1 << 16, -(-size // unit))
        if digits > 1:
            given = None if value is None else np.array([value // unit % digits])
            result += unit * int(coder.uniform(digits, 1, given)[0])
        unit <<= 16
    if result >= size:
        raise ValueError("a number exceeds its limit")
    return result


class Counts:
    """An adaptive model: the counts of the symbols seen so far, added to a prior.

    It is updated once per chunk, so that a chunk takes one call; chunks grow with the number of symbols seen.
    """

    def __init__(self, prior: np.ndarray):
        """Start from `prior`, positive integers in units of 1 / SEEN of a symbol."""
        self._weights = prior.astype(np.int64)
        self._total = 0

    def code(self, coder: Coder, count: int, values: np.ndarray | None) -> np.ndarray:
        """Code `count` symbols, given as `values`; None for a Reader."""
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
    """Code `count` symbols, each with the counts of its class (if `classes` is None, class 0)."""
    if count == 0 or classes is None:
        return counts[0].code(coder, count, values) if count else np.empty(0, SYMBOL)
    result = np.empty(count, SYMBOL)
    for index, of_class in enumerate(counts):
        members = np.flatnonzero(classes == index)
        if len(members):
            result[members] = of_class.code(coder, len(members), None if values is None else values[members])
    return result


def _categorical(weights: np.ndarray) -> stream.model.Categorical:
    # Integers below 2**53 and their sums, in any order, are exact in float64.
    return stream.model.Categorical(weights.astype(np.float64), perfect=False)
