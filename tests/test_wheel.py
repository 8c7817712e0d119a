"""The wheel in an environment of its own, used from the folder of a person whose modules are named like ours."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import time
import venv
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from served import free_port, lay_traps, traps_sprung

ROOT = Path(__file__).parents[1]
Run = Callable[..., "subprocess.CompletedProcess[str]"]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheel")
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", folder], cwd=ROOT, check=True)
    (made,) = folder.glob("*.whl")
    return made


@pytest.fixture(scope="module")
def environment(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the programs of a new environment: the wheel, and what is installed here beside Latebloom."""
    folder = tmp_path_factory.mktemp("environment")
    venv.create(folder, symlinks=True)
    install = ["uv", "pip", "install", "--offline", "--no-deps", "--python", str(folder / "bin/python"), str(wheel)]
    subprocess.run(install, check=True, env=os.environ | {"PATH": _path(Path(sys.executable).parent)})
    (site_packages,) = folder.glob("lib/python*/site-packages")
    # A folder named so is searched after ours, and its own .pth files, such as the checkout's, do not count.
    (site_packages / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return folder / "bin"


def _path(first: Path) -> str:
    return f"{first}{os.pathsep}{os.environ['PATH']}"


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """The working directory of a person, with traps in it."""
    folder = tmp_path / "project"
    folder.mkdir()
    lay_traps(folder)
    return folder


@pytest.fixture
def run(environment: Path, home: Path) -> Iterator[Run]:
    """Runs a program in the person's folder. Nothing there may be run, and nothing be written but what was named."""
    before = {path.name for path in home.iterdir()}
    kept = {
        name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "LATEBLOOM_", "PYTHON"))
    }
    (home.parent / "home").mkdir()
    env = kept | {"PATH": _path(environment), "HOME": str(home.parent / "home"), "OMP_NUM_THREADS": "1"}

    def run(program: str, *words: str) -> "subprocess.CompletedProcess[str]":
        done = subprocess.run([environment / program, *words], cwd=home, env=env, capture_output=True, text=True)
        assert done.returncode == 0, f"{words}: {done.stdout[-2000:]}{done.stderr[-4000:]}"
        assert traps_sprung(home) == ""
        return done

    yield run
    assert {path.name for path in home.iterdir()} - before <= {"runs", ".latebloom"}


def test_it_holds_the_rooms_and_what_they_read_and_no_tests(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        assert not any(info.external_attr >> 28 == 0o12 for info in archive.infolist())  # no links
    assert {name.split("/")[0] for name in names} == {
        "latebloom",
        f"{wheel.name.removesuffix('-py3-none-any.whl')}.dist-info",
    }
    sources = {path for room in ("data", "flows", "synth", "train") for path in (ROOT / room).rglob("*.py")}
    sources |= set((ROOT / "latebloom").glob("*.py"))
    expected = {str(path.relative_to(ROOT)).removeprefix("latebloom/") for path in sources}
    assert {name.removeprefix("latebloom/") for name in names if name.endswith(".py")} == expected
    report = [f"flows/report/{name}" for name in ("report.html.j2", "report.css", "slow.html.j2", "slow.js")]
    for file in (*report, "data/synthetic/card.md.j2", "synth/shipped/digits/model_index.json"):
        assert f"latebloom/{file}" in names
    assert "latebloom/synth/shipped/digits/unet/diffusion_pytorch_model.safetensors" in names


def test_the_command_is_the_wheels(run: Run, environment: Path, home: Path) -> None:
    where = run("python", "-P", "-c", "import latebloom.data.images as m; print(m.__file__)").stdout
    assert Path(where).is_relative_to(environment.parent)
    shown = run("latebloom", "presets").stdout
    # Without -P, Python itself imports `types` from the working directory before a line of ours runs.
    (home / "types.py").unlink()
    assert run("python", "-m", "latebloom", "presets").stdout == shown


def test_a_namespace_folder_of_the_person_still_imports_its_own_modules(run: Run, home: Path) -> None:
    shutil.rmtree(home / "data")
    (home / "data").mkdir()
    (home / "data" / "mine.py").write_text("name = 'mine'\n")
    for name in home.glob("*.py"):
        name.unlink()
    program = "import data.mine, latebloom; from latebloom.data.images import LabeledImages; print(data.mine.name)"
    assert run("python", "-c", program).stdout == "mine\n"


SMALL = ("--train-limit", "60", "--test-limit", "60", "--epochs", "3", "--separating-epoch", "1", "--k", "2",
         "--levels", "10")  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_generate_in_two_processes_and_retrain_under_accelerate_launch(run: Run, home: Path) -> None:
    run("latebloom", "generate", "digits", "--out", "runs/two", "--arms", "original,ours-2", *SMALL, "--processes", "2")
    assert json.loads((home / "runs/two/synthetic/manifest.json").read_text())["rows"] > 0
    (home / "types.py").unlink()  # as above: accelerate starts its processes by `python -m`
    launch = ("-P", "-m", "accelerate.commands.accelerate_cli", "launch", "--cpu", "--num_processes", "2")
    words = ("--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "-m", "latebloom")
    run("python", *launch, *words, "retrain", "--out", "runs/two", "--optimizers", "sgd", "--seeds", "1")
    assert list((home / "runs/two/retrained").glob("ours-2-sgd/*.safetensors"))


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_the_demo(run: Run, home: Path) -> None:
    shown = run("latebloom", "demo", "--seeds", "2", "--workers", "2").stdout
    assert "original" in shown
    assert (home / "runs/demo/report.html").is_file()


@pytest.mark.slow
@pytest.mark.timeout(1200)
def test_up_and_a_served_run(run: Run, home: Path) -> None:
    port = free_port()
    try:
        run("latebloom", "up", "--port", str(port))
        with httpx.Client(base_url=f"http://127.0.0.1:{port}/api") as api:
            deployment = api.get("/deployments/name/generate/generate-digits").json()["id"]
            asked = {"data": {"train_limit": 60}, "epochs": 3, "separating_epoch": 1, "k": 2, "levels": [10]}
            flow_run = api.post(f"/deployments/{deployment}/create_flow_run", json={"parameters": asked}).json()["id"]
            state = _ended(api, flow_run)
        assert state["type"] == "COMPLETED", state["message"]
        assert f"the synthetic data set is in {home}/runs/generate-digits-" in state["message"]
    finally:
        run("latebloom", "down")
    assert traps_sprung(home) == ""


def _ended(api: httpx.Client, flow_run: str) -> dict[str, Any]:
    end = time.monotonic() + 600
    while time.monotonic() < end:
        state: dict[str, Any] = api.get(f"/flow_runs/{flow_run}").json()["state"]
        if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED"):
            return state
        time.sleep(0.5)
    raise AssertionError("the run did not end in ten minutes")
