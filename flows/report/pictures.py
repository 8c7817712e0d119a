"""Which pictures a report shows, of a run that is finished."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa

from latebloom.data.seeds import numpy_rng, torch_stream
from latebloom.flows.report.page import Cluster, ContactRow, Example, Flagged, Pictures
from latebloom.flows.report.scores import flagged_rows
from latebloom.flows.stages.context import RunContext
from latebloom.train.evaluate import softmax

__all__ = ["drawn", "flagged"]

EXAMPLES = 24
CONTACT_ROWS = 12
FLAGGED = 8  # variants of a state


def drawn(run: RunContext, slow: np.ndarray, table: pa.Table | None) -> Pictures:
    """Pictures of the first seed: a draw of slow and fast examples, references with their variants, the clusters."""
    train, rng = run.splits.train, numpy_rng(run.config.seed, "report pictures")
    fast = np.setdiff1d(np.arange(len(train)), slow)

    def draw(rows: np.ndarray, count: int) -> np.ndarray:
        return np.sort(rng.permutation(rows)[:count])

    def examples(rows: np.ndarray) -> list[Example]:
        return [
            Example(train.class_names[train.labels[row]], image, train.names[row])
            for row, image in zip(rows, train.pixels(rows), strict=True)
        ]

    contact = []
    if table is not None:
        sources = np.array(table["source_index"].to_pylist())
        for row in draw(np.intersect1d(slow, sources), CONTACT_ROWS):
            mine = table.take(np.flatnonzero(sources == row)).sort_by([("level_steps", "ascending")])
            images = run.synthetic.images(mine, train).pixels()
            variants = [
                (f"{item['level_steps']} of {item['level_grid']}", item["state"], image)
                for item, image in zip(mine.drop_columns(["image"]).to_pylist(), images, strict=True)
            ]
            (reference,) = examples(np.array([row]))
            contact.append(ContactRow(reference.caption, reference.pixels, variants, name=reference.name))
    return Pictures(examples(draw(slow, EXAMPLES)), examples(draw(fast, EXAMPLES)), contact, _clusters(run))


def flagged(run: RunContext, table: pa.Table, quality: Mapping[str, Any]) -> list[Flagged]:
    """The variants of each state that is not ok which miss its thresholds by most, beside their references.

    Args:
        quality: the thresholds that its states are by.
    """
    train, found = run.splits.train, []
    counts = dict(zip(*np.unique(np.array(table["state"].to_pylist()), return_counts=True), strict=True))
    for state, rows in flagged_rows(table, quality, FLAGGED).items():
        own = table.take([row for row, _ in rows])
        sources = own["source_index"].to_numpy()
        references, variants = train.pixels(sources), run.synthetic.images(own, train).pixels()
        levels = zip(own["level_steps"].to_pylist(), own["level_grid"].to_pylist(), strict=True)
        pairs = [
            (
                Example(train.class_names[train.labels[source]], reference, train.names[source]),
                Example(", ".join(filter(None, (f"{steps} of {grid}", missed))), variant, item),
            )
            for source, reference, variant, (steps, grid), (_, missed), item in zip(
                sources, references, variants, levels, rows, own["item_id"].to_pylist(), strict=True
            )
        ]
        found.append(Flagged(state, int(counts[state]), pairs))
    return found


def _clusters(run: RunContext) -> list[Cluster]:
    """The first seed's early outputs (softmax) of each class in the plane of their first two principal components."""
    train = run.splits.train
    if not run.has_logits:
        return []
    (logits,) = run.early_arrays(0, "logits")
    probabilities, cluster = softmax(logits), run.selection("cluster", 0)["cluster"]
    clusters = []
    for label, name in enumerate(train.class_names):
        rows = np.flatnonzero(train.labels == label)
        if len(rows) < 3:
            continue
        points = _plane(probabilities[rows])
        clusters.append(Cluster(name, points, cluster[rows] == 1))
    return clusters


def _plane(points: np.ndarray) -> np.ndarray:
    """The first two principal components of points (n, C), n above 2, float (n, 2); an equal set gives equal ones."""
    import torch  # which is there by now; scikit-learn is not, and takes two CPU seconds to import

    with torch_stream(0, "clusters"):
        left, size, right = torch.pca_lowrank(torch.from_numpy(points).double(), q=min(50, *points.shape))
    first, second = right[:, :2].T
    signs = torch.stack([axis[axis.abs().argmax()].sign() for axis in (first, second)])  # else the library's choice
    found: np.ndarray = (left[:, :2] * size[:2] * signs).numpy()
    return found
