from typing import Any, get_args

import pydantic
import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2

from latebloom.train.augment.image_ops import CODES, OPERATIONS
from latebloom.train.augment.policies import Draw, PolicyConfig, PolicyName, choose, make_policy

NAMES: tuple[PolicyName, ...] = get_args(PolicyName)
SHAPE = (3, 16, 16)


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def pictures(count: int, shape: tuple[int, int, int] = SHAPE) -> Tensor:
    small = torch.rand(count, shape[0], 4, 4, generator=seeded(3))
    images = torch.nn.functional.interpolate(small, size=shape[1:], mode="bilinear", align_corners=False)
    return (255 * images).to(torch.uint8)


def made(name: PolicyName, n: int, shape: tuple[int, int, int] = SHAPE, **more: Any) -> tuple[Any, Draw]:
    """A policy and a draw of it that can be applied."""
    policy = make_policy(PolicyConfig(policy=name, **more), *shape)
    draw = policy.draw(n, seeded())
    return policy, policy.candidate(draw, torch.zeros(n, dtype=torch.int64))


def fed(transform: Any, codes: list[int], magnitudes: list[float]) -> Any:
    """torchvision's transform, made to choose these operations one after the other, at these magnitudes."""
    steps = [
        (OPERATIONS[code], (lambda *_, value=value: torch.tensor([value]), False))
        for code, value in zip(codes, magnitudes, strict=True)
    ]
    transform._get_random_item = lambda _: steps.pop(0)
    return transform


def close(ours: Tensor, theirs: Tensor) -> bool:
    """Equal but for rounding: in one of a thousand values, by 1."""
    distance = (ours.int() - theirs.int()).abs()
    return int(distance.max()) <= 1 and (distance > 0).float().mean().item() < 1e-3


# --- each policy is torchvision's, given the same choices ------------------------------------------------------------


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("auto", "rand", "trivial"))])
def test_sequences_are_torchvisions_transform_given_the_same_choices(name: PolicyName) -> None:
    shape = (1 if name == "randaugment" else 3, 16, 16)
    policy, draw = made(name, 60, shape)
    images = pictures(60, shape)
    theirs = []
    for image, codes, magnitudes in zip(images, draw["code"].tolist(), draw["magnitude"].tolist(), strict=True):
        if name == "trivialaugment":
            transform = fed(v2.TrivialAugmentWide(num_magnitude_bins=1), codes, magnitudes)
        else:
            transform = fed(v2.RandAugment(num_ops=len(codes), magnitude=0), codes, magnitudes)
        theirs.append(transform(image))
    assert close(policy.apply(images, draw), torch.stack(theirs))


@pytest.mark.parametrize(("width", "channels"), [(1, 1), (3, 3)])
def test_augmix_is_torchvisions_given_the_same_choices(width: int, channels: int) -> None:
    shape = (channels, 16, 16)
    policy, draw = made("augmix", 40, shape, augmix_width=width)
    images = pictures(40, shape)
    theirs = []
    for i, image in enumerate(images):
        transform = fed(
            v2.AugMix(severity=1, mixture_width=width, chain_depth=3),
            draw["code"][i].tolist(),
            draw["magnitude"][i].tolist(),
        )
        own, rest = draw["share"][i, :1], 1 - draw["share"][i, :1]
        weights = [torch.stack((own, rest), 1), draw["share"][i : i + 1, 1:] / rest]
        transform._sample_dirichlet = lambda _, weights=weights: weights.pop(0)
        theirs.append(transform(image))
    distance = (policy.apply(images, draw).int() - torch.stack(theirs).int()).abs()
    assert int(distance.max()) <= 1
    # The shares come back from the draw by a division, so a cut off sum may fall the other way.
    assert (distance > 0).float().mean() < 5e-3


