import itertools

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from latebloom.data.images import LabeledImages
from latebloom.train.analysis.diagnostics import (
    Spectrum,
    compare_spectra,
    gradient_variance,
    jacobian_spectrum,
    subspace_angles,
)
from latebloom.train.models.build import build


def pictures(n: int, side: int = 2, classes: int = 3) -> LabeledImages:
    rng = np.random.default_rng(n)
    images = rng.integers(0, 256, (n, side, side, 1), np.uint8)
    return LabeledImages(images, rng.integers(0, classes, n), tuple("abcdefg"[:classes]), "noise")


def linear(inputs: int = 4, classes: int = 3) -> nn.Module:
    model = nn.Sequential(nn.Flatten(), nn.Linear(inputs, classes))
    for w in model.parameters():
        w.data = torch.linspace(-1, 1, w.numel()).view_as(w).sin() * 2
    return model


def gradients_by_hand(model: nn.Module, data: LabeledImages) -> np.ndarray:
    """Of softmax regression: (p - y) times [1, x], one row an example."""
    x = data.pixels().reshape(len(data), -1) / 255.0
    z = x @ model[1].weight.detach().double().numpy().T + model[1].bias.detach().double().numpy()
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    r = p - np.eye(data.num_classes)[data.labels]
    return np.stack([np.append(np.outer(a, b), a) for a, b in zip(r, x, strict=True)])


def test_of_batches_that_are_the_whole_set_the_variance_is_zero() -> None:
    data = pictures(5)
    found = gradient_variance(linear(), data, np.arange(5), batch_size=5, batches=3, seed=0)
    assert found.variance == pytest.approx(0, abs=1e-12)
    expected = (gradients_by_hand(linear(), data).mean(0) ** 2).sum()
    assert found.squared_norm == pytest.approx(expected, rel=1e-5)


def test_the_variance_of_a_linear_model_is_that_of_all_its_batches_by_hand() -> None:
    data, size = pictures(6), 2
    by_hand = gradients_by_hand(linear(), data)
    mean = by_hand.mean(0)
    batches = [by_hand[list(batch)].mean(0) for batch in itertools.combinations(range(6), size)]
    exact = float(np.mean([((g - mean) ** 2).sum() for g in batches]))
    # Drawing without replacement: sigma^2 / B times (n - B) / (n - 1).
    assert exact == pytest.approx(((by_hand - mean) ** 2).sum(1).mean() / size * (6 - size) / 5)
    found = gradient_variance(linear(), data, np.arange(6), size, batches=150, seed=0)
    assert found.standard_error < 0.1 * exact
    assert abs(found.variance - exact) < 4 * found.standard_error


def test_each_distance_is_one_that_a_batch_has() -> None:
    data = pictures(4)
    by_hand = gradients_by_hand(linear(), data)
    distances = ((by_hand - by_hand.mean(0)) ** 2).sum(1)
    for seed in range(5):
        found = gradient_variance(linear(), data, np.arange(4), batch_size=1, batches=1, seed=seed)
        assert np.abs(distances - found.variance).min() < 1e-5
        assert np.isnan(found.standard_error)


def test_the_standard_error_is_that_of_a_mean() -> None:
    data = pictures(8)
    one, two = (gradient_variance(linear(), data, np.arange(8), 2, batches, seed=0) for batches in (1, 2))
    other = 2 * two.variance - one.variance  # the first batch is the same
    assert two.standard_error == pytest.approx(abs(one.variance - other) / 2)


def test_a_row_that_stands_there_twice_counts_twice() -> None:
    data = pictures(3)
    by_hand = gradients_by_hand(linear(), data)[[0, 1, 1, 2]]
    found = gradient_variance(linear(), data, np.array([0, 1, 1, 2]), batch_size=4, batches=1, seed=0)
    assert found.squared_norm == pytest.approx((by_hand.mean(0) ** 2).sum(), rel=1e-5)


def test_the_model_is_left_as_it_was_and_its_batchnorm_does_not_see_the_batch() -> None:
    data = pictures(20, side=8)
    model = build("small-cnn", 3, (8, 8, 1), seed=0).train()
    before = {name: t.clone() for name, t in model.state_dict().items()}
    whole = gradient_variance(model, data, np.arange(20), batch_size=20, batches=1, seed=0)
    assert whole.variance == pytest.approx(0, abs=1e-12)
    apart = gradient_variance(model, data, np.arange(10), batch_size=10, batches=1, seed=0)
    assert apart.squared_norm != pytest.approx(whole.squared_norm)
    assert model.training
    assert all(torch.equal(t, before[name]) for name, t in model.state_dict().items())
    assert all(w.grad is None for w in model.parameters())


def test_batches_that_cannot_be_drawn_are_refused() -> None:
    for size, batches in ((0, 1), (6, 1), (5, 0)):
        with pytest.raises(ValueError, match="1 to 5 examples"):
            gradient_variance(linear(), pictures(5), np.arange(5), size, batches, seed=0)


