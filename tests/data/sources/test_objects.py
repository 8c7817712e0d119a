"""Data sets of torch, torchvision and Hugging Face's datasets as `LabeledImages`."""

import random
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import Dataset, Subset
from torchvision.datasets import ImageFolder
from torchvision.transforms import ToTensor

import latebloom
from latebloom.data.sources.objects import images_from


class Pairs(Dataset[Any]):
    """Items as they are given."""

    def __init__(self, items: list[Any], classes: list[str] | None = None) -> None:
        self.items = items
        if classes:
            self.classes = classes

    def __len__(self) -> int:
        return len(self.items)

    def __getitem__(self, row: int) -> Any:
        item = self.items[row]
        return item() if callable(item) else item


def picture(value: int, mode: str = "L", size: tuple[int, int] = (9, 8)) -> Image.Image:
    return Image.new(mode, size, value if mode in ("L", "P") else (value,) * len(mode))


def test_it_is_part_of_the_public_page() -> None:
    assert latebloom.images_from is images_from


@pytest.mark.parametrize(
    "make",
    [
        picture,
        lambda value: np.full((8, 9), value, np.uint8),
        lambda value: np.full((8, 9, 1), value, np.uint8),
        lambda value: torch.full((1, 8, 9), value, dtype=torch.uint8),
        lambda value: torch.full((8, 9), value / 255),
        lambda value: ToTensor()(picture(value)),
        lambda value: np.full((1, 8, 9), value / 255, np.float32),
    ],
    ids=["pillow", "array", "array of channels", "tensor", "float tensor", "ToTensor", "float array"],
)
def test_every_kind_of_image_gives_the_same_pixels(make: Any) -> None:
    data = images_from(Pairs([(make(3), 1), (make(200), torch.tensor(0)), (make(255), np.int64(1))]))
    assert data.image_shape == (8, 9, 1)
    assert data.pixels()[:, 7, 8, 0].tolist() == [3, 200, 255]
    assert data.labels.tolist() == [1, 0, 1]
    assert (data.class_names, data.names) == (("0", "1"), ("Pairs[0]", "Pairs[1]", "Pairs[2]"))


def test_a_tensor_of_colours_has_its_channels_first() -> None:
    image = torch.zeros((3, 8, 9), dtype=torch.uint8)
    image[1] = 7
    assert images_from(Pairs([(image, 0), (image, 1)])).pixels()[0, 2, 3].tolist() == [0, 7, 0]


def test_class_names_are_given_or_those_of_the_data_set_or_the_sorted_texts() -> None:
    pairs = [(picture(1), 1), (picture(2), 0)]
    assert images_from(Pairs(pairs, ["cat", "dog"])).class_names == ("cat", "dog")
    assert images_from(Pairs(pairs, ["cat", "dog"]), class_names=["a", "b"]).class_names == ("a", "b")
    texts = images_from(Pairs([(picture(1), "dog"), (picture(2), "cat")]), names=["x.png", "y.png"])
    assert (texts.class_names, texts.labels.tolist()) == (("cat", "dog"), [1, 0])
    assert texts.names == ("x.png", "y.png")


def test_images_of_several_sizes_need_a_size() -> None:
    pairs = Pairs([(picture(1), 0), (picture(2, size=(20, 30)), 1)])
    with pytest.raises(ValueError, match=r"item 1 is 20x30 while item 0 is 9x8; .*give an image size"):
        images_from(pairs)
    assert images_from(pairs, image_size=8).pixels()[:, 4, 4, 0].tolist() == [1, 2]


def test_transparent_images_are_laid_on_white() -> None:
    pairs = Pairs([(Image.new("RGBA", (8, 8), (9, 9, 9, 0)), 0), (picture(2, size=(8, 8)), 1)])
    assert images_from(pairs).pixels()[:, 0, 0].tolist() == [[255] * 3, [2] * 3]


