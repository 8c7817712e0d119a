import numpy as np
import pydantic
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from latebloom.synth.config import SizeConfig
from latebloom.synth.sizes import Frame, buckets, check_channels, work_size_warning

DEFAULT = SizeConfig()
SIDES = st.integers(8, 60)
MULTIPLES = st.sampled_from([1, 2, 8, 16])


def noise(height: int, width: int, channels: int, count: int = 2) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, height, width, channels), np.uint8)


def frame(height: int, width: int, size: int, multiple: int = 8, config: SizeConfig = DEFAULT) -> Frame:
    return Frame.of(height, width, size=size, multiple=multiple, config=config)


def test_frames_by_hand() -> None:
    for source, size, multiple, scaled, bucket in [
        ((8, 8), 8, 4, (8, 8), (8, 8)),  # digits: nothing to do
        ((32, 32), 512, 8, (512, 512), (512, 512)),  # CIFAR for Stable Diffusion
        ((375, 500), 512, 8, (512, 683), (512, 704)),  # 682.67 wide; 512 + 3 steps of 64
        ((500, 375), 512, 8, (683, 512), (704, 512)),
        ((375, 500), 64, 8, (64, 85), (64, 88)),  # an eighth of 64 is the multiple itself
        ((100, 101), 100, 8, (100, 101), (104, 104)),
        ((100, 105), 100, 8, (100, 105), (104, 112)),
        ((100, 100), 4, 16, (4, 4), (16, 16)),
        ((100, 400), 512, 64, (512, 2048), (512, 2048)),  # the longest that is taken
    ]:
        made = frame(*source, size, multiple)
        assert (made.source, made.scaled, made.bucket) == (source, scaled, bucket)


def test_a_work_size_in_the_config_goes_before_the_generators_own() -> None:
    assert frame(32, 32, 512, config=SizeConfig(work_size=256)).bucket == (256, 256)


def test_a_side_beyond_the_largest_is_refused_and_one_of_it_is_not() -> None:
    def framed(largest: int, config: SizeConfig = DEFAULT) -> Frame:
        return Frame.of(20, 36, size=32, multiple=8, largest=largest, config=config)

    assert framed(0).bucket == framed(64).bucket == (32, 64)
    with pytest.raises(ValueError, match=r"an image of 36x20 would go to the generator as 64x32, expected .* most 56"):
        framed(56)
    assert framed(56, SizeConfig(work_size=24)).bucket == (24, 48)


def test_stretching_makes_squares_of_any_shape() -> None:
    made = frame(20, 200, 64, config=SizeConfig(stretch=True))
    assert (made.scaled, made.bucket) == ((64, 64), (64, 64))
    images = noise(20, 200, 3)
    assert made.back(made.forward(images, 3), 3).shape == images.shape


def test_photos_of_many_shapes_share_few_buckets() -> None:
    frames = [frame(500, width, 512) for width in range(500, 1001)]  # scaled to 512 .. 1024 wide
    assert len({made.scaled for made in frames}) == 501
    assert sorted({made.bucket[1] for made in frames}) == [512, 576, 640, 704, 768, 832, 896, 960, 1024]


@settings(max_examples=50, deadline=None)
@given(SIDES, SIDES, st.integers(8, 60), MULTIPLES)
def test_a_frame_keeps_the_shape_and_fits_the_generator(height: int, width: int, size: int, multiple: int) -> None:
    if max(height, width) > 4 * min(height, width):
        with pytest.raises(ValueError, match="times the other"):
            frame(height, width, size, multiple)
        return
    made = frame(height, width, size, multiple)
    scale = size / min(height, width)
    assert min(made.scaled) == size
    for side, scaled, bucket in zip(made.source, made.scaled, made.bucket, strict=True):
        assert abs(scaled - side * scale) <= 0.5 + 1e-9
        assert bucket >= scaled
        assert bucket % multiple == 0
        assert bucket - scaled < max(multiple, size / 4)  # what is computed for nothing
    assert min(made.bucket) - size < multiple


@settings(max_examples=15, deadline=None)
@given(SIDES, st.integers(0, 20), st.integers(8, 40), MULTIPLES, st.sampled_from([(1, 1), (1, 3), (3, 3)]))
def test_there_and_back_gives_the_source_size(
    height: int, more: int, size: int, multiple: int, channels: tuple[int, int]
) -> None:
    source, generator = channels
    made = frame(height, height + more, size, multiple)
    images = noise(height, height + more, source)
    work = made.forward(images, generator)
    assert (work.shape, work.dtype) == ((2, *made.bucket, generator), np.uint8)
    back = made.back(work, source)
    assert (back.shape, back.dtype) == (images.shape, np.uint8)


