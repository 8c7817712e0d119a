import io
from pathlib import Path

import pytest
from PIL import Image
from sources import picture, read, refused

from latebloom.data.config import DataConfig
from latebloom.data.sources.found import Problems
from latebloom.data.sources.load import find

CIFAR10 = Path(__file__).parents[4] / "shared" / "cifar10"


def put(folder: Path, tree: dict[str, bytes]) -> Path:
    for name, content in tree.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    return folder


def tree() -> dict[str, bytes]:
    """Two classes; cat's pictures are 1 and 2 in train, 3 in test; dog's 4, and 5 and 6."""
    names = [
        "train/cat/a.png",
        "train/cat/b.png",
        "test/cat/a.png",
        "train/dog/a.png",
        "test/dog/a.png",
        "test/dog/b.png",
    ]
    return {name: picture(value) for value, name in enumerate(names, 1)}


# Image folders


def test_an_image_folder_is_sorted_by_class_and_file(tmp_path: Path) -> None:
    splits = read(put(tmp_path, tree()))
    assert splits.train.class_names == splits.test.class_names == ("cat", "dog")
    assert splits.train.pixels()[:, 0, 0, 0].tolist() == [1, 2, 4]
    assert splits.train.labels.tolist() == [0, 0, 1]
    assert splits.test.pixels()[:, 0, 0, 0].tolist() == [3, 5, 6]
    assert splits.test.labels.tolist() == [0, 1, 1]
    assert splits.train.image_shape == (8, 8, 1)
    assert splits.train.origin == str(tmp_path / "train")
    assert splits.generator is None


def test_hidden_files_notes_and_tables_are_passed_over(tmp_path: Path) -> None:
    junk = ["train/.DS_Store", "train/cat/.DS_Store", "test/dog/Thumbs.db", "train/.git/x.png", "labels.csv"]
    notes = ["train/metadata.jsonl", "train/cat/README.txt", "test/cat/a.JSON"]
    splits = read(put(tmp_path, tree() | dict.fromkeys(junk + notes, b"?")))
    assert (len(splits.train), len(splits.test)) == (3, 3)


def test_every_kind_of_image_is_read(tmp_path: Path) -> None:
    kinds = {"a.PNG": "PNG", "b.jpg": "JPEG", "c.jpeg": "JPEG", "d.bmp": "BMP", "e.tif": "TIFF", "f.tiff": "TIFF"}
    more = {f"train/cat/{name}": picture(7, kind=kind) for name, kind in kinds.items()}
    more["train/cat/g.webp"] = picture(7, "RGB", kind="WEBP")
    splits = read(put(tmp_path, tree() | more))
    assert splits.train.class_counts().tolist() == [9, 1]
    assert splits.train.pixels().shape == (10, 8, 8, 3)


def test_one_image_in_colour_makes_all_of_them_colour(tmp_path: Path) -> None:
    for number, (mode, channels) in enumerate([("1", 1), ("L", 1), ("RGB", 3), ("RGBA", 3), ("LA", 3), ("P", 3)]):
        splits = read(put(tmp_path / str(number), tree() | {"test/dog/b.png": picture(1, mode)}))
        assert splits.train.image_shape == splits.test.image_shape == (8, 8, channels)
        assert splits.train.pixels().shape[3] == splits.test.pixels().shape[3] == channels


def test_a_grey_image_with_a_transparent_shade_stays_grey(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), 9).save(buffer, "PNG", transparency=9)
    splits = read(put(tmp_path, tree() | {"test/dog/b.png": buffer.getvalue()}))
    assert splits.test.image_shape == (8, 8, 1)
    assert splits.test.pixels()[:, 0, 0, 0].tolist() == [3, 5, 255]  # transparent: white


def test_images_need_not_be_square(tmp_path: Path) -> None:
    splits = read(put(tmp_path, {name: picture(size=(12, 9)) for name in tree()}))
    assert splits.train.image_shape == (9, 12, 1)
    assert splits.train.pixels().shape == (3, 9, 12, 1)


