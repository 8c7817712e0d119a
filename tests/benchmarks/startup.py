"""What a command costs beside its work: CPU seconds (user and system, with its child processes) of whole commands.

    python tests/benchmarks/startup.py          three times each
    python tests/benchmarks/startup.py 5        five

The run is tiny: 60 digits, one seed, two arms. `one stage to do` trains again one arm of three epochs, and its line
says how much of its CPU seconds was that training. No Prefect server is up. Machines differ: compare columns of one.
"""

import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

LATEBLOOM = [sys.executable, "-P", "-m", "latebloom"]
TINY = [
    *("--train-limit", "60", "--test-limit", "50", "--epochs", "3", "--separating-epoch", "1"),
    *("--seeds", "1", "--optimizers", "sgd", "--arms", "original,ours-3"),
]

FIT = ["--channels", "8", "--steps", "5", "--batch-size", "8"]


def cpu_seconds(words: list[str], folder: Path, code: int) -> float:
    """Of one command in a folder, which must end with this exit code."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    env = {name: value for name, value in os.environ.items() if not name.startswith("PREFECT_")}
    env["PREFECT_HOME"] = str(folder / "prefect")
    done = subprocess.run([*LATEBLOOM, *words], cwd=folder, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == code, done.stderr
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def damaged(folder: Path) -> None:
    """An image folder, one file of which is no image."""
    rng = np.random.default_rng(0)
    for part in ("train", "test"):
        for label in ("cat", "dog"):
            place = folder / part / label
            place.mkdir(parents=True)
            for number in range(10):
                Image.fromarray(rng.integers(0, 255, (32, 32, 3), np.uint8)).save(place / f"{number}.png")
    (folder / "train/dog/7.png").write_bytes(b"no image")


def main() -> None:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        damaged(folder / "damaged")
        first = cpu_seconds(["compare", "digits", "--out", "run", *TINY], folder, 0)
        print(f"{'the tiny run itself':40} {first:6.2f}")
        commands = {
            "compare, nothing to do": (["compare", "--out", "run"], 0),
            "select, nothing to do": (["select", "--out", "run"], 0),
            "report, nothing to do": (["report", "--out", "run"], 0),
            "a path that is not there": (["compare", "nowhere"], 1),
            "a setting that is none": (["compare", "digits", "--set", "train.lrr=1"], 2),
            "an arm that is none": (["compare", "digits", "--arms", "ours-x"], 2),
            "a classifier that is none": (["select", "digits", "--model", "resnet5"], 1),
            "a folder with a damaged image": (["compare", "damaged", "--arms", "original"], 1),
            "a run folder that lacks its stages": (["report", "digits", "--out", "none"], 1),
        }
        repeated = {
            "fit-generator, nothing to do": (["fit-generator", "digits", "gen", *FIT], 0),
            "coreset, nothing to do": (["coreset", "digits", "--out", "core", "--fraction", "0.5", "--epochs", "1"], 0),
            "export to where it was exported": (["export", "run", "exported"], 1),
        }
        for words, _ in repeated.values():
            cpu_seconds(words, folder, 0)
        commands |= repeated
        for title, (words, code) in commands.items():
            show(title, [cpu_seconds(words, folder, code) for _ in range(times)])
        found = []
        for _ in range(times):
            shutil.rmtree(folder / "run/retrained/original-sgd")
            found.append(cpu_seconds(["compare", "--out", "run"], folder, 0))
        show("compare, one arm to train", found)
        found = []
        for _ in range(times):
            (folder / "run/report.html").unlink()
            found.append(cpu_seconds(["report", "--out", "run"], folder, 0))
        show("report, the page to write", found)
        record = json.loads((folder / "run/stages/retrain-original-sgd.json").read_text())
        print(f"  of the arm the stage itself, wall clock: {record['seconds']:.2f} s")
        found = []
        for level in range(times):
            levels = ["--k", "3", "--levels", f"{30 + level},60"]
            found.append(cpu_seconds(["generate", "--out", "run", *levels], folder, 0))
        show("generate, images of one level to make", found)


def show(title: str, found: list[float]) -> None:
    """A line: the median, and the least and the most."""
    print(f"{title:40} {statistics.median(found):6.2f}   {min(found):.2f} to {max(found):.2f}", flush=True)


if __name__ == "__main__":
    main()
