"""The layouts that are read and those that are refused, a case each; what comes of each is in docs/layouts.md.

`PYTHONPATH=tests/support python tests/data/sources/test_layouts.py > docs/layouts.md` writes that page again.
"""

import dataclasses
import json
import tempfile
from collections.abc import Callable
from pathlib import Path

import layouts as made
import pytest

from latebloom.data.config import DataConfig
from latebloom.data.sources.load import load
from latebloom.data.sources.peek import image_side

PAGE = Path(__file__).parents[3] / "docs" / "layouts.md"


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
            made.pictures("train", "test"),
        ),
        Case(
            "`training/`, `Testing/` and `valid/`, each with `CLASS/*`",
            made.pictures("training", "Testing", "valid"),
        ),
        Case(
            "`train/`, `val/`, without test",
            made.pictures("train", "val", number=5),
        ),
        Case(
            "the same",
            made.pictures("train", "val", number=5),
            {"test": "val"},
        ),
        Case(
            "`train/CLASS/*` alone",
            made.pictures("train", number=5),
        ),
        Case("`CLASS/*` alone", made.pictures("", number=5)),
        Case(
            "`fit/CLASS/*` and `holdout/CLASS/*`",
            made.pictures("fit", "holdout"),
        ),
        Case(
            "the same",
            made.pictures("fit", "holdout"),
            {"train": "fit", "test": "holdout"},
        ),
        Case(
            "`2021/CLASS/*` and `2022/CLASS/*`",
            made.pictures("2021", "2022"),
            {"train": "2021", "test": "2022"},
        ),
        Case(
            "`pets_test/CLASS/*` and `pets_train/CLASS/*`",
            made.pictures("pets_test", "pets_train"),
        ),
        Case(
            "a class that is called test: `test/*`, `control/*`",
            lambda r: made.put(r, *(f"{kind}/{n}.png" for kind in ("test", "control") for n in range(5))),
        ),
        Case(
            "the same",
            lambda r: made.put(r, *(f"{kind}/{n}.png" for kind in ("test", "control") for n in range(5))),
            {"train": "."},
        ),
        Case(
            "`train/`, `test/`, `val/` and `validation/`",
            made.pictures("train", "test", "val", "validation"),
        ),
        Case(
            "`train/CLASS/*`, and `test/*` without classes",
            lambda r: made.put(r, *made.classes("train", 5), "test/a.png"),
        ),
        Case(
            "the same",
            lambda r: made.put(r, *made.classes("train", 5), "test/a.png"),
            {"test": "none"},
        ),
        Case(
            "`train_images/*` and `test_images/*`, without classes or a table",
            lambda r: made.put(r, *(f"{part}_images/{n}.png" for part in ("train", "test") for n in range(5))),
        ),
        Case(
            "`train/GROUP/CLASS/*`, one folder deeper",
            made.pictures("train/all", "test/all"),
        ),
        Case(
            "`images/*` and `annotations/*.txt`",
            made.unlabelled,
        ),
        Case(
            "`archive/train/CLASS/*`, one folder down",
            made.pictures("archive/train", "archive/test"),
        ),
        Case(
            "spaces, other alphabets, `.PNG`, `.gif`, links; hidden files and Thumbs.db",
            made.names_of_all_kinds,
        ),
        Case(
            "tiny-imagenet as published",
            made.tiny_imagenet,
        ),
    ],
    "Parquet, as Hugging Face writes it": [
        Case(
            "`data/train-00000-of-00001.parquet`, `data/test-...`",
            lambda r: made.both(r, "data/train-00000-of-00001.parquet", "data/test-00000-of-00001.parquet"),
        ),
        Case(
            "`plain_text/train-...`, class names in the metadata",
            lambda r: made.both(
                r, "plain_text/train-0.parquet", "plain_text/test-0.parquet", names={"label": ["cat", "dog"]}
            ),
        ),
        Case(
            "`train/0000.parquet`, `test/`",
            lambda r: made.both(r, "train/0000.parquet", "test/0000.parquet"),
        ),
        Case(
            "`default/train/0000.parquet`",
            lambda r: made.both(r, "default/train/0000.parquet", "default/test/0000.parquet"),
        ),
        Case(
            "two config folders, `big/` and `small/`",
            lambda r: made.both(r, "big/train.parquet", "small/a.parquet"),
        ),
        Case(
            "one of them",
            lambda r: made.both(r, "big/train-0.parquet", "big/test-0.parquet"),
            source="big",
        ),
        Case(
            "one file",
            lambda r: made.parquet(
                r / "a.parquet", [0, 1] * 5, [{"bytes": made.png(v), "path": f"{v}.png"} for v in range(10)]
            ),
            source="a.parquet",
        ),
        Case(
            "texts as labels",
            lambda r: made.both(r, "train.parquet", "test.parquet", label=["dog", "cat"]),
        ),
        Case(
            "booleans as labels",
            lambda r: made.both(r, "train.parquet", "test.parquet", label=[True, False]),
        ),
        Case(
            "two label columns, as CIFAR-100",
            made.two_labels,
        ),
        Case(
            "the same",
            made.two_labels,
            {"label": "coarse_label"},
        ),
        Case(
            "paths instead of images",
            lambda r: (
                made.put(r, "x/a.png", "x/b.png"),
                made.both(r, "train.parquet", "test.parquet", image=["x/a.png", "x/b.png"]),
            )[-1],
        ),
        Case(
            "nested lists instead of images",
            lambda r: made.both(r, "train.parquet", "test.parquet", image=[[[v] * 8] * 8 for v in range(2)]),
        ),
        Case(
            "a folder of `save_to_disk`",
            made.arrow,
        ),
    ],
    "Tables of path and label": [
        Case(
            "`train/*` with `train/metadata.jsonl`, `test/` too",
            made.metadata_of_parts,
        ),
        Case(
            "`*` and `images/*` with `metadata.csv`",
            made.metadata_of_all,
        ),
        Case(
            "`labels.csv` (path,label) and `images/*`",
            made.labels(),
        ),
        Case(
            "the table itself",
            made.labels(),
            source="labels.csv",
        ),
        Case(
            "with tabs",
            made.labels("path\tlabel", "tsv", between="\t"),
            source="labels.tsv",
        ),
        Case(
            "with semicolons",
            made.labels("path;label", between=";"),
            source="labels.csv",
        ),
        Case(
            "a column `split`",
            made.splits_in_a_column,
            source="labels.csv",
        ),
        Case(
            "`train.csv`, `test.csv` without labels",
            made.kaggle,
        ),
        Case(
            "`train.csv` of ids without a suffix, `train_images/*`, `sample_submission.csv`",
            made.kaggle_ids,
        ),
        Case(
            "no column called label",
            made.two_columns,
            source="labels.csv",
        ),
        Case(
            "the same",
            made.two_columns,
            {"label": "breed"},
            source="labels.csv",
        ),
        Case(
            "no names of columns",
            made.labels("images/a0.png,cat"),
            source="labels.csv",
        ),
    ],
    "Arrays": [
        Case(
            "`.npz` as MedMNIST: train_images, train_labels, val_..., test_...",
            made.npz(
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
            made.npz(train_images=10, train_labels=[0, 1] * 5, val_images=2, val_labels=[0, 1]),
            source="set.npz",
        ),
        Case(
            "x_train, y_train, x_test, y_test",
            made.npz(x_train=2, y_train=[0, 1], x_test=2, y_test=[0, 1]),
            source="set.npz",
        ),
        Case(
            "images, labels",
            made.npz(images=10, labels=["dog", "cat"] * 5),
            source="set.npz",
        ),
        Case(
            "scans, kinds",
            made.npz(scans=10, kinds=[0, 1] * 5),
            source="set.npz",
        ),
        Case(
            "the same",
            made.npz(scans=10, kinds=[0, 1] * 5),
            {"image": "scans", "label": "kinds"},
            source="set.npz",
        ),
        Case(
            "images of (N, C, H, W)",
            made.channels_first,
            source="set.npz",
        ),
    ],
    "WebDataset": [
        Case(
            "`train-000000.tar`, `test-...`: `.png` and `.cls`",
            made.webdataset("cls", lambda key: str(key % 2)),
        ),
        Case(
            "`.png` and `.json`",
            made.webdataset("json", lambda key: json.dumps({"label": "dog" if key % 2 else "cat"})),
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
`data.test_fraction` (0.2) of each class of the training part is held out, by name and `data.subset_seed`: images that
are added leave it as it is, but for one a class where rounding takes one more. A validation part is used as the
validation split; to test on it, `--set data.test=val`.

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


def test_the_side_of_the_first_image_is_known_of_each_layout_that_is_read(tmp_path: Path) -> None:
    for number, case in enumerate(ALL_CASES):
        root = tmp_path / str(number)
        root.mkdir()
        case.make(root)
        config = DataConfig(source=str(root / case.source), **case.settings)  # type: ignore[arg-type]
        try:
            side = min(load(config).train.image_shape[:2])
        except ValueError:
            continue
        assert image_side(config) == side, case


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
