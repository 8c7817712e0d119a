"""Which pipelines have a noise level, where each strength starts, and how noisy that is."""

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from latebloom.synth.sampling.levels import glide_log_snr
from latebloom.synth.sampling.strength import (
    Start,
    choose,
    image_to_image_class,
    level_of,
    recorded,
    settle_scheduler,
    starts,
)

# NumPy about diffusers' own schedulers.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

# As Stable Diffusion has it.
SCALED_LINEAR = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}


def bare(cls: type, scheduler: Any) -> Any:
    """A pipeline of class `cls` with a scheduler and nothing else."""
    pipeline = cls.__new__(cls)
    object.__setattr__(pipeline, "scheduler", scheduler)
    return pipeline


def flow(**changes: Any) -> Any:
    return diffusers.FlowMatchEulerDiscreteScheduler(**changes)


def test_every_k_of_every_n_is_exactly_k_steps_rounded_down_or_up() -> None:
    for name, scheduler in [
        ("StableDiffusionImg2ImgPipeline", "ddim"),
        ("IFImg2ImgPipeline", "ddim"),
        ("KandinskyV22Img2ImgPipeline", "ddim"),
        ("StableDiffusion3Img2ImgPipeline", "flow"),
        ("FluxImg2ImgPipeline", "flow"),
        ("ZImageImg2ImgPipeline", "flow"),
    ]:
        pipeline = bare(getattr(diffusers, name), flow() if scheduler == "flow" else diffusers.DDIMScheduler())
        device = () if name.startswith("IF") else (None,)
        # Most numbers up to 111 for one pipeline of each rounding; the others say the same in other files of diffusers.
        asked = (1, 2, 4, 8, 32, 92) if name.startswith("StableDiffusion") else (4, 50)
        for n, places in ((places[0].steps, places) for steps in asked for places in starts(pipeline, steps)):
            assert [place.calls for place in places] == list(range(1, n + 1))
            sigmas = {"sigmas": np.linspace(1, 1 / n, n)} if name.startswith(("Flux", "ZImage")) else {}
            pipeline.scheduler.set_timesteps(n, **sigmas)
            for place in places:
                left, _ = pipeline.get_timesteps(n, place.strength, *device)
                assert len(left) == place.calls
                assert float(left[0]) == pytest.approx(place.seen, rel=1e-5)


def test_the_plain_quotient_would_have_lost_a_step() -> None:
    pipeline = bare(diffusers.StableDiffusionImg2ImgPipeline, diffusers.DDIMScheduler())
    place = starts(pipeline, 100)[0][28]
    assert place.calls == 29
    assert pipeline.get_timesteps(100, 0.29, None)[1] == 28
    assert pipeline.get_timesteps(100, place.strength, None)[1] == 29


# The noise of 40, 50, 70 and 80 of GLIDE's 100 steps on other schedules; strengths computed apart from this code.
def test_levels_start_at_the_noise_of_glides_grid() -> None:
    for name, scheduler, shares in [
        ("FluxImg2ImgPipeline", flow(), (0.42, 0.50, 0.66, 0.75)),
        ("FluxImg2ImgPipeline", flow(shift=3.0), (0.20, 0.25, 0.40, 0.51)),
        ("StableDiffusion3Img2ImgPipeline", flow(), (0.42, 0.50, 0.66, 0.75)),
        ("StableDiffusionImg2ImgPipeline", diffusers.DDIMScheduler(**SCALED_LINEAR), (0.26, 0.35, 0.56, 0.68)),
        ("StableDiffusionImg2ImgPipeline", diffusers.EulerDiscreteScheduler(**SCALED_LINEAR), (0.26, 0.35, 0.56, 0.68)),
        ("LatentConsistencyModelImg2ImgPipeline", diffusers.LCMScheduler(**SCALED_LINEAR), (0.26, 0.35, 0.56, 0.68)),
    ]:
        for n in [25, 100]:
            groups = starts(bare(getattr(diffusers, name), scheduler), min(n, 50) if "Consistency" in name else n)
            for level, share in zip((40, 50, 70, 80), shares, strict=True):
                place = choose(groups, level, 100, "snr")
                below = place.share
                if not isinstance(scheduler, diffusers.FlowMatchEulerDiscreteScheduler):
                    below = (
                        place.timestep / 1000
                    )  # spaced from the first timestep or from the last, as the scheduler pleases
                assert abs(below - share) <= 1 / n + 0.005  # a step, and the rounding of the number above
                wanted = glide_log_snr(100)[level - 1]
                nearest = min(abs(other.log_snr - wanted) for places in groups for other in places)
                assert abs(place.log_snr - wanted) <= nearest + 0.05


