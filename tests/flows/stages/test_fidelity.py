import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from latebloom.data.store import as_path
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder, read_config
from latebloom.flows.stages import fidelity
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.loaders import images_of
from latebloom.synth.scoring.fidelity import FeatureSet, compare, frechet_distance
from latebloom.train.evaluate import features_of

Tiny = Callable[..., CompareConfig]


def test_rows_are_references_levels_and_all_against_the_training_images(
    pristine: RunFolder, finished: RunFolder
) -> None:
    config = read_config(finished.path)
    train = images_of(config).train
    folder = SyntheticFolder(finished.path / "synthetic")
    rows = folder.rows()
    content = fidelity.measure(finished.path)
    assert json.loads((finished.path / "synthetic-fidelity.json").read_text()) == content
    assert content["dataset"] == folder.manifest()["digest"]
    assert [row["images"] for row in content["rows"]] == ["references", "3 of 10", "5 of 10", "all levels"]
    assert {row["features"] for row in content["rows"]} == {"reference classifier"}
    assert {row["n_real"] for row in content["rows"]} == {60}
    steps = rows["level_steps"].to_numpy()
    references = len(set(rows["source_index"].to_pylist()))
    counts = [references, int((steps == 3).sum()), int((steps == 5).sum()), len(steps)]
    assert [row["n_synthetic"] for row in content["rows"]] == counts
    # One level by hand.
    reference = RunContext(finished, config).reference[0]
    at_5 = folder.images(rows.filter(steps == 5), train)
    real, made = (FeatureSet(features_of(reference, data)[1]) for data in (train, at_5))
    expected = vars(compare(real, made, config.seed))
    assert {name: content["rows"][2][name] for name in expected} == expected
    per_class = content["per_class"]
    assert [per_class[name]["real"] for name in train.class_names] == train.class_counts().tolist()
    labels = np.bincount(rows["label"].to_numpy(), minlength=10)
    assert [per_class[name]["synthetic"] for name in train.class_names] == labels.tolist()
    assert not (pristine.path / "synthetic-fidelity.json").exists()


def test_the_report_has_the_frechet_distance_of_each_level_measured_once(
    finished: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = read_config(finished.path)
    run = RunContext(finished, config)
    train, table = run.splits.train, run.synthetic.rows()
    facts = fidelity.frechet_by_level(run, table)
    # As many of each level: all of them here, since each reference has one usable image at each level.
    steps = table["level_steps"].to_numpy()
    assert facts.images == (steps == 3).sum() == (steps == 5).sum()
    real = FeatureSet(features_of(run.reference[0], train)[1])
    for level, step in (("3 of 10", 3), ("5 of 10", 5)):
        made = FeatureSet(features_of(run.reference[0], run.synthetic.images(table.filter(steps == step), train))[1])
        assert facts.levels[level] == frechet_distance(real, made)
    monkeypatch.setattr(fidelity, "features_of", None)  # what is measured is not measured again
    assert fidelity.frechet_by_level(RunContext(finished, config), table) == facts


def test_only_usable_images_count(finished: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    kept = SyntheticFolder(finished.path / "synthetic").rows()
    states = ["ok"] * 5 + ["flat"] * (kept.num_rows - 5)
    changed = kept.set_column(kept.schema.get_field_index("state"), "state", [states])
    monkeypatch.setattr(SyntheticFolder, "rows", lambda _: changed)
    assert fidelity.measure(finished.path)["rows"][-1]["n_synthetic"] == 5


def test_large_sets_are_drawn_from_by_the_seed(finished: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fidelity, "LIMIT", 8)
    first = fidelity.measure(finished.path)
    assert {(row["n_real"], row["n_synthetic"]) for row in first["rows"]} == {(8, 8)}
    assert fidelity.measure(finished.path) == first


def test_inception_stands_beside_the_reference_classifier(finished: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(weights: Path, device: Any) -> Callable[..., np.ndarray]:
        assert weights == Path("weights.pth")
        return lambda data: data.pixels().reshape(len(data), -1)

    monkeypatch.setattr(fidelity.InceptionFeatures, "load", load)
    rows = fidelity.measure(finished.path, Path("weights.pth"))["rows"]
    assert [row["features"] for row in rows] == ["reference classifier"] * 4 + ["inception"] * 4
    assert [row["n_synthetic"] for row in rows[:4]] == [row["n_synthetic"] for row in rows[4:]]
    assert rows[0]["frechet"] != rows[4]["frechet"]


def test_the_table_and_its_notes(finished: RunFolder, run_command: Any) -> None:
    out = run_command("fidelity", finished.path).out
    for words in ("references", "3 of 10", "5 of 10", "all levels", "KID x 1000"):
        assert words in out
    assert "! reference classifier, references: " in out
    assert out.endswith("synthetic-fidelity.json\n")
    shown = run_command("fidelity", finished.path, "--json").out
    assert json.loads(shown) == json.loads((finished.path / "synthetic-fidelity.json").read_text())


def test_the_command_hands_over_paths_and_urls(run_command: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[Any, ...]] = []
    monkeypatch.setattr(fidelity, "measure", lambda *given: asked.append(given) or {})
    run_command("fidelity", "runs/a", "--json")
    run_command("fidelity", "s3://b/run", "--inception-weights", "s3://b/weights.pth", "--json")
    assert asked == [(Path("runs/a"), None), (as_path("s3://b/run"), as_path("s3://b/weights.pth"))]


def test_bad_input_is_named(finished: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is no run folder"):
        fidelity.measure(tmp_path / "nothing")
    (finished.path / "synthetic" / "manifest.json").unlink()
    with pytest.raises(ValueError, match=r"has no manifest\.json"):
        fidelity.measure(finished.path)
