"""Turn a tensor into symbols, in the shortest of a few modes.

| mode | what is coded |
|---|---|
| constant | one word |
| raw | every bit as it is |
| bytes | byte by byte, with separate counts for each byte of a word |
| integers | the integers themselves |
| sparse | which words are non-zero, then their values |
| floats | exponents (including one for zero), then signs and mantissas of non-zero words |

In the last three, words are coded position by position of the kernel, [O, I] words at a time. Words may be divided into
classes with separate counts, which depend on the words coded before. The expected magnitude of a word follows from its
output channel, its input channel and its own kernel. Its expected sign follows from the words above and to the left in
the kernel; if that is negative, the word is coded with its sign reversed. So zeros are cheap if few weights of a layer
are left after pruning, and smooth kernels of a trained network cost less than independent weights. None of this has to
be stored.

Reader and Writer must compute the same classes and priors on every machine. So they use only integers and float64
operations that IEEE 754 defines to the last bit: no exp, no log, no sum of fractions, whose order is not defined.
"""

import math
from dataclasses import dataclass
from itertools import product

import numpy as np

from storage.coding import SEEN, SYMBOL, Coder, Counts, Meter, code_classes, number

MODES = ("constant", "raw", "bytes", "integers", "sparse", "floats")
RANGE = 1024  # maximum number of integers with a count each, from the smallest to the largest
KAPPAS = (32, 256)  # weight of a prior, in symbols
CLASSES = 11  # octaves of expected magnitude, with the layer's mean in the middle
LEVELS = (0.3, 1.0, 2.0)  # bounds between classes of the neighbours' distance from zero, in expected magnitudes
CHANNEL, KERNEL = 8, 2  # weight, in words, of the layer's mean in a channel's, and of the channels' in a kernel's
LARGEST = 1 << 20  # magnitudes are integers up to this
ROWS = 64  # output channels whose expectations are held as float64 at once
POSITIONS = 1024  # maximum positions of a kernel whose words have classes
FIELDS = ((23, 255), (31, 1), (16, 127), (8, 255), (0, 255))  # shift and mask of the fields of a float32
SAMPLE = 1 << 15  # words on which settings are tried
_ROOTS = (1.0, 1.189207115002721, 1.4142135623730951, 1.681792830507429)


