import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from train.optim import batchnorm_statistics_kept, learning_rate, sam_ascent


def vector(*numbers: float) -> nn.Parameter:
    return nn.Parameter(torch.tensor(numbers, dtype=torch.float64))


def test_sam_on_a_quadratic_leaves_the_gradient_of_the_ascended_point() -> None:
    # 0.5 w'Aw with A = diag(1, 3) at w = (4, 1): gradient Aw = (4, 3), norm 5. With rho = 0.5 the ascended point is
    # (4, 1) + 0.5 * (4, 3) / 5 = (4.4, 1.3), and the gradient there A (4.4, 1.3) = (4.4, 3.9).
    a, w = torch.tensor([1.0, 3.0], dtype=torch.float64), vector(4, 1)
    (0.5 * (a * w * w).sum()).backward()
    with sam_ascent([[w]], rho=0.5):
        torch.testing.assert_close(w.detach(), torch.tensor([4.4, 1.3], dtype=torch.float64))
        w.grad = None
        (0.5 * (a * w * w).sum()).backward()
    assert w.tolist() == [4, 1]
    assert w.grad is not None
    torch.testing.assert_close(w.grad, torch.tensor([4.4, 3.9], dtype=torch.float64))
    torch.optim.SGD([w], lr=0.1, weight_decay=0.5).step()
    # (4, 1) - 0.1 * ((4.4, 3.9) + 0.5 * (4, 1)): weight decay acts at w and takes no part in the ascent.
    torch.testing.assert_close(w.detach(), torch.tensor([3.36, 0.56], dtype=torch.float64))


def test_the_norm_is_over_all_weights_of_a_model_and_of_that_model_only() -> None:
    first, second, other = vector(0), vector(0), vector(0, 0)
    first.grad, second.grad, other.grad = (torch.tensor(g, dtype=torch.float64) for g in ([3.0], [4.0], [0.0, 2.0]))
    with sam_ascent([[first, second], [other]], rho=1):
        torch.testing.assert_close(torch.cat([first, second]).tolist(), [0.6, 0.8])  # (3, 4) / 5
        torch.testing.assert_close(other.tolist(), [0.0, 1.0])  # (0, 2) / 2


def test_weights_come_back_bit_for_bit() -> None:
    w = nn.Parameter(torch.randn(1000, generator=torch.Generator().manual_seed(0)))
    w.grad = torch.randn(1000, generator=torch.Generator().manual_seed(1))
    before = w.detach().clone()
    with sam_ascent([[w]], rho=0.3):
        ascended = w.detach().clone()
    assert torch.equal(w, before)
    assert not torch.equal(ascended - 0.3 * w.grad / w.grad.norm(), before)  # taking the ascent off would lose bits


def interrupted(w: nn.Parameter) -> None:
    with sam_ascent([[w]], rho=1):
        assert w.item() == pytest.approx(2)
        raise KeyError


def test_weights_come_back_after_an_exception() -> None:
    w = vector(1)
    w.grad = torch.tensor([2.0], dtype=torch.float64)
    with pytest.raises(KeyError):
        interrupted(w)
    assert w.item() == 1


def test_weights_without_a_gradient_stay_put() -> None:
    with_gradient, without = vector(1), vector(5)
    with_gradient.grad = torch.tensor([-2.0], dtype=torch.float64)
    with sam_ascent([[with_gradient, without], [without]], rho=1):
        assert with_gradient.item() == pytest.approx(0, abs=1e-9)
        assert without.item() == 5
    assert without.grad is None


def test_a_zero_gradient_moves_nothing() -> None:
    w = vector(1, 2)
    w.grad = torch.zeros(2, dtype=torch.float64)
    with sam_ascent([[w]], rho=1):
        assert w.tolist() == [1, 2]  # not NaN


def test_rho_zero_moves_nothing() -> None:
    w = nn.Parameter(torch.randn(100, generator=torch.Generator().manual_seed(0)))
    w.grad = torch.randn(100, generator=torch.Generator().manual_seed(1))
    before = w.detach().clone()
    with sam_ascent([[w]], rho=0):
        assert torch.equal(w, before)


