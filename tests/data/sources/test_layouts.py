"""The layouts that are read and those that are refused, a case each; what comes of each is in docs/layouts.md.

`python tests/data/sources/test_layouts.py > docs/layouts.md` writes that page again.
"""

import dataclasses
import io
import json
import tarfile
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from latebloom.data.config import DataConfig
from latebloom.data.sources.load import load

PAGE = Path(__file__).parents[3] / "docs" / "layouts.md"
FIVE = ("a", "b", "c", "d", "e")

# Makers of data sets


def png(value: int = 0, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("L", (8, 8), value % 256).save(buffer, kind)
    return buffer.getvalue()


def put(root: Path, *names: str) -> None:
    """Pictures, each of another grey."""
    for value, name in enumerate(names):
        kind = {".jpg": "JPEG", ".gif": "GIF", ".ppm": "PPM"}.get(Path(name).suffix.lower(), "PNG")
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(png(value, kind))


def classes(part: str, number: int = 2) -> list[str]:
    """Names of pictures of a cat and of a dog class."""
    return [f"{part}/{name}/{letter}.png".lstrip("/") for name in ("cat", "dog") for letter in FIVE[:number]]


def parquet(file: Path, label: Any = (0, 1), image: Any = None, **more: Any) -> None:
    """Two rows; with `names` as the datasets library writes a ClassLabel."""
    names = more.pop("names", {})
    images = [{"bytes": png(value + len(file.parts)), "path": None} for value in range(2)] if image is None else image
    table = pa.table({"image": images, **({"label": list(label)} if label is not None else {}), **more})
    if names:
        features = {"image": {"_type": "Image"}} | {k: {"_type": "ClassLabel", "names": v} for k, v in names.items()}
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    file.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table, file)


def both(root: Path, train: str, test: str, **settings: Any) -> None:
    for name in (train, test):
        parquet(root / name, **settings)


def two_labels(root: Path) -> None:
    names = {"fine_label": ["apple", "bee"], "coarse_label": ["fruit", "insect"]}
    both(root, "train.parquet", "test.parquet", label=None, fine_label=[0, 1], coarse_label=[1, 0], names=names)


def arrow(root: Path) -> None:
    """As `save_to_disk` writes it."""
    (root / "dataset_dict.json").write_text(json.dumps({"splits": ["train", "test"]}))
    for split in ("train", "test"):
        table = pa.table({"image": [{"bytes": png(v), "path": None} for v in range(2)], "label": [0, 1]})
        (root / split).mkdir()
        (root / split / "state.json").write_text(
            json.dumps({"_data_files": [{"filename": "data-00000-of-00001.arrow"}]})
        )
        file = str(root / split / "data-00000-of-00001.arrow")
        with pa.OSFile(file, "wb") as sink, pa.ipc.new_stream(sink, table.schema) as writer:
            writer.write_table(table)


def csv(header: str, names: list[str], *columns: Callable[[str], str], between: str = ",") -> str:
    """A line for each picture: its path and what the columns make of it."""
    return "\n".join([header, *(between.join([name, *(column(name) for column in columns)]) for name in names)]) + "\n"


def species(name: str) -> str:
    return "cat" if name.rpartition("/")[2][0] in "ab" else "dog"


def jsonl(names: list[str]) -> str:
    return "".join(json.dumps({"file_name": name, "label": species(name)}) + "\n" for name in names)


LOOSE = ["a.png", "b.png", "c.png", "d.png"]
PICTURES = [f"images/{name}.png" for name in ("a1", "a2", "a3", "a4", "a5", "d1", "d2", "d3", "d4", "d5")]


def metadata_of_parts(root: Path) -> None:
    for part in ("train", "test"):
        put(root / part, *LOOSE)
        (root / part / "metadata.jsonl").write_text(jsonl(LOOSE))


def metadata_of_all(root: Path) -> None:
    put(root, *LOOSE, *PICTURES)
    (root / "metadata.csv").write_text(csv("file_name,label", LOOSE + PICTURES, species))


def labels(header: str = "path,label", suffix: str = "csv", **settings: Any) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        put(root, *PICTURES)
        (root / f"labels.{suffix}").write_text(csv(header, PICTURES, species, **settings))

    return make


def splits_in_a_column(root: Path) -> None:
    put(root, *PICTURES)
    part = {"1": "train", "2": "train", "3": "train", "4": "dev", "5": "test"}
    (root / "labels.csv").write_text(csv("path,label,split", PICTURES, species, lambda name: part[name[-5]]))