@pytest.mark.parametrize(
    ("items", "words"),
    [
        (
            [(torch.full((1, 8, 8), -2.1), 0)],
            "item 0 has values from -2.1 to -2.1; expected 0 to 1, so a transform has",
        ),
        ([(torch.full((1, 8, 8), 254.0), 0)], "values from 254 to 254; expected 0 to 1"),
        ([(torch.full((1, 8, 8), float("nan")), 0)], "values from nan to nan"),
        ([(torch.zeros((1, 8, 8), dtype=torch.int64), 0)], "is int64; expected uint8, or floats from 0 to 1"),
        ([(np.zeros((4, 8, 8), np.uint8), 0)], r"a ndarray of shape \(4, 8, 8\); expected Pillow's, an array"),
        ([{"image": 1}], r"item 0 is a dict; expected a pair \(image, label\)"),
        ([(picture(1), 0.5)], r"the label of item 0 is float64\(\); expected a whole number or a text"),
        ([(picture(1), torch.tensor([0, 1]))], r"the label of item 0 is int64\(2,\)"),
        (
            [lambda: (picture(random.randrange(256)), 0)] * 8,
            "another image each time it is read, so a random transform",
        ),
        ([(picture(1), 0), (picture(1), -1)], r"Pairs\[1\] has label -1, but the classes of Pairs are 0"),
    ],
)
def test_what_cannot_be_an_image_or_a_label_is_refused(items: list[Any], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        images_from(Pairs(items))


def test_what_is_no_data_set_is_refused() -> None:
    for wrong, words in [
        (iter([]), "has no length or no items by number"),
        (datasets.DatasetDict({"train": datasets.Dataset.from_dict({})}), "a DatasetDict of train; give one of them"),
    ]:
        with pytest.raises(ValueError, match=words):
            images_from(wrong)
    pairs = Pairs([(picture(1), 0), (picture(2), 1)])
    with pytest.raises(ValueError, match="2 images but 1 names"):
        images_from(pairs, names=["a"])
    with pytest.raises(ValueError, match="names must differ, got a more than once"):
        images_from(pairs, names=["a", "a"])


def folder(root: Path) -> Path:
    for value, name in enumerate(("big cat/1.png", "big cat/2.png", "dog/1.png")):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        picture(value).save(root / name)
    return root


def test_an_image_folder_is_read_without_its_transform_and_keeps_its_paths(tmp_path: Path) -> None:
    made = ImageFolder(str(folder(tmp_path)), transform=lambda _: 1 / 0)
    data = images_from(made)
    assert data.names == ("big cat/1.png", "big cat/2.png", "dog/1.png")
    assert (data.class_names, data.labels.tolist()) == (("big cat", "dog"), [0, 0, 1])
    assert data.pixels()[:, 0, 0, 0].tolist() == [0, 1, 2]


def test_a_subset_keeps_the_rows_and_names_of_the_whole(tmp_path: Path) -> None:
    part = images_from(Subset(Subset(ImageFolder(str(folder(tmp_path))), [2, 1, 0]), [0, 2]))
    assert (part.names, part.labels.tolist()) == (("dog/1.png", "big cat/1.png"), [1, 0])
    assert part.pixels()[:, 0, 0, 0].tolist() == [2, 0]
    assert images_from(Subset(Pairs([(picture(v), v % 2) for v in range(4)]), [3, 2])).names == ("Pairs[3]", "Pairs[2]")


def hugging_face(paths: bool = True, **more: Any) -> Any:
    features = {"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog"])}
    columns = {"image": [picture(v) for v in range(3)], "label": [1, 0, 1]}
    features |= {name: datasets.ClassLabel(names=["a", "b"]) for name in more}
    return datasets.Dataset.from_dict(columns | more, datasets.Features(features))


def test_a_dataset_of_hugging_face_is_read_without_its_transform() -> None:
    made = hugging_face().with_transform(lambda _: 1 / 0)
    data = images_from(made)
    assert (data.class_names, data.labels.tolist()) == (("cat", "dog"), [1, 0, 1])
    assert data.pixels()[:, 0, 0, 0].tolist() == [0, 1, 2]
    assert data.names == ("Dataset[0]", "Dataset[1]", "Dataset[2]")


def test_a_dataset_of_two_label_columns_is_refused() -> None:
    with pytest.raises(ValueError, match=r"2 columns that may be the label, of .*; leave two of them with dataset.sel"):
        images_from(hugging_face(coarse=[0, 1, 0]))
    assert images_from(hugging_face(coarse=[0, 1, 0]).select_columns(["image", "coarse"])).labels.tolist() == [0, 1, 0]
