"""Evidence in, rows and weights out, for every method; what each one takes as the distance or the score."""

import dataclasses
import itertools
from typing import Any, get_args

import numpy as np
import pydantic
import pytest

from latebloom.train.config import SCORED
from latebloom.train.evaluate import losses_of, softmax
from latebloom.train.selection import coreset
from latebloom.train.selection.budgets import in_proportion
from latebloom.train.selection.coreset import (
    Coreset,
    CoresetConfig,
    Evidence,
    Method,
    budgets,
    normalised,
    select_coreset,
    updated_moments,
)
from latebloom.train.selection.gradients import Moments

METHODS: tuple[Method, ...] = get_args(Method)
FACILITY: tuple[Method, ...] = ("craig", "dea", "adacore", "lcmat")
CHOICE = {"craig", "dea", "adacore", "gradmatch", "glister"}  # those with a choice of gradient
EACH = [(method, "logits") for method in METHODS] + [(method, "last_layer") for method in sorted(CHOICE)]
SIZES = (17, 9, 14)


def evidence(sizes: tuple[int, ...] = SIZES, seed: int = 0, **more: Any) -> Evidence:
    """Classes interleaved: a row within its class is not its row of the pool."""
    rng = np.random.default_rng(seed)
    labels = rng.permutation(np.repeat(np.arange(len(sizes)), sizes))
    n = len(labels)
    logits = rng.normal(0, 2, (n, len(sizes))).astype(np.float32)
    features = np.abs(rng.normal(size=(n, 4))).astype(np.float32)
    return Evidence(logits, labels, features, **({"forgotten": rng.integers(0, 5, n).astype(float)} | more))


def select(given: Evidence, method: Method, seed: int = 0, **settings: Any) -> Coreset:
    return select_coreset(given, CoresetConfig(method=method, **settings), seed)


def of_class(given: Evidence, found: Coreset, label: int) -> list[int]:
    return found.indices[given.labels[found.indices] == label].tolist()


# --- budgets ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sizes", "settings", "expected"),
    [
        ((10, 10, 10), {"fraction": 0.2}, [2, 2, 2]),
        ((10, 10, 10), {"fraction": 0.25}, [3, 3, 2]),  # 7.5 is 8; what does not divide goes to the lowest
        ((2, 30, 8), {"fraction": 0.5}, [2, 10, 8]),  # 20: 7 each, the 5 that class 0 cannot give to others, then 8
        ((2, 30, 8), {"fraction": 0.5, "budget": "proportional"}, [1, 15, 4]),
        ((50, 30, 20), {"per_class": 1, "budget": "proportional"}, [1, 1, 1]),  # 1.5, 0.9, 0.6
        ((90, 7, 3), {"fraction": 0.1, "budget": "proportional"}, [8, 1, 1]),  # 9, 0.7, 0.3: none goes without
        ((6, 0, 4), {"fraction": 0.5}, [3, 0, 2]),
        ((6, 0, 4), {"fraction": 0.5, "budget": "proportional"}, [3, 0, 2]),
        ((3, 9), {"per_class": 5}, [3, 7]),
        ((3, 9), {"per_class": 500}, [3, 9]),
        ((3, 9), {"per_class": 500, "budget": "proportional"}, [3, 9]),
        ((3, 9), {"fraction": 1.0}, [3, 9]),
        ((1, 9), {"fraction": 0.2}, [1, 1]),
        ((100, 100), {"fraction": 0.29}, [29, 29]),  # 0.29 x 200 is 57.99999999999999
    ],
)
def test_budgets_by_hand(sizes: tuple[int, ...], settings: dict[str, Any], expected: list[int]) -> None:
    """data-efficient-augmentation keeps ceil(B/C) for classes that are smaller, and its optimiser raises at B = n."""
    labels = np.repeat(np.arange(len(sizes)), sizes)
    found = budgets(labels, len(sizes), CoresetConfig(**settings))
    assert found.tolist() == expected
    assert found.dtype == np.int64


