"""Reads a data set by name or path: every one becomes the same `Splits` of `LabeledImages`.

A data set that cannot be trained on is refused here, with the file or row, before any training begins.
"""

import dataclasses
import difflib
import functools
import importlib.util
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from latebloom.data.config import NAMES, DataConfig
from latebloom.data.depth import Decoding
from latebloom.data.images import EncodedImages, LabeledImages
from latebloom.data.sources.arrays import read_npz
from latebloom.data.sources.columns import refuse_columns
from latebloom.data.sources.folders import LAYOUTS, read_folder
from latebloom.data.sources.found import Found, Problems, Split
from latebloom.data.sources.named import read_named, read_published
from latebloom.data.sources.parquet import read_parquet
from latebloom.data.sources.parts import as_asked, part_of
from latebloom.data.sources.shards import TARS, read_shards
from latebloom.data.sources.tables import TABLES, read_tables
from latebloom.data.sources.uniform import (
    check_classes,
    check_names,
    common_shape,
    eight_bits,
    headers,
    scaled,
    uniform,
)
from latebloom.data.store import as_path, is_remote

__all__ = ["Splits", "digits_split", "find", "load", "splits_of"]

# data.seeds (torch), torchvision, pyarrow and scikit-learn take seconds to import: the function that needs one
# imports it.


@dataclasses.dataclass(frozen=True)
class Splits:
    """A data set. All parts have the same class names and image shape.

    `generator` holds images kept for training a generator, in none of the others; only `digits` has them. `validation`
    holds images to choose by, in none of the others, and with labels as they came; None where the data set has none and
    none was asked for. `notes` say what was assumed of the data set, in a sentence each.
    """

    train: LabeledImages
    test: LabeledImages
    generator: LabeledImages | None
    validation: LabeledImages | None = None
    notes: tuple[str, ...] = ()


def load(config: DataConfig) -> Splits:
    """Load a data set by name or path.

    - `digits`: scikit-learn's 1,797 8x8 greys: 200 train, 800 generator, 797 test (`digits_split`).
    - `cifar10`, `cifar100`: torchvision's; 50,000 train, 10,000 test.
    - `flowers102`: torchvision's "train" (1,020, ten a class), "val" (1,020) as validation and "test" (6,149).
    - `fgvc-aircraft`: torchvision's "trainval" (6,667) and "test" (3,333), labelled by variant.
    - `tiny-imagenet`, `caltech256`, `svhn`, `stanford-cars`: from the folders they are published as, by name or by the
      path of the folder (`named.read_published`). Of these only svhn is downloaded.
    - a path: class folders, parquet, tables, arrays or WebDataset shards; docs/layouts.md has all layouts.

    Where there is no test part, `config.test_fraction` of each class of the training part is held out. A validation
    part of the data set is the validation split; else `config.validation_fraction` of each class is, after the limit.

    Image files, and arrays that an image size resizes, are decoded when needed; of each file the header is
    checked here. Grey stays one channel only if all images of the data set are grey. EXIF orientation is applied;
    `depth`, `background` and `animated` say what becomes of 16 bits, transparency and frames (docs/checking.md).
    A path may be a URL, such as s3://bucket/folder: then all image files are held in memory, encoded.

    Raises:
        ValueError: unknown name or path, download failed, or anything in the data set that could not be trained on.
    """
    problems = Problems()
    class_names, found = find(config, problems)
    rules = scaled(found, Decoding.of(config))
    found = eight_bits(found, rules, problems)
    shape = common_shape(found, headers(found, rules, problems), rules, problems)
    check_classes(class_names, found, problems)
    check_names(found, problems)
    problems.refuse(config.source)
    return splits_of(config, class_names, found, uniform(found, shape, rules), problems)


