import io
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from latebloom.data import batches
from latebloom.data.batches import Pixels, epoch_order
from latebloom.data.depth import BadImages
from latebloom.data.images import EncodedImages, LabeledImages, encode_png
from latebloom.data.seeds import torch_stream

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


def test_rows_come_in_the_order_asked_for_and_as_often() -> None:
    for channels in [1, 3]:
        data = numbered(channels)
        batch = Pixels(data, CPU)[np.array([2, 0, 2])]
        np.testing.assert_array_equal(batch.numpy(), data.pixels()[[2, 0, 2]].transpose(0, 3, 1, 2))


def test_images_live_on_the_device_exactly_when_they_fit() -> None:
    data = numbered(3)  # 3 * 2 * 3 * 3 = 54 bytes
    assert Pixels(data, CPU, resident_bytes=54).resident is not None
    assert Pixels(data, CPU, resident_bytes=53).resident is None


def test_streamed_images_are_the_resident_ones() -> None:
    for channels in [1, 3]:
        data, rows = numbered(channels), np.array([2, 0, 2, 1])
        assert torch.equal(Pixels(data, CPU, resident_bytes=0)[rows], Pixels(data, CPU)[rows])


def test_image_files_give_what_the_decoded_array_gives() -> None:
    for resident_bytes in [0, 1000]:
        data, rows = numbered(3), np.array([2, 0, 2])
        blobs = [encode_png(image) for image in data.pixels()]
        files = LabeledImages(EncodedImages(blobs, ["a", "b", "c"], (2, 3, 3)), data.labels, ("only",), "files")
        assert torch.equal(Pixels(files, CPU, resident_bytes)[rows], Pixels(data, CPU)[rows])


def test_a_batch_is_a_copy() -> None:
    data = numbered(1)
    pixels = Pixels(data, CPU)
    pixels[np.array([0])].zero_()
    assert pixels[np.array([0])].flatten().tolist() == [0, 1, 2, 3, 4, 5]


def test_read_only_images_are_taken_without_a_warning() -> None:
    for channels in [1, 3]:
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


# Streams


def encoded(count: int, channels: int = 3) -> LabeledImages:
    """So many image files of 5x4 noise."""
    noise = np.random.default_rng(0).integers(0, 256, (count, 4, 5, channels), dtype=np.uint8)
    files = EncodedImages([encode_png(image) for image in noise], [f"image {i}" for i in range(count)], noise.shape[1:])
    return LabeledImages(files, np.zeros(count, np.int64), ("only",), "encoded")


def epoch(count: int, batch: int) -> list[np.ndarray]:
    return np.split(epoch_order(count, 0, 0), range(batch, count, batch))


def eventually(holds: Callable[[], bool]) -> bool:
    end = time.monotonic() + 10
    while not holds() and time.monotonic() < end:
        time.sleep(0.005)
    return holds()


def decoders() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith("latebloom-decode")]


@pytest.mark.parametrize(
    ("workers", "ahead", "channels", "channels_last"),
    [(1, 0, 3, True), (2, 1, 1, False), (5, 4, 3, False), (3, 100, 1, True)],
)
def test_a_stream_is_what_lives_on_the_device(workers: int, ahead: int, channels: int, channels_last: bool) -> None:
    data, rows = encoded(50, channels), epoch(50, 20)  # 20, 20 and 10: more than a thread's share of 8
    stream = Pixels(data, CPU, 0, workers=workers, ahead=ahead, channels_last=channels_last)
    resident = Pixels(data, CPU, channels_last=channels_last)
    assert stream.resident is None
    assert resident.resident is not None
    for streamed, kept, chosen in zip(stream.batches(rows), resident.batches(rows), rows, strict=True):
        np.testing.assert_array_equal(streamed.permute(0, 2, 3, 1).numpy(), data.pixels(chosen))
        assert torch.equal(streamed, kept)
        memory = torch.channels_last if channels_last else torch.contiguous_format
        assert streamed.is_contiguous(memory_format=memory)
        assert kept.is_contiguous(memory_format=memory)


def test_arrays_come_as_files_do() -> None:
    for resident_bytes in [0, 1000]:
        for channels_last in [False, True]:
            data, rows = numbered(3), [np.array([2, 0, 2]), np.array([], np.int64), np.array([1])]
            pixels = Pixels(data, CPU, resident_bytes, channels_last=channels_last)
            for batch, chosen in zip(pixels.batches(rows), rows, strict=True):
                np.testing.assert_array_equal(batch.permute(0, 2, 3, 1).numpy(), data.pixels(chosen))
                assert torch.equal(pixels[chosen], batch)


