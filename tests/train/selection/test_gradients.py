import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, grad, jacrev

from latebloom.train.selection.gradients import (
    Moments,
    curvatures,
    gradient_norms,
    hutchinson,
    last_layer_curvatures,
    last_layer_gradients,
    residuals,
    varying_curvature,
)


class Mlp(nn.Module):
    """4 inputs, BatchNorm, 3 hidden, 3 classes; the statistics are not those of any batch here."""

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.body = nn.Linear(4, 3)
        self.norm = nn.BatchNorm1d(3)
        self.head = nn.Linear(3, 3)
        for parameter in self.parameters():
            nn.init.normal_(parameter, generator=generator)
        assert self.norm.running_var is not None
        nn.init.uniform_(self.norm.running_var, 0.5, 2, generator=generator)

    def features(self, x: Tensor) -> Tensor:
        return torch.tanh(self.norm(self.body(x)))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.features(x))


@pytest.fixture
def model() -> nn.Module:
    return Mlp().eval()


@pytest.fixture
def batch() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    return torch.randn(7, 4, generator=generator), torch.tensor([0, 1, 2, 0, 0, 1, 2])


def outputs(model: nn.Module, x: Tensor) -> tuple[np.ndarray, np.ndarray]:
    with torch.no_grad():
        return model(x).numpy(), model.features(x).numpy()  # type: ignore[operator]


def one_loss(model: nn.Module, parameters: dict[str, Tensor], x: Tensor, label: Tensor) -> Tensor:
    return F.cross_entropy(functional_call(model, parameters, (x[None],)), label[None])


def head(model: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach() for name, p in model.named_parameters() if name.startswith("head")}


