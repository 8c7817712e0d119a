import itertools

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from scipy.optimize import nnls

from latebloom.train.selection.pursuit import contextual_diversity, glister, herding, k_center, matching_pursuit


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


# --- herding ---------------------------------------------------------------------------------------------------------


def test_herding_by_hand() -> None:
    # Mean 2. First the 2 (row 3). Then what brings the sum to 4: the 2 is gone, so 1 or 3 (off by 1): the lower row.
    # Then the sum to 6 from 2 + 1: the 3. Then to 8 from 6: of 0 and 4 (off by 2) the lower row.
    assert herding(np.array([[0.0], [1], [3], [2], [4]]), 5).tolist() == [3, 1, 2, 0, 4]


def test_herding_keeps_the_running_mean_nearer_than_chance_at_every_size() -> None:
    """DeepCore takes the argmax of the distance, so its running mean runs away."""
    x = normal(200, 8)
    selected = herding(x, 60)

    def errors(rows: np.ndarray) -> np.ndarray:
        running = x[rows].cumsum(0) / np.arange(1, len(rows) + 1)[:, None]
        return np.linalg.norm(running - x.mean(0), axis=1)

    rng = np.random.default_rng(1)
    at_random = np.stack([errors(rng.permutation(200)[:60]) for _ in range(20)])
    assert (errors(selected) <= at_random.min(0)).all()


def test_herding_equals_the_formula() -> None:
    x = normal(30, 4, seed=2)
    selected: list[int] = []
    for t in range(1, 31):
        off = [np.linalg.norm(t * x.mean(0) - x[selected].sum(0) - one) for one in x]
        selected.append(min(set(range(30)) - set(selected), key=lambda i: off[i]))
    assert herding(x, 30).tolist() == selected


# --- farthest first --------------------------------------------------------------------------------------------------


def test_k_center_by_hand() -> None:
    # From 1: the farthest is 10. Then 5 is 4 away from 1, and nothing else as far. Then 0, and 1's copy last.
    assert k_center(np.array([[0.0], [1], [1], [5], [10]]), 5, first=1).tolist() == [1, 4, 3, 0, 2]


def test_k_center_equals_the_formula_and_leaves_no_point_far() -> None:
    x = normal(60, 5)
    distance = np.linalg.norm(x[:, None] - x[None], axis=2)
    selected = [7]
    while len(selected) < 20:
        selected.append(int(distance[selected].min(0).argmax()))
    found = k_center(x, 20, first=7)
    assert found.tolist() == selected
    # Within twice of the best radius (Gonzalez): among others, of these.
    best = min(distance[list(three)].min(0).max() for three in itertools.combinations(range(0, 60, 3), 3))
    assert distance[found[:3]].min(0).max() <= 2 * best


def test_copies_are_taken_by_position() -> None:
    value = 1e6
    """Through products of norms a copy would be at some distance of itself."""
    assert k_center(np.full((5, 3), value), 5, first=2).tolist() == [2, 0, 1, 3, 4]
    assert contextual_diversity(np.full((5, 3), value), 9, first=2).tolist() == [2, 0, 1, 3, 4]
    assert herding(np.full((5, 3), value), 4).tolist() == [0, 1, 2, 3]


def test_contextual_diversity_is_symmetric_kl() -> None:
    logits = normal(40, 4)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    kl = (p[:, None] * np.log(p[:, None] / p[None])).sum(2)
    selected = [3]
    while len(selected) < 15:
        selected.append(int(((kl + kl.T) / 2)[selected].min(0).argmax()))
    assert contextual_diversity(logits, 15, first=3).tolist() == selected


def test_contextual_diversity_is_finite_where_p_saturates() -> None:
    """DeepCore takes log p of p = 0: NaN, and argmax selected the first NaN again and again."""
    logits = np.array([[0, 0], [900, -900], [-900, 900], [1, 0], [901, -900]], np.float32)
    # By hand: from (1/2, 1/2), both ends are log-odds / 4 x 2 away, the last one most; then the other end.
    assert contextual_diversity(logits, 5, first=0).tolist() == [0, 4, 2, 3, 1]