def test_no_rows_are_no_batches() -> None:
    for resident_bytes in [0, 10_000]:
        assert list(Pixels(encoded(3), CPU, resident_bytes).batches([])) == []


def test_an_epoch_goes_on_in_its_middle() -> None:
    for resident_bytes in [0, 10_000]:
        pixels, rows = Pixels(encoded(50), CPU, resident_bytes), epoch(50, 8)
        whole = list(pixels.batches(rows))
        for batch, expected in zip(pixels.batches(rows[3:]), whole[3:], strict=True):
            assert torch.equal(batch, expected)


class Watched(list[bytes]):
    """Image files that know which of them were opened."""

    opened: set[int]

    def __getitem__(self, row: int) -> bytes:  # type: ignore[override]
        self.opened.add(int(row))
        return super().__getitem__(row)


def test_so_many_batches_are_decoded_in_advance() -> None:
    data = encoded(12)
    assert isinstance(data.images, EncodedImages)
    blobs = Watched(data.images.blobs)
    blobs.opened = set()
    watched = LabeledImages(EncodedImages(blobs, data.images.names, (4, 5, 3)), data.labels, ("only",), "watched")
    stream = Pixels(watched, CPU, 0, workers=2, ahead=2).batches(np.split(np.arange(12), 6))
    assert blobs.opened == set()  # nothing before the first is asked for
    next(stream)
    assert eventually(lambda: blobs.opened == {0, 1, 2, 3, 4, 5})  # it, and two more
    time.sleep(0.02)
    assert len(blobs.opened) == 6
    next(stream)
    assert eventually(lambda: len(blobs.opened) == 8)


def test_a_damaged_image_is_named_when_its_batch_is_due() -> None:
    data = encoded(30)
    assert isinstance(data.images, EncodedImages)
    data.images.blobs[17] = data.images.blobs[17][:60]  # type: ignore[index]
    stream = Pixels(data, CPU, 0, workers=2).batches(np.split(np.arange(30), 3))
    assert len(next(stream)) == 10
    with pytest.raises(ValueError, match="image 17 cannot be read as an image"):
        next(stream)
    assert eventually(lambda: not decoders())
    with pytest.raises(ValueError, match="image 17 cannot be read as an image"):
        Pixels(data, CPU)


def test_a_file_that_is_gone_is_named(tmp_path: Path) -> None:
    files = EncodedImages([tmp_path / "gone.png"], ["gone"], (4, 5, 3))
    stream = Pixels(LabeledImages(files, np.zeros(1, int), ("only",), "gone"), CPU, 0)
    with pytest.raises(BadImages, match=r"gone\.png"):
        stream[np.array([0])]


def test_who_stops_early_leaves_no_thread() -> None:
    assert eventually(lambda: not decoders())
    stream = Pixels(encoded(50), CPU, 0, workers=2).batches(epoch(50, 5))
    next(stream)
    assert 0 < len(decoders()) <= 2
    stream.close()  # type: ignore[attr-defined]
    assert eventually(lambda: not decoders())


def test_nothing_outlives_a_process_that_is_killed() -> None:
    code = """
import numpy as np, torch
from latebloom.data.batches import Pixels
from latebloom.data.images import EncodedImages, LabeledImages, encode_png
blob = encode_png(np.zeros((64, 64, 3), np.uint8))
files = EncodedImages([blob] * 100, ["x"] * 100, (64, 64, 3))
data = LabeledImages(files, np.zeros(100, int), ("only",), "x")
for batch in Pixels(data, torch.device("cpu"), 0, workers=2).batches([np.arange(100)] * 1_000_000):
    print("streaming", flush=True)
"""
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    with process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"streaming\n"
        process.kill()
        process.wait()
        assert process.returncode == -signal.SIGKILL
        with pytest.raises(ProcessLookupError):
            os.killpg(process.pid, 0)  # its session has no process left


def test_a_gpu_keeps_half_of_its_memory_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (200, 1000))
    gpu = torch.device("cuda", 1)
    assert [batches._fit(size, gpu, 150) for size in (100, 101)] == [True, False]
    assert [batches._fit(size, gpu, 50) for size in (50, 51)] == [True, False]
    assert batches._fit(101, CPU, 150)


def test_processes_of_one_launch_share_the_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: set(range(12)), raising=False)
    workers = []
    for launched in ("1", "5", "99"):
        monkeypatch.setenv("LOCAL_WORLD_SIZE", launched)
        workers.append(Pixels(encoded(1), CPU).workers)
    assert workers == [12, 2, 1]


# Order


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
