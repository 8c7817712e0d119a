import re
import urllib.error
from pathlib import Path
from typing import Any

import fsspec
import numpy as np
import pytest
import torchvision
from PIL import Image
from scipy.io import savemat

from latebloom.data.config import DataConfig
from latebloom.data.sources.load import Splits, load


def put_image(file: Path, value: int, size: int = 8, mode: str = "RGB") -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, (size, size), value if mode == "L" else (value,) * 3).save(file, "PNG")  # what it is, not its name


def values(splits: Splits) -> tuple[list[int], list[int]]:
    return tuple(part.pixels()[:, 0, 0, 0].tolist() for part in (splits.train, splits.test))  # type: ignore[return-value]


def tiny_imagenet(folder: Path) -> Path:
    """Three classes, two of whose first words are the same, with the boxes that are published beside the images."""
    wnids = ["n01", "n02", "n03"]
    for c, wnid in enumerate(wnids):
        for k in range(2):
            put_image(
                folder / "train" / wnid / "images" / f"{wnid}_{k}.JPEG", 10 * c + k, mode="L" if c == 1 else "RGB"
            )
        (folder / "train" / wnid / f"{wnid}_boxes.txt").write_text(f"{wnid}_0.JPEG\t0\t0\t63\t63\n")
    for k, value in enumerate((100, 101)):
        put_image(folder / "val" / "images" / f"val_{k}.JPEG", value)
    (folder / "val" / "val_annotations.txt").write_text("val_0.JPEG\tn03\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n")
    put_image(folder / "test" / "images" / "test_0.JPEG", 200)
    (folder / "wnids.txt").write_text("n02\nn03\nn01\n")  # in no order, as published
    (folder / "words.txt").write_text("n01\tcrane\nn02\tgoldfish, Carassius auratus\nn03\tcrane, hoist\nn99\tother\n")
    return folder


def caltech256(folder: Path) -> Path:
    for number, name, images in ((1, "ak47", (1, 60, 61)), (2, "american-flag", (2, 99)), (257, "clutter", (5, 800))):
        for k, image in enumerate(images):
            put_image(folder / f"{number:03}.{name}" / f"{number:03}_{image:04}.jpg", number % 200 + k)
    (folder / "001.ak47" / "greg").mkdir()  # such a folder and such a file are in the published archive
    put_image(folder / "001.ak47" / "greg" / "vis.jpg", 0)
    (folder / "002.american-flag" / "RENAME2").write_text("")
    return folder


