"""The plane in which a report shows early outputs."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA

from latebloom.flows.report.pictures import _plane


@pytest.mark.parametrize(("n", "classes"), [(200, 10), (3, 10), (60, 2), (4, 3)])
def test_the_plane_is_that_of_the_principal_components(n: int, classes: int) -> None:
    points = np.random.default_rng(0).dirichlet(np.full(classes, 0.2), n).astype(np.float32)
    found, expected = _plane(points), PCA(2, svd_solver="full").fit_transform(points.astype(np.float64))
    np.testing.assert_allclose(np.abs(found), np.abs(expected), atol=1e-4)


def test_it_is_the_same_each_time_and_draws_from_no_global_generator() -> None:
    points = np.random.default_rng(0).dirichlet(np.full(100, 0.2), 300).astype(np.float32)
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = _plane(points)
    assert torch.equal(before, torch.random.get_rng_state())
    torch.manual_seed(2)
    np.testing.assert_array_equal(first, _plane(points))


def test_equal_points_are_one() -> None:
    np.testing.assert_array_equal(_plane(np.full((5, 3), 1 / 3, np.float32)), np.zeros((5, 2)))
