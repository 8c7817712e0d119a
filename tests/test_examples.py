"""The examples run as a person runs them, from a folder of their own."""

import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(script: str, *words: str) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *words])
        runpy.run_path(str(EXAMPLES / script), run_name="__main__")


def test_every_example_is_run_here() -> None:
    assert {file.name for file in EXAMPLES.glob("*.py")} == {"own_logits.py", "variants.py"}


def test_logits_of_ones_own_model_give_slow_images(capsys: pytest.CaptureFixture[str]) -> None:
    run("own_logits.py")
    lines = capsys.readouterr().out.splitlines()
    slow, total = (int(lines[1].split()[place]) for place in (0, 2))
    assert total == 1797
    assert 0 < slow < total
    assert sum(int(line.split(": ")[1].split()[0]) for line in lines[2:]) == slow


def test_slow_images_get_variants(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("variants.py", "mine")
    assert len(capsys.readouterr().out.splitlines()) == 6
    for index in (3, 17, 42):
        for level in (8, 14):
            with Image.open(folder / "mine" / f"{index}-level-{level}-of-20.png") as image:
                assert image.size == (8, 8)
