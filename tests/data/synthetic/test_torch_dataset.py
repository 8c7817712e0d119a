from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import ConcatDataset, DataLoader, TensorDataset
from torchvision.transforms.v2.functional import pil_to_tensor

from latebloom.data.synthetic.torch_dataset import SyntheticImages
from tests.data.synthetic.test_folder import written


def test_the_usable_images_come_as_of_any_torchvision_set(tmp_path: Path) -> None:
    written(tmp_path)  # of 7 images those numbered 0 and 5 are ok; image i is all of value i, its label i % 2
    data = SyntheticImages(tmp_path)
    assert len(data) == 2
    assert data.classes == ["cat", "dog"]
    assert data.targets == [0, 1]
    picture, label = data[1]
    assert isinstance(picture, Image.Image)
    assert (np.asarray(picture) == 5).all()
    assert label == 1
    assert data.rows["item_id"].to_pylist() == ["item 0", "item 5"]
    assert SyntheticImages(tmp_path, lambda picture: picture.size, lambda label: label + 10)[0] == ((3, 2), 10)
    assert SyntheticImages(tmp_path, mode="L")[0][0].mode == "L"


def test_it_stands_beside_the_real_images_in_a_data_loader(tmp_path: Path) -> None:
    written(tmp_path)
    real = TensorDataset(torch.zeros(3, 3, 2, 3, dtype=torch.uint8), torch.tensor([0, 1, 1]))
    both = ConcatDataset([real, SyntheticImages(tmp_path, pil_to_tensor, torch.tensor)])
    images, labels = next(iter(DataLoader(both, batch_size=5)))
    assert images.flatten(1).float().mean(1).tolist() == [0, 0, 0, 0, 5]
    assert labels.tolist() == [0, 1, 1, 0, 1]


def test_labels_are_numbers_in_the_classes_of_the_real_data_set(tmp_path: Path) -> None:
    written(tmp_path)
    assert SyntheticImages(tmp_path, classes=["dog", "bird", "cat"]).targets == [2, 0]
    with pytest.raises(ValueError, match="has the class 'dog', which is not among"):
        SyntheticImages(tmp_path, classes=["cat", "bird"])


@pytest.mark.parametrize(
    ("states", "words"), [(("fine",), "no state is called 'fine'"), (("duplicate",), "no image that is duplicate")]
)
def test_states_that_no_image_has_are_refused(tmp_path: Path, states: tuple[str, ...], words: str) -> None:
    written(tmp_path)
    with pytest.raises(ValueError, match=words):
        SyntheticImages(tmp_path, states=states)


def test_a_run_folder_will_do(tmp_path: Path) -> None:
    written(tmp_path / "synthetic")
    assert len(SyntheticImages(str(tmp_path))) == 2
