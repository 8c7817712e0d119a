"""The examples run as a person runs them, from a folder of their own; long training is shortened."""

import json
import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from latebloom.data.synthetic.torch_dataset import SyntheticImages

EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def run(name: str, *words: str, shorter: tuple[str, str] = ("", "")) -> None:
    """Run an example with these words on its command line, one piece of its text replaced."""
    text = (EXAMPLES / name).read_text("utf-8")
    if name.endswith(".ipynb"):
        cells = [cell for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
        text = "\n\n".join("".join(cell["source"]) for cell in cells)
    assert shorter[0] in text
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [name, *words])
        exec(compile(text.replace(*shorter) if shorter[0] else text, name, "exec"), {"__name__": "__main__"})


def test_every_example_is_run_here() -> None:
    files = {file.name for file in EXAMPLES.iterdir() if file.suffix in (".py", ".ipynb")}
    assert files == {"own_logits.py", "synthetic_dataset.py", "retrain.py", "digits.ipynb"}


def test_logits_of_ones_own_model_give_slow_images(capsys: pytest.CaptureFixture[str]) -> None:
    run("own_logits.py")
    lines = capsys.readouterr().out.splitlines()
    slow, total = (int(lines[1].split()[place]) for place in (0, 2))
    assert total == 1797
    assert 0 < slow < total
    assert sum(int(line.split(": ")[1].split()[0]) for line in lines[2:]) == slow


def test_a_torch_dataset_becomes_a_synthetic_data_set(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run("synthetic_dataset.py", "mine")
    slow = int(capsys.readouterr().out.split()[0])
    rows = SyntheticImages("mine", states=("ok", "near_reference", "flat", "far_from_reference")).rows
    assert rows.num_rows == 2 * slow
    assert set(rows["level_steps"].to_pylist()) == {40, 60}


def test_a_plain_loop_retrains_on_a_generated_set(capsys: pytest.CaptureFixture[str]) -> None:
    run("retrain.py", "mine", shorter=("range(3), 30", "range(2), 1"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines[1:]] == ["real", "real and synthetic", "with SAM"]
    assert len(SyntheticImages("mine")) == int(lines[0].split("; ")[1].split()[0])


def test_the_notebook_runs(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    plt.switch_backend("agg")
    monkeypatch.setattr(plt, "show", lambda: plt.close("all"))
    run("digits.ipynb", shorter=("epochs = 20", "epochs = 1"))
    assert capsys.readouterr().out.count("test error") == 5
