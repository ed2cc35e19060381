"""Records in results/kernels/, one JSON file per measurement, and tables computed from them."""

from __future__ import annotations

import json
import re
import warnings
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pandas as pd

from experiment.records import current_commit, seal
from experiment.store import results_root
from storage import atomic_write


def record_path(record: dict, folder: Path | None = None) -> Path:
    """Return the file of a record, named after device, kernel, size, density and threads: machines do not collide.

    Here and below, `folder` is by default results/kernels, or kernels in $RESULTS_DIR.
    """
    size = "x".join(str(record[name]) for name in ("m", "n", "k"))
    parts = [record["device"], record["kernel"], size, f"d{record['density']:g}"]
    if record.get("threads"):
        parts.append(f"t{record['threads']}")
    return _folder(folder) / (re.sub(r"[^a-z0-9.]+", "-", "_".join(parts).lower()).strip("-") + ".json")


def _folder(given: Path | None) -> Path:
    return results_root() / "kernels" if given is None else given


def write(record: dict, folder: Path | None = None) -> Path:
    """Write the record atomically: under a temporary name, then renamed."""
    path = record_path(record, folder)
    sealed = record | {"seal": seal(record)}
    with atomic_write(path) as temporary:
        temporary.write_text(json.dumps(sealed, indent=1, sort_keys=True) + "\n")
    return path


def read(record: dict, folder: Path | None = None) -> dict | None:
    """Return the stored record of the same device, kernel, size, density and threads, or None."""
    return _read(record_path(record, folder))


def load(folder: Path | None = None, files: str = "*.json") -> pd.DataFrame:
    """Return all records as a DataFrame, one row each. Damaged ones are skipped with a warning that names them.

    files: read only those whose names match.
    """
    return pd.DataFrame(list(filter(None, map(_read, sorted(_folder(folder).glob(files))))))


def _read(path: Path) -> dict | None:
    try:
        record = json.loads(path.read_text())
        if not isinstance(record, dict) or record.pop("seal", None) != seal(record):
            raise ValueError("it was changed since it was written")
        return record
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:
        warnings.warn(f"{path} is not a readable record ({error}): skipped", stacklevel=3)
        return None


def provenance() -> dict:
    """Return the time and the commit of a measurement."""
    return {"commit": current_commit(), "time": datetime.now(UTC).isoformat(timespec="seconds")}


def summarize(milliseconds: list[float]) -> dict:
    """Return median and percentiles of repeated timings, in ms."""
    quantiles = np.percentile(milliseconds, [5, 25, 50, 75, 95])
    names = ("time_ms_p5", "time_ms_p25", "time_ms", "time_ms_p75", "time_ms_p95")
    return {**{name: float(value) for name, value in zip(names, quantiles, strict=True)}, "samples": len(milliseconds)}


def rates(record: dict) -> dict:
    """Return GB/s and Gop/s, from the counted bytes and operations, and their shares of the measured peak rates."""
    seconds = record["time_ms"] / 1e3
    out = {"gbytes_per_s": record["bytes"] / seconds / 1e9, "gops_per_s": record["operations"] / seconds / 1e9}
    if record.get("copy_gbytes_per_s"):
        out["share_of_copy"] = out["gbytes_per_s"] / record["copy_gbytes_per_s"]
        kind = "int8" if record["family"].endswith("int8") else "fp32"
        out["share_of_rate"] = out["gops_per_s"] / record[f"{kind}_gops_per_s"]
    return out


def beside_libraries(frame: pd.DataFrame) -> pd.DataFrame:
    """Compare our fastest kernel with the library: one row per product that both were timed on by the same method.

    frame: GPU records. Speed is the library's time over ours: above 1, ours is faster. A product is left out if only
    one of the two could be replayed as a graph, since the other's time includes gaps between launches.
    """
    keys = ["family", "case", "density"]
    fastest = frame[frame.family != "copy"].sort_values("time_ms").groupby([*keys, frame.maker == "ours"]).first()
    ours, library = (
        fastest.xs(side, level="maker").add_suffix(f" {name}") for side, name in ((True, "ours"), (False, "library"))
    )
    table = ours.join(library, how="inner")
    table = table[table["timing ours"] == table["timing library"]]
    table["speed"] = table["time_ms library"] / table["time_ms ours"]
    columns = ["kernel ours", "time_ms ours", "share_of_copy ours", "maker library", "time_ms library", "speed"]
    return table[columns].reset_index()


def crossover(sparse: pd.DataFrame, dense_ms: float) -> float | None:
    """Return the density at which a sparse product takes as long as the dense one.

    sparse: columns density and time_ms. Interpolated linearly between logarithms. None if the curve does not cross
    dense_ms within the measured densities.
    """
    curve = sparse.sort_values("density")
    density, ratio = np.log(curve.density.to_numpy()), np.log(curve.time_ms.to_numpy() / dense_ms)
    for i in range(len(ratio) - 1):
        if ratio[i] <= 0 < ratio[i + 1]:
            share = -ratio[i] / (ratio[i + 1] - ratio[i])
            return float(np.exp(density[i] + share * (density[i + 1] - density[i])))
    return None
