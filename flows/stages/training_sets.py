"""What each arm trains on: real images, copies or variants of the selected ones, and who mixes strong copies in."""

import dataclasses

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latebloom.data.images import LabeledImages, concat
from latebloom.data.store import digest_bytes
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.arms import Arm, parse_arm
from latebloom.flows.stages.classifiers import classifier_seeds
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.coreset_file import as_coreset, on_images, on_variants, read_selected
from latebloom.flows.stages.scout import scout_outputs
from latebloom.synth.plan import item_id, requests
from latebloom.train.augment.mixing import Mixer

__all__ = [
    "Images",
    "Pool",
    "TrainingSet",
    "arm_rows",
    "check_coreset_file",
    "images_for",
    "training_set",
    "usable_rows",
]


@dataclasses.dataclass(frozen=True)
class Pool:
    """Real training images 0..n_real-1, followed by the usable synthetic ones.

    Attributes:
        n_real: how many real images.
        rows: by (source index, level steps, variant), the row of the synthetic image; those not usable are absent.
        items: the same by item id.
    """

    n_real: int
    rows: dict[tuple[int, int, int], int]
    items: dict[str, int]

    @classmethod
    def of(cls, n_real: int, usable: pa.Table) -> "Pool":
        """The pool of `usable` rows of a synthetic data set, in their order after the real images."""
        keys = zip(*(usable[name].to_pylist() for name in ("source_index", "level_steps", "variant")), strict=True)
        names = usable["item_id"].to_pylist()
        places = range(n_real, n_real + len(names))
        return cls(n_real, dict(zip(keys, places, strict=True)), dict(zip(names, places, strict=True)))


@dataclasses.dataclass(frozen=True)
class Images:
    """The images that arms train on.

    Attributes:
        data: those of the pool, real ones first.
        pool: what finds a row of `data`.
        tokens: by row of `data`, what stands for the content of the image in a digest.
    """

    data: LabeledImages
    pool: Pool
    tokens: list[str]


@dataclasses.dataclass(frozen=True)
class TrainingSet:
    """What an arm trains on.

    Attributes:
        rows: by seed, int64 rows of the images.
        mixers: by seed, fresh, who mixes strong copies into each epoch; None where the arm has no strong copies.
    """

    rows: list[np.ndarray]
    mixers: list[Mixer] | None

    @property
    def lengths(self) -> list[int]:
        """Images of an epoch, by seed."""
        return [mixer.length for mixer in self.mixers] if self.mixers else [len(rows) for rows in self.rows]


def images_for(run: RunContext, arms: set[str]) -> Images:
    """The real images, and the usable synthetic ones where one of the arms trains on them.

    Raises:
        ValueError: the synthetic data set lacks images of an arm, or none is usable.
    """
    train = run.splits.train
    tokens = [str(row) for row in range(len(train))]
    synthetic = [arm for arm in map(parse_arm, sorted(arms)) if arm.kind == "synthetic"]
    if not synthetic:
        return Images(train, Pool(len(train), {}, {}), tokens)
    table = run.synthetic.rows()
    for arm in synthetic:
        _check_complete(run, arm, table)
    usable = usable_rows(run.synthetic, table, run.config.train_states)
    tokens += [digest_bytes(image["bytes"]) for image in usable["image"].to_pylist()]
    return Images(concat(train, run.synthetic.images(usable, train)), Pool.of(len(train), usable), tokens)


def usable_rows(folder: SyntheticFolder, table: pa.Table, states: tuple[str, ...]) -> pa.Table:
    """The rows of a synthetic data set's `table` that have one of these states, in their order.

    Raises:
        ValueError: none has.
    """
    usable = table.filter(pc.is_in(table["state"], pa.array(states)))
    if usable.num_rows == 0:
        raise ValueError(
            f"none of the {table.num_rows} images in {folder.path} is {' or '.join(states)}; look at their states and "
            "scores with `latebloom inspect`"
        )
    return usable


def _check_complete(run: RunContext, arm: Arm, table: pa.Table) -> None:
    """Refuse a synthetic data set of other settings: an image that was never made must not pass for a bad one."""
    grid = run.config.sample.grid
    keys = (table[name].to_pylist() for name in ("source_index", "level_steps", "variant", "level_grid"))
    made = set(zip(*keys, strict=True))
    left_out = set(run.synthetic.manifest()["about"]["left_out"])
    for number in range(run.config.seeds):
        wanted = requests(run.selected(arm.method, number), run.config.levels(arm))
        missing = sum(
            (request.source_index, request.steps, request.variant, grid) not in made
            and item_id(request, grid) not in left_out
            for request in wanted
        )
        if missing:
            raise ValueError(
                f"{run.synthetic.path} was made with other settings: {missing} of {len(wanted)} images of arm "
                f"{arm.name}, seed {number}, are not in it; run `latebloom generate` first"
            )


def training_set(run: RunContext, arm: Arm, images: Images) -> TrainingSet:
    """What an arm trains on, by seed.

    Raises:
        ValueError: a coreset's file that does not fit.
    """
    config, data = run.config, images.data
    rows = []
    for number in range(config.seeds):
        chosen = np.empty(0, np.int64) if arm.kind == "original" else run.selected(arm.method, number)
        rows.append(arm_rows(arm, chosen, config.levels(arm), images.pool))
    if arm.selector == "none":
        return TrainingSet(rows, None)
    strong = config.strong_of(arm)
    selected = on_images(read_selected(strong.file), run.splits.train) if arm.selector == "file" else None
    if selected and set(selected.source) != {"real"} and images.pool.items:
        places = np.array(list(images.pool.items.values()))
        selected = on_variants(selected, dict(zip(images.pool.items, data.subset(places).sha256, strict=True)))
    mixers = []
    for number, (own, seed) in enumerate(zip(rows, classifier_seeds(config), strict=True)):
        coreset = None
        if selected:
            whose, pool = f"arm {arm.name}, seed {number},", images.pool
            coreset = as_coreset(whose, selected, data.labels, own, pool.n_real, pool.items)
        scout = scout_outputs(run, number, data, own) if strong.scout.model else None
        mixers.append(Mixer(strong, data.labels[own], data.num_classes, data.image_shape, seed, coreset, scout))
    return TrainingSet(rows, mixers)


def arm_rows(arm: Arm, selected: np.ndarray, levels: tuple[int, ...], pool: Pool) -> np.ndarray:
    """The rows int64 of an arm's training set: all real ones, then the copies or variants of the selected.

    Args:
        selected: int64 (S,), the examples of the arm's method and seed.
        levels: of the arm, one a variant.
    """
    real = np.arange(pool.n_real)
    if arm.kind == "original":
        return real
    if arm.kind == "upsample":
        return np.concatenate([real, np.repeat(selected, arm.k - 1)])
    wanted = [
        (int(index), level, levels[:place].count(level)) for index in selected for place, level in enumerate(levels)
    ]
    return np.concatenate([real, np.array([pool.rows[key] for key in wanted if key in pool.rows], np.int64)])


def check_coreset_file(run: RunContext) -> None:
    """Refuse a coreset's file that an arm with synthetic images cannot be trained on.

    Raises:
        ValueError: the first thing that does not fit.
    """
    for arm in run.config.parsed_arms:
        if arm.selector == "file" and arm.kind == "synthetic":
            training_set(run, arm, images_for(run, {arm.name}))
