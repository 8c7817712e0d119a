import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from latebloom.data.images import LabeledImages
from latebloom.train.evaluate import error_rate, features_of, logits_of, losses_of, softmax
from latebloom.train.models.build import build


def noise(n: int) -> LabeledImages:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 1)).astype(np.uint8)
    return LabeledImages(pixels, np.arange(n) % 3, ("a", "b", "c"), "noise")


def trained() -> nn.Module:
    """A model whose BatchNorm has seen something, so that train and eval mode differ; with dropout."""
    model = nn.Sequential(build("small-cnn", 3, (8, 8, 1), 0), nn.Dropout(0.5))
    with torch.random.fork_rng():
        model(torch.rand(16, 1, 8, 8))
    return model


def test_logits_are_those_of_the_model_on_pixels_from_0_to_1() -> None:
    model, data = trained().eval(), noise(5)
    x = torch.from_numpy(data.pixels().astype(np.float32) / 255).permute(0, 3, 1, 2)
    logits = logits_of(model, data)
    assert logits.dtype == np.float32
    np.testing.assert_allclose(logits, model(x).detach().numpy(), rtol=1e-5, atol=1e-6)


def test_logits_do_not_depend_on_the_batch_size_or_the_other_images() -> None:
    model, data = trained(), noise(7)
    whole = logits_of(model, data)
    assert whole.shape == (7, 3)
    np.testing.assert_allclose(logits_of(model, data, 3), whole, rtol=1e-5, atol=1e-6)
    alone = logits_of(model, data.subset(np.array([4])))
    np.testing.assert_allclose(alone, logits_of(model, data)[[4]], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("training", [True, False])
def test_the_mode_does_not_matter_and_is_put_back(training: bool) -> None:
    data = noise(4)
    expected = logits_of(trained().eval(), data)
    model = trained().train(training)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    np.testing.assert_array_equal(logits_of(model, data), expected)
    assert model.training == training
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_every_module_gets_its_own_mode_back_also_after_an_exception() -> None:
    model = nn.Sequential(nn.BatchNorm2d(1).eval(), nn.Linear(1, 1))  # frozen statistics; for images of one pixel
    with pytest.raises(RuntimeError, match="cannot be multiplied"):
        logits_of(model, noise(1))
    assert [module.training for module in model.modules()] == [True, False, True]


@pytest.mark.parametrize(
    ("name", "size"),
    [("small-cnn", 8), ("preact-resnet18", 8), ("torchvision:mobilenet_v3_small", 32)],
)
def test_features_are_what_the_last_linear_layer_makes_the_logits_of(name: str, size: int) -> None:
    rng = np.random.default_rng(0)
    data = LabeledImages(rng.integers(0, 256, (2, size, size, 1), dtype=np.uint8), np.arange(2), ("a", "b"), "noise")
    model = build(name, 2, (size, size, 1), 0, 2 if name == "preact-resnet18" else 0)
    logits, features = features_of(model, data)
    head = [module for module in model.modules() if isinstance(module, nn.Linear)][-1]
    assert features.dtype == np.float32
    assert features.shape == (2, head.in_features)
    again = features @ head.weight.detach().numpy().T + head.bias.detach().numpy()
    np.testing.assert_allclose(again, logits, rtol=1e-4, atol=1e-5)
    np.testing.assert_array_equal(logits, logits_of(model, data))


def test_features_do_not_depend_on_the_batch_size_and_no_hook_is_left() -> None:
    model, data = trained(), noise(7)
    logits, features = features_of(model, data, 3)
    for got, expected in zip((logits, features), features_of(model, data), strict=True):
        np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-6)
    assert model.training
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_features_of_a_convolution_are_averaged_over_positions() -> None:
    # Half of the pixels are 1, so their mean is 1/2: doubled by the first layer 1, tripled by the last 3.
    images = np.zeros((2, 2, 2, 1), np.uint8)
    images[1, 0] = 255
    double, triple = nn.Conv2d(1, 1, 1, bias=False), nn.Conv2d(1, 1, 1, bias=False)
    model = nn.Sequential(double, triple, nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with torch.no_grad():
        double.weight.fill_(2)
        triple.weight.fill_(3)
    logits, features = features_of(model, LabeledImages(images, np.zeros(2, np.int64), ("a",), "halves"))
    assert features.tolist() == [[0], [1]]
    assert logits.tolist() == [[0], [3]]


def test_a_model_without_a_layer_to_read_is_named() -> None:
    model = nn.Sequential(nn.Flatten(), nn.BatchNorm1d(64))
    with pytest.raises(ValueError, match=r"^Sequential has no linear layer and no convolution"):
        features_of(model, noise(3))


def test_softmax_by_hand() -> None:
    # e^0 : e^(ln 3) = 1 : 3
    np.testing.assert_allclose(softmax(np.array([[0, math.log(3)], [5, 5]])), [[0.25, 0.75], [0.5, 0.5]])


def test_softmax_and_losses_are_torchs() -> None:
    logits = np.random.default_rng(0).normal(0, 5, (50, 4)).astype(np.float32)
    labels = np.arange(50) % 4
    x, y = torch.from_numpy(logits).double(), torch.from_numpy(labels)
    np.testing.assert_allclose(softmax(logits), F.softmax(x, 1).numpy(), rtol=1e-12)
    np.testing.assert_allclose(losses_of(logits, labels), F.cross_entropy(x, y, reduction="none").numpy(), rtol=1e-12)
    assert softmax(logits).dtype == losses_of(logits, labels).dtype == np.float64


def test_large_logits_do_not_overflow() -> None:
    logits = np.array([[10_000, 0], [0, -10_000], [3e38, 3e38]], np.float32)
    np.testing.assert_array_equal(softmax(logits), [[1, 0], [1, 0], [0.5, 0.5]])
    np.testing.assert_allclose(losses_of(logits, np.array([1, 1, 0])), [10_000, 10_000, math.log(2)])


def test_a_loss_far_below_float32_is_kept() -> None:
    # ln(1 + e^-16) = 1.125e-7, which 1 - p in float32 would call 1.19e-7 or 0.
    assert losses_of(np.array([[16, 0]], np.float32), np.array([0]))[0] == pytest.approx(math.log1p(math.exp(-16)))


def test_the_error_rate_is_a_fraction() -> None:
    logits = np.array([[2, 1], [0, 1], [3, 4], [1, 0]])
    assert error_rate(logits, np.array([0, 1, 0, 0])) == 0.25
    assert error_rate(logits, np.array([0, 1, 1, 0])) == 0
    assert error_rate(logits, np.array([1, 0, 0, 1])) == 1