def jacobian_one_by_one(model: nn.Module, images: Tensor, labels: Tensor | None) -> Tensor:
    """By one backward pass a row, in eval mode."""
    model.eval()
    rows = []
    for n in range(len(images)):
        logits = model(images[n : n + 1].float() / 255)[0]
        for k in range(len(logits)) if labels is None else [int(labels[n])]:
            gradients = torch.autograd.grad(logits[k], list(model.parameters()), retain_graph=True)
            rows.append(torch.cat([g.flatten() for g in gradients]))
    return torch.stack(rows).double()


@pytest.mark.parametrize(("with_labels", "memory_bytes"), [(True, 1), (False, 40_000), (True, 2 << 30)])
def test_singular_values_from_the_gram_matrix_equal_those_of_the_jacobian(with_labels: bool, memory_bytes: int) -> None:
    data = pictures(7, side=8)
    images = torch.from_numpy(data.pixels().transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(data.labels) if with_labels else None
    model = build("small-cnn", 3, (8, 8, 1), seed=1, width=2)
    found = jacobian_spectrum(model, images, labels, chunk=2, memory_bytes=memory_bytes)
    assert model.training
    jacobian = jacobian_one_by_one(model, images, labels)
    u, values, _ = torch.linalg.svd(jacobian, full_matrices=False)
    torch.testing.assert_close(found.values, values, rtol=1e-5, atol=1e-6 * float(values[0]))
    torch.testing.assert_close((found.left * u).sum(0).abs()[:3], torch.ones(3, dtype=torch.float64))


def random_spectrum(m: int, seed: int) -> Spectrum:
    generator = torch.Generator().manual_seed(seed)
    matrix = torch.randn(m, m, generator=generator, dtype=torch.float64)
    u, values, _ = torch.linalg.svd(matrix)
    return Spectrum(values, u)


def test_without_a_perturbation_nothing_changes() -> None:
    spectrum = random_spectrum(10, 0)
    change = compare_spectra(spectrum, spectrum, bins=3)
    assert change.difference.tolist() == [0, 0, 0]
    assert np.abs(change.angle).max() < 1e-12
    sizes = [spectrum.values[:4].mean(), spectrum.values[4:7].mean(), spectrum.values[7:].mean()]
    assert change.values.tolist() == pytest.approx([float(s) for s in sizes])


def test_a_rotation_inside_a_bin_is_no_angle_and_one_across_bins_is() -> None:
    spectrum = random_spectrum(4, 0)
    turn = torch.tensor([[0.6, -0.8], [0.8, 0.6]], dtype=torch.float64)
    inside, across = spectrum.left.clone(), spectrum.left.clone()
    inside[:, :2] = inside[:, :2] @ turn
    assert compare_spectra(spectrum, Spectrum(spectrum.values, inside), bins=2).angle.max() < 1e-6
    across[:, 1:3] = across[:, 1:3] @ turn  # 53.13 degrees between the old and the new second vector
    change = compare_spectra(spectrum, Spectrum(spectrum.values, across), bins=2)
    assert change.angle.tolist() == pytest.approx([np.degrees(np.arccos(0.6)) / 2] * 2)


def test_the_difference_is_after_minus_before_in_each_bin() -> None:
    left = torch.eye(4, dtype=torch.float64)
    before, after = (Spectrum(torch.tensor(v, dtype=torch.float64), left) for v in ([9, 7, 2, 0], [10, 8, 5, 1]))
    assert compare_spectra(before, after, bins=2).difference.tolist() == [1, 2]


def test_subspace_angles_equal_those_of_scipy() -> None:
    import scipy.linalg

    generator = torch.Generator().manual_seed(0)
    first, second = torch.randn(2, 9, 3, generator=generator, dtype=torch.float64)
    for other in (second, first + 1e-7 * second, first + 0.3 * second):
        expected = scipy.linalg.subspace_angles(first.numpy(), other.numpy())[::-1]
        np.testing.assert_allclose(subspace_angles(first, other).numpy(), expected, rtol=1e-6)


def test_angles_near_90_degrees_keep_their_digits() -> None:
    first = torch.tensor([[1.0], [0.0]], dtype=torch.float64)
    second = torch.tensor([[1e-6], [1.0]], dtype=torch.float64)
    assert np.pi / 2 - subspace_angles(first, second).item() == pytest.approx(1e-6, rel=1e-6)


def test_spectra_that_do_not_match_are_refused() -> None:
    with pytest.raises(ValueError, match="have 4 and 5 singular values"):
        compare_spectra(random_spectrum(4, 0), random_spectrum(5, 0), bins=2)
    with pytest.raises(ValueError, match="at least 30"):
        compare_spectra(random_spectrum(4, 0), random_spectrum(4, 0))


def test_larger_perturbations_move_the_spectrum_more() -> None:
    data = pictures(12, side=8)
    images = torch.from_numpy(data.pixels().transpose(0, 3, 1, 2).copy())
    labels = torch.from_numpy(data.labels)
    model = build("small-cnn", 3, (8, 8, 1), seed=1, width=2)
    clean = jacobian_spectrum(model, images, labels)
    noise = torch.randint(-1, 2, images.shape, generator=torch.Generator().manual_seed(0))

    def moved(size: int) -> float:
        other = (images.int() + size * noise).clamp(0, 255).to(torch.uint8)
        return float(np.abs(compare_spectra(clean, jacobian_spectrum(model, other, labels), bins=3).difference).sum())

    assert 0 == moved(0) < moved(8) < moved(64)
