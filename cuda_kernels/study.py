"""The kernel times that the published study reports, measured on a Titan V without saying how; for comparison only."""

from __future__ import annotations

import pandas as pd


def reported() -> pd.DataFrame:
    """A row a reported time: case (as in our records), what it is, the density of A, and ms."""
    rows = [
        ("fully connected", "FP32, tiled", 1.0, 170.0),
        ("fully connected", "INT8", 1.0, 125.0),
        ("square 25088", "dense FP32 matrix-vector", 1.0, 10.428),
        ("square 25088", "CSR matrix-vector", 0.1, 3.5484),
        ("square 1000", "dense FP32 product", 1.0, 162.75),
        ("square 1000", "CSR product (cuSPARSE)", 0.85, 55.375),
        ("square 1000", "CSR product (cuSPARSE)", 0.7, 35.548),
        ("square 1000", "CSR product (cuSPARSE)", 0.1, 4.364),
    ]
    return pd.DataFrame(rows, columns=["case", "what", "density", "reported_ms"])