def as_outer(weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """[weight, bias] of a linear layer, (C, D + 1), flat: the layout of the closed forms."""
    return np.concatenate([weight, bias[:, None]], 1).ravel()


# --- closed forms ----------------------------------------------------------------------------------------------------


def test_residuals_and_curvatures_of_even_odds_by_hand() -> None:
    # p = (1/2, 1/2): p - y = (-1/2, 1/2) for label 0, p (1 - p) = 1/4.
    logits = np.zeros((1, 2), np.float32)
    assert residuals(logits, np.array([0])).tolist() == [[-0.5, 0.5]]
    assert curvatures(logits).tolist() == [[0.25, 0.25]]


def test_last_layer_gradients_equal_torch_func_grad(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    logits, features = outputs(model, batch[0])
    residual = residuals(logits, batch[1].numpy())
    found = last_layer_gradients(residual, features)
    for i, (x, label) in enumerate(zip(*batch, strict=True)):
        true = grad(lambda p, x=x, label=label: one_loss(model, p, x, label))(head(model))
        np.testing.assert_allclose(
            found[i], as_outer(true["head.weight"].detach().numpy(), true["head.bias"].detach().numpy()), atol=1e-6
        )
    np.testing.assert_allclose(gradient_norms(residual, features), np.linalg.norm(found, axis=1), rtol=1e-6)
    np.testing.assert_allclose(gradient_norms(residual), np.linalg.norm(residual, axis=1), rtol=1e-6)


def test_last_layer_curvatures_equal_the_diagonal_of_torch_func_hessian(
    model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    found = last_layer_curvatures(*outputs(model, batch[0]))
    for i, (x, label) in enumerate(zip(*batch, strict=True)):
        full = jacrev(jacrev(lambda p, x=x, label=label: one_loss(model, p, x, label)))(head(model))
        weight = full["head.weight"]["head.weight"].reshape(9, 9).diagonal().reshape(3, 3).detach().numpy()
        bias = full["head.bias"]["head.bias"].diagonal().detach().numpy()
        np.testing.assert_allclose(found[i], as_outer(weight, bias), atol=1e-6)


def test_half_precision_features_do_not_overflow() -> None:
    # 300^2 = 90,000 is more than float16 holds; p (1 - p) = 1/4, with the bias's 1 behind it.
    found = last_layer_curvatures(np.zeros((1, 2), np.float16), np.array([[300]], np.float16))
    assert found.tolist() == [[22500, 0.25, 22500, 0.25]]


def test_softmax_is_applied_once() -> None:
    # DeepCore's CRAIG, GLISTER, GradMatch and GraNd fed probabilities to CrossEntropy for years: |p - y| then never
    # comes near 0. A sure and right example has no gradient.
    assert np.abs(residuals(np.array([[30.0, 0, 0]]), np.array([0]))).max() < 1e-12


def test_a_sure_example_keeps_its_gradient_where_p_rounds_to_one() -> None:
    # p_y = 1 - 2e-20 is 1 in float64, but p_y - 1 = -sum of the others is not 0.
    residual = residuals(np.array([[46.0, 0, 0]]), np.array([0]))[0].astype(np.float64)
    np.testing.assert_allclose(residual, np.array([-2, 1, 1]) * np.exp(-46.0), rtol=1e-6)


def test_bad_logits_labels_and_features_are_refused() -> None:
    with pytest.raises(ValueError, match="1 rows of the logits are not finite"):
        residuals(np.array([[np.nan, 0], [0, 0]]), np.array([0, 1]))
    with pytest.raises(ValueError, match=r"0\.\.1, got 0\.\.2"):
        residuals(np.zeros((2, 2)), np.array([0, 2]))
    with pytest.raises(ValueError, match="give one label for each"):
        residuals(np.zeros((2, 2)), np.array([0]))
    with pytest.raises(ValueError, match="rows of the features"):
        gradient_norms(np.zeros((1, 2)), np.array([[np.inf]]))
    with pytest.raises(ValueError, match=r"logits are \(3,\), expected \(N, C\)"):
        curvatures(np.zeros(3))


# --- varying curvature -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("k", "count"), [(1, 1), (0.25, 11), (1.0, 44), (1000, 44)])
def test_varying_curvature_takes_the_dimensions_of_largest_variance(k: int | float, count: int) -> None:
    rng = np.random.default_rng(0)
    logits, features = rng.normal(size=(30, 4)).astype(np.float32), rng.normal(size=(30, 10)).astype(np.float32)
    full = last_layer_curvatures(logits, features)
    order = np.argsort(-full.astype(np.float64).var(0), kind="stable")[:count]
    np.testing.assert_allclose(varying_curvature(logits, features, k), full[:, order], rtol=1e-5, atol=1e-8)


def test_varying_curvature_finds_small_variances_beside_large_means() -> None:
    # Features near 1000: squares of curvatures near 1e11, variances of 1e6 and less. float32 products lose them.
    rng = np.random.default_rng(0)
    features = (1000 + rng.normal(size=(200, 3)) * [1e-3, 1e-2, 1e-1]).astype(np.float32)
    logits = np.zeros((200, 2), np.float32)
    # Equal logits: both classes have the same curvature, and the tie goes to the lower class.
    np.testing.assert_allclose(
        varying_curvature(logits, features, 2), np.repeat(features[:, 2:] ** 2, 2, 1) / 4, rtol=1e-6
    )


def test_varying_curvature_breaks_ties_by_the_lowest_dimension() -> None:
    # One example: no dimension varies, so the first ones are taken: class 0, features 2 and 3 squared over 4.
    found = varying_curvature(np.zeros((1, 2)), np.array([[2.0, 3.0]]), 2)
    assert found.tolist() == [[1.0, 2.25]]


def test_varying_curvature_refuses_a_k_out_of_range() -> None:
    for k in (0, -1, 0.0, 1.5):
        with pytest.raises(ValueError, match=f"k = {k}"):
            varying_curvature(np.zeros((2, 2)), np.zeros((2, 2)), k)


# --- any parameter ---------------------------------------------------------------------------------------------------


def test_hutchinson_is_exact_on_a_diagonal_quadratic() -> None:
    # sum_i a_i w_i^2 / 2 has the Hessian diag(a): one draw gives a, whatever its signs.
    model = nn.Linear(3, 1, bias=False)
    a = torch.tensor([1.0, -2.0, 3.0])
    found = hutchinson(model, torch.eye(3), lambda w: (a * w[:, 0] ** 2).sum() / 2, seed=0)
    torch.testing.assert_close(found["weight"], a[None])


def test_hutchinson_averages_to_the_diagonal_of_torch_func_hessian(
    model: nn.Module, batch: tuple[Tensor, Tensor]
) -> None:
    model.train()
    found = hutchinson(
        model, batch[0], lambda z: F.cross_entropy(z, batch[1], reduction="sum"), 0, names=["body.bias"], draws=150
    )
    assert list(found) == ["body.bias"]
    assert model.training
    model.eval()

    def loss(bias: Tensor) -> Tensor:
        return F.cross_entropy(functional_call(model, {"body.bias": bias}, (batch[0],)), batch[1], reduction="sum")

    full = jacrev(jacrev(loss))(model.body.bias.detach())  # type: ignore[union-attr, operator]
    # The variance of one draw is 2 sum of squared off-diagonals: five standard errors.
    error = (2 * (full - full.diagonal().diag()).square().sum(1) / 150).sqrt()
    assert ((found["body.bias"] - full.diagonal()).abs() <= 5 * error + 1e-6).all()
    assert error.max() < 0.4 * full.diagonal().abs().max()


def test_hutchinson_repeats_itself_and_refuses_bad_input(model: nn.Module, batch: tuple[Tensor, Tensor]) -> None:
    def run(seed: int, **options: object) -> dict[str, Tensor]:
        return hutchinson(model, batch[0], lambda z: z.logsumexp(1).sum(), seed, **options)  # type: ignore[arg-type]

    assert torch.equal(run(1)["body.weight"], run(1)["body.weight"])
    # A parameter's draws do not depend on which others are asked for.
    assert not torch.equal(run(1)["body.weight"], run(2)["body.weight"])
    with pytest.raises(ValueError, match=r"no parameter 'tail'; it has body\.weight"):
        run(0, names=["tail"])
    with pytest.raises(ValueError, match="draws = 0"):
        run(0, draws=0)


# --- moments ---------------------------------------------------------------------------------------------------------


def test_moments_of_a_constant_are_the_constant() -> None:
    # AdaCore's Eq. 7 as printed divides by 1 - b2^t and would give (1 - b1) / (1 - b2) of it.
    moments = Moments(2, 2)
    rows, g, h = np.arange(2), np.array([[1.0, -2], [3, 0]]), np.array([[0.25, 0.1], [0, 0.2]])
    for _ in range(5):
        moments.update(rows, g, h)
        np.testing.assert_allclose(moments.gradients(rows), g, rtol=1e-5)
        np.testing.assert_allclose(moments.curvatures(rows), h, rtol=1e-5)


def test_moments_of_two_updates_by_hand() -> None:
    moments = Moments(1, 1, gradient_decay=0.5, curvature_decay=0.5)
    row = np.array([0])
    moments.update(row, np.array([[1.0]]), np.array([[1.0]]))
    moments.update(row, np.array([[4.0]]), np.array([[5.0]]))
    # (1 * .25 + 4 * .5) / .75 = 3, sqrt((1 * .25 + 25 * .5) / .75) = sqrt(17).
    np.testing.assert_allclose(moments.gradients(row), [[3]], rtol=1e-6)
    np.testing.assert_allclose(moments.curvatures(row), [[17**0.5]], rtol=1e-6)


def test_each_example_counts_its_own_updates_and_the_state_goes_on() -> None:
    moments = Moments(3, 1)
    moments.update(np.array([2, 0]), np.array([[2.0], [0.5]]), np.ones((2, 1)))
    moments.update(np.array([2]), np.array([[2.0]]), np.ones((1, 1)))
    again = Moments.restored(moments.state())
    for each in (moments, again):
        each.update(np.array([2]), np.array([[3.0]]), np.ones((1, 1)))
        np.testing.assert_allclose(each.gradients(np.array([0])), [[0.5]], rtol=1e-6)
    assert np.array_equal(moments.gradients(np.array([2, 0])), again.gradients(np.array([2, 0])))
    assert len(again) == 3
    with pytest.raises(ValueError, match="1 examples have never been updated"):
        moments.gradients(np.array([0, 1]))


def test_moments_refuse_what_does_not_fit() -> None:
    moments = Moments(2, 1)
    one = np.ones((1, 1))
    with pytest.raises(ValueError, match=r"gradients and curvature are \(1, 2\), \(1, 1\), expected \(1, 1\)"):
        moments.update(np.array([0]), np.ones((1, 2)), one)
    with pytest.raises(ValueError, match="twice"):
        moments.update(np.array([0, 0]), np.ones((2, 1)), np.ones((2, 1)))
    with pytest.raises(ValueError, match="not finite"):
        moments.update(np.array([0]), one * np.nan, one)
    with pytest.raises(ValueError, match="decays 1"):
        Moments(2, 1, gradient_decay=1)
