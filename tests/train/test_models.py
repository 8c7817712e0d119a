import pytest
import torch
import torch.nn.functional as F
from torch import nn

from train.models import PreActResNet18, SmallCNN, build


def count(model: nn.Module) -> int:
    return sum(weight.numel() for weight in model.parameters())


def images(side: int, channels: int = 3, batch: int = 2) -> torch.Tensor:
    return torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(0))


def same(first: nn.Module, second: nn.Module) -> bool:
    theirs = second.state_dict()
    return all(torch.equal(value, theirs[name]) for name, value in first.state_dict().items())


def test_small_cnn_has_the_weights_its_docstring_says() -> None:
    # 3x3 convolutions 1 -> 8 -> 16 without bias, two weights a BatchNorm channel, 16 * 2 * 2 features to 10 classes.
    assert count(SmallCNN(10, 1)) == 72 + 16 + 1152 + 32 + 650 == 1922
    assert "1,922" in (SmallCNN.__doc__ or "")


def test_small_cnn_grows_with_its_width_and_channels() -> None:
    # Width 4, three channels, five classes.
    assert count(SmallCNN(5, 3, width=4)) == 3 * 4 * 9 + 8 + 4 * 8 * 9 + 16 + (8 * 4 * 5 + 5)


def test_preact_resnet18_has_the_weights_of_the_papers_model() -> None:
    def block(wide_in: int, wide: int) -> int:
        projection = wide_in * wide if wide_in != wide else 0
        return 9 * wide_in * wide + 9 * wide * wide + 2 * wide_in + 2 * wide + projection

    stem, head = 3 * 64 * 9, 2 * 512 + 512 * 10 + 10
    stages = sum(block(a, b) + block(b, b) for a, b in [(64, 64), (64, 128), (128, 256), (256, 512)])
    assert count(PreActResNet18(10, 3)) == stem + stages + head == 11_172_170


def test_preact_convolutions_start_from_kaiming_fan_out() -> None:
    # From 256 to 512 channels: standard deviation sqrt(2 / (512 * 9)) = 0.020833; fan-in would give 0.029.
    weight = build("preact-resnet18", 10, (8, 8, 3), 0).get_parameter("blocks.6.conv1.weight")
    assert weight.shape == (512, 256, 3, 3)
    assert float(weight.detach().std()) == pytest.approx(0.020833, rel=0.005)


@pytest.mark.parametrize(("block", "stride"), [("blocks.0", 1), ("blocks.2", 2)])
def test_a_preact_block_is_that_of_arxiv_1603_05027(block: str, stride: int) -> None:
    found = build("preact-resnet18", 10, (8, 8, 3), 0, width=4).get_submodule(block)
    x = images(8, channels=4) - 0.5

    def activated(x: torch.Tensor) -> torch.Tensor:
        return F.relu(F.batch_norm(x, None, None, training=True))

    hidden = F.conv2d(activated(x), found.get_parameter("conv1.weight"), stride=stride, padding=1)
    branch = F.conv2d(activated(hidden), found.get_parameter("conv2.weight"), padding=1)
    # An identity shortcut takes the bare input, a projection the activated one.
    shortcut = x if stride == 1 else F.conv2d(activated(x), found.get_parameter("shortcut.weight"), stride=stride)
    torch.testing.assert_close(found(x), branch + shortcut)
    assert found(x).shape == ((2, 4, 8, 8) if stride == 1 else (2, 8, 4, 4))


def test_preact_halves_the_map_three_times() -> None:
    blocks = build("preact-resnet18", 10, (32, 32, 3), 0, width=4).get_submodule("blocks")
    assert blocks(torch.zeros(1, 4, 32, 32)).shape == (1, 32, 4, 4)  # the papers' avg_pool2d(4) fits this


@pytest.mark.parametrize("side", [8, 32, 64])
@pytest.mark.parametrize(("name", "width"), [("preact-resnet18", 4), ("small-cnn", 4)])
def test_our_models_take_any_side_from_8(name: str, width: int, side: int) -> None:
    model = build(name, 7, (side, side, 3), 0, width)
    assert model.training
    logits = model(images(side))
    assert logits.shape == (2, 7)
    assert logits.dtype == torch.float32
    logits.sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())


def test_images_need_not_be_square() -> None:
    assert build("preact-resnet18", 3, (8, 20, 1), 0, width=4)(torch.zeros(2, 1, 8, 20)).shape == (2, 3)


