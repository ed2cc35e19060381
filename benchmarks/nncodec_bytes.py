"""Length, in bytes, of NNCodec's bitstream of the int32 arrays in an .npz file, which decodes to the same arrays.

    nncodec/bin/python benchmarks/nncodec_bytes.py ARRAYS.npz

NNCodec (ISO/IEC 15938-17; `nncodec` 2.1.3) needs numpy below 2, so this runs in an environment of its own. It codes
int32 arrays without approximation, whatever its quantization parameters are; the others are those of `nncodec.nn`.
"""

import sys

import numpy as np
from nncodec import nnc

if __name__ == "__main__":
    arrays = dict(np.load(sys.argv[1]))
    stream = nnc.compress(arrays, bitstream_path=None, return_bitstream=True, row_skipping=True, verbose=False)
    decoded = nnc.decompress(stream, verbose=False)
    if not all(np.array_equal(array, decoded[name]) for name, array in arrays.items()):
        sys.exit("NNCodec's bitstream decodes to other integers")
    print(len(stream))