@pytest.mark.parametrize(
    ("name", "kind"), [("randaugment", "RandAugment"), ("trivialaugment", "TrivialAugmentWide"), ("augmix", "AugMix")]
)
def test_operations_and_magnitudes_are_those_of_torchvisions_tables_equally_often(name: PolicyName, kind: str) -> None:
    bins, places = {"randaugment": (31, [9]), "trivialaugment": (31, range(31)), "augmix": (10, range(3))}[name]
    _, draw = made(name, 30_000)
    codes, magnitudes = draw["code"], draw["magnitude"]
    if name == "augmix":  # a chain's first operation is never left out
        codes, magnitudes = codes[:, ::3], magnitudes[:, ::3]
    space = getattr(v2, kind)._AUGMENTATION_SPACE
    for operation, (values, signed) in space.items():
        chosen = codes == CODES[operation]
        share = chosen.float().mean().item()
        assert abs(share - 1 / len(space)) < 5 * (1 / len(space) / codes.numel()) ** 0.5, operation
        table = values(bins, 16, 16)
        legal = {0.0} if table is None else {float(table[place]) for place in places}
        legal |= {-value for value in legal} if signed else set()
        assert set(magnitudes[chosen].tolist()) == legal, operation
        if signed:
            nonzero = magnitudes[chosen]
            assert abs((nonzero[nonzero != 0] < 0).float().mean().item() - 0.5) < 0.06, operation


@pytest.mark.parametrize("name", ["cifar10", "imagenet", "svhn"])
def test_autoaugment_applies_each_of_the_published_pairs_with_its_probabilities(name: str) -> None:
    n = 40_000
    pairs = v2.AutoAugment(v2.AutoAugmentPolicy[name.upper()])._policies
    _, draw = made(f"autoaugment_{name}", n)  # type: ignore[arg-type]
    for step in (0, 1):
        expected = dict.fromkeys(OPERATIONS, 0.0)
        legal: dict[str, set[float]] = {operation: set() for operation in OPERATIONS}
        for pair in pairs:
            operation, chance, place = pair[step]
            expected[operation] += chance / 25
            expected["Identity"] += (1 - chance) / 25
            table = v2.AutoAugment._AUGMENTATION_SPACE[operation][0](10, 16, 16)
            if chance:
                legal[operation].add(0.0 if table is None else abs(float(table[place])))
        for operation, share in expected.items():
            chosen = draw["code"][:, step] == CODES[operation]
            assert abs(chosen.float().mean().item() - share) < 0.0125, operation  # five times sqrt(1/4 / n)
            if operation != "Identity":
                assert set(draw["magnitude"][chosen, step].abs().tolist()) == legal[operation], operation


def test_autoaugments_two_operations_are_of_the_same_pair() -> None:
    pairs = v2.AutoAugment(v2.AutoAugmentPolicy.SVHN)._policies
    _, draw = made("autoaugment_svhn", 20_000)
    both = {(first[0], second[0]) for first, second in pairs if first[1] * second[1]}
    found = {(OPERATIONS[a], OPERATIONS[b]) for a, b in draw["code"].tolist()}
    assert {pair for pair in found if "Identity" not in pair} == both


def test_augmix_shares_sum_to_one_and_depths_are_one_to_three_equally_often() -> None:
    _, draw = made("augmix", 9_000)
    assert torch.allclose(draw["share"].sum(1), torch.ones(9_000), atol=1e-5)
    assert abs(draw["share"][:, 0].mean().item() - 0.5) < 0.02  # Beta(1, 1)
    assert torch.allclose(draw["share"][:, 1:].mean(0), torch.full((3,), 1 / 6), atol=0.01)
    depth = (draw["code"].view(-1, 3) != CODES["Identity"]).sum(1)
    assert all(abs((depth == value).float().mean().item() - 1 / 3) < 0.02 for value in (1, 2, 3))


def test_augmix_severity_bounds_the_magnitudes() -> None:
    _, draw = made("augmix", 500, augmix_severity=1)  # torchvision's lowest of ten is 0, posterize keeps 4 bits
    rotated = draw["magnitude"][draw["code"] == CODES["Rotate"]]
    assert len(rotated) > 50
    assert (rotated == 0).all()