# --- matching pursuit ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(2))
def test_three_vectors_and_their_weights_are_found_again(seed: int) -> None:
    """DeepCore's pursuit calls torch.lstsq, which is gone; CORDS' pads with random selected of weight 1."""
    vectors = normal(50, 40, seed=seed)
    truth = {4: 3.0, 17: 1.0, 31: 0.5}
    target = sum(weight * vectors[i] for i, weight in truth.items())
    selected, weights = matching_pursuit(vectors, None, target, 3, ridge=0)
    assert set(selected.tolist()) == set(truth)
    np.testing.assert_allclose(weights, [truth[i] for i in selected.tolist()], rtol=1e-4)
    more, weights = matching_pursuit(vectors, None, target, 10, ridge=0)
    assert more[:3].tolist() == selected.tolist()
    assert len(set(more.tolist())) == 10  # filled up, at no weight
    assert weights[3:].tolist() == [0] * 7


@pytest.mark.parametrize(("seed", "ridge"), [(0, 0.0), (1, 0.5)])
def test_with_room_for_all_it_is_nnls(seed: int, ridge: float) -> None:
    """scipy's NNLS of the same problem, ridge as further rows; the target is far outside of the cone."""
    vectors, target = normal(30, 12, seed=seed), normal(12, seed=seed + 9) * 10
    selected, weights = matching_pursuit(vectors, None, target, 30, ridge)
    stacked = np.vstack([vectors.T, np.sqrt(ridge) * np.eye(30)])
    expected, _ = nnls(stacked, np.concatenate([target, np.zeros(30)]))
    ours = np.zeros(30)
    ours[selected] = weights
    assert sorted(selected.tolist()) == list(range(30))
    np.testing.assert_allclose(ours, expected, atol=1e-4 * expected.max())


@pytest.mark.parametrize("factored", [False, True])
def test_weights_are_the_best_of_the_selected_at_every_budget(factored: bool) -> None:
    vectors = np.abs(normal(40, 10, seed=3)) + 1  # much alike, so that selected leave again
    target = vectors.sum(0) + normal(10, seed=4)

    def pursue(budget: int) -> tuple[np.ndarray, np.ndarray]:
        if factored:  # by 1: another way to the same
            return matching_pursuit(vectors, np.ones((40, 1), np.float32), target[:, None], budget, ridge=0.01)
        return matching_pursuit(vectors, None, target, budget, ridge=0.01)

    left_again = 0
    for budget in range(1, 12):
        selected, weights = pursue(budget)
        taken = selected[weights > 0]
        stacked = np.vstack([vectors[taken].T, 0.1 * np.eye(len(taken))])
        expected, _ = nnls(stacked, np.concatenate([target, np.zeros(len(taken))]))
        np.testing.assert_allclose(weights[weights > 0], expected, rtol=1e-3, atol=1e-3)
        before = pursue(budget - 1)[0] if budget > 1 else selected[:0]
        left_again += len(set(before.tolist()) - set(selected.tolist()))
        assert selected.tolist() == matching_pursuit(vectors, None, target, budget, ridge=0.01)[0].tolist()
    assert left_again  # or this tested less than it says


def test_few_dimensions_need_few_vectors_and_the_rest_weigh_nothing_by_falling_correlation() -> None:
    vectors = np.array([[1, 0], [0, 1], [-1, 0], [-1, -1], [0, -3]], np.float32)
    selected, weights = matching_pursuit(vectors, None, np.array([2.0, 1.0]), 4, ridge=0)
    assert selected.tolist() == [0, 1, 2, 3]  # nothing is left to correlate with: the lowest first
    assert weights.tolist() == [2, 1, 0, 0]
    selected, weights = matching_pursuit(vectors[[4, 2, 3, 1]], None, np.array([2.0, 1.0]), 4, ridge=0)
    assert selected.tolist() == [3, 0, 1, 2]  # (2, 0) is left, correlations 0, -2, -2
    assert weights.tolist() == [1, 0, 0, 0]


def test_nothing_points_there() -> None:
    selected, weights = matching_pursuit(np.array([[1.0], [2.0]], np.float32), None, np.array([-1.0]), 2, ridge=0.5)
    assert selected.tolist() == [0, 1]  # correlations -1, -2
    assert weights.tolist() == [0, 0]


def test_factors_stand_for_outer_products() -> None:
    vectors, factors = normal(40, 3), normal(40, 5, seed=1)
    target = normal(3, 5, seed=2) * 5
    outer = (vectors[:, :, None] * factors[:, None]).reshape(40, -1)
    selected, weights = matching_pursuit(vectors, factors, target, 8, ridge=0.1)
    same, expected = matching_pursuit(outer, None, target.ravel(), 8, ridge=0.1)
    assert selected.tolist() == same.tolist()
    np.testing.assert_allclose(weights, expected, rtol=1e-4)


