import inspect
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from latebloom.synth.config import SampleConfig
from latebloom.synth.generators.pixel import PixelDenoiser
from latebloom.synth.sampling.denoiser import (
    Denoiser,
    Generator,
    Wanted,
    to_pixels,
    to_x0,
)
from latebloom.synth.sampling.loop import LoopGenerator


# abar 0.36: signal 0.6, noise 0.8. x0 = 0.5 and eps = -1 make x = 0.3 - 0.8 = -0.5 and v = -0.6 - 0.4 = -1.
def test_each_kind_of_output_stands_for_the_same_clean_image() -> None:
    for kind, output in [("epsilon", -1.0), ("v_prediction", -1.0), ("sample", 0.5)]:
        x0 = to_x0(kind, torch.tensor([output]), torch.tensor([-0.5]), torch.tensor([0.6]), torch.tensor([0.8]))
        assert x0.item() == pytest.approx(0.5, abs=1e-6)


def test_outputs_become_the_x0_that_diffusers_makes_of_them_each_at_its_own_timestep() -> None:
    for kind in ["epsilon", "v_prediction", "sample"]:
        from diffusers import DDPMScheduler

        scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", prediction_type=kind, clip_sample=False)
        x, output = torch.randn(2, 3, 1, 4, 4, generator=torch.Generator().manual_seed(0))
        timesteps = [0, 494, 900]
        theirs = [
            scheduler.step(output[row], timestep, x[row], generator=torch.Generator()).pred_original_sample
            for row, timestep in enumerate(timesteps)
        ]
        abar = scheduler.alphas_cumprod[timesteps][:, None, None, None].double()
        ours = to_x0(kind, output, x, abar.sqrt().float(), (1 - abar).sqrt().float())
        torch.testing.assert_close(ours, torch.stack(theirs), rtol=1e-4, atol=1e-4)


def test_pixels_are_rounded_and_clipped_and_what_is_not_finite_is_black() -> None:
    values = [-1.0, 1.0, 0.0, 1 / 255, -2.0, 7.0, torch.nan, torch.inf, -torch.inf]
    made = to_pixels(torch.tensor(values)[:, None, None, None])
    assert (made.images.shape, made.images.dtype) == ((9, 1, 1, 1), np.uint8)
    # 0 is 127.5, which rounds to the even 128; 1/255 is 128 exactly.
    assert made.images.ravel().tolist() == [0, 255, 128, 128, 0, 255, 0, 0, 0]
    assert made.finite.tolist() == [True] * 6 + [False] * 3


def test_every_grey_level_survives_floats_and_back() -> None:
    images = np.stack([np.arange(256, dtype=np.uint8).reshape(8, 32)] * 3, -1)[None]
    images[0, ..., 1] = images[0, ::-1, :, 1]  # channels differ and sides too: a swap of axes would show
    x = torch.from_numpy(images).permute(0, 3, 1, 2)
    np.testing.assert_array_equal(to_pixels(x.float() / 127.5 - 1).images, images)
    np.testing.assert_array_equal(to_pixels(x.double() / 127.5 - 1).images, images)


def test_one_bad_value_marks_its_own_image_and_blackens_itself_alone() -> None:
    x = torch.full((3, 1, 2, 2), 1.0)
    x[1, 0, 0, 1] = torch.nan
    made = to_pixels(x)
    assert made.finite.tolist() == [True, False, True]
    assert made.images[1, :, :, 0].tolist() == [[255, 0], [255, 255]]
    assert (made.images[[0, 2]] == 255).all()


def test_some_of_what_is_wanted_is_taken_in_the_order_asked_for() -> None:
    wanted = Wanted(np.array([5, 6, 7]), ["a", "b", "c"], np.array([1, 2, 3]), [10, 2**62, 12])
    some = wanted.take(np.array([2, 0, 2]))
    assert len(wanted) == len(some) == 3
    assert (some.labels.tolist(), list(some.prompts)) == ([7, 5, 7], ["c", "a", "c"])
    assert (some.levels.tolist(), list(some.seeds)) == ([3, 1, 3], [12, 10, 12])


def check_interface(protocol: Any, made: Any) -> None:
    methods = {name: value for name, value in vars(protocol).items() if inspect.isfunction(value) and name[0] != "_"}
    for name in protocol.__annotations__:
        assert hasattr(made, name), name
    for name, method in methods.items():
        theirs = inspect.signature(getattr(type(made), name)).parameters
        assert list(theirs) == list(inspect.signature(method).parameters), name


def test_all_denoisers_and_generators_of_these_tests_have_what_the_interfaces_name(
    fakes: SimpleNamespace, tiny_unet: Any
) -> None:
    denoiser = fakes.Denoiser(fakes.constant([0.0]))
    pixel = PixelDenoiser(tiny_unet(), denoiser.alphas_cumprod, "sample", num_classes=3, name="x", digest="x")
    check_interface(Denoiser, denoiser)
    check_interface(Denoiser, pixel)
    check_interface(Generator, LoopGenerator(pixel, SampleConfig()))
    check_interface(Generator, fakes.Generator())
