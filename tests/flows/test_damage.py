"""Pictures that become unreadable after they were checked, and generators that make nothing usable, by commands."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
import unserved
from digits import save_digits

from latebloom.data.images import encode_png
from latebloom.data.store import read_json
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run import progress
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.stages import loaders, synthesis, training
from latebloom.flows.stages.context import RunContext
from latebloom.synth.sampling.denoiser import Made
from latebloom.synth.sampling.loop import LoopGenerator

Tiny = Callable[..., CompareConfig]
Story = SimpleNamespace
RunCommand = Callable[..., Any]


@pytest.fixture
def command(run_command: RunCommand, monkeypatch: pytest.MonkeyPatch) -> RunCommand:
    """Runs `latebloom WORD...` in this process and without Prefect, as a new process would: nothing is remembered."""
    unserved.unserve(monkeypatch.setattr)

    def call(*words: str | Path) -> Any:
        loaders._images.cache_clear()
        progress.warn.cache_clear()
        return run_command(*words)

    return call


def picture(side: int = 8, shade: int = 0) -> bytes:
    return encode_png(np.arange(shade, shade + side * 8, dtype=np.uint8).reshape(side, 8, 1))


def as_folder(file: Path) -> None:
    file.unlink()
    file.mkdir()


# How a picture is damaged, and a word of what is said of it.
DAMAGE: dict[str, tuple[Callable[[Path], Any], str]] = {
    "deleted": (Path.unlink, "No such file"),
    "truncated": (lambda file: file.write_bytes(file.read_bytes()[:60]), "cannot be read as an image"),
    "emptied": (lambda file: file.write_bytes(b""), "the file is empty"),
    "text": (lambda file: file.write_bytes(b"no picture"), "of no known image format"),
    "a folder": (as_folder, "Is a directory"),
    "another size": (lambda file: file.write_bytes(picture(9)), "is 8x9 while the first image is 8x8"),
    "another picture": (lambda file: file.write_bytes(picture(shade=99)), "shows something else than when the plan"),
}


@pytest.fixture(scope="module")
def digits_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Class folders of digits, five a class to train on and two to test."""
    return save_digits(tmp_path_factory.mktemp("pictures") / "mine")


