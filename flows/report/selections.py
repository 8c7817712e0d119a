"""What the methods of a comparison selected, and by how much they agree: of slow examples, and of each round."""

import dataclasses
import itertools
from collections.abc import Sequence

import numpy as np

from latebloom.flows.config.arms import METHODS, Arm
from latebloom.flows.report.page import Example
from latebloom.flows.run.records import retrain_key
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.rounds import Rounds, read_rounds
from latebloom.train.config import SlowMethod
from latebloom.train.selection.slow import jaccard

__all__ = [
    "RoundOverlap",
    "Selected",
    "SlowOverlap",
    "Usage",
    "overlap_by_round",
    "pictures_of",
    "selected_by",
    "usage",
]

_PICTURES = 11  # images of a gallery: a row
_LOADED = 3  # selected images that are shown with those for which they stand


@dataclasses.dataclass(frozen=True)
class SlowOverlap:
    """Jaccard index of the sets that methods of slow examples chose, means over seeds.

    Attributes:
        methods: as arms are called: ours, high_loss, ...
        jaccard: (methods, methods), 1 on the diagonal.
        sizes: by method, examples chosen, mean over seeds.
    """

    methods: list[str]
    jaccard: list[list[float]]
    sizes: list[float]


@dataclasses.dataclass(frozen=True)
class RoundOverlap:
    """Jaccard index of what two arms selected, by epoch, means over seeds.

    Attributes:
        epochs: in which either of them selected, from 0, since both have.
        jaccard: of what was selected last in each of these epochs.
    """

    first: str
    second: str
    optimizer: str
    epochs: list[int]
    jaccard: list[float]


@dataclasses.dataclass(frozen=True)
class Usage:
    """How many images a whole training selected; means over seeds.

    Attributes:
        rounds: selections.
        images: of the training set.
        selected: in one round.
        distinct: share 0..1 of the training set that was selected in one round or another.
        never: share 0..1 that never was: NS of "Data-Efficient Augmentation", Table 13.
        most_owned: images for which the most loaded selected image of the last round stands; None without facility
            location.
    """

    arm: str
    optimizer: str
    rounds: float
    images: float
    selected: float
    distinct: float
    never: float
    most_owned: float | None


@dataclasses.dataclass(frozen=True)
class Selected:
    """What the report says of selections.

    Attributes:
        slow: None where no two methods of slow examples are in the run.
    """

    slow: SlowOverlap | None
    rounds: list[RoundOverlap]
    usage: list[Usage]


def selected_by(run: RunContext, has_slow: bool) -> Selected:
    """Read what a finished run selected.

    Args:
        has_slow: whether it has early classifiers.
    """
    config = run.config
    by_arm: dict[tuple[Arm, str], list[Rounds]] = {}
    found_usage = []
    for arm, optimizer in itertools.product(config.parsed_arms, config.optimizers):
        place = run.path / "retrained" / f"{arm.name}-{optimizer}"
        rounds = [read_rounds(place, number) for number in range(config.seeds)]
        kept = [one for one in rounds if one is not None and len(one.epochs)]
        if len(kept) == config.seeds:
            by_arm[arm, optimizer] = kept
            added = run.folder.record(retrain_key(arm.name, optimizer)).facts.images_added
            sizes = [len(run.splits.train) + count for count in added]
            found_usage.append(usage(arm.name, optimizer, kept, sizes))
    overlaps = [
        overlap_by_round(first.name, second.name, optimizer, by_arm[first, optimizer], by_arm[second, other])
        for (first, optimizer), (second, other) in itertools.combinations(by_arm, 2)
        if optimizer == other and _base(first) == _base(second)
    ]
    return Selected(_slow_overlap(run) if has_slow else None, overlaps, found_usage)


def _base(arm: Arm) -> str:
    """What an arm selects from: `ours-5` of `ours-5+craig@original`."""
    return arm.name.partition("@")[0].partition("+")[0]


