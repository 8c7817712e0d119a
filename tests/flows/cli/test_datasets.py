import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from latebloom.data.images import LabeledImages, decode, encode_png
from latebloom.data.sources.load import load
from latebloom.data.states import STATES, THRESHOLDS
from latebloom.data.store import write_json
from latebloom.data.synthetic.export import EXPORT_FORMATS
from latebloom.data.synthetic.folder import SYNTHETIC_SCHEMA, SyntheticFolder
from latebloom.flows.report import inspect
from latebloom.flows.report.inspect import sheet
from latebloom.flows.run.folder import RunFolder, read_config
from latebloom.synth.config import QualityConfig

RunCommand = Callable[..., Any]


@pytest.fixture
def half(pristine: RunFolder) -> float:
    """A label probability that some images of the tiny run have and some have not."""
    return float(np.median(SyntheticFolder(pristine.path / "synthetic").rows()["label_probability"].to_numpy()))


# export


@pytest.mark.parametrize("kind", EXPORT_FORMATS)
def test_a_run_is_exported_with_its_real_images(
    run_command: RunCommand, pristine: RunFolder, tmp_path: Path, kind: str
) -> None:
    outcome = run_command("export", pristine.path, tmp_path / "out", "--format", kind, "--with-real", "--json")
    assert outcome.code == 0, outcome.err
    made = SyntheticFolder(pristine.path / "synthetic").manifest()["rows"]
    assert json.loads(outcome.out) == {"path": str(tmp_path / "out"), "images": {"train": 60 + made, "test": 50}}
    assert f"export  {60 + made + 50}/{60 + made + 50} images  100%" in outcome.err
    assert (tmp_path / "out/README.md").read_text().count("Variants of digits") == 1


def test_what_is_handed_on_names_no_path_of_this_machine(
    run_command: RunCommand, finished: RunFolder, story: Any, tmp_path: Path
) -> None:
    config = read_config(finished.path).model_dump(mode="json")  # its generator has a path
    write_json(finished.path / "config.json", config | {"data": config["data"] | {"source": f"{tmp_path}/pictures"}})
    assert run_command("export", finished.path, tmp_path / "out").code == 0
    files = story.contents(tmp_path / "out")
    assert "# Variants of pictures\n" in files["README.md"].decode()
    manifest = (finished.path / "synthetic/manifest.json").read_bytes()
    assert not any(str(tmp_path.parent).encode() in content for content in (*files.values(), manifest))


def test_a_synthetic_folder_is_exported_without_its_run(
    run_command: RunCommand, pristine: RunFolder, tmp_path: Path
) -> None:
    outcome = run_command("export", pristine.path / "synthetic", tmp_path / "out")
    assert (outcome.code, outcome.out) == (0, f"{tmp_path / 'out'}\n")
    files = list((tmp_path / "out/train").rglob("*.png"))
    assert len(files) == SyntheticFolder(pristine.path / "synthetic").manifest()["rows"]


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (["RUN", "OUT", "--format", "zip"], 2, "--format is one of imagefolder, webdataset, npz, got 'zip'"),
        (["RUN", "OUT", "--states", "okay"], 1, "error: no state is called 'okay'; states: "),
        (["RUN", "OUT", "--states", "nan"], 1, "has no image that is nan; it has ok "),
        (["RUN", "RUN"], 1, "is not empty; export to a new folder"),
        (["RUN/synthetic", "OUT", "--with-real"], 1, "has no config.json, which says what the real images are"),
        (["RUN/early", "OUT"], 1, "has no manifest.json: not a synthetic data set"),
    ],
)
def test_what_cannot_be_exported_is_said_in_a_line(
    run_command: RunCommand, pristine: RunFolder, tmp_path: Path, words: list[str], code: int, message: str
) -> None:
    words = [word.replace("RUN", str(pristine.path)).replace("OUT", str(tmp_path / "out")) for word in words]
    outcome = run_command("export", *words)
    assert outcome.code == code
    assert message in outcome.err
    assert code == 2 or outcome.err.count("\n") == 1
    assert not (tmp_path / "out").exists()


