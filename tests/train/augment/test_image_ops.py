import pytest
import torch
from torch import Tensor
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as TF

from latebloom.train.augment import image_ops
from latebloom.train.augment.image_ops import CODES, OPERATIONS, apply_operations, mixed

SHAPES = [(3, 32, 32), (1, 28, 28), (3, 21, 34)]  # colour, grey, and neither square nor even
SPATIAL = ["ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate"]
RANGES = {
    **dict.fromkeys(("ShearX", "ShearY", "Brightness", "Color", "Contrast", "Sharpness"), (-0.99, 0.99)),
    **dict.fromkeys(("TranslateX", "TranslateY"), (-32.0, 32.0)),
    "Rotate": (-135.0, 135.0),
    "Posterize": (0.0, 8.0),
    "Solarize": (0.0, 1.0),
    "Cutout": (0.0, 40.0),
    "GaussianBlur": (0.1, 2.0),
}


def pictures(count: int, shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Smooth random images of different contrast, with black, white, grey and dim ones among them."""
    generator = torch.Generator().manual_seed(seed)
    small = torch.rand(count, shape[0], 5, 5, generator=generator)
    images = torch.nn.functional.interpolate(small, size=shape[1:], mode="bilinear", align_corners=False)
    images = (255 * images * torch.linspace(0.2, 1, count)[:, None, None, None]).to(torch.uint8)
    images[0], images[1], images[2] = 0, 255, 119
    images[3] = images[3, :1]  # red, green and blue equal
    images[4] = torch.randint(0, 256, shape, generator=generator)
    return images


def strengths(name: str, count: int) -> Tensor:
    low, high = RANGES.get(name, (0.0, 0.0))
    values = torch.linspace(low, high, count)
    return values.round() if name in ("Posterize", "Cutout", "Rotate") else values


def reference(image: Tensor, name: str, magnitude: float, interpolation: str = "nearest") -> Tensor:
    """torchvision's own, one image (C, H, W)."""
    if name == "GaussianBlur":
        return TF.gaussian_blur(image, [5, 5], [magnitude, magnitude])
    transform = v2.TrivialAugmentWide(interpolation=interpolation)
    return transform._apply_image_or_video_transform(image, name, magnitude, transform.interpolation, transform._fill)


def apply(images: Tensor, name: str, magnitudes: Tensor, **more: object) -> Tensor:
    return apply_operations(images, torch.full((len(images),), CODES[name]), magnitudes, **more)


def differences(ours: Tensor, theirs: Tensor) -> tuple[float, int]:
    """Share of values that differ, and by how much at most."""
    distance = (ours.int() - theirs.int()).abs()
    return (distance > 0).float().mean().item(), int(distance.max())


@pytest.mark.parametrize("name", [name for name in OPERATIONS if name != "Cutout"])
def test_each_operation_is_torchvisions_at_each_images_own_magnitude(name: str) -> None:
    for shape in SHAPES:
        images = pictures(41, shape)
        before, magnitudes = images.clone(), strengths(name, 41)
        results = apply(images, name, magnitudes)
        theirs = torch.stack([reference(*pair) for pair in zip(images, [name] * 41, magnitudes.tolist(), strict=True)])
        share, most = differences(results, theirs)
        if name in ("Color", "Contrast", "Sharpness", "GaussianBlur"):  # sums in another order, then cut off
            assert (most <= 1, share < 1e-3) == (True, True)
        elif name in ("ShearX", "ShearY", "Rotate"):  # two pixels equally near
            assert share < 1e-3
        else:
            assert share == 0
        assert torch.equal(images, before)
        assert results.data_ptr() != images.data_ptr()


@pytest.mark.parametrize("name", SPATIAL)
def test_bilinear_moves_are_torchvisions_to_one_grey_level(name: str) -> None:
    shape = (3, 21, 34)
    images, magnitudes = pictures(21, shape), strengths(name, 21)
    results = apply(images, name, magnitudes, bilinear=True)
    theirs = [reference(*pair, "bilinear") for pair in zip(images, [name] * 21, magnitudes.tolist(), strict=True)]
    share, most = differences(results, torch.stack(theirs))
    assert share < 1e-3
    assert most <= 1


def test_quarter_turns_move_whole_pixels_counter_clockwise() -> None:
    image = torch.arange(48, dtype=torch.uint8).view(1, 3, 4, 4)
    for degrees in (0.0, 90.0, -90.0, 180.0):
        turned = apply(image, "Rotate", torch.tensor([degrees]))
        assert torch.equal(turned, torch.rot90(image, int(degrees // 90), (2, 3)))


def test_moves_by_hand() -> None:
    image = torch.tensor([[[[1, 2, 3], [4, 5, 6], [7, 8, 9]]]], dtype=torch.uint8)
    right = apply(image, "TranslateX", torch.tensor([1.9]))  # cut off to 1
    assert right[0, 0].tolist() == [[0, 1, 2], [0, 4, 5], [0, 7, 8]]
    up = apply(image, "TranslateY", torch.tensor([-2.0]))
    assert up[0, 0].tolist() == [[7, 8, 9], [0, 0, 0], [0, 0, 0]]


def test_cutout_is_a_square_of_zeros_cut_off_at_the_border() -> None:
    images = torch.full((3, 1, 4, 4), 9, dtype=torch.uint8)
    centers = torch.tensor([[0.5, 0.5], [0.0, 0.99], [0.5, 0.5]])
    results = apply(images, "Cutout", torch.tensor([2.0, 2.0, 0.0]), centers=centers)
    zero = [torch.nonzero(image[0] == 0).tolist() for image in results]
    assert zero[0] == [[1, 1], [1, 2], [2, 1], [2, 2]]
    assert zero[1] == [[0, 2], [0, 3]]  # rows -1 and 0, columns 2 and 3
    assert zero[2] == []


@pytest.mark.parametrize("length", [4.0, 7.0, 60.0])
def test_cutout_is_torchvisions_erase(length: float) -> None:
    images = pictures(12, (3, 9, 14))
    centers = torch.rand(12, 2, generator=torch.Generator().manual_seed(1))
    results = apply(images, "Cutout", torch.full((12,), length), centers=centers)
    start = (centers * torch.tensor([9, 14])).long() - int(length) // 2
    assert torch.equal(image_ops._masked(images, start, start + int(length)), results)  # as a GPU does it
    for image, (down, across), result in zip(images, centers.tolist(), results, strict=True):
        top, left = int(down * 9) - int(length) // 2, int(across * 14) - int(length) // 2
        high, wide = top + int(length), left + int(length)
        top, left = max(top, 0), max(left, 0)
        erased = TF.erase(image, top, left, min(high, 9) - top, min(wide, 14) - left, torch.zeros(3, 1, 1))
        assert torch.equal(result, erased.to(torch.uint8))


def test_a_result_depends_on_no_other_image_of_the_batch() -> None:
    generator = torch.Generator().manual_seed(2)
    images = pictures(102, (3, 12, 9))
    codes = torch.arange(102) % len(OPERATIONS)
    magnitudes = torch.stack([strengths(OPERATIONS[code], 102)[i] for i, code in enumerate(codes.tolist())])
    centers = torch.rand(102, 2, generator=generator)
    for bilinear in (False, True):
        whole = apply_operations(images, codes, magnitudes, centers, bilinear=bilinear)
        order = torch.randperm(102, generator=generator)
        for rows in [order, *order.split(37), *torch.arange(34).split(1)]:  # every operation alone
            alone = apply_operations(images[rows], codes[rows], magnitudes[rows], centers[rows], bilinear=bilinear)
            assert torch.equal(alone, whole[rows])


def test_images_without_contrast_or_of_two_pixels_stay_as_they_are() -> None:
    flat = torch.full((2, 3, 5, 5), 77, dtype=torch.uint8)
    for name in ("AutoContrast", "Equalize", "Contrast", "Sharpness", "GaussianBlur"):
        assert int((apply(flat, name, torch.tensor([0.5, 0.9])).int() - flat.int()).abs().max()) <= 1, name
    tiny = pictures(5, (3, 2, 2))
    assert torch.equal(apply(tiny, "Sharpness", torch.full((5,), 0.9)), tiny)


def test_strided_images_and_an_empty_batch() -> None:
    images = pictures(17, (3, 8, 8))
    codes, centers = torch.arange(17), torch.full((17, 2), 0.5)
    last = images.to(memory_format=torch.channels_last)
    expected = apply_operations(images, codes, torch.ones(17), centers)
    assert torch.equal(apply_operations(last, codes, torch.ones(17), centers), expected)
    nothing = torch.empty(0, dtype=torch.int64)
    assert apply_operations(images[:0], nothing, torch.empty(0)).shape == (0, 3, 8, 8)


def test_mixup_is_rounded_and_keeps_an_image_at_one() -> None:
    own, other = torch.full((3, 1, 1, 1), 101, dtype=torch.uint8), torch.full((3, 1, 1, 1), 200, dtype=torch.uint8)
    found = mixed(own, other, torch.tensor([1.0, 0.0, 0.25])).flatten().tolist()
    assert found == [101, 200, 175]  # 175.25


@pytest.mark.parametrize(
    ("images", "message"),
    [
        (torch.zeros(1, 3, 4, 4), "images are torch.float32, strong augmentation takes uint8"),
        (
            torch.zeros(1, 4, 4, 3, dtype=torch.uint8),
            r"images are \(1, 4, 4, 3\), expected \(B, C, H, W\) with 1 or 3 channels",
        ),
        (torch.zeros(3, 4, 4, dtype=torch.uint8), r"images are \(3, 4, 4\)"),
    ],
)
def test_wrong_images_are_refused(images: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        apply(images, "Invert", torch.zeros(len(images)))