def splits_of(
    config: DataConfig,
    class_names: tuple[str, ...],
    found: Mapping[str, Split],
    images: Mapping[str, np.ndarray | EncodedImages],
    problems: Problems,
) -> Splits:
    """The splits of a data set in which nothing is wrong: what is held out, and what the limits leave.

    Args:
        images: of each split of `found`, all of one (H, W, C).
        problems: its notes become those of the splits, with what is held out.

    Raises:
        ValueError: a limit or a hold-out that these images do not allow.
    """
    parts = {
        name: LabeledImages(images[name], split.labels, class_names, split.origin, tuple(split.names))
        for name, split in found.items()
    }
    train, test, validation = parts["train"], parts.get("test"), parts.get("validation")
    if test is None:
        train, test = _split_off(train, config.test_fraction, config.subset_seed, "test")
        problems.note(
            f"{config.source} has no test part: {len(test)} images, {config.test_fraction:.0%} of each class, are held "
            f"out as the test split (data.test_fraction)" + _or_test_on(found.get("validation"))
        )
    train = _limited(train, config.train_limit, config.subset_seed, "train")
    if validation is None:
        if config.validation_fraction:
            train, validation = _split_off(train, config.validation_fraction, config.subset_seed, "validation")
    elif config.validation_fraction:
        raise ValueError(
            f"validation_fraction is {config.validation_fraction:g}, but {validation.origin} is a validation split "
            "already; leave out data.validation_fraction, or that part: --set data.validation=none"
        )
    elif "test" in found:
        problems.note(f"{validation.origin}: its {len(validation)} images are the validation split")
    return Splits(
        train=train,
        validation=validation,
        test=_limited(test, config.test_limit, config.subset_seed, "test"),
        generator=parts.get("generator"),
        notes=tuple(problems.notes),
    )


def _or_test_on(validation: Split | None) -> str:
    if validation is None:
        return ""
    return (
        f"; {validation.part or 'its validation part'} is the validation split, and `--set data.test="
        f"{validation.part or 'val'}` tests on it instead"
    )


def find(config: DataConfig, problems: Problems) -> Found:
    """What the data set holds, as it lies there: `train`, and where it has them `test`, `validation` and `generator`.

    No image is decoded, none held out, no limit applied. What is wrong with one file, row or class is added to
    `problems` and left out.

    Raises:
        ValueError: nothing can be read at all: an unknown name or path, or parts or columns that cannot be guessed.
    """
    if config.source in NAMES:
        refuse_columns(config, f"{config.source} is no table")
    if config.source == "digits":
        return as_asked(_digits(), config)
    if config.source in NAMES:
        root = as_path(config.root)
        if is_remote(root):
            raise ValueError(f"root {root} is a URL, but data sets with a name need a local folder; give one")
        return as_asked(read_named(config.source, root), config)
    path = as_path(config.source)
    if not path.exists():
        close = difflib.get_close_matches(config.source.lower(), NAMES, 1)
        guess = f" (did you mean {close[0]}?)" if close else ""
        raise ValueError(
            f"{config.source} is neither a data set's name nor a path that exists{guess}; "
            f"the names are {', '.join(NAMES)}, and a path may be {LAYOUTS}"
        )
    if path.is_dir():
        published = read_published(path)
        return as_asked(published, config) if published else read_folder(path, config, problems)
    kind = path.suffix.lower()
    if kind == ".npz":
        return read_npz(path, config, problems)
    if kind == ".parquet":
        return read_parquet(path, {part_of(path.name): [path]}, config, problems)
    if kind in TABLES:
        return read_tables(path, {part_of(path.name): [path]}, config, problems)
    if path.name.lower().endswith(TARS):
        return read_shards(path, {part_of(path.name): [path]}, config, problems)
    if kind in (".zip", ".7z", ".rar"):
        raise ValueError(f"{path} is an archive; unpack it and give the folder")
    raise ValueError(f"{path} is a file of a kind that is not understood; expected {LAYOUTS}")


