import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.linalg
import torch

from latebloom.data.images import LabeledImages
from latebloom.data.store import as_path, write_bytes
from latebloom.synth.scoring import fidelity
from latebloom.synth.scoring.fidelity import (
    FeatureSet,
    InceptionFeatures,
    compare,
    frechet_distance,
    kernel_distance,
    precision_recall,
)

CPU = torch.device("cpu")


def column(*values: float) -> FeatureSet:
    """A set of images with one feature."""
    return FeatureSet(np.array(values)[:, None])


def gaussian(n: int, dimensions: int, seed: int = 0, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return shift + rng.normal(size=(n, dimensions)) @ rng.normal(size=(dimensions, dimensions))


def test_the_frechet_distance_in_one_dimension_by_hand() -> None:
    # Means 1 and 4; variances (1 + 0 + 1) / 2 = 1 and (9 + 0 + 9) / 2 = 9: (4 - 1)^2 + (3 - 1)^2.
    assert frechet_distance(column(0, 1, 2), column(1, 4, 7)) == pytest.approx(13)


def test_the_frechet_distance_of_axis_aligned_gaussians_by_hand() -> None:
    # Variances 4 and 9 against 16 and 1, along the axes; equal means: (2 - 4)^2 + (3 - 1)^2.
    cross = np.array([[1, 0], [-1, 0], [0, 1], [0, -1]]) * math.sqrt(1.5)  # covariance 1 along both axes
    assert frechet_distance(FeatureSet(cross * [2, 3]), FeatureSet(cross * [4, 1])) == pytest.approx(8)


def test_the_frechet_distance_is_that_of_the_matrix_root() -> None:
    for n, m in [(200, 300), (200, 5), (6, 4)]:
        a, b = gaussian(n, 8, 1), gaussian(m, 8, 2, 0.5)
        first, second = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
        overlap = np.trace(scipy.linalg.sqrtm(first @ second)).real
        expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first) + np.trace(second) - 2 * overlap
        assert frechet_distance(FeatureSet(a), FeatureSet(b)) == pytest.approx(expected, rel=1e-6)


def test_kid_by_hand() -> None:
    # k(x, y) = (x y + 1)^3. Within {0, 1}: k(0, 1) = 1. Within {1, 2}: k(1, 2) = 27.
    # Between: k(0, 1), k(0, 2), k(1, 1), k(1, 2) = 1, 1, 8, 27 with mean 37 / 4. 1 + 27 - 37 / 2.
    assert kernel_distance(column(0, 1), column(1, 2), 0) == (9.5, 0)


def test_kid_of_one_distribution_is_about_0_on_either_side_of_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "SUBSETS", 1)  # of all images: each is the same
    values = [kernel_distance(*_two_halves(seed), 0)[0] for seed in range(20)]
    assert min(values) < 0 < max(values)
    assert abs(np.mean(values)) < 3 * np.std(values) / math.sqrt(20)


def _two_halves(seed: int) -> tuple[FeatureSet, FeatureSet]:
    values = np.random.default_rng(seed).normal(size=(120, 4))
    return FeatureSet(values[:60]), FeatureSet(values[60:])


def test_kid_draws_subsets_by_its_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "SUBSET_SIZE", 20)
    a, b = FeatureSet(gaussian(50, 4, 1)), FeatureSet(gaussian(60, 4, 2))
    mean, std = kernel_distance(a, b, 0)
    assert std > 0
    assert kernel_distance(a, b, 0) == (mean, std)
    other, _ = kernel_distance(a, b, 1)
    assert other != mean
    monkeypatch.setattr(fidelity, "SUBSET_SIZE", 50)
    whole, _ = kernel_distance(a, b, 0)
    assert mean == pytest.approx(whole, abs=3 * std)


def test_precision_and_recall_by_hand() -> None:
    # Third neighbours of 0, 1, 2, 3 are 3, 2, 2, 3 away: 5 and 6 are within 3 of 3, 9 and 10 are in no reach.
    # Third neighbours of 5, 6, 9, 10 are 5, 4, 4, 5 away: all of 0, 1, 2, 3 are within 5 of 5.
    low, high = column(0, 1, 2, 3), column(5, 6, 9, 10)
    assert precision_recall(real=low, synthetic=high) == (0.5, 1)
    assert precision_recall(real=high, synthetic=low) == (1, 0.5)


