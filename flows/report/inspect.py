"""A closer look at a run: contact sheets, and all that is known of one image, synthetic or real."""

import dataclasses
import itertools
import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from latebloom.data.images import LabeledImages, decode
from latebloom.data.names import base_name, place_of, shortened
from latebloom.data.seeds import numpy_rng
from latebloom.data.states import STATES, THRESHOLDS
from latebloom.data.store import local_file, read_table
from latebloom.data.synthetic.card import score_names
from latebloom.data.synthetic.folder import SYNTHETIC_SCHEMA, SyntheticFolder
from latebloom.flows.report.page import ContactRow, contact_sheet
from latebloom.flows.stages.context import RunContext
from latebloom.train.evaluate import softmax

__all__ = ["Details", "columns_of", "details_of", "sheet"]

_BINS = 5
_CELL = 112


def columns_of(folder: SyntheticFolder) -> pa.Table:
    """All rows in plan order without their images; parts are not checked for damage."""
    tables = []
    for part in folder.manifest()["parts"]:
        with local_file(folder.path / part["file"]) as local, pq.ParquetFile(local) as file:
            names = [f.name for f in file.schema_arrow if f.name != "image" and not pa.types.is_binary(f.type)]
            tables.append(file.read(columns=names))
    if not tables:
        raise ValueError(f"{folder.path} holds no image")
    return pa.concat_tables(tables)


def _pictures(folder: SyntheticFolder, rows: list[int]) -> dict[int, np.ndarray]:
    """The images of some rows, counted in plan order, uint8 (H, W, C)."""
    found: dict[int, np.ndarray] = {}
    start = 0
    for part in folder.manifest()["parts"]:
        here = [row for row in rows if start <= row < start + part["rows"]]
        if here:
            images = read_table(folder.path / part["file"], columns=["image"])["image"]
            found |= {row: decode(images[row - start].as_py()["bytes"], f"row {row}") for row in here}
        start += part["rows"]
    return found


# ------------------------------------------------------------------------------------------------- contact sheets


def sheet(folder: SyntheticFolder, data: LabeledImages, by: str, count: int, seed: int) -> Image.Image:
    """A contact sheet: `count` references, each beside its variants in columns by level, by state, or by a score.

    The columns of a score are fifths of its values, lowest first; a reference with several variants in one shows the
    first of them. References are drawn at random, those first whose variants fill the emptiest columns.

    Args:
        data: the images as they are now; references that are not among them are left out.
        by: level, state, or the name of a score.
        count: rows, at most; 1 or more.
        seed: of the drawing.

    Raises:
        ValueError: nothing is called so, the score has one value throughout, or no reference is in the data.
    """
    table = columns_of(folder)
    headings, column = _columns(table, by)
    sources = _sources(table, data)
    rows = np.flatnonzero((column >= 0) & (sources >= 0))
    if not len(rows):
        raise ValueError(f"none of the images that those in {folder.path} were made from is in the data any more")
    references, place = np.unique(sources[rows], return_inverse=True)
    has = np.zeros((len(references), len(headings)), bool)
    has[place, column[rows]] = True
    chosen = [(references[n], rows[place == n]) for n in _covering(has, count, numpy_rng(seed, "contact sheet", by))]
    pictures = _pictures(folder, [row for _, own in chosen for row in own.tolist()])
    real = data.pixels(np.array([source for source, _ in chosen]))
    lines = []
    for (source, own), reference in zip(chosen, real, strict=True):
        values = {row: table.slice(row, 1).to_pylist()[0] for row in own.tolist()}
        line = ContactRow(_caption(data, int(source)), reference, [])
        for row, value in sorted(values.items(), key=lambda item: item[1]["level_steps"] / item[1]["level_grid"]):
            heading, level = headings[column[row]], _level(value)
            line.variants.append((heading, value["state"], pictures[row]))
            if by != "level":
                line.notes.setdefault(heading, level if by == "state" else f"{value[by]:.3g} at {level}")
        lines.append(line)
    if by == "level":  # a level that is there twice has two columns
        return contact_sheet(lines, _CELL, "by level")
    return contact_sheet(lines, _CELL, f"by {by}", headings)


def _sources(table: pa.Table, data: LabeledImages) -> np.ndarray:
    """The row of each variant's reference in the data as they are now, int64; -1: it is not there any more.

    Rows move where images are added or removed, so a reference is known by its picture; of copies, by its row or name.
    """
    places: dict[str, list[int]] = {}
    for place, digest in enumerate(data.sha256):
        places.setdefault(digest, []).append(place)
    found = np.full(len(table), -1)
    for row, (digest, index, name) in enumerate(
        zip(*(table[column].to_pylist() for column in ("source_sha256", "source_index", "source_name")), strict=True)
    ):
        same = places.get(digest, [])
        if same:
            named = [place for place in same if data.names[place] == name]
            found[row] = index if index in same else (named or same)[0]
    return found


def _caption(data: LabeledImages, row: int) -> str:
    """Class and file of an image, in the width that a sheet has for them."""
    kind = shortened(data.class_names[data.labels[row]], 14)
    return f"{kind}, {shortened(base_name(data.names[row]), 30 - len(kind))}"


