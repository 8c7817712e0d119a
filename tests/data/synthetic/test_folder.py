import json
import os
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from latebloom.data.decoding import decode, encode_png
from latebloom.data.depth import Decoding
from latebloom.data.images import EncodedImages, LabeledImages
from latebloom.data.states import STATES
from latebloom.data.store import digest_file, write_json
from latebloom.data.synthetic.folder import SYNTHETIC_SCHEMA, SyntheticFolder

NAMES = ("cat", "dog")


def picture(i: int) -> np.ndarray:
    """A 2x3 colour image, all of value i."""
    return np.full((2, 3, 3), i, np.uint8)


def table(first: int = 0, n: int = 3, **changes: Any) -> pa.Table:
    """Rows first..first+n-1: image i is all of value i, its label i % 2, its state `i % 5` of `STATES`."""
    numbers = range(first, first + n)
    columns: dict[str, Any] = {
        "image": [{"bytes": encode_png(picture(i)), "path": f"{i}.png"} for i in numbers],
        "label": [i % 2 for i in numbers],
        "generator_label": [i % 2 for i in numbers],
        "item_id": [f"item {i}" for i in numbers],
        "source_index": [10 * i for i in numbers],
        "source_name": [f"train/{NAMES[i % 2]}/{i}.png" for i in numbers],
        "source_sha256": ["0" * 64] * n,
        "variant": [0] * n,
        "level_steps": [50] * n,
        "level_grid": [100] * n,
        "calls": [50] * n,
        "timestep": [494.0] * n,
        "log_snr": [-float("inf") if i == 0 else 0.5 for i in numbers],
        "strength": [0.5] * n,
        "seed": [2**62 + i for i in numbers],
        "attempt": [0] * n,
        "prompt": [NAMES[i % 2] for i in numbers],
        "guidance_scale": [3.0] * n,
        "sampler": ["ddpm"] * n,
        "generator": ["fake"] * n,
        "generator_digest": ["f" * 64] * n,
        "fingerprint": [bytes([i] * 64) for i in numbers],
        "finite": [i % 5 != 1 for i in numbers],
        "brightness": [float(i) for i in numbers],
        "contrast": [10.0] * n,
        "label_probability": [0.9] * n,
        "reference_label_probability": [0.95] * n,
        "reference_distance": [20.0] * n,
        "distance_ratio": [0.8] * n,
        "feature_distance": [0.3] * n,
        "nearest_real_distance": [0.2] * n,
        "nearest_real_index": [4] * n,
        **{name: [float("nan")] * n for name in ("clip_score", "clip_margin", "unsafe", "duplicate_distance")},
        "state": [list(STATES)[i % 5] for i in numbers],
    }
    return pa.table(columns | changes, schema=SYNTHETIC_SCHEMA)


def written(path: Path, about: Any = "a test") -> SyntheticFolder:
    """A data set of two parts: rows 0..2 and 3..6."""
    folder = SyntheticFolder(path)
    parts = [folder.write_part(0, table(0, 3), NAMES, "key 0"), folder.write_part(1, table(3, 4), NAMES, "key 1")]
    folder.write_manifest({"made from": about}, NAMES, parts)
    return folder


def real(side: tuple[int, int] = (2, 3), crop: int = 0, channels: int = 3) -> LabeledImages:
    """Real images of this size that are cut to `crop` when they are decoded."""
    blobs = [encode_png(np.zeros((*side, channels), np.uint8))]
    shape = (crop or side[0], crop or side[1], channels)
    return LabeledImages(EncodedImages(blobs, ["real"], shape, Decoding(crop)), np.array([0]), NAMES, "real")


def files(folder: SyntheticFolder) -> dict[str, bytes]:
    return {str(f.relative_to(folder.path)): f.read_bytes() for f in folder.path.rglob("*") if f.is_file()}


def flip_a_byte(file: Path) -> None:
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content)


def truncate(file: Path) -> None:
    file.write_bytes(file.read_bytes()[:-1])


DAMAGES = pytest.mark.parametrize("damage", [flip_a_byte, truncate, Path.unlink])


