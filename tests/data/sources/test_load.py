import dataclasses
import re
import urllib.error
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torchvision
from PIL import Image
from sklearn.datasets import load_digits

from latebloom.data.config import DataConfig
from latebloom.data.depth import Decoding
from latebloom.data.images import EncodedImages, decode, encode_png
from latebloom.data.sources.load import Splits, digits_split, load
from latebloom.data.store import digest_bytes

# Config


def test_the_default_needs_no_network_and_no_file() -> None:
    assert DataConfig().source == "digits"


def test_a_size_below_8_is_refused() -> None:
    with pytest.raises(ValueError, match="image size 7 is too small; give 8 to 2048, or 0"):
        DataConfig(image_size=7)


def test_the_help_lists_every_name() -> None:
    described = DataConfig.model_fields["source"].description
    assert described is not None
    names = ("digits", "cifar10", "cifar100", "flowers102", "fgvc-aircraft", "tiny-imagenet", "caltech256", "svhn")
    assert ", ".join((*names, "stanford-cars")) in described


# Digits


@pytest.fixture(scope="module")
def digits() -> Splits:
    return load(DataConfig())


def test_digits_are_split_once_and_for_all() -> None:
    rows = digits_split()
    assert {name: len(part) for name, part in rows.items()} == {"train": 200, "generator": 800, "test": 797}
    assert np.sort(np.concatenate(list(rows.values()))).tolist() == list(range(1797))  # each row in one part
    assert all((np.diff(part) > 0).all() for part in rows.values())
    # Another split would be other numbers in every report.
    assert digest_bytes(b"".join(rows[name].astype("<i8").tobytes() for name in sorted(rows))) == (
        "36298fcb3a7cf2e767e7c4b7ed2cac4a4e41df3d233a4956ac35eb2b699b017e"
    )


def test_digits_are_stratified(digits: Splits) -> None:
    assert digits.generator is not None
    assert digits.train.class_counts().tolist() == [20] * 10
    assert digits.generator.class_counts().tolist() == [80] * 10
    assert (digits.test.class_counts() + 100).tolist() == np.bincount(load_digits().target).tolist()


def test_digits_are_the_ones_of_scikit_learn_in_255_steps(digits: Splits) -> None:
    row = digits_split()["train"][5]
    source = load_digits()
    assert digits.train.image_shape == (8, 8, 1)
    assert digits.train.labels[5] == source.target[row]
    assert digits.train.class_names == ("0", "1", "2", "3", "4", "5", "6", "7", "8", "9")
    table = {0: 0, 1: 16, 2: 32, 4: 64, 8: 128, 15: 239, 16: 255}  # value * 255 / 16, rounded
    before, after = source.images[row].ravel(), digits.train.pixels()[5].ravel()
    for value, pixel in table.items():
        assert set(after[before == value].tolist()) <= {pixel}
    assert digits.train.pixels().max() == 255


def test_the_same_digits_come_each_time(digits: Splits) -> None:
    again = load(DataConfig())
    assert again.train.digest == digits.train.digest
    assert again.test.digest == digits.test.digest


def test_arrays_are_resized_as_files_are(digits: Splits) -> None:
    resized = load(DataConfig(image_size=20))
    assert resized.generator is not None
    assert resized.train.image_shape == resized.test.image_shape == resized.generator.image_shape == (20, 20, 1)
    one = digits.train.pixels()[7]
    np.testing.assert_array_equal(
        resized.train.pixels(np.array([7]))[0], decode(encode_png(one), "x", decoding=Decoding(20))
    )


# Limits


def test_a_limit_is_met_exactly_and_evenly() -> None:
    splits = load(DataConfig(train_limit=53, test_limit=17))
    assert len(splits.train) == 53
    assert set(splits.train.class_counts().tolist()) == {5, 6}
    assert len(splits.test) == 17
    assert set(splits.test.class_counts().tolist()) == {1, 2}
    assert splits.generator is not None
    assert len(splits.generator) == 800


def test_chance_decides_which_class_gets_one_more(tmp_path: Path) -> None:
    # Sorted by class, as image folders are: the first class must not be the one that always gains.
    source = save(tmp_path, train_images=pixels(30), train_labels=np.repeat([0, 1, 2], 10))
    counts = [load(DataConfig(source=source, train_limit=4, subset_seed=s)).train.class_counts() for s in range(8)]
    assert {int(np.argmax(count)) for count in counts} == {0, 1, 2}
    assert {tuple(sorted(count.tolist())) for count in counts} == {(1, 1, 2)}


