import math
import warnings
from collections.abc import Sequence
from random import Random
from typing import Literal

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from latebloom.train.evaluate import losses_of, softmax
from latebloom.train.selection.slow import Method, jaccard, mean_outputs, select_slow, separating_epoch

Space = Literal["softmax", "logits"]
METHODS: tuple[Method, ...] = ("cluster", "high_loss", "misclassified", "misclassified_matched", "random", "all")


def margins(*values: float) -> np.ndarray:
    """Logits of two classes in which class 0 leads by so much: probability 1 / (1 + e^-m), loss ln(1 + e^-m)."""
    return np.array([[value, 0] for value in values], np.float64)


def noise(n: int = 60, classes: int = 3, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits without ties, which the labels have little to do with; a third of the labels are right."""
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, (n, classes)).astype(np.float32), np.arange(n) % classes


# --- cluster ---------------------------------------------------------------------------------------------------------


def test_of_two_clear_blobs_the_one_with_the_higher_loss_is_slow() -> None:
    # Class 0: rows 0, 2, 5 sure and right, rows 1, 4 unsure. Class 1 (label 1, so a low margin is right): row 3 slow.
    logits = margins(5, 0.5, 5.1, 4, 0.6, 4.9, -5, -5.2)
    labels = np.array([0, 0, 0, 1, 0, 0, 1, 1])
    found = select_slow(logits, labels, "cluster", 0)
    assert found.indices.tolist() == [1, 3, 4]
    assert found.indices.dtype == np.int64
    assert found.cluster.tolist() == [0, 1, 0, 1, 1, 0, 0, 0]
    loss = [math.log(1 + math.exp(-m)) for m in (5, 0.5, 5.1, -4, 0.6, 4.9, 5, 5.2)]
    np.testing.assert_allclose(
        found.mean_loss,
        [[(loss[0] + loss[2] + loss[5]) / 3, (loss[1] + loss[4]) / 2], [(loss[6] + loss[7]) / 2, loss[3]]],
    )


def test_the_slow_cluster_may_be_the_larger_one() -> None:
    # Whatever 2-means calls slow: no size is forced.
    found = select_slow(margins(6, -1, -1.1, -0.9, -1.2), np.zeros(5, np.int64), "cluster", 0)
    assert found.indices.tolist() == [1, 2, 3, 4]


def test_the_mean_loss_decides_not_the_largest_loss() -> None:
    # Rows 0 to 2 hesitate between classes 0 and 1, with losses ln(1 + e^(-2, -2, 2)) = 0.13, 0.13, 2.13: mean 0.79.
    # Rows 3 and 4 hesitate between classes 0 and 2, with losses ln(1 + e^0.5) = 0.97: the higher mean.
    logits = np.array([[22, 20, 0], [22, 20, 0], [18, 20, 0], [20, 0, 20.5], [20, 0, 20.5]])
    found = select_slow(logits, np.zeros(5, np.int64), "cluster", 0, space="logits")
    assert found.indices.tolist() == [3, 4]
    np.testing.assert_allclose(found.mean_loss[0], [0.7936, 0.9741], atol=1e-4)


def test_classes_are_split_on_their_own() -> None:
    # Every row of class 1 is worse than every row of class 0, and still one half of each is slow.
    logits = np.array([[9, 0], [8, 0], [2, 0], [3, 0], [-1, 0], [-0.9, 0], [-0.1, 0], [0, 0]])
    labels = np.array([0, 0, 0, 0, 1, 1, 1, 1])
    found = select_slow(logits, labels, "cluster", 0, space="logits")
    assert found.indices.tolist() == [2, 3, 6, 7]


def test_softmax_and_logits_can_choose_differently() -> None:
    # Margins 0, 3, 6, 20 are p = .5, .953, .998, 1: probabilities part 0 from the rest, logits 20 from the rest.
    logits, labels = margins(0, 3, 6, 20), np.zeros(4, np.int64)
    assert select_slow(logits, labels, "cluster", 0).indices.tolist() == [0]
    assert select_slow(logits, labels, "cluster", 0, space="softmax").indices.tolist() == [0]
    assert select_slow(logits, labels, "cluster", 0, space="logits").indices.tolist() == [0, 1, 2]


def test_the_split_is_the_best_of_all_splits() -> None:
    # 2-means by brute force on one class of nine: the least sum of squares to the two means.
    logits = np.random.default_rng(3).normal(0, 3, (9, 3))

    def cost(slow: np.ndarray) -> float:
        return sum(((half - half.mean(0)) ** 2).sum() for half in (logits[slow], logits[~slow]))

    splits = [np.array([bool(code >> bit & 1) for bit in range(9)]) for code in range(1, 2**9 - 1)]
    best = min(splits, key=cost)
    found = select_slow(logits, np.zeros(9, np.int64), "cluster", 0, space="logits").cluster.astype(bool)
    assert np.array_equal(found, best) or np.array_equal(found, ~best)


def test_a_constant_added_to_a_row_of_logits_changes_nothing() -> None:
    logits, labels = noise()
    shifted = logits.astype(np.float64) + np.arange(60)[:, None]
    for method in METHODS:
        first, second = select_slow(logits, labels, method, 0), select_slow(shifted, labels, method, 0)
        np.testing.assert_array_equal(first.indices, second.indices)


# --- the order of the rows -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "space"), [("cluster", "softmax"), ("misclassified", "logits")])
def test_rows_in_another_order_give_the_same_choice(method: Method, space: Space) -> None:
    logits, labels = noise(90)
    expected = select_slow(logits, labels, method, 0, space=space)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(90)
        found = select_slow(logits[order], labels[order], method, 0, space=space)
        np.testing.assert_array_equal(np.sort(order[found.indices]), expected.indices)
        np.testing.assert_array_equal(found.cluster, expected.cluster[order])
        np.testing.assert_array_equal(found.mean_loss, expected.mean_loss)


@settings(max_examples=15, deadline=None)
@given(
    rows=st.lists(st.tuples(st.integers(0, 2), *[st.integers(-4, 4)] * 3), min_size=1, max_size=14),
    scale=st.sampled_from([1, 0.7, 0.1]),
    space=st.sampled_from(["softmax", "logits"]),
    shuffler=st.randoms(use_true_random=False),
)
def test_clusters_do_not_depend_on_the_order_even_with_ties(
    rows: list[tuple[int, int, int, int]], scale: float, space: Space, shuffler: Random
) -> None:
    """Small integers make equal rows and equal losses, where rounding could decide."""
    labels = np.array([row[0] for row in rows])
    logits = scale * np.array([row[1:] for row in rows], np.float64)
    order = np.array(shuffler.sample(range(len(rows)), len(rows)))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # classes with one example or equal outputs
        first = select_slow(logits, labels, "cluster", 0, space=space)
        second = select_slow(logits[order], labels[order], "cluster", 0, space=space)
    np.testing.assert_array_equal(second.cluster, first.cluster[order])
    np.testing.assert_array_equal(second.mean_loss, first.mean_loss)


def test_equal_mean_losses_are_not_decided_by_rounding() -> None:
    # Two clusters with the same three losses: 0.1 + 0.2 + 0.3 and 0.3 + 0.2 + 0.1 differ in floating point.
    spread = np.array([1, 2, 3]) / 7
    left = np.stack([np.zeros(3), spread, spread[[1, 2, 0]] + 9], 1)
    logits = np.concatenate([left, left[:, [0, 2, 1]]])
    labels = np.zeros(6, np.int64)
    expected = select_slow(logits, labels, "cluster", 0, space="logits").cluster
    assert sorted(expected) == [0, 0, 0, 1, 1, 1]
    for seed in range(6):
        order = np.random.default_rng(seed).permutation(6)
        found = select_slow(logits[order], labels, "cluster", 0, space="logits").cluster
        np.testing.assert_array_equal(found, expected[order])


# --- the baselines ---------------------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(seed=st.integers(0, 10_000), n=st.integers(6, 60), classes=st.integers(2, 4))
def test_what_holds_of_every_selection(seed: int, n: int, classes: int) -> None:
    logits, labels = noise(n, classes, seed)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # a class with one example
        found = {method: select_slow(logits, labels, method, seed) for method in METHODS}
    losses = losses_of(logits, labels)
    cluster = found["cluster"]
    np.testing.assert_array_equal(cluster.indices, np.flatnonzero(cluster.cluster))
    sizes = np.bincount(labels[cluster.indices], minlength=classes)
    for label in range(classes):
        mine = labels == label
        if mine.sum() > 1:
            assert 0 < sizes[label] < mine.sum()  # two halves, neither empty
            slow = losses[mine & (cluster.cluster == 1)].mean()
            fast = losses[mine & (cluster.cluster == 0)].mean()
            assert slow >= fast
            np.testing.assert_allclose(cluster.mean_loss[label], [fast, slow])
    for method, selection in found.items():
        assert (np.diff(selection.indices) > 0).all()  # ascending, none twice
        np.testing.assert_array_equal(selection.cluster, cluster.cluster)  # whatever the method
        if method not in ("all", "misclassified"):
            np.testing.assert_array_equal(np.bincount(labels[selection.indices], minlength=classes), sizes)
    assert found["all"].indices.tolist() == list(range(n))
    assert found["misclassified"].indices.tolist() == np.flatnonzero(logits.argmax(1) != labels).tolist()
    for label in range(classes):
        mine = np.flatnonzero(labels == label)
        largest = mine[np.argsort(-losses[mine])][: sizes[label]]
        assert set(found["high_loss"].indices) & set(mine) == set(largest)


def ten_wrong_and_ten_right_with_higher_loss() -> tuple[np.ndarray, np.ndarray]:
    """25 of one class: 2-means calls rows 20 to 24 slow, which lean to class 0; a budget of five.

    Rows 0 to 9 are wrong with loss ln 2 = 0.71 or a little more; rows 10 to 24 are right, rows 20 to 24 with ln 3.
    """
    wrong = [[0.49 - row / 1e4, 0.51 + row / 1e4, 1e-9] for row in range(10)]
    right = [[0.5001 + row / 1e4, 0.4999 - row / 1e4, 1e-9] for row in range(10)]
    slow = [[0.34 + row / 1e4, 0.33, 0.33 - row / 1e4] for row in range(5)]
    return np.log(np.array(wrong + right + slow)), np.zeros(25, np.int64)


def test_misclassified_takes_all_that_is_wrong_and_nothing_else() -> None:
    logits, labels = ten_wrong_and_ten_right_with_higher_loss()
    assert select_slow(logits, labels, "cluster", 0).indices.tolist() == [20, 21, 22, 23, 24]
    assert select_slow(logits, labels, "high_loss", 0).indices.tolist() == [20, 21, 22, 23, 24]
    assert select_slow(logits, labels, "misclassified", 0).indices.tolist() == list(range(10))


def test_misclassified_matched_takes_any_of_the_wrong_ones_not_those_of_higher_loss() -> None:
    logits, labels = ten_wrong_and_ten_right_with_higher_loss()
    draws = [select_slow(logits, labels, "misclassified_matched", seed).indices.tolist() for seed in range(20)]
    assert {len(draw) for draw in draws} == {5}
    assert {row for draw in draws for row in draw} == set(range(10))  # each of the wrong ones sometimes, no other
    assert select_slow(logits, labels, "misclassified_matched", 3).indices.tolist() == draws[3]


def test_misclassified_matched_is_filled_at_random_where_too_few_are_wrong() -> None:
    # Slow half: rows 2 to 4, of which row 4 alone is wrong; the other two are any of the right ones, not the highest.
    logits, labels = margins(6, 5, 0.3, 0.2, -0.1), np.zeros(5, np.int64)
    draws = [select_slow(logits, labels, "misclassified_matched", seed).indices.tolist() for seed in range(20)]
    assert {len(draw) for draw in draws} == {3}
    assert all(4 in draw for draw in draws)
    assert {row for draw in draws for row in draw} == set(range(5))


def test_what_several_models_say_together_by_hand() -> None:
    # Probabilities 0.9 and 0.3 of class 0: mean 0.6. Log-odds ln 9 and ln 3/7: their mean is that of p = 0.66.
    both = np.log([[[0.9, 0.1]], [[0.3, 0.7]]])
    np.testing.assert_allclose(softmax(mean_outputs(both)), [[0.6, 0.4]])
    np.testing.assert_allclose(softmax(mean_outputs(both, "logits")), [[0.6626, 0.3374]], atol=1e-4)
    sure = np.array([[2000.0, 0]])  # whose other probability is 0 in floating point
    assert np.isfinite(mean_outputs([sure, sure])).all()


def test_random_draws_by_its_seed_and_every_example_sometimes() -> None:
    logits, labels = margins(5, 5.1, 5.2, -1, -1.1, 5.3), np.zeros(6, np.int64)
    draws = [select_slow(logits, labels, "random", seed).indices.tolist() for seed in range(15)]
    assert {len(draw) for draw in draws} == {2}
    assert {row for draw in draws for row in draw} == set(range(6))
    assert select_slow(logits, labels, "random", 3).indices.tolist() == draws[3]


def test_random_does_not_depend_on_the_losses() -> None:
    # 500 of 1000 at random: 250 of the slow half expected, standard deviation 11.
    margin = np.where(np.arange(1000) % 2, -2, 5) + np.arange(1000) / 1e4
    found = select_slow(margins(*margin), np.zeros(1000, np.int64), "random", 0)
    assert len(found.indices) == 500
    assert 200 < (found.indices % 2).sum() < 300


def global_state() -> str:
    return repr(np.random.get_state(legacy=False))  # noqa: NPY002


def test_no_global_random_state_is_read_or_touched() -> None:
    logits, labels = noise()
    before = global_state()
    first = [select_slow(logits, labels, method, 0).indices.tolist() for method in METHODS]
    assert global_state() == before
    assert [select_slow(logits, labels, method, 0).indices.tolist() for method in METHODS] == first


# --- classes without two halves, and bad input -----------------------------------------------------------------------

# Class 0 has two clear halves, class 1 one example, class 2 nobody, class 3 three equal outputs.
ODD_LOGITS = np.array(
    [[5, 0, 0, 0], [0, 1, 0, 0], [1, 0, 0, 2], [5.1, 0, 0, 0], [1, 0, 0, 2], [0, 0, 0, 0], [1, 0, 0, 2]]
)
ODD_LABELS = np.array([0, 1, 3, 0, 3, 0, 3])


def test_a_class_without_two_halves_gives_nothing_and_a_warning_names_it() -> None:
    for method in ("cluster", "high_loss", "misclassified_matched", "random"):
        with pytest.warns(UserWarning, match=r"no slow half in class 1, 3: .*nothing of it is augmented"):
            found = select_slow(ODD_LOGITS, ODD_LABELS, method, 0)
        assert len(found.indices) == 1
        assert ODD_LABELS[found.indices].tolist() == [0]
        assert found.cluster.tolist() == [0, 0, 0, 0, 0, 1, 0]  # row 5 is the slow half of class 0


def test_mean_losses_are_nan_where_there_is_nobody() -> None:
    with pytest.warns(UserWarning, match="no slow half"):
        found = select_slow(ODD_LOGITS, ODD_LABELS, "cluster", 0).mean_loss
    losses = losses_of(ODD_LOGITS, ODD_LABELS)
    nan = math.nan
    expected = [[losses[[0, 3]].mean(), losses[5]], [losses[1], nan], [nan, nan], [losses[2], nan]]
    np.testing.assert_allclose(found, expected)


def test_all_takes_everything_and_has_nothing_to_warn_of() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = select_slow(ODD_LOGITS, ODD_LABELS, "all", 0)
        assert len(select_slow(ODD_LOGITS, ODD_LABELS, "misclassified", 0).indices) == 0  # none of these is wrong
    assert found.indices.tolist() == list(range(7))


def test_the_warning_points_at_the_caller() -> None:
    with pytest.warns(UserWarning, match="no slow half in class 0") as caught:
        select_slow(margins(1), np.zeros(1, np.int64), "cluster", 0)
    assert caught[0].filename == __file__


def test_nothing_anywhere_is_an_empty_selection() -> None:
    with pytest.warns(UserWarning, match="no slow half in class 0, 1"):
        found = select_slow(margins(1, 2), np.array([0, 1]), "cluster", 0)
    assert found.indices.shape == (0,)
    assert found.indices.dtype == np.int64


def test_logits_that_are_not_finite_are_refused_and_counted() -> None:
    logits, labels = noise()
    logits[[3, 3, 8], [0, 1, 2]] = np.nan, 0, -np.inf
    with pytest.raises(ValueError, match="2 rows of the logits are not finite"):
        select_slow(logits, labels, "cluster", 0)


@pytest.mark.parametrize(
    ("logits", "labels", "message"),
    [
        (
            np.zeros((3, 2)),
            np.zeros(2, np.int64),
            r"logits are \(3, 2\) and labels \(2,\), expected \(N, C\) and \(N,\)",
        ),
        (np.zeros((0, 2)), np.zeros(0, np.int64), r"expected \(N, C\) and \(N,\)"),
        (np.zeros((2, 2)), np.array([0, 2]), r"labels lie in 0\.\.2, expected 0\.\.1"),
    ],
)
def test_logits_and_labels_that_do_not_fit_are_refused(logits: np.ndarray, labels: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        select_slow(logits, labels, "cluster", 0)


# --- the separating epoch --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("errors", "epoch"),
    [
        # Smoothed .9 .37 .1 .1 .1 under the chord .9 .7 .5 .3 .1: .33, .4 and .2 below it.
        ([0.9, 0.1, 0.1, 0.1, 0.1], 3),
        # A steady fall to epoch 4, then flat: the smoothed elbow is 4.
        ([0.8, 0.6, 0.4, 0.2, 0.2, 0.2, 0.2, 0.2], 4),
        # 1 / epoch: epochs 4 and 5 lie 0.6 below the chord (.85 - .25, .8 - .2). Smoothing lifts the steeper one more.
        ([1 / e for e in range(1, 21)], 5),
        # Flat first, then falling: never below its chord.
        ([0.9, 0.9, 0.9, 0.5, 0.1], 5),
        # A straight line, its own chord.
        ([0.5, 0.4, 0.3, 0.2, 0.1], 5),
        # Rising: never below its chord.
        ([0.1, 0.4, 0.5, 0.55, 0.56], 5),
        # Constant.
        ([0.3, 0.3, 0.3, 0.3], 4),
        # Too short for a knee.
        ([0.9, 0.1], 2),
        ([], 1),
    ],
)
def test_the_separating_epoch_is_the_knee_of_the_error(errors: Sequence[float], epoch: int) -> None:
    assert separating_epoch(errors) == epoch


def test_a_bump_of_one_epoch_is_smoothed_away() -> None:
    falling = [0.9, 0.5, 0.3, 0.25, 0.24, 0.23, 0.22, 0.21, 0.2]
    bumpy = list(falling)
    bumpy[6] = 0.05  # lucky once, and below the chord by more than any other epoch
    assert separating_epoch(falling) == separating_epoch(bumpy) == 3


def test_the_knee_does_not_move_when_a_straight_line_is_added() -> None:
    epochs = np.arange(20)
    for ratio in (0.3, 0.5, 0.8):
        epoch = separating_epoch((ratio**epochs).tolist())
        assert 1 < epoch < 15
        for slope in (-0.05, 0.2):
            assert separating_epoch((ratio**epochs + slope * epochs + 3).tolist()) == epoch


# --- the rest --------------------------------------------------------------------------------------------------------


def test_jaccard_by_hand() -> None:
    table: list[tuple[list[int], list[int], float]] = [
        ([1, 2, 3], [2, 3, 4], 0.5),
        ([1], [2], 0),
        ([3, 1], [1, 3], 1),
        ([1, 2, 3, 4], [1], 0.25),
        ([], [], 1),
        ([1], [], 0),
    ]
    for first, second, expected in table:
        assert jaccard(np.array(first, np.int64), np.array(second, np.int64)) == expected
