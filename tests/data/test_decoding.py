"""How image files become pixels: orientation, transparency, depth, frames."""

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageOps

from latebloom.data.decoding import cut, decode, encode_png, header, values_of
from latebloom.data.depth import BadImage, Decoding


def file(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, format=kind, **options)
    return buffer.getvalue()


# decode and encode_png


def test_png_keeps_every_pixel() -> None:
    for channels in [1, 3]:
        pixels = np.arange(2 * 3 * channels, dtype=np.uint8).reshape(2, 3, channels)
        np.testing.assert_array_equal(decode(encode_png(pixels), "x"), pixels)
        assert encode_png(pixels) == encode_png(pixels.copy())


def test_a_path_is_decoded_like_its_bytes(tmp_path: Path) -> None:
    pixels = np.arange(12, dtype=np.uint8).reshape(2, 2, 3)
    (tmp_path / "x.png").write_bytes(encode_png(pixels))
    np.testing.assert_array_equal(decode(tmp_path / "x.png", "x"), pixels)


def test_modes_become_grey_or_rgb() -> None:
    for mode, colour, expected in [
        ("1", 1, [255]),
        ("L", 7, [7]),
        ("RGB", (1, 2, 3), [1, 2, 3]),
        ("RGBA", (0, 0, 0, 255), [0, 0, 0]),
        ("RGBA", (0, 0, 0, 0), [255, 255, 255]),  # transparent: white
        ("RGBA", (0, 0, 0, 51), [204, 204, 204]),  # 51 of 255 is a fifth of black on white
        ("LA", (9, 255), [9, 9, 9]),
        ("LA", (9, 0), [255, 255, 255]),
    ]:
        assert decode(file(Image.new(mode, (1, 1), colour)), "x").tolist() == [[expected]]


