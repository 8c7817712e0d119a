import json
import re

import pytest

from latebloom.data.store import read_json, write_json
from latebloom.flows.report.lineage import diagram, short
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.records import SELECT, retrain_key


def boxes(source: str) -> dict[str, list[str]]:
    """The lines of each box of a diagram, by its first line."""
    found = [words.split("<br/>") for words in re.findall(r'n\d+\["(.*)"\]', source)]
    return {lines[0]: lines[1:] for lines in found}


def arrows(source: str) -> set[tuple[str, str]]:
    """The arrows of a diagram, by the first lines of their boxes."""
    first = dict(re.findall(r'(n\d+)\["(.*?)(?:<br/>.*)?"\]', source))
    return {(first[start], first[end]) for start, end in re.findall(r"(n\d+) --> (n\d+)", source)}


def test_every_node_has_the_digest_of_what_it_stands_for(finished: RunFolder) -> None:
    manifest = read_json(finished.path / "synthetic" / "manifest.json")
    original, ours = (finished.record(retrain_key(arm, "sgd")).digest for arm in ("original", "ours-3"))
    found = boxes(diagram(finished))
    assert set(found) == {"digits", "slow examples", "synthetic set", "generator tiny", "original", "ours-3"}
    assert found["digits"] == [manifest["about"]["data"][:12]]
    assert found["slow examples"][-1] == short(finished.record(SELECT).digest)
    assert found["generator tiny"] == [manifest["about"]["generator_digest"][:12]]
    rows, ok = manifest["rows"], manifest["states"]["ok"]
    assert found["synthetic set"] == [f"{rows} images", f"{ok} ok", manifest["digest"][:12]]
    assert (found["original"][-1], found["ours-3"][-1]) == (original[:12], ours[:12])


def test_arrows_go_from_what_was_used_to_what_was_made_of_it(finished: RunFolder) -> None:
    assert arrows(diagram(finished)) == {
        ("digits", "slow examples"),
        ("slow examples", "synthetic set"),
        ("generator tiny", "synthetic set"),
        ("digits", "original"),
        ("digits", "ours-3"),
        ("synthetic set", "ours-3"),
    }


def test_classifiers_have_their_error_with_each_optimizer(finished: RunFolder) -> None:
    file = finished.path / "stages" / "retrain-original-sgd.json"
    record = read_json(file)
    record["facts"]["errors"] = [0.1, 0.2]
    write_json(file, record)
    # The mean of 10 % and 20 %; their standard deviation is 10 / sqrt(2).
    assert boxes(diagram(finished))["original"][0] == "sgd 15.00 ± 7.07 %"


def test_without_a_finished_synthetic_set_its_classifiers_come_from_an_earlier_one(finished: RunFolder) -> None:
    digest = read_json(finished.path / "synthetic" / "manifest.json")["digest"]
    (finished.path / "synthetic" / "manifest.json").unlink()
    source = diagram(finished)
    assert boxes(source)["earlier synthetic set"] == [digest[:12]]
    assert ("earlier synthetic set", "ours-3") in arrows(source)
    assert "synthetic set" not in boxes(source)


def test_a_classifier_of_another_synthetic_set_than_the_one_there_is_not_said_to_come_from_it(
    finished: RunFolder,
) -> None:
    file = finished.path / "synthetic" / "manifest.json"
    write_json(file, {**read_json(file), "digest": "f" * 64})
    source = diagram(finished)
    assert boxes(source)["synthetic set"][-1] == "f" * 12
    assert ("synthetic set", "ours-3") not in arrows(source)
    assert ("earlier synthetic set", "ours-3") in arrows(source)


def test_a_run_that_has_just_begun_has_its_data_alone(finished: RunFolder) -> None:
    for name in ("stages", "early", "retrained", "synthetic"):
        (finished.path / name).rename(finished.path / f"no-{name}")
    assert diagram(finished) == 'flowchart LR\n  n0["digits"]'


def test_names_cannot_break_the_diagram(finished: RunFolder) -> None:
    file = finished.path / "config.json"
    config = json.loads(file.read_text())
    config["data"]["source"] = 'a"] --> <b>&`#'
    write_json(file, config)
    first = diagram(finished).splitlines()[1]
    assert first.startswith('  n0["a#34;] --#62; #60;b#62;#38;#96;#35;<br/>')


def test_a_folder_that_is_no_run_has_no_lineage(tmp_path: object) -> None:
    with pytest.raises(ValueError, match="no run folder"):
        diagram(RunFolder(tmp_path))  # type: ignore[arg-type]
