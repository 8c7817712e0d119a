import math
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from latebloom.synth.config import Match, paper_levels
from latebloom.synth.sampling.levels import Level, NoiseGrid, glide_log_snr


@pytest.fixture(scope="module")
def glide(fakes: SimpleNamespace) -> NoiseGrid:
    """100 of the 1000 steps of squaredcos_cap_v2, as GLIDE has them."""
    return NoiseGrid.of(fakes.cosine_alphas_cumprod(1000), 100)


def stable_diffusion() -> np.ndarray:
    """Its schedule, scaled_linear: the square roots of the betas rise evenly (arXiv 2112.10752)."""
    return np.cumprod(1 - np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2)


# The grid


def test_timesteps_go_evenly_from_the_first_to_the_last(glide: NoiseGrid) -> None:
    assert glide.timesteps.dtype == np.int64
    assert glide.timesteps.shape == (100,)
    assert glide.timesteps[:5].tolist() == [0, 10, 20, 30, 40]
    assert glide.timesteps[-5:].tolist() == [959, 969, 979, 989, 999]
    assert (glide.size, glide.total) == (100, 1000)


def test_the_papers_levels_start_where_glide_starts_them(glide: NoiseGrid) -> None:
    for level, timestep, abar in [(40, 394, 0.65491), (50, 494, 0.50164), (70, 696, 0.20690), (80, 797, 0.09587)]:
        # GLIDE's own numbers: level R starts at index R - 1 of its respaced steps.
        assert glide.timesteps[level - 1] == timestep
        assert glide.alphas_cumprod[level - 1] == pytest.approx(abar, abs=5e-6)


def test_the_schedule_by_hand_is_diffusers_own(fakes: SimpleNamespace, glide: NoiseGrid) -> None:
    from diffusers import DDPMScheduler

    scheduler = DDPMScheduler(beta_schedule="squaredcos_cap_v2", timestep_spacing="linspace")
    scheduler.set_timesteps(100)
    # diffusers keeps it in float32.
    np.testing.assert_allclose(fakes.cosine_alphas_cumprod(1000), scheduler.alphas_cumprod.numpy(), atol=2e-6)
    assert glide.timesteps.tolist() == scheduler.timesteps.tolist()[::-1]
    respaced = scheduler.alphas_cumprod[scheduler.timesteps.flip(0)].double().numpy()
    np.testing.assert_array_equal(NoiseGrid.of(scheduler.alphas_cumprod.numpy(), 100).alphas_cumprod, respaced)
    # Rounding to float32 moves no level of any grid.
    for size in (1, 2, 3, 10, 99, 333, 999, 1000):
        theirs = NoiseGrid.of(scheduler.alphas_cumprod.numpy(), size).timesteps
        np.testing.assert_array_equal(theirs, NoiseGrid.of(scheduler.alphas_cumprod.numpy(), size, "steps").timesteps)


def test_grids_of_five_training_steps() -> None:
    for size, timesteps in [(1, [4]), (2, [0, 4]), (3, [0, 2, 4]), (5, [0, 1, 2, 3, 4])]:
        abar = np.array([0.9, 0.7, 0.5, 0.3, 0.1])
        grid = NoiseGrid.of(abar, size, "steps")
        assert grid.size == size
        assert grid.timesteps.tolist() == timesteps
        assert grid.alphas_cumprod.tolist() == abar[timesteps].tolist()


def test_matching_by_noise_and_by_place_are_one_where_the_schedule_is_glides(fakes: SimpleNamespace) -> None:
    abar = fakes.cosine_alphas_cumprod(1000)
    for size in (1, 2, 3, 10, 20, 50, 99, 100, 333, 500, 999, 1000):
        by_noise, by_place = NoiseGrid.of(abar, size, "snr"), NoiseGrid.of(abar, size, "steps")
        np.testing.assert_array_equal(by_noise.timesteps, by_place.timesteps, err_msg=str(size))


def test_the_noise_of_glides_levels_by_hand() -> None:
    # abar is 0.50164 at step 50 of 100 and 0.65491 at step 40.
    log_snr = glide_log_snr(100)
    assert log_snr.shape == (100,)
    assert log_snr[49] == pytest.approx(math.log(0.50164 / 0.49836), abs=3e-5)
    assert log_snr[39] == pytest.approx(math.log(0.65491 / 0.34509), abs=3e-5)
    assert (np.diff(log_snr) < 0).all()


