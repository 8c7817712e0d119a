import numpy as np
import pytest
import torch
from torch import nn

from latebloom.train.selection import scores

# Rows of probabilities, as logits ln p: softmax gives them back, softmax applied twice does not.
P = np.array([[0.5, 0.3, 0.2], [0.9, 0.05, 0.05], [1 / 3, 1 / 3, 1 / 3], [0.45, 0.45, 0.1]])
LOGITS = np.log(P)


# --- uncertainty -----------------------------------------------------------------------------------------------------


def test_uncertainties_by_hand() -> None:
    np.testing.assert_allclose(scores.least_confidence(LOGITS), [0.5, 0.1, 2 / 3, 0.55])
    np.testing.assert_allclose(scores.margin(LOGITS), [0.8, 0.15, 1, 1])
    np.testing.assert_allclose(scores.entropy(LOGITS), [1.02965, 0.39440, np.log(3), 0.94892], atol=1e-5)


@pytest.mark.parametrize("score", [scores.least_confidence, scores.entropy, scores.margin])
def test_a_constant_added_to_the_logits_changes_nothing(score) -> None:  # type: ignore[no-untyped-def]
    """DeepCore's least confidence takes the largest logit in place of the largest probability."""
    shift = np.array([[0], [100], [-50], [7]])
    np.testing.assert_allclose(score(LOGITS + shift), score(LOGITS), atol=1e-12)


def test_saturated_outputs_are_finite_and_still_ordered() -> None:
    logits = np.array([[800, 0], [60, 0], [50, 0], [0, 0]], np.float32)
    assert np.isfinite(scores.entropy(logits)).all()
    assert scores.least_confidence(logits).argsort().tolist() == [0, 1, 2, 3]
    assert scores.least_confidence(logits)[1] == pytest.approx(np.exp(-60), rel=1e-9)  # 1 - max p would be 0


def test_a_margin_needs_two_classes() -> None:
    with pytest.raises(ValueError, match="margin got logits of 1 class, expected 2 or more"):
        scores.margin(np.zeros((3, 1)))


# --- norms of gradients ----------------------------------------------------------------------------------------------


def test_el2n_by_hand_is_the_mean_over_models_and_softmax_is_applied_once() -> None:
    """Softmax twice (LCMat's fork of DeepCore) would give 0.75 in place of 0.62 for the first row."""
    labels = np.array([0, 0, 1, 2])
    first = [np.sqrt(0.25 + 0.09 + 0.04), np.sqrt(0.01 + 2 * 0.0025), np.sqrt(6) / 3, np.sqrt(2 * 0.45**2 + 0.81)]
    np.testing.assert_allclose(scores.el2n([LOGITS], labels), first, rtol=1e-6)
    uniform = np.full(4, np.sqrt(6) / 3)
    np.testing.assert_allclose(scores.el2n([LOGITS, np.zeros((4, 3))], labels), (first + uniform) / 2, rtol=1e-6)


def test_grand_is_the_norm_of_each_examples_own_gradient_whatever_its_company() -> None:
    """DeepCore's are of batch means: in a last batch of 8 each counts 16 times what it does in one of 128."""
    torch.manual_seed(0)
    layer, features, labels = nn.Linear(5, 3), torch.randn(7, 5), torch.tensor([0, 1, 2, 0, 1, 2, 0])
    expected = []
    for h, y in zip(features, labels, strict=True):
        gradients = torch.autograd.grad(nn.functional.cross_entropy(layer(h), y), list(layer.parameters()))
        expected.append(torch.cat([g.flatten() for g in gradients]).norm().item())
    look = layer(features).detach().numpy(), features.numpy()
    np.testing.assert_allclose(scores.grand([look], labels.numpy()), expected, rtol=1e-5)
    alone = scores.grand([(look[0][2:3], look[1][2:3])], labels.numpy()[2:3])
    np.testing.assert_allclose(alone, expected[2:3], rtol=1e-5)
    zeros = np.zeros_like(look[0])
    both = scores.grand([look, (zeros, look[1])], labels.numpy())
    np.testing.assert_allclose(both, (expected + scores.grand([(zeros, look[1])], labels.numpy())) / 2, rtol=1e-5)


# --- the highest -----------------------------------------------------------------------------------------------------


def test_the_highest_of_each_class_ties_to_the_lowest_row() -> None:
    score = np.array([1, 5, 1, 5, np.inf, 5, 0, 1])
    labels = np.array([0, 1, 0, 1, 0, 1, 1, 0])
    assert scores.top(score, labels, np.array([3, 2]), True).tolist() == [4, 0, 2, 1, 3]


def test_the_highest_of_all_are_grouped_by_class_and_budgets_count_by_their_sum() -> None:
    score = np.array([1, 9, 3, 2, 8, 7])
    labels = np.array([0, 2, 0, 1, 2, 0])
    assert scores.top(score, labels, np.array([2, 1, 1]), False).tolist() == [5, 2, 1, 4]


def test_classes_that_are_not_there_are_passed_over() -> None:
    assert scores.top(np.array([1, 2]), np.array([3, 1]), np.array([0, 1, 0, 1, 0]), True).tolist() == [1, 0]
