"""slow.csv and the overlap with label issues, by hand."""

import csv
import importlib.metadata
import io
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.records import SLOW_LIST
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.label_issues import label_issues, overlap
from latebloom.flows.stages.select import select_examples
from latebloom.flows.stages.slow_list import SlowList

Tiny = Callable[..., CompareConfig]


def by_hand(names: tuple[str, ...] = ("a.png", "b.png", "c.png", "d.png"), voters: int = 2) -> SlowList:
    """Four images of two classes: two seeds call b slow, one a, none c and d."""
    votes = np.array([[False, True, False, False], [True, True, False, False], [False, False, False, False]])
    return SlowList(
        names=names,
        class_names=("big cat", "dog"),
        labels=np.array([0, 0, 1, 1]),
        losses=np.array([0.25, 1.5, 0.125, 0.5]),
        probabilities=np.array([[0.75, 0.25], [0.25, 0.75], [0.125, 0.875], [0.375, 0.625]]),
        votes=votes[:voters],
        voters=[f"seed_{number}" for number in range(voters)],
    )


def test_the_list_has_a_line_an_image_most_votes_first_then_the_highest_loss() -> None:
    assert by_hand().csv().splitlines() == [
        "file,class,row,loss,probability,predicted,cluster,votes,slow,seed_0,seed_1",
        "b.png,big cat,1,1.5,0.25,dog,1,2,yes,1,1",
        "a.png,big cat,0,0.25,0.75,big cat,0.5,1,yes,0,1",
        "d.png,dog,3,0.5,0.625,dog,0,0,no,0,0",
        "c.png,dog,2,0.125,0.875,dog,0,0,no,0,0",
    ]


def test_slow_is_what_at_least_half_call_slow() -> None:
    assert by_hand(voters=1).slow.tolist() == [False, True, False, False]
    assert by_hand(voters=2).slow.tolist() == [True, True, False, False]
    assert by_hand(voters=3).slow.tolist() == [False, True, False, False]  # one of three is less than half


def test_names_come_back_as_they_were() -> None:
    names = ('train/big cat/"4", left.png', "=1+1.png", "ünï/猫.png", "two\nlines.png")
    rows = list(csv.DictReader(io.StringIO(by_hand(names).csv(), newline="")))
    assert {int(row["row"]): row["file"] for row in rows} == dict(enumerate(names))


def test_the_list_of_a_run_is_of_its_selections_and_outputs(pristine: RunFolder, tiny: Tiny) -> None:
    run = RunContext(pristine, tiny())
    rows = list(csv.DictReader(io.StringIO((pristine.path / "slow.csv").read_text("utf-8"), newline="")))
    train = run.splits.train
    assert sorted(int(row["row"]) for row in rows) == list(range(60))
    losses = [run.early_arrays(number, "losses")[0] for number in range(2)]
    for row in rows:
        number = int(row["row"])
        assert (row["file"], row["class"]) == (train.names[number], train.class_names[train.labels[number]])
        votes = [int(number in run.selected("cluster", seed)) for seed in range(2)]
        assert [row["seed_0"], row["seed_1"], row["votes"]] == [str(n) for n in (*votes, sum(votes))]
        assert float(row["cluster"]) == sum(votes) / 2
        assert row["slow"] == ("yes" if sum(votes) >= 1 else "no")
        assert float(row["loss"]) == pytest.approx((losses[0][number] + losses[1][number]) / 2, rel=1e-5)
    assert [(int(row["votes"]), float(row["loss"])) for row in rows] == sorted(
        ((int(row["votes"]), float(row["loss"])) for row in rows), reverse=True
    )
    assert pristine.record(SLOW_LIST).outputs.keys() == {"slow.csv"}


def test_a_shared_selection_has_one_vote(tiny: Tiny, tmp_path: Path, story: SimpleNamespace) -> None:
    run = story.up_to_plan(tmp_path / "run", tiny({"slow.shared": True}))
    first, *rows = (run.path / "slow.csv").read_text().splitlines()
    assert first.endswith(",cluster,votes,slow,shared")
    assert {row.rpartition("slow,")[2].split(",", 6)[6] for row in rows} == {"1,1,yes,1", "0,0,no,0"}


def test_a_damaged_list_is_written_again_and_a_whole_one_is_left_alone(
    finished: RunFolder, tiny: Tiny, story: SimpleNamespace
) -> None:
    before, times = (finished.path / "slow.csv").read_bytes(), story.times(finished.path)["slow.csv"]
    select_examples(finished, tiny())
    assert story.times(finished.path)["slow.csv"] == times
    (finished.path / "slow.csv").write_text("mine")
    select_examples(finished, tiny())
    assert (finished.path / "slow.csv").read_bytes() == before


# Label issues


def test_an_overlap_by_hand() -> None:
    slow = np.array([1, 1, 1, 0, 0, 0, 0, 0, 0, 0], bool)
    issues = np.array([0, 1, 1, 1, 0, 0, 0, 0, 0, 0], bool)
    found = overlap(slow, issues)
    assert (found.issues, found.slow, found.both) == (3, 3, 2)
    assert found.by_chance == pytest.approx(0.9)  # three of ten are slow, so 0.3 of three issues
    assert found.jaccard == 0.5  # two of four


def test_an_image_of_another_class_is_a_label_issue() -> None:
    labels = np.repeat([0, 1], 20)
    sure = np.where(labels[:, None] == np.arange(2), 0.95, 0.05)
    sure[7] = 0.02, 0.98
    issues = label_issues(labels, sure)
    assert issues is not None
    assert np.flatnonzero(issues).tolist() == [7]


def test_without_cleanlab_there_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(name: str) -> str:
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "version", missing)
    assert label_issues(np.array([0, 1]), np.full((2, 2), 0.5)) is None
