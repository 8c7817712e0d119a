"""Which images of a synthetic data set its filter drops, and whether they look like noise."""

import contextlib
import dataclasses
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from latebloom.data.depth import BadImages
from latebloom.data.store import read_table
from latebloom.flows.config.arms import Arm
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.usable import of_states, unmeasured
from latebloom.synth.config import QualityConfig
from latebloom.synth.plan import requests
from latebloom.synth.scoring.quality import contrast

__all__ = [
    "Quartile",
    "columns_of_filter",
    "quartiles",
    "quartiles_in_words",
    "warnings",
]

_SCORES = ("contrast", "label_probability", "reference_label_probability", "distance_ratio")
_COLUMNS = ("source_index", "level_steps", "variant", "state", "clip_score", "unsafe", *_SCORES)
_REFERENCES = 200  # whose contrast is compared, at most
# By how much a share of the slowest must exceed that of the others: standard errors, and times.
_ERRORS, _TIMES = 3.0, 2.0
# Signs of noise: shares of what there is between chance and certainty, and of images.
_KNOWS, _LOST = 0.1, 0.1
_FAR, _MANY_FAR = QualityConfig().max_distance_ratio, 0.1


@dataclasses.dataclass(frozen=True)
class Quartile:
    """Of the variants whose references are in one quartile: how many were made, and how many are not trained on."""

    made: int
    dropped: int

    @property
    def share(self) -> float:
        return self.dropped / self.made if self.made else 0.0


def quartiles(table: pa.Table, train_states: tuple[str, ...]) -> list[Quartile]:
    """Made and dropped by quartile of the references, from the fastest learned to the slowest.

    The references are ordered by the loss of the reference classifier on them. Empty where none scored them.

    Args:
        table: the columns source_index, reference_label_probability, state.
        train_states: the states that are trained on.
    """
    sources, first, place = np.unique(table["source_index"].to_numpy(), return_index=True, return_inverse=True)
    probability = table["reference_label_probability"].to_numpy()[first]
    if np.isnan(probability).any():
        return []
    rank = np.argsort(np.argsort(-probability, kind="stable"), kind="stable")
    quartile = (rank * 4 // max(1, len(sources)))[place]
    dropped = ~pc.is_in(table["state"], pa.array(train_states)).to_numpy()
    return [Quartile(int((quartile == q).sum()), int(dropped[quartile == q].sum())) for q in range(4)]


def quartiles_in_words(found: list[Quartile]) -> str:
    """One line."""
    counts = ", ".join(f"{q.dropped:,} of {q.made:,}" for q in found)
    return f"dropped by quartile of the reference's early loss, slowest last: {counts}"


def columns_of_filter(run: RunContext) -> pa.Table:
    """What this module needs of a run's synthetic data set, in plan order."""
    files = [run.synthetic.path / part["file"] for part in run.synthetic.manifest()["parts"]]
    return pa.concat_tables([read_table(file, columns=list(_COLUMNS)) for file in files])


def warnings(run: RunContext, table: pa.Table) -> list[str]:
    """What is wrong with a synthetic data set.

    Hardly anything may be trained on, a score is NaN, the slowest lose most of their variants, or those of an arm look
    like noise.
    """
    states = Counter(table["state"].to_pylist())
    lines = of_states(states, run.config) + unmeasured(run.config, table)
    lines += _unequal(quartiles(table, run.config.train_states))
    for arm in run.config.parsed_arms:
        if arm.kind == "synthetic":
            lines += _noise(run, arm, table)
    return lines


def _unequal(found: list[Quartile]) -> list[str]:
    if not found:
        return []
    slowest, made, dropped = found[-1], sum(q.made for q in found[:-1]), sum(q.dropped for q in found[:-1])
    if not made or not slowest.made:
        return []
    others, together = dropped / made, (dropped + slowest.dropped) / (made + slowest.made)
    error = np.sqrt(together * (1 - together) * (1 / made + 1 / slowest.made))
    if slowest.share <= max(_TIMES * others, others + _ERRORS * error):
        return []
    return [
        f"The filter drops {slowest.share:.1%} of the variants of the slowest quarter of the references and "
        f"{others:.1%} of the others ({quartiles_in_words(found)}): it works against the selection. Look at them with "
        "`latebloom inspect RUN --sheet state`; if they are well, lower the threshold with `latebloom filter`."
    ]


def _noise(run: RunContext, arm: Arm, table: pa.Table) -> list[str]:
    """By what the variants of an arm look like noise; empty where they do not."""
    table = table.filter(pa.array(_rows_of(run, arm, table)))
    if not table.num_rows:
        return []
    frame = {name: table[name].to_numpy() for name in ("source_index", *_SCORES)}
    signs = []
    chance = 1 / run.splits.train.num_classes
    own, real = frame["label_probability"].mean(), frame["reference_label_probability"].mean()
    # Nine tenths of what the reference classifier knows of the references is lost.
    if real - chance > _KNOWS * (1 - chance) and own - chance <= _LOST * (real - chance):
        signs.append(
            f"the reference classifier gives their label a probability of {own:.1%} on average, no better than chance "
            f"({chance:.1%}), and that of their references {real:.1%}"
        )
    far = float((frame["distance_ratio"] > _FAR).mean())
    if far > _MANY_FAR:
        signs.append(f"{far:.0%} differ from their references by more than the noise of their level explains")
    sources = np.unique(frame["source_index"])
    sources = sources[np.unique(np.linspace(0, len(sources) - 1, min(len(sources), _REFERENCES)).astype(int))]
    seen = float(np.median(frame["contrast"]))
    with contextlib.suppress(BadImages):  # read once more; that one is gone by now is no reason to end here
        usual = float(np.median(contrast(run.splits.train.pixels(sources))))
        if not usual / 2 <= seen <= 2 * usual:
            signs.append(f"their contrast is {seen:.0f} grey levels, that of their references {usual:.0f}")
    return [f"The variants of {arm.name} LOOK LIKE NOISE: {'; '.join(signs)}."] if signs else []


def _rows_of(run: RunContext, arm: Arm, table: pa.Table) -> np.ndarray:
    """bool (n,): the rows that an arm wants, of any seed."""
    wanted = {
        (request.source_index, request.steps, request.variant)
        for number in range(run.config.seeds)
        for request in requests(run.selected(arm.method, number), run.config.levels(arm))
    }
    keys = (table[name].to_pylist() for name in ("source_index", "level_steps", "variant"))
    return np.array([key in wanted for key in zip(*keys, strict=True)], bool)
