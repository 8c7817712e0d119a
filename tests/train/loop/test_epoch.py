"""What the examples of an epoch look like on the device, against the same done image by image."""

from collections.abc import Iterator, Sequence
from typing import Any, get_args

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from latebloom.data.batches import Pixels, epoch_order
from latebloom.data.images import LabeledImages
from latebloom.data.seeds import torch_rng
from latebloom.train.augment.mixing import EpochRows, Mixer, StrongConfig
from latebloom.train.augment.policies import PolicyConfig, PolicyName, make_policy, mixed
from latebloom.train.augment.weak import apply_resized_crop, apply_weak, draw_resized_crop, draw_weak
from latebloom.train.loop.epoch import Epoch
from latebloom.train.loop.fit import FitConfig, fit
from latebloom.train.loop.step import Batch
from latebloom.train.selection.coreset import CoresetConfig

CONFIG = FitConfig(epochs=2, batch_size=4, crop_padding=2, lr=0.1, momentum=0, weight_decay=0, schedule="constant")
CUTOUT, WU = PolicyConfig(policy="cutout"), PolicyConfig(policy="wu2020")
ROWS = np.array([3, 5, 8, 9, 11, 12, 13, 17, 18, 19])  # the training set: ten of twenty


def noise(n: int = 20) -> LabeledImages:
    pixels = np.random.default_rng(0).integers(0, 256, (n, 16, 16, 3)).astype(np.uint8)
    return LabeledImages(pixels, np.arange(n) % 3, ("a", "b", "c"), "noise")


def tensors(data: LabeledImages, rows: np.ndarray) -> Tensor:
    return torch.from_numpy(data.pixels(rows)).permute(0, 3, 1, 2).contiguous()


def batches_of(
    plan: EpochRows,
    policy: PolicyConfig,
    groups: list[np.ndarray],
    resident: bool = True,
    config: FitConfig = CONFIG,
) -> list[Batch]:
    data = noise()
    pixels = Pixels(data, torch.device("cpu"), **({} if resident else {"resident_bytes": 0}))
    made = make_policy(policy, 3, 16, 16)
    epoch = Epoch(pixels, torch.from_numpy(data.labels), ROWS, plan, made, config, seed=7)
    return list(epoch.batches(groups))


def some(policy: PolicyConfig, weights: np.ndarray | None = None) -> EpochRows:
    """All ten rows weak, then rows 1, 4, 6, 9 and 4 once more strong; augmentation drawn in epoch 5."""
    rows = np.array([*range(10), 1, 4, 6, 9, 4])
    made = make_policy(policy, 3, 16, 16)
    draw = made.draw(5, torch_rng(1))
    if made.candidates > 1:
        draw = made.candidate(draw, torch.zeros(5, dtype=torch.int64))
    return EpochRows(rows, np.arange(15) >= 10, weights, draw, 5)


def weak_of(places: np.ndarray, rows: np.ndarray) -> Tensor:
    """Row after row as `some` has it: its first place has a draw, its second another, its third, place 14, a third."""
    images = []
    for place, row in zip(places, rows, strict=True):
        key = () if place < 10 else (1,) if place < 14 else (2,)
        draw = draw_weak(10, CONFIG.crop_padding, CONFIG.flip, torch_rng(7, "augment", 5, *key))
        mine = {name: values[[row]] for name, values in draw.items()}
        images.append(apply_weak(tensors(noise(), ROWS[[row]]), mine, CONFIG.crop_padding))
    return torch.cat(images)


@pytest.mark.parametrize("resident", [True, False])
def test_a_strong_copy_is_the_policy_on_the_weakly_augmented_image_with_its_own_draw(resident: bool) -> None:
    plan, order = some(CUTOUT), epoch_order(15, 0, 0)
    groups = [order[:4], order[4:8], order[8:12], order[12:]]
    policy = make_policy(CUTOUT, 3, 16, 16)
    found = batches_of(plan, CUTOUT, groups, resident)
    assert [len(batch) for batch in found] == [4, 4, 4, 3]
    for group, batch in zip(groups, found, strict=True):
        assert batch.images.dtype == torch.uint8
        assert batch.places.tolist() == group.tolist()
        assert batch.targets.tolist() == noise().labels[ROWS[plan.rows[group]]].tolist()
        assert batch.factors is batch.partners is batch.shares is None
        for slot, place in enumerate(group):
            image = weak_of(np.array([place]), plan.rows[[place]])
            if place >= 10:
                image = policy.apply(image, {name: values[[place - 10]] for name, values in plan.copies.items()})
            assert torch.equal(batch.images[slot], image[0])


