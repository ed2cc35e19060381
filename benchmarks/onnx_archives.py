"""Bytes of ONNX files that packages ship: by xz, zstd and NNCodec, and as our archive. Fills results/onnx_files.csv.

    python -m venv nncodec && nncodec/bin/pip install nncodec==2.1.3       # needs numpy below 2
    python benchmarks/onnx_archives.py --nncodec nncodec/bin/python        # rows without figures, fetched with pip
    python benchmarks/onnx_archives.py --nncodec nncodec/bin/python mine.onnx ...       # prints a table of these

The first four columns of the table say which files: to add one, add its line. Only a file that our archive gives back
byte for byte is listed, and only if NNCodec gives back its integers. NNCodec rounds floats at any setting; it keeps
their bits if these are given to it as integers.
"""

import argparse
import hashlib
import lzma
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import zstandard

from storage.archive import code_unit, units
from storage.coding import Writer
from storage.onnx_archive import Place, decode_onnx, encode_onnx, places, tensor_at

ROOT = Path(__file__).resolve().parents[1]
TABLE = ROOT / "results" / "onnx_files.csv"
INTEGERS = (torch.int8, torch.int16, torch.int32)


def fetched(package: str, version: str, file: str) -> bytes:
    """Return a file of a package's wheel."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "pip", "download", "-q", "--no-deps", "--only-binary", ":all:", "-d", folder]
        subprocess.run([*command, f"{package}=={version}"], check=True)
        (wheel,) = Path(folder).glob("*.whl")
        with zipfile.ZipFile(wheel) as opened:
            return opened.read(file)


def measured(content: bytes, nncodec: str) -> dict:
    """Return the bytes of an ONNX file in each coding, and of its large tensors alone, of integers and of floats."""
    archive = encode_onnx(content)
    if decode_onnx(archive) != content:
        raise SystemExit("our archive does not give the file back")
    row = {
        "sha256": hashlib.sha256(content).hexdigest(),
        "bytes": len(content),
        "xz_bytes": len(lzma.compress(content, preset=9 | lzma.PRESET_EXTREME)),
        "zstd_bytes": len(zstandard.ZstdCompressor(level=19).compress(content)),
        "archive_bytes": len(archive),
    }
    tensors = [tensor_at(content, place) for place in distinct(content)]
    for kind, dtypes in (("integer", INTEGERS), ("float", (torch.float32,))):
        chosen = [tensor for tensor in tensors if tensor.dtype in dtypes]
        row[f"{kind}_tensor_bytes"] = sum(tensor.nbytes for tensor in chosen)
        row[f"{kind}_tensor_archive_bytes"] = stream_bytes(chosen)
        row[f"{kind}_tensor_nncodec_bytes"] = nncodec_bytes(chosen, nncodec) if chosen else 0
    return row


def distinct(content: bytes) -> list[Place]:
    """Return the places of large tensors in an ONNX file, one of each that it repeats."""
    seen = {tensor_at(content, place).numpy().tobytes(): place for place in reversed(places(content))}
    return sorted(seen.values())


def stream_bytes(tensors: list[torch.Tensor]) -> int:
    """Return the length of our coded stream of tensors."""
    writer, table = Writer(), {str(index): tensor for index, tensor in enumerate(tensors)}
    for unit in units(table):
        code_unit(writer, unit, table)
    return len(writer.content())


def nncodec_bytes(tensors: list[torch.Tensor], python: str) -> int:
    """Return the length of NNCodec's bitstream of the same integers, or of the bits of floats as integers."""
    arrays = [(t.view(torch.int32) if t.dtype == torch.float32 else t).numpy().astype(np.int32) for t in tensors]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "arrays.npz"
        np.savez(path, *arrays)
        command = [python, str(ROOT / "benchmarks" / "nncodec_bytes.py"), str(path)]
        printed = subprocess.run(command, cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout
    return int(printed.splitlines()[-1])


def main() -> None:
    """Measure the files given, or those of the table that have no figures yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", nargs="*", type=Path, help="ONNX files; without any, those of the table")
    parser.add_argument("--nncodec", required=True, help="the Python interpreter of an environment that has nncodec")
    arguments = parser.parse_args()
    if arguments.files:
        rows = [{"file": str(path)} | measured(path.read_bytes(), arguments.nncodec) for path in arguments.files]
        print(pd.DataFrame(rows).to_string(index=False))
        return
    rows = pd.read_csv(TABLE, dtype=str).to_dict("records")
    for row in rows:
        if pd.isna(row.get("sha256")):
            print(row["package"], row["file"], flush=True)
            row |= measured(fetched(row["package"], row["version"], row["file"]), arguments.nncodec)
            pd.DataFrame(rows).to_csv(TABLE, index=False)


if __name__ == "__main__":
    main()
