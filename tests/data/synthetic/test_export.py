import gc
import json
import re
import tarfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.json
import pytest
import yaml
from PIL import Image

from latebloom.data.config import DataConfig
from latebloom.data.images import LabeledImages, encode_png
from latebloom.data.sources.load import Splits, load
from latebloom.data.states import STATES, State
from latebloom.data.store import digest_file
from latebloom.data.synthetic import export as module
from latebloom.data.synthetic.card import Contents, Summary, card, score_names, summarise
from latebloom.data.synthetic.export import EXPORT_FORMATS, ExportFormat, export
from latebloom.data.synthetic.folder import SYNTHETIC_SCHEMA, SyntheticFolder

NAMES = ("cat", "dog", "F/A-18")
FORMATS = pytest.mark.parametrize("kind", EXPORT_FORMATS)
# Seven images of value 10 i: their labels and states.
LABELS = [0, 1, 2, 0, 1, 2, 0]
STATE = ["ok", "ok", "ok", "off_label", "ok", "flat", "ok"]
OK = [0, 1, 2, 4, 6]


def picture(value: int, size: int = 8, channels: int = 3) -> np.ndarray:
    return np.full((size, size, channels), value, np.uint8)


def table(numbers: list[int], picture: Callable[[int], np.ndarray]) -> pa.Table:
    """Rows of the data set. Scores are i / 10, but that only image 6 is pure noise and has no `contrast`."""
    known: dict[str, Callable[[int], Any]] = {
        "image": lambda i: {"bytes": encode_png(picture(10 * i)), "path": f"{i}.png"},
        "label": LABELS.__getitem__,
        "item_id": "item-{}".format,
        "source_index": lambda i: i // 2,
        "source_name": lambda i: f"[{i // 2}]",
        "variant": lambda _: 0,
        "level_steps": lambda i: 20 if i == 6 else 10 * (i % 2) + 5,
        "level_grid": lambda _: 20,
        "log_snr": lambda i: -np.inf if i == 6 else 0.5,
        "contrast": lambda i: None if i == 6 else i / 10,
        "seed": lambda i: 2**62 + i,
        "prompt": lambda i: f"a photo of a {NAMES[LABELS[i]]}",
        "state": STATE.__getitem__,
    }
    standing: dict[Any, Any] = {pa.float64(): 0.5, pa.int64(): 3, pa.string(): "x", pa.bool_(): True}
    columns = {
        field.name: [known[field.name](i) if field.name in known else standing.get(field.type, b"") for i in numbers]
        for field in SYNTHETIC_SCHEMA
    }
    return pa.table(columns, schema=SYNTHETIC_SCHEMA)


def real(classes: tuple[str, ...] = NAMES, channels: int = 3) -> Splits:
    """Six training images of values 200.., six test images of values 100..; label i % 3."""

    def part(first: int, split: str) -> LabeledImages:
        images = np.stack([picture(first + i, channels=channels) for i in range(6)])
        return LabeledImages(images, np.arange(6) % 3, classes, split)

    return Splits(part(200, "real train"), part(100, "real test"), None)


def written(path: Path, picture: Callable[[int], np.ndarray] = picture, **about: Any) -> SyntheticFolder:
    """A finished data set of two parts, made from `real`."""
    folder = SyntheticFolder(path)
    parts = [
        folder.write_part(part, table(numbers, picture), NAMES, "key")
        for part, numbers in enumerate(([0, 1, 2, 3], [4, 5, 6]))
    ]
    folder.write_manifest({"data": real().train.digest} | about, NAMES, parts)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> SyntheticFolder:
    about = {"templates": ["a photo of a {name}"], "negative_prompt": "", "names": list(NAMES)}
    return written(tmp_path_factory.mktemp("set") / "synthetic", generator="tiny-diffusion", **about)


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def value(file: Path) -> int:
    """The one value that all pixels of an image file have."""
    pixels = np.asarray(Image.open(file))
    assert (pixels == pixels.flat[0]).all()
    return int(pixels.flat[0])