def test_width_zero_is_the_default_width() -> None:
    assert count(build("small-cnn", 10, (8, 8, 1), 0)) == 1922
    assert count(build("preact-resnet18", 10, (8, 8, 3), 0)) == 11_172_170


@pytest.mark.parametrize("name", ["small-cnn", "preact-resnet18"])
def test_a_seed_gives_its_weights_and_another_seed_others(name: str) -> None:
    first = build(name, 3, (8, 8, 1), 5, width=4)
    torch.rand(3)
    assert same(build(name, 3, (8, 8, 1), 5, width=4), first)
    other = build(name, 3, (8, 8, 1), 6, width=4)
    assert not torch.equal(other.get_parameter("head.weight"), first.get_parameter("head.weight"))


def test_trying_a_model_out_leaves_its_batchnorm_as_new() -> None:
    model = build("small-cnn", 3, (8, 8, 1), 0)
    assert int(model.get_buffer("bn1.num_batches_tracked")) == 0
    assert model.get_buffer("bn1.running_mean").tolist() == [0] * 8


@pytest.mark.parametrize("name", ["small-cnn", "torchvision:resnet18"])
def test_building_leaves_the_global_generator_alone(name: str) -> None:
    before = torch.get_rng_state()
    build(name, 3, (32, 32, 1), 0)
    assert torch.equal(torch.get_rng_state(), before)


def test_a_torchvision_model_takes_small_grey_images() -> None:
    model = build("torchvision:resnet18", 5, (32, 32, 1), 3)
    assert model.eval()(images(32, channels=1)).shape == (2, 5)
    # 11,176,512 weights without the head, as in torchvision, and a head for five classes; no pretrained weights.
    assert count(model) == 11_176_512 + 512 * 5 + 5
    assert same(build("torchvision:resnet18", 5, (32, 32, 1), 3), model)


def test_grey_images_are_shown_to_a_torchvision_model_as_three_equal_channels() -> None:
    grey, colour = (
        build("torchvision:resnet18", 5, (32, 32, 1), 3).eval(),
        build("torchvision:resnet18", 5, (32, 32, 3), 3).eval(),
    )
    x = images(32, channels=1)
    assert torch.equal(grey(x), colour(x.repeat(1, 3, 1, 1)))


def test_a_torchvision_model_that_cannot_take_the_size_says_so() -> None:
    with pytest.raises(ValueError, match=r"^torchvision:alexnet cannot take images of 8x8: .*too small"):
        build("torchvision:alexnet", 3, (8, 8, 3), 0)


def test_a_torchvision_model_of_a_fixed_size_says_so() -> None:
    # Its own check is an assert, not a ValueError.
    with pytest.raises(ValueError, match=r"^torchvision:vit_b_32 cannot take images of 40x32: Wrong image height!"):
        build("torchvision:vit_b_32", 3, (32, 40, 3), 0)


@pytest.mark.parametrize(
    ("name", "shape", "width", "message"),
    [
        ("smal-cnn", (8, 8, 1), 0, r"no classifier is called 'smal-cnn'; use small-cnn, .*did you mean small-cnn\?"),
        ("zzz", (8, 8, 1), 0, r"no classifier is called 'zzz'; use small-cnn, preact-resnet18 or torchvision:<name>$"),
        ("resnet18", (8, 8, 1), 0, r"did you mean preact-resnet18\?"),
        ("torchvision:resnet81", (32, 32, 3), 0, r"torchvision has no classifier called 'resnet81'; .*resnet18"),
        (
            "torchvision:zzz",
            (32, 32, 3),
            0,
            r"torchvision has no classifier called 'zzz'; near to it: alexnet, .*\.\.\.",
        ),
        ("torchvision:", (32, 32, 3), 0, "torchvision has no classifier called ''"),
        ("torchvision:fcn_resnet50", (32, 32, 3), 0, "torchvision has no classifier called 'fcn_resnet50'"),
        ("torchvision:googlenet", (32, 32, 3), 0, "trains with auxiliary outputs"),
        ("torchvision:inception_v3", (96, 96, 3), 0, "trains with auxiliary outputs"),
        ("torchvision:resnet18", (32, 32, 3), 16, "width has no meaning for torchvision:resnet18; leave it at 0"),
        ("small-cnn", (7, 8, 1), 0, "images of 8x7 are too small: classifiers here need 8 px a side"),
        ("torchvision:resnet18", (32, 7, 3), 0, "images of 7x32 are too small"),
    ],
)
def test_what_cannot_be_built_is_refused_with_a_reason(
    name: str, shape: tuple[int, int, int], width: int, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        build(name, 3, shape, 0, width)
