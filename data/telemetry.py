"""Turn telemetry off: ONNX Runtime and huggingface_hub read these variables once, on import.

A package that imports ONNX Runtime must import this module first. Set a variable to 0 to allow telemetry.
"""

import os

for _name in ("ORT_DISABLE_TELEMETRY", "HF_HUB_DISABLE_TELEMETRY"):
    os.environ.setdefault(_name, "1")