def _level(row: dict[str, Any]) -> str:
    return f"{row['level_steps']} of {row['level_grid']}"


def _columns(table: pa.Table, by: str) -> tuple[list[str], np.ndarray]:
    """The headings, and for each row the number of its own; -1 for none."""
    scores = score_names(table.schema)
    if by == "level":
        levels = [_level(row) for row in table.select(["level_steps", "level_grid"]).to_pylist()]
        names = sorted(set(levels))
        return names, np.array([names.index(level) for level in levels])
    if by == "state":
        states = table["state"].to_pylist()
        names = [state for state in STATES if state in states]
        return [name.replace("_", " ") for name in names], np.array([names.index(state) for state in states])
    if by not in scores:
        raise ValueError(f"a sheet is by level, state or a score, got {by!r}; scores: {', '.join(scores)}")
    values = table[by].to_numpy()
    finite = np.isfinite(values)
    edges = (
        np.unique(np.quantile(values[finite], np.linspace(0, 1, _BINS + 1), method="nearest"))
        if finite.any()
        else np.empty(0)
    )
    if len(edges) < 2:
        raise ValueError(f"{by} is {f'{edges[0]:g} in all images' if len(edges) else 'not measured'}: no sheet by it")
    column = np.where(finite, np.searchsorted(edges[1:-1], values, "right"), -1)
    return [f"{low:.3g} to {high:.3g}" for low, high in itertools.pairwise(edges)], column


def _covering(has: np.ndarray, count: int, rng: np.random.Generator) -> list[int]:
    """At most `count` rows of `has` (bool (R, C)), in order, so that every column is there about equally often."""
    order = rng.permutation(len(has))
    has = has[order]
    free, shown = np.ones(len(has), bool), np.zeros(has.shape[1])
    for _ in range(min(count, len(has))):
        gain = np.where(free, has @ (1.0 / (1 + shown) ** 2), -1)
        best = int(gain.argmax())
        free[best] = False
        shown += has[best]
    result: list[int] = np.sort(order[~free]).tolist()
    return result


# -------------------------------------------------------------------------------------------------------- one image


@dataclasses.dataclass(frozen=True)
class Details:
    """All that is known of one image.

    Attributes:
        name: what to call its files: the item id, or `reference-ROW`.
        sections: by heading, what is known by name: JSON values, None where there is none.
        strip: one picture: of a variant its reference, itself and their difference (mid-grey: none); of a reference
            itself and its variants by level.
    """

    name: str
    sections: dict[str, dict[str, Any]]
    strip: Image.Image


def details_of(run: RunContext, wanted: str) -> Details:
    """All that is known of one image of a run: of a variant by its item id, of a training image by its name.

    A training image may be named by the end of its name, `big cat/004.png` for `train/big cat/004.png`, and its run
    needs no synthetic data set yet.

    Raises:
        ValueError: there is no such image, or there are several; the message has them, or those of like names.
    """
    made = (run.synthetic.path / "manifest.json").is_file()
    table = columns_of(run.synthetic) if made else SYNTHETIC_SCHEMA.empty_table()
    items = table["item_id"].to_pylist()
    if wanted in items:
        return _of_variant(run, table, items.index(wanted))
    return _of_reference(run, table, place_of(wanted, run.splits.train.names, items))


def _of_reference(run: RunContext, table: pa.Table, source: int) -> Details:
    data = run.splits.train
    label = int(data.labels[source])
    rows = np.flatnonzero(_sources(table, data) == source)
    values = {row: table.slice(row, 1).to_pylist()[0] for row in rows.tolist()}
    ordered = sorted(values.items(), key=lambda item: (item[1]["level_steps"] / item[1]["level_grid"], item[0]))
    quality = run.synthetic.manifest()["about"]["quality"] if values else {}
    scores = score_names(table.schema)
    sections: dict[str, dict[str, Any]] = {
        "image": {
            "name": data.names[source],
            "data": run.config.data.source,
            "class": data.class_names[label],
            "label": label,
            "row": source,
            "sha256": data.sha256[source],
        },
        "early": _early(run, source, label),
        "variants": {
            value["item_id"]: {
                "level": _level(value),
                "state": value["state"],
                "why": _why(value["state"], _limits(value, quality)),
                "scores": _known(value, *scores),
            }
            for _, value in ordered
        },
    }
    pictures = _pictures(run.synthetic, list(values)) if values else {}
    variants = [(_level(value), value["state"], pictures[row]) for row, value in ordered]
    line = ContactRow(_caption(data, source), data.pixels(np.array([source]))[0], variants)
    return Details(f"reference-{source:07d}", sections, contact_sheet([line], _CELL, "by level"))


