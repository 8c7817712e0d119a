"""Digits as class folders of PNG files."""

from pathlib import Path

import numpy as np

from latebloom.data.config import DataConfig
from latebloom.data.images import encode_png
from latebloom.data.sources.load import load


def save_digits(folder: Path) -> Path:
    """Class folders of digits, five a class to train on and two to test; `folder` itself."""
    data = load(DataConfig())
    for split, images, each in (("train", data.train, 5), ("test", data.test, 2)):
        for label in range(10):
            (folder / split / str(label)).mkdir(parents=True)
            rows = np.flatnonzero(images.labels == label)[:each]
            for number, pixels in enumerate(images.pixels(rows)):
                (folder / split / str(label) / f"{number}.png").write_bytes(encode_png(pixels))
    return folder
