import io

import numpy as np
import pytest
from PIL import Image

from latebloom.data.decoding import decode
from latebloom.data.images import EncodedImages, LabeledImages
from latebloom.data.synthetic.naming import FileNames, class_folders, original_file, safe_name, stem_of

PIXELS = np.arange(48, dtype=np.uint8).reshape(4, 4, 3) * 5


@pytest.mark.parametrize(
    ("name", "safe"),
    [
        ("pink primrose", "pink primrose"),
        ("Löwe 猫", "Löwe 猫"),
        ("F-16A/B", "F-16A%2FB"),
        ("..", "%2E%2E"),
        ("../../etc/passwd", "%2E.%2F..%2Fetc%2Fpasswd"),
        ("/etc/passwd", "%2Fetc%2Fpasswd"),
        ("C:\\x", "C%3A%5Cx"),
        (".hidden", "%2Ehidden"),
        ("__background__", "%5F_background__"),
        ("ends with.", "ends with%2E"),
        ("100%", "100%"),
        ('a\\b:c*d?e"f<g>h|i\n', "a%5Cb%3Ac%2Ad%3Fe%22f%3Cg%3Eh%7Ci%0A"),
        ("", "%"),
        ("CON", "%43ON"),
        ("nul.png", "%6Eul.png"),
        ("console", "console"),
        ("lpt1", "%6Cpt1"),
        ("x" * 180, "x" * 180),
    ],
)
def test_names_stay_what_they_are_where_that_is_safe(name: str, safe: str) -> None:
    assert safe_name(name) == safe


def test_a_long_name_is_cut_between_characters_and_stays_its_own() -> None:
    long = "猫" * 100  # 300 bytes
    first, second = safe_name(long), safe_name(long + "!")
    assert first.startswith("猫" * 57 + "~")  # 171 bytes of 180 without the digest
    assert len(first.encode()) <= 180
    assert first != second


def test_class_folders_can_be_read_back_and_never_coincide() -> None:
    assert class_folders(("cat", "100%", "Cat", "CAT", "dog")) == ["cat", "100%25", "Cat-2", "CAT-3", "dog"]


def test_a_stem_is_the_last_part_without_the_suffix_of_an_image() -> None:
    names = ["train/big cat/004.png", "a.b.JPEG", "data/train.parquet[17]", "digits[3]", "x/..", "..\\..\\evil.png"]
    assert [stem_of(name) for name in names] == [
        *("004", "a.b", "train.parquet[17]", "digits[3]", "%2E%2E", "%2E.%5C..%5Cevil"),
    ]


def test_a_name_that_is_taken_gets_its_number() -> None:
    names = FileNames()
    taken = [names.take("a", stem, "-0007", ".png") for stem in ("A", "a", "a", "b")]
    assert taken == ["A.png", "a-0007.png", "a-0007-2.png", "b.png"]
    assert names.take("b", "a", "-0007", ".png") == "a.png"
    accents = [names.take("c", stem, "-1", "") for stem in ("\u00e9", "e\u0301")]  # one name on macOS
    assert accents == ["\u00e9", "e\u0301-1"]


def encoded(image: Image.Image, kind: str, **options: object) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned() -> bytes:
    exif = Image.Exif()
    exif[0x0112] = 6
    return encoded(Image.fromarray(PIXELS), "JPEG", exif=exif)


@pytest.mark.parametrize(
    ("name", "blob", "suffix"),
    [
        ("a.png", encoded(Image.fromarray(PIXELS), "PNG"), ".png"),
        ("a.PNG", encoded(Image.fromarray(PIXELS), "PNG"), ".PNG"),
        ("train.parquet[3]", encoded(Image.fromarray(PIXELS), "JPEG"), ".jpg"),
        ("a.png", encoded(Image.fromarray(PIXELS).convert("RGBA"), "PNG"), None),  # laid on a background
        ("a.png", encoded(Image.fromarray(PIXELS).quantize(16), "PNG"), None),
        ("a.png", encoded(Image.fromarray(PIXELS).convert("L"), "PNG"), None),  # grey among colours
        ("a.jpg", turned(), None),  # readers differ in whether they turn it
    ],
)
def test_a_file_is_kept_where_every_reader_gets_the_same_from_it(name: str, blob: bytes, suffix: str | None) -> None:
    data = LabeledImages(EncodedImages([blob], [name], (4, 4, 3)), np.array([0]), ("a",), "x", (name,))
    found = original_file(data, 0, decode(blob, name, channels=3))
    assert found == (None if suffix is None else (blob, suffix))


def test_an_array_has_no_file() -> None:
    data = LabeledImages(PIXELS[None], np.array([0]), ("a",), "x")
    assert original_file(data, 0, PIXELS) is None
