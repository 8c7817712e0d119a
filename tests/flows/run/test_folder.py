import time
from pathlib import Path
from typing import Any

import pytest

from latebloom.data.store import digest_json, read_json
from latebloom.flows.run.folder import RunFolder, measured


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder(tmp_path / "run")


def finish(run: RunFolder, inputs: dict[str, Any], text: str = "made") -> list[Path]:
    """Run a stage called `bake` that writes one file."""
    file = run.path / "bread.txt"
    with run.stage("bake", 1, inputs).making([file]):
        file.parent.mkdir(exist_ok=True)
        file.write_text(text)
    return [file]


def test_a_stage_is_done_when_its_block_has_ended(run: RunFolder) -> None:
    assert not run.stage("bake", 1, {"flour": 2}).is_done()
    finish(run, {"flour": 2})
    assert run.stage("bake", 1, {"flour": 2}).is_done()


@pytest.mark.parametrize(
    ("name", "version", "inputs"),
    [("bake", 2, {"flour": 2}), ("bake", 1, {"flour": 3}), ("bake", 1, {"flour": 2, "salt": 0}), ("cook", 1, {})],
    ids=["a new version of the code", "another value", "another input", "another stage"],
)
def test_a_stage_with_another_digest_is_not_done(
    run: RunFolder, name: str, version: int, inputs: dict[str, Any]
) -> None:
    finish(run, {"flour": 2})
    assert not run.stage(name, version, inputs).is_done()


def test_the_digest_covers_name_version_and_inputs_in_any_order(run: RunFolder) -> None:
    stage = run.stage("bake", 1, {"flour": 2, "water": 1})
    assert stage.digest == run.stage("bake", 1, {"water": 1, "flour": 2}).digest
    assert stage.digest == digest_json({"stage": "bake", "version": 1, "inputs": {"flour": 2, "water": 1}})


@pytest.mark.parametrize("damage", ["gone", "changed"])
def test_a_stage_whose_output_is_gone_or_changed_is_not_done(run: RunFolder, damage: str) -> None:
    (file,) = finish(run, {})
    file.unlink() if damage == "gone" else file.write_text("mould")
    assert not run.stage("bake", 1, {}).is_done()


@pytest.mark.parametrize("text", ["", "{", "\x00"], ids=["empty", "half", "binary"])
def test_a_damaged_record_is_no_record(run: RunFolder, text: str) -> None:
    finish(run, {})
    run.stage("bake", 1, {}).record_path.write_text(text)
    assert not run.stage("bake", 1, {}).is_done()


def test_a_stage_that_fails_leaves_no_record_and_loses_its_old_one(run: RunFolder) -> None:
    finish(run, {})
    with pytest.raises(ZeroDivisionError), run.stage("bake", 1, {}).making([run.path / "bread.txt"]):
        _ = 1 / 0
    assert not run.stage("bake", 1, {}).is_done()
    with pytest.raises(ValueError, match="no finished stage 'bake'"):
        run.record("bake")


def test_a_stage_that_did_not_write_what_it_promised_is_an_error(run: RunFolder) -> None:
    with (
        pytest.raises(FileNotFoundError, match=r"bread\.txt"),
        run.stage("bake", 1, {}).making([run.path / "bread.txt"]),
    ):
        pass
    assert not run.stage("bake", 1, {}).is_done()


def test_outputs_and_facts_may_be_filled_in_by_the_block(run: RunFolder) -> None:
    outputs: list[Path] = []
    facts: dict[str, Any] = {}
    with run.stage("bake", 1, {}).making(outputs, facts):
        run.path.mkdir()
        outputs.append(run.path / "bread.txt")
        outputs[0].write_text("made")
        facts["loaves"] = 3
    record = run.record("bake")
    assert record["facts"] == {"loaves": 3}
    # SHA-256 of "made", from coreutils' sha256sum.
    assert record["outputs"] == {"bread.txt": "ea0890697a77af0a2e054cccec587c8a42feb5cf38e778c6c6e2a96bfb945c0b"}


def test_a_stage_is_marked_as_skipped_from_the_second_time_on_and_keeps_what_it_cost(run: RunFolder) -> None:
    finish(run, {})
    first = run.record("bake")
    assert not first["skipped"]
    assert run.stage("bake", 1, {}).is_done()
    assert run.record("bake") == {**first, "skipped": True}
    before = run.stage("bake", 1, {}).record_path.stat()
    assert run.stage("bake", 1, {}).is_done()
    assert run.stage("bake", 1, {}).record_path.stat().st_ino == before.st_ino  # nothing new to say
    finish(run, {})
    assert not run.record("bake")["skipped"]


def test_a_stage_that_is_not_done_is_not_marked_as_skipped(run: RunFolder) -> None:
    (file,) = finish(run, {})
    file.write_text("mould")
    run.stage("bake", 1, {}).is_done()
    assert not run.record("bake")["skipped"]


def test_records_are_all_of_a_run_by_name(run: RunFolder) -> None:
    assert run.records() == []
    for name in ("slice", "bake"):
        with run.stage(name, 1, {}).making([]):
            pass
    assert [record["stage"] for record in run.records()] == ["bake", "slice"]


def test_a_missing_record_says_which_run_and_what_to_do(run: RunFolder) -> None:
    with pytest.raises(ValueError, match=r"run has no finished stage 'early': run `latebloom select` first"):
        run.record("early")


def test_a_damaged_record_is_named_when_it_is_read(run: RunFolder) -> None:
    finish(run, {})
    run.stage("bake", 1, {}).record_path.write_text("{")
    with pytest.raises(ValueError, match=r"bake\.json is not valid JSON .*delete it"):
        run.record("bake")


def test_measured_gives_wall_clock_seconds() -> None:
    with measured() as cost:
        time.sleep(0.05)
    assert 0.05 <= cost["seconds"] < 5


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="only Linux can forget an older, higher peak")
def test_measured_gives_the_peak_of_memory_of_the_block_alone() -> None:
    with measured() as small:
        pass
    with measured() as large:
        block = bytearray(200 << 20)
        block[::4096] = b"x" * len(block[::4096])  # touch every page
        del block
    assert large["peak_memory_mb"] > small["peak_memory_mb"] + 150
    with measured() as after:
        pass
    assert after["peak_memory_mb"] < large["peak_memory_mb"] - 150


def test_paths_in_a_record_are_relative_so_that_a_run_folder_can_move(run: RunFolder) -> None:
    finish(run, {})
    moved = run.path.rename(run.path.parent / "elsewhere")
    assert RunFolder(moved).stage("bake", 1, {}).is_done()
    assert list(read_json(moved / "stages" / "bake.json")["outputs"]) == ["bread.txt"]