def test_stable_diffusion_has_the_papers_noise_at_other_timesteps() -> None:
    # A plain strength of .40 .50 .70 .80 would noise much more.
    grid = NoiseGrid.of(stable_diffusion(), 100)
    levels = [grid.level(steps, steps) for steps in (40, 50, 70, 80)]
    assert [level.timestep for level in levels] == [261, 353, 556, 679]
    assert [level.strength for level in levels] == [0.262, 0.354, 0.557, 0.68]
    # As near as whole timesteps come: half a step apart at most.
    wanted = glide_log_snr(100)[[39, 49, 69, 79]]
    assert [level.log_snr for level in levels] == pytest.approx(wanted.tolist(), abs=0.005)
    assert grid.timesteps[-1] == 999  # the last level is pure noise, though GLIDE's is less than this schedule has


def test_every_timestep_between_the_ends_is_the_nearest_in_noise() -> None:
    abar = stable_diffusion()
    log_snr = np.log(abar / (1 - abar))
    wanted, timesteps = glide_log_snr(20), NoiseGrid.of(abar, 20).timesteps
    inside = (wanted < log_snr[0]) & (wanted > log_snr[-1])
    assert 15 < inside.sum() < 20
    nearest = np.abs(log_snr[:, None] - wanted).argmin(0)
    assert timesteps[inside].tolist() == nearest[inside].tolist()


def test_strength_has_the_timesteps_of_diffusers_trailing_spacing() -> None:
    for size in [1, 4, 20, 28, 50, 99, 999, 1000]:
        from diffusers import DDIMScheduler

        scheduler = DDIMScheduler(timestep_spacing="trailing")
        scheduler.set_timesteps(size)
        grid = NoiseGrid.of(stable_diffusion(), size, "strength")
        assert grid.timesteps.tolist() == scheduler.timesteps.tolist()[::-1]


def test_strength_is_what_it_says() -> None:
    grid = NoiseGrid.of(stable_diffusion(), 50, "strength")
    assert [grid.level(steps, steps).strength for steps in (1, 25, 50)] == [0.02, 0.5, 1.0]
    assert [grid.level(steps, steps).timestep for steps in (1, 25, 50)] == [19, 499, 999]


@st.composite
def schedules(draw: st.DrawFn) -> np.ndarray:
    """abar of 1 to 60 timesteps that never rise: from nearly none to nearly all noise, with plateaus, or none left."""
    steps = draw(st.lists(st.floats(0, 12), min_size=1, max_size=60))
    log_snr = draw(st.floats(-15, 15)) - np.cumsum(steps)
    abar = 1 / (1 + np.exp(-log_snr.clip(-600, 600)))
    if draw(st.booleans()):
        abar[-1] = 0  # zero terminal SNR (arXiv 2305.08891)
    return abar


@settings(max_examples=60, deadline=None)
@given(schedules(), st.data())
@example(np.array([1.0]), None)
@example(np.array([0.5, 0.5, 0.5, 0.0]), None)
def test_timesteps_rise_on_every_schedule_and_end_where_it_ends(abar: np.ndarray, data: Any) -> None:
    total = len(abar)
    sizes = range(1, total + 1) if data is None else [data.draw(st.integers(1, total))]
    for size in sizes:
        for match in get_args(Match):
            grid = NoiseGrid.of(abar, size, match)
            assert grid.timesteps.shape == (size,)
            assert (np.diff(grid.timesteps) > 0).all()
            assert grid.timesteps[0] >= 0
            assert grid.timesteps[-1] == total - 1
            assert grid.alphas_cumprod.tolist() == abar[grid.timesteps].tolist()


# Trajectories


@settings(max_examples=40, deadline=None)
@given(st.integers(1, 1000), st.data())
@example(100, None)
def test_a_trajectory_goes_down_from_its_level_without_repeating_a_step(steps: int, data: Any) -> None:
    grid = NoiseGrid(np.arange(1000), np.linspace(0.999, 0.001, 1000), 1000)
    calls = steps if data is None else data.draw(st.integers(1, steps))
    path = grid.path(steps, calls)
    assert path.dtype == np.int64
    assert len(path) == calls
    assert path[0] == steps - 1
    assert path[-1] >= 0
    assert (np.diff(path) < 0).all()
    # As even as whole steps are: the last stretch, to the image itself, included.
    stretches = -np.diff([*path.tolist(), -1])
    assert stretches.max() - stretches.min() <= 1
    if calls == steps:
        assert path.tolist() == list(range(steps))[::-1]


def test_trajectories_by_hand(glide: NoiseGrid) -> None:
    for steps, calls, path in [
        (5, 5, [4, 3, 2, 1, 0]),
        (1, 1, [0]),
        (8, 2, [7, 3]),
        (10, 3, [9, 6, 2]),
        (50, 1, [49]),
        (3, 2, [2, 1]),
    ]:
        assert glide.path(steps, calls).tolist() == path