# inspect: counts


def test_inspect_counts_by_state_level_and_class(run_command: RunCommand, pristine: RunFolder) -> None:
    rows = SyntheticFolder(pristine.path / "synthetic").rows()
    told = json.loads(run_command("inspect", pristine.path, "--json").out)
    assert told["images"] == rows.num_rows
    assert told["states"] == {"ok": rows.num_rows}
    assert told["levels"] == {level: {"ok": rows.num_rows // 2} for level in ("3 of 10", "5 of 10")}
    assert sum(states.get("ok", 0) for states in told["classes"].values()) == rows.num_rows
    assert told["scores"]["contrast"]["50%"] == pytest.approx(np.median(rows["contrast"].to_numpy()))

    text = run_command("inspect", pristine.path).out
    assert f"{rows.num_rows} images" in text
    assert "may be trained on" in text
    assert "reference_distance" in text
    assert run_command("inspect", pristine.path / "synthetic").out == text


def test_inspect_writes_nothing_for_counts(run_command: RunCommand, finished: RunFolder, story: Any) -> None:
    before = story.contents(finished.path)
    run_command("inspect", finished.path)
    assert story.contents(finished.path) == before


# inspect: sheets


def picture(value: int) -> np.ndarray:
    return np.full((8, 8, 3), value, np.uint8)


@pytest.fixture
def colours(tmp_path: Path) -> SyntheticFolder:
    """Two variants of each of three references: values 10, 20 of the first, 30, 40, 50, 60; the last is off label."""
    digests = references([200, 201, 202]).sha256
    known = {
        "source_sha256": [digests[i // 2] for i in range(6)],
        "image": [{"bytes": encode_png(picture(10 * i + 10)), "path": "x.png"} for i in range(6)],
        "label": [0, 0, 1, 1, 0, 0],
        "item_id": [f"item-{i}" for i in range(6)],
        "source_index": [0, 0, 1, 1, 2, 2],
        "level_steps": [5, 10] * 3,
        "level_grid": [20] * 6,
        "label_probability": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6],
        "state": ["ok"] * 5 + ["off_label"],
    }
    standing: dict[Any, Any] = {pa.float64(): 0.5, pa.int64(): 3, pa.string(): "x", pa.bool_(): True}
    columns = {f.name: known.get(f.name, [standing.get(f.type, b"")] * 6) for f in SYNTHETIC_SCHEMA}
    folder = SyntheticFolder(tmp_path / "colours")
    record = folder.write_part(0, pa.table(columns, schema=SYNTHETIC_SCHEMA), ("cat", "dog"), "key")
    folder.write_manifest({}, ("cat", "dog"), [record])
    return folder


def values(picture: Image.Image, at: int) -> list[list[int]]:
    """What value each cell has: by row of the sheet, by column; -1 where there is no image. `at`: where cells begin."""
    pixels = np.asarray(picture)
    cells = pixels[32 + 56 :: 112 + 39, at + 56 :: 112 + 8]  # the middle of each
    return [[-1 if cell[0] == 255 else int(cell[0]) for cell in row] for row in cells]


def references(values: list[int]) -> LabeledImages:
    images = np.stack([picture(value) for value in values])
    return LabeledImages(images, np.array([0, 1, 0]), ("cat", "dog"), "colours")


def left(picture: Image.Image, value: int = 200) -> int:
    """Where the first cell of the first row begins: the reference, of that value."""
    return int(np.flatnonzero((np.asarray(picture)[88] == value).all(-1))[0])


def test_a_sheet_by_state_has_a_reference_beside_a_variant_of_each_state(colours: SyntheticFolder) -> None:
    picture = sheet(colours, references([200, 201, 202]), "state", 3, 0)
    assert values(picture, left(picture)) == [[200, 10, -1], [201, 30, -1], [202, 50, 60]]  # reference, ok, off label


def test_a_sheet_with_few_rows_shows_the_rare_state(colours: SyntheticFolder) -> None:
    picture = sheet(colours, references([200, 201, 202]), "state", 1, 0)
    assert values(picture, left(picture, 202)) == [[202, 50, 60]]


def test_a_variant_stays_with_its_picture_where_rows_have_moved(colours: SyntheticFolder) -> None:
    picture = sheet(colours, references([202, 99, 200]), "state", 3, 0)  # 201 is gone
    assert values(picture, left(picture, 202)) == [[202, 50, 60], [200, 10, -1]]
    with pytest.raises(ValueError, match=r"none of the images that .* were made from is in the data any more"):
        sheet(colours, references([97, 98, 99]), "state", 3, 0)


def test_a_sheet_by_score_has_fifths_of_its_values(colours: SyntheticFolder) -> None:
    picture = sheet(colours, references([200, 201, 202]), "label_probability", 3, 0)
    # Fifths of 0.1 to 0.6 end at 0.2, 0.3, 0.4 and 0.5.
    expected = [[200, 10, 20, -1, -1, -1], [201, -1, -1, 30, 40, -1], [202, -1, -1, -1, -1, 50]]
    assert values(picture, left(picture)) == expected


def test_a_sheet_is_the_same_each_time_and_draws_by_its_seed(run_command: RunCommand, finished: RunFolder) -> None:
    first, second = (run_command("inspect", finished.path, "--sheet", "level", "--rows", 3) for _ in range(2))
    assert first == second
    assert first.out == f"{finished.path / 'inspect/sheet-level.png'}\n"
    folder, train = SyntheticFolder(finished.path / "synthetic"), load(read_config(finished.path).data).train
    drawn = {sheet(folder, train, "level", 3, seed).tobytes() for seed in (0, 0, 1)}
    assert len(drawn) == 2


@pytest.mark.parametrize(
    ("by", "message"),
    [
        ("okay", "a sheet is by level, state or a score, got 'okay'; scores: "),
        ("seed", "a sheet is by level, state or a score, got 'seed'"),
        ("clip_score", "clip_score is not measured: no sheet by it"),
    ],
)
def test_a_sheet_by_nothing_is_refused(run_command: RunCommand, pristine: RunFolder, by: str, message: str) -> None:
    outcome = run_command("inspect", pristine.path, "--sheet", by)
    assert outcome.code == 1
    assert message in outcome.err


def test_a_score_with_one_value_gives_no_sheet(colours: SyntheticFolder) -> None:
    with pytest.raises(ValueError, match=r"contrast is 0\.5 in all images: no sheet by it"):
        sheet(colours, references([200, 201, 202]), "contrast", 3, 0)


# inspect: one image


def test_the_story_of_an_image(run_command: RunCommand, finished: RunFolder) -> None:
    rows = SyntheticFolder(finished.path / "synthetic").rows()
    last = rows.slice(rows.num_rows - 1).to_pylist()[0]
    told = json.loads(run_command("inspect", finished.path, last["item_id"], "--json").out)

    parts = SyntheticFolder(finished.path / "synthetic").manifest()["parts"]
    assert told["image"]["part"] == parts[-1]["file"]
    assert told["image"]["state"] == "ok"
    assert told["image"]["why"] == "may be trained on"
    assert told["level"]["level"] == "5 of 10"
    assert told["level"]["log_snr"] == last["log_snr"]
    assert told["made"]["seed"] == last["seed"]
    assert told["made"]["generator_digest"] == last["generator_digest"]
    assert told["scores"]["contrast"] == last["contrast"]
    source = last["source_index"]
    reference = told["reference"]
    assert reference["source_sha256"] == load(read_config(finished.path).data).train.sha256[source]
    outputs = [np.load(finished.path / f"early/seed-{n}/outputs.npz") for n in (0, 1)]
    chosen = [np.load(finished.path / f"selection/cluster/seed-{n}.npz") for n in (0, 1)]
    assert reference["early_loss"] == pytest.approx(np.mean([arrays["losses"][source] for arrays in outputs]))
    slow = sum(source in arrays["indices"] for arrays in chosen)
    assert reference["in_slow_cluster"] == f"{slow} of 2 seeds"
    assert slow >= 1
    for arrays in (*outputs, *chosen):
        arrays.close()
    shown = {name for section in told.values() if isinstance(section, dict) for name in section}
    assert shown >= set(SYNTHETIC_SCHEMA.names) - {"image", "fingerprint", "level_steps", "level_grid"}

    text = run_command("inspect", finished.path, last["item_id"]).out
    assert str(last["seed"]) in text
    assert text.splitlines()[-1] == told["picture"] == str(finished.path / f"inspect/{last['item_id']}.png")


def test_the_strip_shows_reference_variant_and_difference(run_command: RunCommand, finished: RunFolder) -> None:
    rows = SyntheticFolder(finished.path / "synthetic").rows()
    item = rows["item_id"][0].as_py()
    file = json.loads(run_command("inspect", finished.path, item, "--json").out)["picture"]
    strip = np.asarray(Image.open(file))[:, :, 0]
    variant = decode(rows["image"][0].as_py()["bytes"], item)[:, :, 0]
    reference = load(read_config(finished.path).data).train.pixels(np.array([rows["source_index"][0].as_py()]))[
        0, :, :, 0
    ]
    begin = strip.shape[1] - 3 * (256 + 8)
    # 8 pixels of 32 x 32 each, from below the headings; their middles.
    shown = [strip[32 + 16 : 32 + 256 : 32, begin + n * 264 + 16 : begin + n * 264 + 256 : 32] for n in range(3)]
    assert (shown[0] == reference).all()
    assert (shown[1] == variant).all()
    assert (shown[2] == 128 + (variant.astype(int) - reference) // 2).all()


def test_an_unknown_image_is_refused_with_those_of_like_names(run_command: RunCommand, pristine: RunFolder) -> None:
    item = SyntheticFolder(pristine.path / "synthetic").rows()["item_id"][0].as_py()
    outcome = run_command("inspect", pristine.path, item + "7")
    assert outcome.code == 1
    assert f"no image is called '{item}7'; did you mean {item}" in outcome.err
    assert "the first of 152 names is 0" in run_command("inspect", pristine.path, "???").err


# inspect: a training image


def test_a_reference_is_found_by_its_name_with_all_its_variants(run_command: RunCommand, finished: RunFolder) -> None:
    rows = SyntheticFolder(finished.path / "synthetic").rows()
    source, name = rows["source_index"][0].as_py(), rows["source_name"][0].as_py()
    found = json.loads(run_command("inspect", finished.path, name, "--json").out)
    train = load(read_config(finished.path).data).train
    assert (found["image"]["name"], found["image"]["row"]) == (name, source) == (train.names[source], source)
    assert found["image"]["sha256"] == train.sha256[source]
    own = [row for row in rows.to_pylist() if row["source_index"] == source]
    assert list(found["variants"]) == [f"{source:07d}-3of10-v0", f"{source:07d}-5of10-v0"]
    for row in own:
        shown = found["variants"][row["item_id"]]
        assert (shown["level"], shown["state"]) == (f"{row['level_steps']} of 10", row["state"])
        assert shown["scores"]["label_probability"] == row["label_probability"]
    listed = next(line for line in (finished.path / "slow.csv").read_text().splitlines() if line.startswith(f"{name},"))
    assert f"{found['early']['early_loss']:.6g}" == listed.split(",")[3]
    assert f"{found['early']['early_probability']:.6g}" == listed.split(",")[4]
    assert found["early"]["early_class"] == listed.split(",")[5]
    assert found["picture"] == str(finished.path / f"inspect/reference-{source:07d}.png")

    text = run_command("inspect", finished.path, name).out
    assert f"{source:07d}-5of10-v0 5 of 10, ok: may be trained on" in " ".join(text.split())


def test_a_reference_is_shown_before_anything_is_generated(run_command: RunCommand, finished: RunFolder) -> None:
    shutil.rmtree(finished.path / "synthetic")
    name = load(read_config(finished.path).data).train.names[7]
    found = json.loads(run_command("inspect", finished.path, name, "--json").out)
    assert (found["image"]["row"], found["variants"]) == (7, {})
    assert Path(found["picture"]).is_file()


def test_a_synthetic_folder_alone_has_no_references(run_command: RunCommand, pristine: RunFolder) -> None:
    outcome = run_command("inspect", pristine.path / "synthetic", "--sheet", "state")
    assert outcome.code == 1
    assert "has no config.json, which says what the references are" in outcome.err
    assert run_command("inspect", pristine.path, "item", "--sheet", "state").code == 2


def test_every_threshold_is_known_with_its_score_and_state() -> None:
    assert set(THRESHOLDS) == set(QualityConfig.model_fields)
    assert {threshold.score for threshold, _ in THRESHOLDS.values()} <= set(SYNTHETIC_SCHEMA.names)
    assert {state for _, state in THRESHOLDS.values()} <= set(STATES)


@pytest.mark.parametrize(
    ("scores", "state", "why"),
    [
        ({}, "ok", "may be trained on"),
        ({}, "nan", "the generator's output was not finite"),
        ({"contrast": 1.5}, "flat", "contrast is 1.5, below min_contrast = 2"),
        ({"contrast": math.nan}, "flat", "contrast is not finite, below min_contrast = 2"),
        ({"clip_score": 0.1, "label_probability": 0.5}, "off_label", "clip_score is 0.1, below min_clip_score = 0.2"),
        ({"unsafe": 1.0}, "unsafe", "unsafe is 1, and drop_unsafe is on"),
        (
            {"label_probability": 0.04},
            "off_label",
            "label_probability is 0.04, below min_label_ratio times reference_label_probability = 0.05",
        ),
        (
            {"distance_ratio": 5.0},
            "far_from_reference",
            "distance_ratio is 5, above max_distance_ratio = 4.5",
        ),
    ],
)
def test_why_names_the_threshold_that_decided(scores: dict[str, float], state: str, why: str) -> None:
    passing = {threshold.score: 1000.0 for threshold, _ in THRESHOLDS.values()}
    passing |= {"unsafe": 0.0, "distance_ratio": 1.0, "reference_label_probability": 0.5}
    quality = QualityConfig(min_clip_score=0.2, drop_unsafe=True).model_dump()
    said = inspect._why(state, inspect._limits(passing | scores, quality))
    assert said == why or said.endswith(f": {why}")


# filter


def test_filter_moves_states_and_says_what_is_out_of_date(
    run_command: RunCommand, finished: RunFolder, half: float
) -> None:
    folder = SyntheticFolder(finished.path / "synthetic")
    before, digest = folder.rows(), folder.manifest()["digest"]
    lower = int((before["label_probability"].to_numpy() < half).sum())
    assert 0 < lower < before.num_rows

    outcome = run_command("filter", finished.path, "--set", f"quality.min_label_probability={half}", "--json")
    moved = json.loads(outcome.out)
    assert {state: count for state, count in moved["before"].items() if count} == {"ok": before.num_rows}
    assert {state: count for state, count in moved["after"].items() if count} == {
        "ok": before.num_rows - lower,
        "off_label": lower,
    }
    assert moved["out_of_date"] == ["ours-3 with sgd"]
    after = folder.rows()
    same = ["image", "item_id", "seed", "contrast", "label_probability", "reference_distance"]
    assert after.select(same) == before.select(same)
    assert read_config(finished.path).quality.min_label_probability == half

    item = after["item_id"][after["state"].to_pylist().index("off_label")].as_py()
    why = json.loads(run_command("inspect", finished.path, item, "--json").out)["image"]["why"]
    assert f"below min_label_probability = {half:g}" in why

    again = run_command("filter", finished.path, "--set", "quality.min_label_probability=0")
    assert [line.split() for line in again.out.splitlines()[:3]] == [
        ["state", "before", "after"],
        ["off_label", str(lower), "0"],
        ["ok", str(before.num_rows - lower), str(before.num_rows)],
    ]
    assert folder.manifest()["digest"] == digest


def test_thresholds_that_move_nothing_leave_nothing_out_of_date(run_command: RunCommand, finished: RunFolder) -> None:
    moved = json.loads(run_command("filter", finished.path, "--set", "quality.min_distance=0", "--json").out)
    assert moved["before"] == moved["after"]
    assert moved["out_of_date"] == []


def test_other_thresholds_that_move_no_image_leave_nothing_out_of_date(
    run_command: RunCommand, finished: RunFolder
) -> None:
    digest = SyntheticFolder(finished.path / "synthetic").manifest()["digest"]
    outcome = run_command("filter", finished.path, "--set", "quality.min_contrast=0.001", "--json")
    assert json.loads(outcome.out)["out_of_date"] == []
    assert SyntheticFolder(finished.path / "synthetic").manifest()["digest"] != digest  # it says which thresholds


def test_a_run_folder_that_another_command_is_at_work_in_is_not_filtered(
    run_command: RunCommand, finished: RunFolder, story: Any
) -> None:
    before = story.contents(finished.path)
    with finished.locked():
        outcome = run_command("filter", finished.path, "--set", "quality.min_distance=200")
    assert outcome.code == 1
    assert f"is at work in {finished.path}" in outcome.err
    assert story.contents(finished.path) == before


@pytest.mark.parametrize(
    "words", [["inspect", "DIR"], ["export", "DIR", "OUT"], ["filter", "DIR", "-s", "quality.min_distance=1"]]
)
def test_a_folder_that_is_not_there_is_said_not_to_be(
    run_command: RunCommand, tmp_path: Path, words: list[str]
) -> None:
    folder = str(tmp_path / "nowhere")
    outcome = run_command(*[word.replace("DIR", folder).replace("OUT", str(tmp_path / "out")) for word in words])
    assert (outcome.code, outcome.err) == (1, f"error: there is no folder {folder}\n")


@pytest.mark.parametrize(
    ("setting", "code", "message"),
    [
        ("quality.min_distanc=2", 2, "no setting 'quality.min_distanc'; near to it: quality.min_distance, "),
        ("quality.min_distance=256", 2, "error: quality.min_distance is 256; expected at most 255"),
        ("quality.min_clip_score=0.2", 1, "min_clip_score is 0.2, but"),
        ("train.lr=1", 2, "give thresholds to move, and nothing else"),
        ("quality=2", 2, "give thresholds to move, and nothing else"),
    ],
)
def test_a_threshold_that_cannot_be_moved_changes_nothing(
    run_command: RunCommand, finished: RunFolder, story: Any, setting: str, code: int, message: str
) -> None:
    before = story.contents(finished.path)
    outcome = run_command("filter", finished.path, "--set", setting)
    assert outcome.code == code
    assert message in outcome.err
    assert story.contents(finished.path) == before


def test_a_set_that_is_not_finished_is_not_filtered(run_command: RunCommand, finished: RunFolder) -> None:
    assert run_command("filter", finished.path).code == 2
    (finished.path / "synthetic/manifest.json").unlink()
    outcome = run_command("filter", finished.path, "--set", "quality.min_distance=2")
    assert outcome.code == 1
    assert "has no manifest.json: not a synthetic data set, or one not finished yet" in outcome.err
