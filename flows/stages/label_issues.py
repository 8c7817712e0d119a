"""Cleanlab's label issues beside the slow images of a run. No Prefect in here."""

import importlib.metadata

import numpy as np

from latebloom.flows.run.records import LabelIssueFacts
from latebloom.train.selection.slow import jaccard

__all__ = ["cleanlab_version", "label_issues", "overlap"]


def cleanlab_version() -> str:
    """Of cleanlab; empty where it is not installed."""
    try:
        return importlib.metadata.version("cleanlab")
    except importlib.metadata.PackageNotFoundError:
        return ""


def label_issues(labels: np.ndarray, probabilities: np.ndarray) -> np.ndarray | None:
    """bool (N,): the images whose labels cleanlab doubts, by these probabilities; None where it is not installed, or
    where no probabilities are known.

    Args:
        labels: int64 (N,).
        probabilities: float64 (N, C); NaN: not known.

    The early classifiers were trained on these images. Cleanlab is meant for probabilities of images that a classifier
    was not trained on: it finds fewer issues here.
    """
    if not cleanlab_version() or np.isnan(probabilities[0, 0]):
        return None
    from cleanlab.filter import find_label_issues

    # One process: others would import all of this again, which takes longer than the search.
    issues = find_label_issues(labels, probabilities, n_jobs=1)
    return np.asarray(issues, bool)


def overlap(slow: np.ndarray, issues: np.ndarray) -> LabelIssueFacts:
    """The overlap of two sets of images, each bool (N,)."""
    both = int((slow & issues).sum())
    return LabelIssueFacts(
        issues=int(issues.sum()),
        slow=int(slow.sum()),
        both=both,
        by_chance=float(slow.mean() * issues.sum()),
        jaccard=jaccard(np.flatnonzero(slow), np.flatnonzero(issues)),
    )
