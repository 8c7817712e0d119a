import time
from pathlib import Path
from typing import Any

import pytest

from latebloom.data.store import digest_json, read_json
from latebloom.flows.run.folder import Cost, Key, RunFolder, measured
from latebloom.flows.run.records import EARLY, SelectFacts

BAKE = Key("bake", SelectFacts, "run `latebloom bake`")
NOTHING = SelectFacts(slow=[], warnings=[])


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def finish(run: RunFolder, inputs: dict[str, Any], text: str = "made") -> Path:
    """Run a stage called `bake` that writes one file."""
    file = run.path / "bread.txt"
    with run.stage(BAKE, 1, inputs).making() as outcome:
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
        outcome.outputs.append(file)
        outcome.facts = SelectFacts(slow=[3], warnings=[])
    return file


def test_a_stage_is_done_when_its_block_has_ended(run: RunFolder) -> None:
    assert not run.stage(BAKE, 1, {"flour": 2}).done()
    finish(run, {"flour": 2})
    assert run.stage(BAKE, 1, {"flour": 2}).done()


@pytest.mark.parametrize(
    ("key", "version", "inputs"),
    [(BAKE, 2, {"flour": 2}), (BAKE, 1, {"flour": 3}), (BAKE, 1, {"flour": 2, "salt": 0}), (EARLY, 1, {})],
    ids=["a new version of the code", "another value", "another input", "another stage"],
)
def test_a_stage_with_another_digest_is_not_done(
    run: RunFolder, key: Key[Any], version: int, inputs: dict[str, Any]
) -> None:
    finish(run, {"flour": 2})
    assert not run.stage(key, version, inputs).done()


def test_the_digest_covers_name_version_and_inputs_in_any_order(run: RunFolder) -> None:
    stage = run.stage(BAKE, 1, {"flour": 2, "water": 1})
    assert stage.digest == run.stage(BAKE, 1, {"water": 1, "flour": 2}).digest
    assert stage.digest == digest_json({"stage": "bake", "version": 1, "inputs": {"flour": 2, "water": 1}})


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_stage_whose_output_is_gone_or_changed_is_not_done(run: RunFolder, damage: str) -> None:
    file = finish(run, {})
    file.unlink() if damage == "gone" else file.write_text("mould")
    assert not run.stage(BAKE, 1, {}).done()


@pytest.mark.parametrize("text", ["", "{", "\x00"], ids=["empty", "half", "binary"])
def test_a_damaged_record_is_no_record(run: RunFolder, text: str) -> None:
    finish(run, {})
    run.record_path(BAKE).write_text(text)
    assert not run.stage(BAKE, 1, {}).done()


def test_a_stage_that_fails_leaves_no_record_and_loses_its_old_one(run: RunFolder) -> None:
    finish(run, {})
    with pytest.raises(ZeroDivisionError), run.stage(BAKE, 1, {}).making():
        _ = 1 / 0
    assert not run.stage(BAKE, 1, {}).done()
    with pytest.raises(ValueError, match="no finished stage 'bake'"):
        run.record(BAKE)


def test_a_stage_that_did_not_write_what_it_promised_is_an_error(run: RunFolder) -> None:
    with pytest.raises(FileNotFoundError, match=r"bread\.txt"):
        run.stage(BAKE, 1, {}).finish([run.path / "bread.txt"], NOTHING, Cost())
    assert not run.stage(BAKE, 1, {}).done()


def test_a_record_has_outputs_and_facts(run: RunFolder) -> None:
    finish(run, {})
    record = run.record(BAKE)
    assert record.facts == SelectFacts(slow=[3], warnings=[])
    # SHA-256 of "made", from coreutils' sha256sum.
    assert record.outputs == {"bread.txt": "ea0890697a77af0a2e054cccec587c8a42feb5cf38e778c6c6e2a96bfb945c0b"}
    assert read_json(run.record_path(BAKE)) == record.model_dump(mode="json")


def test_a_stage_is_marked_as_skipped_from_the_second_time_on_and_keeps_what_it_cost(run: RunFolder) -> None:
    finish(run, {})
    first = run.record(BAKE)
    assert not first.skipped
    assert run.stage(BAKE, 1, {}).done()
    assert run.record(BAKE) == first.model_copy(update={"skipped": True})
    before = run.record_path(BAKE).stat()
    assert run.stage(BAKE, 1, {}).done()
    assert run.record_path(BAKE).stat().st_ino == before.st_ino  # nothing new to say
    finish(run, {})
    assert not run.record(BAKE).skipped


def test_a_stage_that_is_not_done_is_not_marked_as_skipped(run: RunFolder) -> None:
    file = finish(run, {})
    file.write_text("mould")
    run.stage(BAKE, 1, {}).done()
    assert not run.record(BAKE).skipped


def test_records_are_all_of_a_run_by_name(run: RunFolder) -> None:
    assert run.records() == []
    for name in ("slice", "bake"):
        with run.stage(Key(name, SelectFacts), 1, {}).making() as outcome:
            outcome.facts = NOTHING
    assert [record["stage"] for record in run.records()] == ["bake", "slice"]


def test_a_missing_record_says_which_run_and_what_to_do(run: RunFolder) -> None:
    with pytest.raises(ValueError, match=r"run has no finished stage 'early': run `latebloom select` first"):
        run.record(EARLY)


def test_a_damaged_record_is_named_when_it_is_read(run: RunFolder) -> None:
    finish(run, {})
    run.record_path(BAKE).write_text("{")
    with pytest.raises(ValueError, match=r"bake\.json is not valid JSON .*delete it"):
        run.record(BAKE)
    run.record_path(BAKE).write_text("{}")
    with pytest.raises(ValueError, match=r"bake\.json is no record .* \(stage: Field required\); delete it"):
        run.record(BAKE)


def test_measured_gives_wall_clock_seconds() -> None:
    with measured() as cost:
        time.sleep(0.05)
    assert 0.05 <= cost.seconds < 5


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can forget an older, higher peak")
def test_measured_gives_the_peak_of_memory_of_the_block_alone() -> None:
    with measured() as small:
        pass
    with measured() as large:
        block = bytearray(200 << 20)
        block[::4096] = b"x" * len(block[::4096])  # touch every page
        del block
    assert large.peak_memory_mb > small.peak_memory_mb + 150
    with measured() as after:
        pass
    assert after.peak_memory_mb < large.peak_memory_mb - 150


def test_paths_in_a_record_are_relative_so_that_a_run_folder_can_move(run: RunFolder) -> None:
    finish(run, {})
    moved = run.path.rename(run.path.parent / "elsewhere")
    assert RunFolder(moved).stage(BAKE, 1, {}).done()
    assert list(read_json(moved / "stages" / "bake.json")["outputs"]) == ["bread.txt"]