def test_a_palette_is_looked_up_and_its_transparent_entry_is_white() -> None:
    image = Image.new("P", (2, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putpixel((1, 0), 1)
    assert decode(file(image), "x").tolist() == [[[10, 20, 30], [40, 50, 60]]]
    assert decode(file(image, transparency=1), "x").tolist() == [[[10, 20, 30], [255, 255, 255]]]


def test_cmyk_becomes_rgb() -> None:
    assert decode(file(Image.new("CMYK", (8, 8), (0, 0, 0, 0)), "JPEG"), "x")[0, 0].tolist() == [255, 255, 255]


def test_channels_are_converted_on_request() -> None:
    assert decode(file(Image.new("L", (1, 1), 7)), "x", channels=3).tolist() == [[[7, 7, 7]]]
    assert decode(file(Image.new("RGB", (1, 1), (7, 7, 7))), "x", channels=1).tolist() == [[[7]]]


def test_the_centre_is_cut_square() -> None:
    for shape, columns in [
        ((2, 6), [2, 3]),  # wide: the two middle columns
        ((2, 5), [1, 2]),  # odd: the left one of two centres
        ((2, 2), [0, 1]),
    ]:
        pixels = np.tile(np.arange(shape[1], dtype=np.uint8), (shape[0], 1))[:, :, None]
        np.testing.assert_array_equal(decode(encode_png(pixels), "x", decoding=Decoding(2)), pixels[:, columns])
        np.testing.assert_array_equal(
            decode(encode_png(pixels.transpose(1, 0, 2)), "x", decoding=Decoding(2)),
            pixels[:, columns].transpose(1, 0, 2),
        )


def test_any_shape_becomes_the_size() -> None:
    for shape in [(16, 16), (3, 5), (5, 3), (1, 9), (100, 33), (7, 1000)]:
        flat = np.full((*shape, 3), 99, np.uint8)
        np.testing.assert_array_equal(decode(encode_png(flat), "x", decoding=Decoding(8)), np.full((8, 8, 3), 99))


def test_an_image_is_cut_as_its_file_would_be_when_decoded() -> None:
    for channels in [1, 3]:
        for shape in [(16, 16), (8, 8), (3, 5), (5, 3), (7, 40)]:
            pixels = np.random.default_rng(0).integers(0, 256, (*shape, channels), dtype=np.uint8)
            there = cut(pixels, 8)
            assert there.shape == (8, 8, channels)
            np.testing.assert_array_equal(there, decode(encode_png(pixels), "x", decoding=Decoding(8)))
            np.testing.assert_array_equal(cut(there, 8), there)
            assert cut(pixels, 0) is pixels


def test_damaged_files_are_named() -> None:
    for blob in [
        b"",
        b"not an image",
        file(Image.effect_noise((64, 64), 50))[:-200],  # cut in the pixels
        file(Image.effect_noise((64, 64), 50), "JPEG")[:-200],
    ]:
        with pytest.raises(ValueError, match=r"cats/3\.png cannot be read as an image .* repair or remove it"):
            decode(blob, "cats/3.png")


def test_what_is_no_file_any_more_is_a_bad_image(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    for name, why in (("gone.png", "No such file"), ("folder.png", "Is a directory")):
        with pytest.raises(BadImage, match=rf"^{name} cannot be read as an image \(.*{why}"):
            decode(tmp_path / name, name)


# EXIF orientation

# The picture as it should stand, and as a camera with that orientation stores it: rows of grey values.
UPRIGHT = [[10, 20, 30], [40, 50, 60]]
STORED = {
    1: [[10, 20, 30], [40, 50, 60]],
    2: [[30, 20, 10], [60, 50, 40]],  # mirrored
    3: [[60, 50, 40], [30, 20, 10]],  # upside down
    4: [[40, 50, 60], [10, 20, 30]],
    5: [[10, 40], [20, 50], [30, 60]],  # rows are columns
    6: [[30, 60], [20, 50], [10, 40]],  # turned right to be upright
    7: [[60, 30], [50, 20], [40, 10]],
    8: [[40, 10], [50, 20], [60, 30]],  # turned left
}


def oriented(orientation: int, kind: str) -> bytes:
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = Image.fromarray(np.array(STORED[orientation], np.uint8))
    return file(image, kind, exif=exif.tobytes())


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", STORED)
def test_every_orientation_is_upright(orientation: int, kind: str) -> None:
    blob = oriented(orientation, kind)
    lossy = 255 if kind == "WEBP" else 0  # only its size
    np.testing.assert_allclose(decode(blob, "x", channels=1)[:, :, 0], UPRIGHT, atol=lossy)
    found = header(blob, "x")
    assert (found.width, found.height) == (3, 2)


def test_a_photograph_is_turned_as_pillow_would() -> None:
    for orientation in STORED:
        exif = Image.Exif()
        exif[0x0112] = orientation
        blob = file(Image.effect_noise((24, 16), 60).convert("RGB"), "JPEG", exif=exif.tobytes())
        with Image.open(io.BytesIO(blob)) as opened:
            np.testing.assert_array_equal(decode(blob, "x"), np.asarray(ImageOps.exif_transpose(opened)))


def test_an_orientation_behind_the_pixels_of_a_png_counts() -> None:
    blob = oriented(6, "PNG")
    start = blob.index(b"eXIf") - 4
    stop = start + 12 + struct.unpack(">I", blob[start : start + 4])[0]
    late = blob[:start] + blob[stop:-12] + blob[start:stop] + blob[-12:]  # before IEND
    assert decode(late, "x").tolist() == decode(blob, "x").tolist()
    assert (header(late, "x").width, header(late, "x").height) == (3, 2)


def test_a_damaged_exif_block_turns_nothing() -> None:
    blob = file(Image.new("L", (3, 2)), "PNG", exif=b"Exif\0\0MM\0*garbage")
    assert decode(blob, "x").shape == (2, 3, 1)
    assert (header(blob, "x").width, header(blob, "x").height) == (3, 2)


def test_the_turned_image_is_cut() -> None:
    blob = oriented(6, "PNG")
    assert decode(blob, "x", decoding=Decoding(2))[:, :, 0].tolist() == [[10, 20], [40, 50]]


# Transparency


def test_half_transparent_black_and_white_on_each_background() -> None:
    for background, black, white in [("white", 127, 255), ("grey", 64, 192), ("black", 0, 128)]:
        rules = Decoding(background=background)  # type: ignore[arg-type]
        for value, expected in ((0, black), (255, white)):
            blob = file(Image.new("RGBA", (1, 1), (value, value, value, 128)))
            assert decode(blob, "x", decoding=rules)[0, 0].tolist() == [expected] * 3


# More than 8 bits


def png_of_16_bits(values: np.ndarray, colour: int, chunks: bytes = b"") -> bytes:
    """uint16 (H, W, C) as PNG of this colour type: 0 grey, 2 RGB, 4 grey with alpha, 6 RGBA."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    height, width, _ = values.shape
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    head = struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunks + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    )


def test_more_than_8_bits_are_refused_with_the_setting_that_takes_them() -> None:
    colour = png_of_16_bits(np.zeros((9, 9, 3), np.uint16), 2)  # Pillow opens it as RGB
    for mode, blob in [
        ("I;16", file(Image.new("I;16", (9, 9)))),
        ("I;16", file(Image.new("I;16", (9, 9)), "TIFF")),
        ("F", file(Image.new("F", (9, 9)), "TIFF")),
        ("I", file(Image.new("I", (9, 9)), "TIFF")),
        ("RGB;16", colour),
    ]:
        for open_it in (decode, header):
            with pytest.raises(BadImage, match=rf"^scan has pixel mode {mode}, more than 8 bits; set data\.depth=type"):
                open_it(blob, "scan")


def test_16_bits_become_8_by_the_type() -> None:
    rules = Decoding(depth="type")
    values = np.array([[0, 128, 129, 257, 65535, 65406]], np.uint16)
    expected = [0, 0, 1, 1, 255, 254]  # a step is 257 values; 65406 is 254.498 steps
    for blob in (
        png_of_16_bits(values[:, :, None], 0),
        file(Image.fromarray(values), "TIFF"),
        file(Image.fromarray(values), "TIFF", compression="tiff_lzw"),
    ):
        assert decode(blob, "x", decoding=rules)[0, :, 0].tolist() == expected
    colour = np.stack([values, values[:, ::-1], values], axis=2)
    assert decode(png_of_16_bits(colour, 2), "x", decoding=rules)[0, 1].tolist() == [0, 255, 0]
    assert decode(png_of_16_bits(colour, 2), "x", decoding=rules)[0, :, 0].tolist() == expected


def test_the_lower_byte_of_colour_is_not_lost() -> None:
    rng = np.random.default_rng(0)
    colour = rng.integers(1000, 1500, (5, 7, 3)).astype(np.uint16)
    rules = Decoding(depth="data", scale=(1000, 1510))  # two values a step
    expected = np.rint((colour.astype(float) - 1000) / 2)
    np.testing.assert_array_equal(decode(png_of_16_bits(colour, 2), "x", decoding=rules), expected)
    opaque = np.concatenate([colour, np.full((5, 7, 1), 65535, np.uint16)], axis=2)
    np.testing.assert_array_equal(decode(png_of_16_bits(opaque, 6), "x", decoding=rules), expected)
    assert values_of(png_of_16_bits(colour, 2), "x", decoding=rules) == (colour.min(), colour.max())
    for order in "<>":
        np.testing.assert_array_equal(decode(tiff_of_16_bits(colour, order), "x", decoding=rules), expected)


def tiff_of_16_bits(values: np.ndarray, order: str) -> bytes:
    """uint16 (H, W, 3) as one strip of a TIFF with this byte order, "<" or ">"."""
    height, width, _ = values.shape
    pixels = values.astype(f"{order}u2").tobytes()
    tags = [
        *((256, 3, 1, width), (257, 3, 1, height), (258, 3, 3, 8 + len(pixels)), (259, 3, 1, 1), (262, 3, 1, 2)),
        *((273, 4, 1, 8), (277, 3, 1, 3), (278, 3, 1, height), (279, 4, 1, len(pixels))),
    ]
    bits = struct.pack(f"{order}3H", 16, 16, 16)
    start = 8 + len(pixels) + len(bits)
    rows = b"".join(
        struct.pack(f"{order}HHI", tag, kind, count)
        + (struct.pack(f"{order}HH", value, 0) if kind == 3 and count == 1 else struct.pack(f"{order}I", value))
        for tag, kind, count, value in tags
    )
    head = (b"II" if order == "<" else b"MM") + struct.pack(f"{order}HI", 42, start)
    return head + pixels + bits + struct.pack(f"{order}H", len(tags)) + rows + bytes(4)


def test_a_transparent_value_of_16_bits_is_background() -> None:
    key = struct.pack(">I", 2) + b"tRNS" + struct.pack(">H", 257)
    key += struct.pack(">I", zlib.crc32(key[4:]))
    blob = png_of_16_bits(np.array([[[0], [257], [514]]], np.uint16), 0, key)
    assert decode(blob, "x", decoding=Decoding(depth="type"))[0, :, 0].tolist() == [0, 255, 2]


def test_16_bits_that_pillow_cannot_read_in_full_are_refused() -> None:
    blob = png_of_16_bits(np.zeros((2, 2, 2), np.uint16), 4)
    with pytest.raises(BadImage, match="x has 16 bits a channel in the layout LA;16B, which cannot be read in full"):
        decode(blob, "x", decoding=Decoding(depth="type"))


def test_floats_and_32_bits_become_8() -> None:
    floats = file(Image.fromarray(np.array([[0, 1, 0.5, 0.2]], np.float32)), "TIFF")
    assert decode(floats, "x", decoding=Decoding(depth="type"))[0, :, 0].tolist() == [0, 255, 128, 51]
    assert values_of(floats, "x", decoding=Decoding(depth="data")) == (0, 1)
    whole = file(Image.fromarray(np.array([[-10, 500, 0]], np.int32)), "TIFF")
    assert decode(whole, "x", decoding=Decoding(depth="data", scale=(-10, 500)))[0, :, 0].tolist() == [0, 255, 5]
    with pytest.raises(BadImage, match="x is int32, a type with a sign"):
        decode(whole, "x", decoding=Decoding(depth="type"))
    for values, words in (([0, np.nan], "x has NaN or infinite pixels"), ([0, 2], "x has floats from 0 to 2")):
        blob = file(Image.fromarray(np.array([values], np.float32)), "TIFF")
        with pytest.raises(BadImage, match=words):
            decode(blob, "x", decoding=Decoding(depth="type"))


def test_8_bits_have_no_values_to_scale() -> None:
    assert values_of(encode_png(np.zeros((2, 2, 1), np.uint8)), "x", decoding=Decoding(depth="data")) is None


# Frames and pages


@pytest.mark.parametrize("kind", ["GIF", "TIFF", "WEBP", "PNG"])
def test_files_of_several_frames_are_refused_or_their_first_is_taken(kind: str) -> None:
    frames = [Image.new("RGB", (9, 9), (value, value, value)) for value in (10, 200, 90)]
    options = {"lossless": True} if kind == "WEBP" else {}
    blob = file(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    for open_it in (decode, header):
        with pytest.raises(BadImage, match=r"^x has 3 frames or pages; set data\.animated=first to take the first"):
            open_it(blob, "x")
    pixels = decode(blob, "x", channels=1, decoding=Decoding(animated="first"))
    assert np.unique(pixels).tolist() == [10]


def test_one_frame_is_an_image() -> None:
    for kind in ("GIF", "TIFF", "WEBP", "PNG"):
        assert decode(file(Image.new("RGB", (9, 9)), kind, save_all=True), "x").shape == (9, 9, 3)


def test_a_photograph_with_further_pictures_in_it_is_its_first() -> None:
    first, second = (Image.new("RGB", (16, 16), colour) for colour in ("white", "black"))
    blob = file(first, "MPO", save_all=True, append_images=[second])
    assert header(blob, "x").width == 16
    assert decode(blob, "x").min() > 250


# Too large


def test_more_pixels_than_pillow_allows_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    blob = encode_png(np.zeros((60, 40, 1), np.uint8))
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)  # of 2,400
    with pytest.raises(BadImage, match=r"x has more than 0 million pixels; make it smaller"):
        decode(blob, "x")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 2000)
    with pytest.warns(Image.DecompressionBombWarning), pytest.raises(BadImage, match="x is 40x60 and has more than"):
        header(blob, "x")