def kaggle(root: Path) -> None:
    put(root / "train", *LOOSE)
    put(root / "test", *LOOSE)
    (root / "train.csv").write_text(csv("filename,label", LOOSE, species))
    (root / "test.csv").write_text(csv("filename", LOOSE))


def two_columns(root: Path) -> None:
    put(root, *PICTURES)
    (root / "labels.csv").write_text(
        csv("path,breed,colour", PICTURES, species, lambda name: "red" if "1" in name else "blue")
    )


def npz(**keys: int | list[Any]) -> Callable[[Path], None]:
    """Arrays: of a number so many images, of a list the labels."""

    def make(root: Path) -> None:
        arrays = {
            key: np.arange(value * 64, dtype=np.uint32).astype(np.uint8).reshape(-1, 8, 8)
            if isinstance(value, int)
            else np.array(value)
            for key, value in keys.items()
        }
        np.savez(root / "set.npz", **arrays)  # type: ignore[arg-type]

    return make


def channels_first(root: Path) -> None:
    np.savez(root / "set.npz", images=np.zeros((4, 3, 8, 8), np.uint8), labels=np.array([0, 1, 0, 1]))


def tar(root: Path, name: str, members: dict[str, bytes]) -> None:
    root.mkdir(parents=True, exist_ok=True)
    with tarfile.open(root / name, "w") as opened:
        for member, content in members.items():
            info = tarfile.TarInfo(member)
            info.size = len(content)
            opened.addfile(info, io.BytesIO(content))


def webdataset(ending: str, label: Callable[[int], str]) -> Callable[[Path], None]:
    def make(root: Path) -> None:
        for part, start in (("train", 0), ("test", 4)):
            members = {}
            for key in range(start, start + 4):
                members |= {f"{key:04}.png": png(key), f"{key:04}.{ending}": label(key).encode()}
            tar(root, f"{part}-000000.tar", members)

    return make


def names_of_all_kinds(root: Path) -> None:
    put(root, *classes("train"), *classes("test"))
    put(root, "train/cat/Ein schönes Bild.PNG", "train/dog/犬 1.JPG", "train/dog/c.gif", "train/dog/d.ppm")
    put(root, "train/.trash/x.png", "train/cat/.hidden.png")
    (root / "train/cat/Thumbs.db").write_bytes(b"?")
    (root / "train/cat/link.png").symlink_to(root / "train/dog/a.png")


def tiny_imagenet(root: Path) -> None:
    put(root, *(f"train/{wnid}/images/{wnid}_{k}.JPEG" for wnid in ("n01", "n02") for k in range(2)))
    put(root, "val/images/val_0.JPEG", "val/images/val_1.JPEG", "test/images/test_0.JPEG")
    (root / "val/val_annotations.txt").write_text("val_0.JPEG\tn02\t0\t0\t9\t9\nval_1.JPEG\tn01\t0\t0\t9\t9\n")
    (root / "words.txt").write_text("n01\tgoldfish, Carassius auratus\nn02\tcrane\n")


def pictures(*parts: str, number: int = 2) -> Callable[[Path], None]:
    return lambda root: put(root, *(name for part in parts for name in classes(part, number)))


# Cases


@dataclasses.dataclass(frozen=True)
class Case:
    """A data set; the page says what comes of it.

    Attributes:
        layout: what it looks like, for the page.
        make: makes it in an empty folder.
        settings: of the data config, but the source.
        source: what is given as the source, in the folder.
    """

    layout: str
    make: Callable[[Path], None]
    settings: dict[str, str] = dataclasses.field(default_factory=dict)
    source: str = ""


