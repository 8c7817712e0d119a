"""What this machine has: memory that is free, and how fast it multiplies. torch is loaded only where there is a GPU."""

import dataclasses
import functools
import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

__all__ = ["Machine", "free_ram", "machine"]

_CGROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current"),
    ("/sys/fs/cgroup/memory/memory.limit_in_bytes", "/sys/fs/cgroup/memory/memory.usage_in_bytes"),
)
# Of the rate of a large matrix product, what a UNet reaches: 0.85 measured on a CPU; a third is our guess for a GPU.
_CPU_SHARE, _GPU_SHARE = 0.8, 1 / 3


@dataclasses.dataclass(frozen=True)
class Machine:
    """The device that a job would use.

    Attributes:
        name: "2 CPU cores", or the GPU's name.
        free: bytes of memory that are free; 0: not known.
        dtype_bytes: bytes a value of a generator takes there with the default dtype.
        flops: floating-point operations a second that a diffusion model is estimated to reach.
    """

    name: str
    free: int
    dtype_bytes: int
    flops: float


def machine(device: str) -> Machine:
    """The device that a config's `device` (auto, cpu or cuda) stands for here, its rate from a short matrix product."""
    if device != "cpu" and shutil.which("nvidia-smi"):
        import torch

        if torch.cuda.is_available():
            return _gpu()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return Machine(f"{cores} CPU core{'s' * (cores > 1)}", free_ram(), 4, cores * _CPU_SHARE * _core_rate())


def free_ram() -> int:
    """Bytes of main memory that this process may still take, within its container's limit; 0: not known."""
    found = []
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
        found += [int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:")]
    except OSError:  # macOS has none
        return 0
    for limit, usage in _CGROUPS:
        try:
            allowed, used = Path(limit).read_text().strip(), int(Path(usage).read_text())
        except (OSError, ValueError):
            continue
        if allowed.isdigit():
            found.append(max(0, int(allowed) - used))
    return min(found, default=0)


def _gpu() -> Machine:
    import torch

    half = torch.cuda.is_bf16_supported()
    matrix = torch.ones(4096, 4096, device="cuda", dtype=torch.bfloat16 if half else torch.float32)
    torch.cuda.synchronize()

    def product() -> None:
        matrix @ matrix
        torch.cuda.synchronize()

    free = torch.cuda.mem_get_info()[0]
    return Machine(
        torch.cuda.get_device_name(), free, 2 if half else 4, _GPU_SHARE * _rate(product, 4096, time.perf_counter)
    )


@functools.cache
def _core_rate() -> float:
    """In CPU seconds, so that what else the machine does now does not count."""
    import numpy as np

    matrix = np.ones((1024, 1024), np.float32)
    return _rate(lambda: matrix @ matrix, 1024, time.process_time)


def _rate(product: Callable[[], object], side: int, clock: Callable[[], float]) -> float:
    """Operations a second of the quickest of a few products of square matrices."""
    seconds = []
    for _ in range(4):
        begin = clock()
        product()
        seconds.append(clock() - begin)
    return float(2 * side**3 / max(min(seconds), 1e-9))