def test_without_crop_and_flip_weak_images_are_the_originals() -> None:
    plain = CONFIG.model_copy(update={"crop_padding": 0, "flip": False})
    (batch,) = batches_of(some(CUTOUT), CUTOUT, [np.arange(10)], config=plain)
    assert torch.equal(batch.images, tensors(noise(), ROWS))


def test_a_resized_crop_takes_the_place_of_the_padded_one() -> None:
    config = CONFIG.model_copy(update={"resized_crop": 0.3})
    (batch,) = batches_of(some(CUTOUT), CUTOUT, [np.arange(10)], config=config)
    windows = draw_resized_crop(10, 16, 16, torch_rng(7, "window", 5), 0.3)
    expected = apply_resized_crop(tensors(noise(), ROWS), windows, 16, 16)
    assert torch.equal(batch.images, apply_weak(expected, draw_weak(10, 0, True, torch_rng(7, "augment", 5)), 0))


def test_an_example_does_not_depend_on_its_batch() -> None:
    plan = some(CUTOUT)
    (whole,) = batches_of(plan, CUTOUT, [np.arange(15)])
    singles = batches_of(plan, CUTOUT, [np.array([place]) for place in range(14, -1, -1)])
    assert torch.equal(torch.cat([single.images for single in reversed(singles)]), whole.images)


def test_factors_are_the_weights_of_the_plan_by_place() -> None:
    weights = np.linspace(0.5, 2, 15).astype(np.float32)
    order = np.array([14, 3, 10])
    (batch,) = batches_of(some(CUTOUT, weights), CUTOUT, [order])
    assert batch.factors is not None
    np.testing.assert_allclose(batch.factors, weights[order])


def test_mixup_mixes_with_the_weak_image_of_another_strong_copy_and_shares_the_label() -> None:
    plan = some(WU)
    plan.copies["mix"] = torch.tensor([1.0, 0.25, 1.0, 0.75, 0.5])
    plan.copies["partner"] = torch.tensor([0, 3, 1, 4, 0])
    order = np.array([2, 11, 14, 12, 13])  # strong copies 1, 4, 2, 3, of which 2 has no partner
    (batch,) = batches_of(plan, WU, [order])
    assert batch.partners is not None
    assert batch.shares is not None
    labels = noise().labels[ROWS]
    np.testing.assert_allclose(batch.shares, [1, 0.25, 0.5, 1, 0.75])
    assert batch.partners.tolist() == [labels[2], labels[9], labels[1], labels[6], labels[4]]
    assert batch.targets.tolist() == [labels[2], labels[4], labels[4], labels[6], labels[9]]
    # Copy 1 is of row 4, its partner is copy 3, of row 9, at place 13.
    policy = make_policy(WU, 3, 16, 16)
    own = policy.apply(weak_of(np.array([11]), np.array([4])), {n: v[[1]] for n, v in plan.copies.items()})
    expected = mixed(own, weak_of(np.array([13]), np.array([9])), torch.tensor([0.25]))
    assert torch.equal(batch.images[1], expected[0])
    plain = policy.apply(weak_of(np.array([12]), np.array([6])), {n: v[[2]] for n, v in plan.copies.items()})
    assert torch.equal(batch.images[3], plain[0])


# --- through the loop ------------------------------------------------------------------------------------------------


