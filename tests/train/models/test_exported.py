import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latebloom.data.images import LabeledImages
from latebloom.train.evaluate import features_of
from latebloom.train.models.exported import load_exported

CPU = torch.device("cpu")


class Mine(nn.Module):
    """A network with BatchNorm and a normalisation of its own."""

    def __init__(self, classes: int = 3) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, classes)
        )

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.body((images - 0.5) / 0.25)
        return logits


def saved(file: Path, model: nn.Module, shape: tuple[int, ...] = (1, 8, 8), dynamic: bool = True) -> Path:
    shapes = ({0: torch.export.Dim("n")},) if dynamic else None
    torch.export.save(torch.export.export(model.eval(), (torch.zeros(2, *shape),), dynamic_shapes=shapes), file)
    return file


def test_a_program_classifies_as_the_model_that_it_was_made_of(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = Mine()
    model(torch.rand(8, 1, 8, 8))  # BatchNorm has seen something
    loaded = load_exported(saved(tmp_path / "m.pt2", model), 3, (8, 8, 1), CPU)
    images = np.random.default_rng(0).integers(0, 256, (7, 8, 8, 1), dtype=np.uint8)
    data = LabeledImages(images, np.zeros(7, int), ("a", "b", "c"), "seven")
    logits, features = features_of(loaded, data, batch_size=4)
    with torch.inference_mode():
        expected = model.eval()(torch.from_numpy(images).permute(0, 3, 1, 2).float() / 255).numpy()
    assert np.allclose(logits, expected, atol=1e-5)
    assert np.array_equal(features, logits)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        ({"model": Mine(4)}, r"gives \(2, 4\) for 2 images, expected logits \(2, 3\); it takes float32"),
        ({"dynamic": False}, r"does not take 3 images of 1 x 8 x 8 .*dynamic_shapes"),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.Linear(27, 3)), "shape": (3, 3, 3)},
            "does not take 2 images of 1 x 8",
        ),
    ],
    ids=["other classes", "a fixed batch", "other images"],
)
def test_a_program_of_something_else_is_refused(made: dict[str, Any], message: str, tmp_path: Path) -> None:
    file = saved(tmp_path / "m.pt2", **{"model": Mine(), **made})
    with pytest.raises(ValueError, match=message):
        load_exported(file, 3, (8, 8, 1), CPU)


class Trap:
    """What runs code when it is unpickled."""

    def __reduce__(self) -> Any:
        return (Path.touch, (Path("trapped"),))


@pytest.mark.parametrize("how", ["a pickled weight", "pickled inputs", "a library", "no archive"])
def test_a_file_that_could_run_code_is_not_read(how: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    file = saved(tmp_path / "m.pt2", Mine())
    with zipfile.ZipFile(file) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    top = next(iter(members)).partition("/")[0]
    if how == "a pickled weight":
        config = json.loads(members[f"{top}/data/weights/model_weights_config.json"])
        one = next(iter(config["config"].values()))
        one["use_pickle"] = True
        members[f"{top}/data/weights/model_weights_config.json"] = json.dumps(config).encode()
        members[f"{top}/data/weights/{one['path_name']}"] = pickle.dumps(Trap())
    elif how == "pickled inputs":
        members[f"{top}/data/sample_inputs/model.pt"] = pickle.dumps(Trap())
    elif how == "a library":
        members[f"{top}/data/aotinductor/model/model.so"] = b""
    if how == "no archive":
        file.write_bytes(pickle.dumps(Trap()))
    else:
        with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    with pytest.raises(ValueError, match=r"m\.pt2 cannot be read as a program of torch.export"):
        load_exported(file, 3, (8, 8, 1), CPU)
    assert not (tmp_path / "trapped").exists()