def test_the_sam_gradient_is_that_of_the_paper() -> None:
    """Against Eq. 2 and 3 of arXiv 2010.01412 (p = q = 2), written on dictionaries of weights with torch.autograd."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 7), nn.Tanh(), nn.Linear(7, 3)).double()
    x = torch.randn(11, 5, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (11,), generator=generator)
    rho = 0.7

    def gradient(w: dict[str, Tensor]) -> dict[str, Tensor]:
        w = {name: value.detach().requires_grad_() for name, value in w.items()}
        loss = F.cross_entropy(functional_call(model, w, (x,)), y)
        return dict(zip(w, torch.autograd.grad(loss, list(w.values())), strict=True))

    w: dict[str, Tensor] = dict(model.named_parameters())
    g = gradient(w)
    norm = math.sqrt(sum(float((value**2).sum()) for value in g.values()))
    expected = gradient({name: w[name] + rho * g[name] / norm for name in w})

    F.cross_entropy(model(x), y).backward()
    with sam_ascent([list(model.parameters())], rho):
        model.zero_grad()
        F.cross_entropy(model(x), y).backward()
    for name, weight in model.named_parameters():
        assert weight.grad is not None
        torch.testing.assert_close(weight.grad, expected[name])
        assert not torch.allclose(weight.grad, g[name], rtol=1e-3)  # rho is large enough to be seen


def batchnorm() -> nn.BatchNorm1d:
    """Two channels, momentum 0.1; it has seen nothing: mean 0, variance 1, count 0."""
    return nn.BatchNorm1d(2)


X = torch.tensor([[0.0, 10.0], [2.0, 30.0]])  # means 1 and 20, unbiased variances 2 and 200


def statistics(layer: nn.BatchNorm1d) -> tuple[list[float], list[float], int]:
    assert layer.running_mean is not None
    assert layer.running_var is not None
    assert layer.num_batches_tracked is not None
    return layer.running_mean.tolist(), layer.running_var.tolist(), int(layer.num_batches_tracked)


UNSEEN = ([0.0, 0.0], [1.0, 1.0], 0)


def test_kept_statistics_do_not_move_while_outputs_are_those_of_training() -> None:
    layer = batchnorm()
    model = nn.Sequential(nn.Sequential(layer))
    with batchnorm_statistics_kept(model):
        inside = model(X)
    assert statistics(layer) == UNSEEN
    outside = model(X)
    assert torch.equal(inside, outside)
    mean, variance, count = statistics(layer)
    torch.testing.assert_close(mean, [0.1, 2.0])  # 0.9 * 0 + 0.1 * (1, 20)
    torch.testing.assert_close(variance, [1.1, 20.9])  # 0.9 * 1 + 0.1 * (2, 200)
    assert count == 1


def test_kept_statistics_move_again_after_an_exception() -> None:
    layer = batchnorm()
    with pytest.raises(KeyError), batchnorm_statistics_kept(layer):
        raise KeyError
    layer(X)
    assert statistics(layer)[2] == 1


def test_keeping_statistics_nests() -> None:
    layer = batchnorm()
    with batchnorm_statistics_kept(layer):
        with batchnorm_statistics_kept(layer):
            layer(X)
        layer(X)
        assert statistics(layer) == UNSEEN  # the inner block did not let go for the outer one
    layer(X)
    assert statistics(layer)[2] == 1


def test_a_layer_that_never_had_statistics_gets_none() -> None:
    layer = nn.BatchNorm1d(2, track_running_stats=False)
    with batchnorm_statistics_kept(layer):
        layer(X)
    assert not layer.track_running_stats
    assert layer.running_mean is None


def rates(total: int, **changes: object) -> list[float]:
    settings = {"peak": 1.0, "schedule": "constant", "milestones": (), "decay": 0.1, "warmup": 0.0} | changes
    return [learning_rate(step, total, **settings) for step in range(total)]  # type: ignore[arg-type]


def test_milestones_cut_the_rate_at_their_fractions_of_the_run() -> None:
    expected = [0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    assert rates(8, peak=0.1, schedule="milestones", milestones=(0.5, 0.75)) == pytest.approx(expected)


def test_a_milestone_between_two_steps_counts_from_the_later_one() -> None:
    assert rates(3, schedule="milestones", milestones=(0.5,)) == pytest.approx([1, 1, 0.1])


def test_cosine_falls_from_the_peak_towards_zero() -> None:
    half = math.sqrt(0.5)
    assert rates(4, peak=2.0, schedule="cosine") == pytest.approx([2, 1 + half, 1, 1 - half])


def test_a_constant_rate_ignores_milestones() -> None:
    assert rates(4, milestones=(0.5,)) == [1, 1, 1, 1]


def test_warmup_rises_linearly_and_its_first_step_already_moves() -> None:
    assert rates(8, warmup=0.5) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])


def test_warmup_multiplies_the_schedule() -> None:
    falling = rates(8, schedule="milestones", milestones=(0.25,), decay=0.1, warmup=0.5)
    assert falling == pytest.approx([0.25, 0.5, 0.075, 0.1, 0.1, 0.1, 0.1, 0.1])


def test_a_warmup_shorter_than_a_step_is_none() -> None:
    assert rates(10, warmup=0.01) == [1] * 10


@settings(max_examples=60, deadline=None)
@given(
    total=st.integers(1, 60),
    schedule=st.sampled_from(["milestones", "cosine", "constant"]),
    warmup=st.floats(0, 0.99),
    milestones=st.lists(st.floats(0.01, 0.99), max_size=3).map(sorted),
)
def test_every_step_moves_and_none_passes_the_peak(
    total: int, schedule: str, warmup: float, milestones: list[float]
) -> None:
    found = rates(total, peak=0.3, schedule=schedule, warmup=warmup, milestones=milestones)
    assert all(0 < rate <= 0.3 for rate in found)
    unwarmed = rates(total, peak=0.3, schedule=schedule, milestones=milestones)
    assert unwarmed == sorted(unwarmed, reverse=True)
    assert unwarmed[0] == 0.3
