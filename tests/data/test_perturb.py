import numpy as np
import pytest

from latebloom.data.config import PerturbConfig
from latebloom.data.images import LabeledImages
from latebloom.data.perturb import class_shares, noise_targets, perturb

CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")


def numbered(counts: list[int], class_names: tuple[str, ...] = ()) -> LabeledImages:
    """So many images of each class, shuffled; the first two bytes of an image are its row."""
    labels = np.random.default_rng(7).permutation(np.repeat(np.arange(len(counts)), counts))
    images = np.zeros((len(labels), 1, 2, 1), np.uint8)
    images[:, 0, 0, 0], images[:, 0, 1, 0] = np.divmod(np.arange(len(labels)), 256)
    return LabeledImages(images, labels, class_names or tuple(f"c{c}" for c in range(len(counts))), "numbered")


def rows_of(data: LabeledImages) -> list[int]:
    return (data.pixels()[:, 0, 0, 0].astype(int) * 256 + data.pixels()[:, 0, 1, 0]).tolist()


def test_the_default_changes_nothing() -> None:
    data = numbered([3, 2])
    made = perturb(data, PerturbConfig(), 0)
    assert made.data is data
    assert made.kept.tolist() == [0, 1, 2, 3, 4]
    assert made.flipped.tolist() == []


# Symmetric noise


def test_symmetric_noise_gives_exactly_so_many_another_class() -> None:
    data = numbered([50, 30, 20])
    made = perturb(data, PerturbConfig(noise="symmetric", noise_fraction=0.37), 0)
    assert len(made.flipped) == 37  # a label that is drawn again from all classes would stay in a third of the cases
    changed = np.flatnonzero(made.data.labels != data.labels)
    assert changed.tolist() == made.flipped.tolist()
    assert made.kept.tolist() == list(range(100))
    assert rows_of(made.data) == list(range(100))
    assert made.data.origin == "numbered (symmetric noise)"
    assert data.class_counts().tolist() == [50, 30, 20]  # the input is as it was


def test_all_labels_are_wrong_at_a_fraction_of_one() -> None:
    data = numbered([5, 5, 5])
    made = perturb(data, PerturbConfig(noise="symmetric", noise_fraction=1), 0)
    assert made.flipped.tolist() == list(range(15))


def test_the_other_classes_are_equally_likely() -> None:
    data = numbered([3000, 10, 10, 10])
    made = perturb(data, PerturbConfig(noise="symmetric", noise_fraction=1), 0)
    to = np.bincount(made.data.labels[data.labels == 0], minlength=4)
    assert to[0] == 0
    assert (abs(to[1:] - 1000) < 5 * np.sqrt(3000 * 2 / 9)).all()  # five standard deviations


def test_a_larger_fraction_changes_the_same_labels_and_more() -> None:
    for noise in ["symmetric", "asymmetric"]:
        data = numbered([40, 30, 30])
        few, many = (perturb(data, PerturbConfig(noise=noise, noise_fraction=p), 3) for p in (0.2, 0.6))
        assert set(few.flipped.tolist()) < set(many.flipped.tolist())
        np.testing.assert_array_equal(few.data.labels[few.flipped], many.data.labels[few.flipped])