def contents(path: Path) -> dict[str, bytes]:
    return {str(file.relative_to(path)): file.read_bytes() for file in path.rglob("*") if file.is_file()}


@pytest.fixture
def offline(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Any:
    """The `datasets` library, with a cache of its own and no network."""
    import datasets

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    datasets.disable_progress_bars()
    return datasets


# Image folder


def test_an_image_folder_has_the_chosen_images_by_class_and_a_line_of_metadata_for_each(
    folder: SyntheticFolder, tmp_path: Path
) -> None:
    assert export(folder, tmp_path / "out", "imagefolder") == {"train": 5}

    files = {str(file.relative_to(tmp_path / "out")) for file in (tmp_path / "out").rglob("*") if file.is_file()}
    # Images 0 and 6, 1 and 4 are of a class. References 0 and 3, 0 and 2 differ, and so do the names.
    pictures = [
        *("cat/[0]-5of20-v0.png", "dog/[0]-15of20-v0.png", "F%2FA-18/[1]-5of20-v0.png"),
        *("dog/[2]-5of20-v0.png", "cat/[3]-20of20-v0.png"),
    ]
    assert files == {"README.md", "train/metadata.jsonl"} | {f"train/{name}" for name in pictures}
    rows = lines(tmp_path / "out/train/metadata.jsonl")
    assert [row["file_name"] for row in rows] == pictures
    assert [value(tmp_path / "out/train" / name) for name in pictures] == [10 * i for i in OK]
    assert [row["class_name"] for row in rows] == ["cat", "dog", "F/A-18", "dog", "cat"]
    assert [row["seed"] for row in rows] == [2**62 + i for i in OK]
    assert all(row["synthetic"] is True for row in rows)
    hidden = {"image", "fingerprint"}  # bytes
    assert set(rows[0]) == {"file_name", "class_name", "synthetic"} | set(SYNTHETIC_SCHEMA.names) - hidden


def test_every_line_has_values_of_the_same_types_or_null(folder: SyntheticFolder, tmp_path: Path) -> None:
    export(folder, tmp_path / "out", "imagefolder", real=real())
    files = [tmp_path / "out" / split / "metadata.jsonl" for split in ("train", "test")]
    assert not any(re.search(r"\b(NaN|Infinity)\b", file.read_text()) for file in files)  # JSON has no such words
    rows = [row for file in files for row in lines(file)]
    kinds = {name: {type(row[name]) for row in rows} - {type(None)} for name in rows[0]}
    assert all(len(kind) == 1 or name in ("clip_score", "clip_margin", "unsafe") for name, kind in kinds.items())
    assert all(set(row) == set(rows[0]) for row in rows)
    noise = next(row for row in rows if row["item_id"] == "item-6")
    assert (noise["log_snr"], noise["contrast"]) == (None, None)
    assert (rows[0]["synthetic"], rows[0]["contrast"], rows[0]["nearest_real_index"]) == (False, -1.0, -1)
    read = pyarrow.json.read_json(files[0])
    assert {str(read.schema.field(name).type) for name in ("contrast", "log_snr", "label_probability")} == {"double"}


def test_the_real_images_come_first_with_a_test_split_of_their_own(folder: SyntheticFolder, tmp_path: Path) -> None:
    assert export(folder, tmp_path / "out", "imagefolder", real=real()) == {"train": 11, "test": 6}
    rows = lines(tmp_path / "out/train/metadata.jsonl")
    assert [row["synthetic"] for row in rows] == [False] * 6 + [True] * 5
    fourth = rows[3]
    assert value(tmp_path / "out/train" / fourth["file_name"]) == 203
    assert fourth["file_name"] == "cat/[3].png"
    assert (fourth["label"], fourth["source_index"], fourth["state"]) == (0, 3, "ok")
    assert fourth["source_sha256"] == real().train.sha256[3]
    assert fourth["seed"] == -1
    assert fourth["prompt"] == ""
    last = lines(tmp_path / "out/test/metadata.jsonl")[-1]
    assert value(tmp_path / "out/test" / last["file_name"]) == 105


def test_datasets_reads_an_image_folder(folder: SyntheticFolder, tmp_path: Path, offline: Any) -> None:
    export(folder, tmp_path / "out", "imagefolder", real=real())
    plain = offline.load_dataset("imagefolder", data_dir=str(tmp_path / "out"))
    assert {split: len(part) for split, part in plain.items()} == {"train": 11, "test": 6}
    assert np.asarray(plain["train"][9]["image"])[0, 0].tolist() == [40] * 3
    assert plain["train"].filter(lambda row: row["synthetic"])["item_id"] == [f"item-{i}" for i in OK]
    # By its folder the card is read too: labels then have names.
    carded = offline.load_dataset(str(tmp_path / "out"))
    assert {split: len(part) for split, part in carded.items()} == {"train": 11, "test": 6}
    assert carded["train"].features["label"] == offline.ClassLabel(names=list(NAMES))
    assert carded["test"]["label"] == [0, 1, 2, 0, 1, 2]
    assert carded["train"][10]["log_snr"] is None


def test_torchvision_and_we_ourselves_read_an_image_folder(folder: SyntheticFolder, tmp_path: Path) -> None:
    from torchvision.datasets import ImageFolder

    export(folder, tmp_path / "out", "imagefolder", real=real())
    pictures = ImageFolder(str(tmp_path / "out/train"))
    assert pictures.classes == ["F%2FA-18", "cat", "dog"]
    assert len(pictures) == 11
    splits = load(DataConfig(source=str(tmp_path / "out")))
    assert splits.train.class_counts().tolist() == [3, 4, 4]
    assert len(splits.test) == 6


@pytest.mark.slow  # importing timm alone takes many seconds
@pytest.mark.filterwarnings("default")  # timm's own
def test_timm_reads_an_image_folder(folder: SyntheticFolder, tmp_path: Path) -> None:
    timm = pytest.importorskip("timm.data")
    export(folder, tmp_path / "out", "imagefolder", real=real())
    found = timm.create_dataset("", root=str(tmp_path / "out"), split="train")
    assert len(found) == 11
    assert found.reader.class_to_idx == {"cat": 0, "dog": 1, "F%2FA-18": 2}  # it sorts as people do


def test_real_files_keep_their_names_and_bytes_and_validation_is_a_split(tmp_path: Path) -> None:
    source = tmp_path / "mine"
    pixels = np.arange(192, dtype=np.uint8).reshape(8, 8, 3)
    for split in ("train", "val", "test"):
        for name in ("big cat", "dog"):
            (source / split / name).mkdir(parents=True)
            Image.fromarray(pixels).save(source / split / name / "a.png", compress_level=1)
            Image.fromarray(pixels).save(source / split / name / "A.JPG", "JPEG", quality=50)
            Image.fromarray(pixels).quantize(200).save(source / split / name / "few colours.png")  # a palette
    data = load(DataConfig(source=str(source)))
    assert data.validation is not None
    folder = SyntheticFolder(tmp_path / "set")
    rows = table([0], picture).set_column(
        SYNTHETIC_SCHEMA.get_field_index("source_name"), "source_name", pa.array(["train/big cat/a.png"])
    )
    parts = [folder.write_part(0, rows, data.train.class_names, "key")]
    folder.write_manifest({"data": data.train.digest}, data.train.class_names, parts)
    counts = export(folder, tmp_path / "out", "imagefolder", real=data)
    assert counts == {"train": 7, "validation": 6, "test": 6}
    for split, own in (("train", "train"), ("val", "validation"), ("test", "test")):
        for name in ("big cat", "dog"):
            # A.JPG comes first; on macOS and Windows a.png is another file still, since its suffix differs.
            for file in ("a.png", "A.JPG"):
                copied = tmp_path / "out" / own / name / file
                assert copied.read_bytes() == (source / split / name / file).read_bytes()
            with Image.open(tmp_path / "out" / own / name / "few colours.png") as written_anew:
                assert written_anew.mode == "RGB"
    described = {row["file_name"]: row for row in lines(tmp_path / "out/train/metadata.jsonl")}
    assert described["dog/few colours.png"]["source_name"] == "train/dog/few colours.png"
    assert described["big cat/a-5of20-v0.png"]["source_name"] == "train/big cat/a.png"
    assert described["big cat/a-5of20-v0.png"]["item_id"] == "item-0"
    again = load(DataConfig(source=str(tmp_path / "out")))
    assert again.validation is not None
    assert (len(again.train), len(again.validation), len(again.test)) == (7, 6, 6)
    export(folder, tmp_path / "npz", "npz", real=data)
    with np.load(tmp_path / "npz/dataset.npz") as arrays:
        assert arrays["train_names"].tolist() == [*data.train.names, "item-0"]
        assert arrays["val_names"].tolist() == list(data.validation.names)
        assert arrays["val_images"].shape == (6, 8, 8, 3)


def test_images_that_were_cut_are_written_as_they_were_trained_on(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("cat", "dog"):
            (tmp_path / "mine" / split / name).mkdir(parents=True)
            Image.fromarray(picture(7, 10)).save(tmp_path / "mine" / split / name / "1.jpg")
    data = load(DataConfig(source=str(tmp_path / "mine"), image_size=8))
    folder = SyntheticFolder(tmp_path / "set")
    parts = [folder.write_part(0, table([0], picture), ("cat", "dog"), "key")]
    folder.write_manifest({"data": data.train.digest}, ("cat", "dog"), parts)
    export(folder, tmp_path / "out", "imagefolder", real=data)
    with Image.open(tmp_path / "out/train/cat/1.png") as image:
        assert (image.size, image.format) == ((8, 8), "PNG")


# WebDataset


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # webdataset leaves shards to be collected
def test_webdataset_reads_the_shards(folder: SyntheticFolder, tmp_path: Path) -> None:
    webdataset = pytest.importorskip("webdataset")
    export(folder, tmp_path / "out", "webdataset", shard_images=2, real=real())
    shards = sorted(file.name for file in (tmp_path / "out").glob("*.tar"))
    assert shards == [f"test-{n:06d}.tar" for n in range(3)] + [f"train-{n:06d}.tar" for n in range(6)]  # 6 / 2, 11 / 2
    urls = [str(tmp_path / "out" / name) for name in shards if name.startswith("train")]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False).decode("rgb8").to_tuple("png", "cls", "json"))
    assert [int(png[0, 0, 0]) for png, _, _ in samples] == [200 + i for i in range(6)] + [10 * i for i in OK]
    assert [label for _, label, _ in samples] == [0, 1, 2, 0, 1, 2, 0, 1, 2, 1, 0]
    assert [row["item_id"] for _, _, row in samples][-1] == "item-6"
    assert [row["synthetic"] for _, _, row in samples] == [False] * 6 + [True] * 5
    gc.collect()