def test_image_size_makes_all_sizes_one(tmp_path: Path) -> None:
    more = {"train/cat/b.png": picture(2, size=(30, 9)), "test/dog/a.png": picture(5, size=(100, 200))}
    splits = read(put(tmp_path, tree() | more), image_size=12)
    assert splits.train.image_shape == (12, 12, 1)
    assert splits.train.pixels()[:, 11, 11, 0].tolist() == [1, 2, 4]
    assert splits.test.pixels()[:, 0, 0, 0].tolist() == [3, 5, 6]


def test_only_headers_are_read_up_front(tmp_path: Path) -> None:
    whole = io.BytesIO()
    Image.effect_noise((8, 8), 50).save(whole, "PNG")
    splits = read(put(tmp_path, tree() | {"train/cat/b.png": whole.getvalue()[:-40]}))
    with pytest.raises(ValueError, match=r"train/cat/b\.png cannot be read as an image"):
        splits.train.pixels()


def test_a_class_without_test_images_is_allowed(tmp_path: Path) -> None:
    splits = read(put(tmp_path, tree() | {"train/bee/a.png": picture()}))
    assert splits.test.class_names == ("bee", "cat", "dog")
    assert splits.test.class_counts().tolist() == [0, 1, 2]


def test_what_does_not_fit_an_image_folder_is_named(tmp_path: Path) -> None:
    for number, (more, words) in enumerate(
        [
            (
                {"test/fox/a.png": picture()},
                r"test/fox is a class that .*train does not have; its classes are cat, dog",
            ),
            ({"test/fox/README.txt": b""}, r"test/fox holds no images; add some or remove the folder"),
            ({"train/cat/kitten/a.png": picture()}, r"train/cat/kitten is a folder inside a class folder"),
            ({"train/loose.png": picture()}, r"train/loose\.png is in no class; expected .*/train/<class>/<image>"),
            ({"train/cat/c.gif": b"GIF89a"}, r"train/cat/c\.gif cannot be read as an image"),
            ({"train/cat/c.npy": b""}, r"train/cat/c\.npy is not one of \.png, .*convert it to PNG"),
            ({"train/cat/c.png": b""}, r"train/cat/c\.png cannot be read as an image"),
            ({"test/dog/b.png": b"<html>404</html>"}, r"test/dog/b\.png cannot be read as an image .*repair or remove"),
            ({"train/dog/c.png": picture(0, "I;16")}, r"dog/c\.png has pixel mode I;16, more than 8 bits"),
            ({"train/dog/c.tif": picture(0, "F", kind="TIFF")}, r"dog/c\.tif has pixel mode F"),
            ({"train/dog/c.png": picture(size=(8, 7))}, r"dog/c\.png is 8x7, smaller than 8 pixels"),
            ({"train/dog/c.png": picture(size=(9, 8))}, r"dog/c\.png is 9x8 while .*cat/a\.png is 8x8; .*--image-size"),
            ({"test/cat/a.png": picture(size=(8, 9))}, r"test/cat/a\.png is 8x9 while .*train/cat/a\.png is 8x8"),
        ]
    ):
        refused(put(tmp_path / str(number), tree() | more), words)


def test_tiny_images_are_refused_although_they_would_be_enlarged(tmp_path: Path) -> None:
    refused(put(tmp_path, tree() | {"train/dog/c.png": picture(size=(2, 200))}), "c.png is 2x200", image_size=32)


def test_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    put(tmp_path, tree())
    (tmp_path / "train/cat/c.png").symlink_to(tmp_path / "gone.png")
    refused(tmp_path, r"train/cat/c\.png cannot be read as an image")


def test_a_single_class_is_refused(tmp_path: Path) -> None:
    refused(put(tmp_path, {"train/cat/a.png": picture(), "test/cat/a.png": picture()}), "single class cat; .* least 2")


def test_an_empty_part_is_refused(tmp_path: Path) -> None:
    put(tmp_path, {name: content for name, content in tree().items() if name.startswith("train")})
    (tmp_path / "test").mkdir()
    refused(tmp_path, r"test is empty; expected .*test/<class>/<image>")


