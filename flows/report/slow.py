"""The slow images in full: what the early classifiers found of each, and its variants."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from latebloom.flows.report.listing import MOST, SlowList
from latebloom.flows.stages.context import RunContext
from latebloom.train.evaluate import softmax

__all__ = ["slow_list"]


def slow_list(run: RunContext, slow_sets: Sequence[np.ndarray], table: pa.Table | None) -> SlowList:
    """The list of a finished run.

    Args:
        slow_sets: by seed, the rows that it chose.
        table: the synthetic data set, where there is one.
    """
    train = run.splits.train
    chosen = np.zeros((len(train), len(slow_sets)), bool)
    mean_losses, mean_probability = np.zeros(len(train)), np.zeros((len(train), train.num_classes))
    for seed, rows in enumerate(slow_sets):
        chosen[rows, seed] = True
        logits, losses = run.early_arrays(seed, "logits", "losses")
        mean_losses += losses / len(slow_sets)
        mean_probability += softmax(logits) / len(slow_sets)
    every = np.flatnonzero(chosen.any(1))
    rows = every[np.lexsort((every, -mean_losses[every]))][:MOST]
    levels, variants, order, states = _variants(rows, table)

    def variant_pictures(start: int, end: int) -> np.ndarray:
        assert table is not None
        return run.synthetic.images(table.take(order[start:end]), train).pixels()

    return SlowList(
        total=len(every),
        class_names=train.class_names,
        names=[train.names[row] for row in rows],
        rows=rows,
        labels=train.labels[rows],
        predicted=mean_probability[rows].argmax(1),
        losses=mean_losses[rows],
        probability=mean_probability[rows, train.labels[rows]],
        votes=chosen[rows],
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
