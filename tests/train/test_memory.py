"""The estimate of a training step against sums by hand."""

import pytest
import torch
from torch import nn

from latebloom.train.config import FitConfig
from latebloom.train.memory import StepMemory, step_memory
from latebloom.train.models.build import build


class Two(nn.Module):
    """A convolution to 4 channels, ReLU, and a linear layer on 4 x 8 x 8."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 4, 3, padding=1)
        self.head = nn.Linear(256, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.head(torch.relu(self.conv(x)).flatten(1))
        return out


def test_what_a_step_takes_is_the_sum_of_its_parts() -> None:
    model = Two()
    weights = 4 * (4 * 9 + 4 + 3 * 256 + 3)
    found = step_memory(model, (8, 8, 1), FitConfig())
    assert found.fixed == 3 * weights  # the weights, gradients, momentum
    # Kept: the image, ReLU's result (the linear layer's input), log-probabilities and labels; twice the largest on top.
    image, activation = 4 * 64, 4 * 256
    assert found.per_image == pytest.approx(image + 3 * activation + 4 * 3, abs=40)
    assert step_memory(model, (8, 8, 1), FitConfig(optimizer="sam")).fixed == 4 * weights
    assert step_memory(model, (8, 8, 1), FitConfig(optimizer="adahessian")).fixed == 5 * weights
    assert step_memory(model, (8, 8, 1), FitConfig(optimizer="adahessian")).per_image > found.per_image


def test_the_model_is_left_as_it_was() -> None:
    model = build("resnet20", 10, (16, 16, 3), 0)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    state = torch.get_rng_state()
    step_memory(model, (16, 16, 3), FitConfig())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(torch.get_rng_state(), state)
    assert all(weight.grad is None for weight in model.parameters())


def test_half_precision_and_smaller_images_take_less() -> None:
    model = build("preact-resnet18", 10, (32, 32, 3), 0, width=16)
    whole = step_memory(model, (32, 32, 3), FitConfig()).per_image
    assert step_memory(model, (16, 16, 3), FitConfig()).per_image == pytest.approx(whole / 4, rel=0.02)
    assert 0.4 < step_memory(model, (32, 32, 3), FitConfig(precision="bfloat16")).per_image / whole < 0.75


def test_how_many_images_fit() -> None:
    memory = StepMemory(fixed=100, per_image=10)
    assert memory.of(5) == 150
    assert [memory.fitting(free) for free in (0, 109, 110, 159)] == [0, 0, 1, 5]
