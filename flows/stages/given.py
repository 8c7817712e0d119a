"""Selection from a person's own early model: what a file says, as rows of the training images. No Prefect in here."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from latebloom.data.images import LabeledImages
from latebloom.data.sources.found import listed
from latebloom.data.store import digest_bytes, write_arrays
from latebloom.flows.config.arms import Arm
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.errors import UsageError
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.progress import say, warn
from latebloom.flows.run.records import EARLY, EarlyFacts
from latebloom.flows.stages.given_files import GivenOutputs, read_indices, read_outputs
from latebloom.flows.stages.loaders import images_of

__all__ = ["Given", "check_given", "given_of", "take_given"]

_SHOWN = 3  # rows that an error names


@dataclasses.dataclass(frozen=True)
class Given:
    """What was given of the N training images. Row i is image i.

    Attributes:
        logits: float (seeds, N, C); None: not known.
        losses: float (seeds, N); None: not known, or to be had from the logits.
        once: whether one model's outputs, or one choice, serve all seeds.
        indices: int64 (S,) ascending, the slow images; None: they are selected by the outputs.
    """

    logits: np.ndarray | None
    losses: np.ndarray | None
    once: bool
    indices: np.ndarray | None

    @property
    def digest(self) -> str:
        """SHA-256 over the arrays, wherever they were read from."""
        parts = [self.logits, self.losses, self.indices]
        head = [None if part is None else (str(part.dtype), part.shape) for part in parts]
        return digest_bytes(repr((head, self.once)).encode() + b"".join(p.tobytes() for p in parts if p is not None))


def check_given(config: CompareConfig) -> None:
    """Refuse what cannot be selected from, before anything is trained; say what is not measured.

    Raises:
        UsageError: arms that need more than was given.
        ValueError: a file that is something else, or does not fit the training images.
    """
    given = given_of(config)
    known = "logits" if given.logits is not None else "losses" if given.losses is not None else "indices"
    needs = {"logits": (), "losses": ("misclassified", "misclassified_matched")}
    refused = needs.get(known, ("high_loss", "misclassified", "misclassified_matched"))
    arms = [arm.name for arm in config.parsed_arms if _selects(arm) and arm.method in refused]
    if arms:
        wanted = "logits or probabilities" if known == "losses" else "outputs (slow.outputs)"
        raise UsageError(
            f"the arms {', '.join(arms)} need the {wanted} of an early model, and {known} alone are given; give these "
            "too, or name other arms with --arms"
        )


def _selects(arm: Arm) -> bool:
    return arm.kind != "original"


def take_given(folder: RunFolder, config: CompareConfig) -> None:
    """The stage of early training where its outputs, or the slow images, are given: keep them in the run folder."""
    train, given = images_of(config).train, given_of(config)
    stage = folder.stage(EARLY, 3, {"data": train.digest, "given": given.digest})
    if stage.done():
        say("early training: none, the same is given as before")
        return
    with stage.making() as outcome:
        for number, arrays in enumerate(_arrays(given, train.labels)):
            file = folder.path / "early" / f"seed-{number}" / "outputs.npz"
            write_arrays(file, **arrays)
            outcome.outputs.append(file)
        if given.indices is not None:
            file = folder.path / "early" / "indices.npz"
            write_arrays(file, indices=given.indices)
            outcome.outputs.append(file)
        outcome.facts = EarlyFacts(
            separating_epoch=0,
            by_knee=False,
            errors=[],
            losses=[],
            given="logits" if given.logits is not None else "losses" if given.losses is not None else "indices",
            given_seeds=_count(given),
        )
    say(f"early training: none, {_words(config, given)}")


def _words(config: CompareConfig, given: Given) -> str:
    words = []
    if config.slow.outputs:
        many = "" if given.once else f" of {_count(given)} seeds"
        words.append(f"outputs{many} are given ({config.slow.outputs})")
    if given.indices is not None:
        words.append(f"{len(given.indices):,} slow images are given ({config.slow.indices})")
    return " and ".join(words)


def _count(given: Given) -> int:
    values = given.losses if given.logits is None else given.logits
    return 1 if values is None else len(values)


def _arrays(given: Given, labels: np.ndarray) -> Iterator[dict[str, np.ndarray]]:
    """What the file of each seed holds."""
    from latebloom.train.evaluate import losses_of

    if given.logits is not None:
        for logits in given.logits:
            yield {"logits": logits, "labels": labels, "losses": losses_of(logits, labels).astype(np.float32)}
    elif given.losses is not None:
        for losses in given.losses:
            yield {"labels": labels, "losses": losses}
    else:
        yield {"labels": labels}


# ------------------------------------------------------------------------------------ as rows of the training images


def given_of(config: CompareConfig) -> Given:
    """What the files of a config say of its training images.

    Raises:
        ValueError: they are something else, or do not fit.
    """
    train, outputs = images_of(config).train, None
    if config.slow.outputs:
        outputs = read_outputs(config.slow.outputs)
        outputs = _in_order(outputs, train)
        _check_outputs(outputs, train, config)
    indices = _rows_of(config.slow.indices, train) if config.slow.indices else None
    if outputs is None:
        return Given(None, None, True, indices)
    return Given(outputs.logits, outputs.losses, outputs.once, indices)


def _in_order(outputs: GivenOutputs, train: LabeledImages) -> GivenOutputs:
    """The outputs with row i of training image i, where they have names."""
    file = outputs.file
    if outputs.names is None:
        given = (outputs.losses if outputs.logits is None else outputs.logits).shape[1]  # type: ignore[union-attr]
        if given != len(train):
            raise ValueError(
                f"{file} has {given:,} rows, and there are {len(train):,} training images ({train.origin}): a row for "
                "each is expected, as they are loaded, after limits and what is held out for test and validation; "
                "give the array names too, "
                "and rows of other images are left out"
            )
        if outputs.labels is None:
            warn(f"{file} has neither labels nor names, so nothing checks its order: row i is taken for image i")
        return outputs
    rows = _places(file, [str(name) for name in outputs.names], train, others=True)
    place = np.full(len(train), -1)
    known = np.flatnonzero(rows >= 0)
    place[rows[known]] = known
    missing = np.flatnonzero(place < 0)
    if len(missing):
        names = [train.names[row] for row in missing[:_SHOWN]]
        raise ValueError(
            f"{file} has no row of {len(missing):,} of the {len(train):,} training images, such as {listed(names)}; "
            f"its names are like {outputs.names[0]!r}"
        )
    left = len(rows) - len(known)
    if left:
        say(f"{file}: {left:,} of {len(rows):,} rows are of no training image here and are left out")
    logits, losses, labels = outputs.logits, outputs.losses, outputs.labels
    return dataclasses.replace(
        outputs,
        logits=None if logits is None else logits[:, place],
        losses=None if losses is None else losses[:, place],
        labels=None if labels is None else labels[place],
        names=outputs.names[place],
    )


def _check_outputs(outputs: GivenOutputs, train: LabeledImages, config: CompareConfig) -> None:
    file, classes = outputs.file, train.num_classes
    if outputs.logits is not None and outputs.logits.shape[2] != classes:
        raise ValueError(
            f"{file} has {outputs.logits.shape[2]} classes, and the training images have {classes} "
            f"({listed(list(train.class_names))}); give outputs for these"
        )
    values = outputs.losses if outputs.logits is None else outputs.logits
    seeds = 1 if values is None else len(values)
    if not outputs.once and seeds != config.seeds:
        raise ValueError(
            f"{file} has outputs of {seeds} seeds, and {config.seeds} are asked for; give --seeds {seeds}, or the "
            "outputs of one as (N, C), which serve all seeds"
        )
    if outputs.losses is not None and outputs.losses.min() < 0:
        raise ValueError(f"{file}: losses are below 0, such as {outputs.losses.min():.3g}; give cross-entropies")
    if outputs.labels is not None:
        _check_labels(file, outputs.labels, train)


def _check_labels(file: str, labels: np.ndarray, train: LabeledImages) -> None:
    if labels.dtype.kind == "U":
        number = {name: label for label, name in enumerate(train.class_names)}
        unknown = sorted({str(name) for name in labels} - set(number))
        if unknown:
            raise ValueError(f"{file} has the classes {listed(unknown)}; expected {listed(list(train.class_names))}")
        labels = np.array([number[str(name)] for name in labels])
    differ = np.flatnonzero(labels != train.labels)
    if not len(differ):
        return
    own = train.labels.tolist()
    rows = ", ".join(
        f"row {row} has {labels[row]}, {train.names[row]} has {own[row]} ({train.class_names[own[row]]})"
        for row in differ[:_SHOWN].tolist()
    )
    pairs = set(zip(labels.tolist(), own, strict=True))
    renamed = len(pairs) == len({one for one, _ in pairs}) == len({other for _, other in pairs})
    remedy = (
        f"its classes are numbered otherwise; here they are {listed(list(train.class_names))}, from 0"
        if renamed
        else "it is in another order, or of other images; give the array names too, by which rows are found"
    )
    raise ValueError(f"{file}: the labels of {len(differ):,} of {len(labels):,} rows are others here: {rows}; {remedy}")


def _rows_of(file: str, train: LabeledImages) -> np.ndarray:
    """The training images that a file names, int64 ascending."""
    found = read_indices(file)
    rows = found if isinstance(found, np.ndarray) else _places(file, found, train, others=False)
    if not len(rows):
        raise ValueError(f"{file} names no image, so there is nothing to augment; give at least one")
    outside = np.flatnonzero((rows < 0) | (rows >= len(train)))
    if len(outside):
        raise ValueError(
            f"{file} has row {rows[outside[0]]} ({len(outside)} such rows), and the {len(train):,} training images "
            f"have the rows 0 to {len(train) - 1}"
        )
    values, counts = np.unique(rows, return_counts=True)
    if len(values) < len(rows):
        raise ValueError(f"{file} has row {values[counts > 1][0]} more than once ({len(rows) - len(values)} too many)")
    return values


def _places(file: str, names: Sequence[str], train: LabeledImages, others: bool) -> np.ndarray:
    """Rows int64 of the training images with these names: whole, or so much of their end that only one image has it.

    A name may also be longer than ours, as an absolute path is.

    Args:
        others: names of no training image are -1; else they are refused.
    """
    whole, ends = {name: row for row, name in enumerate(train.names)}, _ends(train.names)
    rows = np.array([_place(name.replace("\\", "/"), whole, ends) for name in names], np.int64)
    several = np.flatnonzero(rows == _SEVERAL)
    if len(several):
        raise ValueError(
            f"{file}: {names[several[0]]!r} is the end of several names of training images ({len(several)} such "
            f"names); give more of it, as {train.names[0]!r}"
        )
    none = np.flatnonzero(rows < 0)
    if len(none) and (not others or len(none) == len(rows)):
        raise ValueError(
            f"{file}: {len(none):,} of {len(rows):,} names are of no training image, such as "
            f"{listed([names[row] for row in none[:_SHOWN]])}; training images are called like {train.names[0]!r}, and "
            "those held out for test or validation (data.test_fraction, data.validation_fraction) are none"
        )
    again = rows[rows >= 0]
    if len(np.unique(again)) < len(again):
        values, counts = np.unique(again, return_counts=True)
        raise ValueError(f"{file} has {train.names[values[counts > 1][0]]!r} more than once; give each image once")
    return rows


_NONE, _SEVERAL = -1, -2


def _ends(names: Sequence[str]) -> dict[str, int]:
    """By each end of a name, from a slash on, its row; `_SEVERAL` where two names have it."""
    found: dict[str, int] = {}
    for row, name in enumerate(names):
        end = name
        while "/" in end:
            end = end.partition("/")[2]
            found[end] = _SEVERAL if end in found else row
    return found


def _place(name: str, whole: Mapping[str, int], ends: Mapping[str, int]) -> int:
    """The row of an image: by its whole name, also where more stands before it, or by an end of it."""
    end = name
    while end not in whole and "/" in end:
        end = end.partition("/")[2]
    return whole[end] if end in whole else ends.get(name, _NONE)