# Writing and reading back


def test_rows_come_back_in_the_order_of_the_parts(tmp_path: Path) -> None:
    rows = written(tmp_path).rows()
    assert rows.schema.equals(SYNTHETIC_SCHEMA)
    expected = [*table(0, 3).to_pylist(), *table(3, 4).to_pylist()]
    assert repr(rows.to_pylist()) == repr(expected)  # NaN is NaN


def test_a_folder_whose_name_looks_like_a_partition_adds_no_column(tmp_path: Path) -> None:
    assert written(tmp_path / "seed=3" / "k=5").rows().column_names == SYNTHETIC_SCHEMA.names


def test_images_come_back_with_labels_and_class_names(tmp_path: Path) -> None:
    folder = written(tmp_path)
    images = folder.images(folder.rows(), real())
    assert len(images) == 7
    assert images.image_shape == (2, 3, 3)
    np.testing.assert_array_equal(images.pixels(), np.stack([picture(i) for i in range(7)]))
    assert images.labels.dtype == np.int64
    assert images.labels.tolist() == [0, 1, 0, 1, 0, 1, 0]
    assert images.class_names == NAMES
    assert images.origin == str(tmp_path)
    assert folder.images(folder.rows(), real(), "variants").origin == "variants"


def test_images_kept_larger_are_cut_as_the_real_ones_are(tmp_path: Path) -> None:
    for channels in [1, 3]:
        folder = SyntheticFolder(tmp_path / str(channels))
        pixels = np.random.default_rng(0).integers(0, 256, (2, 8, 12, 3), dtype=np.uint8)
        blobs = [encode_png(image) for image in pixels]
        rows = table(0, 2, image=[{"bytes": blob, "path": "x.png"} for blob in blobs])
        folder.write_manifest({}, NAMES, [folder.write_part(0, rows, NAMES, "key")])
        images = folder.images(folder.rows(), real((20, 30), 4, channels))
        assert (images.image_shape, images.crop) == ((4, 4, channels), 4)
        expected = [decode(blob, "x", channels=channels, decoding=Decoding(4)) for blob in blobs]
        np.testing.assert_array_equal(images.pixels(), np.stack(expected))
        whole = images.whole(np.array([1]))[0]
        np.testing.assert_array_equal(whole, decode(blobs[1], "x", channels=channels))


def test_images_that_do_not_fit_the_real_ones_are_named(tmp_path: Path) -> None:
    folder = written(tmp_path)
    images = folder.images(folder.rows(), real((4, 4)))
    with pytest.raises(ValueError, match=r"^item 0 is 3x2 while the first image is 4x4; give an image size"):
        images.pixels()


def test_some_rows_give_some_images(tmp_path: Path) -> None:
    folder = written(tmp_path)
    rows = folder.rows()
    for wanted in (rows.slice(2, 3), rows.filter(pa.array([False, False, True, True, True, False, False]))):
        images = folder.images(wanted, real())
        np.testing.assert_array_equal(images.pixels()[:, 0, 0, 0], [2, 3, 4])
        assert images.labels.tolist() == [0, 1, 0]


def test_grey_images_stay_grey(tmp_path: Path) -> None:
    folder = SyntheticFolder(tmp_path)
    grey = np.arange(4, dtype=np.uint8).reshape(2, 2, 1)
    rows = table(0, 1, image=[{"bytes": encode_png(grey), "path": "0.png"}])
    folder.write_manifest({}, NAMES, [folder.write_part(0, rows, NAMES, "key")])
    np.testing.assert_array_equal(folder.images(folder.rows(), real((2, 2), channels=1)).pixels()[0], grey)


def test_no_rows_are_no_images(tmp_path: Path) -> None:
    folder = written(tmp_path)
    with pytest.raises(ValueError, match="none of its images is wanted; nothing to read"):
        folder.images(folder.rows().slice(0, 0), real())


def test_a_data_set_without_parts_is_empty_but_there(tmp_path: Path) -> None:
    folder = SyntheticFolder(tmp_path)
    folder.write_manifest({}, NAMES, [])
    assert folder.rows().equals(SYNTHETIC_SCHEMA.empty_table())
    assert folder.manifest()["rows"] == 0