def test_the_seed_decides() -> None:
    data = numbered([40, 30, 30])
    config = PerturbConfig(noise="symmetric", imbalance="long_tailed", imbalance_factor=3)
    first, again, other = (perturb(data, config, seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(first.data.labels, again.data.labels)
    np.testing.assert_array_equal(first.kept, again.kept)
    assert first.kept.tolist() != other.kept.tolist()


# Asymmetric noise


def test_cifar10s_pairs_are_the_published_ones() -> None:
    to = {CIFAR10[c]: CIFAR10[t] for c, t in enumerate(noise_targets(CIFAR10)) if c != t}
    assert to == {"truck": "automobile", "bird": "airplane", "cat": "dog", "dog": "cat", "deer": "horse"}


def test_the_pairs_follow_the_names_and_not_the_numbers() -> None:
    names = tuple(reversed(CIFAR10))
    targets = noise_targets(names)
    assert names[targets[names.index("truck")]] == "automobile"
    assert names[targets[names.index("ship")]] == "ship"


def test_other_classes_become_the_next_one() -> None:
    assert noise_targets(("a", "b", "c")).tolist() == [1, 2, 0]


def test_asymmetric_noise_takes_its_share_of_each_affected_class() -> None:
    data = numbered([10] * 10, CIFAR10)
    made = perturb(data, PerturbConfig(noise="asymmetric", noise_fraction=0.4), 0)
    moved = np.zeros((10, 10), int)
    np.add.at(moved, (data.labels, made.data.labels), 1)
    affected = {"truck": "automobile", "bird": "airplane", "cat": "dog", "dog": "cat", "deer": "horse"}
    for c, name in enumerate(CIFAR10):
        expected = np.zeros(10, int)
        expected[c] = 6 if name in affected else 10
        if name in affected:
            expected[CIFAR10.index(affected[name])] = 4
        assert moved[c].tolist() == expected.tolist()
    assert len(made.flipped) == 20  # a flipped cat is not flipped back as a dog


# Imbalance


def test_the_long_tail_of_cifar10_is_the_published_one() -> None:
    data = numbered([5000] * 10)
    made = perturb(data, PerturbConfig(imbalance="long_tailed"), 0)
    assert made.data.class_counts().tolist() == [5000, 2997, 1796, 1077, 645, 387, 232, 139, 83, 50]
    assert len(made.kept) == 12_406
    assert (np.diff(made.kept) > 0).all()
    np.testing.assert_array_equal(made.data.labels, data.labels[made.kept])
    assert rows_of(made.data) == made.kept.tolist()


def test_a_long_tail_ends_at_one_image() -> None:
    made = perturb(numbered([10, 10, 10]), PerturbConfig(imbalance="long_tailed", imbalance_factor=10_000), 0)
    assert made.data.class_counts().tolist() == [10, 1, 1]  # and not 0


def test_a_stronger_imbalance_keeps_a_part_of_what_a_weaker_one_keeps() -> None:
    weak, strong = (
        perturb(numbered([50] * 4), PerturbConfig(imbalance="long_tailed", imbalance_factor=f), 5) for f in (5, 50)
    )
    assert set(strong.kept.tolist()) < set(weak.kept.tolist())


def test_linear_imbalance_leaves_some_of_every_class() -> None:
    made = perturb(numbered([100] * 10), PerturbConfig(imbalance="linear"), 0)
    assert made.data.class_counts().tolist() == [5, 10, 20, 30, 40, 50, 60, 70, 80, 90]


def test_linear_imbalance_as_published_has_no_image_of_the_first_class() -> None:
    # "10c% of class c" of CIFAR-10: 22,500 of 50,000, so one image in a hundred here gives 225.
    made = perturb(numbered([50] * 10, CIFAR10), PerturbConfig(imbalance="linear", linear_least=0), 0)
    assert made.data.class_counts().tolist() == [0, 5, 10, 15, 20, 25, 30, 35, 40, 45]
    assert len(made.data) == 225
    assert made.data.class_names == CIFAR10


def test_shares_are_of_each_class_own_size() -> None:
    made = perturb(numbered([8, 400]), PerturbConfig(imbalance="long_tailed", imbalance_factor=4), 0)
    assert made.data.class_counts().tolist() == [8, 100]


def test_shares_of_one_class() -> None:
    assert class_shares(PerturbConfig(imbalance="long_tailed"), 1).tolist() == [1]
    assert class_shares(PerturbConfig(imbalance="linear"), 2).tolist() == [0.05, 0.5]


def test_noise_is_added_to_what_is_left() -> None:
    data = numbered([40] * 4)
    made = perturb(data, PerturbConfig(noise="symmetric", noise_fraction=0.25, imbalance="linear"), 0)
    assert data.labels[made.kept].tolist().count(3) == 30
    assert len(made.data) == len(made.kept) == 2 + 10 + 20 + 30
    assert len(made.flipped) == round(62 / 4)
    assert np.flatnonzero(made.data.labels != data.labels[made.kept]).tolist() == made.flipped.tolist()
    assert made.data.origin == "numbered (linear, symmetric noise)"


def test_noise_in_a_single_class_is_refused() -> None:
    for noise in ["symmetric", "asymmetric"]:
        with pytest.raises(ValueError, match="got 1 class, expected at least 2 for label noise; set perturb"):
            perturb(numbered([5]), PerturbConfig(noise=noise), 0)


def test_an_imbalance_that_leaves_nothing_is_refused() -> None:
    with pytest.raises(ValueError, match="the imbalance leaves no image; give a linear_least above 0"):
        perturb(numbered([5]), PerturbConfig(imbalance="linear", linear_least=0), 0)
