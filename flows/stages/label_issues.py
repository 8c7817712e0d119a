"""Cleanlab's label issues beside the slow images of a run. No Prefect in here."""

import dataclasses
import importlib.util

import numpy as np

from latebloom.flows.stages.slow_list import SlowList
from latebloom.train.selection.slow import jaccard

__all__ = ["Overlap", "label_issues", "overlap"]


@dataclasses.dataclass(frozen=True)
class Overlap:
    """How many label issues are slow images.

    Attributes:
        issues: images that cleanlab names.
        slow: slow images.
        both: images that are both.
        by_chance: how many would be both if the issues were drawn at random from all images.
        jaccard: `both` over the images that are one or the other.
    """

    issues: int
    slow: int
    both: int
    by_chance: float
    jaccard: float


def label_issues(found: SlowList) -> np.ndarray | None:
    """bool (N,): the images whose labels cleanlab doubts, by the mean probabilities; None where it is not installed, or
    where no probabilities are known.

    The early classifiers were trained on these images. Cleanlab is meant for probabilities of images that a classifier
    was not trained on: it finds fewer issues here.
    """
    if importlib.util.find_spec("cleanlab") is None or np.isnan(found.probabilities[0, 0]):
        return None
    from cleanlab.filter import find_label_issues

    # One process: others would import all of this again, which takes longer than the search.
    issues = find_label_issues(found.labels, found.probabilities, n_jobs=1)
    return np.asarray(issues, bool)


def overlap(slow: np.ndarray, issues: np.ndarray) -> Overlap:
    """The overlap of two sets of images, each bool (N,)."""
    both = int((slow & issues).sum())
    chance = float(slow.mean() * issues.sum())
    return Overlap(
        int(issues.sum()), int(slow.sum()), both, chance, jaccard(np.flatnonzero(slow), np.flatnonzero(issues))
    )