def test_a_limit_of_the_whole_split_is_the_whole_split(digits: Splits) -> None:
    assert load(DataConfig(train_limit=200)).train.digest == digits.train.digest


def test_a_smaller_limit_is_a_part_of_a_larger_one(digits: Splits) -> None:
    small, large = (load(DataConfig(train_limit=limit)).train.sha256 for limit in (13, 60))
    assert set(small) < set(large)
    places = [digits.train.sha256.index(digest) for digest in large]
    assert places == sorted(places)  # in the order of the split


def test_the_seed_alone_draws_the_subset() -> None:
    first = load(DataConfig(train_limit=30, subset_seed=1)).train
    assert load(DataConfig(train_limit=30, subset_seed=1, test_limit=50)).train.digest == first.digest
    assert load(DataConfig(train_limit=30, subset_seed=2)).train.digest != first.digest


def test_limits_keep_the_classes_shares(tmp_path: Path) -> None:
    for limit, counts in [
        (2, [1, 1, 0]),  # of the test split, fewer than classes is allowed: but no class gets two first
        (10, [8, 1, 1]),  # 9, 1 and 0.1 by share; the smallest class keeps its one
        (50, [44, 5, 1]),
        (101, [90, 10, 1]),
    ]:
        labels = np.repeat([0, 1, 2], [90, 10, 1])
        splits = load(DataConfig(source=save(tmp_path, test_images=pixels(101), test_labels=labels), test_limit=limit))
        if limit == 2:
            assert sorted(splits.test.class_counts().tolist(), reverse=True) == counts
        else:
            assert splits.test.class_counts().tolist() == counts


def test_a_validation_split_has_its_share_of_each_class_and_no_image_of_another_part() -> None:
    whole = load(DataConfig(train_limit=100))
    splits = load(DataConfig(train_limit=100, validation_fraction=0.25))
    assert whole.validation is None
    assert splits.validation is not None
    assert splits.train.class_counts().tolist() == [7] * 10  # of ten each, 2.5 rounded to 3
    assert splits.validation.class_counts().tolist() == [3] * 10
    both = [*splits.train.sha256, *splits.validation.sha256]
    assert sorted(both) == sorted(whole.train.sha256)
    assert len(set(both)) == 100
    assert splits.test.digest == whole.test.digest
    places = [whole.train.sha256.index(sha) for sha in splits.validation.sha256]
    assert places == sorted(places)
    assert splits.validation.labels.tolist() == whole.train.labels[places].tolist()


def test_a_validation_split_is_drawn_by_the_subset_seed_and_a_smaller_one_is_a_part_of_it() -> None:
    def drawn(fraction: float, seed: int) -> tuple[str, ...]:
        validation = load(DataConfig(validation_fraction=fraction, subset_seed=seed)).validation
        assert validation is not None
        return validation.sha256

    assert drawn(0.3, 1) == drawn(0.3, 1)
    assert drawn(0.3, 1) != drawn(0.3, 2)
    assert set(drawn(0.1, 1)) < set(drawn(0.3, 1))


@pytest.mark.parametrize("added", ["cat/a.png", "cat/z.png", "ant/a.png"], ids=["first", "last", "class"])
def test_what_is_held_out_stays_where_a_data_set_grows(tmp_path: Path, added: str) -> None:
    def add(name: str, grey: int) -> None:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(encode_png(np.full((8, 8, 1), grey, np.uint8)))

    for grey in range(20):
        add(f"{'dog' if grey % 2 else 'cat'}/{grey:02d}.png", grey)
    config = DataConfig(source=str(tmp_path), test_fraction=0.3, validation_fraction=0.2)
    before = load(config)
    assert len(before.test) == 6  # 3 of ten each; of eleven 3.3
    add(added, 99)
    after = load(config)
    for old, new in ((before.test, after.test), (before.validation, after.validation)):
        assert old is not None
        assert new is not None
        # The new image may be among the held-out ones, and then takes the place of one.
        assert len(set(old.names) - set(new.names)) <= int(added in new.names)
    # Where rounding holds out one more, that was one to train on.
    assert len(set(before.train.names) - set(after.train.names)) <= 1


