import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchvision.transforms.v2 import functional as TF

from latebloom.train.augment.weak import apply_resized_crop, apply_weak, draw_resized_crop, draw_weak


def seeded(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def numbered(batch: int, channels: int = 1, height: int = 3, width: int = 3) -> Tensor:
    """Images whose pixels are all different and none zero, so that a window says where it was cut."""
    pixels = torch.arange(1, batch * channels * height * width + 1, dtype=torch.int32)
    return pixels.view(batch, channels, height, width)


def weakly(images: Tensor, padding: int, flip: bool, generator: torch.Generator) -> Tensor:
    return apply_weak(images, draw_weak(len(images), padding, flip, generator), padding)


def windows(image: Tensor, padding: int, flip: bool) -> dict[tuple[int, int, bool], Tensor]:
    """All that an image (C, H, W) may become, by offset and whether it is mirrored: cut by hand with NumPy."""
    _, height, width = image.shape
    padded = np.pad(image.numpy(), ((0, 0), (padding, padding), (padding, padding)))
    found = {}
    for top in range(2 * padding + 1):
        for left in range(2 * padding + 1):
            window = padded[:, top : top + height, left : left + width]
            for mirrored in (False, True) if flip else (False,):
                found[top, left, mirrored] = torch.from_numpy(np.flip(window, 2).copy() if mirrored else window.copy())
    return found


@settings(max_examples=20, deadline=None)
@given(
    shape=st.tuples(st.integers(1, 4), st.sampled_from([1, 3]), st.integers(1, 5), st.integers(1, 5)),
    padding=st.integers(0, 3),
    flip=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_every_result_is_a_window_of_its_own_zero_padded_image(
    shape: tuple[int, int, int, int], padding: int, flip: bool, seed: int
) -> None:
    images = numbered(*shape)
    results = weakly(images, padding, flip, seeded(seed))
    assert torch.equal(images, numbered(*shape))
    assert results.shape == images.shape
    for image, result in zip(images, results, strict=True):
        assert any(torch.equal(result, window) for window in windows(image, padding, flip).values())


def test_all_offsets_and_both_sides_occur_about_equally_often() -> None:
    image = numbered(1)
    results = weakly(image.expand(3600, -1, -1, -1), 1, True, seeded())
    counts = {
        place: int((results == window).all(dim=(1, 2, 3)).sum()) for place, window in windows(image[0], 1, True).items()
    }
    assert len(counts) == 3 * 3 * 2
    assert sum(counts.values()) == 3600
    # 200 of each expected, standard deviation sqrt(3600 * 1/18 * 17/18) = 13.7: within 5 of them.
    assert min(counts.values()) > 130
    assert max(counts.values()) < 270


def test_a_mirrored_image_has_left_and_right_swapped_and_all_channels_together() -> None:
    image = torch.tensor([[[1, 2, 3]], [[4, 5, 6]]])  # (C, H, W) = (2, 1, 3)
    results = weakly(image.expand(50, -1, -1, -1), 0, True, seeded())
    kinds = {tuple(result.flatten().tolist()) for result in results}
    assert kinds == {(1, 2, 3, 4, 5, 6), (3, 2, 1, 6, 5, 4)}


@pytest.mark.parametrize("dtype", [torch.uint8, torch.float32])
def test_the_dtype_is_kept_and_the_border_is_zero(dtype: torch.dtype) -> None:
    images = torch.full((200, 3, 4, 4), 255).to(dtype)
    results = weakly(images, 4, False, seeded())
    assert results.dtype == dtype
    assert set(results.unique().tolist()) == {0, 255}
    assert (results == 0).all(dim=(1, 2, 3)).any()  # padding as wide as the image: some windows are all border


def test_the_draw_of_some_rows_gives_their_images() -> None:
    images, draw = numbered(20), draw_weak(20, 2, True, seeded())
    whole = apply_weak(images, draw, 2)
    order = torch.randperm(20, generator=seeded(1))
    for rows in (order, order[:7], order[7:8]):
        assert torch.equal(apply_weak(images[rows], {name: d[rows] for name, d in draw.items()}, 2), whole[rows])


@pytest.mark.parametrize("n", [1, 15, 16, 17, 500])
def test_the_draw_of_an_image_does_not_depend_on_how_many_there_are(n: int) -> None:
    for few, many in (
        (draw_weak(n, 4, True, seeded()), draw_weak(1000, 4, True, seeded())),
        (draw_resized_crop(n, 32, 24, seeded(), 0.08), draw_resized_crop(1000, 32, 24, seeded(), 0.08)),
    ):
        assert few.keys() == many.keys()
        assert all(torch.equal(few[name], many[name][:n]) for name in few)


def test_a_draw_that_does_not_fit_is_refused() -> None:
    with pytest.raises(ValueError, match="4 images, but a draw of top for 5"):
        apply_weak(numbered(4), draw_weak(5, 1, False, seeded()), 1)
    with pytest.raises(ValueError, match="padding=2 does not fit a draw of"):
        apply_weak(numbered(4), draw_weak(4, 0, True, seeded()), 2)


@pytest.mark.parametrize(("dtype", "size"), [(torch.uint8, (20, 13)), (torch.float32, (8, 8))])
def test_a_resized_crop_is_torchvisions(dtype: torch.dtype, size: tuple[int, int]) -> None:
    images = torch.randint(0, 256, (60, 3, 12, 17), generator=seeded()).to(dtype)
    draw = draw_resized_crop(60, 12, 17, seeded(1), 0.08)
    found = apply_resized_crop(images, draw, *size)
    assert (found.dtype, found.shape) == (dtype, (60, 3, *size))
    for image, window, result in zip(images, draw["window"].tolist(), found, strict=True):
        theirs = TF.resized_crop(image, *window, size, antialias=False)
        assert (result.float() - theirs.float()).abs().max() <= (1 if dtype == torch.uint8 else 1e-3)
    rows = torch.tensor([5, 40, 2])
    assert torch.equal(apply_resized_crop(images[rows], {"window": draw["window"][rows]}, *size), found[rows])


def test_windows_have_legal_areas_and_aspects_and_lie_inside() -> None:
    top, left, high, wide = draw_resized_crop(5_000, 200, 300, seeded(), 0.08)["window"].double().unbind(1)
    assert bool((top >= 0).all() and (left >= 0).all() and (top + high <= 200).all() and (left + wide <= 300).all())
    share, aspect = high * wide / 60_000, wide / high
    assert 0.078 < float(share.min()) < 0.1
    assert float(share.max()) > 0.8
    assert abs(float(share[share < 0.5].mean()) - 0.29) < 0.02  # uniform in 0.08..0.5, where all fits
    assert 0.73 < float(aspect.min()) < 0.77
    assert 1.3 < float(aspect.max()) < 1.36


def test_where_no_window_fits_the_middle_is_cut_as_torchvision_does() -> None:
    window = draw_resized_crop(3, 10, 100, seeded(), 1.0)["window"]
    assert window.tolist() == [[0, 43, 10, 13]] * 3  # 10 * 4 / 3 = 13 wide


def test_windows_for_other_images_are_refused() -> None:
    with pytest.raises(ValueError, match="3 images, but windows for 2"):
        apply_resized_crop(numbered(3), draw_resized_crop(2, 3, 3, seeded(), 0.08), 3, 3)