def test_a_collapsed_set_is_precise_and_recalls_nothing_else() -> None:
    real = FeatureSet(gaussian(50, 3))
    copies = FeatureSet(np.repeat(real.values[:1], 10, 0))  # all radii are 0
    assert precision_recall(real, copies) == (1.0, 1 / 50)


def test_blocks_change_no_precision_and_no_recall(monkeypatch: pytest.MonkeyPatch) -> None:
    for block in [1, 100, 1 << 24]:
        a, b = gaussian(60, 3, 3), gaussian(40, 3, 13)
        expected = precision_recall(FeatureSet(a), FeatureSet(b))
        assert 0 < min(expected) < max(expected) < 1
        monkeypatch.setattr(fidelity, "_DISTANCES", block)
        assert precision_recall(FeatureSet(a), FeatureSet(b)) == expected


def test_equal_sets_are_perfect() -> None:
    features = gaussian(40, 6)
    result = compare(FeatureSet(features), FeatureSet(features.copy()), 0)
    assert result.frechet == pytest.approx(0, abs=1e-10)
    assert (result.precision, result.recall) == (1, 1)
    # Unbiased on one and the same set: the pairs of an image with itself count between the sets and not within.
    assert result.kid is not None
    assert result.kid < 0


def test_scores_are_those_of_torch_fidelity() -> None:
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed (the extra fidelity)")
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_kid import kid_features_to_metric
    from torch_fidelity.metric_prc import prc_features_to_metric

    a, b = gaussian(90, 5, 1), gaussian(90, 5, 2, 0.3)
    first, second = torch.from_numpy(a), torch.from_numpy(b)
    result = compare(FeatureSet(a), FeatureSet(b), 0)
    fid = fid_statistics_to_metric(fid_features_to_statistics(first), fid_features_to_statistics(second), False)
    assert result.frechet == pytest.approx(fid["frechet_inception_distance"], rel=1e-9)
    kid = kid_features_to_metric(first, second, kid_subset_size=90, kid_subsets=2, verbose=False)
    assert result.kid == pytest.approx(kid["kernel_inception_distance_mean"], rel=1e-9)
    prc = prc_features_to_metric(second, first, verbose=False)  # generated images come first there
    assert (result.precision, result.recall) == pytest.approx((prc["precision"], prc["recall"]), rel=1e-6)
    assert result.precision != result.recall


def test_what_is_too_small_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for n, note, missing in [
        (1, "one image is no set", {"frechet", "kid", "kid_std", "precision", "recall"}),
        (
            3,
            "Frechet is biased upwards: 3 images for 3 features; KID from subsets of 3 images: its std says little; "
            "precision and recall need 4 images a side",
            {"precision", "recall"},
        ),
        (4, "KID from subsets of 4 images: its std says little", set()),
        (1000, "", set()),
    ]:
        monkeypatch.setattr(fidelity, "SUBSETS", 2)
        result = compare(FeatureSet(gaussian(1100, 3, 1)), FeatureSet(gaussian(n, 3, 2)), 0)
        assert (result.n_real, result.n_synthetic, result.note) == (1100, n, note)
        assert {name for name, value in vars(result).items() if value is None} == missing


def test_sets_that_are_too_small_are_refused_by_each_function() -> None:
    with pytest.raises(ValueError, match="got sets of 1 and 2 images, expected at least 2 on each side"):
        frechet_distance(column(1), column(1, 2))
    with pytest.raises(ValueError, match="got sets of 2 and 1 images, expected at least 2"):
        kernel_distance(column(1, 2), column(1), 0)
    with pytest.raises(ValueError, match="got sets of 4 and 3 images, expected at least 4"):
        precision_recall(column(1, 2, 3, 4), column(1, 2, 3))


