import pytest
import torch
import torch.nn.functional as F
import torchvision.models.resnet
from torch import Tensor, nn

from latebloom.train.models.build import build
from latebloom.train.models.resnets import PreActResNet18


def count(name: str, width: int = 0) -> int:
    with torch.device("meta"):
        model = build(name, 10, (32, 32, 3), 0, width)
    return sum(weight.numel() for weight in model.parameters())


def images(side: int, channels: int = 3, batch: int = 2) -> Tensor:
    return torch.rand(batch, channels, side, side, generator=torch.Generator().manual_seed(0))


def shuffled(model: nn.Module) -> nn.Module:
    """The same model in eval mode with every weight and statistic away from where it starts."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, value in model.state_dict().items():
            if name.endswith("running_var"):
                value.uniform_(0.5, 2, generator=generator)
            elif value.is_floating_point():
                value.normal_(0, 0.3, generator=generator)
    return model.eval()


def test_preact_resnet18_has_the_weights_of_the_papers_model() -> None:
    def block(wide_in: int, wide: int) -> int:
        projection = wide_in * wide if wide_in != wide else 0
        return 9 * wide_in * wide + 9 * wide * wide + 2 * wide_in + 2 * wide + projection

    stem, head = 3 * 64 * 9, 2 * 512 + 512 * 10 + 10
    stages = sum(block(a, b) + block(b, b) for a, b in [(64, 64), (64, 128), (128, 256), (256, 512)])
    assert count("preact-resnet18") == stem + stages + head == 11_172_170
    assert sum(weight.numel() for weight in PreActResNet18(10, 3).parameters()) == 11_172_170


def test_preact_convolutions_start_from_kaiming_fan_out() -> None:
    # From 256 to 512 channels: standard deviation sqrt(2 / (512 * 9)) = 0.020833; fan-in would give 0.029.
    weight = build("preact-resnet18", 10, (8, 8, 3), 0).get_parameter("blocks.6.conv1.weight")
    assert weight.shape == (512, 256, 3, 3)
    assert float(weight.detach().std()) == pytest.approx(0.020833, rel=0.005)


def test_resnet_convolutions_start_from_kaiming_fan_in() -> None:
    # From 32 to 64 channels: standard deviation sqrt(2 / (32 * 9)) = 0.083333; fan-out would give 0.059.
    weight = build("resnet20", 10, (8, 8, 3), 0).get_parameter("blocks.6.conv1.weight")
    assert weight.shape == (64, 32, 3, 3)
    assert float(weight.detach().std()) == pytest.approx(0.083333, rel=0.02)


@pytest.mark.parametrize(("block", "stride"), [("blocks.0", 1), ("blocks.2", 2)])
def test_a_preact_block_is_that_of_arxiv_1603_05027(block: str, stride: int) -> None:
    found = build("preact-resnet18", 10, (8, 8, 3), 0, width=4).get_submodule(block)
    x = images(8, channels=4) - 0.5

    def activated(x: Tensor) -> Tensor:
        return F.relu(F.batch_norm(x, None, None, training=True))

    hidden = F.conv2d(activated(x), found.get_parameter("conv1.weight"), stride=stride, padding=1)
    branch = F.conv2d(activated(hidden), found.get_parameter("conv2.weight"), padding=1)
    # An identity shortcut takes the bare input, a projection the activated one.
    shortcut = x if stride == 1 else F.conv2d(activated(x), found.get_parameter("shortcut.weight"), stride=stride)
    torch.testing.assert_close(found(x), branch + shortcut)
    assert found(x).shape == ((2, 4, 8, 8) if stride == 1 else (2, 8, 4, 4))


@pytest.mark.parametrize(
    ("name", "width", "places", "expected"),
    [
        ("preact-resnet18", 4, (1, 3, 5, 7), [(4, 32), (8, 16), (16, 8), (32, 4)]),  # avg_pool2d(4) fits this
        ("resnet18", 4, (1, 3, 5, 7), [(4, 32), (8, 16), (16, 8), (32, 4)]),
        ("resnet20", 0, (2, 5, 8), [(16, 32), (32, 16), (64, 8)]),
        ("resnet32", 0, (4, 9, 14), [(16, 32), (32, 16), (64, 8)]),
        ("wrn-28-10", 1, (3, 7, 11), [(10, 32), (20, 16), (40, 8)]),
    ],
)
def test_stages_have_the_channels_and_sides_of_the_papers(
    name: str, width: int, places: tuple[int, ...], expected: list[tuple[int, int]]
) -> None:
    with torch.device("meta"):
        model = build(name, 10, (32, 32, 3), 0, width)
        blocks = model.get_submodule("blocks")
        x, shapes = model.get_submodule("stem")(torch.zeros(1, 3, 32, 32)), []
        for block in blocks.children():
            x = block(x)
            shapes.append((x.shape[1], x.shape[2]))
    assert len(shapes) == places[-1] + 1
    assert [shapes[place] for place in places] == expected


def test_resnet18_is_torchvisions_with_a_small_stem() -> None:
    ours = shuffled(build("resnet18", 5, (16, 16, 3), 0, width=8))
    theirs = torchvision.models.resnet.ResNet(torchvision.models.resnet.BasicBlock, [2, 2, 2, 2], num_classes=5)
    theirs.conv1, theirs.maxpool = nn.Conv2d(3, 8, 3, 1, 1, bias=False), nn.Identity()
    theirs.bn1, theirs.fc = nn.BatchNorm2d(8), nn.Linear(64, 5)
    theirs.inplanes = 8
    for stage in range(4):
        layer = theirs._make_layer(torchvision.models.resnet.BasicBlock, 8 * 2**stage, 2, stride=1 if stage == 0 else 2)
        setattr(theirs, f"layer{stage + 1}", layer)
    names = {"stem": "conv1", "bn": "bn1", "head": "fc"}
    names |= {f"blocks.{n}": f"layer{n // 2 + 1}.{n % 2}" for n in range(8)}
    state = {}
    for key, value in ours.state_dict().items():
        for old, new in names.items():
            if key.startswith(old + "."):
                state[(new + key.removeprefix(old)).replace("shortcut", "downsample")] = value
    theirs.load_state_dict(state)
    x = images(16)
    torch.testing.assert_close(ours(x), theirs.eval()(x), rtol=1e-5, atol=1e-5)


class _OptionA(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        zeros = torch.zeros_like(x[:, : x.shape[1] // 2, ::2, ::2])
        return torch.cat([zeros, x[:, :, ::2, ::2], zeros], 1)


@pytest.mark.parametrize(("stride", "side"), [(1, 8), (2, 7)])
def test_a_block_of_resnet20_is_torchvisions_with_option_a(stride: int, side: int) -> None:
    block = shuffled(build("resnet20", 5, (8, 8, 3), 0).get_submodule("blocks.0" if stride == 1 else "blocks.3"))
    wide = 16 * stride
    downsample = _OptionA() if stride == 2 else None
    theirs = torchvision.models.resnet.BasicBlock(16, wide, stride, downsample).eval()
    theirs.load_state_dict(block.state_dict())
    x = images(side, channels=16) - 0.5
    torch.testing.assert_close(block(x), theirs(x))


def test_shortcuts_of_resnet20_by_hand() -> None:
    # Blocks of zeros leave the shortcuts: every fourth pixel of the stem, in the middle 16 of 64 channels.
    model = build("resnet20", 64, (8, 8, 1), 0).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "conv" in name:
                weight.zero_()
        stem = model.get_parameter("stem.weight")
        stem.zero_()
        stem[0, 0, 1, 1] = 1  # the first channel is the image itself
        model.get_parameter("head.weight").copy_(torch.eye(64))
        model.get_parameter("head.bias").zero_()
        x = torch.zeros(1, 1, 8, 8)
        x[0, 0, 0, 4] = 4  # seen by [::2, ::2] twice, one of the four pixels that are left
        x[0, 0, 1, 4] = 8  # not seen
        logits = model(x)[0]
    expected = torch.zeros(64)
    expected[24] = 1 / (1 + 1e-5) ** 0.5  # BatchNorm's epsilon
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize(
    ("name", "width", "side"),
    [("preact-resnet18", 4, 8), ("resnet18", 4, 32), ("resnet32", 4, 8), ("wrn-28-10", 1, 20)],
)
def test_they_take_any_side_from_8_and_learn_everywhere(name: str, width: int, side: int) -> None:
    model = build(name, 7, (8, side, 3), 0, width)
    assert model.training
    logits = model(images(side)[:, :, :8])
    assert logits.shape == (2, 7)
    assert logits.dtype == torch.float32
    F.cross_entropy(logits, torch.tensor([0, 6])).backward()
    assert all(weight.grad is not None and weight.grad.isfinite().all() for weight in model.parameters())