def test_equal_images_are_equal_tars(folder: SyntheticFolder, tmp_path: Path) -> None:
    for name in ("a", "b"):
        export(folder, tmp_path / name, "webdataset")
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    with tarfile.open(tmp_path / "a/train-000000.tar") as tar:
        members = tar.getmembers()
    assert [member.name for member in members[:3]] == ["item-0.png", "item-0.cls", "item-0.json"]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}


def test_a_shard_stays_below_its_bytes(folder: SyntheticFolder, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.setattr(module, "_SHARD_BYTES", 1)  # an image that is larger still gets a shard
    export(folder, tmp_path / "out", "webdataset")
    assert len(list((tmp_path / "out").glob("*.tar"))) == 5


# .npz


def test_an_npz_is_laid_out_as_medmnists_and_we_read_it_back(folder: SyntheticFolder, tmp_path: Path) -> None:
    export(folder, tmp_path / "out", "npz", real=real())
    with np.load(tmp_path / "out/dataset.npz") as arrays:
        shapes = {name: (arrays[name].shape, str(arrays[name].dtype)) for name in arrays if "names" not in name}
        assert arrays["train_names"].tolist() == [f"[{i}]" for i in range(6)] + [f"item-{i}" for i in OK]
    assert shapes == {
        "train_images": ((11, 8, 8, 3), "uint8"),
        "train_labels": ((11, 1), "uint8"),
        "val_images": ((0, 8, 8, 3), "uint8"),
        "val_labels": ((0, 1), "uint8"),
        "test_images": ((6, 8, 8, 3), "uint8"),
        "test_labels": ((6, 1), "uint8"),
    }
    splits = load(DataConfig(source=str(tmp_path / "out/dataset.npz")))
    assert splits.train.class_names == NAMES
    assert splits.train.pixels()[:, 0, 0, 0].tolist() == [200 + i for i in range(6)] + [10 * i for i in OK]
    assert splits.train.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1, 2, 1, 0]
    assert splits.test.pixels()[:, 0, 0, 0].tolist() == [100 + i for i in range(6)]
    assert [row["item_id"] for row in lines(tmp_path / "out/train.jsonl")][6:] == [f"item-{i}" for i in OK]


