"""Files of more than 8 bits, turned or transparent, as `load` gives them: the same rules for all that reads them."""

from pathlib import Path

import numpy as np
from PIL import Image

from latebloom.data.config import DataConfig
from latebloom.data.sources.load import load


def scans(path: Path) -> Path:
    """16-bit grey of one value each: 1,000 to 1,510 in train, so two values a step, and beyond that in test."""
    for place, value in {
        "train/a/0": 1000,
        "train/a/1": 1510,
        "train/b/0": 1200,
        "train/b/1": 1002,
        "test/a/0": 900,
        "test/b/0": 2000,
        "test/b/1": 1100,
    }.items():
        file = path / f"{place}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((12, 9), value, np.uint16)).save(file)
    return path


def test_one_scale_of_the_training_images_holds_for_all_splits(tmp_path: Path) -> None:
    splits = load(DataConfig(source=str(scans(tmp_path)), depth="data"))
    assert splits.train.image_shape == (12, 9, 1)
    assert splits.train.pixels()[:, 0, 0, 0].tolist() == [0, 255, 100, 1]
    assert splits.test.pixels()[:, 0, 0, 0].tolist() == [0, 255, 50]  # what lies beyond is clipped


def test_a_limit_changes_no_pixel(tmp_path: Path) -> None:
    config = DataConfig(source=str(scans(tmp_path)), depth="data")
    all_of_them = load(config).train
    few = load(config.model_copy(update={"train_limit": 2})).train
    assert set(few.sha256) < set(all_of_them.sha256)


def test_the_whole_image_is_read_by_the_same_rules_as_the_cut_one(tmp_path: Path) -> None:
    splits = load(DataConfig(source=str(scans(tmp_path)), depth="data", image_size=8))
    assert splits.train.pixels()[:, 0, 0, 0].tolist() == [0, 255, 100, 1]
    whole = splits.train.whole(np.arange(4))
    assert [image.shape for image in whole] == [(12, 9, 1)] * 4
    assert [image[0, 0, 0] for image in whole] == [0, 255, 100, 1]


def test_photographs_are_of_one_size_once_they_are_upright(tmp_path: Path) -> None:
    # One is stored 12 wide and 9 high, the other 9 wide and 12 high with the word to turn it.
    for split in ("train", "test"):
        for name, orientation in (("a", 1), ("b", 6)):
            exif = Image.Exif()
            exif[0x0112] = orientation
            (tmp_path / split / name).mkdir(parents=True)
            size = (12, 9) if orientation == 1 else (9, 12)
            Image.new("RGB", size, "red").save(tmp_path / split / name / "0.jpg", exif=exif.tobytes())
    assert load(DataConfig(source=str(tmp_path))).train.image_shape == (9, 12, 3)


def test_the_background_is_that_of_the_config(tmp_path: Path) -> None:
    for place in ("train/a", "train/b", "test/a"):
        (tmp_path / place).mkdir(parents=True)
        Image.new("RGBA", (9, 9), (255, 0, 0, 0)).save(tmp_path / place / "0.png")
    for background, value in (("white", 255), ("grey", 128), ("black", 0)):
        config = DataConfig.model_validate({"source": str(tmp_path), "background": background})
        assert np.unique(load(config).train.pixels()).tolist() == [value]
