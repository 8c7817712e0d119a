"""What a synthetic data set holds, in numbers and as a dataset card (README.md with Hugging Face's front matter)."""

import dataclasses
import importlib.resources
import json
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import jinja2
import numpy as np
import pyarrow as pa

from latebloom.data.states import STATES

__all__ = ["QUANTILES", "Contents", "Summary", "card", "score_names", "summarise"]

QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
# Floating-point columns that say how an image was made; every other one is a score.
_PROVENANCE = ("timestep", "log_snr", "strength", "guidance_scale")


@dataclasses.dataclass(frozen=True)
class Summary:
    """Counts and score quantiles of some images.

    Attributes:
        images: how many.
        states: images by state; states of no image are absent, here and below.
        levels: by "R of S", shallowest first, images by state.
        classes: by class name, in order of the labels, images by state; classes without images included.
        scores: by score, its values at `QUANTILES` over the images that have a finite one; scores of none are absent.
    """

    images: int
    states: dict[str, int]
    levels: dict[str, dict[str, int]]
    classes: dict[str, dict[str, int]]
    scores: dict[str, list[float]]


def score_names(schema: pa.Schema) -> list[str]:
    """The columns that are scores, in their order."""
    return [field.name for field in schema if pa.types.is_floating(field.type) and field.name not in _PROVENANCE]


def summarise(rows: pa.Table, class_names: Sequence[str]) -> Summary:
    """Summarise rows of a synthetic data set; their image column is not needed."""
    states = rows["state"].to_pylist()
    levels = list(zip(rows["level_steps"].to_pylist(), rows["level_grid"].to_pylist(), strict=True))
    scores = {name: np.asarray(rows[name].to_numpy(), np.float64) for name in score_names(rows.schema)}
    finite = {name: values[np.isfinite(values)] for name, values in scores.items()}
    return Summary(
        images=rows.num_rows,
        states=dict(Counter(states).most_common()),
        levels=_by(
            [f"{r} of {s}" for r, s in sorted(set(levels), key=lambda level: level[0] / level[1])],
            [f"{r} of {s}" for r, s in levels],
            states,
        ),
        classes=_by(class_names, [class_names[label] for label in rows["label"].to_pylist()], states),
        scores={name: np.quantile(values, QUANTILES).tolist() for name, values in finite.items() if len(values)},
    )


def _by(keys: Sequence[str], of: Sequence[str], states: Sequence[str]) -> dict[str, dict[str, int]]:
    counts: dict[str, Counter[str]] = {key: Counter() for key in keys}
    for key, state in zip(of, states, strict=True):
        counts[key][state] += 1
    return {key: dict(count.most_common()) for key, count in counts.items()}


@dataclasses.dataclass(frozen=True)
class Contents:
    """What an exported data set holds, as its card describes it.

    Attributes:
        kind: its format: imagefolder, webdataset or npz.
        source: name of the data set that the references are from.
        class_names: by label.
        columns: the columns beside the images, with their Hugging Face dtypes.
        manifest: of the synthetic data set (folder.py).
        made: of all its images.
        exported: of those that are here.
        prompts: the distinct prompts of those that are here.
        real: real images that are here, by split; empty where there are none.
    """

    kind: str
    source: str
    class_names: tuple[str, ...]
    columns: dict[str, str]
    manifest: dict[str, Any]
    made: Summary
    exported: Summary
    prompts: list[str]
    real: dict[str, int]


def card(contents: Contents) -> str:
    """The text of README.md. What the manifest does not say is "not stated"."""
    environment = jinja2.Environment(
        undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, keep_trailing_newline=True
    )
    # A JSON string is a YAML string. Names come from users' folders and files: their markup is escaped.
    environment.filters |= {"quoted": lambda text: json.dumps(text, ensure_ascii=False), "plain": _plain}
    about = contents.manifest["about"]
    shown = {key: value for key, value in about.items() if key not in _SHOWN_ELSEWHERE}
    if shown.get("names") == list(contents.class_names):
        del shown["names"]
    template = environment.from_string(
        importlib.resources.files("latebloom.data.synthetic").joinpath("card.md.j2").read_text("utf-8")
    )
    return template.render(
        **{field.name: getattr(contents, field.name) for field in dataclasses.fields(contents)},
        about=about,
        recipe=dict(_flat(shown)),
        size=_size_category(contents.exported.images + sum(contents.real.values())),
        state_words={name: state.words for name, state in STATES.items()},
        quantiles=[f"{share:.0%}" for share in QUANTILES],
    )


_SHOWN_ELSEWHERE = ("data", "generator", "generator_digest", "generator_licence")


def _flat(value: dict[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, part in value.items():
        if isinstance(part, dict):
            yield from _flat(part, f"{prefix}{key}.")
        else:
            yield prefix + key, part


def _plain(value: Any) -> str:
    """Any JSON value as text that is safe in a Markdown table."""
    if value is None or value in ("", [], ()):
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, list | tuple):
        return ", ".join(map(_plain, value))
    return re.sub(r"([\\`*_\[\]<>|#&$~])", r"\\\1", " ".join(str(value).split()))


def _size_category(images: int) -> str:
    """Hugging Face's word for a number of images, such as 1K<n<10K."""
    bounds = ["1K", "10K", "100K", "1M", "10M", "100M", "1B", "10B", "100B", "1T"]
    place = max(0, len(str(images)) - 3)
    return "n<1K" if place == 0 else f"{bounds[place - 1]}<n<{bounds[place]}"
