import dataclasses
import io
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from latebloom.data.depth import BadImage, BadImages, Decoding
from latebloom.data.images import EncodedImages, LabeledImages, concat, encode_png


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


def labelled(n: int = 4, **changes: Any) -> LabeledImages:
    """n images of 2x2 grey pixels, image i all of value i, labels 0, 1, 0, 1, ..."""
    images = np.repeat(np.arange(n, dtype=np.uint8), 4).reshape(n, 2, 2, 1)
    return dataclasses.replace(LabeledImages(images, np.arange(n) % 2, ("cat", "dog"), "here"), **changes)


def encoded(images: LabeledImages) -> LabeledImages:
    blobs = [encode_png(pixels) for pixels in images.pixels()]
    return dataclasses.replace(
        images, images=EncodedImages(blobs, [f"{i}.png" for i in range(len(blobs))], images.image_shape)
    )


# EncodedImages


def test_encoded_rows_come_in_the_order_asked_for() -> None:
    images = encoded(labelled(4))
    assert images.pixels(np.array([3, 0, 3]))[:, 0, 0, 0].tolist() == [3, 0, 3]
    assert images.pixels(np.array([3, 0, 3])).dtype == np.uint8


def test_an_image_of_another_size_is_named_with_both_sizes() -> None:
    blobs = [encode_png(np.zeros((4, 5, 1), np.uint8)), encode_png(np.zeros((4, 6, 1), np.uint8))]
    images = EncodedImages(blobs, ["a.png", "b.png"], (4, 5, 1))
    assert images[np.array([0])].shape == (1, 4, 5, 1)
    with pytest.raises(ValueError, match=r"b\.png is 6x4 while the first image is 5x4; .*--image-size"):
        images[np.array([0, 1])]
    assert dataclasses.replace(images, shape=(4, 4, 1), decoding=Decoding(4))[np.array([0, 1])].shape == (2, 4, 4, 1)


# LabeledImages


def test_whole_images_are_those_before_the_cut() -> None:
    originals = [np.full((height, width, 1), height, np.uint8) for height, width in ((4, 6), (9, 3), (2, 2))]
    stored = EncodedImages([encode_png(image) for image in originals], list("abc"), (2, 2, 1), decoding=Decoding(2))
    images = LabeledImages(stored, np.arange(3), ("a", "b", "c"), "files")
    for image, row in zip(images.whole(np.array([2, 0, 1])), (2, 0, 1), strict=True):
        np.testing.assert_array_equal(image, originals[row])
    assert images.pixels().shape == (3, 2, 2, 1)
    assert images.crop == 2
    # Grey beside colour is as it is when decoded for training.
    colour = dataclasses.replace(images, images=dataclasses.replace(stored, shape=(2, 2, 3)))
    assert [image.shape for image in colour.whole(np.array([0, 1]))] == [(4, 6, 3), (9, 3, 3)]


def test_images_that_are_not_cut_are_whole_already() -> None:
    for encode in [False, True]:
        images = encoded(labelled(4)) if encode else labelled(4)
        assert images.crop == 0
        rows = np.array([3, 0, 3])
        np.testing.assert_array_equal(np.stack(images.whole(rows)), images.pixels(rows))


def test_a_subset_is_cut_as_its_images_are() -> None:
    images = encoded(labelled(4))
    assert isinstance(images.images, EncodedImages)
    cropped = dataclasses.replace(images, images=dataclasses.replace(images.images, decoding=Decoding(2)))
    assert cropped.subset(np.array([1])).crop == 2


def test_what_does_not_fit_together_is_refused() -> None:
    for changes, words in [
        ({"images": np.zeros((4, 2, 2, 1), np.float32)}, "here: images have dtype float32, expected uint8"),
        ({"images": np.zeros((4, 2, 2), np.uint8)}, r"shape \(4, 2, 2\), expected \(N, H, W, 1 or 3\)"),
        ({"images": np.zeros((4, 2, 2, 4), np.uint8)}, r"shape \(4, 2, 2, 4\)"),
        ({"images": np.zeros((4, 3, 2, 2), np.uint8)}, r"shape \(4, 3, 2, 2\)"),  # channels first
        ({"labels": np.zeros(4, np.float64)}, r"labels are float64\(4,\), expected a 1-D array of integers; convert"),
        ({"labels": np.zeros((4, 1), np.int64)}, r"labels are int64\(4, 1\)"),
        ({"labels": np.zeros(4, bool)}, "labels are bool"),
        ({"labels": np.zeros(3, np.int64)}, "4 images but 3 labels"),
        ({"images": np.zeros((0, 2, 2, 1), np.uint8), "labels": np.zeros(0, np.int64)}, "here: no images at all"),
        ({"labels": np.array([0, 1, 2, 3])}, r"image 2 has label 2, outside 0\.\.1 \(2 such images\)"),
        ({"labels": np.array([0, -1, 0, 1])}, r"image 1 has label -1, outside 0\.\.1 \(1 such images\)"),
        ({"class_names": ("cat",)}, r"image 1 has label 1, outside 0\.\.0"),
    ]:
        with pytest.raises(ValueError, match=words):
            labelled(4, **changes)


