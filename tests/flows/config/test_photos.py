"""Images of 96 px or more start from the recipe for photos; what is given goes before it."""

import json
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from latebloom.data.store import write_json
from latebloom.flows.config.command import command_of
from latebloom.flows.config.compare import CompareConfig, one_setting
from latebloom.flows.config.presets import PHOTOS, RECIPES
from latebloom.flows.run.errors import UsageError
from latebloom.flows.run.resolve import resolve, resolve_coreset

LINE = "settings start from preset photos-224"


def folder(path: Path, side: int) -> str:
    for name in ("a", "b"):
        (path / "train" / name).mkdir(parents=True)
        Image.new("RGB", (side + 10, side)).save(path / "train" / name / "1.png")
    return str(path)


def resolved(source: str, kind: str = "compare", row: str | None = None, **settings: Any) -> CompareConfig:
    found, _ = resolve(None, {"data": {"source": source}} | settings, kind, None, row)
    return one_setting(found) if kind == "run" else found


@pytest.mark.parametrize("kind", ["run", "compare", "select", "generate"])
def test_large_images_start_from_the_recipe_and_a_line_says_so(
    tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]
) -> None:
    found = resolved(folder(tmp_path / "x", 300), kind)
    assert capsys.readouterr().err.count(LINE) == 1
    assert (found.classifier.model, found.data.image_size) == ("torchvision:resnet18", 224)
    train = found.train
    assert (train.epochs, train.batch_size, train.lr, train.weight_decay) == (90, 64, 0.025, 1e-4)
    assert (train.resized_crop, train.rho, found.sample.steps) == (0.08, 0.05, 25)
    assert train.lr == pytest.approx(0.1 * 64 / 256)


@pytest.mark.parametrize(("side", "photos", "size"), [(32, False, 0), (95, False, 0), (96, True, 0), (224, True, 224)])
def test_the_side_decides(tmp_path: Path, side: int, photos: bool, size: int) -> None:
    found = resolved(folder(tmp_path / "x", side))
    assert (found.classifier.model == "torchvision:resnet18") == photos
    assert found.data.image_size == size


def test_what_is_given_goes_before_the_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "x", 300)
    given = resolved(source, classifier={"model": "timm:vit_tiny_patch16_224"}, train={"lr": 0.5, "epochs": 3})
    assert (given.classifier.model, given.train.lr, given.train.epochs) == ("timm:vit_tiny_patch16_224", 0.5, 3)
    assert given.train.resized_crop == 0.08
    small = resolved(source, data={"source": source, "image_size": 64})
    assert (small.classifier.model, small.data.image_size) == ("preact-resnet18", 64)
    capsys.readouterr()
    assert resolved(source, row="none") == CompareConfig(data={"source": source})  # type: ignore[arg-type]
    assert resolved(source, row="lcmat-cifar10").classifier.model == "resnet18"
    assert LINE not in capsys.readouterr().err


def test_a_run_folder_keeps_what_was_resolved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = folder(tmp_path / "x", 300)
    first = resolved(source)
    write_json(tmp_path / "run" / "config.json", first.model_dump(mode="json"))
    capsys.readouterr()
    again, _ = resolve(tmp_path / "run", {}, "compare")
    assert again == first
    whole = json.loads((tmp_path / "run" / "config.json").read_text())  # as --config
    assert resolve(None, whole, "compare")[0] == first
    assert LINE not in capsys.readouterr().err


def test_the_command_of_a_run_on_photos_says_what_it_starts_from(tmp_path: Path) -> None:
    source = folder(tmp_path / "x", 300)
    assert command_of(resolved(source)) == f"latebloom compare {source} --preset photos-224"
    assert command_of(resolved(source, row="none")) == f"latebloom compare {source} --preset none"


def test_the_recipes_are_presets_by_name(tmp_path: Path) -> None:
    source = folder(tmp_path / "x", 32)
    assert resolved(source, row=PHOTOS).data.image_size == 224
    tuned = resolved(source, row="photos-224-finetune", classifier={"weights": "w.pth"})
    assert (tuned.train.lr, tuned.train.epochs, tuned.classifier.weights) == (0.0025, 30, "w.pth")
    for recipe in RECIPES.values():
        CompareConfig(**recipe.settings)
    with pytest.raises(UsageError, match=r"no preset is called 'photo'; .*photos-224, photos-224-finetune, none"):
        resolved(source, row="photo")


def test_a_coreset_of_photos_takes_their_classifier(tmp_path: Path) -> None:
    found, _ = resolve_coreset(None, {"data": {"source": folder(tmp_path / "x", 300)}})
    assert (found.classifier.model, found.train.epochs, found.train.lr) == ("torchvision:resnet18", 10, 0.025)
    assert found.data.image_size == 224