@settings(max_examples=15, deadline=None)
@given(SIDES, st.integers(0, 20), MULTIPLES, st.sampled_from([(1, 1), (1, 3), (3, 3)]))
def test_padding_and_grey_as_colour_come_back_bit_for_bit(
    height: int, more: int, multiple: int, channels: tuple[int, int]
) -> None:
    images = noise(height, height + more, channels[0])
    made = frame(height, height + more, height, multiple)  # at its own size: nothing is resampled
    assert np.array_equal(made.back(made.forward(images, channels[1]), channels[0]), images)


@settings(max_examples=15, deadline=None)
@given(
    st.integers(0, 255),
    SIDES,
    st.integers(0, 20),
    st.integers(8, 40),
    st.sampled_from(["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]),
)
def test_a_constant_image_stays_constant(value: int, height: int, more: int, size: int, name: str) -> None:
    made = frame(height, height + more, size, config=SizeConfig.model_validate({"filter": name}))
    work = made.forward(np.full((1, height, height + more, 1), value, np.uint8), 3)
    assert (work == value).all()
    assert (made.back(work, 1) == value).all()


def test_padding_mirrors_the_image_on_all_sides() -> None:
    image = np.array([[1, 2, 3], [4, 5, 6], [7, 8, 9]], np.uint8)[None, :, :, None]
    work = frame(3, 3, 3, 5).forward(image, 1)
    assert work[0, :, :, 0].tolist() == [
        [5, 4, 5, 6, 5],
        [2, 1, 2, 3, 2],
        [5, 4, 5, 6, 5],
        [8, 7, 8, 9, 8],
        [5, 4, 5, 6, 5],
    ]


def test_padding_wider_than_the_image_mirrors_again() -> None:
    image = np.arange(3, dtype=np.uint8)[None, None, :, None].repeat(3, axis=1)
    assert frame(3, 3, 3, 8).forward(image, 1)[0, 0, :, 0].tolist() == [2, 1, 0, 1, 2, 1, 0, 1]


def test_resampling_is_pillows() -> None:
    for channels in [1, 3]:
        images = noise(20, 30, channels)
        made = frame(20, 30, 16, 8, SizeConfig(filter="lanczos"))  # 16 x 24
        for image, work in zip(images, made.forward(images, channels), strict=True):
            expected = Image.fromarray(image.squeeze()).resize((24, 16), Image.Resampling.LANCZOS)
            assert np.array_equal(work.squeeze(), np.asarray(expected))


def test_colour_comes_back_to_grey_as_luminance() -> None:
    red, green, blue = np.eye(3, dtype=np.uint8)[:, None, None, :] * 255
    work = np.stack([np.broadcast_to(colour, (8, 8, 3)) for colour in (red, green, blue)])
    back = frame(8, 8, 8).back(work, 1)
    assert back.shape == (3, 8, 8, 1)
    assert back[:, 0, 0, 0].tolist() == [76, 150, 29]  # 255 times 0.299, 0.587, 0.114


def test_an_image_of_the_right_size_is_not_touched() -> None:
    for side in [8, 32]:
        images = noise(side, side, 1)
        made = frame(side, side, side)
        assert made.forward(images, 1) is images
        assert np.array_equal(made.back(images, 1), images)


def test_images_of_several_sizes_share_a_bucket_and_the_largest_comes_first() -> None:
    images = [noise(8, 8, 3, 1)[0], noise(16, 32, 3, 1)[0], noise(20, 20, 3, 1)[0], noise(32, 16, 3, 1)[0]]
    frames = [frame(*image.shape[:2], 16) for image in images]
    grouped = buckets(frames)
    assert {bucket: rows.tolist() for bucket, rows in grouped.items()} == {
        (16, 32): [1],
        (32, 16): [3],
        (16, 16): [0, 2],
    }
    assert list(grouped)[-1] == (16, 16)
    assert grouped[16, 16].dtype == np.int64
    work = np.concatenate([frames[row].forward(images[row][None], 3) for row in grouped[16, 16]])
    assert work.shape == (2, 16, 16, 3)


def test_an_image_too_long_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^an image of 500x100 has one side 5\.0 times the other, expected at most 4"):
        frame(100, 500, 64)


def test_colour_for_a_grey_generator_is_refused() -> None:
    with pytest.raises(ValueError, match=r"^the images are in colour and the generator makes grey ones; name a"):
        frame(8, 8, 8).forward(noise(8, 8, 3), 1)
    for source, generator in [(1, 1), (1, 3), (3, 3)]:
        check_channels(source, generator)


def test_a_work_size_far_from_the_trained_one_is_warned_of() -> None:
    for work_size, words in [
        (511, "works at 511 pixels and was trained at 512: below its size"),
        (512, None),
        (1023, None),
        (1024, "works at 1024 pixels and was trained at 512: at twice its size or more"),
    ]:
        warning = work_size_warning(work_size, 512)
        assert warning is None if words is None else warning is not None and words in warning


def test_a_tiny_work_size_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="work size 7 is too small; give 8 to 4096, or 0"):
        SizeConfig(work_size=7)