def power(quarters: int) -> float:
    """Return 2 ** (quarters / 4), with the same bits on every machine."""
    return math.ldexp(_ROOTS[quarters % 4], quarters // 4)


@dataclass(frozen=True)
class Settings:
    """A mode, whether words have classes, and an index into KAPPAS."""

    mode: str
    classed: int = 0
    kappa: int = 0


Shape = tuple[int, int, int, int]  # output channels, input channels, rows and columns of a kernel


def code_words(
    coder: Coder, words: np.ndarray | None, shape: Shape, kind: np.dtype, floats: bool = False
) -> np.ndarray:
    """Code a tensor's words and return them.

    Args:
        coder: a Writer or Meter, or a Reader.
        words: the tensor's bits as integers of type `kind`, flattened; None for a Reader.
        shape: output channels, input channels, rows and columns of a kernel.
        floats: whether the words are float32.

    Raises:
        ValueError, AssertionError: a Reader's bytes were not written by a Writer for this shape.
    """
    if math.prod(shape) == 0:
        return np.empty(0, kind)
    settings = None if words is None else choose(words, shape, floats)
    return _code(coder, words, shape, kind, settings)


def choose(words: np.ndarray, shape: Shape, floats: bool) -> Settings:
    """Return the settings that take the fewest bits, by trial on the tensor's first rows."""
    if (words == words[0]).all():
        return Settings("constant")
    row = math.prod(shape[1:])
    rows = max(1, min(shape[0], SAMPLE // row))
    sample, part = words[: rows * row], (rows, *shape[1:])

    def bits(settings: Settings) -> float:
        meter = Meter()
        _code(meter, sample, part, words.dtype, settings)
        return meter.bits

    modes = ["floats"] if floats else []
    if not floats and 2 * max(abs(int(words.min())), abs(int(words.max()))) < RANGE:
        modes = ["integers", "sparse"]
    classed = (0, 1) if _positions(part) > 1 and _positions(shape) <= POSITIONS else (0,)
    kappas = range(len(KAPPAS))
    tried = [Settings(*fields) for fields in [*product(modes, classed, kappas), *product(["bytes"], [0], kappas)]]
    return min([Settings("raw"), *tried], key=bits)


def _code(
    coder: Coder, words: np.ndarray | None, shape: Shape, kind: np.dtype, settings: Settings | None
) -> np.ndarray:
    mode = MODES[number(coder, len(MODES), None if settings is None else MODES.index(settings.mode))]
    count = math.prod(shape)
    if mode == "constant":
        value = number(coder, 1 << 8 * kind.itemsize, None if words is None else int(_unsigned(words[:1])[0]))
        return np.full(count, value, f"u{kind.itemsize}").view(kind)
    if mode == "raw":
        given = None if words is None else words.view(np.uint8)
        return coder.uniform(256, count * kind.itemsize, given).astype(np.uint8).view(kind)
    kappa = KAPPAS[number(coder, len(KAPPAS), None if settings is None else settings.kappa)]
    classed = number(coder, 2, None if settings is None else settings.classed)
    layout = {"bytes": _Bytes, "integers": _Integers, "sparse": _Sparse, "floats": _Floats}[mode](coder, words, kind)
    if not classed:
        shape = (1, count, 1, 1)
    elif _positions(shape) > POSITIONS:
        raise ValueError("classes for a kernel with too many positions")
    elif shape[2] * shape[3] == 1:  # only one position: code the output channels one after another instead
        words = None if words is None else _transposed(words, shape[1])
        expected = _Expected(coder, words, layout, (shape[1], 1, shape[0]), 0)
        return _transposed(_code_positions(coder, words, layout, expected, kappa), shape[0])
    expected = _Expected(coder, words, layout, (*shape[:2], shape[2] * shape[3]), shape[3] if classed else None)
    return _code_positions(coder, words, layout, expected, kappa)


def _positions(shape: Shape) -> int:
    """Return the number of passes over all kernels; too many are slow, since a call of the coder is expensive."""
    return shape[2] * shape[3] if shape[2] * shape[3] > 1 else shape[0]


def _transposed(words: np.ndarray, columns: int) -> np.ndarray:
    return np.ascontiguousarray(words.reshape(-1, columns).T).reshape(-1)


def _code_positions(
    coder: Coder, words: np.ndarray | None, layout: "_Layout", expected: "_Expected", kappa: int
) -> np.ndarray:
    counts = [plane.counts(expected.means, kappa) for plane in layout.planes]
    rows, columns, positions = expected.shape
    result = np.empty((rows * columns, positions), layout.kind)
    for position in range(positions):
        context = expected.context(position)
        given = None if words is None else np.ascontiguousarray(words[position::positions])
        coded = layout.join(_code_planes(coder, layout, counts, context, given, len(result)), context.opposite)
        expected.update(position, coded)
        result[:, position] = coded
    return result.reshape(-1)


def _code_planes(
    coder: Coder,
    layout: "_Layout",
    counts: list[list[Counts]],
    context: "_Context",
    words: np.ndarray | None,
    length: int,
) -> list[np.ndarray]:
    """Code the symbols of `length` words, plane by plane; if `layout.skips_zeros`, zeros only in the first plane."""
    symbols: list[np.ndarray] = []
    selected: slice | np.ndarray = slice(None)
    for index, (plane, of_plane) in enumerate(zip(layout.planes, counts, strict=True)):
        if index == 1 and layout.skips_zeros:
            selected = symbols[0].astype(bool)
        classes = plane.classes(context)
        of_selected = None if classes is None else classes[selected]
        values = None if words is None else layout.split(index, words, context.opposite)[selected]
        coded = np.zeros(length, SYMBOL)
        coded[selected] = code_classes(coder, of_plane, of_selected, len(coded[selected]), values)
        symbols.append(coded)
    return symbols


@dataclass(frozen=True)
class _Context:
    """Predictions for words, `[O * I]` each: classes of magnitude and of neighbours, and whether signs are reversed."""

    magnitude: np.ndarray | None = None
    level: np.ndarray | None = None
    opposite: np.ndarray | None = None


@dataclass(frozen=True)
class _Plane:
    """Symbols 0..size-1, the classes they use, and their prior: flat, or falling with the magnitude of `values`."""

    size: int
    by_magnitude: bool = False
    by_level: bool = False
    values: np.ndarray | None = None
    kappa: int | None = None  # replaces the kappa in the settings

    def classes(self, context: _Context) -> np.ndarray | None:
        if context.magnitude is None or context.level is None or not (self.by_magnitude or self.by_level):
            return None
        if not self.by_level:
            return context.magnitude
        return context.magnitude * np.uint8(len(LEVELS) + 1) + context.level if self.by_magnitude else context.level

    def counts(self, means: list[float], kappa: int) -> list[Counts]:
        """Return a model for each class. `means` are the expected magnitudes of the classes of magnitude."""
        kappa = self.kappa or kappa
        means = means if self.by_magnitude else [means[len(means) // 2]]
        means = [mean for mean in means for _ in range(len(LEVELS) + 1 if self.by_level else 1)]
        if self.values is None:
            return [Counts(np.full(self.size, kappa * SEEN // self.size + 1)) for _ in means]
        return [Counts(_prior(self.values, mean, kappa)) for mean in means]


def _prior(values: np.ndarray, mean: float, kappa: int) -> np.ndarray:
    """Return weights of integers, `kappa` symbols in all: Laplace with `mean` magnitude, and a longer tail."""
    mean = min(max(mean, 0.01), 1e4)
    distance = np.abs(values)
    ratio = (math.sqrt(1 + mean * mean) - 1) / mean
    powers = np.cumprod(np.concatenate([[1.0], np.full(int(distance.max()), ratio)]))
    weights = (powers[distance] * 2.0**30).astype(np.int64)
    weights += int(weights.sum()) // (128 * len(values)) + 1
    return weights * (kappa * SEEN) // int(weights.sum()) + 1


class _Expected:
    """What encoder and decoder both predict for the words of a position, from the positions before."""

    def __init__(
        self, coder: Coder, words: np.ndarray | None, layout: "_Layout", shape: tuple[int, int, int], width: int | None
    ):
        """Args: `shape` (O, I, positions); `width`, a kernel's columns (0: no neighbours; None: no classes)."""
        self.shape, self._width, self._layout = shape, width, layout
        quarters = None
        if words is not None:
            mean = max(float(layout.magnitudes(layout.values(words)).mean()), 1e-9)
            quarters = min(max(round(4 * math.log2(mean)), -128), 127) + 128
        self._mean = power(number(coder, 256, quarters) - 128)
        self.means = [self._mean]
        if width is not None:
            octaves = range(-(CLASSES // 2), CLASSES // 2 + 1)
            self.means = [self._mean * power(4 * octave) for octave in octaves]
            self._bounds = [self._mean * power(4 * octave + 2) for octave in octaves][:-1]
            self._sums = np.zeros(shape[:2], np.int32)  # sum of magnitudes per kernel, at most POSITIONS * LARGEST
            self._size = 0  # sum of absolute values
            self._seen: dict[int, np.ndarray] = {}

    def context(self, position: int) -> _Context:
        if self._width is None:
            return _Context()
        outputs, inputs, _ = self.shape
        rows = (CHANNEL * self._mean + self._sums.sum(1)) / (CHANNEL + position * inputs)
        columns = (CHANNEL * self._mean + self._sums.sum(0)) / (CHANNEL + position * outputs)
        magnitude, level, opposite = np.zeros((3, outputs, inputs), np.uint8)
        for start in range(0, outputs, ROWS):
            part = slice(start, start + ROWS)
            expected = rows[part, None] * columns
            expected /= self._mean
            expected *= KERNEL
            expected += self._sums[part]
            expected /= KERNEL + position
            for bound in self._bounds:
                magnitude[part] += expected > bound
            if self._width and position:
                neighbours = self._neighbours(position, part, self._width)
                usual = expected if self._layout.sizes else self._size / (position * outputs * inputs)
                for bound in LEVELS:
                    level[part] += np.abs(neighbours) > 2 * bound * usual
                opposite[part] = neighbours < 0
        known = opposite.reshape(-1).view(bool) if self._width and position else None
        return _Context(magnitude.reshape(-1), level.reshape(-1), known)

    def _neighbours(self, position: int, part: slice, width: int) -> np.ndarray | int:
        """Return twice the prediction for a smooth kernel: left plus above, minus half the word diagonally between."""
        row, column = divmod(position, width)
        left = self._seen[position - 1][part] if column else 0
        above = self._seen[position - width][part] if row else 0
        between = self._seen[position - width - 1][part] if row and column else 0
        return 2 * (left + above) - between

    def update(self, position: int, words: np.ndarray) -> None:
        """Learn from the words of a position."""
        if self._width is not None and position + 1 < self.shape[2]:
            values = self._layout.values(words)
            self._sums += self._layout.magnitudes(values).reshape(self._sums.shape)
            self._size += int(np.abs(values).sum())
            if self._width:
                self._seen[position] = values.reshape(self._sums.shape)
                self._seen.pop(position - self._width - 1, None)  # no later word is its neighbour


class _Layout:
    """How a word is split into symbols, whose limits are stored in the stream.

    `opposite`: `[N]`, True if a word is coded with its sign reversed; or None.
    """

    kind: np.dtype
    planes: list[_Plane]
    skips_zeros = False  # whether symbol 0 in the first plane means that the word is zero
    sizes = True  # whether magnitudes are absolute values

    def split(self, place: int, words: np.ndarray, opposite: np.ndarray | None) -> np.ndarray:
        """Return the words' symbols in plane `place`."""
        raise NotImplementedError

    def join(self, symbols: list[np.ndarray], opposite: np.ndarray | None) -> np.ndarray:
        raise NotImplementedError

    def values(self, words: np.ndarray) -> np.ndarray:
        """Return integers, -LARGEST..LARGEST, proportional to the words' values; sums of four must not overflow."""
        return words.astype(np.int16)  # their magnitude is below RANGE

    def magnitudes(self, values: np.ndarray) -> np.ndarray:
        """Return the magnitudes to predict, given the values of words."""
        return np.abs(values)


class _Bytes(_Layout):
    def __init__(self, coder: Coder, words: np.ndarray | None, kind: np.dtype):
        self.kind = kind
        places = range(kind.itemsize)
        self._limits = [_limits(coder, 256, None if words is None else _byte(words, place)) for place in places]
        self.planes = [_Plane(size) for _, size in self._limits]

    def values(self, words: np.ndarray) -> np.ndarray:
        return np.zeros(len(words), np.int16)

    def split(self, place: int, words: np.ndarray, opposite: np.ndarray | None) -> np.ndarray:
        return _byte(words, place) - self._limits[place][0]

    def join(self, symbols: list[np.ndarray], opposite: np.ndarray | None) -> np.ndarray:
        unsigned = np.zeros(len(symbols[0]), f"u{self.kind.itemsize}")
        for place, (values, (low, _)) in enumerate(zip(symbols, self._limits, strict=True)):
            unsigned |= (values + low).astype(unsigned.dtype) << unsigned.dtype.type(8 * place)
        return unsigned.view(self.kind)


class _Integers(_Layout):
    """Integers from 0 to `largest`, or from its negative if any is negative."""

    def __init__(self, coder: Coder, words: np.ndarray | None, kind: np.dtype):
        self.kind = kind
        ends = None if words is None else (int(words.min()), int(words.max()))
        lowest = -1 if number(coder, 2, None if ends is None else int(ends[0] < 0)) else 0
        largest = number(coder, RANGE // 2, None if ends is None else max(map(abs, ends)))
        self._all = np.arange(lowest * largest, largest + 1, dtype=np.int32)
        self.planes = [_Plane(len(self._all), True, True, self._all)]

    def split(self, place: int, words: np.ndarray, opposite: np.ndarray | None) -> np.ndarray:
        return self._in_sign(words.astype(np.int32), opposite) - self._all[0]

    def join(self, symbols: list[np.ndarray], opposite: np.ndarray | None) -> np.ndarray:
        return self._in_sign(symbols[0] + self._all[0], opposite).astype(self.kind)

    def _in_sign(self, values: np.ndarray, opposite: np.ndarray | None) -> np.ndarray:
        """Return the values with reversed signs as `opposite` says; unsigned values stay unchanged."""
        return values if opposite is None or self._all[0] >= 0 else np.where(opposite, -values, values)


class _Sparse(_Integers):
    skips_zeros, sizes = True, False

    def __init__(self, coder: Coder, words: np.ndarray | None, kind: np.dtype):
        super().__init__(coder, words, kind)
        self._all = self._all[self._all != 0]
        if not len(self._all):
            raise ValueError("a sparse tensor holds only zeros")
        self.planes = [_Plane(2, by_magnitude=True, values=np.arange(2)), _Plane(len(self._all), by_level=True)]

    def magnitudes(self, values: np.ndarray) -> np.ndarray:
        return (values != 0).astype(np.int16)

    def split(self, place: int, words: np.ndarray, opposite: np.ndarray | None) -> np.ndarray:
        if place == 0:
            return words != 0
        values = self._in_sign(words.astype(np.int32), opposite)
        return values - self._all[0] - ((values > 0) & (self._all[0] < 0))

    def join(self, symbols: list[np.ndarray], opposite: np.ndarray | None) -> np.ndarray:
        values = symbols[1] + self._all[0]
        values += (values >= 0) & (self._all[0] < 0)  # skip zero, which has no symbol
        return np.where(symbols[0], self._in_sign(values, opposite), 0).astype(self.kind)


class _Floats(_Layout):
    """Exponent (symbol 0 for an exponent of zero), sign, the upper seven bits of the mantissa, its two lower bytes."""

    def __init__(self, coder: Coder, words: np.ndarray | None, kind: np.dtype):
        self.kind = kind
        exponents = zeros = None
        if words is not None:
            exponents = _field(words, 0)
            zeros = int(not words[exponents == 0].any())
            exponents = np.append(exponents[exponents > 0], exponents.max())
        self.skips_zeros = bool(number(coder, 2, zeros))
        self._low, count = _limits(coder, 256, exponents)
        self._scale = 2.0 ** (20 + 126 - (self._low + count - 1))
        sizes = enumerate((128, 256, 256), start=2)
        self._limits = [_limits(coder, size, None if words is None else _field(words, at)) for at, size in sizes]
        # All but the first few bits of a mantissa are noise, from which there is nothing to learn.
        mantissa = [_Plane(size, kappa=1 << 14) for _, size in self._limits]
        self.planes = [_Plane(count + 1, True, True), _Plane(2, by_level=True), *mantissa]

    def values(self, words: np.ndarray) -> np.ndarray:
        values = words.view(np.float32).astype(np.float64) * self._scale
        return np.where(np.abs(values) < LARGEST, values, 0).astype(np.int32)

    def split(self, place: int, words: np.ndarray, opposite: np.ndarray | None) -> np.ndarray:
        field = _field(words, place)
        if place == 0:
            return np.where(field == 0, 0, field - self._low + 1)
        if place == 1:
            return field if opposite is None else field ^ opposite
        return field - self._limits[place - 2][0]

    def join(self, symbols: list[np.ndarray], opposite: np.ndarray | None) -> np.ndarray:
        first, sign, *mantissa = symbols
        words = (sign if opposite is None else sign ^ opposite).astype(np.uint32) << np.uint32(31)
        words |= np.where(first == 0, 0, first + self._low - 1).astype(np.uint32) << np.uint32(23)
        for values, (low, _), (shift, _) in zip(mantissa, self._limits, FIELDS[2:], strict=True):
            words |= values.astype(np.uint32) + np.uint32(low) << np.uint32(shift)
        if self.skips_zeros:
            words[first == 0] = 0
        return words.view(self.kind)


def _field(words: np.ndarray, place: int) -> np.ndarray:
    """Return the exponent, the sign, or one of three parts of the mantissa of float32 words."""
    shift, mask = FIELDS[place]
    return (words.view(np.uint32) >> np.uint32(shift) & np.uint32(mask)).astype(np.int32)


def _limits(coder: Coder, size: int, values: np.ndarray | None) -> tuple[int, int]:
    """Code and return the smallest value, and the number of values from it to the largest."""
    low = number(coder, size, None if values is None else int(values.min()))
    return low, 1 + number(coder, size - low, None if values is None else int(values.max()) - low)


def _unsigned(words: np.ndarray) -> np.ndarray:
    return words.view(f"u{words.dtype.itemsize}")


def _byte(words: np.ndarray, place: int) -> np.ndarray:
    unsigned = _unsigned(words)
    return (unsigned >> unsigned.dtype.type(8 * place) & unsigned.dtype.type(255)).astype(np.int32)