def test_a_test_part_alone_is_no_data_set(tmp_path: Path) -> None:
    put(tmp_path, {name: content for name, content in tree().items() if name.startswith("test")})
    refused(tmp_path, r"has the parts test, and none of them is called train; .*--set data\.train=test")


def test_all_that_is_wrong_with_a_folder_is_found_at_once(tmp_path: Path) -> None:
    faults = {
        "train/loose.png",
        "train/cat/c.npy",
        "train/cat/kitten/a.png",
        "train/empty/x.txt",
        "train/deep/er/a.png",
    }
    put(tmp_path, tree() | dict.fromkeys(faults | {"test/fox/a.png"}, picture()))
    problems = Problems()
    names, splits = find(DataConfig(source=str(tmp_path)), problems)
    assert names == ("cat", "dog")
    assert list(splits["train"].names) == ["train/cat/a.png", "train/cat/b.png", "train/dog/a.png"]
    assert list(splits["test"].names) == ["test/cat/a.png", "test/dog/a.png", "test/dog/b.png"]
    assert sorted((one.kind, Path(one.where).relative_to(tmp_path).as_posix()) for one in problems.found) == [
        ("class without training images", "test/fox"),
        ("empty class", "train/empty"),
        ("folder in a class", "train/cat/kitten"),
        ("folder in a class", "train/deep"),
        ("in no class", "train/loose.png"),
        ("not an image", "train/cat/c.npy"),
    ]
    refused(tmp_path, r"\(5 more: .*; `latebloom check .*` lists all\)")


def test_class_folders_may_be_numbered_as_those_of_caltech(tmp_path: Path) -> None:
    names = [f"{kind}/Bird_{number:04}_{number}.png" for kind in ("001.Albatross", "002.Auk") for number in range(5)]
    splits = read(put(tmp_path, {name: picture(value) for value, name in enumerate(names)}))
    assert splits.train.class_names == ("001.Albatross", "002.Auk")
    assert (len(splits.train), len(splits.test)) == (8, 2)


def test_the_hold_out_is_stratified_and_drawn_by_the_seed(tmp_path: Path) -> None:
    names = [f"{kind}/{number}.png" for kind, count in (("cat", 20), ("dog", 10)) for number in range(count)]
    put(tmp_path, {name: picture(value) for value, name in enumerate(names)})
    splits = read(tmp_path)
    assert (splits.train.class_counts().tolist(), splits.test.class_counts().tolist()) == ([16, 8], [4, 2])
    assert sorted(splits.train.names + splits.test.names) == sorted(names)
    assert read(tmp_path).test.digest == splits.test.digest
    assert read(tmp_path, train_limit=10, validation_fraction=0.2).test.digest == splits.test.digest
    assert read(tmp_path, subset_seed=1).test.digest != splits.test.digest
    assert set(read(tmp_path, test_fraction=0.1).test.names) < set(splits.test.names)
    words = (
        f"{tmp_path} has no test part: 6 images, 20% of each class, are held out as the test split (data.test_fraction)"
    )
    assert splits.notes == (words,)


def test_a_validation_part_and_a_fraction_exclude_each_other(tmp_path: Path) -> None:
    put(tmp_path, tree() | {"val/cat/a.png": picture(7), "val/dog/a.png": picture(8)})
    splits = read(tmp_path)
    assert splits.validation is not None
    assert splits.validation.pixels()[:, 0, 0, 0].tolist() == [7, 8]
    assert splits.notes == (f"{tmp_path / 'val'}: its 2 images are the validation split",)
    refused(
        tmp_path,
        r"validation_fraction is 0\.5, but .*/val is a validation split already; leave out data\.validation_fraction",
        validation_fraction=0.5,
    )
    both = read(tmp_path, validation_fraction=0.5, validation="none")
    assert both.validation is not None
    assert both.validation.names in (("train/cat/a.png",), ("train/cat/b.png",))
