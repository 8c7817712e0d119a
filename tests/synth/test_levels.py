import math
from types import SimpleNamespace

import numpy as np
import pytest

from synth.levels import NoiseGrid, paper_levels


@pytest.fixture(scope="module")
def glide(fakes: SimpleNamespace) -> NoiseGrid:
    """100 of the 1000 steps of squaredcos_cap_v2, as GLIDE has them."""
    return NoiseGrid.of(fakes.cosine_alphas_cumprod(1000), 100)


def test_timesteps_go_evenly_from_the_first_to_the_last(glide: NoiseGrid) -> None:
    assert glide.timesteps.dtype == np.int64
    assert glide.timesteps.shape == (100,)
    assert glide.timesteps[:5].tolist() == [0, 10, 20, 30, 40]
    assert glide.timesteps[-5:].tolist() == [959, 969, 979, 989, 999]


@pytest.mark.parametrize(
    ("level", "timestep", "abar"), [(40, 394, 0.65491), (50, 494, 0.50164), (70, 696, 0.20690), (80, 797, 0.09587)]
)
def test_the_papers_levels_start_where_glide_starts_them(
    glide: NoiseGrid, level: int, timestep: int, abar: float
) -> None:
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


@pytest.mark.parametrize(("size", "timesteps"), [(1, [4]), (2, [0, 4]), (3, [0, 2, 4]), (5, [0, 1, 2, 3, 4])])
def test_grids_of_five_training_steps(size: int, timesteps: list[int]) -> None:
    abar = np.array([0.9, 0.7, 0.5, 0.3, 0.1])
    grid = NoiseGrid.of(abar, size)
    assert grid.size == size
    assert grid.timesteps.tolist() == timesteps
    assert grid.alphas_cumprod.tolist() == abar[timesteps].tolist()


def test_log_snr_by_hand() -> None:
    grid = NoiseGrid.of(np.array([0.8, 0.5, 0.2]), 3)
    assert grid.log_snr(1) == pytest.approx(math.log(4))
    assert grid.log_snr(2) == 0
    assert grid.log_snr(3) == -math.inf  # R = S starts from pure noise, whatever the schedule's last step keeps


def test_log_snr_of_the_papers_levels(glide: NoiseGrid) -> None:
    assert [round(glide.log_snr(level), 2) for level in (40, 50, 70, 80)] == [0.64, 0.01, -1.34, -2.24]
    assert glide.log_snr(100) == -math.inf


def test_strength_is_a_share_of_the_grid(glide: NoiseGrid) -> None:
    assert [glide.strength(level) for level in (1, 29, 57, 100)] == [0.01, 0.29, 0.57, 1.0]


@pytest.mark.parametrize("level", [-1, 0, 101])
@pytest.mark.parametrize("ask", [NoiseGrid.check, NoiseGrid.log_snr, NoiseGrid.strength])
def test_levels_outside_the_grid_do_not_exist(glide: NoiseGrid, ask: object, level: int) -> None:
    with pytest.raises(ValueError, match=f"^level {level} of 100 does not exist: levels go from 1 to 100$"):
        ask(glide, level)  # type: ignore[operator]


def test_the_first_and_the_last_level_exist(glide: NoiseGrid) -> None:
    glide.check(1)
    glide.check(100)


@pytest.mark.parametrize("size", [-1, 0, 6])
def test_a_grid_has_between_one_step_and_those_of_the_model(size: int) -> None:
    with pytest.raises(ValueError, match=rf"^a grid has 1 to 5 steps \(the model's training timesteps\), got {size}$"):
        NoiseGrid.of(np.full(5, 0.5), size)


@pytest.mark.parametrize(
    ("k", "grid", "levels"),
    [
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
    ],
)
def test_the_papers_levels_on_a_grid(k: int, grid: int, levels: tuple[int, ...]) -> None:
    assert paper_levels(k, grid) == levels


@pytest.mark.parametrize("k", [1, 3, 6])
def test_other_k_have_no_levels_in_the_paper(k: int) -> None:
    message = f"^the paper gives levels for k = 2, 4 and 5 only; name {k - 1} levels yourself for k = {k}$"
    with pytest.raises(ValueError, match=message):
        paper_levels(k, 100)


@pytest.mark.parametrize(("k", "grid"), [(5, 25), (4, 5), (2, 1)])
def test_levels_between_two_steps_are_refused_not_rounded(k: int, grid: int) -> None:
    with pytest.raises(ValueError, match=rf"do not fall on a grid of {grid} steps \(a multiple of 10 does\); name"):
        paper_levels(k, grid)