@pytest.mark.parametrize("budget", ["equal", "proportional", "none"])
def test_budgets_are_exact_in_total_and_within_classes(budget: Any) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        sizes = rng.integers(0, 30, rng.integers(1, 9))
        sizes[0] += 1
        fraction = float(rng.uniform(0.3, 1))
        config = CoresetConfig(method="random", fraction=fraction, budget=budget)
        asked = int(fraction * sizes.sum() + 0.5)
        if asked < (sizes > 0).sum():
            continue
        found = budgets(np.repeat(np.arange(len(sizes)), sizes), len(sizes), config)
        assert found.sum() == asked
        assert (found <= sizes).all()
        if budget != "none":
            assert (found[sizes > 0] > 0).all()
        if budget == "equal":  # nobody has two more than one who could give more
            assert found.max() - found[found < sizes].min(initial=1000) <= 1


def test_largest_remainders_do_not_depend_on_rounding() -> None:
    sizes = np.array([5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50])  # CIFAR-10, long tail
    assert in_proportion(sizes, 124).tolist() == [50, 30, 18, 11, 6, 4, 2, 1, 1, 1]
    assert in_proportion(sizes, 12406).tolist() == sizes.tolist()


@pytest.mark.parametrize(
    ("settings", "sizes", "message"),
    [
        ({"fraction": 0.01}, (10, 10), r"fraction 0.01 of 20 examples is 0; expected at least 2, one per class"),
        ({"fraction": 0.05}, (10, 10), "is 1; expected at least 2, one per class: give a fraction of 0.1 or more"),
        ({"fraction": 0.01, "budget": "none", "method": "random"}, (10, 10), "is none; give a fraction of 0.05"),
        (
            {"method": "craig", "budget": "none"},
            (10, 10),
            "budget is none, but craig selects class by class; .*, or one of random, max_loss",
        ),
        ({"method": "k_center", "budget": "none"}, (10, 10), "k_center selects class by class"),
        ({}, (), "there are no examples to select from"),
    ],
)
def test_budgets_that_cannot_be(settings: dict[str, Any], sizes: tuple[int, ...], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        budgets(np.repeat(np.arange(len(sizes)), sizes).astype(np.int64), 2, CoresetConfig(**settings))
    assert "\n" not in str(error.value)


def test_a_number_of_dimensions_is_whole() -> None:
    for k in (1, 1.0, 1.5, 2.5):  # 1 could mean one dimension, or all
        with pytest.raises(pydantic.ValidationError, match=rf"lcmat_k is {k:g}, expected a whole number of dimensions"):
            CoresetConfig(lcmat_k=k)
    assert [CoresetConfig(lcmat_k=k).lcmat_k for k in (0.99, 2, 1e9)] == [0.99, 2, 1e9]


# --- every method ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "gradient"), EACH)
def test_every_method_gives_rows_of_the_pool_class_after_class(method: Method, gradient: Any) -> None:
    """DeepCore returns data-set order; others return rows within the class as rows of the pool."""
    given = evidence()
    found = select(given, method, gradient=gradient, fraction=0.3)
    assert found.indices.dtype == np.int64
    assert found.weights.dtype == np.float32
    assert given.labels[found.indices].tolist() == [0] * 4 + [1] * 4 + [2] * 4
    assert len(set(found.indices.tolist())) == len(found.indices)
    assert (found.weights >= 0).all()
    again = select(given, method, gradient=gradient, fraction=0.3)
    np.testing.assert_array_equal(found.indices, again.indices)
    np.testing.assert_array_equal(found.weights, again.weights)
    odd = evidence((1, 0, 6, 4))  # a class of one, and one that is not there
    found = select(odd, method, gradient=gradient, fraction=0.5)
    assert np.bincount(odd.labels[found.indices], minlength=4).tolist() == [1, 0, 3, 2]
    assert sorted(select(odd, method, gradient=gradient, fraction=1.0).indices.tolist()) == list(range(11))


@pytest.mark.parametrize("method", [method for method in METHODS if method != "gradmatch"])
def test_a_smaller_budget_is_a_prefix_of_each_class(method: Method) -> None:
    """DeepCore forgets the order. Not gradmatch, which may drop a selected example."""
    given = evidence()
    for balanced in ("equal", "proportional", "none") if method in SCORED else ("equal", "proportional"):
        large = select(given, method, fraction=0.8, budget=balanced)
        for fraction in (0.1, 0.25, 0.5):
            small = select(given, method, fraction=fraction, budget=balanced)
            for label in range(3):
                mine = of_class(given, small, label)
                assert of_class(given, large, label)[: len(mine)] == mine


def test_weights_sum_to_the_class_size() -> None:
    """DeepCore's start at 1, so they sum to the class size plus the number of selected examples."""
    given = evidence()
    for method, fraction in itertools.product(FACILITY, (0.1, 0.4, 1.0)):
        found = select(given, method, fraction=fraction)
        for label, size in enumerate(SIZES):
            mine = found.weights[given.labels[found.indices] == label]
            assert mine.sum() == size
            assert (mine >= 1).all()


def test_methods_without_weights_say_1() -> None:
    for method in set(METHODS) - set(FACILITY) - {"gradmatch"}:
        assert set(select(evidence(), method, fraction=0.4).weights.tolist()) == {1.0}


@pytest.mark.parametrize(("method", "gradient"), [*EACH[:1], *EACH[8:]])  # one of the scores, all others
def test_equal_examples_are_selected_by_row_or_at_random_and_nothing_is_nan(method: Method, gradient: Any) -> None:
    n = 12
    labels = np.arange(n) % 2
    given = Evidence(np.full((n, 2), 3, np.float32), labels, np.ones((n, 3), np.float32), forgotten=np.zeros(n))
    found = select(given, method, gradient=gradient, fraction=0.5)
    assert np.isfinite(found.weights).all()
    assert found.weights.sum() > 0
    for label in range(2):
        mine = of_class(given, found, label)
        if method not in ("random", "k_center", "contextual_diversity"):
            assert mine == [label, label + 2, label + 4]
        else:
            assert mine[1:] == sorted(mine[1:]) or method == "random"


def test_saturated_outputs_are_no_trouble() -> None:
    """LCMat's AdaCore divides by a Hessian of 0 and takes NaN for equal; DeepCore's KL takes the log of 0."""
    given = evidence()
    sure = dataclasses.replace(given, logits=given.logits * 500)
    assert (softmax(sure.logits) == 0).any()
    for method, gradient in EACH:
        found = select(sure, method, gradient=gradient, fraction=0.5)
        assert np.isfinite(found.weights).all(), method
        assert len(set(found.indices.tolist())) == 20, method


def test_perfect_outputs_leave_gradmatch_nothing_to_match_and_equal_weights() -> None:
    labels = np.arange(8) % 2
    given = Evidence((1000 * np.eye(2)[labels]).astype(np.float32), labels, np.ones((8, 1), np.float32))
    found = select(given, "gradmatch", fraction=0.5)
    assert found.weights.tolist() == [2, 2, 2, 2]
    assert normalised(found.weights).tolist() == [1, 1, 1, 1]


def test_threads_and_a_device_do_not_change_what_facility_location_selects() -> None:
    given = evidence((30, 20, 25))
    for method in FACILITY:
        config = CoresetConfig(method=method, fraction=0.3)
        one = select_coreset(given, config, 0, threads=1)
        for other in (select_coreset(given, config, 0, threads=2), select_coreset(given, config, 0, device="cpu")):
            np.testing.assert_array_equal(one.indices, other.indices)
            np.testing.assert_array_equal(one.weights, other.weights)


# --- scores ----------------------------------------------------------------------------------------------------------


def test_random_is_uniform_and_by_seed() -> None:
    given = evidence()
    counts = np.zeros(sum(SIZES))
    for seed in range(150):
        found = select(given, "random", seed, fraction=0.3)
        counts[found.indices] += 1
    expected = 150 * np.array([4 / 17, 4 / 9, 4 / 14])[given.labels]
    assert (np.abs(counts - expected) < 5 * np.sqrt(expected)).all()
    free = select(given, "random", fraction=0.3, budget="none")
    assert len(free.indices) == 12
    assert np.bincount(given.labels[free.indices]).tolist() != [4, 4, 4]


def test_max_loss_is_the_highest_by_cross_entropy_of_all_or_of_each_class() -> None:
    """data-efficient-augmentation's crashes on an undefined name; it is not class-balanced."""
    given = evidence()
    losses = losses_of(given.logits, given.labels)
    free = select(given, "max_loss", fraction=0.3, budget="none")
    assert set(free.indices.tolist()) == set(np.argsort(-losses)[:12].tolist())
    balanced = select(given, "max_loss", fraction=0.3)
    for label in range(3):
        rows = np.flatnonzero(given.labels == label)
        assert of_class(given, balanced, label) == rows[np.argsort(-losses[rows])][:4].tolist()


@pytest.mark.parametrize("method", ["least_confidence", "entropy", "margin"])
@pytest.mark.parametrize("budget", ["equal", "none"])
def test_the_least_certain_are_selected_with_and_without_class_budgets(method: Method, budget: Any) -> None:
    """Without class budgets DeepCore's sign is wrong: it takes the most certain."""
    logits = np.array([[9, 0], [0.1, 0], [8, 0], [0, 0.2], [0, 7], [0, 6]], np.float32)
    given = Evidence(logits, np.array([0, 0, 0, 1, 1, 1]), np.zeros((6, 1), np.float32))
    assert select(given, method, fraction=1 / 3, budget=budget).indices.tolist() == [1, 3]


def test_what_was_never_learned_is_selected_first() -> None:
    """DeepCore gives it 0 events, and takes it last."""
    given = evidence((6,), forgotten=np.array([3, 0, np.inf, 1, 7, np.inf]))
    assert select(given, "forgetting", per_class=4).indices.tolist() == [2, 5, 4, 0]


@pytest.mark.parametrize("method", ["el2n", "grand"])
def test_further_models_count(method: Method) -> None:
    first, second = evidence(), evidence(seed=1)
    both = dataclasses.replace(first, ensemble=((second.logits, second.features),) * 50)
    other = dataclasses.replace(first, logits=second.logits, features=second.features)
    assert select(both, method).indices.tolist() == select(other, method).indices.tolist()
    assert select(both, method).indices.tolist() != select(first, method).indices.tolist()


# --- facility location -----------------------------------------------------------------------------------------------


def medoid(distance: np.ndarray) -> int:
    return int(distance.sum(1).argmin())


def far(points: np.ndarray) -> np.ndarray:
    return np.linalg.norm(points[:, None].astype(np.float64) - points[None], axis=2)


def outer(residual: np.ndarray, features: np.ndarray) -> np.ndarray:
    """Last layer's gradients, written out."""
    one = np.pad(features, ((0, 0), (0, 1)), constant_values=1)
    return (residual[:, :, None] * one[:, None]).reshape(len(residual), -1)


def test_craig_goes_by_p_minus_y_with_softmax_applied_once() -> None:
    """LCMat's fork of DeepCore gives softmax to a cross-entropy that takes it again."""
    twice = 0
    for seed in range(10):
        given = evidence((15, 15, 15), seed)
        found = select(given, "craig", per_class=1)
        for label in range(3):
            rows = np.flatnonzero(given.labels == label)
            p = softmax(given.logits[rows])
            assert of_class(given, found, label) == [rows[medoid(far(p - np.eye(3)[label]))]]
            twice += rows[medoid(far(softmax(p) - np.eye(3)[label]))] not in found.indices
    assert twice


def test_the_last_layer_can_be_the_gradient() -> None:
    for method in ("craig", "dea"):
        given = evidence()
        found = select(given, method, gradient="last_layer", per_class=1)
        for label in range(3):
            rows = np.flatnonzero(given.labels == label)
            gradients = outer(softmax(given.logits[rows]) - np.eye(3)[label], given.features[rows])
            assert of_class(given, found, label) == [rows[medoid(far(gradients))]]


def test_deas_similarity_is_the_papers_or_its_codes() -> None:
    """Far apart, exp(-d / width) counts copies alone: three equal examples beat the one in the middle."""
    p = np.concatenate([[0.02] * 3, np.linspace(0.5, 0.95, 4)])
    logits = np.stack([np.log(p), np.log(1 - p)], 1).astype(np.float32)
    given = Evidence(logits, np.zeros(7, np.int64), np.zeros((7, 1), np.float32))
    d = far(np.stack([p - 1, 1 - p], 1))
    for similarity, expected in (("distance", -d), ("exp", np.exp(-d / 2))):
        found = select(given, "dea", dea_similarity=similarity, fraction=1 / 7, budget="proportional")
        assert found.indices.tolist() == [int(expected.sum(1).argmax())]
    assert (-d).sum(1).argmax() == 3
    far_apart = dataclasses.replace(given, features=np.full((7, 1), 40, np.float32))
    pairs: tuple[tuple[Method, int], ...] = (("dea", 0), ("craig", 3))
    for method, row in pairs:
        found = select(far_apart, method, dea_similarity="exp", gradient="last_layer", per_class=1)
        assert found.indices.tolist() == [row]


def test_lcmat_without_curvature_is_craig_of_the_last_layer() -> None:
    given = evidence()
    one, two = select(given, "lcmat", lcmat_rho=0), select(given, "craig", gradient="last_layer")
    np.testing.assert_array_equal(one.indices, two.indices)
    np.testing.assert_array_equal(one.weights, two.weights)


@pytest.mark.parametrize(("k", "count"), [(1000, 15), (0.9999, 15), (4, 4), (0.2, 3)])
@pytest.mark.parametrize("rho", [0.5, 20])
def test_lcmat_equals_equation_10(k: float, count: int, rho: float) -> None:
    """The weight of curvature is rho / 2: LCMat's code takes its eps without the half."""
    differ = 0
    for seed in range(6):
        given = evidence((12, 10, 8), seed)
        found = select(given, "lcmat", lcmat_rho=rho, lcmat_k=k, per_class=1)
        for label in range(3):
            rows = np.flatnonzero(given.labels == label)
            p, features = softmax(given.logits[rows]), given.features[rows]
            hessian = outer(p * (1 - p), features**2)  # (n, 3 x 5)
            varying = hessian[:, np.argsort(-hessian.var(0))[:count]]
            curved = np.abs(varying[:, None] - varying[None]).sum(2)
            flat = far(outer(p - np.eye(3)[label], features))
            assert of_class(given, found, label) == [rows[medoid(flat + rho / 2 * curved)]]
            differ += medoid(flat + rho / 2 * curved) != medoid(flat + rho * curved)
    assert differ


# --- AdaCore ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["logits", "last_layer"])
@pytest.mark.parametrize("curvature", ["example", "pool"])
def test_adacore_is_the_medoid_of_gradients_over_damped_curvature(gradient: Any, curvature: Any) -> None:
    given = evidence()
    p = softmax(given.logits)
    hessian, residual = p * (1 - p), p - np.eye(3)[given.labels]
    if gradient == "last_layer":
        hessian, residual = outer(hessian, given.features**2), outer(residual, given.features)
    if curvature == "pool":
        hessian = np.tile(hessian.mean(0), (40, 1))
    found = select(given, "adacore", gradient=gradient, adacore_curvature=curvature, adacore_damping=0.05, per_class=1)
    for label in range(3):
        rows = np.flatnonzero(given.labels == label)
        expected = medoid(far(residual[rows] / (hessian[rows] + 0.05)))
        assert of_class(given, found, label) == [rows[expected]]


@pytest.mark.parametrize("gradient", ["logits", "last_layer"])
@pytest.mark.parametrize("curvature", ["example", "pool"])
def test_adacores_averages_of_one_forward_pass_are_that_one_and_of_two_are_between(
    gradient: Any, curvature: Any
) -> None:
    first, second = evidence(), evidence()
    second = dataclasses.replace(second, logits=evidence(seed=5).logits)
    config = CoresetConfig(
        method="adacore", gradient=gradient, adacore_curvature=curvature, fraction=0.3, adacore_gradient_decay=0.5
    )
    moments = updated_moments(first, config)
    np.testing.assert_array_equal(
        select_coreset(dataclasses.replace(first, moments=moments), config, 0).indices,
        select_coreset(first, config, 0).indices,
    )
    assert updated_moments(second, config, moments) is moments
    rows = np.arange(40)
    if gradient == "logits" and curvature == "example":
        one, two = (softmax(e.logits) - np.eye(3)[e.labels] for e in (first, second))
        np.testing.assert_allclose(moments.gradients(rows), (0.25 * one + 0.5 * two) / 0.75, atol=1e-6)
        one, two = (softmax(e.logits) * (1 - softmax(e.logits)) for e in (first, second))
        b2 = 0.999
        rms = np.sqrt((1 - b2) * (b2 * one**2 + two**2) / (1 - b2**2))
        np.testing.assert_allclose(moments.curvatures(rows), rms, rtol=1e-3, atol=1e-6)
    found = select_coreset(dataclasses.replace(second, moments=moments), config, 0).indices
    assert found.tolist() != select_coreset(first, config, 0).indices.tolist()
    assert found.tolist() != select_coreset(second, config, 0).indices.tolist()


def test_adacores_last_layer_gradients_that_would_not_fit_are_refused_before_they_are_made(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    config = CoresetConfig(method="adacore", gradient="last_layer", fraction=0.3)
    given = evidence()
    alone = 4 * 17 * 3 * (4 + 1)  # the largest class has 17 examples
    both = alone + 2 * 4 * 40 * 3 * (4 + 1)
    monkeypatch.setattr(coreset, "_MOST_BYTES", both)
    averaged = dataclasses.replace(given, moments=updated_moments(given, config))
    select_coreset(averaged, config, 0)
    monkeypatch.setattr(coreset, "_MOST_BYTES", both - 1)
    for refused in (lambda: updated_moments(given, config), lambda: select_coreset(averaged, config, 0)):
        with pytest.raises(ValueError, match="give gradient=logits"):
            refused()
    monkeypatch.setattr(coreset, "_MOST_BYTES", alone)
    select_coreset(given, config, 0)
    monkeypatch.setattr(coreset, "_MOST_BYTES", alone - 1)
    with pytest.raises(ValueError, match="give gradient=logits"):
        select_coreset(given, config, 0)
    select_coreset(given, config.model_copy(update={"gradient": "logits"}), 0)


def test_adacore_names_the_gib_it_would_take() -> None:
    """2,200 examples of one class x 1,000 x 2,049 numbers of 4 bytes."""
    zeros = np.zeros((2200, 1), np.float32)
    labels = np.zeros(2200, np.int64)
    wide = Evidence(np.broadcast_to(zeros, (2200, 1000)), labels, np.broadcast_to(zeros, (2200, 2048)))
    with pytest.raises(ValueError, match=r"write out 16\.8 GiB of the last layer's gradients, more than 16 GiB"):
        select(wide, "adacore", gradient="last_layer", fraction=0.01)


# --- gradient matching -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gradient", ["logits", "last_layer"])
def test_gradmatch_meets_the_gradient_of_the_class_better_than_chance(gradient: Any) -> None:
    given = evidence((60, 60))
    found = select(given, "gradmatch", gradient=gradient, fraction=0.2, gradmatch_ridge=0.01)
    at_random = np.random.default_rng(0)
    p = softmax(given.logits) - np.eye(2)[given.labels]
    gradients = p if gradient == "logits" else outer(p, given.features)
    for label in range(2):
        rows, mine = np.flatnonzero(given.labels == label), given.labels[found.indices] == label
        total = gradients[rows].sum(0)
        error = np.linalg.norm(found.weights[mine] @ gradients[found.indices[mine]] - total)
        draws = [gradients[at_random.choice(rows, 12, replace=False)].sum(0) * 5 for _ in range(50)]
        assert error < min(np.linalg.norm(draw - total) for draw in draws)
        assert error < 0.05 * np.linalg.norm(total)


# --- weights ---------------------------------------------------------------------------------------------------------


def test_normalised_weights_have_mean_1() -> None:
    found = normalised(np.array([1, 2, 5], np.float32))
    np.testing.assert_allclose(found, [0.375, 0.75, 1.875])
    assert found.dtype == np.float32
    for bad in (np.zeros(3), np.array([]), np.array([np.nan, 1])):
        with pytest.raises(ValueError, match="expected a number above 0"):
            normalised(bad)


# --- bad input -------------------------------------------------------------------------------------------------------

NAN = np.float32(np.nan)


def spoilt(name: str, at: Any, value: Any) -> Evidence:
    given = evidence()
    array = getattr(given, name).copy()
    array[at] = value
    return dataclasses.replace(given, **{name: array})


@pytest.mark.parametrize(
    ("given", "settings", "message"),
    [
        (
            spoilt("logits", (slice(0, 2), 1), NAN),
            {},
            "2 rows of the logits of the pool are not finite: training diverged",
        ),
        (spoilt("features", (3, 0), np.inf), {}, "1 rows of the features of the pool are not finite"),
        (spoilt("labels", 0, 3), {}, r"labels of the pool lie in 0..3, expected 0..2"),
        (spoilt("labels", 0, -1), {}, r"labels of the pool lie in -1..2, expected 0..2"),
        (evidence(forgotten=None), {"method": "forgetting"}, "Evidence.forgotten is None, but forgetting needs"),
        (
            evidence(forgotten=np.zeros(3)),
            {"method": "forgetting"},
            r"Evidence.forgotten is \(3,\), expected float \(40,\)",
        ),
        (evidence(forgotten=np.full(40, NAN)), {"method": "forgetting"}, "without NaN"),
        (evidence(moments=Moments(7, 3)), {"method": "adacore"}, "moments are of 7 examples, the pool has 40"),
        (evidence(moments=Moments(40, 3)), {"method": "adacore"}, "never been updated"),
        (
            evidence(ensemble=((np.zeros((2, 3)), np.zeros((2, 4))),)),
            {"method": "grand"},
            r"of the pool by a further model are \(2, 3\), \(40,\) and \(2, 4\)",
        ),
        (
            Evidence(np.zeros((0, 3)), np.zeros(0, np.int64), np.zeros((0, 4))),
            {},
            "there are no examples to select from",
        ),
        (Evidence(np.zeros((4, 3)), np.zeros(3, np.int64), np.zeros((4, 4))), {}, r"are \(4, 3\), \(3,\) and \(4, 4\)"),
    ],
)
def test_evidence_that_cannot_be(given: Evidence, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message) as error:
        select(given, **({"method": "craig"} | settings))
    assert "\n" not in str(error.value)
