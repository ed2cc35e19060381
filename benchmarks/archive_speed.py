"""Time and memory to write and read an archive of the trained, quantized ResNet-18 on one core, in separate processes.

python benchmarks/archive_speed.py       (on Linux, which reports a process's peak memory)
"""

import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import psutil
import torch

from experiment import make
from models import build
from models.quantized import insert_quantizers
from storage import load_archive, save_archive
from study.baseline import base_recipe


def write(model: torch.nn.Module, path: Path) -> None:
    """Write the archive of a model's integer form."""
    save_archive(insert_quantizers(model.eval()), path)


def measure(what: str, path: Path) -> None:
    """Encode or decode, and print the time and the memory beyond what process and model held before."""
    torch.set_num_threads(1)
    small = build("resnet8", shape=(3, 32, 32), classes=10)
    write(small, path.with_name("small.nna"))  # loads lazily imported modules, which should not be counted
    model = load_archive(path) if what == "encode" else None
    Path("/proc/self/clear_refs").write_text("5")  # reset the peak, which includes the parent's
    before, started = psutil.Process().memory_info().rss, time.perf_counter()
    if model is not None:
        save_archive(model, path)
    else:
        model = load_archive(path)
    seconds = time.perf_counter() - started
    (kilobytes,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text())
    peak = 1024 * int(kilobytes)
    more = (peak - before) / 1e6
    size = sum(tensor.nbytes for tensor in model.state_dict().values()) / 1e6
    print(f"{what}: {seconds:.1f} s, at most {more:.0f} MB more, {more / size:.1f} times the model's {size:.1f} MB")


if __name__ == "__main__":
    if len(sys.argv) == 3:
        measure(sys.argv[1], Path(sys.argv[2]))
    else:
        with tempfile.TemporaryDirectory() as folder:
            large = Path(folder) / "resnet18.nna"
            write(make(base_recipe("cifar10", "resnet18")), large)  # from the archive beside its record
            for what in ("decode", "encode"):
                subprocess.run([sys.executable, __file__, what, str(large)], check=True)
