"""The examples run as a person runs them: in a process of their own, from a folder of their own."""

import os
import subprocess
import sys
from pathlib import Path

from PIL import Image

EXAMPLES = Path(__file__).parents[1] / "examples"


def run(script: str, folder: Path, *words: str) -> str:
    command = [sys.executable, "-P", str(EXAMPLES / script), *words]
    done = subprocess.run(command, cwd=folder, env=os.environ, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_every_example_is_run_here() -> None:
    assert {file.name for file in EXAMPLES.glob("*.py")} == {"own_logits.py", "variants.py"}


def test_logits_of_ones_own_model_give_slow_images(tmp_path: Path) -> None:
    lines = run("own_logits.py", tmp_path).splitlines()
    slow, total = (int(lines[1].split()[place]) for place in (0, 2))
    assert total == 1797
    assert 0 < slow < total
    assert sum(int(line.split(": ")[1].split()[0]) for line in lines[2:]) == slow


def test_slow_images_get_variants(tmp_path: Path) -> None:
    assert len(run("variants.py", tmp_path, "mine").splitlines()) == 6
    for index in (3, 17, 42):
        for level in (8, 14):
            with Image.open(tmp_path / "mine" / f"{index}-level-{level}-of-20.png") as image:
                assert image.size == (8, 8)