def test_dependent_vectors_do_not_blow_up() -> None:
    vectors = np.repeat(normal(3, 6), 5, axis=0)  # each five times
    target = vectors.sum(0)
    selected, weights = matching_pursuit(vectors, None, target, 15, ridge=0)
    np.testing.assert_allclose(weights @ vectors[selected], target, rtol=1e-4)
    assert (weights >= 0).all()
    assert (weights > 0).sum() == 3


# --- GLISTER ---------------------------------------------------------------------------------------------------------


def glister_by_autograd(
    features: np.ndarray | None, layer: tuple[np.ndarray, np.ndarray], labels: np.ndarray, budget: int, lr: float
) -> tuple[list[int], list[torch.Tensor]]:
    """Steps a real last layer and differentiates the validation loss anew; also those gradients."""
    x = torch.zeros(len(labels), 1) if features is None else torch.from_numpy(features)
    weight, bias = (torch.from_numpy(part).clone().requires_grad_() for part in layer)
    y = torch.from_numpy(labels)
    train, theirs = slice(0, None, 2), slice(1, None, 2)
    both = [bias] if features is None else [weight, bias]

    def gradient(x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        loss = F.cross_entropy(x @ weight.T + bias, y)
        return torch.cat([g.flatten() for g in torch.autograd.grad(loss, both)])

    own = torch.stack([gradient(x[i : i + 1], y[i : i + 1]) for i in range(0, len(y), 2)])
    selected: list[int] = []
    gradients = []
    for _ in range(budget):
        gradients.append(gradient(x[theirs], y[theirs]))
        score = own @ gradients[-1]
        score[selected] = -torch.inf
        selected.append(int(score.argmax()))
        at = 0
        with torch.no_grad():
            for part in both:
                part -= lr * own[selected[-1]][at : at + part.numel()].view_as(part)
                at += part.numel()
    assert len(own) == len(y[train])
    return selected, gradients


@pytest.mark.parametrize("last_layer", [False, True])
def test_glister_takes_the_validation_gradient_again_after_each_selection(last_layer: bool) -> None:
    """DeepCore passes `upadate_state=`, swallowed by **kwargs: it takes the top by the first gradient."""
    h, labels = normal(80, 5), np.arange(80) // 2 % 3
    if last_layer:
        layer = normal(3, 5, seed=1), normal(3, seed=2)
        logits = h @ layer[0].T + layer[1]
        given = h
    else:  # with features of 0 the outputs are the biases: all of a class alike, so let outputs be one for all
        layer = np.zeros((3, 1), np.float32), normal(3, seed=2)
        logits = np.tile(layer[1], (80, 1))
        given = None
    expected, gradients = glister_by_autograd(given, layer, labels, 12, lr=0.5)
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    residual = (p - np.eye(3)[labels]).astype(np.float32)
    one = np.pad(h, ((0, 0), (0, 1)), constant_values=1)
    factors, theirs = (one[::2], one[1::2]) if last_layer else (None, None)
    selected = glister(residual[::2], factors, 12, 0.5, logits[1::2], labels[1::2], theirs)
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(gradients))
    assert len(set(selected.tolist())) == 12
    narrow = glister(residual[::2], factors, 12, 0.5, logits[1::2], labels[1::2].astype(np.int32), theirs)
    assert narrow.tolist() == selected.tolist()
    if last_layer:
        assert selected.tolist() == expected
    else:  # examples of a class are equal: their labels tell
        assert labels[::2][selected].tolist() == labels[::2][expected].tolist()
    at_once = glister(residual[::2], factors, 12, 1e-9, logits[1::2], labels[1::2], theirs)  # as if never updated
    assert labels[::2][at_once].tolist() != labels[::2][selected].tolist()


def test_glister_leaves_the_arrays_it_is_given_as_they_are() -> None:
    residual, logits = normal(6, 2), normal(6, 2, seed=1)
    kept = residual.copy(), logits.copy()
    assert sorted(glister(residual, None, 9, 0.1, logits, np.zeros(6, np.int64), None).tolist()) == list(range(6))
    np.testing.assert_array_equal(residual, kept[0])
    np.testing.assert_array_equal(logits, kept[1])