def test_labels_become_int64() -> None:
    assert labelled(4, labels=np.array([0, 1, 1, 0], np.uint8)).labels.dtype == np.int64


def test_counts_and_shapes() -> None:
    images = labelled(5)
    assert (len(images), images.num_classes, images.image_shape) == (5, 2, (2, 2, 1))
    assert images.class_counts().tolist() == [3, 2]
    assert labelled(5, class_names=("a", "b", "c")).class_counts().tolist() == [3, 2, 0]


def test_a_subset_keeps_images_with_their_labels() -> None:
    for encode in [False, True]:
        images = encoded(labelled(4)) if encode else labelled(4)
        part = images.subset(np.array([3, 0]), origin="part")
        assert part.pixels()[:, 0, 0, 0].tolist() == [3, 0]
        assert part.labels.tolist() == [1, 0]
        assert (part.class_names, part.origin) == (images.class_names, "part")
        assert images.subset(np.array([1])).origin == "here"


def test_digests_are_of_pixels_and_not_of_files() -> None:
    images = labelled(3)
    assert encoded(images).sha256 == images.sha256
    assert encoded(images).digest == images.digest
    assert len(set(images.sha256)) == 3


def test_the_same_bytes_in_another_shape_are_another_image() -> None:
    tall, wide = (
        LabeledImages(np.zeros(shape, np.uint8), np.zeros(1, int), ("a",), "x")
        for shape in ((1, 4, 2, 1), (1, 2, 4, 1))
    )
    assert tall.sha256 != wide.sha256


def test_the_digest_sees_order_labels_and_names() -> None:
    for changes in [
        {"labels": np.array([1, 0, 0])},
        {"class_names": ("cat", "fox")},
        {"class_names": ("cat", "dog", "fox")},
        {"images": labelled(3).pixels()[::-1]},
    ]:
        assert labelled(3, **changes).digest != labelled(3).digest
        assert labelled(3, origin="there").digest == labelled(3).digest


def test_concat_is_one_after_the_other() -> None:
    for first_encoded in [False, True]:
        for second_encoded in [False, True]:
            first, second = labelled(3), labelled(2, labels=np.array([1, 1]), origin="there")
            both = concat(encoded(first) if first_encoded else first, encoded(second) if second_encoded else second)
            assert both.pixels()[:, 0, 0, 0].tolist() == [0, 1, 2, 0, 1]
            assert both.labels.tolist() == [0, 1, 0, 1, 1]
            assert both.origin == "here + there"
            assert isinstance(both.images, EncodedImages) == (first_encoded and second_encoded)


def test_concat_refuses_what_does_not_match() -> None:
    for changes, words in [
        ({"class_names": ("dog", "cat")}, "there has classes .*'dog', 'cat'.*, here has .*'cat', 'dog'"),
        ({"images": np.zeros((2, 3, 2, 1), np.uint8)}, r"there has images of .*\(3, 2, 1\), here has \(2, 2, 1\)"),
        ({"images": np.zeros((2, 2, 2, 3), np.uint8)}, r"\(2, 2, 3\)"),
    ]:
        with pytest.raises(ValueError, match=words):
            concat(labelled(3), labelled(2, origin="there", **changes))


# Images that cannot be used any more


def test_all_that_cannot_be_decoded_is_named_at_once_and_the_error_crosses_processes(tmp_path: Path) -> None:
    files = [tmp_path / f"{row}.png" for row in range(14)]
    for file in files:
        file.write_bytes(encode_png(np.full((8, 8, 1), 7, np.uint8)))
    images = EncodedImages(files, [file.name for file in files], (8, 8, 1))
    data = LabeledImages(images, np.arange(14) % 2, ("a", "b"), "files")
    files[1].write_bytes(b"")
    files[5].write_bytes(encode_png(np.full((9, 8, 1), 7, np.uint8)))
    for row in range(7, 14):
        files[row].unlink()
    with pytest.raises(BadImages) as caught:
        _ = data.sha256
    came_back = pickle.loads(pickle.dumps(caught.value))
    for error in (caught.value, came_back):
        assert list(error.found) == [f"{row}.png" for row in (1, 5, *range(7, 14))]
        assert str(error).startswith("1.png cannot be read as an image (the file is empty)")
        assert str(error).endswith("(8 more: 5.png, 7.png, 8.png, 9.png, 10.png, 11.png, 12.png, 13.png)")
    assert "5.png is 8x9 while the first image is 8x8" in caught.value.found["5.png"]
    assert data.unreadable() == dict(zip((1, 5, *range(7, 14)), caught.value.found.values(), strict=True))
    one = pickle.loads(pickle.dumps(BadImage("no such kind", "a.png is broken")))
    assert (one.kind, str(one)) == ("no such kind", "a.png is broken")
