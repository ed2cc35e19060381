"""How a file's answers are kept: a bit per image, in text; and the settings that they depend on."""

import base64
import zlib
from collections.abc import Mapping

import numpy as np

IMAGES = {"test": 500, "validation": 150}  # to corrupt, at most: evenly spaced
OUTSIDERS = 500  # images of no class, at most
# Each kind of corruption's strength in severities 1 to 3: see `measurement.corruptions`.
STRENGTHS: dict[str, tuple[float, ...]] = {
    "noise": (0.04, 0.08, 0.1),  # standard deviation, of pixels in 0..1
    "blur": (0.4, 0.7, 1.0),  # standard deviation of the Gaussian, in pixels of an image of side 32
    "contrast": (0.75, 0.4, 0.15),  # what is left of it
    "brightness": (1.15, 1.4, 1.8),  # factor of the pixels
    "jpeg": (80, 58, 40),  # quality
    "pixelation": (0.95, 0.85, 0.65),  # what is left of the side
    "elastic": (0.5, 1.0, 1.5),  # standard deviation of a pixel's way, in pixels of an image of side 32
    "haze": (0.3, 0.5, 0.7),  # largest share of white
}
SEVERITIES = (1, 2, 3)
# What is kept by `measurement.behaviour` depends on these, besides file and images.
SETTINGS = {
    "images": IMAGES,
    "outsiders": OUTSIDERS,
    "corruptions": {kind: list(strengths) for kind, strengths in STRENGTHS.items()},
}


def spaced(count: int, most: int) -> list[int]:
    """Return `most` indices below `count`, evenly spaced from 0; all of them if there are fewer."""
    wanted = min(count, most)
    return [index * count // wanted for index in range(wanted)]


def answers_kept(answered: np.ndarray, labels: np.ndarray) -> dict[str, str]:
    """Return the classes `[N]` that a file answered as two texts: a bit per image, and the classes of wrong answers.

    `unpacked` reads `right`, and `classes_of` `wrong`, which is in the order of the images.
    """
    right = answered == labels
    return {"right": packed(right), "wrong": classes_as_text(answered[~right])}


def packed(bits: np.ndarray) -> str:
    """Return an array of booleans as text: base64 of zlib of packed bits. `unpacked` reads it."""
    return _text(np.packbits(bits).tobytes())


def unpacked(text: str, shape: tuple[int, ...]) -> np.ndarray:
    """Return the array of booleans of that shape.

    Raises:
        ValueError: the text is damaged, or holds another number of bits.
    """
    count = int(np.prod(shape))
    found = np.frombuffer(_bytes(text), np.uint8)
    if len(found) != -(-count // 8):
        raise ValueError(f"{8 * len(found)} bits instead of {count}")
    return np.unpackbits(found, count=count).astype(bool).reshape(shape)


def classes_as_text(classes: np.ndarray) -> str:
    """Return an array of class numbers `[N]` as text: base64 of zlib of little-endian uint16. `classes_of` reads it."""
    return _text(classes.astype("<u2").tobytes())


def classes_of(text: str) -> np.ndarray:
    """Return the class numbers `[N]` of `classes_as_text`. Raises ValueError if the text is damaged."""
    return np.frombuffer(_bytes(text), "<u2").astype(int)


def corrupted_bits(kept: Mapping) -> np.ndarray:
    """Return the booleans `[kind, severity, image]` of one split of what `behaviour` found on corrupted images.

    Raises:
        ValueError: they are damaged.
    """
    return unpacked(kept["right"], (len(STRENGTHS), len(SEVERITIES), kept["images"]))


def _text(content: bytes) -> str:
    return base64.b64encode(zlib.compress(content, 9)).decode()


def _bytes(text: str) -> bytes:
    try:
        return zlib.decompress(base64.b64decode(text, validate=True))
    except zlib.error as error:
        raise ValueError(str(error)) from None
