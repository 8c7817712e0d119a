"""What methods selected and how much they agree, by hand and in the report of a run."""

import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from latebloom.data.store import read_json
from latebloom.flows.cli.tables import print_report
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.report import gather, selections
from latebloom.flows.report.results import Report
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.rounds import Rounds, read_rounds
from tests.flows.conftest import all_stages

Tiny = Callable[..., CompareConfig]
ARMS = ("original", "ours-2", "high_loss-2", "misclassified-2", "original+craig", "original+random")
CHANGES = {"arms": ARMS, "strong.coreset": {"fraction": 0.3}}


def rounds(*sets: list[int], epochs: list[int], owner: list[int] | None = None) -> Rounds:
    return Rounds(
        np.array(epochs, np.int64),
        np.concatenate([np.array(one, np.int32) for one in sets]),
        np.cumsum([0, *map(len, sets)]),
        np.ones(sum(map(len, sets)), np.float32),
        np.array(owner or [], np.int32),
    )


# ------------------------------------------------------------------------------------------------------ by hand


def test_the_overlap_by_round_is_of_what_was_selected_last() -> None:
    # The first selects in epochs 0 and 2, the second once, in epoch 1: compared from there on.
    ours = rounds([0, 1], [2, 3], epochs=[0, 2])
    theirs = rounds([1, 2, 3], epochs=[1])
    found = selections.overlap_by_round("a", "b", "sgd", [ours], [theirs])
    assert (found.epochs, found.jaccard) == ([1, 2], [1 / 4, 2 / 3])
    twice = selections.overlap_by_round("a", "b", "sgd", [ours, ours], [theirs, rounds([2, 3], epochs=[0])])
    assert twice.epochs == [1, 2]
    np.testing.assert_allclose(twice.jaccard, [(1 / 4 + 0) / 2, (2 / 3 + 1) / 2])


def test_how_much_of_the_images_a_training_selected() -> None:
    # Of ten images, rows 0 to 3 in two rounds of three; image 0 stands for four in the last one.
    one = rounds([0, 1, 2], [0, 2, 3], epochs=[0, 1], owner=[0, 0, 0, 3, 2, 2, 3, 0, 3, -1])
    found = selections.usage("original+craig", "sgd", [one], [10])
    assert (found.rounds, found.selected, found.images, found.most_owned) == (2, 3, 10, 4)
    assert found.distinct == pytest.approx(0.4)
    assert found.never == pytest.approx(0.6)
    other = selections.usage("original+random", "sgd", [one, rounds([5], epochs=[0])], [10, 10])
    assert (other.rounds, other.most_owned) == (1.5, 4)
    assert other.never == pytest.approx((0.6 + 0.9) / 2)


# -------------------------------------------------------------------------------------------------- in a report


@pytest.fixture(scope="module")
def compared(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    config = tiny(CHANGES)
    run = all_stages(tmp_path_factory.mktemp("compared") / "run", config)
    page = gather.write(run, config).read_text()
    report = Report.from_json(read_json(run.path / "report.json"))
    return SimpleNamespace(config=config, run=run, page=page, report=report)


def test_the_methods_of_slow_examples_are_compared(compared: SimpleNamespace) -> None:
    slow, run = compared.report.selectors["slow"], RunContext(compared.run, compared.config)
    assert slow["methods"] == ["ours", "high_loss", "misclassified"]
    table = np.array(slow["jaccard"])
    assert (np.diag(table) == 1).all()
    np.testing.assert_array_equal(table, table.T)
    both = [[set(run.selected(method, number)) for method in ("high_loss", "misclassified")] for number in (0, 1)]
    np.testing.assert_allclose(table[1, 2], np.mean([len(a & b) / len(a | b) for a, b in both]))
    assert table[1, 2] < 0.9  # two methods, not one under two names
    assert slow["sizes"][0] == slow["sizes"][1] != slow["sizes"][2]


def test_the_rounds_of_selectors_are_compared(compared: SimpleNamespace) -> None:
    found = compared.report.selectors
    (pair,) = found["rounds"]
    assert (pair["first"], pair["second"], pair["epochs"]) == ("original+craig", "original+random", [0, 1, 2])
    by_arm = {one["arm"]: one for one in found["usage"]}
    for arm in ("original+craig", "original+random"):
        sets = [read_rounds(compared.run.path / f"retrained/{arm}-sgd", number) for number in (0, 1)]
        never = [len(set(range(60)) - set(one.indices.tolist())) / 60 for one in sets if one]
        assert by_arm[arm]["never"] == pytest.approx(np.mean(never))
    assert by_arm["original+craig"]["most_owned"] > 60 / 18  # of the images that 18 selected ones stand for
    assert by_arm["original+random"]["most_owned"] is None


def test_a_selection_that_all_seeds_share_has_no_overlap_between_them(
    compared: SimpleNamespace, tiny: Tiny, tmp_path: Path
) -> None:
    assert compared.report.jaccard is not None
    shutil.copytree(compared.run.path, tmp_path / "run")
    gather.write(RunFolder(tmp_path / "run"), tiny(CHANGES | {"slow.shared": True}))
    assert Report.from_json(read_json(tmp_path / "run/report.json")).jaccard is None


def test_the_page_and_the_terminal_show_them(compared: SimpleNamespace, capsys: pytest.CaptureFixture[str]) -> None:
    assert "What was selected" in compared.page
    for arm in ("original+craig", "original+random"):
        assert f"{arm}: selected most often" in compared.page
    assert "original+craig: stands for" in compared.page
    assert "original+random: stands for" not in compared.page
    print_report(compared.run.path, as_json=False)
    assert "ours and misclassified 0." in " ".join(capsys.readouterr().out.split())
