"""Where files lie that several rooms write."""

import os
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def artifacts_root() -> Path:
    """Return the folder of everything that can be made again: artifacts/, or $ARTIFACTS_DIR.

    $STORE comes first: a folder that all machines of a cluster share.
    """
    return Path(os.environ.get("STORE") or os.environ.get("ARTIFACTS_DIR") or ROOT / "artifacts")


def slug(name: str) -> str:
    """Turn a name into a file name of ASCII letters, digits, dots, dashes and underscores."""
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "unnamed"
