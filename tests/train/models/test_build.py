import io
import pickle
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision.models
import torchvision.transforms.v2.functional as reference
from torch import Tensor, nn
from torch.func import functional_call

from latebloom.data.images import LabeledImages
from latebloom.train.evaluate import features_of, logits_of
from latebloom.train.models.build import SmallCNN, build

NAMES = ("small-cnn", "preact-resnet18", "resnet18", "resnet20", "resnet32", "wrn-28-10", "vit-s4")
NARROW = {
    "small-cnn": 4,
    "preact-resnet18": 4,
    "resnet18": 4,
    "resnet20": 4,
    "resnet32": 4,
    "wrn-28-10": 1,
    "vit-s4": 12,
}


def count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def images(side: int, channels: int = 3, batch: int = 2) -> Tensor:
    return torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(0))


def same(first: nn.Module, second: nn.Module) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in first.state_dict().items())


def published(name: str, num_classes: int) -> nn.Module:
    """A torchvision model whose BatchNorm has seen something, as one that was trained."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        model = torchvision.models.get_model(name, weights=None, num_classes=num_classes)
        model(torch.rand(8, 3, 32, 32))
    return model.eval()


def saved(path: Path, value: object) -> str:
    torch.save(value, path)
    return str(path)


def test_small_cnn_has_the_weights_its_docstring_says() -> None:
    # 3x3 convolutions 1 -> 8 -> 16 without bias, two weights a BatchNorm channel, 16 * 2 * 2 features to 10 classes.
    assert count(SmallCNN(10, 1)) == 72 + 16 + 1152 + 32 + 650 == 1922
    assert "1,922" in (SmallCNN.__doc__ or "")


@pytest.mark.parametrize(("name", "side"), [("small-cnn", 8), ("small-cnn", 64), ("vit-s4", 8), ("vit-s4", 32)])
def test_our_models_take_any_side_from_8(name: str, side: int) -> None:
    model = build(name, 7, (side, side, 3), 0, NARROW[name])
    assert model.training
    logits = model(images(side))
    assert logits.shape == (2, 7)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_width_zero_is_the_published_width() -> None:
    with torch.device("meta"):
        counts = {name: count(build(name, 10, (32, 32, 3), 0)) for name in NAMES}
    assert counts == {
        "small-cnn": 2_066,  # 144 more than for grey images
        "preact-resnet18": 11_172_170,
        "resnet18": 11_173_962,
        "resnet20": 269_722,
        "resnet32": 464_154,
        "wrn-28-10": 36_479_194,
        "vit-s4": 41_048_938,
    }


def test_a_seed_gives_its_weights_and_another_seed_others() -> None:
    for name in ("small-cnn", "resnet20", "vit-s4"):
        first = build(name, 3, (8, 8, 1), 5, NARROW[name])
        torch.rand(3)
        assert same(build(name, 3, (8, 8, 1), 5, NARROW[name]), first)
        other = build(name, 3, (8, 8, 1), 6, NARROW[name])
        assert not torch.equal(other.get_parameter("head.weight"), first.get_parameter("head.weight"))


def test_trying_a_model_out_leaves_its_batchnorm_as_new() -> None:
    model = build("small-cnn", 3, (8, 8, 1), 0)
    assert int(model.get_buffer("bn1.num_batches_tracked")) == 0
    assert model.get_buffer("bn1.running_mean").tolist() == [0] * 8


def test_building_leaves_the_global_generator_alone() -> None:
    before = torch.get_rng_state()
    for name in ("small-cnn", SMALL):
        build(name, 3, (32, 32, 1), 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("name", ["small-cnn", "preact-resnet18", "resnet20", "vit-s4"])
def test_models_of_one_architecture_can_run_as_one(name: str) -> None:
    # train.fit stacks small models; a warning (attention without a batching rule) would be an error here.
    models = [build(name, 3, (8, 8, 1), seed, NARROW[name]).eval() for seed in range(2)]
    x = images(8, channels=1)
    stacked, buffers = torch.func.stack_module_state(models)
    together = torch.func.vmap(lambda p, b: functional_call(models[0], (p, b), (x,)))(stacked, buffers)
    for model, logits in zip(models, together, strict=True):
        torch.testing.assert_close(logits, model(x), rtol=1e-4, atol=1e-5)


def test_a_torchvision_model_takes_small_grey_images() -> None:
    model = build("torchvision:resnet18", 5, (32, 32, 1), 3)
    assert model.eval()(images(32, channels=1)).shape == (2, 5)
    # 11,176,512 weights without the head, as in torchvision, and a head for five classes; no pretrained weights.
    assert count(model) == 11_176_512 + 512 * 5 + 5
    assert same(build("torchvision:resnet18", 5, (32, 32, 1), 3), model)


@pytest.mark.parametrize(
    ("name", "last", "weights"),
    [
        # 32 px leave 2x2 before the fifth pooling of VGG19 and 1x1 at the end of the others. The counts are those
        # torchvision publishes for 1,000 classes, less what 990 of them take.
        ("vgg19", (512, 2, 2), 143_667_240 - 990 * 4097),
        ("densenet121", (32, 1, 1), 7_978_856 - 990 * 1025),
        ("convnext_tiny", (768, 1, 1), 28_589_128 - 990 * 769),
        ("swin_t", (96, 8, 8), 28_288_354 - 990 * 769),
    ],
)
@pytest.mark.slow
def test_torchvision_models_of_the_papers_take_32_px(name: str, last: tuple[int, ...], weights: int) -> None:
    with torch.device("meta"):
        model = build(f"torchvision:{name}", 10, (32, 32, 3), 0)
        shapes = []
        for layer in model.modules():
            if isinstance(layer, nn.Conv2d):
                layer.register_forward_hook(lambda *seen: shapes.append(tuple(seen[2].shape[1:])))
        assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 10)
    assert shapes[-1] == last
    assert count(model) == weights


@pytest.mark.parametrize("name", [*NAMES, "torchvision:shufflenet_v2_x0_5", "torchvision:swin_t"])
def test_features_are_what_the_head_makes_logits_of(name: str) -> None:
    check_features(build(name, 3, (32, 32, 3), 0, NARROW.get(name, 0)), 3)


@pytest.mark.slow
def test_features_of_vgg19_are_what_its_head_makes_logits_of() -> None:
    # Drawing its 139 million weights takes six seconds: all but the head are set to a constant.
    with torch.device("meta"):
        model = build("torchvision:vgg19", 3, (32, 32, 3), 0)
    model.to_empty(device="cpu")
    with torch.no_grad():
        for weight in model.parameters():
            weight.fill_(2e-4)
        model.get_parameter("classifier.6.weight").copy_(torch.arange(3 * 4096).view(3, 4096) / 4096)
    check_features(model, 3)


def check_features(model: nn.Module, channels: int) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (2, 32, 32, channels), dtype=np.uint8)
    data = LabeledImages(pixels, np.arange(2), ("a", "b", "c"), "noise")
    logits, features = features_of(model, data)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    assert head.out_features == 3
    assert features.shape == (2, head.in_features)
    assert np.abs(features).max() > 0
    again = features @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    np.testing.assert_allclose(again, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(logits, logits_of(model, data))


def test_a_torchvision_model_that_cannot_take_the_size_says_so() -> None:
    with pytest.raises(ValueError, match=r"^torchvision:alexnet cannot take images of 8x8 \(.*too small.*\); choose"):
        build("torchvision:alexnet", 3, (8, 8, 3), 0)


def test_a_torchvision_model_of_a_fixed_size_says_so() -> None:
    # Its own check is an assert, not a ValueError.
    message = r"^torchvision:vit_b_32 cannot take images of 40x32 \(Wrong image height!"
    with torch.device("meta"), pytest.raises(ValueError, match=message):
        build("torchvision:vit_b_32", 3, (32, 40, 3), 0)


@pytest.mark.parametrize(
    ("name", "shape", "width", "message"),
    [
        ("smal-cnn", (8, 8, 1), 0, r"no classifier is called 'smal-cnn'; use small-cnn, .*near to it: small-cnn"),
        (
            "zzz",
            (8, 8, 1),
            0,
            r"no classifier is called 'zzz'; use small-cnn, preact-resnet18, resnet18, resnet20, resnet32, wrn-28-10, "
            r"vit-s4, torchvision:<name> or timm:<name>$",
        ),
        ("torchvison:resnet18", (32, 32, 3), 0, "no classifier is called 'torchvison:resnet18'"),
        ("torchvision:resnet81", (32, 32, 3), 0, r"torchvision has no classifier called 'resnet81'; .*resnet18"),
        (
            "torchvision:zzz",
            (32, 32, 3),
            0,
            r"torchvision has no classifier called 'zzz'; near to it: alexnet, .*\.\.\.",
        ),
        ("torchvision:fcn_resnet50", (32, 32, 3), 0, "torchvision has no classifier called 'fcn_resnet50'"),
        ("torchvision:googlenet", (32, 32, 3), 0, "trains with auxiliary outputs"),
        ("torchvision:resnet18", (32, 32, 3), 16, "width has no meaning for torchvision:resnet18; leave it at 0"),
        ("small-cnn", (7, 8, 1), 0, "images are 8x7, classifiers need 8 px a side; set image_size"),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_reason(
    name: str, shape: tuple[int, int, int], width: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, 3, shape, 0, width)


def test_published_weights_give_torchvisions_logits_on_normalised_images(small: Path) -> None:
    theirs = published("shufflenet_v2_x0_5", 6)
    model = build(SMALL, 6, (32, 32, 3), 0, weights=str(small / "w.pth"))
    x = images(32)
    normalised = reference.normalize(x, [0.485, 0.456, 0.406], [0.229, 0.224, 0.225])
    assert model.training
    torch.testing.assert_close(model.eval()(x), theirs(normalised), rtol=1e-4, atol=1e-5)
    check_features(build(SMALL, 3, (32, 32, 3), 0, weights=str(small / "w.pth")), 3)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with shufflenet_v2_x0_5 for six classes as .pth and .safetensors."""
    folder = tmp_path_factory.mktemp("weights")
    state = published("shufflenet_v2_x0_5", 6).state_dict()
    torch.save(state, folder / "w.pth")
    safetensors.torch.save_file(state, folder / "w.safetensors")
    return folder


