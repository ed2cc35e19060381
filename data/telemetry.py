"""No telemetry: ONNX Runtime and huggingface_hub read these variables once, as they are imported.

A package whose modules import ONNX Runtime imports this module first. Set a variable to 0 to send telemetry after all.
"""

import os

for _name in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "1")
