from types import SimpleNamespace

import numpy as np
import pyarrow as pa
import pytest

from latebloom.flows.report import slow
from latebloom.flows.report.slow import listing_of
from latebloom.flows.stages.context import RunContext
from latebloom.train.evaluate import softmax


def test_the_list_has_what_every_seed_chose_with_means_over_the_seeds(many_arms: SimpleNamespace) -> None:
    run = RunContext(many_arms.run, many_arms.config)
    sets = [run.selected("cluster", seed) for seed in range(many_arms.config.seeds)]
    found = listing_of(run, run.synthetic.rows())
    train = run.splits.train
    assert sorted(found.rows.tolist()) == sorted(set(np.concatenate(sets).tolist()))
    assert found.total == len(found.rows)
    counts = found.votes.sum(1)
    assert (np.diff(counts) <= 0).all()
    assert (np.diff(found.losses[counts == counts[0]]) <= 0).all()
    arrays = [run.early_arrays(seed, "logits", "losses") for seed in range(many_arms.config.seeds)]
    for place in (0, len(found.rows) - 1):
        row = found.rows[place]
        assert found.names[place] == train.names[row]
        assert found.labels[place] == train.labels[row]
        probabilities = np.mean([softmax(logits)[row] for logits, _ in arrays], 0)
        assert found.losses[place] == pytest.approx(np.mean([losses[row] for _, losses in arrays]))
        assert found.probability[place] == pytest.approx(probabilities[train.labels[row]])
        assert found.predicted[place] == probabilities.argmax()
        assert found.votes[place].tolist() == [row in chosen for chosen in sets]
        np.testing.assert_array_equal(found.pictures(place, place + 1)[0], train.pixels(np.array([row]))[0])


def test_variants_stand_beside_their_image_in_the_column_of_their_level(many_arms: SimpleNamespace) -> None:
    run = RunContext(many_arms.run, many_arms.config)
    table = run.synthetic.rows()
    found = listing_of(run, table)
    assert found.levels == ["3 of 10", "5 of 10", "10 of 10"]
    items = table.to_pylist()
    pixels = run.synthetic.images(table, run.splits.train).pixels()
    shown = found.variant_pictures(0, len(found.variants))
    assert len(found.variants) == sum(item["source_index"] in found.rows for item in items)
    for (image, column, state), picture in zip(found.variants.tolist(), shown, strict=True):
        (number,) = (
            number
            for number, item in enumerate(items)
            if item["source_index"] == found.rows[image] and f"{item['level_steps']} of 10" == found.levels[column]
        )
        assert found.states[state] == items[number]["state"]
        np.testing.assert_array_equal(picture, pixels[number])


def test_a_level_that_an_image_has_twice_has_two_columns() -> None:
    columns = {
        "source_index": [7, 2, 7, 7, 9],
        "level_steps": [20, 8, 8, 20, 8],
        "level_grid": [20, 20, 20, 20, 20],
        "variant": [1, 0, 0, 2, 0],
        "state": ["ok", "flat", "ok", "nan", "ok"],
    }
    levels, variants, rows, states = slow._variants(np.array([7, 2]), pa.table(columns))
    assert levels == ["8 of 20", "20 of 20", "20 of 20"]
    assert states == ["flat", "nan", "ok"]
    # image, column, state; row 9 of the data is not listed
    assert variants.tolist() == [[0, 0, 2], [0, 1, 2], [0, 2, 1], [1, 0, 0]]
    assert rows.tolist() == [2, 0, 3, 1]


@pytest.mark.parametrize("sources", [[], [5]])
def test_no_variants_are_no_columns(sources: list[int]) -> None:
    names = ("source_index", "level_steps", "level_grid", "variant")
    table = pa.table({name: pa.array(sources, pa.int64()) for name in names} | {"state": ["ok"] * len(sources)})
    for rows, found in ((np.array([7]), table), (np.array([], int), table), (np.array([7]), None)):
        levels, variants, order, states = slow._variants(rows, found)
        assert (levels, states) == ([], [])
        assert variants.shape == (0, 3)
        assert len(order) == 0
