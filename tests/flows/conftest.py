"""What the tests of flows share: a tiny generator, a config whose whole run takes two seconds, and finished runs."""

import copy
import shutil
import sys
import types
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import pytest
import torch
from prefect.client.orchestration import SyncPrefectClient, get_client
from served import Server, lay_traps

from latebloom import flows
from latebloom.data.config import DataConfig
from latebloom.data.sources.load import load
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.cli import app, coresets
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.report import gather
from latebloom.flows.run import processes
from latebloom.flows.run.folder import LOCK, RunFolder, read_config
from latebloom.flows.run.origin import ORIGIN
from latebloom.flows.run.progress import meter
from latebloom.flows.stages import checks, planning, select, synthesis, training
from latebloom.flows.stages.loaders import images_of
from latebloom.synth.config import GeneratorConfig
from latebloom.synth.fit import fit_generator, save_generator
from latebloom.synth.plan import PLAN_SCHEMA

if TYPE_CHECKING:
    from serving import Serving

Tiny = Callable[..., CompareConfig]


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread: small tensors are quicker so, and sums always have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def generator(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a generator of 8x8 digits after three steps on 40 images: it makes noise, in milliseconds."""
    data = load(DataConfig()).generator
    assert data is not None
    few = data.subset(np.arange(40), "40 digits")
    config = GeneratorConfig(steps=3, channels=(8,), batch_size=8)
    folder = tmp_path_factory.mktemp("generator") / "tiny"
    save_generator(folder, fit_generator(few, config, 0, torch.device("cpu")), few, config, 0)
    return folder


@pytest.fixture(scope="session")
def settings(generator: Path) -> dict[str, Any]:
    """Nested settings of the tiny run: 60 digits, 3 epochs of a small CNN, levels 3 and 5 of 10, parts of 8 images."""
    return {
        "data": {"source": "digits", "train_limit": 60, "test_limit": 50},
        "classifier": {"model": "small-cnn", "width": 4},
        "train": {"epochs": 3, "batch_size": 16, "lr": 0.05, "rho": 0.05, "crop_padding": 0, "flip": False},
        "slow": {"separating_epoch": 1},
        "plan": {"k": 3, "levels": (3, 5), "part_size": 8},
        "sample": {"grid": 10},
        "generate": {"generator": str(generator), "batch_size": 8},
        # Every image is ok.
        "quality": {"min_contrast": 0, "min_label_ratio": 0, "max_distance_ratio": 0, "min_distance": 0},
        "device": "cpu",
    }


@pytest.fixture(scope="session")
def tiny(settings: dict[str, Any]) -> Tiny:
    """Makes the tiny comparison of original and ours-3 with SGD and two seeds; `{"train.lr": 1}` changes a setting."""

    def make(changes: dict[str, Any] | None = None) -> CompareConfig:
        nested = copy.deepcopy(settings) | {"arms": ("original", "ours-3"), "optimizers": ("sgd",), "seeds": 2}
        for key, value in (changes or {}).items():
            *path, last = key.split(".")
            place = nested
            for name in path:
                place = place.setdefault(name, {})
            place[last] = value
        return CompareConfig(**nested)

    return make


def make_images(run: RunFolder, config: CompareConfig, *, backwards: bool = False) -> list[int]:
    """The stage that generates; which parts it made."""
    todo = synthesis.open_parts(run, config)
    with meter("generate", todo.images, "images", todo.images_done) as bar:
        for number in reversed(todo.parts) if backwards else todo.parts:
            bar.add(0, synthesis.make_one_part(run, config, number, bar.add).states)
    synthesis.finish_synthetic(run, config)
    return todo.parts


def up_to_plan(path: Path, config: CompareConfig) -> RunFolder:
    """The stages before generation."""
    run = checks.open_run(config, str(path))
    training.train_early(run, config)
    select.select_examples(run, config)
    planning.plan_images(run, config)
    return run


def with_images(path: Path, config: CompareConfig) -> RunFolder:
    """The stages up to the synthetic data set."""
    run = up_to_plan(path, config)
    make_images(run, config)
    return run


def all_stages(path: Path, config: CompareConfig) -> RunFolder:
    """The whole story but for the report, as flows/pipeline.py tells it."""
    run = with_images(path, config)
    for arm in config.arms:
        for optimizer in config.optimizers:
            training.retrain_arm(run, config, arm, optimizer)
    return run


def made(run: RunFolder) -> set[str]:
    """The stages that were really run the last time; not the report's own measurement, nor the list of a selection."""
    own = {"frechet", "slow-list"}
    return {record["stage"] for record in run.records() if not record["skipped"] and record["stage"] not in own}


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder, by its path in it; not what names a process, the time or places of this machine."""
    others = {LOCK, ORIGIN, "log", ".done"}
    files = [path for path in folder.rglob("*") if path.is_file() and not others & set(path.relative_to(folder).parts)]
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def times(folder: Path) -> dict[str, tuple[int, int]]:
    """Modification time and inode of every file below a folder: they change whenever one is written again."""
    files = [path for path in folder.rglob("*") if path.is_file() and path.name != LOCK]
    found = {str(path.relative_to(folder)): path.stat() for path in files}
    return {name: (stat.st_mtime_ns, stat.st_ino) for name, stat in found.items()}


def data_set(run: RunFolder) -> dict[str, bytes]:
    """The files of the synthetic data set but for the records, which tell the time."""
    files = contents(run.path / "synthetic")
    return {name: content for name, content in files.items() if not name.startswith(".parts/")}


def same_but_for_rounding(run: RunFolder, other: RunFolder) -> None:
    """Two synthetic data sets are one: sums in another order may round a pixel in a thousand to the next level."""
    folder, tables = SyntheticFolder(run.path / "synthetic"), []
    for one in (run, other):
        tables.append(SyntheticFolder(one.path / "synthetic").rows())
    exact = [name for name in PLAN_SCHEMA.names if name in tables[0].column_names] + ["calls", "log_snr", "state"]
    assert tables[0].select(exact) == tables[1].select(exact)
    train = images_of(read_config(other.path)).train
    ours, theirs = (folder.images(table, train).pixels().astype(int) for table in tables)
    assert np.abs(ours - theirs).max() <= 1
    assert (ours != theirs).mean() <= 1e-3


@pytest.fixture(scope="session")
def story() -> SimpleNamespace:
    """The stages put together, and what can be seen of a run folder."""
    return SimpleNamespace(
        all_stages=all_stages,
        contents=contents,
        data_set=data_set,
        made=made,
        make_images=make_images,
        same_but_for_rounding=same_but_for_rounding,
        times=times,
        up_to_plan=up_to_plan,
        with_images=with_images,
    )


@pytest.fixture(scope="session")
def pristine(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """The tiny run, finished and reported, as it was left: read it, never write to it."""
    config = tiny()
    run = all_stages(tmp_path_factory.mktemp("pristine") / "run", config)
    gather.write(run, config)
    return run


@pytest.fixture
def finished(pristine: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the finished tiny run, for a test of its own."""
    shutil.copytree(pristine.path, tmp_path / "run")
    return RunFolder(tmp_path / "run")


@pytest.fixture(scope="session")
def many_arms(tiny: Tiny, tmp_path_factory: pytest.TempPathFactory) -> SimpleNamespace:
    """A finished run of every kind of arm, and its config. Read only."""
    config = tiny({"arms": ("original", "original@ours-3", "upsample-3", "random-3", "noise-2", "ours-3")})
    return SimpleNamespace(config=config, run=all_stages(tmp_path_factory.mktemp("many") / "run", config))


@pytest.fixture(scope="session")
def two_processes() -> Iterator[ProcessPoolExecutor]:
    """The pool of two that a run with `workers=2` uses: starting it takes seconds, so once for all tests."""

    pool = processes.classifier_processes(2)
    yield pool
    pool.shutdown()
    processes.classifier_pool.cache_clear()


class Outcome(NamedTuple):
    """What a command left on the terminal."""

    code: int
    out: str
    err: str


@pytest.fixture
def run_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., Outcome]:
    """Runs `latebloom WORD...` in this process."""
    for module in (app, coresets):
        monkeypatch.setattr(module, "prepare_prefect", lambda: None)  # it changes the environment
    monkeypatch.setenv("COLUMNS", "200")

    def call(*words: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["latebloom", *map(str, words)])
        # Else usage names `python -m pytest` where that is how the tests were started.
        monkeypatch.setattr(sys.modules["__main__"], "__package__", None, raising=False)
        capsys.readouterr()
        code = 0
        try:
            app.main()
        except SystemExit as end:
            code = int(end.code or 0)
        return Outcome(code, *capsys.readouterr())

    return call