SMALL = "torchvision:shufflenet_v2_x0_5"


@pytest.mark.parametrize("file", ["w.pth", "w.safetensors"])
def test_a_file_for_other_classes_gives_all_but_the_output_layer(small: Path, file: str) -> None:
    fresh = build(SMALL, 4, (32, 32, 3), 9)
    state = build(SMALL, 4, (32, 32, 3), 9, weights=str(small / file)).state_dict()
    given = safetensors.torch.load_file(small / "w.safetensors")
    for name, value in fresh.state_dict().items():
        # The head of the same seed, and everything else from the file.
        assert torch.equal(state[f"model.{name}"], value if name.startswith("fc.") else given[name]), name


def test_a_file_for_the_same_number_of_classes_gives_its_output_layer_too(small: Path) -> None:
    given = safetensors.torch.load_file(small / "w.safetensors")
    state = build(SMALL, 6, (32, 32, 3), 9, weights=str(small / "w.pth")).state_dict()
    assert all(torch.equal(state[f"model.{name}"], value) for name, value in given.items())


def test_grey_images_are_made_three_channels_before_they_are_normalised(small: Path) -> None:
    grey, colour = (build(SMALL, 6, (32, 32, c), 9, weights=str(small / "w.pth")).eval() for c in (1, 3))
    x = images(32, channels=1)
    assert torch.equal(grey(x), colour(x.repeat(1, 3, 1, 1)))