def test_grey_images_of_an_npz_have_no_channel(tmp_path: Path) -> None:
    folder = written(tmp_path / "synthetic", lambda value: picture(value, channels=1))
    export(folder, tmp_path / "out", "npz")
    with np.load(tmp_path / "out/dataset.npz") as arrays:
        assert arrays["train_images"].shape == (5, 8, 8)
        assert arrays["test_images"].shape == (0, 8, 8)


def test_images_of_several_sizes_fit_no_npz_but_an_image_folder(tmp_path: Path) -> None:
    folder = written(tmp_path / "synthetic", lambda value: picture(value, 9 if value == 40 else 8))
    with pytest.raises(ValueError, match=r"item-4 has \(9, 9, 3\) and item-0 has \(8, 8, 3\); export an imagefolder"):
        export(folder, tmp_path / "out", "npz")
    assert not (tmp_path / "out").exists()
    assert export(folder, tmp_path / "out", "imagefolder") == {"train": 5}


# All formats


@FORMATS
def test_a_chosen_state_is_exported(folder: SyntheticFolder, tmp_path: Path, kind: ExportFormat) -> None:
    written: list[int] = []
    counts = export(folder, tmp_path / "out", kind, states=("flat", "off_label"), on_images=written.append)
    assert counts == {"train": 2}
    assert sum(written) == 2


