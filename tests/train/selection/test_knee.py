"""The knee of a training that goes on, beside the knee of its whole curve."""

import numpy as np
import pytest

from latebloom.train.selection.knee import earliest_knee, knee_so_far
from latebloom.train.selection.slow import separating_epoch

EPOCHS = np.arange(1, 51)
# The training error of a ResNet-18 on CIFAR-10, rounded: fast to 20 %, then slowly on.
CIFAR = [55, 37, 28, 23, 20, 18, 16.5, 15.5, 14.7, 14, 13.5, 13, *np.linspace(12.7, 7, 38)]
CURVES = {
    "steep": 0.1 + 0.8 * np.exp(-(EPOCHS - 1) / 2),
    "flat": 0.1 + 0.8 * np.exp(-(EPOCHS - 1) / 5),
    "power": 0.9 * EPOCHS**-0.7,
    "plateau": np.interp(EPOCHS, [1, 8, 50], [0.9, 0.2, 0.18]),
    "begins late": np.concatenate([np.full(6, 0.9), 0.1 + 0.8 * np.exp(-np.arange(44) / 3)]),
    "cifar": np.array(CIFAR) / 100,
}


def online(errors: np.ndarray, patience: int = 4) -> tuple[int, int]:
    """The knee, and the epoch at which it is known."""
    for seen in range(1, len(errors) + 1):
        knee = knee_so_far(errors[:seen].tolist(), len(errors), patience)
        if knee is not None:
            return knee, seen
    raise AssertionError("the end of the curve decides")


@pytest.mark.parametrize("name", CURVES)
def test_the_knee_is_known_soon_and_is_that_of_the_whole_curve(name: str) -> None:
    knee, seen = online(CURVES[name])
    assert abs(knee - separating_epoch(CURVES[name].tolist())) <= 1
    assert seen == knee + 4


def test_a_separating_epoch_of_8_costs_12_epochs_which_are_6_percent_of_200() -> None:
    assert online(CURVES["cifar"]) == (8, 12)
    assert online(CURVES["cifar"], patience=2) == (8, 10)


@pytest.mark.parametrize("name", CURVES)
def test_a_curve_that_was_seen_whole_has_its_own_knee(name: str) -> None:
    curve = CURVES[name].tolist()
    for horizon in (1, 2, 3, 9, 50):
        assert knee_so_far(curve[:horizon], horizon, 4) == separating_epoch(curve[:horizon])


def test_noise_of_half_a_point_moves_it_by_an_epoch_or_two() -> None:
    rng = np.random.default_rng(0)
    for name in ("steep", "plateau", "cifar"):
        curves = [CURVES[name] + rng.normal(0, 0.005, 50) for _ in range(50)]
        away = [abs(online(curve)[0] - separating_epoch(curve.tolist())) for curve in curves]
        assert np.mean(np.array(away) <= 2) >= 0.9


def test_an_error_that_has_not_begun_to_fall_has_no_knee() -> None:
    rng = np.random.default_rng(0)
    still = 0.9 + rng.normal(0, 0.002, 30)
    assert all(knee_so_far(still[:seen].tolist(), 50, 4) is None for seen in range(1, 31))
    line = np.interp(EPOCHS, [1, 50], [0.9, 0.1])
    assert all(knee_so_far(line[:seen].tolist(), 50, 4) is None for seen in range(1, 50))


def test_no_later_error_makes_an_epoch_the_knee_that_was_ruled_out() -> None:
    """By random curves: so weights of earlier epochs need not be kept. Few are: on CIFAR's curve at most 6."""
    rng = np.random.default_rng(0)
    for _ in range(300):
        errors = np.clip(np.cumsum(rng.normal(-0.03, 0.04, 40)) + 0.9, 0, 1)
        earliest = 1
        for seen in range(1, 41):
            knee = knee_so_far(errors[:seen].tolist(), 40, 3)
            if knee is not None:
                assert knee >= earliest
                break
            earliest = max(earliest, earliest_knee(errors[:seen].tolist(), 40))
    kept = [seen - earliest_knee(CURVES["cifar"][:seen].tolist(), 50) + 1 for seen in range(1, 13)]
    assert max(kept) <= 6
