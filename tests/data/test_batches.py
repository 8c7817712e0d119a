import io
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from data.batches import Pixels, epoch_order
from data.images import EncodedImages, LabeledImages, encode_png
from data.seeds import torch_stream

CPU = torch.device("cpu")


def numbered(channels: int) -> LabeledImages:
    """Three 2x3 images whose bytes count up from 0."""
    pixels = np.arange(3 * 2 * 3 * channels, dtype=np.uint8).reshape(3, 2, 3, channels)
    return LabeledImages(pixels, np.zeros(3, np.int64), ("only",), "numbered")


def test_a_row_is_its_image_with_channels_first() -> None:
    batch = Pixels(numbered(3), CPU)[np.array([1])]
    assert batch.dtype == torch.uint8
    # Image 1 begins at byte 18; red is every third byte, row by row.
    assert batch[0, 0].tolist() == [[18, 21, 24], [27, 30, 33]]
    assert batch[0, 2].tolist() == [[20, 23, 26], [29, 32, 35]]


@pytest.mark.parametrize("channels", [1, 3])
def test_rows_come_in_the_order_asked_for_and_as_often(channels: int) -> None:
    data = numbered(channels)
    batch = Pixels(data, CPU)[np.array([2, 0, 2])]
    np.testing.assert_array_equal(batch.numpy(), data.pixels()[[2, 0, 2]].transpose(0, 3, 1, 2))


def test_images_live_on_the_device_exactly_when_they_fit() -> None:
    data = numbered(3)  # 3 * 2 * 3 * 3 = 54 bytes
    assert Pixels(data, CPU, resident_bytes=54).resident is not None
    assert Pixels(data, CPU, resident_bytes=53).resident is None


@pytest.mark.parametrize("channels", [1, 3])
def test_streamed_images_are_the_resident_ones(channels: int) -> None:
    data, rows = numbered(channels), np.array([2, 0, 2, 1])
    assert torch.equal(Pixels(data, CPU, resident_bytes=0)[rows], Pixels(data, CPU)[rows])


@pytest.mark.parametrize("resident_bytes", [0, 1000])
def test_image_files_give_what_the_decoded_array_gives(resident_bytes: int) -> None:
    data, rows = numbered(3), np.array([2, 0, 2])
    blobs = [encode_png(image) for image in data.pixels()]
    files = LabeledImages(EncodedImages(blobs, ["a", "b", "c"], (2, 3, 3)), data.labels, ("only",), "files")
    assert torch.equal(Pixels(files, CPU, resident_bytes)[rows], Pixels(data, CPU)[rows])


def test_a_batch_is_a_copy() -> None:
    data = numbered(1)
    pixels = Pixels(data, CPU)
    pixels[np.array([0])].zero_()
    assert pixels[np.array([0])].flatten().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize("channels", [1, 3])
def test_read_only_images_are_taken_without_a_warning(channels: int) -> None:
    data = numbered(channels)
    assert isinstance(data.images, np.ndarray)
    data.images.flags.writeable = False
    assert Pixels(data, CPU)[np.array([0])].shape == (1, channels, 2, 3)


def test_memory_mapped_images_are_not_written_through(tmp_path: Path) -> None:
    file = tmp_path / "images.npy"
    buffer = io.BytesIO()
    np.save(buffer, numbered(1).pixels())
    file.write_bytes(buffer.getvalue())
    mapped = np.load(file, mmap_mode="r+")
    resident = Pixels(LabeledImages(mapped, np.zeros(3, np.int64), ("only",), "mapped"), CPU).resident
    assert resident is not None
    resident.zero_()
    assert mapped.sum() == 17 * 18 // 2  # 0 + 1 + ... + 17


def test_an_epoch_visits_every_example_once() -> None:
    order = epoch_order(100, seed=0, epoch=0)
    assert sorted(order) == list(range(100))
    assert order.tolist() != list(range(100))


def test_the_order_follows_from_seed_and_epoch_alone() -> None:
    first = epoch_order(100, seed=0, epoch=0)
    other_epoch, other_seed = epoch_order(100, seed=0, epoch=1), epoch_order(100, seed=1, epoch=0)
    np.testing.assert_array_equal(epoch_order(100, seed=0, epoch=0), first)
    assert not np.array_equal(first, other_epoch)
    assert not np.array_equal(first, other_seed)
    assert not np.array_equal(other_epoch, other_seed)


def test_a_stream_is_drawn_from_the_global_generator_whatever_its_state_was() -> None:
    with torch_stream(0, "layers"):
        first = nn.Linear(3, 2).weight
    torch.rand(7)
    with torch_stream(0, "layers"):
        again = nn.Linear(3, 2).weight
    with torch_stream(0, "other"):
        other = nn.Linear(3, 2).weight
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_leaving_a_stream_puts_the_global_state_back() -> None:
    before = torch.get_rng_state()
    with torch_stream(0, "outer"):
        torch.rand(3)
        inside = torch.get_rng_state()
        with torch_stream(0, "inner"):
            torch.rand(3)
        assert torch.equal(torch.get_rng_state(), inside)
    assert torch.equal(torch.get_rng_state(), before)


def interrupted() -> None:
    with torch_stream(0, "interrupted"):
        torch.rand(3)
        raise KeyError


def test_an_exception_in_a_stream_puts_the_global_state_back() -> None:
    before = torch.get_rng_state()
    with pytest.raises(KeyError):
        interrupted()
    assert torch.equal(torch.get_rng_state(), before)