def test_states_without_an_image_are_refused(folder: SyntheticFolder, tmp_path: Path) -> None:
    for states, message in [
        (("okay",), "no state is called 'okay'; states: .*ok"),
        ((), "no state is called ''"),
        (("nan",), "has no image that is nan; it has flat 1, off_label 1, ok 5"),
    ]:
        with pytest.raises(ValueError, match=message):
            export(folder, tmp_path / "out", "imagefolder", states=states)


def test_other_real_images_are_refused(folder: SyntheticFolder, tmp_path: Path) -> None:
    other = real(("cat", "dog", "bird"))
    with pytest.raises(ValueError, match=r"real train is not the data set that the images in .* were made from"):
        export(folder, tmp_path / "out", "imagefolder", real=other)


def test_a_data_set_that_is_not_whole_is_refused(tmp_path: Path) -> None:
    folder = written(tmp_path / "synthetic")
    folder.part_path(1).write_bytes(b"damaged")
    with pytest.raises(ValueError, match=r"part-00001.parquet is missing or damaged \(1 such parts\)"):
        export(folder, tmp_path / "out", "imagefolder")
    (folder.path / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        export(folder, tmp_path / "out", "imagefolder")
    assert [path.name for path in tmp_path.iterdir()] == ["synthetic"]


def test_what_is_there_is_not_written_over(
    folder: SyntheticFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full/mine").touch()
    (tmp_path / "file").touch()
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="full is not empty; export to a new folder"):
        export(folder, tmp_path / "full", "imagefolder")
    with pytest.raises(ValueError, match="file is a file; export to a new folder"):
        export(folder, tmp_path / "file", "imagefolder")
    export(folder, tmp_path / "empty", "imagefolder")
    export(folder, tmp_path / "new/deep", "imagefolder")
    assert contents(tmp_path / "empty") == contents(tmp_path / "new/deep")
    assert (tmp_path / "new/deep").stat().st_mode == (tmp_path / "full").stat().st_mode  # others may read it
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    export(folder, Path(), "imagefolder")
    assert contents(tmp_path / "here") == contents(tmp_path / "empty")


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        ("imagefolder", KeyboardInterrupt()),
        ("webdataset", OSError(28, "No space left on device")),
        ("npz", KeyboardInterrupt()),
    ],
)
def test_an_interrupted_export_leaves_nothing(
    folder: SyntheticFolder, tmp_path: Path, kind: ExportFormat, error: BaseException
) -> None:
    def stop(_: int) -> None:
        raise error

    with pytest.raises(type(error)):
        export(folder, tmp_path / "out", kind, on_images=stop)
    assert list(tmp_path.iterdir()) == []


