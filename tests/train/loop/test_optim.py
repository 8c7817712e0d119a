import copy
import dataclasses
import math
import pickle
import subprocess
import sys
import weakref
from collections.abc import Callable, Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.func import functional_call

from latebloom.train.config import FitConfig
from latebloom.train.loop.optim import SAM, SGD, AdaHessian, batchnorm_statistics_kept, learning_rate, sam_ascent


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


def test_sam_around_an_optimizer_steps_as_by_hand_and_keeps_batchnorm_statistics() -> None:
    # The quadratic of above, without weight decay: (4, 1) - 0.1 * (4.4, 3.9).
    a, w = torch.tensor([1.0, 3.0], dtype=torch.float64), vector(4, 1)
    optimizer = torch.optim.SGD([w], lr=0.1)

    def loss() -> Tensor:
        return 0.5 * (a * w * w).sum()

    sam = SAM(optimizer, nn.Identity(), rho=0.5)
    loss().backward()
    # At (4.4, 1.3): 0.5 * (4.4^2 + 3 * 1.3^2).
    assert sam.step(loss).item() == pytest.approx(12.215)
    torch.testing.assert_close(w.detach(), torch.tensor([3.56, 0.61], dtype=torch.float64))

    model = nn.Sequential(nn.BatchNorm1d(1), nn.Linear(1, 1))
    x = torch.tensor([[0.0], [2.0]])
    sam = SAM(torch.optim.SGD(model.parameters(), lr=0.1), model, rho=1.0)
    model(x).sum().backward()
    sam.step(lambda: model(x).sum())
    norm = model[0]
    assert isinstance(norm, nn.BatchNorm1d)
    assert norm.running_mean is not None
    assert norm.running_mean.tolist() == pytest.approx([0.1])  # once 0.1 times the mean 1, not twice
    with pytest.raises(ValueError, match="rho is -1"):
        SAM(optimizer, model, rho=-1)


@pytest.mark.parametrize("first", [SGD, torch.optim.SGD])
def test_sgd_is_that_of_torch_number_for_number(first: type[torch.optim.SGD]) -> None:
    """Whichever is used first: torch wraps the method of a class at its first object."""

    def trained(kind: type[torch.optim.SGD]) -> Tensor:
        torch.manual_seed(0)
        model, x = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3)), torch.randn(20, 5)
        groups = [{"params": list(model.parameters())}]
        optimizer = kind(groups, lr=0.1, momentum=0.9, weight_decay=1e-3, nesterov=True, foreach=True)
        for _ in range(5):
            model(x).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        return torch.cat([w.detach().flatten() for w in model.parameters()])

    second = torch.optim.SGD if first is SGD else SGD
    assert torch.equal(trained(first), trained(second))


