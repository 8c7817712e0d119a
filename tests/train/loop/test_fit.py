import dataclasses
import json
import random
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pydantic
import pytest
import safetensors
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call

from latebloom.data.batches import epoch_order
from latebloom.data.images import LabeledImages
from latebloom.data.seeds import torch_rng, torch_stream
from latebloom.train.augment.mixing import Mixer, StrongConfig
from latebloom.train.augment.policies import PolicyConfig
from latebloom.train.augment.weak import apply_weak, draw_weak
from latebloom.train.evaluate import error_rate, logits_of
from latebloom.train.loop.checkpoint import load_fit, save_fit
from latebloom.train.loop.fit import FitConfig, FitState, History, fit
from latebloom.train.loop.optim import AdaHessian
from latebloom.train.loop.team import Team
from latebloom.train.loop.validation import Validation
from latebloom.train.models.build import build
from latebloom.train.selection.coreset import Coreset, CoresetConfig

# Three epochs of a batch of four; momentum, weight decay, milestones and augmentation as they are by default.
CONFIG = FitConfig(epochs=3, batch_size=4, crop_padding=1)
SAM = CONFIG.model_copy(update={"optimizer": "sam"})
PLAIN = {"crop_padding": 0, "flip": False}
# Neither history nor momentum in the optimizer: one step is w - lr * gradient.
BARE = FitConfig(epochs=1, batch_size=4, momentum=0, weight_decay=0, schedule="constant", **PLAIN)

STRONG = StrongConfig(
    selector="max_loss", coreset=CoresetConfig(fraction=0.5), policy=PolicyConfig(policy="cutout"), every=2
)
WU = PolicyConfig(policy="wu2020")

OPTIMIZERS = pytest.mark.parametrize("config", [CONFIG, SAM], ids=["sgd", "sam"])


def noise(n: int = 24) -> LabeledImages:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 1)).astype(np.uint8)
    return LabeledImages(pixels, np.arange(n) % 3, ("a", "b", "c"), "noise")


def cnn(seed: int = 0) -> nn.Module:
    """With BatchNorm."""
    return build("small-cnn", 3, (8, 8, 1), seed, width=4)