def test_the_source_is_only_read(folder: SyntheticFolder, tmp_path: Path) -> None:
    before = {file: digest_file(file) for file in folder.path.rglob("*") if file.is_file()}
    export(folder, tmp_path / "out", "imagefolder", real=real())
    assert {file: digest_file(file) for file in folder.path.rglob("*") if file.is_file()} == before


# The card


def front_matter(text: str) -> tuple[dict[str, Any], str]:
    _, head, body = text.split("---\n", 2)
    return yaml.safe_load(head), body


def test_the_card_describes_what_is_there(folder: SyntheticFolder, tmp_path: Path) -> None:
    export(folder, tmp_path / "out", "imagefolder", real=real(), source="three things")
    head, body = front_matter((tmp_path / "out/README.md").read_text())
    assert head["license"] == "unknown"
    assert head["pretty_name"] == "Latebloom: variants of three things"
    assert head["task_categories"] == ["image-classification"]
    assert head["size_categories"] == ["n<1K"]
    splits = [{"split": split, "path": f"{split}/**"} for split in ("train", "test")]
    assert head["configs"][0]["data_files"] == splits
    assert "3 classes; 5 synthetic images, 6 real training images, 6 real test images." in body
    assert "| generator | tiny-diffusion |" in body
    assert "| licence of its weights | not stated |" in body
    # made, ok, off_label, flat, here
    assert "| cat | 3 | 2 | 1 | 0 | 2 |" in body
    assert "| F/A-18 | 2 | 1 | 0 | 1 | 1 |" in body
    assert "| 20 of 20 | 1 | 1 | 0 | 0 | 1 |" in body
    assert f"| off_label | 1 | {STATES['off_label'].words} |" in body
    assert "| `contrast` | 0 | 0.015 | 0.075 | 0.15 | 0.25 | 0.37 | 0.4 |" in body  # of 0, .1, .2 and .4
    assert "3 prompts: a photo of a cat, a photo of a dog, a photo of a F/A-18" in body
    assert "| `templates` | a photo of a {name} |" in body
    assert "| `negative_prompt` | none |" in body
    assert "`names`" not in body  # the classes' own


def test_the_card_has_the_names_in_prompts(tmp_path: Path) -> None:
    export(written(tmp_path / "set", names=["tomcat", "dog", "fighter jet"]), tmp_path / "out", "imagefolder")
    _, body = front_matter((tmp_path / "out/README.md").read_text())
    assert "| `names` | tomcat, dog, fighter jet |" in body
    assert "`names` are what prompts call the classes" in body


