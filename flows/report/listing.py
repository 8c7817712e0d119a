"""The list of slow images in the page: its values as JSON, which a script shows, and its pictures in files."""

import dataclasses
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markupsafe import Markup

from latebloom.data.states import OTHER_COLOUR, STATES
from latebloom.flows.report.sprites import ACROSS, FOLDER, Sheets, drop_others, shown_size, write_sheets

__all__ = ["MOST", "Listing", "colour_of", "in_script", "write_list"]

MOST = 50_000  # images in a page: a browser keeps a line of text for each
_LONGEST = 64  # side of a picture, CSS pixels
_BELOW = 30  # CSS pixels of a row that its picture does not take: the state of a variant, and space

Pixels = Callable[[int, int], np.ndarray]  # first and end: uint8 (n, H, W, C)


@dataclasses.dataclass(frozen=True)
class Listing:
    """Every image that some seed calls slow, those of most seeds first, then those of the highest early loss.

    Attributes:
        total: how many there are; the lists have at most `MOST`.
        class_names: by label.
        names: of each image, the name that its owner knows it by.
        rows: int (n,), its place in the training images.
        labels, predicted: int (n,), its class and what the mean of the early classifiers takes it for; -1: not known.
        losses: float (n,), mean early cross-entropy over seeds, nats; NaN: not known.
        probability: float (n,), of its class, mean over seeds; NaN: not known.
        votes: bool (n, V), who calls it slow: a column for each of the V `voters`.
        levels: headings of the columns of variants, shallowest first; a level that an image has twice is there twice.
        variants: int (m, 3) ascending: image, column, and state as a place in `states`.
        states: names of the states.
        pictures: of the images.
        variant_pictures: of the variants.
    """

    total: int
    class_names: Sequence[str]
    names: Sequence[str]
    rows: np.ndarray
    labels: np.ndarray
    predicted: np.ndarray
    losses: np.ndarray
    probability: np.ndarray
    votes: np.ndarray
    voters: Sequence[str]
    levels: Sequence[str]
    variants: np.ndarray
    states: Sequence[str]
    pictures: Pixels
    variant_pictures: Pixels


def write_list(folder: Path, found: Listing | None) -> dict[str, Any]:
    """Write the pictures of the list into `folder` and take those of an earlier report away.

    Returns:
        What the page has of the list: JSON values. Empty where there is none.
    """
    place = folder / FOLDER
    if found is None or not len(found.rows):
        drop_others(place, ())
        return {}
    own = write_sheets(place, "slow", len(found.rows), found.pictures)
    variants = write_sheets(place, "variants", len(found.variants), found.variant_pictures)
    drop_others(place, {*own.files, *variants.files})
    counts = np.bincount(found.variants[:, 0], minlength=len(found.rows))
    ends = np.cumsum(counts)
    pairs = found.variants[:, 1:].tolist()
    return {
        "folder": FOLDER,
        "row_height": shown_size((own.width, own.height), _LONGEST)[1] + _BELOW,
        "classes": list(found.class_names),
        "names": list(found.names),
        "rows": found.rows.tolist(),
        "labels": found.labels.tolist(),
        "predicted": found.predicted.tolist(),
        "losses": _rounded(found.losses),
        "probability": _rounded(found.probability),
        "votes": ["".join("1" if vote else "0" for vote in seeds) for seeds in found.votes.tolist()],
        "voters": list(found.voters),
        "levels": list(found.levels),
        "states": [[state.replace("_", " "), colour_of(state)] for state in found.states],
        "variants": [pairs[end - count : end] for count, end in zip(counts.tolist(), ends.tolist(), strict=True)],
        "starts": (ends - counts).tolist(),
        "pictures": _shown(own),
        "variant_pictures": _shown(variants),
    }


def _shown(sheets: Sheets) -> dict[str, Any]:
    size = (sheets.width, sheets.height)
    return {"files": sheets.files, "across": ACROSS, "shown": shown_size(size, _LONGEST) if sheets.files else size}


def _rounded(values: np.ndarray) -> list[float | None]:
    return [round(value, 4) if math.isfinite(value) else None for value in values.tolist()]


def in_script(value: Any) -> Markup:
    """JSON for a script element: nothing in it ends the element or begins another."""
    text = json.dumps(value, separators=(",", ":"), allow_nan=False, ensure_ascii=False)
    for letter in "<>&":  # only strings have them
        text = text.replace(letter, f"\\u{ord(letter):04x}")
    return Markup(text)


def colour_of(state: str) -> str:
    """The colour of a state's words and borders, also of one that another version wrote."""
    return next((known.colour for name, known in STATES.items() if name == state), OTHER_COLOUR)
