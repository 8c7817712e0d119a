"""What Prefect adds to a whole job: seconds of a small `latebloom compare` with it and without.

    python tests/benchmarks/prefect_overhead.py          three rounds
    python tests/benchmarks/prefect_overhead.py 5        five

Each round runs, in turn and each in a process of its own: without Prefect (flows and tasks as plain functions), with
the server that the command starts for itself, and with one that is up already and shows artifacts. The job is the demo
with three seeds and SGD: 13 task runs. Read the differences within a round: the times are those of this machine.
"""

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

TESTS = Path(__file__).parents[1] / "support"
sys.path.insert(0, str(TESTS))
from served import Server  # noqa: E402

WORDS = ["compare", "digits", "--seeds", "3", "--optimizers", "sgd"]
PLAIN = f"""
import sys; sys.path.insert(0, {str(TESTS)!r})
import unserved; unserved.unserve(setattr)
from latebloom.flows.cli import app
app.main()
"""


def seconds(command: list[str], environment: dict[str, str]) -> float:
    """Of one run into a new folder."""
    with tempfile.TemporaryDirectory() as folder:
        begin = time.perf_counter()
        done = subprocess.run(
            [*command, *WORDS, "--out", f"{folder}/run"], env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return time.perf_counter() - begin


def main() -> None:
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 3
    latebloom = [sys.executable, "-P", "-m", "latebloom"]
    with tempfile.TemporaryDirectory() as folder:
        server = Server(Path(folder))
        server.start()
        try:
            alone = {name: value for name, value in server.env.items() if name != "PREFECT_API_URL"} | {
                "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", "1")
            }
            ways = {
                "without Prefect": ([sys.executable, "-c", PLAIN], alone),
                "its own server": (latebloom, alone),
                "a server that is up": (latebloom, alone | {"PREFECT_API_URL": server.url}),
            }
            times = {name: [] for name in ways}
            for _ in range(rounds):
                for name, (command, environment) in ways.items():
                    times[name].append(seconds(command, environment))
        finally:
            server.kill()
    plain = np.array(times["without Prefect"])
    for name, values in times.items():
        added = np.array(values) - plain
        print(
            f"{name:20} {np.mean(values):6.1f} s   added {added.mean():5.1f} s ({added.min():.1f} to {added.max():.1f})"
        )


if __name__ == "__main__":
    main()