def svhn(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for split, labels in (("train", [*range(1, 11), 10]), ("test", [10, 3])):
        images = np.zeros((32, 32, 3, len(labels)), np.uint8)
        images[2, 1, 0] = np.arange(len(labels)) + 1  # row 2, column 1, red
        arrays = {"X": images, "y": np.array(labels, np.uint8)[:, None]}
        savemat(folder / f"{split}_32x32.mat", arrays)
    return folder


@pytest.fixture(autouse=True)
def _any_svhn(monkeypatch: pytest.MonkeyPatch) -> None:
    """torchvision takes any two files for SVHN's, not only those with the published MD5."""
    monkeypatch.setattr(torchvision.datasets.svhn, "check_integrity", lambda file, _: Path(file).is_file())


def stanford_cars(folder: Path, test_beside: bool = True, one: bool = False) -> Path:
    """Three classes as in the published devkit: structs of a box, a class from 1, and a file name."""
    devkit = folder / "devkit"
    devkit.mkdir(parents=True)
    savemat(devkit / "cars_meta.mat", {"class_names": np.array(["Audi 100", "BMW X6", "Fiat 500"], object)[None]})
    kinds = [(name, np.int64) for name in ("bbox_x1", "bbox_y1", "bbox_x2", "bbox_y2", "class")] + [("fname", object)]
    for split, labels, file in (
        ("train", (3, 1, 2), devkit / "cars_train_annos.mat"),
        ("test", (2,) if one else (2, 2), (folder if test_beside else devkit) / "cars_test_annos_withlabels.mat"),
    ):
        records = np.array([(0, 0, 9, 9, c, f"{i + 1:05}.jpg") for i, c in enumerate(labels)], kinds)[None]
        savemat(file, {"annotations": records})
        for i in range(len(labels)):
            put_image(folder / f"cars_{split}" / f"{i + 1:05}.jpg", 10 * (split == "test") + i)
    return folder


def check_tiny_imagenet(splits: Splits) -> None:
    assert splits.train.class_names == ("crane", "goldfish", "crane, hoist")
    assert values(splits) == ([0, 1, 10, 11, 20, 21], [100, 101])
    assert splits.train.labels.tolist() == [0, 0, 1, 1, 2, 2]
    assert splits.test.labels.tolist() == [2, 0]


def check_caltech256(splits: Splits) -> None:
    assert splits.train.class_names == ("ak47", "american-flag", "clutter")
    assert values(splits) == ([1, 2, 2, 57], [3, 3, 58])  # images 1, 60; 2; 5 and then 61; 99; 800
    assert splits.train.labels.tolist() == [0, 0, 1, 2]
    assert splits.test.labels.tolist() == [0, 1, 2]


def check_svhn(splits: Splits) -> None:
    assert splits.train.image_shape == (32, 32, 3)
    assert splits.train.class_names == tuple("0123456789")
    assert splits.train.labels.tolist() == [1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 0]  # the file calls the digit 0 ten
    assert splits.test.labels.tolist() == [0, 3]
    pixels = splits.train.pixels()
    assert pixels[:, 2, 1, 0].tolist() == list(range(1, 12))
    assert pixels.sum() == 66


def check_stanford_cars(splits: Splits) -> None:
    assert splits.train.class_names == ("Audi 100", "BMW X6", "Fiat 500")
    assert values(splits) == ([0, 1, 2], [10, 11])
    assert splits.train.labels.tolist() == [2, 0, 1]
    assert splits.test.labels.tolist() == [1, 1]


SETS: list[tuple[str, str, Any, Any]] = [
    ("tiny-imagenet", "tiny-imagenet-200", tiny_imagenet, check_tiny_imagenet),
    ("caltech256", "256_ObjectCategories", caltech256, check_caltech256),
    ("caltech256", "caltech256/256_ObjectCategories", caltech256, check_caltech256),
    ("svhn", "svhn", svhn, check_svhn),
    ("stanford-cars", "stanford_cars", stanford_cars, check_stanford_cars),
]


@pytest.mark.parametrize(("name", "place", "make", "check"), SETS)
def test_a_published_folder_is_read_by_name_and_by_path(
    tmp_path: Path, name: str, place: str, make: Any, check: Any
) -> None:
    folder = make(tmp_path / place)
    by_name = load(DataConfig(source=name, root=str(tmp_path)))
    check(by_name)
    assert (by_name.train.origin, by_name.test.origin) == (f"{name} train", f"{name} test")
    check(load(DataConfig(source=name, root=str(folder))))
    by_path = load(DataConfig(source=str(folder)))
    check(by_path)
    assert by_path.train.origin == f"{folder} train"


@pytest.mark.parametrize(("name", "place", "make", "check"), SETS)
def test_a_published_folder_may_be_a_url(tmp_path: Path, name: str, place: str, make: Any, check: Any) -> None:
    storage = fsspec.filesystem("memory")
    make(tmp_path / place)
    storage.put(str(tmp_path / place), f"/named/{place}", recursive=True)
    try:
        check(load(DataConfig(source=f"memory://named/{place}")))
    finally:
        storage.rm("/named", recursive=True)


def test_caltech256_is_found_in_the_folder_around_it(tmp_path: Path) -> None:
    caltech256(tmp_path / "256_ObjectCategories")
    check_caltech256(load(DataConfig(source=str(tmp_path))))


@pytest.mark.parametrize("inner", ["", "images"])
def test_tiny_imagenets_val_may_be_sorted_into_folders(tmp_path: Path, inner: str) -> None:
    folder = tiny_imagenet(tmp_path)
    (folder / "val" / "val_annotations.txt").unlink()
    for image, wnid in (("val_0.JPEG", "n03"), ("val_1.JPEG", "n01")):
        (folder / "val" / wnid / inner).mkdir(parents=True)
        (folder / "val" / "images" / image).rename(folder / "val" / wnid / inner / image)
    (folder / "val" / "images").rmdir()
    splits = load(DataConfig(source=str(folder)))
    assert splits.test.labels.tolist() == [0, 2]
    assert values(splits)[1] == [101, 100]


def test_tiny_imagenet_without_words_is_named_by_its_folders(tmp_path: Path) -> None:
    (tiny_imagenet(tmp_path) / "words.txt").unlink()
    assert load(DataConfig(source=str(tmp_path))).train.class_names == ("n01", "n02", "n03")


def test_the_labels_of_stanford_cars_may_lie_in_the_devkit(tmp_path: Path) -> None:
    check_stanford_cars(load(DataConfig(source=str(stanford_cars(tmp_path, test_beside=False)))))


def test_a_single_annotation_is_a_list_of_one(tmp_path: Path) -> None:
    # With torchvision's squeeze_me it is no list at all.
    assert load(DataConfig(source=str(stanford_cars(tmp_path, one=True)))).test.labels.tolist() == [1]


def test_an_image_folder_of_ones_own_is_still_one(tmp_path: Path) -> None:
    for part in ("train/001.cat/a.png", "train/002.dog/a.png", "test/001.cat/a.png", "val/001.cat/a.png"):
        put_image(tmp_path / part, 1)
    assert load(DataConfig(source=str(tmp_path))).train.class_names == ("001.cat", "002.dog")


def refused(source: Path | str, words: str, **settings: Any) -> None:
    with pytest.raises(ValueError, match=words) as caught:
        load(DataConfig(source=str(source), **settings))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("tiny-imagenet", r"tiny-imagenet is not in .*; unpack .*zip so that .*/tiny-imagenet-200 has train, val"),
        ("caltech256", r"unpack 256_ObjectCategories\.tar .* so that .*/256_ObjectCategories has 001\.ak47"),
        (
            "stanford-cars",
            r"has taken it down; from a copy, put cars_train, .* into .*/stanford_cars, and cars_test_an",
        ),
    ],
)
def test_what_is_missing_and_cannot_be_downloaded_says_what_to_put_where(tmp_path: Path, name: str, words: str) -> None:
    refused(name, words, root=str(tmp_path / "root"))
    assert list(tmp_path.iterdir()) == []


