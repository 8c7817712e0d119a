import numpy as np
import pytest
import scipy.fft
import torch

from latebloom.data.config import DataConfig
from latebloom.data.sources.load import load
from latebloom.synth.config import GenerateConfig, QualityConfig, SampleConfig
from latebloom.synth.generate import draw
from latebloom.synth.generators.load import load_generator
from latebloom.synth.memory import BatchSizes
from latebloom.synth.plan import make_plan, requests
from latebloom.synth.scoring import spread as module
from latebloom.synth.scoring.spread import Spread

LIMIT = QualityConfig().max_distance_ratio
LEVELS = (5.0, 2.0, 0.8, 0.0, -1.3, -2.2, -np.inf)  # log-SNR; the last is pure noise


def spread_of(images: np.ndarray) -> Spread:
    return Spread.of(images.__getitem__, len(images))


def constant(spread: Spread, images: np.ndarray, references: np.ndarray, log_snr: float) -> np.ndarray:
    return spread.ratio(images, references, np.full(len(images), np.exp(log_snr)))


def static(*shape: int) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, shape).astype(np.uint8)


def photos(count: int, seed: int, side: int = 16) -> tuple[np.ndarray, np.ndarray]:
    """Smooth random images (n, side, side, 3) in -1..1 and the variances of their frequencies."""
    y, x, c = np.indices((side, side, 3))
    variance = 12 / (1 + x**2 + y**2 + 9 * c**2) ** 1.2
    frequencies = np.random.default_rng(seed).normal(size=(count, side, side, 3)) * np.sqrt(variance) * 0.3
    return np.asarray(scipy.fft.idctn(frequencies, axes=(1, 2, 3), norm="ortho")), variance * 0.09


def grey_levels(images: np.ndarray) -> np.ndarray:
    return np.clip(np.rint((images + 1) * 127.5), 0, 255).astype(np.uint8)


def test_two_grey_levels_by_hand() -> None:
    # Pixels of 0 and 255, half and half, all of an image alike: variance 1 in each pixel. In frequencies: 4 in the
    # first of four, 0 in the others. The floor is (0.15)^2 of 1.
    images = np.zeros((10, 2, 2, 1), np.uint8)
    images[5:] = 255
    spread, floor = spread_of(images), 0.0225
    assert spread.floor == pytest.approx(floor)
    assert spread.bases[0][0].tolist() == pytest.approx([1, 1, 1, 1])
    assert spread.bases[1][0].tolist() == pytest.approx([4, 0, 0, 0], abs=1e-6)
    # Black for white: 4 a pixel, 16 in the first frequency. That explains 2 * 4 at pure noise and 8 / 13 at snr 3.
    black, white = images[:1], images[-1:]
    assert constant(spread, black, white, -np.inf)[0] == pytest.approx((16 / (8 + floor)) ** 0.5)
    assert constant(spread, black, white, np.log(3))[0] == pytest.approx((16 / (8 / 13 + floor)) ** 0.5)
    # One pixel: 4 / 4 a pixel, 1 / 4 of the energy in each frequency, where three have no variance.
    one = black.copy()
    one[0, 0, 0] = 255
    assert constant(spread, one, black, -np.inf)[0] == pytest.approx((1 / floor) ** 0.5)


@pytest.mark.parametrize("log_snr", LEVELS)
def test_a_perfect_generator_is_at_1_or_below_at_every_level(log_snr: float) -> None:
    """Exact posterior samples of Gaussian images: the theory, on numbers."""
    images, variance = photos(600, 0)
    spread, references = spread_of(grey_levels(images)), images[:200]
    rng, snr = np.random.default_rng(2), np.exp(log_snr)
    seen = scipy.fft.dctn(references, axes=(1, 2, 3), norm="ortho")
    share = snr * variance / (1 + snr * variance)  # of what is seen
    if snr:
        seen = seen + rng.normal(size=seen.shape) / np.sqrt(snr)
    drawn = share * seen + rng.normal(size=seen.shape) * np.sqrt(variance / (1 + snr * variance))
    variants = scipy.fft.idctn(drawn, axes=(1, 2, 3), norm="ortho")
    ratio = constant(spread, grey_levels(variants), grey_levels(references), log_snr)
    assert 0.5 < np.median(ratio) < 1.1
    assert ratio.max() < 2
    assert constant(spread, static(200, 16, 16, 3), grey_levels(references), log_snr).min() > LIMIT


def test_a_copy_is_at_0() -> None:
    images = static(20, 4, 4, 1)
    for log_snr in LEVELS:
        assert constant(spread_of(images), images, images, log_snr).tolist() == [0.0] * 20


def test_another_image_is_the_further_the_more_a_level_leaves_of_its_reference() -> None:
    images = grey_levels(photos(600, 0)[0])
    spread = spread_of(images)
    others = [float(np.median(constant(spread, images[:200], images[200:400], log_snr))) for log_snr in LEVELS]
    assert others == sorted(others, reverse=True)
    assert others[0] > 2
    assert others[-1] == pytest.approx(1, abs=0.2)


def test_blocks_change_no_ratio(monkeypatch: pytest.MonkeyPatch) -> None:
    images, references = static(2, 9, 3, 5, 1)
    expected = constant(spread_of(images), images, references, 0.5)
    monkeypatch.setattr(module, "_BLOCK", 40)
    np.testing.assert_allclose(constant(spread_of(images), images, references, 0.5), expected, rtol=1e-6)


def test_images_of_one_kind_and_a_single_one_have_a_spread() -> None:
    for images in (np.full((3, 4, 4, 1), 7, np.uint8), static(1, 4, 4, 1)):
        assert np.isfinite(constant(spread_of(images), static(len(images), 4, 4, 1), images, 0.0)).all()


def test_the_shipped_generators_digits_are_near_enough_and_static_is_not() -> None:
    """Every third level of its grid, of 60 references."""
    train = load(DataConfig(source="digits", train_limit=200)).train
    generator = load_generator(
        GenerateConfig(generator="digits"), SampleConfig(grid=20, guidance_scale=1), device=torch.device("cpu")
    )
    levels = (2, 5, 8, 10, 14, 16, 20)
    plan = make_plan(list(requests(np.arange(60), levels)), train, 20, 0, lambda *_: "")
    drawn = draw(generator, train, plan, batch=BatchSizes(420))
    images = np.stack([image for image in drawn.images if image is not None])
    references = train.pixels(plan["source_index"].to_numpy())
    snr = np.exp([generator.level(steps).log_snr for steps in plan["level_steps"].to_pylist()])
    spread = Spread.of(train.pixels, len(train))
    ratio = spread.ratio(images, references, snr)
    assert np.median(ratio) < 1
    assert (ratio > LIMIT).mean() < 0.005
    assert spread.ratio(static(*images.shape), references, snr).min() > LIMIT