def test_few_steps_start_near_every_level() -> None:
    for name, scheduler in [
        ("FluxImg2ImgPipeline", flow()),
        ("StableDiffusion3Img2ImgPipeline", flow(shift=3.0)),
        ("StableDiffusionImg2ImgPipeline", diffusers.DDIMScheduler(**SCALED_LINEAR)),
    ]:
        groups = starts(bare(getattr(diffusers, name), scheduler), 8)
        assert [places[0].steps for places in groups] == list(range(8, 16))
        levels = (40, 50, 60, 70, 80)
        chosen = [choose(groups, level, 100, "snr") for level in levels]
        wanted = glide_log_snr(100)[np.array(levels) - 1]
        assert max(abs(place.log_snr - log_snr) for place, log_snr in zip(chosen, wanted, strict=True)) < 0.25
        assert len(set(chosen)) == len(levels)
        every = [choose(groups, level, 100, "snr").log_snr for level in range(1, 101)]
        assert every == sorted(every, reverse=True)  # none is noisier than level 100
        # With the places of 8 steps alone two levels would be one.
        assert len({choose(groups[:1], level, 100, "snr") for level in levels}) < len(levels)


def test_of_places_that_are_as_near_the_first_group_has_it() -> None:
    def place(steps: int, log_snr: float) -> Start:
        return Start(1, steps, 0.5, 500, 500, log_snr, 0.5)

    wanted = glide_log_snr(100)[49]
    offs = ((4, 0.5), (5, -0.04), (6, 0.01), (7, 0.0))
    groups = [[place(steps, wanted + off), place(steps, -math.inf)] for steps, off in offs]
    assert choose(groups, 50, 100, "snr").steps == 5
    assert choose(groups[2:], 50, 100, "snr").steps == 6
    assert choose(groups[:1], 50, 100, "snr").steps == 4


def test_no_step_number_is_beyond_the_models_timesteps_or_much_beyond_what_was_asked() -> None:
    def numbers(steps: int) -> list[int]:
        groups = starts(bare(diffusers.FluxImg2ImgPipeline, flow(num_train_timesteps=100)), steps)
        return [places[0].steps for places in groups]

    assert (numbers(1), numbers(3), numbers(99)) == ([1], [3, 4, 5], [99, 100])
    assert numbers(50) == list(range(50, 70))


def test_log_snr_of_flow_by_hand() -> None:
    places = starts(bare(diffusers.FluxImg2ImgPipeline, flow()), 4)[0]  # sigma 1/4, 1/2, 3/4, 1
    assert [place.timestep for place in places] == pytest.approx([250, 500, 750, 1000])
    expected = [2 * math.log(3), 0, -2 * math.log(3), -math.inf]
    assert [place.log_snr for place in places] == pytest.approx(expected, abs=1e-6)


def test_log_snr_of_sana_sprint_by_hand() -> None:
    places = starts(bare(diffusers.SanaSprintImg2ImgPipeline, diffusers.SCMScheduler()), 2)[0]
    assert [place.calls for place in places] == [1, 2]
    assert places[0].seen == pytest.approx(math.pi / 4, abs=1e-5)  # cos = sin
    assert places[0].timestep == pytest.approx(500, abs=0.01)
    assert places[0].log_snr == pytest.approx(0, abs=1e-4)
    assert places[1].log_snr == -math.inf