def digits_split() -> dict[str, np.ndarray]:
    """The fixed split of `sklearn.datasets.load_digits`: its row numbers, int64 ascending.

    Stratified by class: `train` (200,) has 20 of each, `generator` (800,) 80 of each, `test` (797,) all others.
    """
    from latebloom.data.seeds import numpy_rng

    labels = _digits_table()[:, 64]
    rng = numpy_rng(0, "digits", "split")
    shuffled = [rng.permutation(np.flatnonzero(labels == digit)) for digit in range(10)]
    cuts = {"train": slice(0, 20), "generator": slice(20, 100), "test": slice(100, None)}
    return {name: np.sort(np.concatenate([rows[cut] for rows in shuffled])) for name, cut in cuts.items()}


def _digits() -> Found:
    table = _digits_table()
    images = np.round(table[:, :64].reshape(-1, 8, 8, 1) * (255 / 16)).astype(np.uint8)  # values 0..16 -> 0..255
    labels = table[:, 64]
    return tuple("0123456789"), {
        name: Split(images[rows], labels[rows], f"digits {name}", [f"digits[{row}]" for row in rows])
        for name, rows in digits_split().items()
    }


@functools.cache
def _digits_table() -> np.ndarray:
    """The images of scikit-learn's digits, int64 (1797, 65): 64 values of 0 to 16, and the label.

    From scikit-learn's own file where it is: to import scikit-learn takes two CPU seconds, for these images alone.
    """
    spec = importlib.util.find_spec("sklearn")
    for folder in (spec and spec.submodule_search_locations) or []:
        file = Path(folder, "datasets", "data", "digits.csv.gz")
        if file.is_file():
            return np.loadtxt(file, delimiter=",", dtype=np.int64)
    from sklearn.datasets import load_digits

    bunch = load_digits()
    return np.column_stack([bunch.data, bunch.target]).astype(np.int64)


def _limited(images: LabeledImages, limit: int, seed: int, split: str) -> LabeledImages:
    """Exactly `limit` images (0: all), as near to each class's share as whole numbers allow, in their old order.

    Every class keeps an image while there are enough to go round. A smaller limit gives a subset of a larger one.
    """
    from latebloom.data.seeds import numpy_rng

    if limit in (0, len(images)):
        return images
    if limit > len(images):
        raise ValueError(f"{split}_limit is {limit} but {images.origin} has {len(images)} images; give at most that")
    if split == "train" and limit < images.num_classes:
        raise ValueError(
            f"train_limit is {limit} but {images.origin} has {images.num_classes} classes; give at least that, "
            "an image a class"
        )
    rng = numpy_rng(seed, "subset", split)
    turn = np.empty(len(images))  # when an image is taken: its class's first at once, others spread evenly over 0..1
    for label, count in enumerate(images.class_counts()):
        places = (np.arange(count) + 0.5) / max(count, 1)
        places[:1] = 0
        turn[images.labels == label] = rng.permutation(places)
    order = np.lexsort((rng.random(len(images)), turn))  # classes of one size tie: chance decides, not their order
    return images.subset(np.sort(order[:limit]))


def _split_off(train: LabeledImages, fraction: float, seed: int, part: str) -> tuple[LabeledImages, LabeledImages]:
    """The images left to train on, and `fraction` of each class, rounded, as the split `part`; both in old order.

    Which ones follows from their names, so that a data set which grows keeps its splits, but for one image of a class
    where the rounding takes one more. A class keeps at least one image to train on. With the same seed a smaller split
    is a part of a larger one.
    """
    from latebloom.data.seeds import child_seed

    chosen = np.zeros(len(train), bool)
    for label, count in enumerate(train.class_counts()):
        rows = np.flatnonzero(train.labels == label)
        drawn = np.argsort([child_seed(seed, part, train.names[row]) for row in rows.tolist()], kind="stable")
        chosen[rows[drawn[: min(int(np.floor(fraction * count + 0.5)), max(count - 1, 0))]]] = True
    if not chosen.any():
        raise ValueError(
            f"{part}_fraction is {fraction:g}, which is no image of any class of {train.origin} ({len(train)} "
            f"images in {train.num_classes} classes); give a larger fraction"
        )
    return train.subset(np.flatnonzero(~chosen)), train.subset(np.flatnonzero(chosen), f"{train.origin}, {part}")