class FakeFlows(types.ModuleType):
    """Stands where latebloom.flows.pipeline would be. A flow that it was not given must not be started."""

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        raise AssertionError(f"the flow {name} was started")


@pytest.fixture
def fake_flows(monkeypatch: pytest.MonkeyPatch) -> FakeFlows:
    """Keeps Prefect out: set attributes on it to be called in place of flows."""
    fake = FakeFlows("latebloom.flows.pipeline")
    monkeypatch.setitem(sys.modules, "latebloom.flows.pipeline", fake)
    monkeypatch.setattr(flows, "pipeline", fake, raising=False)
    return fake


@pytest.fixture(scope="session")
def prefect_server(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """A Prefect server for all tests of the session; nothing in this process speaks to it yet."""
    # Only slow tests wait for schedules and for runs that are late or lost.
    quick = any(item.get_closest_marker("slow") for item in request.session.items)
    made = Server(tmp_path_factory.mktemp("prefect"), quick)
    try:
        made.start()
        yield made
    finally:
        made.kill()


@pytest.fixture
def server(prefect_server: Server) -> Iterator[Server]:
    """A Prefect server that this process and its subprocesses speak to while the test runs."""
    with prefect_server.used():
        yield prefect_server


@pytest.fixture
def client(server: Server) -> Iterator[SyncPrefectClient]:
    """A client of that server."""
    with get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="module")
def serving(prefect_server: Server, tmp_path_factory: pytest.TempPathFactory) -> "Iterator[Serving]":
    """All deployments, limits and automations, as after `latebloom up`, for the tests of a module."""
    from serving import Serving  # and with it Prefect, which most tests do without

    folder = tmp_path_factory.mktemp("serving")
    lay_traps(folder)  # as a user's own modules would lie there: no run may import them
    made = Serving(prefect_server, folder)
    try:
        with prefect_server.used():
            made.set_up()
        yield made
    finally:
        made.stop()