def test_the_manifest_counts_rows_and_states(tmp_path: Path) -> None:
    folder = written(tmp_path)
    manifest = folder.manifest()
    assert manifest["rows"] == 7
    # Rows 0..6 have the first five states, 0, 1, 2, 3, 4, 0, 1; the others are counted too.
    assert manifest["states"] == dict.fromkeys(STATES, 0) | {"ok": 2, "nan": 2, "flat": 1, "unsafe": 1, "off_label": 1}
    assert manifest["class_names"] == ["cat", "dog"]
    assert manifest["about"] == {"made from": "a test"}
    assert manifest["parts"] == [
        {"file": name, "rows": rows, "sha256": digest_file(tmp_path / name)}
        for name, rows in (("part-00000.parquet", 3), ("part-00001.parquet", 4))
    ]


def test_the_manifest_is_written_last(tmp_path: Path) -> None:
    folder = SyntheticFolder(tmp_path)
    folder.write_part(0, table(), NAMES, "key")
    with pytest.raises(ValueError, match=r"has no manifest\.json: not a synthetic data set, or one not finished yet"):
        folder.rows()
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        folder.damaged()


def test_equal_content_gives_equal_files_and_digest(tmp_path: Path) -> None:
    one, other = written(tmp_path / "one"), written(tmp_path / "other")
    assert files(one) == files(other)
    assert one.manifest()["digest"] == other.manifest()["digest"]


def test_what_making_a_part_cost_is_no_part_of_the_data_set(tmp_path: Path) -> None:
    digests = []
    for seconds in (1.0, 2.0):
        folder = SyntheticFolder(tmp_path / str(seconds))
        record = folder.write_part(0, table(), NAMES, "key", seconds=seconds)
        assert folder.kept_part(0, "key") == record
        assert record.seconds == seconds
        digests.append((folder.write_manifest({}, NAMES, [record]), digest_file(folder.part_path(0))))
    assert digests[0] == digests[1]


def test_a_part_with_failures_is_kept_with_them(tmp_path: Path) -> None:
    folder = SyntheticFolder(tmp_path)
    record = folder.write_part(0, table(), NAMES, "key", failures={"item 9": "its reference: gone"})
    assert record.failures == {"item 9": "its reference: gone"}
    assert folder.kept_part(0, "key") == record
    whole = folder.write_part(0, table(), NAMES, "key")
    assert whole.failures == {}
    assert folder.kept_part(0, "key") == whole


def test_what_failed_once_is_no_part_of_the_data_set(tmp_path: Path) -> None:
    digests = []
    for name in ("at once", "in the end"):
        folder = SyntheticFolder(tmp_path / name)
        if name == "in the end":
            folder.write_part(0, table(0, 2), NAMES, "key", failures={"item 2": "gone"})
        digests.append(folder.write_manifest({}, NAMES, [folder.write_part(0, table(), NAMES, "key")]))
    assert digests[0] == digests[1]


@pytest.mark.parametrize("change", ["about", "class names", "pixel", "order"])
def test_other_content_gives_another_digest(tmp_path: Path, change: str) -> None:
    def digest(folder: SyntheticFolder, changed: bool) -> str:
        names = ("cat", "wolf") if changed and change == "class names" else NAMES
        rows = table(0, 3)
        if changed and change == "pixel":
            rows = table(0, 3, image=table(1, 3)["image"])
        parts = [folder.write_part(0, rows, names, "key"), folder.write_part(1, table(3, 4), names, "key")]
        if changed and change == "order":
            parts.reverse()
        return folder.write_manifest({"seed": 1 if changed and change == "about" else 0}, names, parts)

    assert digest(SyntheticFolder(tmp_path / "a"), False) == digest(SyntheticFolder(tmp_path / "b"), False)
    assert digest(SyntheticFolder(tmp_path / "a"), False) != digest(SyntheticFolder(tmp_path / "c"), True)