@pytest.fixture(scope="module")
def whole(digits_folder: Path, tiny: Tiny, story: Story, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run on that folder. Read only."""
    config = tiny({"data": {"source": str(digits_folder)}, "seeds": 1})
    run: RunFolder = story.all_stages(tmp_path_factory.mktemp("whole") / "run", config)
    return run


class Hospital:
    """The pictures of a run: `damage` does it, `heal` undoes it; both at the same paths."""

    def __init__(self, folder: Path, run: RunFolder, healthy: Path) -> None:
        self.folder, self.run, self.healthy = folder, run, healthy
        context = RunContext(run, CompareConfig(**read_json(run.path / "config.json")))
        sources = sorted(set(context.plan["source_name"].to_pylist()))
        self.wounds = dict(zip(sources, DAMAGE.values(), strict=False))
        assert len(self.wounds) == len(DAMAGE) < len(sources)

    def damage(self) -> None:
        for name, (change, _) in self.wounds.items():
            change(self.folder / name)

    def heal(self) -> None:
        shutil.rmtree(self.folder)
        shutil.copytree(self.healthy, self.folder)


@pytest.fixture
def hospital(digits_folder: Path, whole: RunFolder, tmp_path: Path) -> Any:
    shutil.copytree(whole.path, tmp_path / "run")
    shutil.copytree(digits_folder, tmp_path / "healthy")
    yield (made := Hospital(digits_folder, RunFolder(tmp_path / "run"), tmp_path / "healthy"))
    made.heal()


def names_in(line: str, names: Any) -> list[str]:
    return [name for name in names if name in line]


def test_a_picture_that_is_damaged_while_images_are_made_fails_its_own_and_no_other(
    hospital: Hospital, whole: RunFolder, command: RunCommand, story: Story, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, open_parts = hospital.run, synthesis.open_parts
    shutil.rmtree(run.path / "synthetic")
    (run.path / "stages/generate.json").unlink()
    with monkeypatch.context() as patch:
        # After the check of all pictures and before they are read for scores and as references.
        patch.setattr(synthesis, "open_parts", lambda *args: (open_parts(*args), hospital.damage())[0])
        outcome = command("generate", "--out", run.path)
    assert outcome.code == 3, outcome.err
    failures = read_json(run.path / "synthetic/failures.json")
    made = SyntheticFolder(whole.path / "synthetic").rows()
    lost = {
        item: name
        for item, name in zip(made["item_id"].to_pylist(), made["source_name"].to_pylist(), strict=True)
        if name in hospital.wounds
    }
    assert set(lost) <= set(failures)
    for item, name in lost.items():
        assert name in failures[item]
        assert hospital.wounds[name][1] in failures[item]
    # Nor can the scores of the others be final: those of the damaged ones that no longer decode are named, too.
    assert set(failures) - set(lost) == {name for name, (_, why) in hospital.wounds.items() if "shows" not in why}
    (summary,) = [line for line in outcome.err.splitlines() if line.startswith("partial: ")]
    assert f"{len(failures)} images or parts could not be made, listed in " in summary
    shown = [
        line for line in outcome.err.splitlines() if line.startswith(("generate: ", "partial: ")) and ".png" in line
    ]
    assert len(shown) == 10  # of seven reasons for references and six for scores
    parts = [json.loads(file.read_text()) for file in sorted((run.path / "synthetic/.parts").glob("*.json"))]
    assert sum(part["rows"] for part in parts) == made.num_rows - len(lost)
    hospital.heal()
    asked: list[int] = []
    make = LoopGenerator.make
    monkeypatch.setattr(LoopGenerator, "make", lambda *args: asked.append(len(args[2])) or make(*args))
    again = command("generate", "--out", run.path)
    assert again.code == 0, again.err
    assert sum(asked) == len(lost)
    assert story.data_set(run) == story.data_set(whole)
    assert not (run.path / "synthetic/failures.json").exists()


@pytest.mark.parametrize("stage", ["select", "generate", "retrain", "report", "export", "check"])
@pytest.mark.parametrize(
    "kinds", [("emptied", "text", "another size"), ("truncated", "truncated")], ids=["all", "pixels"]
)
def test_damaged_pictures_of_the_training_data_are_refused_in_one_line_with_all_their_names(
    kinds: tuple[str, ...], stage: str, hospital: Hospital, command: RunCommand, tmp_path: Path
) -> None:
    names = list(hospital.wounds)[: len(kinds)]
    for name, kind in zip(names, kinds, strict=True):
        DAMAGE[kind][0](hospital.folder / name)
    before = {file.name: file.read_bytes() for file in (hospital.run.path / "stages").iterdir()}
    if stage == "export":
        outcome = command("export", hospital.run.path, tmp_path / "exported", "--with-real")
    elif stage == "check":
        outcome = command("check", hospital.folder)
    else:
        outcome = command(stage, "--out", hospital.run.path)
    assert outcome.code == 1
    assert names_in(outcome.out if stage == "check" else outcome.err.splitlines()[-1], names) == names
    assert "Traceback" not in outcome.err
    assert {file.name: file.read_bytes() for file in (hospital.run.path / "stages").iterdir()} == before


def test_a_picture_that_is_damaged_while_a_classifier_is_trained_stops_it_in_one_line(
    hospital: Hospital, command: RunCommand, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    train_early = training.train_early
    monkeypatch.setattr(training, "train_early", lambda *args: (hospital.damage(), train_early(*args)))
    words = ("--model", "small-cnn", "--epochs", "3", "--separating-epoch", "1", "--device", "cpu")
    outcome = command("select", hospital.folder, "--out", tmp_path / "new", *words)
    assert outcome.code == 1
    wounds = [name for name, (_, why) in hospital.wounds.items() if "shows" not in why]
    last = outcome.err.splitlines()[-1]
    assert last.startswith("error: ")
    assert names_in(last, wounds) == wounds


# ------------------------------------------------------------------------------------------------- nothing usable


def spoiled(generator: Path, to: Path) -> Path:
    """A generator whose weights of classes are NaN."""
    shutil.copytree(generator, to)
    weights = to / "unet/diffusion_pytorch_model.safetensors"
    tensors = safetensors.torch.load_file(weights)
    tensors["class_embedding.weight"][:] = torch.nan
    safetensors.torch.save_file(tensors, weights, {"format": "pt"})
    return to


def test_a_generator_that_makes_only_nan_ends_with_3_each_time_and_another_makes_all(
    finished: RunFolder, pristine: RunFolder, generator: Path, command: RunCommand, story: Story, tmp_path: Path
) -> None:
    broken = spoiled(generator, tmp_path / "broken" / generator.name)
    for _ in range(2):  # it does not say "done before" the second time
        outcome = command("generate", "--out", finished.path, "--generator", broken)
        assert (outcome.code, outcome.out) == (3, "")
        assert outcome.err.splitlines()[-1] == (
            f"error: generator {broken} makes no image that can be used: of 16 references from all over the plan, each "
            "tried twice, 16 not finite (NaN); its network gives NaN in float32 too: its weights are damaged, so get "
            "them again or name another one"
        )
        assert "make the rest" not in outcome.err
    assert not (finished.path / "synthetic/manifest.json").exists()
    half = command("generate", "--out", finished.path, "--generator", broken, "--set", "generate.dtype=bfloat16")
    assert half.code == 3
    assert "warning: a trial image is not finite (NaN): it overflows in bfloat16: set generate.dtype to" in half.err
    assert half.err.splitlines()[-1].endswith("; it overflows in bfloat16: set generate.dtype to float32")
    assert (
        command("generate", "--out", finished.path, "--generator", generator, "--set", "generate.dtype=auto").code == 0
    )
    assert story.data_set(finished) == story.data_set(pristine)


def test_a_generator_that_raises_on_all_images_is_one_line_and_ends_with_3(
    finished: RunFolder, generator: Path, command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(finished.path / "synthetic")
    (finished.path / "stages/generate.json").unlink()

    def fail(*_: Any) -> Any:
        raise RuntimeError("mat1 and mat2 shapes\ncannot be multiplied " + 200 * "x")

    def line_of(method: str, tried: int, *words: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(LoopGenerator, method, fail)
            outcome = command(*words, "--out", finished.path)
        assert (outcome.code, outcome.out) == (3, "")
        line = outcome.err.splitlines()[-1]
        assert line.startswith("error: generator ")
        assert "at work size 8x8 it raises RuntimeError: mat1 and mat2 shapes cannot be multiplied xxx" in line
        file = finished.path / "synthetic/failures.json"
        assert line.endswith(
            f" (references tried: {tried}); set another size (--work-size), or name another generator; the traceback "
            f"is in {file}"
        )
        assert len(line) < 600 + len(str(file))
        assert "in fail" in read_json(file)["generator"]
        assert "Traceback" not in outcome.err

    line_of("make", 16, "generate")
    (finished.path / "stages/plan.json").unlink()
    line_of("seconds_per_call", 1, "plan")
    assert command("generate", "--out", finished.path).code == 0
    assert not (finished.path / "synthetic/failures.json").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda images: 0 * images + 7, "flat"),
        (lambda images: images, "near_reference"),
    ],
    ids=["flat", "unchanged"],
)
def test_a_data_set_that_cannot_be_trained_on_is_warned_of_and_refused(
    change: Any, words: str, finished: RunFolder, command: RunCommand, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.rmtree(finished.path / "synthetic")
    (finished.path / "stages/generate.json").unlink()

    def make(self: LoopGenerator, references: torch.Tensor, wanted: Any) -> Made:
        images = ((references + 1) * 127.5).round().to(torch.uint8).permute(0, 2, 3, 1).numpy()
        images = np.stack(
            [change(image) if label else image + 9 for image, label in zip(images, wanted.labels, strict=True)]
        )
        return Made(images, np.ones(len(images), bool))

    monkeypatch.setattr(LoopGenerator, "make", make)
    limits = ("quality.min_contrast=2", "quality.min_distance=1")
    outcome = command("generate", "--out", finished.path, *(word for limit in limits for word in ("--set", limit)))
    assert outcome.code == 0
    (line,) = [line for line in outcome.err.splitlines() if "images may be trained on" in line]
    assert line.startswith("warning: Only ")
    assert words in line
    assert ("plan.levels" if words == "near_reference" else "sample.guidance_scale") in line
    tables = SyntheticFolder(finished.path / "synthetic").manifest()["states"]
    assert 0 < tables["ok"] < tables[words]