def test_cutout_has_as_many_squares_as_asked_for() -> None:
    policy, draw = made("cutout", 200, cutout_holes=2, cutout_length=4)
    white = torch.full((200, *SHAPE), 255, dtype=torch.uint8)
    holes = (policy.apply(white, draw)[:, 0] == 0).sum((1, 2))
    assert int(holes.max()) == 32
    assert int(holes.min()) < 16
    assert torch.equal(policy.apply(white, draw)[:, 0], policy.apply(white, draw)[:, 2])


def test_perturb_is_torchvisions_brightness_and_blur() -> None:
    policy, draw = made("perturb", 40)
    images, results = pictures(40), []
    for image, (brightness, sigma) in zip(images, draw["magnitude"].tolist(), strict=True):
        bright = v2.functional.adjust_brightness(image, 1 + brightness)
        results.append(v2.functional.gaussian_blur(bright, [5, 5], [sigma, sigma]))
    assert close(policy.apply(images, draw), torch.stack(results))
    assert -0.2 <= float(draw["magnitude"][:, 0].min()) < -0.15
    assert 0.1 <= float(draw["magnitude"][:, 1].min()) < 0.3


# --- wu2020 ----------------------------------------------------------------------------------------------------------


def test_wu2020_draws_the_published_operations_and_mixup() -> None:
    policy = make_policy(PolicyConfig(policy="wu2020", wu2020_candidates=3), *SHAPE)
    draw = policy.draw(20_000, seeded())
    assert policy.candidates == 3
    assert draw["code"].shape == (20_000, 3, 2)
    shares = torch.bincount(draw["code"].flatten(), minlength=len(OPERATIONS)) / draw["code"].numel()
    # Each of 16 is applied half the time; Mixup leaves no operation of its own.
    for operation, share in zip(OPERATIONS, shares.tolist(), strict=True):
        expected = {"Identity": 0.5 + 1 / 32, "GaussianBlur": 0.0}.get(operation, 1 / 32)
        assert abs(share - expected) < 0.005, operation
    mixes = draw["mix"] < 1
    assert abs(mixes.float().mean().item() - (1 - (31 / 32) ** 2)) < 0.005
    assert abs(draw["mix"][mixes].mean().item() - 0.5) < 0.02
    assert 0 <= int(draw["partner"].min()) < 100
    assert 19_900 < int(draw["partner"].max()) < 20_000


def test_wu2020_magnitudes_lie_in_their_ranges() -> None:
    draw = make_policy(PolicyConfig(policy="wu2020"), 3, 20, 40).draw(20_000, seeded())
    seen = {name: draw["magnitude"][draw["code"] == CODES[name]] for name in OPERATIONS}
    assert set(seen["Posterize"].tolist()) == {4, 5, 6, 7, 8}
    assert set(seen["Cutout"].tolist()) == {0, 1, 2, 3, 4}  # a fifth of 20
    for name, most in (("ShearX", 0.3), ("Rotate", 30), ("Color", 0.9), ("TranslateX", 40 * 150 / 331)):
        assert most * 0.98 < float(seen[name].max()) <= most * 1.0001, name
        assert -most * 1.0001 <= float(seen[name].min()) < -most * 0.98, name


def test_a_candidate_is_each_images_own_choice() -> None:
    policy = make_policy(PolicyConfig(policy="wu2020", wu2020_candidates=4), *SHAPE)
    draw = policy.draw(5, seeded())
    choice = torch.tensor([3, 0, 2, 2, 1])
    chosen = policy.candidate(draw, choice)
    for name, values in chosen.items():
        assert all(torch.equal(values[i], draw[name][i, int(choice[i])]) for i in range(5)), name
    assert chosen["mix"].shape == chosen["partner"].shape == (5,)


def test_top_takes_the_highest_loss() -> None:
    losses = torch.tensor([[0.1, 0.7, 0.2], [3.0, 1.0, 2.0], [1.0, 1.0, 1.0]])
    assert choose(losses, "top", seeded()).tolist() == [1, 0, 0]


