from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from latebloom.synth.config import SampleConfig
from latebloom.synth.generators.pixel import PixelDenoiser
from latebloom.synth.sampling.calls import fixed_shapes, in_calls, on_one_thread
from latebloom.synth.sampling.denoiser import Made, Wanted
from latebloom.synth.sampling.loop import LoopGenerator
from latebloom.synth.sampling.steps import counted_steps


def test_rows_are_filled_up_to_a_size_or_to_a_power_of_two() -> None:
    for rows, size, filled in [
        (1, 0, [0]),
        (2, 0, [0, 1]),
        (3, 0, [0, 1, 2, 0]),
        (4, 0, [0, 1, 2, 3]),
        (5, 0, [0, 1, 2, 3, 4, 0, 1, 2]),
        (64, 0, list(range(64))),
        (2, 5, [0, 1, 0, 1, 0]),
        (3, 3, [0, 1, 2]),
    ]:
        x, y = fixed_shapes(torch.arange(rows), torch.arange(2 * rows).reshape(rows, 2), size=size)
        assert x.tolist() == filled
        assert y.tolist() == [[2 * row, 2 * row + 1] for row in filled]


def test_calls_hold_as_many_rows_as_they_should() -> None:
    held: list[list[int]] = []

    def call(x: Tensor, y: Tensor) -> Tensor:
        held.append(x.tolist())
        return x + y

    for size, calls in [(0, [[0, 1, 2, 3, 4]]), (2, [[0, 1], [2, 3], [4, 4]]), (8, [[0, 1, 2, 3, 4, 0, 1, 2]])]:
        held.clear()
        out = in_calls(call, torch.arange(5), torch.arange(5) * 10, size=size)
        assert out.tolist() == [0, 11, 22, 33, 44]
        assert held == calls


@pytest.mark.parametrize(("guidance", "rows"), [(1.0, 4), (3.0, 8)])
def test_a_deterministic_generator_makes_no_call_of_another_shape(
    fakes: SimpleNamespace, guidance: float, rows: int
) -> None:
    held = []

    class Counting(fakes.Denoiser):  # type: ignore[misc, name-defined]
        def encode(self, images: np.ndarray) -> Tensor:
            held.append(len(images))
            return torch.as_tensor(super().encode(images))

        def decode(self, x0: Tensor) -> Tensor:
            held.append(len(x0))
            return x0

    fake = Counting(fakes.gaussian([0.2, -0.4, 0.5, 0.0], 0.5), clip=1.0)
    config = SampleConfig(sampler="heun", grid=10, guidance_scale=guidance, deterministic=4)
    generator = LoopGenerator(fake, config)
    wanted = Wanted(np.arange(7) % 3, [""] * 7, np.array([1, 5, 3, 10, 2, 2, 4]), range(7))
    references = generator.encode(np.random.default_rng(0).integers(0, 256, (7, 5, 5, 1), dtype=np.uint8))
    steps: list[int] = []
    with counted_steps(steps.append):
        made = generator.make(references, wanted)
    generator.seconds_per_call(references, wanted)
    assert held == [4] * 4
    assert {len(timesteps) for timesteps, _ in fake.calls} == {rows}
    assert sum(steps) == sum(generator.level(level).calls for level in wanted.levels.tolist())
    plain = LoopGenerator(fake, config.model_copy(update={"deterministic": 0})).make(references, wanted)
    np.testing.assert_array_equal(made.images, plain.images)


def test_a_deterministic_method_computes_on_one_thread_and_puts_their_number_back() -> None:
    class Generator:
        device = torch.device("cpu")

        def __init__(self, deterministic: int) -> None:
            self.deterministic = deterministic

        @on_one_thread
        def threads(self, fails: bool) -> int:
            if fails:
                raise RuntimeError
            return torch.get_num_threads()

    torch.set_num_threads(2)
    try:
        assert [Generator(n).threads(False) for n in (0, 8)] == [2, 1]
        with pytest.raises(RuntimeError):
            Generator(8).threads(True)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)


def test_batch_part_and_mates_change_no_bit_where_calls_have_one_shape(tiny_unet: Any) -> None:
    # 64 pixels in float32: where the calls follow the batch, single pixels round to the next grey level.
    unet = tiny_unet(sample_size=64, in_channels=3, out_channels=3, block_out_channels=(8, 16))
    abar = np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)
    denoiser = PixelDenoiser(unet, abar, "v_prediction", num_classes=3, name="x", digest="x")
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (5, 64, 64, 3), dtype=np.uint8)
    wanted = Wanted(np.arange(5) % 3, [""] * 5, np.array([2, 3, 1, 3, 2]), range(5))

    def make(deterministic: int, batches: list[list[int]]) -> np.ndarray:
        config = SampleConfig(sampler="ddim", grid=3, guidance_scale=3, deterministic=deterministic)
        generator = LoopGenerator(denoiser, config)
        made = np.zeros_like(images)
        for rows in batches:
            one: Made = generator.make(generator.encode(images[rows]), wanted.take(np.array(rows)))
            made[rows] = one.images
        return made

    together, alone, mixed = [list(range(5))], [[row] for row in range(5)], [[4, 2], [0, 3, 1]]
    for deterministic, most in ((2, 0), (0, 1)):
        first = make(deterministic, together).astype(int)
        for batches in (alone, mixed):
            assert np.abs(make(deterministic, batches) - first).max() <= most