def test_log_snr_of_an_epsilon_model_is_its_own_schedules() -> None:
    scheduler = diffusers.DDIMScheduler(**SCALED_LINEAR, timestep_spacing="trailing")
    place = starts(bare(diffusers.StableDiffusionImg2ImgPipeline, scheduler), 10)[0][4]
    alpha = float(scheduler.alphas_cumprod[499])
    assert (place.timestep, place.calls, place.share) == (499, 5, 0.5)
    assert place.log_snr == pytest.approx(math.log(alpha / (1 - alpha)))


def test_a_consistency_model_keeps_the_noise_and_takes_steps_in_proportion() -> None:
    scheduler = diffusers.LCMScheduler(**SCALED_LINEAR)
    (places,) = starts(bare(diffusers.LatentConsistencyModelImg2ImgPipeline, scheduler), 4)
    assert len(places) == 50
    assert [place.calls for place in places[::7]] == [1, 1, 1, 2, 2, 3, 3, 4]
    for j, place in enumerate(places, 1):
        scheduler.set_timesteps(place.steps, strength=place.strength)  # what the pipeline does with it
        assert len(scheduler.timesteps) == place.calls
        assert float(scheduler.timesteps[0]) == place.seen == 20 * j - 1
    with pytest.raises(ValueError, match="got 51 steps, expected at most the 50 the model was distilled on"):
        starts(bare(diffusers.LatentConsistencyModelImg2ImgPipeline, scheduler), 51)


def test_levels_by_steps_are_the_same_share_of_the_steps() -> None:
    for match in ["steps", "strength"]:
        groups = starts(bare(diffusers.FluxImg2ImgPipeline, flow(shift=3.0)), 25)
        assert [choose(groups, level, 100, match).calls for level in (1, 40, 52, 80, 100)] == [1, 10, 13, 20, 25]


def test_the_deepest_level_is_the_noisiest_start() -> None:
    for scheduler in (flow(), flow(shift=3.0)):
        groups = starts(bare(diffusers.FluxImg2ImgPipeline, scheduler), 7)
        assert choose(groups, 100, 100, "snr") is groups[0][-1]
    assert level_of(groups[0][-1], 100, 100).log_snr == -np.inf


def test_a_level_off_the_grid_is_refused() -> None:
    for level in [0, 101]:
        with pytest.raises(ValueError, match=f"level {level} of 100 does not exist: levels go from 1 to 100"):
            choose(starts(bare(diffusers.FluxImg2ImgPipeline, flow()), 4), level, 100, "snr")


def test_more_steps_than_timesteps_are_refused() -> None:
    with pytest.raises(ValueError, match="got 1001 steps, expected at most the model's 1000 timesteps"):
        starts(bare(diffusers.StableDiffusionImg2ImgPipeline, diffusers.DDIMScheduler()), 1001)


def test_ddim_replaces_schedulers_that_call_the_network_too_often() -> None:
    for name in ["PNDMScheduler", "HeunDiscreteScheduler", "KDPM2DiscreteScheduler"]:
        given = getattr(diffusers, name)(**SCALED_LINEAR)
        settled = settle_scheduler(given, 64)
        assert type(settled) is diffusers.DDIMScheduler
        torch.testing.assert_close(settled.alphas_cumprod, given.alphas_cumprod)


def test_other_schedulers_stay() -> None:
    for scheduler in (diffusers.DPMSolverMultistepScheduler(), flow(shift=3.0), diffusers.SCMScheduler()):
        assert settle_scheduler(scheduler, 64) is scheduler


def test_a_shift_that_follows_the_size_is_held_at_the_size_of_training() -> None:
    given = flow(use_dynamic_shifting=True, base_shift=0.5, max_shift=1.15, base_image_seq_len=256)
    places = starts(bare(diffusers.FluxImg2ImgPipeline, settle_scheduler(given, 4096)), 4)[0]
    shifted = math.exp(1.15) / (math.exp(1.15) + 1)  # sigma = 1/2 shifted by mu = 1.15, Flux's at 1024 pixels
    assert places[1].timestep == pytest.approx(1000 * shifted, rel=1e-5)


def test_schedulers_of_unknown_noise_are_refused() -> None:
    for scheduler in [
        diffusers.FlowMatchHeunDiscreteScheduler(),
        diffusers.EDMEulerScheduler(),
        flow(stochastic_sampling=True),
        diffusers.DPMSolverMultistepScheduler(use_flow_sigmas=True, prediction_type="flow_prediction"),
    ]:
        with pytest.raises(ValueError, match=rf"scheduler {type(scheduler).__name__} is not understood.*save the"):
            settle_scheduler(scheduler, 64)


