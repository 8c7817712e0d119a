"""The batches of an epoch, and what becomes of a short last one."""

import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latebloom.data.batches import epoch_order
from latebloom.data.images import LabeledImages
from latebloom.train.augment.mixing import Mixer, StrongConfig
from latebloom.train.loop.fit import FitConfig, fit
from latebloom.train.loop.trajectory import batch_ends
from latebloom.train.selection.coreset import Coreset

# One step is w - gradient: what a step adds to the weights is its gradient.
BARE = FitConfig(
    epochs=1, batch_size=256, lr=1, momentum=0, weight_decay=0, schedule="constant", crop_padding=0, flip=False
)


def numbered(n: int) -> LabeledImages:
    """Image i says its number in its first two pixels; the others are noise."""
    pixels = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 1)).astype(np.uint8)
    pixels[:, 0, 0, 0], pixels[:, 0, 1, 0] = np.arange(n) // 256, np.arange(n) % 256
    return LabeledImages(pixels, np.arange(n) % 3, ("a", "b", "c"), "numbered")


class Linear(nn.Module):
    """Notes which images it is trained on, and its weights before each forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 3, bias=False)
        nn.init.zeros_(self.layer.weight)
        self.batches: list[list[int]] = []
        self.weights: list[Tensor] = []

    def forward(self, images: Tensor) -> Tensor:
        first = (images[:, 0, 0, :2] * 255).round().long()
        self.batches.append((first[:, 0] * 256 + first[:, 1]).tolist())
        self.weights.append(self.layer.weight.detach().clone())
        result: Tensor = self.layer(images.flatten(1))
        return result


@pytest.mark.parametrize("epochs", [1, 3])
def test_with_the_last_batch_each_example_is_trained_on_once_an_epoch(epochs: int) -> None:
    """500 examples in batches of 256. What is dropped is nearly half of them, each epoch."""
    for last, sizes in (("keep", [256, 244]), ("drop", [256])):
        model = Linear()
        config = BARE.model_copy(update={"epochs": epochs, "last_batch": last})
        fit([model], numbered(500), [np.arange(500)], config, [0])
        assert [len(batch) for batch in model.batches] == sizes * epochs
        for epoch in range(epochs):
            seen = [*itertools.chain(*model.batches[epoch * len(sizes) : (epoch + 1) * len(sizes)])]
            assert len(set(seen)) == len(seen) == sum(sizes)


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("weighted", [False, True])
def test_the_gradient_of_a_short_step_is_the_mean_over_its_own_examples(accumulate: int, weighted: bool) -> None:
    """With example weights, the mean of weight times loss: as in every other step, weights are not normalised again."""
    data, model = numbered(500), Linear()
    gamma = np.random.default_rng(1).uniform(0, 2, 500).astype(np.float32) if weighted else np.ones(500, np.float32)
    strong = StrongConfig(selector="file", file="x.npz", main="coreset", copies=0, weights="normalised")
    mixer = Mixer(strong, data.labels, 3, (8, 8, 1), 0, Coreset(np.arange(500), gamma))
    config = BARE.model_copy(update={"accumulate": accumulate})
    fit([model], data, [np.arange(500)], config, [0], mixers=[mixer] if weighted else None)
    short = epoch_order(500, 0, 0)[256:]
    assert [*itertools.chain(*model.batches[accumulate:])] == short.tolist()
    before = model.weights[accumulate].requires_grad_()
    x = torch.from_numpy(data.pixels(short)).permute(0, 3, 1, 2).flatten(1) / 255
    losses = F.cross_entropy(x @ before.T, torch.from_numpy(data.labels[short]), reduction="none")
    factors = torch.from_numpy(gamma / gamma.mean())[torch.from_numpy(short)]
    (gradient,) = torch.autograd.grad((losses * factors).sum() / 244, before)
    torch.testing.assert_close(before - model.layer.weight, gradient, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("length", "processes", "ends"),
    [
        (500, 1, [256, 500]),
        (512, 1, [256, 512]),
        (200, 1, [200]),
        (257, 1, [129, 257]),  # not one alone: BatchNorm needs two values of a channel
        (513, 1, [256, 385, 513]),
        (258, 1, [256, 258]),
        (258, 2, [129, 258]),  # two processes with one each
        (260, 2, [256, 260]),
        (1, 1, [1]),
    ],
)
def test_no_example_is_alone_in_a_last_batch(length: int, processes: int, ends: list[int]) -> None:
    assert batch_ends(length, BARE, processes) == ends
    assert BARE.steps_per_epoch(length) == len(ends)


def test_one_example_more_than_a_batch_trains_with_batchnorm_on_one_value_an_image() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3), nn.BatchNorm1d(3))
    (history,) = fit([model], numbered(257), [np.arange(257)], BARE.model_copy(update={"lr": 0.1}), [0])
    assert len(history.loss) == 1


def test_batches_of_one_are_left_as_they_are() -> None:
    assert batch_ends(3, BARE.model_copy(update={"batch_size": 1}), 1) == [1, 2, 3]
