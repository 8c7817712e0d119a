"""The same picture more than once: within a split, in two splits, or with two labels."""

import dataclasses
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from latebloom.data.sources.found import Problem

__all__ = ["TWO_LABELS", "TWO_SPLITS", "Pictures", "repeated"]

TWO_SPLITS = "picture in two splits"
TWO_LABELS = "picture with two labels"


@dataclasses.dataclass(frozen=True)
class Pictures:
    """The images of a split, by what they show.

    Attributes:
        names: of each image the name that its owner knows it by.
        labels: integers (N,).
        digests: SHA-256 of each image's pixels; "" where it cannot be decoded.
    """

    names: Sequence[str]
    labels: np.ndarray
    digests: Sequence[str]


def repeated(parts: Mapping[str, Pictures], class_names: Sequence[str]) -> tuple[list[Problem], list[str]]:
    """What is there more than once.

    Returns:
        Warnings, one for each image that an earlier split has too, or that an earlier one shows with another label; and
        notes of the copies within splits, a sentence each.
    """
    groups: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for split, part in parts.items():
        for row, digest in enumerate(part.digests):
            if digest:
                groups[digest].append((split, row))
    found: list[Problem] = []
    copies: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for group in groups.values():
        if len(group) > 1:
            _compare(group, parts, class_names, found, copies)
    notes = [
        f"{split} has {len(pairs)} cop{'ies' if len(pairs) > 1 else 'y'} of its own images, such as {pairs[0][1]} of "
        f"{pairs[0][0]}"
        for split, pairs in copies.items()
    ]
    return sorted(found, key=lambda problem: problem.kind), notes


def _compare(
    group: Sequence[tuple[str, int]],
    parts: Mapping[str, Pictures],
    class_names: Sequence[str],
    found: list[Problem],
    copies: dict[str, list[tuple[str, str]]],
) -> None:
    """Each image of one picture beside the first ones of its split, of another split and of another label."""
    in_split: dict[str, str] = {}
    with_label: dict[int, str] = {}
    for split, row in group:
        name, label = parts[split].names[row], int(parts[split].labels[row])
        if split in in_split:
            copies[split].append((in_split[split], name))
        for other, first in in_split.items():
            if other != split:
                words = f"{name} ({split}) is the same picture as {first} ({other})"
                words += f"; remove one, or errors on {split} are too good"
                found.append(Problem(TWO_SPLITS, name, words, "warning"))
        for other_label, first in with_label.items():
            if other_label != label:
                words = f"{name} is {class_names[label]}, and the same picture as {first}"
                words += f", which is {class_names[other_label]}; correct one"
                found.append(Problem(TWO_LABELS, name, words, "warning"))
        in_split.setdefault(split, name)
        with_label.setdefault(label, name)