@FORMATS
def test_the_card_fits_the_format(folder: SyntheticFolder, tmp_path: Path, kind: ExportFormat) -> None:
    export(folder, tmp_path / "out", kind)
    head, body = front_matter((tmp_path / "out/README.md").read_text())
    paths = [split["path"] for config in head.get("configs", []) for split in config["data_files"]]
    assert paths == {"imagefolder": ["train/**"], "webdataset": ["train-*.tar"], "npz": []}[kind]
    assert {"imagefolder": "ImageFolder(", "webdataset": "webdataset.WebDataset(", "npz": "numpy.load("}[kind] in body
    assert "real training images" not in body
    assert not any(line != line.rstrip() for line in body.splitlines())


HOSTILE = "\"] }\n---\n# <b>|`x` {{ 7 * 7 }} ' ö\\"


def test_hostile_names_stay_names() -> None:
    summary = Summary(1, {"ok": 1}, {"1 of 2": {"ok": 1}}, {HOSTILE: {"ok": 1}, "other": {}}, {"contrast": [1.0] * 7})
    about = {"generator": HOSTILE, "sample": {"sampler": HOSTILE}, "names": [HOSTILE, 3, True, 0.25, None]}
    manifest = {"about": about, "digest": "d" * 64}
    text = card(
        Contents(
            "imagefolder", HOSTILE, (HOSTILE, "other"), {"label": "int64"}, manifest, summary, summary, [HOSTILE], {}
        )
    )
    head, body = front_matter(text)
    assert head["pretty_name"] == f"Latebloom: variants of {HOSTILE}"
    (label,) = [f for f in head["configs"][0]["features"] if f["name"] == "label"]
    assert label["dtype"]["class_label"]["names"] == {"0": HOSTILE, "1": "other"}
    assert "<b>" not in body
    assert "---" not in [line.strip() for line in body.splitlines()]
    assert "{{ 7" in body
    assert "3, yes, 0.25, none" in body


def test_the_size_category_is_hugging_faces() -> None:
    for images, category in [
        (1, "n<1K"),
        (999, "n<1K"),
        (1000, "1K<n<10K"),
        (50_000, "10K<n<100K"),
        (1_281_167, "1M<n<10M"),
    ]:
        empty = Summary(images, {}, {}, {}, {})
        contents = Contents("npz", "x", ("a", "b"), {}, {"about": {}, "digest": "d"}, empty, empty, [], {})
        assert front_matter(card(contents))[0]["size_categories"] == [category]


# The summary


def test_a_summary_counts_by_state_level_and_class(folder: SyntheticFolder) -> None:
    summary = summarise(folder.rows().drop_columns(["image"]), (*NAMES, "bird"))
    assert summary.images == 7
    assert summary.states == {"ok": 5, "off_label": 1, "flat": 1}
    assert summary.levels == {
        "5 of 20": {"ok": 3},
        "15 of 20": {"ok": 1, "off_label": 1, "flat": 1},
        "20 of 20": {"ok": 1},
    }
    assert list(summary.levels) == ["5 of 20", "15 of 20", "20 of 20"]
    assert summary.classes["F/A-18"] == {"ok": 1, "flat": 1}
    assert summary.classes["bird"] == {}
    # The median of 0, .1, .2, .3, .4 and .5; image 6 has none.
    assert summary.scores["contrast"][3] == pytest.approx(0.25)
    assert summary.scores["label_probability"] == [0.5] * 7


def test_scores_are_the_numbers_that_say_nothing_of_the_making() -> None:
    scores = score_names(SYNTHETIC_SCHEMA)
    assert {"contrast", "label_probability", "reference_distance"} <= set(scores)
    assert not {"log_snr", "strength", "timestep", "guidance_scale", "seed", "finite"} & set(scores)


def test_every_state_is_explained() -> None:
    assert set(get_args(State)) == set(STATES)