def linear() -> nn.Module:
    """Without BatchNorm: a batch's gradient is the mean of its examples'. Starts from zero."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    for weight in model.parameters():
        nn.init.zeros_(weight)
    return model


def bits(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def equal(first: dict[str, Tensor], second: dict[str, Tensor]) -> bool:
    assert first.keys() == second.keys()
    return all(torch.equal(value, second[name]) for name, value in first.items())


def trained(
    config: FitConfig, rows: Sequence[int] | np.ndarray | None = None, model: nn.Module | None = None, **options: object
) -> tuple[dict[str, Tensor], History]:
    """One model trained alone, by default on all 24 images from seed 0: six steps an epoch."""
    model = model or cnn()
    data = noise()
    chosen = np.arange(len(data)) if rows is None else np.asarray(rows)
    (history,) = fit([model], data, [chosen], config, [0], **options)  # type: ignore[arg-type]
    return bits(model), history


# --- what a step does ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("padding", "flip", "last"), [(0, False, "drop"), (1, True, "drop"), (1, True, "keep")])
def test_sgd_is_a_plain_torch_loop_over_the_same_batches(padding: int, flip: bool, last: str) -> None:
    config = CONFIG.model_copy(update={"epochs": 4, "crop_padding": padding, "flip": flip, "last_batch": last})
    data, rows = noise(), np.array([3, 1, 4, 15, 9, 2, 6, 5, 8, 7, 11])  # two batches of four, and one of three
    seen = 8 if last == "drop" else 11
    expected = cnn()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.MultiStepLR(optimizer, [2, 3], gamma=0.1)  # 50% and 75% of four epochs
    losses, errors = [], []
    for epoch in range(4):
        order = epoch_order(11, 7, epoch)
        weak = draw_weak(11, padding, flip, torch_rng(7, "augment", epoch))  # of the whole epoch, by place in the list
        total_loss, wrong = 0.0, 0
        for batch in (order[:4], order[4:8], order[8:seen])[: seen // 4 + (seen > 8)]:
            pixels = torch.from_numpy(data.pixels(rows[batch])).permute(0, 3, 1, 2)
            pixels = apply_weak(pixels, {name: values[batch] for name, values in weak.items()}, padding)
            logits, target = expected(pixels / 255), torch.from_numpy(data.labels[rows[batch]])
            loss = F.cross_entropy(logits, target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total_loss += len(batch) * loss.item()
            wrong += int((logits.argmax(1) != target).sum())
        schedule.step()
        losses.append(total_loss / seen)
        errors.append(wrong / seen)

    model = cnn()
    (history,) = fit([model], data, [rows], config, [7])
    for name, value in model.state_dict().items():
        torch.testing.assert_close(value, expected.state_dict()[name], rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(history.loss, losses, rtol=1e-5)
    np.testing.assert_allclose(history.error, errors)


@pytest.mark.parametrize("batchnorm", ["first_pass", "both"])
def test_sam_with_rho_zero_is_sgd_bit_for_bit(batchnorm: str) -> None:
    sgd, sgd_history = trained(CONFIG)
    sam, sam_history = trained(SAM.model_copy(update={"rho": 0.0, "sam_batchnorm": batchnorm}))
    weights = [name for name, _ in cnn().named_parameters()]
    assert all(torch.equal(sam[name], sgd[name]) for name in weights)
    assert sam_history == sgd_history
    assert equal(sam, sgd) == (batchnorm == "first_pass")  # running statistics too


def test_sam_is_the_papers_algorithm() -> None:
    """Against Algorithm 1 of arXiv 2010.01412 on dictionaries of weights, with momentum and decay in the base step."""
    config = FitConfig(
        optimizer="sam", rho=0.5, epochs=2, batch_size=6, lr=0.2, weight_decay=0.01, schedule="constant", **PLAIN
    )
    data, model = noise(12), cnn()
    w = {name: weight.detach().clone() for name, weight in model.named_parameters()}
    velocity = {name: torch.zeros_like(value) for name, value in w.items()}
    pupil = cnn()  # in training mode its running statistics do not matter to the gradient

    def gradient(at: dict[str, Tensor], batch: np.ndarray) -> dict[str, Tensor]:
        at = {name: value.clone().requires_grad_() for name, value in at.items()}
        x = torch.from_numpy(data.pixels(batch)).permute(0, 3, 1, 2) / 255
        loss = F.cross_entropy(functional_call(pupil, at, (x,)), torch.from_numpy(data.labels[batch]))
        return dict(zip(at, torch.autograd.grad(loss, list(at.values())), strict=True))

    for epoch in range(2):
        order = epoch_order(12, 0, epoch)
        for batch in (order[:6], order[6:]):
            g = gradient(w, batch)
            norm = torch.sqrt(sum(((value**2).sum() for value in g.values()), torch.tensor(0.0)))
            g_sam = gradient({name: w[name] + 0.5 * g[name] / norm for name in w}, batch)
            velocity = {name: 0.9 * velocity[name] + g_sam[name] + 0.01 * w[name] for name in w}
            w = {name: w[name] - 0.2 * velocity[name] for name in w}

    fit([model], data, [np.arange(12)], config, [0])
    for name, weight in model.named_parameters():
        torch.testing.assert_close(weight.detach(), w[name], rtol=1e-4, atol=1e-5)


def test_sam_with_its_decay_in_the_ascent_is_sam_of_a_loss_with_l2() -> None:
    """By hand: the loss of w is (w - 1)^2 / 2 + 0.5 w^2 / 2, and its gradient 1.5 w - 1.

    At w = 2 it is 2, so w ascends by 0.4 to 2.4, where it is 2.6, and the step ends at 2 - 0.1 * 2.6 = 1.74. Where the
    optimizer alone decays, the ascent is as far, the gradient there 1.4, and the decay 0.5 * 2: 2 - 0.1 * 2.4 = 1.76.
    """
    for decay, expected in (("ascent", 1.74), ("optimizer", 1.76)):
        w = nn.Parameter(torch.tensor([2.0]))
        config = BARE.model_copy(
            update={"optimizer": "sam", "rho": 0.4, "lr": 0.1, "weight_decay": 0.5, "sam_decay": decay, "steps": 1}
        )
        fit([Quadratic(w)], noise(4), [np.arange(4)], config, [0])
        assert w.item() == pytest.approx(expected, abs=1e-5)


def test_the_ascent_with_l2_points_along_the_whole_gradient() -> None:
    """Two weights at (3, 4), gradient g = w - 1 = (2, 3), decay 1: the ascent is along g + w = (5, 7), not along g."""
    seen: list[list[float]] = []
    for decay in ("ascent", "optimizer"):
        model = Quadratic(nn.Parameter(torch.tensor([3.0, 4.0])), seen)
        config = BARE.model_copy(
            update={"optimizer": "sam", "rho": 1.0, "weight_decay": 1.0, "sam_decay": decay, "steps": 1}
        )
        fit([model], noise(4), [np.arange(4)], config, [0])
    np.testing.assert_allclose(seen[1], [3 + 5 / 74**0.5, 4 + 7 / 74**0.5], rtol=1e-6)
    np.testing.assert_allclose(seen[3], [3 + 2 / 13**0.5, 4 + 3 / 13**0.5], rtol=1e-6)


class Quadratic(nn.Module):
    """Its loss has the gradient of sum((w - 1)^2) / 2, whatever the images; notes the weights at each forward pass."""

    def __init__(self, w: nn.Parameter, seen: list[list[float]] | None = None) -> None:
        super().__init__()
        self.w, self.seen = w, [] if seen is None else seen

    def forward(self, images: Tensor) -> Tensor:
        self.seen.append(self.w.tolist())
        return Exactly.apply(self.w, len(images))


class Exactly(torch.autograd.Function):
    """Logits that do not depend on w; whatever the gradient by them, the one by w is that of sum((w - 1)^2) / 2."""

    @staticmethod
    def forward(ctx: Any, w: Tensor, count: int) -> Tensor:
        ctx.save_for_backward(w)
        return torch.zeros(count, 3)

    @staticmethod
    def backward(ctx: Any, _: Tensor) -> tuple[Tensor, None]:
        (w,) = ctx.saved_tensors
        return w - 1, None


def test_running_statistics_after_a_sam_step_are_those_of_an_sgd_step_unless_both_passes_count() -> None:
    one_step = {"steps": 1, "rho": 0.5}
    sgd, _ = trained(CONFIG.model_copy(update=one_step))
    first_pass, _ = trained(SAM.model_copy(update=one_step))
    both, _ = trained(SAM.model_copy(update=one_step | {"sam_batchnorm": "both"}))
    statistics = [name for name in sgd if "running" in name or "tracked" in name]
    assert len(statistics) == 6
    for name in statistics:
        assert torch.equal(first_pass[name], sgd[name])
        assert not torch.equal(both[name], sgd[name])
    assert int(sgd["bn1.num_batches_tracked"]) == 1
    assert int(both["bn1.num_batches_tracked"]) == 2


def test_adahessian_is_a_plain_loop_with_its_optimizer() -> None:
    config = CONFIG.model_copy(update={"optimizer": "adahessian", "lr": 0.05, **PLAIN})
    expected, data = cnn(), noise()
    optimizer = AdaHessian(expected.parameters(), lr=0.05, betas=(0.9, 0.999), weight_decay=5e-4)
    for step in range(18):
        batch = epoch_order(24, 0, step // 6)[4 * (step % 6) : 4 * (step % 6) + 4]
        optimizer.param_groups[0]["lr"] = 0.05 * 0.1 ** ((step >= 9) + (step >= 13.5))
        x = torch.from_numpy(data.pixels(batch)).permute(0, 3, 1, 2) / 255
        loss = F.cross_entropy(expected(x), torch.from_numpy(data.labels[batch]))
        gradients = torch.autograd.grad(loss, list(expected.parameters()), create_graph=True)
        optimizer.estimate(gradients, torch_rng(0, "hessian", step))
        for weight, gradient in zip(expected.parameters(), gradients, strict=True):
            weight.grad = gradient.detach()
        optimizer.step()
    found, _ = trained(config)
    torch.testing.assert_close(found, bits(expected), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(("optimizer", "accumulate"), [("sgd", 3), ("sam", 2), ("sam", 8)])
def test_micro_batches_are_the_whole_batch_without_batchnorm(optimizer: str, accumulate: int) -> None:
    """SAM too has one perturbation, from the gradient of the whole batch, and not one for each micro-batch."""
    config = BARE.model_copy(update={"optimizer": optimizer, "batch_size": 8, "rho": 0.5, "epochs": 2})
    model, gamma = mlp(), np.random.default_rng(0).uniform(0, 2, 24)
    whole, history = trained(config, model=mlp(), mixers=[weighing(gamma)])
    micro = config.model_copy(update={"accumulate": accumulate})
    parts, found = trained(micro, model=mlp(), mixers=[weighing(gamma)])
    torch.testing.assert_close(parts, whole, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(found.loss, history.loss, rtol=1e-5)
    assert found.error == history.error
    assert not torch.allclose(whole["1.weight"], bits(model)["1.weight"], atol=1e-4)


def weighing(gamma: np.ndarray) -> Mixer:
    """Epochs of rows 0, 1, ..., whose losses have the factors gamma over its mean."""
    coreset = Coreset(np.arange(len(gamma)), gamma.astype(np.float32))
    strong = StrongConfig(selector="file", file="x.npz", main="coreset", copies=0, weights="normalised")
    return Mixer(strong, noise().labels[: len(gamma)], 3, (8, 8, 1), 0, coreset)


def mlp() -> nn.Module:
    with torch_stream(0, "mlp"):
        return nn.Sequential(nn.Flatten(), nn.Linear(64, 5), nn.Tanh(), nn.Linear(5, 3))


def test_nesterov_is_torchs() -> None:
    config = BARE.model_copy(update={"momentum": 0.9, "nesterov": True, "epochs": 2, "batch_size": 24, "lr": 0.5})
    expected, data = mlp(), noise()
    optimizer = torch.optim.SGD(expected.parameters(), lr=0.5, momentum=0.9, nesterov=True)
    x = torch.from_numpy(data.pixels()).permute(0, 3, 1, 2) / 255
    for _ in range(2):
        optimizer.zero_grad()
        F.cross_entropy(expected(x), torch.from_numpy(data.labels)).backward()
        optimizer.step()
    torch.testing.assert_close(trained(config, model=mlp())[0], bits(expected))


@OPTIMIZERS
def test_bfloat16_is_of_activations_and_not_of_weights(config: FitConfig) -> None:
    seen: list[torch.dtype] = []

    class Watched(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = cnn()

        def forward(self, x: Tensor) -> Tensor:
            out = self.body(x)
            seen.append(out.dtype)
            return out

    config = config.model_copy(update={"rho": 0.01})
    half, _ = trained(config.model_copy(update={"precision": "bfloat16"}), model=Watched())
    assert set(seen) == {torch.bfloat16}
    assert {value.dtype for name, value in half.items() if "weight" in name} == {torch.float32}
    whole, _ = trained(config, model=Watched())
    assert (
        torch.nn.functional.cosine_similarity(  # of the changes of the weights, which bfloat16 bends a little
            (half["body.head.weight"] - cnn().get_parameter("head.weight")).flatten(),
            (whole["body.head.weight"] - cnn().get_parameter("head.weight")).flatten(),
            dim=0,
        )
        > 0.98
    )


@pytest.mark.slow  # a minute for the compiler
def test_a_compiled_model_is_the_model() -> None:
    for config in (CONFIG, SAM):
        compiled, _ = trained(config.model_copy(update={"compile": True}))
        torch.testing.assert_close(compiled, trained(config)[0], rtol=1e-3, atol=1e-4)


def test_models_together_are_not_compiled() -> None:
    with pytest.raises(ValueError, match="compile is for a model trained alone, not for 2 together"):
        together(CONFIG.model_copy(update={"compile": True}), UNEQUAL[:2])


def test_a_model_handed_over_in_eval_mode_is_trained_in_training_mode() -> None:
    model = cnn().eval()
    assert equal(trained(CONFIG, model=model)[0], trained(CONFIG)[0])
    assert model.training


def test_the_learning_rate_reaches_the_optimizer() -> None:
    # Gradients of a linear model at zero: its step is proportional to the rate.
    first, _ = trained(BARE.model_copy(update={"steps": 1, "lr": 0.1}), model=linear())
    tenfold, _ = trained(BARE.model_copy(update={"steps": 1, "lr": 1.0}), model=linear())
    torch.testing.assert_close(tenfold["1.weight"], 10 * first["1.weight"])


def test_warmup_is_over_the_whole_run() -> None:
    # Warm-up over half of 12 steps: the first moves by a sixth of the peak rate.
    data = noise(4)
    whole, part = linear(), linear()
    fit([whole], data, [np.arange(4)], BARE.model_copy(update={"lr": 0.6}), [0])
    warming = BARE.model_copy(update={"lr": 3.6, "warmup": 0.5})
    fit([part], data, [np.arange(4)], warming, [0], total_steps=[12], stop_epoch=1)
    torch.testing.assert_close(bits(part), bits(whole))


# --- batches, rows, weights ------------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """Notes the brightness of every image it is shown; image i of `steps_of_grey` has brightness i."""

    def __init__(self) -> None:
        super().__init__()
        self.bias = nn.Parameter(torch.zeros(3))
        self.seen: list[list[int]] = []

    def forward(self, x: Tensor) -> Tensor:
        self.seen.append((x[:, 0, 0, 0] * 255).round().int().tolist())
        return self.bias.expand(len(x), 3)


def steps_of_grey(n: int) -> LabeledImages:
    pixels = np.arange(n, dtype=np.uint8)[:, None, None, None] * np.ones((1, 8, 8, 1), np.uint8)
    return LabeledImages(pixels, np.arange(n) % 3, ("a", "b", "c"), "grey")


def test_every_epoch_takes_whole_batches_in_a_new_order_and_drops_the_rest() -> None:
    recorder = Recorder()
    rows = np.array([2, 3, 5, 7, 11, 13, 17])
    fit(
        [recorder],
        steps_of_grey(20),
        [rows],
        BARE.model_copy(update={"batch_size": 3, "epochs": 40, "last_batch": "drop"}),
        [0],
    )
    assert [len(batch) for batch in recorder.seen] == [3] * 80
    epochs = [recorder.seen[i] + recorder.seen[i + 1] for i in range(0, 80, 2)]
    assert all(len(set(epoch)) == 6 and set(epoch) <= set(rows.tolist()) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 40
    assert {image for epoch in epochs for image in set(rows.tolist()) - set(epoch)} == set(
        rows.tolist()
    )  # all drop out


def test_a_set_smaller_than_a_batch_is_one_batch() -> None:
    recorder = Recorder()
    fit([recorder], steps_of_grey(20), [np.array([4, 9, 14])], BARE.model_copy(update={"epochs": 2}), [0])
    assert [sorted(batch) for batch in recorder.seen] == [[4, 9, 14]] * 2


def test_rows_may_stand_several_times() -> None:
    recorder = Recorder()
    fit([recorder], steps_of_grey(20), [np.array([4, 4, 4, 9])], BARE, [0])
    assert sorted(recorder.seen[0]) == [4, 4, 4, 9]


def test_a_row_that_stands_twice_counts_twice() -> None:
    # Twice (0, 1) has the mean gradient of (0, 1).
    twice, _ = trained(BARE, [0, 0, 1, 1], linear())
    once, _ = trained(BARE, [0, 1], linear())
    torch.testing.assert_close(twice, once)


def test_images_larger_than_the_device_allows_are_streamed_with_the_same_result(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    resident, _ = trained(CONFIG)
    monkeypatch.setattr("latebloom.train.loop.fit.Pixels", lambda data, device, **_: _streaming(data, device))
    streamed, _ = trained(CONFIG)
    assert equal(streamed, resident)


def _streaming(data: LabeledImages, device: torch.device) -> object:
    from latebloom.data.batches import Pixels

    pixels = Pixels(data, device, resident_bytes=0)
    assert pixels.resident is None
    return pixels


def test_a_weight_multiplies_the_gradient_of_its_own_image() -> None:
    # Weights 3 and 1 over their mean of 2: 3 times image 5 and image 2, over four.
    config = BARE.model_copy(update={"batch_size": 2})
    weighted, history = trained(config, [5, 2], linear(), mixers=[weighing(np.array([3, 1]))])
    repeated, _ = trained(BARE, [5, 5, 5, 2], linear())
    torch.testing.assert_close(weighted, repeated)
    assert history.loss == pytest.approx([np.log(3)])  # the history is without weights


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        (np.array([], np.int64), "noise: no training rows were given"),
        (np.array([-1, 24]), r"noise: training rows lie in -1\.\.24, expected 0\.\.23"),
    ],
)
def test_rows_outside_the_data_are_refused(rows: np.ndarray, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        trained(CONFIG, rows)


# --- histories, failures, randomness ---------------------------------------------------------------------------------


def test_a_history_has_one_entry_for_each_whole_epoch() -> None:
    assert len(trained(CONFIG)[1].loss) == len(trained(CONFIG)[1].error) == 3
    thirteen_steps = CONFIG.model_copy(update={"steps": 13})  # of six an epoch
    assert len(trained(thirteen_steps)[1].loss) == 2
    assert trained(CONFIG.model_copy(update={"steps": 5}))[1] == History([], [])


def test_a_history_is_the_mean_over_the_examples_as_they_were_trained_on() -> None:
    # An untrained linear model gives logits (0, 0, 0): loss ln 3, and the first class, so 16 of 24 are wrong.
    _, history = trained(BARE.model_copy(update={"batch_size": 24}), model=linear())
    assert history.loss == pytest.approx([np.log(3)])
    assert history.error == pytest.approx([16 / 24])


# Weights grow 99-fold a step: beyond float32 after about 20.
DIVERGING = FitConfig(
    epochs=12, batch_size=4, lr=100, weight_decay=1, momentum=0, schedule="constant", crop_padding=0, flip=False
)


def test_a_loss_that_is_not_finite_says_to_lower_the_learning_rate() -> None:
    # Six steps an epoch, so in the fourth epoch or so; the exact step is float32's business.
    with pytest.raises(FloatingPointError, match=r"^the training loss became (nan|inf) in epoch \d; lower .*100\.0\)"):
        trained(DIVERGING)


def test_a_loss_that_is_not_finite_in_a_last_half_epoch_is_not_overlooked() -> None:
    rows = np.arange(24).repeat(20)  # 120 steps an epoch, of which 40 are taken
    with pytest.raises(FloatingPointError, match="in epoch 1; lower the learning rate"):
        trained(DIVERGING.model_copy(update={"steps": 40}), rows)


def test_one_diverging_model_of_two_is_found() -> None:
    broken = cnn(1)
    with torch.no_grad():
        broken.get_parameter("head.bias").fill_(float("nan"))
    with pytest.raises(FloatingPointError, match="became nan in epoch 1"):
        fit([cnn(), broken], noise(), [np.arange(24)] * 2, CONFIG, [0, 1])


def test_no_global_random_state_is_read_or_touched() -> None:
    def states() -> tuple[bytes, str, object]:
        numpy_state = repr(np.random.get_state(legacy=False))  # noqa: NPY002
        return torch.get_rng_state().numpy().tobytes(), numpy_state, random.getstate()

    before = states()
    first, _ = trained(SAM, model=with_dropout())
    assert states() == before
    torch.rand(5)
    again, _ = trained(SAM, model=with_dropout())
    assert equal(again, first)


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Dropout(0.5), cnn())


def test_models_with_dropout_are_not_trained_together() -> None:
    with pytest.raises(ValueError, match="dropout cannot be trained together; train one after the other"):
        fit([with_dropout(), with_dropout()], noise(), [np.arange(24)] * 2, CONFIG, [0, 1])


def test_dropout_draws_other_masks_each_step() -> None:
    masks: list[Tensor] = []

    class Watched(nn.Dropout):
        def forward(self, input: Tensor) -> Tensor:
            out = super().forward(torch.ones_like(input))
            masks.append(out)
            return input * out

    trained(BARE.model_copy(update={"epochs": 2}), model=nn.Sequential(Watched(), cnn()))
    assert len({tuple(mask.flatten().tolist()) for mask in masks}) == 12


# --- several models together -----------------------------------------------------------------------------------------

UNEQUAL = [np.arange(23), np.arange(5, 19), np.array([0, 3, 3, 8, 9, 20, 21, 22, 23])]  # 6, 4 and 3 steps an epoch
SMALL = [np.array([1, 2, 3]), np.array([9, 8]), np.array([4, 5, 6]), np.arange(10, 19)]  # batches of 3, 2, 3 and 4


def together(config: FitConfig, rows: Sequence[np.ndarray], **options: object) -> tuple[list[nn.Module], list[History]]:
    models = [cnn(seed) for seed in range(len(rows))]
    seeds = [10 + seed for seed in range(len(rows))]
    return models, fit(models, noise(), rows, config, seeds, **options)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("rows", "config"),
    [(UNEQUAL, CONFIG), (UNEQUAL, SAM.model_copy(update={"sam_batchnorm": "both"})), (SMALL, SAM)],
    ids=["sgd", "sam both", "sam, smaller than a batch"],
)
def test_models_trained_together_are_those_trained_alone(rows: list[np.ndarray], config: FitConfig) -> None:
    models, histories = together(config, rows)
    for m, model in enumerate(models):
        alone = cnn(m)
        (history,) = fit([alone], noise(), [rows[m]], config, [10 + m])
        torch.testing.assert_close(bits(model), bits(alone), rtol=1e-4, atol=1e-5)
        np.testing.assert_allclose(histories[m].loss, history.loss, rtol=1e-4)
        assert histories[m].error == history.error
        assert len(history.loss) == 3


@pytest.mark.parametrize("strong", [{"policy": WU}, {"selector": "craig", "weights": "normalised", "main": "coreset"}])
def test_models_with_strong_copies_trained_together_are_those_trained_alone(strong: dict[str, object]) -> None:
    config, settings = SAM.model_copy(update={"rho": 0.01}), STRONG.model_copy(update={"every": 3, **strong})
    mixers = [mixer_of(settings, rows, 10 + m) for m, rows in enumerate(UNEQUAL)]
    models, histories = together(config, UNEQUAL, mixers=mixers)
    for m, model in enumerate(models):
        alone = cnn(m)
        mixing = mixer_of(settings, UNEQUAL[m], 10 + m)
        (history,) = fit([alone], noise(), [UNEQUAL[m]], config, [10 + m], mixers=[mixing])
        torch.testing.assert_close(bits(model), bits(alone), rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose(histories[m].loss, history.loss, rtol=1e-3)


def test_a_model_that_is_done_is_left_alone() -> None:
    # The second model has 3 steps an epoch to the first one's 6, so it is done when the first begins its second epoch.
    after: dict[int, dict[str, Tensor]] = {}
    models = [cnn(0), cnn(1)]
    config = CONFIG.model_copy(update={"epochs": 2})

    def note(state: FitState) -> None:
        after[state.step] = bits(models[1])

    fit(models, noise(), [UNEQUAL[0], UNEQUAL[2]], config, [10, 11], on_epoch=note)
    assert sorted(after) == [6, 12]
    assert equal(after[6], after[12])  # weights (no momentum carries on) and running statistics


# --- budgets ---------------------------------------------------------------------------------------------------------


def test_steps_in_the_config_count_instead_of_epochs() -> None:
    assert equal(
        trained(CONFIG.model_copy(update={"steps": 12}))[0], trained(CONFIG.model_copy(update={"epochs": 2}))[0]
    )


def test_total_steps_override_the_config_and_stretch_the_schedule() -> None:
    by_config, _ = trained(CONFIG.model_copy(update={"steps": 9}))
    by_argument, _ = trained(CONFIG, total_steps=[9])
    assert equal(by_argument, by_config)
    assert not equal(by_argument, trained(CONFIG)[0])


def test_every_model_has_its_own_total() -> None:
    models, histories = together(CONFIG, UNEQUAL, total_steps=[4, 6, 7])
    assert [len(history.loss) for history in histories] == [0, 1, 2]  # of 6, 4 and 3 steps an epoch
    for m, steps in enumerate([4, 6, 7]):
        alone = cnn(m)
        fit([alone], noise(), [UNEQUAL[m]], CONFIG.model_copy(update={"steps": steps}), [10 + m])
        torch.testing.assert_close(bits(models[m]), bits(alone), rtol=1e-4, atol=1e-5)


def test_stopping_early_gives_the_first_epochs_of_the_whole_run_bit_for_bit() -> None:
    config = CONFIG.model_copy(update={"epochs": 4})
    snapshots: dict[int, dict[str, Tensor]] = {}
    model = cnn()

    def note(state: FitState) -> None:
        snapshots[state.step // 6] = bits(model)

    (whole,) = fit([model], noise(), [np.arange(24)], config, [0], on_epoch=note)
    # Three of four epochs: the rate fell at the second. A run of three epochs would let it fall at one and a half.
    stopped, history = trained(config, stop_epoch=3)
    assert equal(stopped, snapshots[3])
    assert (history.loss, history.error) == (whole.loss[:3], whole.error[:3])
    assert not equal(stopped, trained(config.model_copy(update={"epochs": 3}))[0])


def test_every_model_stops_after_its_own_epochs() -> None:
    models, histories = together(CONFIG, UNEQUAL, stop_epoch=2)
    assert [len(history.loss) for history in histories] == [2, 2, 2]
    for m in range(3):
        alone = cnn(m)
        fit([alone], noise(), [UNEQUAL[m]], CONFIG, [10 + m], stop_epoch=2)
        torch.testing.assert_close(bits(models[m]), bits(alone), rtol=1e-4, atol=1e-5)


# --- validation ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("config", [CONFIG, SAM])
def test_validation_measures_each_epoch_and_changes_no_weight(config: FitConfig) -> None:
    held_out, measured = noise(13), []
    models, validation = [cnn(m) for m in range(3)], Validation(held_out)

    def measure(_: FitState) -> None:
        measured.append(error_rate(logits_of(models[0], held_out), held_out.labels))

    seeds = [10, 11, 12]
    histories = fit(models, noise(), UNEQUAL, config, seeds, validation=validation, on_epoch=measure)
    assert [len(history.validation_error) for history in histories] == [3, 3, 3]
    assert histories[0].validation_error == measured
    without, plain = together(config, UNEQUAL)
    for m in range(3):
        assert equal(bits(models[m]), bits(without[m]))
        assert (histories[m].loss, plain[m].validation_error) == (plain[m].loss, [])


class SlowAtFirst(nn.Module):
    """As a network whose kernels are compiled at their first use."""

    def __init__(self) -> None:
        super().__init__()
        self.model, self.calls = linear(), 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        if self.calls == 1:
            time.sleep(0.5)
        result: Tensor = self.model(x)
        return result


def test_the_first_use_of_a_network_is_in_no_epochs_seconds_and_each_step_is_counted() -> None:
    data, found, steps = noise(), [], []
    config = BARE.model_copy(update={"epochs": 2})

    def ended(state: FitState) -> None:
        found.append(state.first_use)

    (history,) = fit([SlowAtFirst()], data, [np.arange(24)], config, [0], on_epoch=ended, on_step=steps.append)
    assert steps == list(range(1, 13))
    assert found[-1] >= 0.4
    assert sum(history.seconds) < 0.4


def test_the_seconds_of_an_epoch_are_of_training_and_shared_by_models_trained_together() -> None:
    class Slow(Validation):
        def error(self, model: nn.Module, team: Team) -> float:
            time.sleep(0.3)
            self.seconds += 0.3
            return super().error(model, team)

    models, histories, validation = [cnn(m) for m in range(3)], [], Slow(noise(3))
    begin = time.perf_counter()
    histories = fit(models, noise(), UNEQUAL, CONFIG, [10, 11, 12], validation=validation)
    elapsed = time.perf_counter() - begin
    assert validation.seconds >= 9 * 0.3
    assert sum(sum(history.seconds) for history in histories) <= elapsed - 9 * 0.3


def test_a_run_with_validation_resumes_bit_for_bit(tmp_path: Path) -> None:
    resume_everywhere(tmp_path, UNEQUAL, CONFIG, validation=Validation(noise(7)))


# --- going on from a checkpoint --------------------------------------------------------------------------------------


def saver(folder: Path, models: Sequence[nn.Module]) -> Callable[[FitState], None]:
    return lambda state: save_fit(folder / f"{state.step}.safetensors", models, state, "key")


def without_seconds(metadata: dict[str, str]) -> tuple[str, object]:
    run = json.loads(metadata["run"])
    for history in run["histories"]:
        assert len(history.pop("seconds")) == len(history["loss"])
    return metadata["key"], run


def same_file(first: Path, second: Path) -> bool:
    with safetensors.safe_open(first, "pt") as a, safetensors.safe_open(second, "pt") as b:
        names = sorted(name for name in a.keys() if not name.endswith("mixer.seconds"))  # noqa: SIM118 (not a dict)
        return (
            without_seconds(a.metadata()) == without_seconds(b.metadata())
            and {*names} == {name for name in b.keys() if not name.endswith("mixer.seconds")}  # noqa: SIM118
            and all(torch.equal(a.get_tensor(name), b.get_tensor(name)) for name in names)
        )


def resume_everywhere(
    folder: Path,
    rows: Sequence[np.ndarray],
    config: FitConfig,
    make: Callable[[int], nn.Module] = cnn,
    strong: StrongConfig | None = None,
    **options: object,
) -> tuple[list[int], list[History]]:
    """Run to the end, then again from the first and the last but one checkpoint: all must end the same, to the bit."""
    count = len(rows)
    models, seeds = [make(m) for m in range(count)], list(range(count))

    def mixers() -> list[Mixer] | None:
        return None if strong is None else [mixer_of(strong, own, seed) for own, seed in zip(rows, seeds, strict=True)]

    whole = saver(folder / "whole", models)
    expected = fit(models, noise(), rows, config, seeds, mixers=mixers(), on_epoch=whole, **options)  # type: ignore[arg-type]
    steps = sorted(int(file.stem) for file in (folder / "whole").iterdir())
    for step in (steps[0], steps[-2]):  # a whole run before the end, and hardly any
        others = [make(100 + m) for m in range(count)]
        start = load_fit(folder / "whole" / f"{step}.safetensors", others, "key")
        assert start is not None
        assert start.step == step
        again = folder / f"from {step}"
        note = saver(again, others)
        found = fit(others, noise(), rows, config, seeds, mixers=mixers(), start=start, on_epoch=note, **options)  # type: ignore[arg-type]
        assert found == expected
        for other, model in zip(others, models, strict=True):
            assert equal(bits(other), bits(model))
        last = f"{steps[-1]}.safetensors"  # momenta and the sums of an unfinished epoch are in it too
        assert same_file(again / last, folder / "whole" / last)
    return steps, expected


def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(tmp_path: Path) -> None:
    steps, _ = resume_everywhere(tmp_path, [np.arange(24)], SAM)
    assert steps == [6, 12, 18]


def mixer_of(strong: StrongConfig, rows: np.ndarray, seed: int) -> Mixer:
    return Mixer(strong, noise().labels[rows], 3, (8, 8, 1), seed)


@pytest.mark.parametrize(
    ("strong", "changes"),
    [
        ({"where": "in_place_twice", "redraw": "round"}, {"optimizer": "sam"}),
        ({"selector": "adacore", "main": "coreset", "copies": 2, "weights": "normalised"}, {"accumulate": 2}),
        ({"policy": WU, "every": 3}, {"nesterov": True}),
        ({"policy": WU, "redraw": "round", "every": 3}, {"precision": "bfloat16"}),
        ({"selector": "forgetting", "warm_epochs": 2, "main": "random"}, {"optimizer": "adahessian", "lr": 0.05}),
    ],
    ids=["in place kept", "adacore", "wu2020", "wu2020 kept", "forgetting"],
)
def test_a_run_with_strong_copies_resumes_bit_for_bit(
    tmp_path: Path, strong: dict[str, object], changes: dict[str, object]
) -> None:
    # Checkpoints are on every epoch of the first: amid rounds of two or three; the second, of fewer steps an epoch, is
    # amid its epochs.
    config = CONFIG.model_copy(update={"epochs": 4, "batch_size": 8, **changes})
    rows = [np.arange(24), np.arange(5, 22)]
    steps, histories = resume_everywhere(tmp_path, rows, config, strong=STRONG.model_copy(update=strong))
    assert len(steps) == 4
    assert [len(history.loss) for history in histories] == [4, 4]


def test_three_models_by_adahessian_resume_bit_for_bit(tmp_path: Path) -> None:
    resume_everywhere(tmp_path, UNEQUAL, CONFIG.model_copy(update={"optimizer": "adahessian", "lr": 0.05}))


def test_a_large_model_resumes_bit_for_bit_in_another_memory_layout(tmp_path: Path) -> None:
    def large(seed: int) -> nn.Module:
        return build("small-cnn", 3, (8, 8, 1), seed, width=80)  # 117,000 weights

    resume_everywhere(tmp_path, [np.arange(24)], SAM.model_copy(update={"batch_size": 12}), large)
    assert not large(0).get_parameter("conv2.weight").is_contiguous(memory_format=torch.channels_last)
    model = large(0)
    fit([model], noise(), [np.arange(24)], SAM.model_copy(update={"steps": 1}), [0])
    assert model.get_parameter("conv2.weight").is_contiguous(memory_format=torch.channels_last)


def test_three_models_together_resume_bit_for_bit(tmp_path: Path) -> None:
    # 6, 4 and 3 steps an epoch: at the longest one's ends the others are amid an epoch, or done.
    steps, histories = resume_everywhere(tmp_path, UNEQUAL, SAM)
    assert steps == [6, 12, 18]
    assert [len(history.loss) for history in histories] == [3, 3, 3]


def test_a_run_with_dropout_resumes_bit_for_bit(tmp_path: Path) -> None:
    resume_everywhere(tmp_path, [np.arange(24)], CONFIG, lambda m: nn.Sequential(nn.Dropout(0.5), cnn(m)))


def test_a_budget_that_ends_amid_an_epoch_resumes_bit_for_bit(tmp_path: Path) -> None:
    steps, (history,) = resume_everywhere(tmp_path, [np.arange(24)], CONFIG.model_copy(update={"steps": 15}))
    assert steps == [6, 12, 15]
    assert len(history.loss) == 2


def test_models_with_budgets_of_their_own_resume_bit_for_bit(tmp_path: Path) -> None:
    steps, histories = resume_everywhere(tmp_path, UNEQUAL, SAM, total_steps=[13, 6, 7])
    assert steps == [6, 12, 13]
    assert [len(history.loss) for history in histories] == [2, 1, 2]


def test_a_stopped_run_resumes_bit_for_bit(tmp_path: Path) -> None:
    steps, _ = resume_everywhere(tmp_path, [np.arange(24)], CONFIG, stop_epoch=2)
    assert steps == [6, 12]


def test_a_run_that_ended_amid_an_epoch_can_be_lengthened(tmp_path: Path) -> None:
    # Where the schedule does not look at the length. The sums of the half epoch are kept: its history is whole.
    config = CONFIG.model_copy(update={"schedule": "constant"})
    short, long, other = cnn(), cnn(), cnn(9)
    (expected,) = fit([long], noise(), [np.arange(24)], config, [0], total_steps=[18])
    fit([short], noise(), [np.arange(24)], config, [0], total_steps=[15], on_epoch=saver(tmp_path, [short]))
    start = load_fit(tmp_path / "15.safetensors", [other], "key")
    (found,) = fit([other], noise(), [np.arange(24)], config, [0], total_steps=[18], start=start)
    assert equal(bits(other), bits(long))
    assert found == expected
    assert len(found.loss) == 3


def test_a_finished_run_has_nothing_left_to_do(tmp_path: Path) -> None:
    model = cnn()
    fit([model], noise(), [np.arange(24)], CONFIG, [0], on_epoch=saver(tmp_path, [model]))
    before = bits(model)
    start = load_fit(tmp_path / "18.safetensors", [model], "key")
    (history,) = fit([model], noise(), [np.arange(24)], CONFIG, [0], start=start)
    assert equal(bits(model), before)
    assert len(history.loss) == 3


def test_without_momentum_in_the_state_a_resumed_run_would_differ(tmp_path: Path) -> None:
    # So that the tests above would notice.
    model, other = cnn(), cnn()
    fit([model], noise(), [np.arange(24)], CONFIG, [0], on_epoch=saver(tmp_path, [model]))
    start = load_fit(tmp_path / "12.safetensors", [other], "key")
    assert start is not None
    fit([other], noise(), [np.arange(24)], CONFIG, [0], start=dataclasses.replace(start, slots=[{}]))
    assert not equal(bits(other), bits(model))


# --- the configuration -----------------------------------------------------------------------------------------------


def test_an_epoch_is_the_batches_in_it() -> None:
    for n, kept, dropped in ((1, 1, 1), (127, 1, 1), (128, 1, 1), (255, 2, 1), (256, 2, 2), (50_000, 391, 390)):
        for last, steps_per_epoch in (("keep", kept), ("drop", dropped)):
            config = FitConfig(epochs=200, last_batch=last)
            assert config.steps_per_epoch(n) == steps_per_epoch
            assert config.total_steps(n) == 200 * steps_per_epoch
            assert FitConfig(epochs=200, steps=7, last_batch=last).total_steps(n) == 7


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"accumulate": 8, "batch_size": 4}, "accumulate is 8 micro-batches of a batch of 4"),
        ({"nesterov": True, "momentum": 0.0}, "nesterov needs momentum"),
        ({"optimizer": "adahessian", "accumulate": 2}, "adahessian takes a whole batch"),
        ({"optimizer": "adahessian", "compile": True}, "adahessian takes a whole batch"),
        ({"milestones": (0.75, 0.5)}, "milestones are ascending fractions between 0 and 1"),
        ({"milestones": (0.5, 1.0)}, "milestones are ascending fractions between 0 and 1"),
    ],
)
def test_settings_that_do_not_go_together_are_refused(bad: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        FitConfig(**bad)