def test_a_class_keeps_an_image_to_train_on(tmp_path: Path) -> None:
    labels = np.array([0, 1, 1, 2])
    source = save(tmp_path, train_images=pixels(4), train_labels=labels)
    splits = load(DataConfig(source=source, validation_fraction=0.5))
    assert splits.train.labels.tolist() == [0, 1, 2]
    assert splits.validation is not None
    assert splits.validation.labels.tolist() == [1]
    with pytest.raises(ValueError, match=r"validation_fraction is 0.1, which is no image of any class of .*4 images"):
        load(DataConfig(source=source, validation_fraction=0.1))


def test_limits_that_cannot_be_met_are_refused() -> None:
    for settings, words in [
        ({"train_limit": 201}, "train_limit is 201 but digits train has 200 images; give at most that"),
        ({"test_limit": 798}, "test_limit is 798 but digits test has 797 images"),
        ({"train_limit": 9}, "train_limit is 9 but digits train has 10 classes; give at least that"),
    ]:
        with pytest.raises(ValueError, match=words):
            load(DataConfig(**settings))


# .npz


def pixels(n: int, *shape: int) -> np.ndarray:
    """n images, image i all of value i; grey 8x8 without a shape."""
    shape = shape or (8, 8)
    return np.tile(np.arange(n, dtype=np.uint8).reshape(n, *(1 for _ in shape)), (1, *shape))


def save(folder: Path, **changes: Any) -> str:
    """Six training and three test images of three classes; a change of None leaves an array out."""
    arrays = {
        "train_images": pixels(6),
        "train_labels": np.array([0, 1, 2, 0, 1, 2], np.uint8)[:, None],
        "mean": np.zeros(3),  # read by nobody
        "test_images": pixels(3),
        "test_labels": np.array([2, 1, 0]),
    } | changes
    np.savez(folder / "set.npz", **{name: array for name, array in arrays.items() if array is not None})
    return str(folder / "set.npz")


