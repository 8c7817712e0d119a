"""The slow images of a run as the page lists them: what the early classifiers found of each, and its variants."""

import numpy as np
import pyarrow as pa

from latebloom.flows.report.listing import MOST, Listing
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.slow_list import slow_list

__all__ = ["listing_of"]


def listing_of(run: RunContext, table: pa.Table | None) -> Listing:
    """Every image that some seed calls slow, in the order of slow.csv.

    Args:
        table: the synthetic data set, where there is one.
    """
    train, found = run.splits.train, slow_list(run)
    every = found.order[found.counts[found.order] > 0]
    rows = every[:MOST]
    levels, variants, order, states = _variants(rows, table)

    def variant_pictures(start: int, end: int) -> np.ndarray:
        assert table is not None
        return run.synthetic.images(table.take(order[start:end]), train).pixels()

    return Listing(
        total=len(every),
        class_names=found.class_names,
        names=[found.names[row] for row in rows],
        rows=rows,
        labels=found.labels[rows],
        predicted=found.predicted[rows],
        losses=found.losses[rows],
        probability=found.probabilities[rows, found.labels[rows]],
        votes=found.votes[:, rows].T,
        voters=[voter.replace("_", " ") for voter in found.voters],
        levels=levels,
        variants=variants,
        states=states,
        pictures=lambda start, end: train.pixels(rows[start:end]),
        variant_pictures=variant_pictures,
    )


def _variants(rows: np.ndarray, table: pa.Table | None) -> tuple[list[str], np.ndarray, np.ndarray, list[str]]:
    """Columns, (image, column, state) of each variant, its row in `table`, and the names of the states."""
    nothing: tuple[list[str], np.ndarray, np.ndarray, list[str]] = [], np.zeros((0, 3), int), np.zeros(0, int), []
    if table is None or not len(rows):
        return nothing
    by_row = np.argsort(rows)
    sources = table["source_index"].to_numpy()
    found = by_row[np.minimum(np.searchsorted(rows, sources, sorter=by_row), len(rows) - 1)]  # the place in `rows`
    own = np.flatnonzero(rows[found] == sources)
    steps, grid, variant = (table[name].to_numpy()[own] for name in ("level_steps", "level_grid", "variant"))
    order = np.lexsort((variant, grid, steps / grid, found[own]))
    own, steps, grid = own[order], steps[order], grid[order]
    images = found[own]
    # A level that an image has twice has two columns: count how often it came before.
    again = np.zeros(len(own), int)
    for here in range(1, len(own)):
        if (images[here], steps[here], grid[here]) == (images[here - 1], steps[here - 1], grid[here - 1]):
            again[here] = again[here - 1] + 1
    keys = list(zip((steps / grid).tolist(), grid.tolist(), steps.tolist(), again.tolist(), strict=True))
    columns = {key: column for column, key in enumerate(sorted(set(keys)))}
    names = table["state"].to_pylist()
    states = sorted({names[row] for row in own})
    state = [states.index(names[row]) for row in own]
    variants = np.array([images, [columns[key] for key in keys], state], int).T
    return [f"{key[2]} of {key[1]}" for key in columns], variants, own, states