def _of_variant(run: RunContext, table: pa.Table, row: int) -> Details:
    folder, data = run.synthetic, run.splits.train
    manifest = folder.manifest()
    values = table.slice(row, 1).to_pylist()[0]
    source, item_id = int(_sources(table.slice(row, 1), data)[0]), values["item_id"]
    if source < 0:
        raise ValueError(f"{item_id} was made from {values['source_name']}, which is not in the data any more")
    limits = _limits(values, manifest["about"]["quality"])
    ends = np.cumsum([part["rows"] for part in manifest["parts"]])
    sections: dict[str, dict[str, Any]] = {
        "image": {
            "item_id": item_id,
            "class": manifest["class_names"][values["label"]],
            "label": values["label"],
            "state": values["state"],
            "why": _why(values["state"], limits),
            "part": manifest["parts"][int(np.searchsorted(ends, row, "right"))]["file"],
        },
        "reference": {
            "data": run.config.data.source,
            "source_name": data.names[source],
            "source_index": source,
            "source_sha256": values["source_sha256"],
            **_early(run, source, int(data.labels[source])),
        },
        "level": {"level": _level(values)} | _known(values, "timestep", "log_snr", "strength", "calls"),
        "made": _known(
            values, "seed", "attempt", "variant", "prompt", "generator", "generator_digest", "sampler", "guidance_scale"
        ),
        "scores": _known(values, *score_names(table.schema)),
        "thresholds": limits,
    }
    named = {name for section in sections.values() for name in section} | {"level_steps", "level_grid"}
    sections["also"] = _known(values, *(name for name in values if name not in named))
    variant, reference = _pictures(folder, [row])[row], data.pixels(np.array([source]))[0]
    return Details(item_id, sections, _strip(item_id, values["state"], reference, variant))


def _known(values: dict[str, Any], *names: str) -> dict[str, Any]:
    """Some of the values; None for what is not finite, which JSON cannot say."""
    found = {name: values[name] for name in names if name in values}
    return {name: None if isinstance(v, float) and not math.isfinite(v) else v for name, v in found.items()}


def _limits(values: dict[str, Any], quality: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """By threshold: its score, the value of that, the limit, and whether it passes (None: not measured)."""
    limits = {}
    for name, (threshold, _) in THRESHOLDS.items():
        score = threshold.score
        if name in quality and score in values:
            value, limit = values[score], quality[name]
            if threshold.times:
                limit *= values[threshold.times]
            if threshold.ceiling:
                passes = limit == threshold.off or value <= limit
            else:
                passes = not (limit and value > 0) if isinstance(limit, bool) else value >= limit
            limits[name] = {"score": score, "value": _known(values, score)[score], "limit": limit}
            limits[name]["passes"] = None if math.isnan(value) else passes
    return limits


def _why(state: str, limits: dict[str, dict[str, Any]]) -> str:
    """The state in words, with the threshold that decided it."""
    words = next((known.words for name, known in STATES.items() if name == state), "kept out by its scores")
    own = {name: limit for name, limit in limits.items() if THRESHOLDS[name][1] == state}
    missed = [name for name, limit in own.items() if limit["passes"] is False] or list(own)
    reasons = [f"{own[name]['score']} is {_number(own[name]['value'])}, {_missed(name, own[name])}" for name in missed]
    return f"{words}: {'; '.join(reasons)}" if reasons else words


def _missed(name: str, limit: dict[str, Any]) -> str:
    threshold = THRESHOLDS[name][0]
    if isinstance(limit["limit"], bool):
        return f"and {name} is on"
    times = f" times {threshold.times}" if threshold.times else ""
    return f"{'above' if threshold.ceiling else 'below'} {name}{times} = {limit['limit']:g}"


def _number(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4g}"


def _early(run: RunContext, source: int, label: int) -> dict[str, Any]:
    """How slowly the reference was learned: means over the seeds of the run, None where a class has no such cluster."""
    slow, loss, means, own = [], [], [], []
    for number in range(run.config.seeds):
        selection = run.selection("cluster", number)
        slow.append(bool(selection["cluster"][source] == 1))
        means.append(selection["mean_loss"][label])
        losses, logits = run.early_arrays(number, "losses", "logits")
        loss.append(float(losses[source]))
        own.append(softmax(logits[source : source + 1])[0])
    mean = np.mean(own, 0)
    known = np.isfinite(mean).all()
    of_fast, of_slow = np.array(means).T  # (seeds,) each
    return {
        "in_slow_cluster": f"{sum(slow)} of {len(slow)} seeds",
        "early_loss": _mean(np.array(loss)),
        "early_probability": float(mean[label]) if known else None,
        "early_class": run.splits.train.class_names[int(mean.argmax())] if known else None,
        "early_loss_of_fast_cluster": _mean(of_fast),
        "early_loss_of_slow_cluster": _mean(of_slow),
    }


def _mean(values: np.ndarray) -> float | None:
    return float(np.nanmean(values)) if np.isfinite(values).any() else None


def _strip(item_id: str, state: str, reference: np.ndarray, variant: np.ndarray) -> Image.Image:
    pictures = [("variant", state, variant)]
    if reference.shape == variant.shape:
        difference = 128 + (variant.astype(np.int16) - reference) // 2
        pictures.append(("difference", "ok", difference.astype(np.uint8)))
    row = ContactRow(item_id, reference, pictures, {"difference": "mid-grey: the same"})
    return contact_sheet([row], 256, columns=[heading for heading, _, _ in pictures])