CASES: dict[str, list[Case]] = {
    "Class folders": [
        Case(
            "`train/CLASS/*`, `test/CLASS/*`",
            pictures("train", "test"),
        ),
        Case(
            "`training/`, `Testing/` and `valid/`, each with `CLASS/*`",
            pictures("training", "Testing", "valid"),
        ),
        Case(
            "`train/`, `val/`, without test",
            pictures("train", "val", number=5),
        ),
        Case(
            "the same",
            pictures("train", "val", number=5),
            {"test": "val"},
        ),
        Case(
            "`train/CLASS/*` alone",
            pictures("train", number=5),
        ),
        Case("`CLASS/*` alone", pictures("", number=5)),
        Case(
            "`fit/CLASS/*` and `holdout/CLASS/*`",
            pictures("fit", "holdout"),
        ),
        Case(
            "the same",
            pictures("fit", "holdout"),
            {"train": "fit", "test": "holdout"},
        ),
        Case(
            "`train/`, `test/`, `val/` and `validation/`",
            pictures("train", "test", "val", "validation"),
        ),
        Case(
            "`train/CLASS/*`, and `test/*` without classes",
            lambda r: put(r, *classes("train", 5), "test/a.png"),
        ),
        Case(
            "the same",
            lambda r: put(r, *classes("train", 5), "test/a.png"),
            {"test": "none"},
        ),
        Case(
            "`train/GROUP/CLASS/*`, one folder deeper",
            pictures("train/all", "test/all"),
        ),
        Case(
            "`archive/train/CLASS/*`, one folder down",
            pictures("archive/train", "archive/test"),
        ),
        Case(
            "spaces, other alphabets, `.PNG`, `.gif`, links; hidden files and Thumbs.db",
            names_of_all_kinds,
        ),
        Case(
            "tiny-imagenet as published",
            tiny_imagenet,
        ),
    ],
    "Parquet, as Hugging Face writes it": [
        Case(
            "`data/train-00000-of-00001.parquet`, `data/test-...`",
            lambda r: both(r, "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ),
        Case(
            "`plain_text/train-...`, class names in the metadata",
            lambda r: both(
                r, "plain_text/train-0.parquet", "plain_text/test-0.parquet", names={"label": ["cat", "dog"]}
            ),
        ),
        Case(
            "`train/0000.parquet`, `test/`",
            lambda r: both(r, "train/0000.parquet", "test/0000.parquet"),
        ),
        Case(
            "`default/train/0000.parquet`",
            lambda r: both(r, "default/train/0000.parquet", "default/test/0000.parquet"),
        ),
        Case(
            "two config folders, `big/` and `small/`",
            lambda r: both(r, "big/train.parquet", "small/a.parquet"),
        ),
        Case(
            "one of them",
            lambda r: both(r, "big/train-0.parquet", "big/test-0.parquet"),
            source="big",
        ),
        Case(
            "one file",
            lambda r: parquet(r / "a.parquet", [0, 1] * 5, [{"bytes": png(v), "path": f"{v}.png"} for v in range(10)]),
            source="a.parquet",
        ),
        Case(
            "texts as labels",
            lambda r: both(r, "train.parquet", "test.parquet", label=["dog", "cat"]),
        ),
        Case(
            "booleans as labels",
            lambda r: both(r, "train.parquet", "test.parquet", label=[True, False]),
        ),
        Case(
            "two label columns, as CIFAR-100",
            two_labels,
        ),
        Case(
            "the same",
            two_labels,
            {"label": "coarse_label"},
        ),
        Case(
            "paths instead of images",
            lambda r: (
                put(r, "x/a.png", "x/b.png"),
                both(r, "train.parquet", "test.parquet", image=["x/a.png", "x/b.png"]),
            )[-1],
        ),
        Case(
            "nested lists instead of images",
            lambda r: both(r, "train.parquet", "test.parquet", image=[[[v] * 8] * 8 for v in range(2)]),
        ),
        Case(
            "a folder of `save_to_disk`",
            arrow,
        ),
    ],
    "Tables of path and label": [
        Case(
            "`train/*` with `train/metadata.jsonl`, `test/` too",
            metadata_of_parts,
        ),
        Case(
            "`*` and `images/*` with `metadata.csv`",
            metadata_of_all,
        ),
        Case(
            "`labels.csv` (path,label) and `images/*`",
            labels(),
        ),
        Case(
            "the table itself",
            labels(),
            source="labels.csv",
        ),
        Case(
            "with tabs",
            labels("path\tlabel", "tsv", between="\t"),
            source="labels.tsv",
        ),
        Case(
            "with semicolons",
            labels("path;label", between=";"),
            source="labels.csv",
        ),
        Case(
            "a column `split`",
            splits_in_a_column,
            source="labels.csv",
        ),
        Case(
            "`train.csv`, `test.csv` without labels",
            kaggle,
        ),
        Case(
            "no column called label",
            two_columns,
            source="labels.csv",
        ),
        Case(
            "the same",
            two_columns,
            {"label": "breed"},
            source="labels.csv",
        ),
        Case(
            "no names of columns",
            labels("images/a0.png,cat"),
            source="labels.csv",
        ),
    ],
    "Arrays": [
        Case(
            "`.npz` as MedMNIST: train_images, train_labels, val_..., test_...",
            npz(
                train_images=4,
                train_labels=[0, 1, 0, 1],
                val_images=2,
                val_labels=[0, 1],
                test_images=2,
                test_labels=[1, 0],
            ),
            source="set.npz",
        ),
        Case(
            "train and val, without test",
            npz(train_images=10, train_labels=[0, 1] * 5, val_images=2, val_labels=[0, 1]),
            source="set.npz",
        ),
        Case(
            "x_train, y_train, x_test, y_test",
            npz(x_train=2, y_train=[0, 1], x_test=2, y_test=[0, 1]),
            source="set.npz",
        ),
        Case(
            "images, labels",
            npz(images=10, labels=["dog", "cat"] * 5),
            source="set.npz",
        ),
        Case(
            "scans, kinds",
            npz(scans=10, kinds=[0, 1] * 5),
            source="set.npz",
        ),
        Case(
            "the same",
            npz(scans=10, kinds=[0, 1] * 5),
            {"image": "scans", "label": "kinds"},
            source="set.npz",
        ),
        Case(
            "images of (N, C, H, W)",
            channels_first,
            source="set.npz",
        ),
    ],
    "WebDataset": [
        Case(
            "`train-000000.tar`, `test-...`: `.png` and `.cls`",
            webdataset("cls", lambda key: str(key % 2)),
        ),
        Case(
            "`.png` and `.json`",
            webdataset("json", lambda key: json.dumps({"label": "dog" if key % 2 else "cat"})),
        ),
    ],
}
ALL_CASES = [case for cases in CASES.values() for case in cases]


def row(case: Case, root: Path) -> str:
    """The line of the page about a case, which is made in the folder `root`."""
    case.make(root)
    settings = " ".join(f"`data.{name}={value}`" for name, value in case.settings.items())
    try:
        splits = load(DataConfig(source=str(root / case.source), **case.settings))  # type: ignore[arg-type]
    except ValueError as error:
        message = str(error).replace(str(root), "DATA").replace("<", "&lt;")
        return f"| {case.layout} | {settings} | refused: {message} |"
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    counts = ", ".join(f"{len(part)} {name}" for name, part in parts.items() if part)
    held_out = " held out" if any("held out" in note for note in splits.notes) else ""
    names = f"classes {', '.join(splits.train.class_names)}; first `{splits.train.names[0]}`"
    return f"| {case.layout} | {settings} | {counts}{held_out}; {names} |"


# The page

HEAD = """# Layouts

What a data set may look like, and what comes of it. Every row is a case of `tests/data/sources/test_layouts.py`, which
makes the data set, reads it, and writes this page. Counts are of images; `held out`: the data set has no test part.
`DATA` is the path of the data set.

**Parts.** The training part is called train or training, the test part test or testing, the validation part val, valid,
validation or dev, in upper or lower case. `--set data.train=NAME`, `data.test` and `data.validation` name others.
`data.train=.` takes all there is; `data.test=none` and `data.validation=none` leave a part out. Without a test part,
`data.test_fraction` (0.2) of each class of the training part is held out, drawn by `data.subset_seed`. A validation
part is used as the validation split; to test on it, `--set data.test=val`.

**Columns.** `--set data.image=NAME` and `data.label=NAME` name the columns of a table, the keys of an .npz, or the key
of a .json in WebDataset shards.

**Names.** An image is called by its path in the data set, or by the name that its row has for it (`path`, the key of a
sample), with the part before it where two parts have the same name: `train/cat/1690.jpg`. Where rows have no names, or
two of a part the same, by file and row: `data/train-00000.parquet[17]`.

**Labels.** Texts are classes in sorted order. Integers count from 0, or from 1 where no label is 0. A label that the
training part does not have, a row without an image and a file that cannot be read are errors; `latebloom check SOURCE`
lists all of them.
"""


@pytest.mark.parametrize("case", ALL_CASES, ids=[f"{case.layout} {case.settings or ''}" for case in ALL_CASES])
def test_a_layout_gives_what_its_page_says(case: Case, tmp_path: Path) -> None:
    assert row(case, tmp_path) in PAGE.read_text().splitlines()


def test_the_page_has_these_cases_and_no_others() -> None:
    text = PAGE.read_text()
    assert text.startswith(HEAD)
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    assert [name for name in rows if name != "layout"] == [case.layout for case in ALL_CASES]


if __name__ == "__main__":
    print(HEAD)
    for group, cases in CASES.items():
        print(f"## {group}\n\n| layout | setting | what comes of it |\n|---|---|---|")
        for one in cases:
            with tempfile.TemporaryDirectory() as folder:
                print(row(one, Path(folder)))
        print()
