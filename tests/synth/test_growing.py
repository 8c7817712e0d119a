"""Which pictures are others where a data set has grown or changed: the table of docs/generators.md, row by row."""

import io
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from latebloom.data.config import DataConfig
from latebloom.data.images import encode_png
from latebloom.data.seeds import numpy_rng
from latebloom.data.sources.load import load
from latebloom.synth.generate import draw
from latebloom.synth.plan import make_plan, requests
from latebloom.synth.sampling.denoiser import Wanted

DOCS = Path(__file__).parents[2] / "docs" / "generators.md"
CLASSES = {"bee": 0, "cat": 1, "cow": 7, "dog": 2, "wasp": 0}  # what a class-conditional generator calls them


def picture(name: str) -> np.ndarray:
    return numpy_rng(0, name).integers(0, 256, (8, 8, 1), np.uint8)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An image folder: 1.png to 4.png of bees, cats and dogs, all different."""
    root = tmp_path / "images"
    for name in [f"train/{kind}/{n}.png" for kind in ("bee", "cat", "dog") for n in (1, 2, 3, 4)] + ["test/cat/1.png"]:
        add(name)(root)
    return root


def add(name: str) -> Callable[[Path], object]:
    def change(root: Path) -> None:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(encode_png(picture(name)))

    return change


def twin(name: str) -> Callable[[Path], object]:
    return lambda root: shutil.copy(root / "train/cat/2.png", root / name)


def move(old: str, new: str) -> Callable[[Path], object]:
    return lambda root: (root / old).rename(root / new)


def shuffle(root: Path) -> None:
    for kind in ("bee", "cat", "dog"):
        for old, new in (("1", "a"), ("4", "1"), ("2", "4"), ("3", "2"), ("a", "3")):
            (root / f"train/{kind}/{old}.png").rename(root / f"train/{kind}/{new}.png")


def as_parquet(root: Path) -> None:
    """Other files of the same pixels: BMP in a parquet table, the images of all classes mixed."""
    for split in ("train", "test"):
        rows = []
        for file in sorted((root / split).rglob("*.png"), key=lambda file: file.name):
            blob = io.BytesIO()
            Image.open(file).save(blob, "bmp")
            rows.append({"image": {"bytes": blob.getvalue(), "path": ""}, "label": file.parent.name})
        shutil.rmtree(root / split)
        pq.write_table(pa.Table.from_pylist(rows), root / f"{split}.parquet")


# (the change, what it does, pictures drawn by a model that goes by a prompt, by one that goes by a label)
CHANGES: list[tuple[str, Callable[[Path], object], int, int]] = [
    ("nothing", lambda root: root, 0, 0),
    ("an image added, before all others", add("train/bee/0.png"), 2, 2),
    ("an image added, in the middle", add("train/cat/2b.png"), 2, 2),
    ("an image added, after all others", add("train/dog/5.png"), 2, 2),
    ("an image removed", lambda root: (root / "train/bee/1.png").unlink(), 0, 0),
    ("a file renamed", move("train/bee/1.png", "train/bee/9.png"), 0, 0),
    ("all files of each class in another order", shuffle, 0, 0),
    ("the same pixels in other files, of parquet", as_parquet, 0, 0),
    ("a class added, in the middle", add("train/cow/1.png"), 2, 2),
    ("a class of four images renamed", move("train/bee", "train/wasp"), 8, 0),
    ("an image moved to another class", move("train/bee/1.png", "train/dog/9.png"), 2, 2),
    ("an equal image added before its like", twin("train/cat/1b.png"), 2, 2),
    ("an equal image added after its like", twin("train/cat/5.png"), 2, 2),
    ("an equal image added to a later class", twin("train/dog/5.png"), 2, 2),
    ("an equal image added to an earlier class", twin("train/bee/5.png"), 4, 4),
]


def noise(references: np.ndarray, wanted: Wanted, by_prompt: bool) -> np.ndarray:
    """Images that are decided by what decides those of a model."""
    names = wanted.prompts if by_prompt else wanted.labels.tolist()
    made = [
        numpy_rng(seed, name).integers(0, 256, one.shape) + one
        for one, seed, name in zip(references, wanted.seeds, names, strict=True)
    ]
    return np.stack(made).astype(np.uint8)


@pytest.mark.parametrize(("change", "apply", "by_prompt", "by_label"), CHANGES, ids=[name for name, *_ in CHANGES])
def test_only_what_is_new_is_drawn(
    change: str,
    apply: Callable[[Path], object],
    by_prompt: int,
    by_label: int,
    folder: Path,
    fakes: SimpleNamespace,
) -> None:
    """Two pictures of each of twelve images: of the 24 as many are drawn as the table says, and all others kept."""

    def pictures(prompted: bool) -> tuple[Counter[bytes], pa.Table]:
        data = load(DataConfig(source=str(folder))).train
        labels = None if prompted else [CLASSES[name] for name in data.class_names]
        plan = make_plan(requests(np.arange(len(data)), (3, 5)), data, 10, 7, generator_labels=labels)
        assert len(set(plan["seed"].to_pylist())) == plan.num_rows  # equal images too have seeds of their own
        generator = fakes.Generator(lambda references, wanted: noise(references, wanted, prompted))
        return Counter(draw(generator, data, plan).blobs), plan

    kinds = (True, False)
    before = [pictures(prompted)[0] for prompted in kinds]
    assert [len(found) for found in before] == [24, 24]
    apply(folder)
    drawn = [(now - old).total() for (now, _), old in zip(map(pictures, kinds), before, strict=True)]
    assert drawn == [by_prompt, by_label]
    if change != "nothing":
        assert f"| {change} | {by_prompt} | {by_label} |" in DOCS.read_text("utf-8").splitlines()