def test_write_manifest_returns_the_digest_that_it_writes(tmp_path: Path) -> None:
    folder = SyntheticFolder(tmp_path)
    digest = folder.write_manifest({}, NAMES, [folder.write_part(0, table(), NAMES, "key")])
    assert folder.manifest()["digest"] == digest
    assert len(digest) == 64


# Other readers


def test_pyarrow_reads_a_part(tmp_path: Path) -> None:
    written(tmp_path)
    rows = pq.read_table(tmp_path / "part-00001.parquet")
    assert rows["item_id"].to_pylist() == ["item 3", "item 4", "item 5", "item 6"]
    np.testing.assert_array_equal(decode(rows["image"][2].as_py()["bytes"], "x"), picture(5))
    assert rows["log_snr"].type == pa.float64()


def test_hugging_face_datasets_reads_images_and_class_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_DATASETS_OFFLINE", "1")
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    datasets = pytest.importorskip("datasets")
    folder = written(tmp_path / "made")
    read = datasets.load_dataset(
        "parquet",
        data_files=sorted(str(file) for file in folder.path.glob("part-*.parquet")),
        split="train",
        cache_dir=str(tmp_path / "cache"),
    )
    assert len(read) == 7
    assert read.features["label"].names == ["cat", "dog"]
    for i in (0, 6):
        np.testing.assert_array_equal(np.asarray(read[i]["image"]), picture(i))
        assert read[i]["label"] == i % 2
        assert read[i]["item_id"] == f"item {i}"
        assert read[i]["seed"] == 2**62 + i
    assert read[0]["log_snr"] == -float("inf")
    assert read[1]["finite"] is False


# Damage, and parts that are done


@DAMAGES
def test_a_damaged_part_is_named_and_not_finished(tmp_path: Path, damage: Any) -> None:
    folder = written(tmp_path)
    assert folder.damaged() == []
    damage(folder.part_path(1))
    assert folder.kept_part(0, "key 0") is not None
    assert folder.kept_part(1, "key 1") is None
    assert folder.damaged() == ["part-00001.parquet"]
    message = r"part-00001\.parquet is missing or damaged \(1 such parts\); run the same command again"
    with pytest.raises(ValueError, match=message):
        folder.rows()


def test_several_damaged_parts_are_counted(tmp_path: Path) -> None:
    folder = written(tmp_path)
    truncate(folder.part_path(1))
    folder.part_path(0).unlink()
    assert folder.damaged() == ["part-00000.parquet", "part-00001.parquet"]
    with pytest.raises(ValueError, match=r"part-00000\.parquet is missing or damaged \(2 such parts\)"):
        folder.rows()


def test_a_part_made_again_repairs_the_data_set(tmp_path: Path) -> None:
    folder = written(tmp_path)
    flip_a_byte(folder.part_path(1))
    folder.write_part(1, table(3, 4), NAMES, "key 1")
    assert folder.damaged() == []
    assert folder.rows().num_rows == 7


def test_a_finished_part_is_its_record(tmp_path: Path) -> None:
    folder = SyntheticFolder(tmp_path)
    record = folder.write_part(3, table(), NAMES, "key")
    assert (record.key, record.file, record.rows) == ("key", "part-00003.parquet", 3)
    assert record.sha256 == digest_file(tmp_path / "part-00003.parquet")
    assert record.states == {"ok": 1, "nan": 1, "flat": 1}
    assert folder.kept_part(3, "key") == record


def test_a_part_made_from_something_else_is_not_finished(tmp_path: Path) -> None:
    folder = SyntheticFolder(tmp_path)
    folder.write_part(0, table(), NAMES, "key")
    assert folder.kept_part(0, "another key") is None
    assert folder.kept_part(1, "key") is None


def test_a_part_with_a_broken_record_is_not_finished(tmp_path: Path) -> None:
    for content in ["", "{", "[]", "null", '{"key": "key"}']:
        folder = SyntheticFolder(tmp_path)
        folder.write_part(0, table(), NAMES, "key")
        (tmp_path / ".parts" / "part-00000.json").write_text(content)
        assert folder.kept_part(0, "key") is None


