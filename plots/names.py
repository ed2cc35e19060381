"""Places labels next to the marks of a chart with minimal overlap."""

from collections.abc import Iterable

import numpy as np
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.transforms import Bbox

from plots.style import Style, figure_of

# Candidate positions of a name from its mark: points to the right, points up, the side of the name nearest the mark.
PLACES = [(7, 0, "left"), (-7, 0, "right")]
for away in (10, 20, 30):
    PLACES += [(0, away, "center"), (0, -away, "center")]
    PLACES += [(x, y, side) for x, side in ((7, "left"), (-7, "right")) for y in (away, -away)]
SWEEPS = 3  # several, so that a name can make room for a later one


def write_names(named: Iterable[tuple[str, float, float, str]], ax: Axes) -> None:
    """Write the name of each point (name, x, y, colour) inside the axes, covering as little as possible.

    It avoids marks, error bars and other names. Call it last, when everything else is drawn.
    """
    figure_of(ax).draw_without_rendering()  # since a constrained layout moves the axes
    scale = ax.figure.dpi / 72
    style: Style = {"textcoords": "offset points", "va": "center", "fontsize": 8}
    texts = [ax.annotate(name, (x, y), (0, 0), color=color, **style) for name, x, y, color in named]
    tries = [_boxes(text.get_window_extent(), ax.transData.transform(text.xy), scale) for text in texts]
    ink = _ink(ax, scale)
    nearest = np.arange(len(PLACES))  # prefers earlier places among equals
    costs = [_hidden(boxes, ink) + _outside(boxes, ax) + nearest for boxes in tries]
    chosen = [int(cost.argmin()) for cost in costs]
    for _ in range(SWEEPS):
        for index, boxes in enumerate(tries):
            others = [tries[other][place] for other, place in enumerate(chosen) if other != index]
            both = 2 * _hidden(boxes, np.reshape(others, (-1, 4)))  # if names overlap, neither can be read
            chosen[index] = int((costs[index] + both).argmin())
    for text, place in zip(texts, chosen, strict=True):
        x, y, side = PLACES[place]
        text.set(position=(x, y), ha=side)


def _boxes(extent: Bbox, point: np.ndarray, scale: float) -> np.ndarray:
    """Return the box of a name of that extent at each of `PLACES`, `[places, 4]`: x0, y0, x1, y1 in pixels."""
    left = {"left": 0.0, "center": 0.5, "right": 1.0}
    corner = [
        point + scale * np.array([x, y]) - (left[side] * extent.width, extent.height / 2) for x, y, side in PLACES
    ]
    return np.hstack([corner, np.add(corner, extent.size)])


def _ink(ax: Axes, scale: float) -> np.ndarray:
    """Return boxes around the marks, the error bars and their caps, `[boxes, 4]` in pixels."""
    boxes = []
    for line in ax.lines:
        half = scale * line.get_markersize() / 2
        if line.get_marker() not in ("None", None, ""):
            reach = {"_": (half, 1), "|": (1, half)}.get(str(line.get_marker()), (half, half))  # caps are flat
            points = ax.transData.transform(line.get_xydata())
            points = points[np.isfinite(points).all(axis=1)]
            boxes.append(np.hstack([points - reach, points + reach]))
    bars = [line for line in ax.collections if isinstance(line, LineCollection)]
    for ends in (ends for line in bars for ends in line.get_segments()):
        if len(ends):  # a mark at NaN has an empty bar
            ends = ax.transData.transform(ends)
            boxes.append(np.hstack([ends.min(0) - 1, ends.max(0) + 1])[None])
    return np.concatenate(boxes)


def _hidden(boxes: np.ndarray, ink: np.ndarray) -> np.ndarray:
    """Return the area of `ink` (boxes too) under each box, in square pixels."""
    low, high = np.maximum(boxes[:, None, :2], ink[:, :2]), np.minimum(boxes[:, None, 2:], ink[:, 2:])
    return (high - low).clip(0).prod(axis=2).sum(axis=1)


def _outside(boxes: np.ndarray, ax: Axes) -> np.ndarray:
    """Return a cost above that of any overlap for boxes that leave the axes, else 0."""
    inside = (boxes[:, :2] >= ax.bbox.min).all(1) & (boxes[:, 2:] <= ax.bbox.max).all(1)
    return np.where(inside, 0, 1e9)
