"""Classify pictures: `python predict.py PICTURE ...`. Needs onnxruntime, numpy and Pillow, and nothing else."""

import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

HERE = Path(__file__).parent  # model.onnx takes uint8 images, and normalizes them itself


def read(name: str, channels: int, height: int, width: int) -> np.ndarray:
    """A picture `[1, C, H, W]`, uint8: upright, its range if it has more than 8 bits, black where it is transparent."""
    with Image.open(name) as opened:
        image: Image.Image = ImageOps.exif_transpose(opened)
        if image.mode in ("I", "I;16", "I;16B", "I;16L", "F"):
            values = np.asarray(image, dtype=np.float64).clip(min=0)
            image = Image.fromarray((values * (255 / (values.max() or 1))).round().astype(np.uint8))
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = Image.alpha_composite(Image.new("RGBA", image.size, (0, 0, 0, 255)), image)
        image = ImageOps.fit(image.convert("RGB" if channels == 3 else "L"), (width, height))
        return np.asarray(image).reshape(height, width, channels).transpose(2, 0, 1)[None]


if __name__ == "__main__":
    session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
    labels = (HERE / "labels.txt").read_text("utf-8").splitlines()
    (images,) = session.get_inputs()
    failed = 0
    for name in sys.argv[1:]:
        try:
            (logits,) = session.run(None, {images.name: read(name, *images.shape[1:])})[0]
        except (OSError, SyntaxError, ValueError) as error:
            failed += 1
            print(f"{name}: not a readable picture ({error})", file=sys.stderr)
            continue
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        print(f"{name}: {labels[shares.argmax()]} ({shares.max():.1%})")
    if not sys.argv[1:]:
        print("usage: python predict.py PICTURE ...", file=sys.stderr)
    sys.exit(bool(failed) or not sys.argv[1:])