def test_a_convolution_as_output_layer_is_replaced_too(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", published("squeezenet1_1", 6).state_dict())
    model = build("torchvision:squeezenet1_1", 4, (32, 32, 3), 9, weights=file)
    fresh = build("torchvision:squeezenet1_1", 4, (32, 32, 3), 9)
    assert torch.equal(model.get_parameter("model.classifier.1.bias"), fresh.get_parameter("classifier.1.bias"))


@pytest.mark.parametrize("name", ["small-cnn", "resnet20", "vit-s4"])
def test_our_own_weights_come_back_without_normalisation(name: str, tmp_path: Path) -> None:
    model = build(name, 3, (8, 8, 1), 5, NARROW[name])
    safetensors.torch.save_file(model.state_dict(), tmp_path / "w.safetensors")
    again = build(name, 3, (8, 8, 1), 6, NARROW[name], weights=str(tmp_path / "w.safetensors"))
    assert same(again, model)
    other = build(name, 5, (8, 8, 1), 6, NARROW[name], weights=str(tmp_path / "w.safetensors"))
    assert torch.equal(
        other.get_parameter("head.bias"), build(name, 5, (8, 8, 1), 6, NARROW[name]).get_parameter("head.bias")
    )


def test_batchnorm_counters_may_be_missing_as_in_old_files(small: Path, tmp_path: Path) -> None:
    state = {n: t for n, t in torch.load(small / "w.pth").items() if not n.endswith("num_batches_tracked")}
    model = build(SMALL, 6, (32, 32, 3), 9, weights=saved(tmp_path / "w.pth", state))
    assert torch.equal(model.get_parameter("model.fc.weight"), state["fc.weight"])


class _Runs:
    """What it is pickled as would make a folder when unpickled."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __reduce__(self) -> tuple[Callable[[str], None], tuple[str]]:
        import os

        return os.mkdir, (str(self.folder),)


def test_reading_weights_runs_nothing_that_is_pickled_in_them(tmp_path: Path) -> None:
    torch.save({"fc.weight": torch.zeros(1), "x": _Runs(tmp_path / "made")}, tmp_path / "w.pth")
    with pytest.raises(
        ValueError, match=r"w\.pth is damaged, or holds more than tensors, which could run code when read"
    ):
        build(SMALL, 6, (32, 32, 3), 9, weights=str(tmp_path / "w.pth"))
    assert not (tmp_path / "made").exists()


def _cut(state: dict[str, Tensor]) -> bytes:
    whole = io.BytesIO()
    torch.save(state, whole)
    return whole.getvalue()[:5000]


@pytest.mark.parametrize(
    ("suffix", "content", "message"),
    [
        ("pth", b"", "is damaged, or holds more than tensors"),
        (
            "pth",
            pickle.dumps({"a": 1}),
            r"is damaged, or holds more than tensors|holds a dict with a that are no tensors",
        ),
        ("pth", _cut, "is damaged, or holds more than tensors"),
        ("pth", lambda _: nn.Linear(1, 1), "could run code when read; save model.state_dict"),
        ("pth", lambda _: [1.0], "holds a list, expected a dict of tensors; save"),
        ("pth", lambda _: {}, "holds a dict without entries, expected a dict of tensors"),
        (
            "pth",
            lambda s: {"state_dict": s, "epoch": 3, "arch": "x", "optimizer": {}},
            r"holds a dict with state_dict, epoch, arch and 1 more that are no tensors, expected a dict of tensors",
        ),
        ("safetensors", b"no safetensors file at all", r"cannot be read as safetensors \(.*\); download or save"),
        ("npz", b"", r"w\.npz is \.npz, expected \.safetensors or \.pth; convert it"),
        ("pth", lambda s: {n: t for n, t in s.items() if n != "fc.bias"}, r": missing fc\.bias; give weights"),
        (
            "pth",
            lambda s: s | {"ema": s["fc.bias"]},
            r"w\.pth does not fit torchvision:shuffl.*: unknown ema; give weights of this model",
        ),
        (
            "pth",
            lambda s: s | {"conv1.0.weight": torch.zeros(24, 1, 3, 3)},
            r": conv1\.0\.weight is \(24, 1, 3, 3\), expected \(24, 3, 3, 3\);",
        ),
        ("pth", lambda s: s | {"fc.weight": torch.zeros(5, 7)}, r"fc\.weight is \(5, 7\), expected \(6, 1024\);"),
        (
            "pth",
            lambda s: {f"module.{n}": t for n, t in s.items()},
            r"missing conv1\.0\.weight, conv1\.1\.weight, conv1\.1\.bias and \d+ more; "
            r"unknown module\.conv1\.0\.weight, module\.conv1\.1\.weight, module\.conv1\.1\.bias and \d+ more;",
        ),
    ],
)
def test_weights_that_do_not_fit_are_one_line(
    small: Path, tmp_path: Path, suffix: str, content: Any, message: str
) -> None:
    file = tmp_path / f"w.{suffix}"
    if callable(content):
        content = content(torch.load(small / "w.pth"))
    if isinstance(content, bytes):
        file.write_bytes(content)
    else:
        torch.save(content, file)
    with pytest.raises(ValueError, match=message) as caught:
        build(SMALL, 6, (32, 32, 3), 9, weights=str(file))
    assert str(file) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_not_there_is_named() -> None:
    with pytest.raises(ValueError, match=r"^there is no file at /nowhere/w\.pth; give "):
        build(SMALL, 6, (32, 32, 3), 9, weights="/nowhere/w.pth")


def test_weights_of_another_architecture_of_ours_are_refused(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", build("resnet20", 3, (8, 8, 1), 0, 4).state_dict())
    with pytest.raises(ValueError, match=r"does not fit resnet32: missing blocks\.9\.conv1\.weight, "):
        build("resnet32", 3, (8, 8, 1), 0, 4, file)


def test_weights_of_a_vit_for_another_size_are_refused(tmp_path: Path) -> None:
    file = saved(tmp_path / "w.pth", build("vit-s4", 3, (8, 8, 1), 0, 12).state_dict())
    with pytest.raises(ValueError, match=r": positions is \(1, 5, 12\), expected \(1, 7, 12\);"):
        build("vit-s4", 3, (8, 12, 1), 0, 12, file)


@pytest.mark.parametrize("name", ["test_vit", "test_resnet"])
def test_a_timm_model_takes_the_size_and_the_channels(name: str) -> None:
    pytest.importorskip("timm")
    model = build(f"timm:{name}", 3, (32, 32, 1), 4)
    assert same(build(f"timm:{name}", 3, (32, 32, 1), 4), model)
    assert next(weight for weight in model.parameters() if weight.ndim == 4).shape[1] == 1
    check_features(model, 1)


def test_a_timm_model_has_no_stochastic_depth_unless_asked_for() -> None:
    pytest.importorskip("timm")
    from timm.layers import DropPath

    with torch.device("meta"):
        model = build("timm:swin_tiny_patch4_window7_224", 3, (32, 32, 3), 0)  # timm's own default is 0.1
    rates = [m.drop_prob for m in model.modules() if isinstance(m, DropPath)]
    assert rates
    assert set(rates) == {0.0}


def test_timms_weights_are_read_with_timms_normalisation(tmp_path: Path) -> None:
    timm = pytest.importorskip("timm")
    with torch.random.fork_rng():
        theirs = timm.create_model("test_vit", num_classes=5, img_size=32).eval()
    safetensors.torch.save_file(theirs.state_dict(), tmp_path / "w.safetensors")
    mean, std = theirs.pretrained_cfg["mean"], theirs.pretrained_cfg["std"]
    assert mean == std == (0.5, 0.5, 0.5)  # unlike torchvision's
    grey, colour = (
        build("timm:test_vit", 5, (32, 32, c), 0, weights=str(tmp_path / "w.safetensors")).eval() for c in (1, 3)
    )
    x = images(32)
    torch.testing.assert_close(colour(x), theirs(reference.normalize(x, mean, std)), rtol=1e-4, atol=1e-5)
    assert torch.equal(grey(x[:, :1]), colour(x[:, :1].repeat(1, 3, 1, 1)))
    other = build("timm:test_vit", 7, (32, 32, 3), 3, weights=str(tmp_path / "w.safetensors"))
    fresh = build("timm:test_vit", 7, (32, 32, 3), 3)
    assert torch.equal(other.get_parameter("model.head.weight"), fresh.get_parameter("head.weight"))


@pytest.mark.parametrize(
    ("name", "side", "message"),
    [
        ("resnet81", 32, r"^timm has no classifier called 'resnet81'; near to it: .*resnet18"),
        ("hf-hub:timm/resnet18", 32, "^timm has no classifier called 'hf-hub:timm/resnet18'"),
        ("resnet18.no_such_tag", 32, r"^timm:resnet18\.no_such_tag"),
        ("test_vit", 40, "^timm:test_vit cannot"),
    ],
)
def test_what_timm_cannot_make_is_refused(name: str, side: int, message: str) -> None:
    pytest.importorskip("timm")
    with pytest.raises(ValueError, match=message) as caught:
        build(f"timm:{name}", 3, (side, side, 3), 0)
    assert "\n" not in str(caught.value)


def test_without_timm_the_error_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "timm", None)
    message = (
        "timm:resnet18 needs timm, which is not installed; install Latebloom with the extra timm (README, Install)"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        build("timm:resnet18", 3, (32, 32, 3), 0)


def test_a_name_that_is_torchvisions_alone_is_understood() -> None:
    with torch.device("meta"):
        alone, whole = (build(name, 3, (64, 64, 3), 0) for name in ("resnet34", "torchvision:resnet34"))
        ours = build("resnet18", 3, (16, 16, 3), 0)
    assert list(alone.state_dict()) == list(whole.state_dict())
    assert ours.state_dict()["stem.weight"].shape[2:] == (3, 3)  # the name of ours goes first


@pytest.mark.parametrize(
    ("name", "near"),
    [
        ("resnet500", "torchvision:resnet50"),
        ("preact-resnet-18", "preact-resnet18"),
        ("vgg16bn", "torchvision:vgg16_bn"),
    ],
)
def test_a_misspelt_name_is_answered_with_the_right_one(name: str, near: str) -> None:
    with pytest.raises(ValueError, match=f"no classifier is called '{name}'; .*near to it: .*{near}"):
        build(name, 3, (32, 32, 3), 0)
