"""Kernel times that Shettiwar and Shankar report for a Titan V, without a description of the method."""

from __future__ import annotations

import numpy as np
import pandas as pd


def published_kernels() -> pd.DataFrame:
    """Return one row per reported time: case (as in our records), kind of kernel, density of A, and ms."""
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


# Our counterparts of each reported kernel: the one of the same kind, and our fastest.
ANSWERS = {
    "FP32, tiled": ("gemm_tiled", "gemm_split_k"),
    "INT8": ("gemm_int8_tiled", "gemm_int8_skinny"),
    "dense FP32 matrix-vector": ("gemv_thread_per_row", "gemv_vector4"),
    "CSR matrix-vector": ("spmv_thread_per_row", "spmv_delta8_fp32"),
    "dense FP32 product": ("gemm_tiled", "gemm_blocked"),
    "CSR product (cuSPARSE)": ("torch.sparse mm", "spmm_row_split"),
}


def kernels_beside_published(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare the reported times with ours, for the same kind of kernel and for our fastest; NaN if not measured.

    frame: our GPU records (columns kernel, case, density and time_ms); may be empty.
    """
    table = published_kernels()
    for column, which in (("same kind, ms", 0), ("fastest, ms", 1)):
        table[column] = [_time(frame, row.case, ANSWERS[row.what][which], row.density) for row in table.itertuples()]
    table["reported / fastest"] = table.reported_ms / table["fastest, ms"]
    return table


def _time(frame: pd.DataFrame, case: str, kernel: str, density: float) -> float:
    if frame.empty:
        return float("nan")
    rows = frame[(frame.case == case) & (frame.kernel == kernel) & np.isclose(frame.density, density)]
    return float(rows.time_ms.median())
