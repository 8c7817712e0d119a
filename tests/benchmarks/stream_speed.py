"""Images per second that reach a training loop from 224-pixel JPEG: streamed from a folder and from parquet, against
torchvision's ImageFolder in torch's DataLoader, the loop everyone writes. In one run, with equal workers.

python tests/benchmarks/stream_speed.py [--images 1024] [--workers 1 2] [--repeats 5] [--device cpu]

The pictures are cut from two photographs that come with scikit-learn. `stored 224`: 224x224 files, decoded only;
`stored 500x375`: the shorter side is resized to 224 and the centre cut, as most would store them. All loops give uint8
batches (B, 3, H, W) on the device in a shuffled order; the files are in the system's cache.
"""

import argparse
import os
import platform
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import PIL
import pyarrow as pa
import pyarrow.parquet as pq
import torch
import torchvision
from PIL import Image
from sklearn.datasets import load_sample_images
from torch import Tensor
from torchvision.transforms import v2

from latebloom.data.batches import Pixels, epoch_order
from latebloom.data.config import DataConfig
from latebloom.data.sources.load import load

BATCH = 64


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    torch.set_num_threads(1)
    device = torch.device(options.device)
    print(
        f"torch {torch.__version__}, torchvision {torchvision.__version__}, pillow {PIL.__version__}, one torch "
        f"thread, {os.cpu_count()} cores, {platform.machine()}, device {device}; {options.images} images, batches of "
        f"{BATCH}, n = {options.repeats}, mean (min to max)"
    )
    with tempfile.TemporaryDirectory() as scratch:
        for size in ((224, 224), (500, 375)):
            folder = Path(scratch) / f"{size[0]}"
            write(folder, size, options.images)
            for workers in options.workers:
                compare(folder, size, workers, options.repeats, device)


def write(folder: Path, size: tuple[int, int], count: int) -> None:
    """Random cuts as <folder>/images/<split>/<class>/<number>.jpg and <folder>/parquet/<split>.parquet."""
    width, height = size
    rng = np.random.default_rng(0)
    photographs = [Image.fromarray(array).resize((1280, 854)) for array in load_sample_images().images]
    rows: dict[str, list[tuple[bytes, int]]] = {"train": [], "test": []}
    for number in range(count + 2):
        split, label = ("train" if number < count else "test"), number % 2
        left, top = rng.integers(1280 - width + 1), rng.integers(854 - height + 1)
        file = folder / "images" / split / str(label) / f"{number:06}.jpg"
        file.parent.mkdir(parents=True, exist_ok=True)
        photographs[label].crop((left, top, left + width, top + height)).save(file, quality=90)
        rows[split].append((file.read_bytes(), label))
    (folder / "parquet").mkdir()
    for split, pairs in rows.items():
        images = pa.array([{"bytes": blob, "path": None} for blob, _ in pairs])
        table = pa.table({"image": images, "label": pa.array([label for _, label in pairs])})
        pq.write_table(table, folder / "parquet" / f"{split}.parquet")


def compare(folder: Path, size: tuple[int, int], workers: int, repeats: int, device: torch.device) -> None:
    """Time an epoch of each loop in turn, `repeats` times, after one that starts all of them."""
    cut = 224 if size != (224, 224) else 0
    streams = {}
    for kind in ("images", "parquet"):
        data = load(DataConfig(source=str(folder / kind), image_size=cut)).train
        streams[kind] = Pixels(data, device, resident_bytes=0, workers=workers)
    count = len(streams["images"].data)
    steps = [v2.Resize(224, v2.InterpolationMode.BICUBIC), v2.CenterCrop(224)] if cut else []
    dataset = torchvision.datasets.ImageFolder(str(folder / "images" / "train"), v2.Compose([*steps, v2.PILToTensor()]))
    loader = torch.utils.data.DataLoader(
        dataset, BATCH, shuffle=True, num_workers=workers, pin_memory=device.type == "cuda", persistent_workers=True
    )

    def streamed(kind: str, epoch: int) -> Iterable[Tensor]:
        return streams[kind].batches(np.array_split(epoch_order(count, 0, epoch), -(-count // BATCH)))

    loops: dict[str, Callable[[int], Iterable[Tensor]]] = {
        "ImageFolder + DataLoader": lambda _: (images.to(device, non_blocking=True) for images, _ in loader),
        "folder": lambda epoch: streamed("images", epoch),
        "parquet": lambda epoch: streamed("parquet", epoch),
    }
    speeds: dict[str, list[float]] = {name: [] for name in loops}
    for epoch in range(repeats + 1):
        for name, loop in loops.items():
            begin = time.perf_counter()
            seen = sum(len(batch) for batch in loop(epoch))
            if device.type == "cuda":
                torch.cuda.synchronize()
            assert seen == count
            if epoch:
                speeds[name].append(count / (time.perf_counter() - begin))
    base = np.array(speeds["ImageFolder + DataLoader"])
    print(f"stored {size[0]}x{size[1]}, {workers} workers")
    for name, values in speeds.items():
        ratios = np.array(values) / base
        print(
            f"  {name:25} {np.mean(values):6.0f} images/s ({min(values):.0f} to {max(values):.0f}), "
            f"ratio {ratios.mean():.2f} ({ratios.min():.2f} to {ratios.max():.2f})"
        )


if __name__ == "__main__":
    main()
