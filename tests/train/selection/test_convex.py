from typing import Any

import numpy as np
import pytest
import torch

from latebloom.train.selection.convex import logistic_coreset, newton_directions


def problem(n: int = 400, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Two overlapping clouds, one in ten of class 1 (as in ijcnn1)."""
    rng = np.random.default_rng(seed)
    y = (np.arange(n) % 10 == 0).astype(np.int64)
    return rng.normal(size=(n, 4)) * np.array([1, 2, 0.5, 1]) + y[:, None], y


def gradients(x: np.ndarray, y: np.ndarray, parameters: np.ndarray) -> np.ndarray:
    u = np.pad(x, ((0, 0), (0, 1)), constant_values=1)
    return (1 / (1 + np.exp(-u @ parameters)) - y)[:, None] * u


@pytest.mark.parametrize("l2", [0.0, 0.3])
def test_newton_directions_solve_each_points_damped_hessian(l2: float) -> None:
    x, y = problem(12)
    parameters = np.array([0.3, -0.2, 0.5, 0.1, -1])

    def loss(w: torch.Tensor, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        z = x @ w[:-1] + w[-1]
        return torch.nn.functional.binary_cross_entropy_with_logits(z, y) + l2 / 2 * w.square().sum()

    w = torch.from_numpy(parameters)
    expected = []
    for point in zip(torch.from_numpy(x), torch.from_numpy(y).double(), strict=True):
        g = torch.autograd.functional.jacobian(lambda w, p=point: loss(w, *p), w)
        hessian = torch.autograd.functional.hessian(lambda w, p=point: loss(w, *p), w)
        expected.append(torch.linalg.solve(hessian + 0.1 * torch.eye(5), g))
    np.testing.assert_allclose(
        newton_directions(x, y, parameters, 0.1, l2=l2), torch.stack(expected), rtol=1e-5, atol=1e-6
    )


def test_directions_are_finite_where_the_sigmoid_saturates() -> None:
    """s (1 - s) is 0 there, and undamped the Hessian has no inverse."""
    found = newton_directions(np.array([[1e4], [-1e4]]), np.array([0, 1]), np.array([10.0, 0]), 0.01)
    np.testing.assert_allclose(found, [[1e6, 100], [1e6, -100]], rtol=1e-5)


def test_the_coreset_has_the_gradient_of_all_along_the_training() -> None:
    """Better than random points of the same number per class and the same total weights, also away from the start."""
    x, y = problem()
    found = logistic_coreset(x, y, np.zeros(5), 40, damping=0.1)
    assert np.bincount(y[found.indices]).tolist() == [36, 4]
    assert [found.weights[y[found.indices] == label].sum() for label in (0, 1)] == [360, 40]
    rng = np.random.default_rng(1)
    for parameters in (np.zeros(5), np.array([0.3, 0.2, 0.1, 0.2, -1.0])):
        own = gradients(x, y, parameters)
        error = np.linalg.norm(found.weights @ own[found.indices] - own.sum(0))
        at_random = []
        for _ in range(200):
            rows = np.concatenate([rng.choice(np.flatnonzero(y == label), b, False) for label, b in ((0, 36), (1, 4))])
            at_random.append(np.linalg.norm(10 * own[rows].sum(0) - own.sum(0)))
        assert error < np.quantile(at_random, 0.25)


def test_all_points_are_their_own_coreset() -> None:
    x, y = problem(20)
    found = logistic_coreset(x, y, np.zeros(5), 20, damping=0.1)
    assert sorted(found.indices.tolist()) == list(range(20))
    assert set(found.weights.tolist()) == {1.0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"budget": 1}, r"budget 1 of 20 points; expected 2 \(one a class\) to 20"),
        ({"budget": 21}, "budget 21 of 20 points"),
        ({"damping": 0.0}, "damping 0.0 and l2 0.0; expected damping > 0"),
        ({"y": np.full(20, -1)}, r"y must be 0 or 1, got -1..-1"),
        ({"x": np.full((20, 4), np.nan)}, "not finite"),
        ({"parameters": np.zeros(4)}, r"expected x \(N, D\), y \(N,\), parameters \(D \+ 1,\)"),
    ],
)
def test_bad_input_is_one_line(change: dict[str, Any], message: str) -> None:
    x, y = problem(20)
    values: dict[str, Any] = {"x": x, "y": y, "parameters": np.zeros(5), "budget": 4, "damping": 0.1}
    with pytest.raises(ValueError, match=message) as error:
        logistic_coreset(**(values | change))
    assert "\n" not in str(error.value)
