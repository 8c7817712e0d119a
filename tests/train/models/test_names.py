"""Names of classifiers, by the files of the libraries, are those that the libraries know."""

import subprocess
import sys

import pytest
import timm
import torchvision.models

from latebloom.train.models import names
from latebloom.train.models.build import _OWN
from latebloom.train.models.names import check_name


def test_the_names_are_those_of_the_libraries() -> None:
    assert tuple(_OWN) == names.OWN
    assert names._names("torchvision") == sorted(torchvision.models.list_models(module=torchvision.models))
    assert names._names("timm") == sorted(timm.list_models())


@pytest.mark.parametrize(
    "name",
    [
        *("small-cnn", "resnet50", "torchvision:vgg19", "timm:vit_tiny_patch16_224"),
        *("tv_resnet50", "timm:vit_tiny_patch16_224.augreg_in21k"),
    ],
)
def test_a_name_that_is_one_passes(name: str) -> None:
    check_name(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet5", "no classifier is called 'resnet5'; .*near to it: torchvision:resnet50"),
        ("smal-cnn", "near to it: small-cnn"),
        ("torchvision:resnet5", "torchvision has no classifier called 'resnet5'; near to it: resnet50"),
        ("torchvision:x", "near to it: alexnet"),
        ("timm:vit_tiny_patch16_22", "timm has no classifier called .*near to it: vit_tiny_patch16_224"),
        ("other:resnet50", "no classifier is called 'other:resnet50'"),
        ("timm:", "timm has no classifier called ''"),
    ],
)
def test_a_wrong_one_is_refused_with_near_ones(name: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_name(name)


def test_no_library_is_imported_for_it() -> None:
    code = (
        "import sys; from latebloom.train.models.names import check_name; check_name('resnet50'); "
        "assert not {'torch', 'torchvision', 'timm'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


def test_a_library_that_is_not_installed_is_the_builders_to_name(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(names, "_texts", lambda _: [])
    check_name("timm:anything")