def test_the_class_that_runs_a_folder() -> None:
    for saved, run in [
        ("StableDiffusion3Pipeline", "StableDiffusion3Img2ImgPipeline"),
        ("StableDiffusionXLImg2ImgPipeline", "StableDiffusionXLImg2ImgPipeline"),
        ("FluxPipeline", "FluxImg2ImgPipeline"),
        ("ChromaPipeline", "ChromaImg2ImgPipeline"),
        ("QwenImagePipeline", "QwenImageImg2ImgPipeline"),
        ("ZImagePipeline", "ZImageImg2ImgPipeline"),
        ("SanaSprintPipeline", "SanaSprintImg2ImgPipeline"),
        ("LatentConsistencyModelPipeline", "LatentConsistencyModelImg2ImgPipeline"),
        ("IFPipeline", "IFImg2ImgPipeline"),
        ("Kandinsky3Pipeline", "Kandinsky3Img2ImgPipeline"),
        ("KandinskyV22CombinedPipeline", "KandinskyV22Img2ImgCombinedPipeline"),
    ]:
        assert image_to_image_class(Path(saved), saved).__name__ == run


CONDITION = "takes the reference as a condition"


def test_models_without_a_noise_level_are_refused_by_name() -> None:
    for name, reason in [
        ("FluxKontextPipeline", CONDITION),
        ("Flux2Pipeline", CONDITION),
        ("QwenImageEditPipeline", CONDITION),
        ("StableDiffusionInstructPix2PixPipeline", CONDITION),
        ("PixArtAlphaPipeline", "diffusers has no image-to-image pipeline for it"),
        ("DDPMPipeline", "diffusers has no image-to-image pipeline for it"),
        ("StableCascadeCombinedPipeline", "decoded by a second diffusion, from latents that no reference can be enco"),
        ("CogView4Pipeline", "its prompts have no mask and many lengths"),
        ("StableDiffusionControlNetPipeline", "needs a control_image besides the reference"),
        ("IFImg2ImgSuperResolutionPipeline", "needs a original_image besides the reference"),
        ("StableDiffusion3PAGImg2ImgPipeline", "perturbed-attention guidance is not offered"),
        ("AmusedPipeline", "masks tokens and adds no noise"),
        ("KandinskyPipeline", "noises to another timestep than it denoises from"),
        ("KandinskyV22Pipeline", "this is the decoder alone"),
    ]:
        with pytest.raises(
            ValueError, match=rf"holds a {name}: .*{reason}.*; expected a model that noises a reference"
        ):
            image_to_image_class(Path("model"), name)


def test_what_is_no_pipeline_is_refused() -> None:
    for name in ["NoSuchPipeline", "UNet2DModel", None, ["my_code", "MyPipeline"]]:
        with pytest.raises(ValueError, match="which is no pipeline of diffusers"):
            image_to_image_class(Path("model"), name)


class Idle:
    """A scheduler whose steps do nothing."""

    def step(self, *args: torch.Tensor) -> torch.Tensor:
        return args[-1]


def run(pipeline: Any, place: Start, timesteps: list[float]) -> None:
    with recorded(pipeline, place, 1):
        for timestep in timesteps:
            pipeline.scheduler.step(torch.zeros(1), torch.tensor(timestep), torch.zeros(1))


def test_other_steps_than_were_meant_are_our_error() -> None:
    for timesteps in [[500.0], [500.0, 250.0, 125.0], [501.0, 250.0], []]:
        place = Start(calls=2, steps=4, strength=0.5, seen=500, timestep=500, log_snr=0, share=0.5)
        pipeline = SimpleNamespace(scheduler=Idle())
        with pytest.raises(RuntimeError, match=rf"SimpleNamespace made {len(timesteps)} steps .* not 2 from \[500\]"):
            run(pipeline, place, timesteps)
        assert "step" not in vars(pipeline.scheduler)  # as it was
