"""Every random stream is a named child of one root seed.

Nothing in Latebloom uses a global random state. A stream has a name, so the order of draws, the process and restarts
do not change what is drawn.
"""

import contextlib
import hashlib
import json
from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    import torch

__all__ = ["child_seed", "numpy_rng", "torch_rng", "torch_stream"]


def child_seed(root: int, *names: str | int) -> int:
    """The seed of the stream `names` under `root`: the first 63 bits of a SHA-256, so 0 <= seed < 2**63.

    The names are hashed as JSON: `("a", 1)`, `("a", "1")` and `("a1",)` are three different streams.
    """
    key = json.dumps([int(root), *names]).encode()
    return int.from_bytes(hashlib.sha256(key).digest()[:8], "big") >> 1


def numpy_rng(root: int, *names: str | int) -> np.random.Generator:
    """A NumPy generator for the stream `names` under `root`."""
    return np.random.default_rng(child_seed(root, *names))


def torch_rng(root: int, *names: str | int) -> "torch.Generator":
    """A CPU torch generator for the stream `names` under `root`.

    Always on the CPU: what is drawn must not depend on the device that uses it.
    """
    import torch

    return torch.Generator().manual_seed(child_seed(root, *names))


@contextlib.contextmanager
def torch_stream(root: int, *names: str | int) -> Iterator[None]:
    """For code that can draw from torch's global streams only (layer initialisation, dropout): it draws from `names`.

    The global states of the CPU and of every CUDA device are restored at the end. They belong to the process, so two
    threads must not use this at the same time.
    """
    import torch

    devices = list(range(torch.cuda.device_count())) if torch.cuda.is_initialized() else []
    with torch.random.fork_rng(devices=devices):
        seed = child_seed(root, *names)
        torch.default_generator.manual_seed(seed)
        for device in devices:
            torch.cuda.default_generators[device].manual_seed(seed)
        yield