def test_a_trajectory_has_between_one_step_and_those_of_its_level(glide: NoiseGrid) -> None:
    for steps in [-1, 0, 11]:
        with pytest.raises(ValueError, match=f"^got {steps} steps, expected 1 to 10 for level 10; change sample"):
            glide.path(10, steps)


# What a level is


def test_a_level_by_hand() -> None:
    grid = NoiseGrid.of(np.array([0.8, 0.5, 0.2]), 3, "steps")
    assert grid.level(1, 1) == Level(1, 3, 1, 0.0, pytest.approx(math.log(4)), 1 / 3)
    assert grid.level(2, 2) == Level(2, 3, 2, 1.0, 0.0, 2 / 3)
    # R = S starts from pure noise, whatever the schedule's last step keeps.
    assert grid.level(3, 2) == Level(3, 3, 2, 2.0, -math.inf, 1.0)


def test_the_papers_levels_on_glides_grid(glide: NoiseGrid) -> None:
    levels = [glide.level(steps, steps) for steps in (40, 50, 70, 80, 100)]
    assert [round(level.log_snr, 2) for level in levels] == [0.64, 0.01, -1.34, -2.24, -math.inf]
    assert [level.timestep for level in levels] == [394, 494, 696, 797, 999]
    assert [level.strength for level in levels] == [0.395, 0.495, 0.697, 0.798, 1.0]
    assert [(level.steps, level.grid, level.calls) for level in levels[:2]] == [(40, 100, 40), (50, 100, 50)]


def test_fewer_calls_start_at_the_same_noise(glide: NoiseGrid) -> None:
    full, few = glide.level(50, 50), glide.level(50, 13)
    assert few.calls == 13
    assert (few.timestep, few.log_snr, few.strength) == (full.timestep, full.log_snr, full.strength)


def test_deeper_levels_are_noisier() -> None:
    for match in get_args(Match):
        grid = NoiseGrid.of(stable_diffusion(), 60, match)
        levels = [grid.level(steps, steps) for steps in range(1, 61)]
        for name in ("log_snr", "timestep", "strength"):
            values = [getattr(level, name) * (-1 if name == "log_snr" else 1) for level in levels]
            assert (np.diff(values) > 0).all(), name


def test_levels_outside_the_grid_do_not_exist(glide: NoiseGrid) -> None:
    for level in [-1, 0, 101]:
        for ask in [NoiseGrid.check, lambda grid, level: grid.path(level, 1), lambda grid, level: grid.level(level, 1)]:
            with pytest.raises(ValueError, match=f"^level {level} of 100 does not exist: levels go from 1 to 100$"):
                ask(glide, level)


def test_the_first_and_the_last_level_exist(glide: NoiseGrid) -> None:
    glide.check(1)
    glide.check(100)


def test_glides_grid_has_a_thousand_steps_at_most() -> None:
    with pytest.raises(
        ValueError, match=r"^got a grid of 1001 steps, expected at most 1000 \(GLIDE's\) for match snr; change"
    ):
        NoiseGrid.of(np.linspace(0.99, 0.01, 2000), 1001)
    assert NoiseGrid.of(np.linspace(0.99, 0.01, 2000), 1001, "steps").size == 1001


def test_a_grid_has_between_one_step_and_those_of_the_model() -> None:
    for match in get_args(Match):
        for size in [-1, 0, 6]:
            with pytest.raises(
                ValueError,
                match=rf"^got a grid of {size} steps, expected 1 to 5 \(the model's training timesteps\); change",
            ):
                NoiseGrid.of(np.full(5, 0.5), size, match)


def test_the_papers_levels_on_a_grid() -> None:
    for k, grid, levels in [
        (2, 100, (50,)),
        (4, 100, (50, 70, 80)),
        (5, 100, (40, 50, 70, 80)),
        (2, 20, (10,)),
        (4, 20, (10, 14, 16)),
        (5, 20, (8, 10, 14, 16)),
        (2, 10, (5,)),
        (4, 10, (5, 7, 8)),
        (5, 10, (4, 5, 7, 8)),
        (2, 2, (1,)),
        (5, 1000, (400, 500, 700, 800)),
        # The paper names none for these: 50, 70, 80, 40 join in this order, then again.
        (3, 100, (50, 70)),
        (6, 100, (40, 50, 50, 70, 80)),
        (9, 100, (40, 40, 50, 50, 70, 70, 80, 80)),
    ]:
        assert paper_levels(k, grid) == levels


def test_levels_between_two_steps_are_refused_not_rounded() -> None:
    for k, grid in [(5, 25), (4, 5), (2, 1)]:
        with pytest.raises(ValueError, match=rf"do not fall on a grid of {grid} steps \(a multiple of 10 does\); name"):
            paper_levels(k, grid)