def test_proportional_takes_each_as_often_as_its_share_of_the_loss() -> None:
    losses = torch.tensor([[1.0, 0.0, 2.0, 5.0]]).repeat(20_000, 1) * torch.rand(20_000, 1, generator=seeded(1))
    counts = torch.bincount(choose(losses, "proportional", seeded()), minlength=4) / 20_000
    assert counts[1] == 0
    assert torch.allclose(counts, torch.tensor([1, 0, 2, 5]) / 8, atol=0.02)


def test_proportional_is_uniform_where_all_losses_are_equal() -> None:
    for loss in (0.0, 0.3, 1e-30):
        counts = torch.bincount(choose(torch.full((20_000, 4), loss), "proportional", seeded()), minlength=4)
        assert torch.allclose(counts / 20_000, torch.full((4,), 0.25), atol=0.02)


def test_nothing_to_choose_from_is_nothing_chosen() -> None:
    assert choose(torch.empty(0, 4), "proportional", seeded()).tolist() == []
    assert choose(torch.empty(0, 4), "top", seeded()).tolist() == []


def test_losses_that_are_not_finite_are_refused() -> None:
    for bad in (float("nan"), float("inf")):
        with pytest.raises(ValueError, match="1 images are not finite: training has diverged; lower the learning rate"):
            choose(torch.tensor([[0.0, 1.0], [bad, 1.0]]), "proportional", seeded())


# --- all policies ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_an_images_result_depends_on_its_own_row_of_the_draw_alone(name: PolicyName) -> None:
    shape = (3, 11, 18)
    policy, draw = made(name, 50, shape)
    images = pictures(50, shape)
    before = images.clone()
    whole = policy.apply(images, draw)
    assert torch.equal(images, before)
    assert whole.dtype == torch.uint8
    assert not torch.equal(whole, images)
    order = torch.randperm(50, generator=seeded(5))
    for rows in [order, *order.split(17), *torch.arange(8).split(1)]:
        assert torch.equal(policy.apply(images[rows], {key: values[rows] for key, values in draw.items()}), whole[rows])


def test_draws_follow_from_the_generator_and_lie_on_the_cpu() -> None:
    state = torch.get_rng_state()
    for name in NAMES:
        policy = make_policy(PolicyConfig(policy=name), *SHAPE)
        first, again, other = (policy.draw(30, seeded(seed)) for seed in (1, 1, 2))
        assert all(len(values) == 30 and values.device.type == "cpu" for values in first.values())
        assert all(torch.equal(values, again[key]) for key, values in first.items())
        assert any(not torch.equal(values, other[key]) for key, values in first.items()), name
    assert torch.equal(torch.get_rng_state(), state)


def test_an_empty_batch_and_a_single_pixel() -> None:
    for name in NAMES:
        policy, draw = made(name, 0)
        assert policy.apply(pictures(0), draw).shape == (0, *SHAPE)
        if name != "perturb":
            policy, draw = made(name, 40, (3, 1, 1))
            assert policy.apply(pictures(40, (3, 1, 1)), draw).shape == (40, 3, 1, 1)


def test_an_unknown_policy_is_answered_with_the_known_ones() -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        PolicyConfig(policy="autoaugment")
    assert all(name in str(caught.value) for name in NAMES)


def test_images_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="images are 8x2, perturb needs 3 px a side"):
        make_policy(PolicyConfig(policy="perturb"), 3, 2, 8)
    with pytest.raises(ValueError, match="images have 4 channels, strong augmentation needs 1 or 3"):
        make_policy(PolicyConfig(), 4, 8, 8)
    policy, draw = made("randaugment", 5)
    with pytest.raises(ValueError, match="strong augmentation takes uint8"):
        policy.apply(pictures(5).float(), draw)
    with pytest.raises(ValueError, match=r"images are \(3, 8, 16\), the policy was made for \(3, 16, 16\)"):
        policy.apply(pictures(5)[:, :, :8], draw)
    with pytest.raises(ValueError, match="4 images, but a draw for 5"):
        policy.apply(pictures(4), draw)