class Watched(nn.Module):
    """A linear model that keeps what it is shown."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(16 * 16 * 3, 3)
        for weight in self.parameters():
            nn.init.zeros_(weight)
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        if self.training:
            self.seen.append(x)
        return self.linear(x.flatten(1))


class Sent(TorchDispatchMode):
    """Whether each copy to another device was sent without waiting."""

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[bool] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func is torch.ops.aten._to_copy.default and kwargs.get("device") not in (None, args[0].device):
            self.waits.append(not kwargs.get("non_blocking"))
        return func(*args, **kwargs)


@pytest.mark.parametrize("name", get_args(PolicyName))
def test_an_epoch_on_a_device_never_waits_for_it(name: PolicyName) -> None:
    """On the meta device whatever needs a value fails: item, nonzero, masks as indices, bincount."""
    meta, data, policy = torch.device("meta"), noise(), PolicyConfig(policy=name)

    class Pixel(Pixels):
        def batches(self, rows: Sequence[np.ndarray]) -> Iterator[Tensor]:
            for own in rows:
                yield torch.empty((len(own), 3, 16, 16), dtype=torch.uint8, device=meta)

    pixels, made = Pixel(data, torch.device("cpu")), make_policy(policy, 3, 16, 16)
    rows, draw = np.repeat(np.arange(10), 50), made.draw(250, torch_rng(1))  # all operations are among them
    draw = made.candidate(draw, torch.zeros(250, dtype=torch.int64))
    plan = EpochRows(rows, np.arange(500) >= 250, np.ones(500, np.float32), draw, 0)
    config = CONFIG.model_copy(update={"resized_crop": 0.5 if name == "augmix" else 0.0})
    labels = torch.from_numpy(data.labels).to(meta)
    with Sent() as sent:
        epoch = Epoch(pixels, labels, ROWS, plan, made, config, seed=7)
        (batch,) = epoch.batches([np.arange(500)])
    assert batch.images.device == meta
    assert batch.images.shape == (500, 3, 16, 16)
    assert len(sent.waits) > 5
    assert not any(sent.waits)


def test_a_step_follows_the_weighted_mean_gradient() -> None:
    """One step of a linear model from zero: p = 1/3 each, so the gradient of an example is (1/3 - y) x, by hand."""
    data, model = noise(), Watched()
    strong = StrongConfig(
        selector="craig",
        coreset=CoresetConfig(fraction=0.5),
        policy=CUTOUT,
        main="coreset",
        weights="normalised",
        weigh_strong=True,
    )
    rows = np.arange(20)
    mixer = Mixer(strong, data.labels, 3, (16, 16, 3), seed=4)
    assert mixer.length == 20
    config = CONFIG.model_copy(update={"batch_size": 20, "epochs": 1})
    fit([model], data, [rows], config, [4], mixers=[mixer])
    assert mixer.selection
    _, selected, gamma = mixer.selection
    order = epoch_order(20, 4, 0)
    of_place = np.concatenate([selected, selected])[order]  # main copies, then strong ones
    weight = torch.from_numpy(np.concatenate([gamma, gamma])[order] / gamma.mean())
    assert weight.std() > 0
    labels = torch.from_numpy(data.labels[of_place])
    (x,) = model.seen
    residual = (1 / 3 - torch.eye(3)[labels]) * weight[:, None]  # (20, 3)
    torch.testing.assert_close(model.linear.weight, -0.1 * residual.T @ x.flatten(1) / 20)
    torch.testing.assert_close(model.linear.bias, -0.1 * residual.mean(0))


def test_kept_draws_show_the_same_tensors_for_the_round() -> None:
    """As in Table 4 of arXiv 2210.08363: weak and strong pixels alike, until the next selection."""
    for redraw, expected in (("round", [True, True, False]), ("epoch", [False, False, False])):
        model = Watched()
        strong = StrongConfig(
            selector="random", coreset=CoresetConfig(fraction=0.5), policy=CUTOUT, every=3, redraw=redraw
        )
        mixer = Mixer(strong, noise().labels, 3, (16, 16, 3), seed=4)
        config = CONFIG.model_copy(update={"batch_size": 30, "epochs": 4})
        fit([model], noise(), [np.arange(20)], config, [4], mixers=[mixer])
        shown = [{image.numpy().tobytes() for image in images} for images in model.seen]
        assert [shown[epoch] == shown[0] for epoch in (1, 2, 3)] == expected


@pytest.mark.parametrize("crop", [{}, {"resized_crop": 0.3}])
def test_each_arm_sees_the_same_weakly_augmented_images_for_the_round(crop: dict[str, float]) -> None:
    """An arm without selection, one with, and one with more images behind the real ones: rounds 0, 1-3, 4-6."""
    strong = StrongConfig(
        selector="random", coreset=CoresetConfig(fraction=0.5), policy=CUTOUT, every=3, redraw="round", warm_epochs=1
    )
    enlarged = np.concatenate([np.arange(20), [3, 3, 7]])
    shown = []
    for rows, mixes in ((np.arange(20), False), (np.arange(20), True), (enlarged, False)):
        mixer = Mixer(strong, noise().labels[rows], 3, (16, 16, 3), seed=4) if mixes else None
        length, model = mixer.length if mixer else len(rows), Watched()
        config = CONFIG.model_copy(update={"batch_size": length, "epochs": 7, **crop})
        fit([model], noise(), [rows], config, [4], mixers=[mixer] if mixer else None, drawn=strong.drawn)
        # The first twenty places of an epoch's list are the real images.
        shown.append([x[np.argsort(epoch_order(length, 4, epoch))][:20] for epoch, x in enumerate(model.seen)])
    for epoch in range(7):
        assert torch.equal(shown[0][epoch], shown[1][epoch])
        assert torch.equal(shown[0][epoch], shown[2][epoch])
        assert torch.equal(shown[0][epoch], shown[0][[0, 1, 1, 1, 4, 4, 4][epoch]])
    assert not torch.equal(shown[0][0], shown[0][1])
    assert not torch.equal(shown[0][3], shown[0][4])


def test_a_second_place_of_a_row_in_an_epoch_has_a_draw_of_its_own() -> None:
    plan = EpochRows(np.array([*range(10), *range(10), *range(10)]), np.zeros(30, bool), None, {}, 0)
    (batch,) = batches_of(plan, CUTOUT, [np.arange(30)])
    first, second, third = (images.flatten(1) for images in batch.images.split(10))
    for one, other in ((first, second), (first, third), (second, third)):
        assert (one != other).any(1).sum() > 7  # of ten; 50 draws are possible


def test_selection_and_losses_of_candidates_use_the_model_in_eval_mode_and_leave_it_in_training() -> None:
    modes: list[tuple[bool, int]] = []

    class Modes(Watched):
        def forward(self, x: Tensor) -> Tensor:
            modes.append((self.training, len(x)))
            return super().forward(x)

    strong = StrongConfig(selector="max_loss", coreset=CoresetConfig(fraction=0.5, budget="none"), policy=WU, every=2)
    mixer = Mixer(strong, noise().labels, 3, (16, 16, 3), seed=4)
    config = CONFIG.model_copy(update={"batch_size": 30})
    fit([Modes()], noise(), [np.arange(20)], config, [4], mixers=[mixer])
    candidates = [(False, 10)] * mixer.policy.candidates
    assert modes == [(False, 20), *candidates, (True, 30), *candidates, (True, 30)]


def test_forgetting_is_counted_from_what_training_shows_weakly() -> None:
    """A model that is right about every image in even epochs and wrong in odd ones: an event in each odd epoch."""

    class Fickle(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.bias = nn.Parameter(torch.zeros(3))
            self.calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            label = torch.zeros(len(x), dtype=torch.int64) + (self.calls - 1) % 2  # label 0, then 1, ...
            return torch.eye(3)[label] + 0 * self.bias

    data = LabeledImages(noise().images, np.zeros(20, np.int64), ("a", "b", "c"), "zeros")
    strong = StrongConfig(
        selector="forgetting", coreset=CoresetConfig(fraction=0.5), policy=CUTOUT, warm_epochs=1, copies=2
    )
    mixer = Mixer(strong, data.labels, 3, (16, 16, 3), seed=4)
    assert mixer.length == 40
    config = CONFIG.model_copy(update={"batch_size": 40, "epochs": 4})
    fit([Fickle()], data, [np.arange(20)], config, [4], mixers=[mixer])
    assert mixer.state()["forgotten"].tolist() == [2] * 20
