"""Classify pictures: `python predict.py PICTURE ...`. Needs only onnxruntime, numpy and Pillow."""

import os
import sys
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
import onnxruntime

HERE = Path(__file__).parent  # model.onnx takes uint8 images and normalizes them itself

if __name__ == "__main__":
    session = onnxruntime.InferenceSession(HERE / "model.onnx", providers=["CPUExecutionProvider"])
    labels = (HERE / "labels.txt").read_text("utf-8").splitlines()
    (images,) = session.get_inputs()
    _, channels, height, width = images.shape
    for name in sys.argv[1:]:
        with Image.open(name) as picture:
            upright = ImageOps.exif_transpose(picture).convert("RGB" if channels == 3 else "L")
        pixels = np.asarray(ImageOps.fit(upright, (width, height))).reshape(height, width, channels)
        (logits,) = session.run(None, {images.name: pixels.transpose(2, 0, 1)[None]})[0]
        shares = np.exp(logits - logits.max()) / np.exp(logits - logits.max()).sum()
        print(f"{name}: {labels[shares.argmax()]} ({shares.max():.1%})")