def _slow_overlap(run: RunContext) -> SlowOverlap | None:
    config = run.config
    names: dict[SlowMethod, str] = {"cluster": "ours"}
    names |= {
        arm.method: next(name for name, method in METHODS.items() if method == arm.method)
        for arm in config.parsed_arms
        if arm.kind != "original"
    }
    if len(names) < 2:
        return None
    sets = [[run.selected(method, number) for method in names] for number in range(config.seeds)]
    tables = [[[jaccard(first, second) for second in own] for first in own] for own in sets]
    sizes = [[len(one) for one in own] for own in sets]
    return SlowOverlap(list(names.values()), np.mean(tables, 0).tolist(), np.mean(sizes, 0).tolist())


def overlap_by_round(
    first: str, second: str, optimizer: str, ours: Sequence[Rounds], theirs: Sequence[Rounds]
) -> RoundOverlap:
    """How much two arms agree, by epoch.

    Args:
        ours, theirs: of each seed; every one has a round.
    """
    begin = max(int(one.epochs[0]) for one in (*ours, *theirs))
    epochs = sorted({epoch for one in (*ours, *theirs) for epoch in one.epochs.tolist() if epoch >= begin} | {begin})
    by_seed = [[jaccard(a.last(epoch), b.last(epoch)) for epoch in epochs] for a, b in zip(ours, theirs, strict=True)]
    return RoundOverlap(first, second, optimizer, epochs, np.mean(by_seed, 0).tolist())


def usage(arm: str, optimizer: str, rounds: Sequence[Rounds], sizes: Sequence[int]) -> Usage:
    """How many images each seed's training selected.

    Args:
        rounds: of each seed; every one has a round.
        sizes: images of each seed's training set.
    """
    distinct = np.mean([len(np.unique(one.indices)) / size for one, size in zip(rounds, sizes, strict=True)])
    owned = [int(np.unique(one.owner[one.owner >= 0], return_counts=True)[1].max()) for one in rounds if one.owner.size]
    return Usage(
        arm=arm,
        optimizer=optimizer,
        rounds=float(np.mean([len(one.epochs) for one in rounds])),
        images=float(np.mean(sizes)),
        selected=float(np.mean([len(one.indices) / len(one.epochs) for one in rounds])),
        distinct=float(distinct),
        never=float(1 - distinct),
        most_owned=float(np.mean(owned)) if owned else None,
    )


def pictures_of(run: RunContext, found: Selected) -> list[tuple[str, list[Example]]]:
    """Galleries of the first seed and optimizer: title, and the images, all of them real.

    Of each arm that selects: what it selected most often, what it never selected, and the most loaded selected images
    of its last round, each before those for which it stands.
    """
    optimizer, galleries = run.config.optimizers[0], []
    for one in found.usage:
        rounds = (
            read_rounds(run.path / "retrained" / f"{one.arm}-{optimizer}", 0) if one.optimizer == optimizer else None
        )
        if rounds is None:
            continue
        n_real = len(run.splits.train)
        times = np.bincount(rounds.indices, minlength=n_real)[:n_real]
        often = np.argsort(-times, kind="stable")[:_PICTURES]
        often = often[times[often] > 0]
        never = np.flatnonzero(times == 0)
        never = never[np.linspace(0, len(never) - 1, min(_PICTURES, len(never))).astype(int)]  # from all classes alike
        galleries.append(
            (f"{one.arm}: selected most often", _captioned(run, often, [f"{n} times" for n in times[often]]))
        )
        galleries.append((f"{one.arm}: never selected", _captioned(run, never, [""] * len(never))))
        owner = rounds.owner[:n_real]
        counts = np.bincount(rounds.owner[rounds.owner >= 0], minlength=n_real)[:n_real] if owner.size else owner
        for loaded in np.argsort(-counts, kind="stable")[:_LOADED]:
            others = np.setdiff1d(np.flatnonzero(owner == loaded), [loaded])[: _PICTURES - 1]
            title = f"{one.arm}: stands for {counts[loaded]:,} images in the last round, the first for the others"
            galleries.append((title, _captioned(run, np.array([loaded, *others]), [""] * (len(others) + 1))))
    return [(title, images) for title, images in galleries if images]


def _captioned(run: RunContext, rows: np.ndarray, notes: Sequence[str]) -> list[Example]:
    train = run.splits.train
    if not len(rows):
        return []
    return [
        Example(", ".join(filter(None, (train.class_names[train.labels[row]], note))), image, train.names[row])
        for row, note, image in zip(rows, notes, train.pixels(rows), strict=True)
    ]