def test_an_npz_is_read(tmp_path: Path) -> None:
    splits = load(DataConfig(source=save(tmp_path)))
    assert splits.train.image_shape == (8, 8, 1)
    assert splits.train.pixels()[:, 0, 0, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert splits.train.labels.tolist() == [0, 1, 2, 0, 1, 2]
    assert splits.test.labels.tolist() == [2, 1, 0]
    assert splits.train.class_names == ("0", "1", "2")
    assert splits.generator is None


def test_an_npz_may_be_in_colour_and_name_its_classes(tmp_path: Path) -> None:
    names = np.array(["cat", "dog", "fox"])
    source = save(tmp_path, train_images=pixels(6, 9, 8, 3), test_images=pixels(3, 9, 8, 3), class_names=names)
    splits = load(DataConfig(source=source))
    assert splits.train.image_shape == (9, 8, 3)
    assert splits.test.class_names == ("cat", "dog", "fox")


def test_resized_arrays_stay_small_until_asked_for(tmp_path: Path) -> None:
    images = np.arange(6 * 9 * 12 * 3, dtype=np.uint32).astype(np.uint8).reshape(6, 9, 12, 3)
    source = save(tmp_path, train_images=images, test_images=pixels(3, 9, 12, 3))
    splits = load(DataConfig(source=source, image_size=32))
    assert isinstance(splits.train.images, EncodedImages)
    assert sum(len(blob) for blob in splits.train.images.blobs if isinstance(blob, bytes)) < 6 * (9 * 12 * 3 + 20)
    assert splits.train.pixels().shape == (6, 32, 32, 3)
    np.testing.assert_array_equal(splits.train.pixels()[5], decode(encode_png(images[5]), "x", decoding=Decoding(32)))


def test_what_does_not_fit_an_npz_is_named(tmp_path: Path) -> None:
    for changes, words in [
        (
            {"train_images": None},
            "no array of the images that belong to train_labels; it has train_labels, mean, test_images, test_labels",
        ),
        ({"test_labels": None}, "no array of the labels that belong to test_images; .* --set data.test=none"),
        ({"train_images": pixels(6) / 255}, r"train is float64, more than 8 bits; set data\.depth=type"),
        ({"train_images": pixels(6).astype(np.int64)}, r"train is int64, more than 8 bits; .* data\.depth=data"),
        ({"train_images": pixels(6).astype(bool)}, "train is bool; expected uint8, 0..255"),
        ({"train_images": np.array([{}, None])}, "train_images cannot be read .* without pickles"),
        ({"train_images": pixels(6, 64)}, r"train_images has shape \(6, 64\); expected \(N, H, W\)"),
        ({"train_images": pixels(6, 3, 8, 8)}, r"shape \(6, 3, 8, 8\); expected .* channels last"),
        ({"test_images": pixels(3, 8, 8, 4)}, r"test_images has shape \(3, 8, 8, 4\)"),
        (
            {"test_images": pixels(3, 8, 9)},
            r"test is 9x8 while .*train is 8x8; of 9 images 3 have another size than the first; give an",
        ),
        ({"train_images": pixels(6, 7, 8), "test_images": pixels(3, 7, 8)}, "train is 8x7, smaller than 8"),
        (
            {"train_labels": np.zeros((6, 14), np.uint8)},
            r"train_labels is uint8\(6, 14\); expected integers or texts \(N,\)",
        ),
        ({"train_labels": np.zeros(6)}, r"train_labels is float64\(6,\); expected integers"),
        (
            {"train_labels": np.array(["cat"] * 6)},
            r"test: no label is a class; the first is 2, the classes of .*train are cat",
        ),
        (
            {"train_labels": np.array([0, 1, -1, 0, 1, 2])},
            r"train_images\[2\] has label -1, but the classes of .*train are 0, 1, 2",
        ),
        ({"train_labels": np.array([0, 1, 900, 0, 1, 2])}, "label 900 but only 9 images; number the classes 0..K-1"),
        ({"train_labels": np.array([0, 0, 2, 0, 2, 2])}, r"train has no image of 1 of 3 classes \(1\)"),
        ({"train_labels": np.zeros(6, int), "test_labels": np.zeros(3, int)}, "single class 0; .* at least 2"),
        ({"train_images": pixels(0), "train_labels": np.zeros(0, int)}, "train: no images at all"),
        (
            {"class_names": np.array(["cat", "dog"])},
            r"train_images\[2\] has label 2, but the classes of .*train are cat, dog",
        ),
        ({"class_names": np.array(["cat", "dog", "fox", "yak"])}, r"no image of 1 of 4 classes \(yak\)"),
        ({"class_names": np.array(["cat", "dog", "cat"])}, "class names must be unique and not empty, got cat"),
        ({"class_names": np.array([1, 2, 3])}, r"class_names is int64\(3,\); expected a 1-D array of strings"),
        ({"class_names": np.array(["cat", None, "fox"])}, "class_names cannot be read .* without pickles"),
    ]:
        source = save(tmp_path, **changes)
        before = Path(source).read_bytes()
        with pytest.raises(ValueError, match=words):
            load(DataConfig(source=source))
        assert Path(source).read_bytes() == before
        assert [entry.name for entry in tmp_path.iterdir()] == ["set.npz"]


def test_grey_beside_colour_becomes_colour(tmp_path: Path) -> None:
    splits = load(DataConfig(source=save(tmp_path, test_images=pixels(3, 8, 8, 3))))
    assert splits.train.image_shape == splits.test.image_shape == (8, 8, 3)
    assert splits.train.pixels()[:, 0, 0].tolist() == [[value] * 3 for value in range(6)]


def test_arrays_of_more_than_8_bits_become_8_by_the_chosen_rule(tmp_path: Path) -> None:
    def first(depth: Literal["type", "data"], train: np.ndarray, test: np.ndarray) -> tuple[list[int], list[int]]:
        filled = [np.broadcast_to(values[:, None, None], (len(values), 8, 8)) for values in (train, test)]
        source = save(tmp_path, train_images=filled[0], test_images=filled[1])
        splits = load(DataConfig(source=source, depth=depth))
        return splits.train.pixels()[:, 0, 0, 0].tolist(), splits.test.pixels()[:, 0, 0, 0].tolist()

    of_16 = np.array([0, 257, 65535, 32768, 128, 129], np.uint16)  # 257 values a step
    assert first("type", of_16, of_16[:3]) == ([0, 1, 255, 128, 0, 1], [0, 1, 255])
    of_01 = np.array([0, 1, 0.5, 1 / 255, 0.2, 0], np.float32)
    assert first("type", of_01, of_01[:3]) == ([0, 255, 128, 1, 51, 0], [0, 255, 128])
    # -100..410 of the training images becomes 0..255, two values a step; what the test images have beyond is clipped
    signed = np.array([-100, 410, -98, 100, 0, 0], np.int16)
    assert first("data", signed, np.array([-200, 500, -96], np.int16)) == ([0, 255, 1, 100, 50, 50], [0, 255, 2])


def test_values_that_a_rule_of_depth_does_not_cover_are_named(tmp_path: Path) -> None:
    nan = np.zeros((6, 8, 8), np.float32)
    nan[4, 2, 2:4] = 1, np.nan
    for depth, images, words in [
        ("type", nan, r"train: train_images\[4\] has NaN or infinite pixels \(1 such images\)"),
        ("data", nan, r"train_images\[4\] has NaN"),
        ("type", np.full((6, 8, 8), 1.5), r"train has floats from 1\.5 to 1\.5; data\.depth=type expects 0\.\.1"),
        ("type", pixels(6).astype(np.int16), "train is int16, a type with a sign, .* data.depth=data"),
        ("data", np.full((6, 8, 8), 7, np.int16), "all pixels of .* are 7, so data.depth=data has no scale"),
    ]:
        with pytest.raises(ValueError, match=words):
            load(DataConfig.model_validate({"source": save(tmp_path, train_images=images), "depth": depth}))


def test_a_damaged_npz_is_named(tmp_path: Path) -> None:
    for damage in ["empty", "text", "cut", "flipped"]:
        path = Path(save(tmp_path))
        whole = path.read_bytes()
        flipped = bytearray(whole)
        flipped[300] ^= 255  # inside the pixels of train_images: its checksum no longer holds
        path.write_bytes({"empty": b"", "text": b"hello", "cut": whole[:-50], "flipped": bytes(flipped)}[damage])
        with pytest.raises(
            ValueError, match=r"set\.npz (is not an \.npz archive, or it is damaged|train_images cannot be read)"
        ):
            load(DataConfig(source=str(path)))


# Paths


def test_what_is_no_data_set_gets_the_list(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for source, words in [
        ("cifar-10", r"cifar-10 is neither .* \(did you mean cifar10\?\); the names are digits, cifar10, cifar100, "),
        ("tinyimagenet", r"did you mean tiny-imagenet\?"),
        ("no/such/folder", r"no/such/folder is neither a data set's name nor a path that exists; the names are"),
        (
            "notes.txt",
            r"notes\.txt is a file of a kind that is not understood; expected a folder .* \.npz .*",
        ),
    ]:
        monkeypatch.chdir(tmp_path)
        for name in ("notes.txt", "cats.zip"):
            Path(name).write_text("hello")
        with pytest.raises(ValueError, match=words):
            load(DataConfig(source=source))
        assert sorted(entry.name for entry in tmp_path.iterdir()) == ["cats.zip", "notes.txt"]


def test_a_path_may_start_at_home_or_be_called_like_a_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.chdir(tmp_path)
    save(tmp_path)
    assert len(load(DataConfig(source="~/set.npz")).train) == 6
    Path("digits").mkdir()
    assert len(load(DataConfig(source="digits")).train) == 200
    with pytest.raises(ValueError, match="digits holds nothing"):
        load(DataConfig(source="./digits"))


# torchvision's


@dataclasses.dataclass
class Torchvision:
    """Stands in for a class of torchvision.datasets: the data set is there once it was downloaded."""

    there: bool = True
    error: Exception | None = None
    images: dict[Any, Any] = dataclasses.field(default_factory=dict)  # what `data` or `_image_files` is, by part
    calls: list[tuple[Path, Any, bool]] = dataclasses.field(default_factory=list)
    classes = ("cat", "dog")

    def __call__(self, root: Path, part: Any, *, download: bool) -> "Torchvision":
        self.calls.append((root, part, download))
        if download:
            if self.error:
                raise self.error
            self.there = True
        if not self.there:
            raise RuntimeError("Dataset not found or corrupted. You can use download=True to download it")
        made = Torchvision()
        made.data = made._image_files = self.images[part]  # type: ignore[attr-defined]
        made.targets = made._labels = [i % 2 for i in range(len(self.images[part]))]  # type: ignore[attr-defined]
        return made


@pytest.mark.parametrize(("name", "cls"), [("cifar10", "CIFAR10"), ("cifar100", "CIFAR100")])
def test_cifar_is_an_array(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, cls: str) -> None:
    fake = Torchvision(images={True: pixels(4, 32, 32, 3), False: pixels(2, 32, 32, 3)})
    monkeypatch.setattr(torchvision.datasets, cls, fake)
    splits = load(DataConfig(source=name, root=str(tmp_path)))
    assert isinstance(splits.train.images, np.ndarray)
    assert splits.train.pixels()[:, 0, 0, 0].tolist() == [0, 1, 2, 3]
    assert splits.train.labels.tolist() == [0, 1, 0, 1]
    assert splits.train.class_names == ("cat", "dog")
    assert (len(splits.test), splits.test.origin, splits.generator) == (2, f"{name} test", None)
    assert fake.calls == [(tmp_path, True, False), (tmp_path, False, False)]  # nothing was downloaded


@pytest.mark.parametrize(
    ("name", "cls", "train"), [("flowers102", "Flowers102", "train"), ("fgvc-aircraft", "FGVCAircraft", "trainval")]
)
def test_flowers_and_aircraft_are_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, cls: str, train: str
) -> None:
    for number, size in enumerate([(20, 30), (30, 20), (25, 25), (20, 30)]):
        Image.new("RGB", size, (number,) * 3).save(tmp_path / f"{number}.png")
    files = [str(tmp_path / f"{number}.png") for number in range(4)]
    fake = Torchvision(images={train: files[:2], "test": files[2:3], "val": files[3:]})
    monkeypatch.setattr(torchvision.datasets, cls, fake)
    with pytest.raises(ValueError, match=r"1\.png is 30x20 while .*0\.png is 20x30; .*--image-size"):
        load(DataConfig(source=name, root=str(tmp_path)))
    splits = load(DataConfig(source=name, root=str(tmp_path), image_size=16))
    assert (splits.validation is None) == (train == "trainval")
    assert splits.train.image_shape == (16, 16, 3)
    assert splits.train.pixels()[:, 0, 0, 0].tolist() == [0, 1]
    assert splits.train.labels.tolist() == [0, 1]
    assert splits.test.pixels()[:, 0, 0, 0].tolist() == [2]


def test_the_real_classes_take_the_part_where_we_put_it(tmp_path: Path) -> None:
    # The fakes above would not notice: the second argument is the part, and nothing is found in an empty folder.
    for cls, part in (("CIFAR10", True), ("CIFAR100", False), ("Flowers102", "train"), ("FGVCAircraft", "trainval")):
        with pytest.raises(RuntimeError, match="not found"):
            getattr(torchvision.datasets, cls)(tmp_path, part, download=False)
    with pytest.raises(ValueError, match="split"):
        torchvision.datasets.Flowers102(tmp_path, "no such part")


def test_what_is_missing_is_downloaded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fake = Torchvision(there=False, images={True: pixels(4, 32, 32, 3), False: pixels(2, 32, 32, 3)})
    monkeypatch.setattr(torchvision.datasets, "CIFAR10", fake)
    assert len(load(DataConfig(source="cifar10", root=str(tmp_path))).train) == 4
    assert [download for _, _, download in fake.calls] == [False, True, False]


def test_a_failed_download_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for error in [
        urllib.error.HTTPError("https://example.org", 404, "Not Found", None, None),  # type: ignore[arg-type]
        RuntimeError("File not found or corrupted."),
        EOFError("Compressed file ended before the end-of-stream marker was reached"),
    ]:
        name, cls, folder = "fgvc-aircraft", "FGVCAircraft", "fgvc-aircraft-2013b"
        monkeypatch.setattr(torchvision.datasets, cls, Torchvision(there=False, error=error))
        words = rf"{name} is not in .*\({re.escape(str(error))}\).*{folder}, or give the path"
        with pytest.raises(ValueError, match=words) as caught:
            load(DataConfig(source=name, root=str(tmp_path / "root")))
        assert str(tmp_path / "root" / folder) in str(caught.value)
        assert "parquet" in str(caught.value)
        assert caught.value.__cause__ is error
        assert list(tmp_path.iterdir()) == []