def test_svhn_is_downloaded_by_torchvision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(self: Any) -> None:
        svhn(Path(self.root))

    monkeypatch.setattr(torchvision.datasets.SVHN, "download", download)
    check_svhn(load(DataConfig(source="svhn", root=str(tmp_path))))


def test_a_failed_download_of_svhn_says_what_to_put_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def download(*_: Any, **__: Any) -> None:
        raise urllib.error.URLError("no network")

    monkeypatch.setattr(torchvision.datasets, "SVHN", download)
    place = re.escape(str(tmp_path / "svhn"))
    refused(
        "svhn",
        rf"could not be downloaded \(.*no network.*\); put train_32x32\.mat and .* into {place}",
        root=str(tmp_path),
    )


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("val_0.JPEG", r"line 3 of .*val_annotations\.txt is 'val_0\.JPEG'; expected the name of an image, a tab"),
        ("val_0.JPEG\tn77\t0\t0\t1\t1", r"line 3 of .*expected .* one of the classes n01, n02, n03"),
        ("val_9.JPEG\tn01\t0\t0\t1\t1", r"val_9\.JPEG cannot be read as an image .*No such file"),
    ],
)
def test_an_annotation_of_tiny_imagenet_that_does_not_fit_is_named(tmp_path: Path, line: str, words: str) -> None:
    folder = tiny_imagenet(tmp_path)
    with (folder / "val" / "val_annotations.txt").open("a") as file:
        file.write(line + "\n")
    refused(folder, words)


def test_what_is_no_class_of_tiny_imagenet_is_named(tmp_path: Path) -> None:
    folder = tiny_imagenet(tmp_path)
    (folder / "val" / "val_annotations.txt").unlink()
    refused(folder, r"val has neither val_annotations\.txt nor folders called like the classes .*, but images")
    (folder / "train" / "n04").mkdir()
    refused(folder, r"train/n04 holds no images; unpack")


def test_an_image_of_caltech256_without_a_number_is_named(tmp_path: Path) -> None:
    put_image(caltech256(tmp_path) / "001.ak47" / "mine.png", 1)
    refused(tmp_path, r"mine\.png is not called NNN_NNNN\.jpg, .*; rename or remove it")


def test_files_of_svhn_that_are_missing_or_not_the_published_ones_are_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = svhn(tmp_path)
    monkeypatch.undo()  # the true MD5
    refused(folder, r"train_32x32\.mat is damaged, or is not the published file; get it again")
    (folder / "train_32x32.mat").unlink()
    refused(folder, r"train_32x32\.mat is missing; put it there")


def test_a_damaged_or_missing_matlab_file_is_named(tmp_path: Path) -> None:
    file = stanford_cars(tmp_path) / "devkit" / "cars_meta.mat"
    file.write_bytes(file.read_bytes()[:100])
    refused(tmp_path, r"cars_meta\.mat cannot be read as a MATLAB file")
    savemat(file, {"names": np.zeros(1)})
    refused(tmp_path, r"cars_meta\.mat has no class_names; is it the published file\?")
    file.unlink()
    refused(tmp_path, r"cars_meta\.mat is missing; put it there")


def test_annotations_of_stanford_cars_without_labels_are_refused(tmp_path: Path) -> None:
    # The devkit has a cars_test_annos.mat without classes, and people rename it.
    folder = stanford_cars(tmp_path)
    records = np.array([(9, "00001.jpg")], [("bbox_x1", int), ("fname", object)])[None]
    savemat(folder / "cars_test_annos_withlabels.mat", {"annotations": records})
    refused(folder, r"cars_test_annos_withlabels\.mat has no fname or class in its annotations")