def test_a_step_does_not_import_the_compiler() -> None:
    code = (
        "import sys, torch; from latebloom.train.loop.optim import SGD; w = torch.ones(2, requires_grad=True); "
        "o = SGD([w], lr=0.1, momentum=0.9); w.sum().backward(); o.step(); o.zero_grad(); "
        "assert 'torch._dynamo' not in sys.modules and w.tolist() != [1, 1] and w.grad is None"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


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


def signs(shape: Sequence[int], generator: torch.Generator) -> Tensor:
    return torch.randint(2, tuple(shape), generator=generator, dtype=torch.int8) * 2 - 1


def adahessian_step(optimizer: AdaHessian, loss: Tensor, generator: torch.Generator) -> None:
    weights = [w for group in optimizer.param_groups for w in group["params"]]
    gradients = torch.autograd.grad(loss, weights, create_graph=True)
    optimizer.estimate(gradients, generator)
    for w, gradient in zip(weights, gradients, strict=True):
        w.grad = gradient.detach()
    optimizer.step()


def test_on_a_diagonal_quadratic_the_estimate_is_the_diagonal_whatever_the_signs() -> None:
    a = torch.tensor([1.0, -3.0, 0.0], dtype=torch.float64)
    for seed in range(4):
        w = vector(4, 1, 2)
        optimizer = AdaHessian([w], betas=(0.0, 0.0))
        adahessian_step(optimizer, 0.5 * (a * w * w).sum(), torch.Generator().manual_seed(seed))
        assert optimizer.state[w]["exp_hessian_diag_sq"].sqrt().tolist() == [1, 3, 0]  # |diag|, with beta2 0


def test_one_step_by_hand() -> None:
    # 0.5 * (2 w1^2 + 5 w2^2) at (4, 1): gradient (8, 5), Hessian diag (2, 5). In the first step both bias corrections
    # undo the decay: w - lr * g / (|h| + 1e-4), after w has shrunk by 1 - lr * weight_decay = 0.9 (decoupled: L2 decay
    # in the gradient would move both moments).
    a, w = torch.tensor([2.0, 5.0], dtype=torch.float64), vector(4, 1)
    optimizer = AdaHessian([w], lr=0.5, weight_decay=0.2)
    adahessian_step(optimizer, 0.5 * (a * w * w).sum(), torch.Generator().manual_seed(0))
    expected = torch.tensor([3.6 - 0.5 * 8 / 2.0001, 0.9 - 0.5 * 5 / 5.0001], dtype=torch.float64)
    torch.testing.assert_close(w.detach(), expected)


def test_kernels_of_convolutions_are_averaged_over_their_last_two_dimensions_and_nothing_else_is() -> None:
    """The paper's spatial averaging, of |v * Hv|: pytorch_optimizer's AdaHessian has none."""
    kernel = nn.Parameter(torch.ones(1, 2, 1, 2, dtype=torch.float64))
    matrix = nn.Parameter(torch.ones(1, 2, dtype=torch.float64))
    a = torch.tensor([[[[1.0, -3.0]], [[4.0, 8.0]]]], dtype=torch.float64)
    optimizer = AdaHessian([kernel, matrix], betas=(0.0, 0.0))
    loss = 0.5 * (a * kernel**2).sum() + 0.5 * (torch.tensor([1.0, 3.0]) * matrix**2).sum()
    adahessian_step(optimizer, loss, torch.Generator())
    assert optimizer.state[kernel]["exp_hessian_diag_sq"].sqrt().tolist() == [[[[2, 2]], [[6, 6]]]]  # not |mean|: 1, 6
    assert optimizer.state[matrix]["exp_hessian_diag_sq"].sqrt().tolist() == [[1, 3]]


def test_off_the_diagonal_the_mean_over_many_draws_of_v_times_hv_is_the_diagonal() -> None:
    # H = [[2, 1], [1, 3]]: |v * Hv| is (3, 4) for equal signs and (1, 2) for others; each comes up half the time.
    h = torch.tensor([[2.0, 1.0], [1.0, 3.0]], dtype=torch.float64)
    generator, seen = torch.Generator().manual_seed(0), []
    for _ in range(100):
        w = vector(0, 0)
        optimizer = AdaHessian([w], betas=(0.0, 0.0))
        adahessian_step(optimizer, 0.5 * w @ h @ w, generator)
        seen.append(optimizer.state[w]["exp_hessian_diag_sq"].sqrt().tolist())
    assert {tuple(s) for s in seen} == {(3, 4), (1, 2)}
    assert 30 < sum(s == [3, 4] for s in seen) < 70


class Problem:
    """A tiny network with a loss that has a Hessian everywhere."""

    def __init__(self, convolution: bool) -> None:
        generator = torch.Generator().manual_seed(1)
        first = [nn.Conv2d(2, 3, 3), nn.Tanh(), nn.Flatten()] if convolution else [nn.Flatten(), nn.Tanh()]
        self.model = nn.Sequential(*first, nn.Linear(3 * 4 if convolution else 32, 5)).double()
        for w in self.model.parameters():
            w.data = torch.randn(w.shape, generator=generator, dtype=torch.float64) * 0.3
        self.x = torch.randn(6, 2, 4, 4, generator=generator, dtype=torch.float64)
        self.y = torch.randint(5, (6,), generator=generator)

    def loss(self) -> Tensor:
        return F.cross_entropy(self.model(self.x), self.y)

    def numbers(self) -> Tensor:
        return torch.cat([w.detach().flatten() for w in self.model.parameters()])


def test_several_steps_equal_those_of_pytorch_optimizer(monkeypatch: pytest.MonkeyPatch) -> None:
    from pytorch_optimizer import AdaHessian as Theirs

    options = {"lr": 0.1, "betas": (0.8, 0.95), "weight_decay": 0.01}
    ours, theirs = Problem(convolution=False), Problem(convolution=False)
    optimizer = AdaHessian(ours.model.parameters(), **options)  # type: ignore[arg-type]
    other = Theirs(theirs.model.parameters(), eps=1e-4, **options)
    mine, same = (torch.Generator().manual_seed(5) for _ in range(2))
    monkeypatch.setattr(torch, "randint_like", lambda p, *_: ((signs(p.shape, same) + 1) // 2).to(p))
    before = ours.numbers()
    for _ in range(5):
        adahessian_step(optimizer, ours.loss(), mine)
        gradients = torch.autograd.grad(theirs.loss(), list(theirs.model.parameters()), create_graph=True)
        for w, gradient in zip(theirs.model.parameters(), gradients, strict=True):
            w.grad = gradient
        other.step()
        torch.testing.assert_close(ours.numbers(), theirs.numbers(), rtol=1e-10, atol=1e-12)
    assert float((ours.numbers() - before).abs().max()) > 0.1  # they did move


def test_hessian_vector_products_equal_those_of_torch_func() -> None:
    problem = Problem(convolution=True)
    weights = {name: w.detach() for name, w in problem.model.named_parameters()}
    generator = torch.Generator().manual_seed(7)
    vectors = {name: signs(w.shape, generator).double() for name, w in weights.items()}
    gradient = torch.func.grad(lambda w: F.cross_entropy(functional_call(problem.model, w, (problem.x,)), problem.y))
    (products,) = torch.func.vjp(gradient, weights)[1](vectors)  # the Hessian is symmetric
    optimizer = AdaHessian(problem.model.parameters(), betas=(0.0, 0.0))
    adahessian_step(optimizer, problem.loss(), torch.Generator().manual_seed(7))
    for name, w in problem.model.named_parameters():
        expected = products[name].abs()
        if expected.ndim == 4:
            expected = expected.mean((2, 3), keepdim=True).expand_as(expected)
        torch.testing.assert_close(optimizer.state[w]["exp_hessian_diag_sq"].sqrt(), expected)


@dataclasses.dataclass(eq=False)
class Saved:
    """What a graph holds in place of a tensor: unlike tensors, it dies visibly with the graph."""

    tensor: Tensor


def test_no_graph_is_kept() -> None:
    """`backward(create_graph=True)` keeps weights, gradients and graph alive in a cycle; torch warns of it."""
    problem = Problem(convolution=True)
    optimizer = AdaHessian(problem.model.parameters())
    weights = list(problem.model.parameters())
    saved: list[weakref.ref[Saved]] = []

    def pack(tensor: Tensor) -> Saved:
        held = Saved(tensor)
        saved.append(weakref.ref(held))
        return held

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda held: held.tensor):
        gradients = torch.autograd.grad(problem.loss(), weights, create_graph=True)
        assert sum(ref() is not None for ref in saved) > 10
        optimizer.estimate(gradients, torch.Generator())
    for w, gradient in zip(weights, gradients, strict=True):
        w.grad = gradient.detach()
    del gradients, gradient
    assert not any(ref() for ref in saved)  # before the step, and without the garbage collector
    optimizer.step()
    kept = [t for state in optimizer.state.values() for t in state.values()]
    assert len(kept) == 3 * len(weights)
    assert not any(t.requires_grad for t in [*kept, *(w.grad for w in weights if w.grad is not None)])


@pytest.mark.parametrize("carry", [copy.deepcopy, lambda state: pickle.loads(pickle.dumps(state))])
def test_a_run_goes_on_bit_for_bit_from_its_state_dict(carry: Callable[[dict], dict]) -> None:
    def run(problem: Problem, optimizer: AdaHessian, steps: range) -> None:
        for step in steps:
            adahessian_step(optimizer, problem.loss(), torch.Generator().manual_seed(step))

    whole, parts = Problem(convolution=True), Problem(convolution=True)
    run(whole, AdaHessian(whole.model.parameters(), weight_decay=0.1), range(6))
    first = AdaHessian(parts.model.parameters(), weight_decay=0.1)
    run(parts, first, range(3))
    again = AdaHessian(parts.model.parameters(), lr=9.0)
    again.load_state_dict(carry(first.state_dict()))
    run(parts, again, range(3, 6))
    assert torch.equal(whole.numbers(), parts.numbers())


def test_an_optimizer_that_was_copied_whole_still_steps() -> None:
    problem = Problem(convolution=False)
    optimizer = pickle.loads(pickle.dumps(AdaHessian(problem.model.parameters())))
    optimizer.step()  # no gradients: nothing to do


def test_a_generator_a_group_gives_each_model_what_it_would_draw_alone() -> None:
    together, alone = [Problem(convolution=True), Problem(convolution=False)], Problem(convolution=False)
    optimizer = AdaHessian([{"params": list(p.model.parameters())} for p in together])
    gradients = [
        g for p in together for g in torch.autograd.grad(p.loss(), list(p.model.parameters()), create_graph=True)
    ]
    optimizer.estimate(gradients, [torch.Generator().manual_seed(seed) for seed in (1, 2)])
    for w, g in zip([w for p in together for w in p.model.parameters()], gradients, strict=True):
        w.grad = g.detach()
    optimizer.step()
    adahessian_step(AdaHessian(alone.model.parameters()), alone.loss(), torch.Generator().manual_seed(2))
    assert torch.equal(together[1].numbers(), alone.numbers())


def test_weights_without_a_gradient_stay_put_and_draw_nothing() -> None:
    h = torch.arange(64, dtype=torch.float64).view(8, 8)
    h = h + h.T
    start = [float(i) for i in range(8)]
    idle, w, same = vector(5, 5, 5), vector(*start), vector(*start)
    optimizer = AdaHessian([idle, w], weight_decay=0.1)
    (gradient,) = torch.autograd.grad(0.5 * w @ h @ w, [w], create_graph=True)
    optimizer.estimate([None, gradient], torch.Generator().manual_seed(3))
    w.grad = gradient.detach()
    optimizer.step()
    adahessian_step(AdaHessian([same], weight_decay=0.1), 0.5 * same @ h @ same, torch.Generator().manual_seed(3))
    assert idle.tolist() == [5, 5, 5]
    assert w.tolist() == same.tolist()


def test_a_loss_that_is_linear_in_a_weight_has_no_curvature_there() -> None:
    w = vector(1)
    optimizer = AdaHessian([w], lr=1e-4)
    adahessian_step(optimizer, 3 * w.sum(), torch.Generator())
    assert w.item() == pytest.approx(1 - 3)  # only 1e-4 below the fraction


def test_a_step_without_an_estimate_is_refused() -> None:
    w = vector(1)
    optimizer = AdaHessian([w])
    adahessian_step(optimizer, (w**2).sum(), torch.Generator())
    with pytest.raises(ValueError, match="call estimate before step"):
        optimizer.step()  # the estimate of the step before is used up


def test_adahessian_refuses_settings_out_of_range() -> None:
    for bad in ({"lr": 0}, {"weight_decay": -0.1}, {"betas": (0.9, 1.0)}, {"lr": math.nan}):
        with pytest.raises(ValueError, match=next(iter(bad))):
            AdaHessian([vector(1)], **bad)


def rates(total: int, **changes: object) -> list[float]:
    config = FitConfig(**({"lr": 1.0, "schedule": "constant"} | changes))
    return [learning_rate(config, step, total) for step in range(total)]


def test_milestones_cut_the_rate_at_their_fractions_of_the_run() -> None:
    expected = [0.1, 0.1, 0.1, 0.1, 0.01, 0.01, 0.001, 0.001]
    assert rates(8, lr=0.1, schedule="milestones", milestones=(0.5, 0.75)) == pytest.approx(expected)


def test_a_milestone_between_two_steps_counts_from_the_later_one() -> None:
    assert rates(3, schedule="milestones", milestones=(0.5,)) == pytest.approx([1, 1, 0.1])


def test_cosine_falls_from_the_peak_towards_zero() -> None:
    half = math.sqrt(0.5)
    assert rates(4, lr=2.0, schedule="cosine") == pytest.approx([2, 1 + half, 1, 1 - half])


def test_warmup_rises_linearly_and_its_first_step_already_moves() -> None:
    assert rates(8, warmup=0.5) == pytest.approx([0.25, 0.5, 0.75, 1, 1, 1, 1, 1])


def test_warmup_multiplies_the_schedule() -> None:
    falling = rates(8, schedule="milestones", milestones=(0.25,), warmup=0.5)
    assert falling == pytest.approx([0.25, 0.5, 0.075, 0.1, 0.1, 0.1, 0.1, 0.1])


@settings(max_examples=25, deadline=None)
@given(
    total=st.integers(1, 60),
    schedule=st.sampled_from(["milestones", "cosine", "constant"]),
    warmup=st.floats(0, 0.99),
    milestones=st.lists(st.floats(0.01, 0.99), max_size=3).map(sorted),
)
def test_every_step_moves_and_none_passes_the_peak(
    total: int, schedule: str, warmup: float, milestones: list[float]
) -> None:
    found = rates(total, lr=0.3, schedule=schedule, warmup=warmup, milestones=milestones)
    assert all(0 < rate <= 0.3 for rate in found)
    unwarmed = rates(total, lr=0.3, schedule=schedule, milestones=milestones)
    assert unwarmed == sorted(unwarmed, reverse=True)
    assert unwarmed[0] == 0.3