@pytest.fixture(scope="module")
def inception_weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the real architecture, drawn at random."""
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed (the extra fidelity)")
    from torch_fidelity import feature_extractor_inceptionv3

    file = tmp_path_factory.mktemp("inception") / "weights.pth"
    kind = feature_extractor_inceptionv3.FeatureExtractorInceptionV3
    with pytest.MonkeyPatch.context() as patch, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        patch.setattr(feature_extractor_inceptionv3, "load_state_dict_from_url", lambda *_, **__: {})
        patch.setattr(kind, "load_state_dict", lambda *_: None)
        torch.save(kind("inception-v3-compat", ["2048"], verbose=False).state_dict(), file)
    return file


@pytest.mark.slow
def test_inception_scores_are_those_of_torch_fidelity(inception_weights: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch_fidelity

    monkeypatch.setattr(
        torch.nn.init, "kaiming_uniform_", lambda tensor, *_, **__: tensor
    )  # weights come from the file

    rng = np.random.default_rng(0)
    sets = [rng.integers(0, high, (4, 12, 10, 3), dtype=np.uint8) for high in (256, 100)]
    sets[1] = sets[1][..., :1]  # grey, which goes into all three channels
    network = InceptionFeatures.load(inception_weights, CPU)
    a, b = (
        network(LabeledImages(images, np.zeros(4, np.int64), ("noise",), "noise")).astype(np.float64) for images in sets
    )
    assert a.shape == b.shape == (4, 2048)
    theirs = torch_fidelity.calculate_metrics(
        **{
            f"input{i}": _Images(torch.from_numpy(s).permute(0, 3, 1, 2).expand(-1, 3, -1, -1))
            for i, s in enumerate(sets, 1)
        },
        **dict.fromkeys(("cuda", "verbose", "cache"), False),
        **dict.fromkeys(("kid", "prc", "save_cpu_ram"), True),
        feature_extractor="inception-v3-compat",
        kid_subset_size=4,
        kid_subsets=1,
        feature_extractor_weights_path=str(inception_weights),
    )
    ours = compare(FeatureSet(b), FeatureSet(a), 0)
    assert ours.kid == pytest.approx(theirs["kernel_inception_distance_mean"], rel=1e-3)
    assert (ours.precision, ours.recall) == (theirs["precision"], theirs["recall"])


class _Images(torch.utils.data.Dataset):
    def __init__(self, images: torch.Tensor) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, row: int) -> torch.Tensor:
        return self.images[row]


def test_inception_says_what_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setitem(sys.modules, "torch_fidelity.feature_extractor_inceptionv3", None)
        with pytest.raises(ValueError, match="not installed; install Latebloom with the extra fidelity"):
            InceptionFeatures.load(tmp_path / "weights.pth", CPU)
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed (the extra fidelity)")
    with pytest.raises(ValueError, match=r"no Inception weights at .*weights\.pth: get https://.*\.pth and name"):
        InceptionFeatures.load(tmp_path / "weights.pth", CPU)


class _Code:
    """Unpickled, it would write a file."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def __reduce__(self) -> Any:
        return Path.touch, (self.file,)


def test_weights_that_are_others_or_hold_code_are_refused(tmp_path: Path) -> None:
    pytest.importorskip("torch_fidelity", reason="torch-fidelity is not installed (the extra fidelity)")
    file, witness = tmp_path / "weights.pth", tmp_path / "was run"
    for content in (_Code(witness), {"fc.weight": torch.zeros(1)}, [1, 2]):
        torch.save(content, file)
        with pytest.raises(ValueError, match=r"weights\.pth does not hold the weights of https://"):
            InceptionFeatures.load(file, CPU)
    file.write_bytes(b"no pickle at all")
    with pytest.raises(ValueError, match=r"weights\.pth does not hold the weights of https://"):
        InceptionFeatures.load(file, CPU)
    write_bytes(as_path("memory://fidelity/weights.pth"), b"no pickle at all")
    with pytest.raises(ValueError, match=r"^memory://fidelity/weights\.pth does not hold the weights of https://"):
        InceptionFeatures.load(as_path("memory://fidelity/weights.pth"), CPU)
    assert not witness.exists()