def test_a_part_that_was_interrupted_leaves_the_old_one_and_no_temporary_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = written(tmp_path)
    before = files(folder)

    def stop(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(pq, "write_table", stop)
    with pytest.raises(KeyboardInterrupt):
        folder.write_part(1, table(0, 3), NAMES, "another key")
    assert files(folder) == before


def test_rows_that_do_not_have_the_schema_are_not_written(tmp_path: Path) -> None:
    folder = SyntheticFolder(tmp_path)
    with pytest.raises(ValueError, match="field names"):
        folder.write_part(0, table().drop(["seed"]), NAMES, "key")
    assert files(folder) == {}


def test_the_manifest_removes_what_an_older_run_left(tmp_path: Path) -> None:
    folder = SyntheticFolder(tmp_path)
    parts = [folder.write_part(part, table(3 * part, 3), NAMES, "key") for part in range(4)]
    for name in (".part-00002.parquet.x1y2.tmp", ".manifest.json.x1y2.tmp", ".parts/.part-00001.json.x1y2.tmp"):
        (tmp_path / name).write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    folder.write_manifest({}, NAMES, parts[:2])
    expected = {"part-00000.parquet", "part-00001.parquet", "manifest.json", "notes.txt"}
    assert {name for name in files(folder) if not name.startswith(".parts" + os.sep + "part-")} == expected
    assert folder.rows().num_rows == 6
    assert folder.kept_part(3, "key") is None


# Manifests that cannot be read


def test_another_format_is_refused(tmp_path: Path) -> None:
    for found in [None, 3, "4"]:
        folder = written(tmp_path)
        write_json(tmp_path / "manifest.json", folder.manifest() | {"format": found})
        with pytest.raises(
            ValueError, match=rf"manifest\.json has format {found}, this version reads 4; run `latebloom generate`"
        ):
            folder.rows()


def test_a_broken_manifest_is_named(tmp_path: Path) -> None:
    folder = written(tmp_path)
    truncated = json.dumps(folder.manifest())[:-5]
    (tmp_path / "manifest.json").write_text(truncated)
    with pytest.raises(ValueError, match=r"manifest\.json is not valid JSON"):
        folder.rows()


def test_images_in_the_cache_are_found_again_by_seed(tmp_path: Path) -> None:
    folder = written(tmp_path)
    everything = folder.rows()
    seeds = everything["seed"].to_pylist()
    records = {n: folder.kept_part(n, f"key {n}") for n in range(2)}
    assert all(records.values())
    for number, record in records.items():
        assert record is not None
        rows = pq.read_table(folder.part_path(number))
        folder.write_part(number, rows, NAMES, record.key, made="a" * 64)
    assert folder.cache_parts("b" * 64, []) == 0  # of other settings: not worth it
    assert folder.cache_parts("a" * 64, [1]) == records[0].rows
    assert folder.cache_parts("a" * 64, [1]) == records[0].rows  # twice is once
    found = folder.cached("a" * 64, [seeds[1], 7])
    assert found["seed"].to_pylist() == [seeds[1]]
    assert found["image"].to_pylist() == everything.slice(1, 1)["image"].to_pylist()
    assert folder.cached("b" * 64, seeds).num_rows == 0
    (cached,) = (tmp_path / ".cache").iterdir()
    older = pq.read_table(cached).drop_columns(["distance_ratio", "source_name"])  # of a version without these
    pq.write_table(older, tmp_path / "older.parquet")
    cached.unlink()
    name = f"{'a' * 16}-{digest_file(tmp_path / 'older.parquet')}.parquet"
    (tmp_path / "older.parquet").rename(tmp_path / ".cache" / name)
    found = folder.cached("a" * 64, [seeds[1]])
    assert (found["seed"].to_pylist(), found["distance_ratio"].to_pylist()) == ([seeds[1]], [None])
    (cached,) = (tmp_path / ".cache").iterdir()
    cached.write_bytes(cached.read_bytes()[:-9] + b"x" * 9)
    with pytest.raises((ValueError, OSError)):
        pq.read_table(cached)
    assert folder.cached("a" * 64, seeds).num_rows == 0  # damaged: drawn again
