"""The deployed flows: from a form to the flow of the pipeline, and from an error to a state with one line."""

from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prefect.client.schemas.objects import StateType

from latebloom.data.store import write_json
from latebloom.flows.config.compare import CompareConfig, RunConfig, one_setting
from latebloom.flows.report.results import ArmResult
from latebloom.flows.run.budget import Budget, Unfinished
from latebloom.flows.run.folder import Partial, RunFolder
from latebloom.flows.server import deployed


class Pipeline:
    """Stands in for latebloom.flows.pipeline: keeps what each flow is called with, and does what a test says."""

    def __init__(self) -> None:
        self.calls: list[tuple[Any, ...]] = []
        self.does: Any = lambda *_: None

    def __getattr__(self, name: str) -> Any:
        def fn(*given: Any) -> Any:
            self.calls.append((name, *given))
            return self.does(*given) or f"{given[1]}/{name}"

        return SimpleNamespace(fn=fn)


@pytest.fixture
def flows(monkeypatch: pytest.MonkeyPatch) -> Iterator[Pipeline]:
    made = Pipeline()
    monkeypatch.setattr(deployed, "pipeline", made)
    monkeypatch.setattr(deployed.publish, "emit_ready", lambda *given: made.calls.append(("ready", *given)))
    monkeypatch.delenv("LATEBLOOM_RUNS", raising=False)
    return made


def raises(error: Exception) -> Any:
    def act(*_: Any) -> None:
        raise error

    return act


def test_generate_makes_the_data_set_and_sends_the_event(flows: Pipeline, tmp_path: Path) -> None:
    folder = str(tmp_path / "run")
    state = deployed.generate.fn(folder=folder, max_seconds=60, then="retrain", seed=3)
    name, config, out, budget = flows.calls[0]
    assert (name, out, budget) == ("generate", folder, Budget(max_seconds=60))
    assert config.seed == 3
    assert setting(config) == config
    assert flows.calls[1] == ("ready", RunFolder(Path(folder)), "retrain")
    assert (state.type, state.message) == (StateType.COMPLETED, f"the synthetic data set is in {folder}/generate")


def setting(config: CompareConfig) -> CompareConfig:
    return one_setting(RunConfig(**{name: getattr(config, name) for name in RunConfig.model_fields}))


@pytest.mark.parametrize(
    ("error", "kind", "name", "message"),
    [
        (ValueError("no such\n  thing"), StateType.FAILED, "Failed", "no such thing"),
        (
            FileNotFoundError(2, "nothing there", "a.png"),
            StateType.FAILED,
            "Failed",
            "[Errno 2] nothing there: 'a.png'",
        ),
        (MemoryError("too big"), StateType.FAILED, "Failed", "too big"),
        (Partial("2 images"), StateType.FAILED, "Partial", "2 images; the same parameters make the rest"),
        (Unfinished("3 of 9 parts"), StateType.COMPLETED, "Unfinished", "3 of 9 parts"),
    ],
)
def test_what_a_person_can_fix_is_a_state_with_one_line(
    flows: Pipeline, error: Exception, kind: StateType, name: str, message: str
) -> None:
    flows.does = raises(error)
    state = deployed.generate.fn(folder="/a")
    assert (state.type, state.name, state.message) == (kind, name, message)
    assert [call[0] for call in flows.calls] == ["generate"]  # no event was sent


def test_our_own_bugs_keep_their_traceback(flows: Pipeline) -> None:
    flows.does = raises(TypeError("ours"))
    with pytest.raises(TypeError, match="ours"):
        deployed.generate.fn(folder="/a")


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"levels": (30,)}, "plan: k = 5 needs 4 levels"),
        ({"until": "7 o'clock"}, "until"),
        ({"source": "cifar10", "plan": {"part_size": 0}}, "part_size"),
    ],
)
def test_what_does_not_fit_together_is_refused_before_anything_runs(
    flows: Pipeline, given: dict[str, Any], message: str
) -> None:
    state = deployed.generate.fn(folder="/a", **given)
    assert state.type == StateType.FAILED
    assert message in state.message
    assert "\n" not in state.message
    assert flows.calls == []


def test_arms_that_do_not_exist_are_refused_with_those_that_do(flows: Pipeline) -> None:
    state = deployed.compare.fn(arms=("original", "ours-1"))
    assert state.type == StateType.FAILED
    assert "no arm is called 'ours-1'; an arm is one of original" in state.message


def report(folder: Path) -> str:
    arms = [
        ArmResult(arm, "sgd", [mean], mean, None, None, None, 0, 10, 1.0, 0.0, [])
        for arm, mean in (("original", 0.0451), ("ours-5", 0.0325))
    ]
    kept = {"arms": [vars(arm) for arm in arms]}
    write_json(folder / "report.json", kept)
    return str(folder / "report.html")


def test_a_run_ends_with_what_came_out(flows: Pipeline, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = report(tmp_path)
    monkeypatch.setattr(
        deployed.Report, "from_json", lambda kept: SimpleNamespace(arms=[ArmResult(**a) for a in kept["arms"]])
    )
    flows.does = lambda *_: page
    state = deployed.augment_and_retrain.fn(folder=str(tmp_path))
    assert state.message == f"test error: original sgd 4.51 %, ours-5 sgd 3.25 %; {page}"


def folder_of(flows: Pipeline, **given: Any) -> str:
    deployed.generate.fn(**given)
    return str(flows.calls[-2][2])


def test_without_a_folder_the_settings_name_it(flows: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    first = folder_of(flows, generator="/models/My net", seed=7)
    assert first.startswith(f"{Path.cwd()}/runs/generate-digits-My-net-seed7-")
    assert folder_of(flows, generator="/models/My net", seed=7) == first  # the same parameters go on with it
    assert folder_of(flows, generator="/models/My net", seed=7, epochs=31) != first
    monkeypatch.setenv("LATEBLOOM_RUNS", "s3://bucket/runs")
    assert folder_of(flows, folder="mine") == "s3://bucket/runs/mine"
    assert folder_of(flows, folder="/whole/path") == "/whole/path"
    assert folder_of(flows, folder="memory://a/b") == "memory://a/b"


def test_what_changes_no_image_does_not_name_the_folder(flows: Pipeline) -> None:
    assert folder_of(flows, generate={"processes": 2}, parts={"runner": "threads"}, device="cpu") == folder_of(flows)
    assert folder_of(flows, max_seconds=5, then="retrain", until="07:00") == folder_of(flows)


def test_a_relative_folder_in_a_work_pool_is_refused(flows: Pipeline, monkeypatch: pytest.MonkeyPatch) -> None:
    context = SimpleNamespace(flow_run=SimpleNamespace(work_pool_name="latebloom"))
    monkeypatch.setattr(deployed.FlowRunContext, "get", lambda: context)
    state = deployed.generate.fn(folder="mine")
    assert state.type == StateType.FAILED
    assert "'mine' is relative" in state.message
    assert "LATEBLOOM_RUNS" in state.message
    assert flows.calls == []
    monkeypatch.setenv("LATEBLOOM_RUNS", "shared")
    assert "'mine' is relative" in deployed.generate.fn(folder="mine").message
    assert "'out' is relative" in deployed.export.fn(run="/a", destination="out").message
    assert "'mine' is relative" in deployed.retrain.fn(run="mine").message
    monkeypatch.setenv("LATEBLOOM_RUNS", "/shared")
    assert folder_of(flows, folder="mine") == "/shared/mine"


def test_retrain_takes_from_the_run_folder_what_the_form_leaves_open(
    flows: Pipeline, tmp_path: Path, tiny: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_json(tmp_path / "config.json", tiny().model_dump(mode="json"))
    monkeypatch.setattr(deployed, "_reported", lambda page: page)
    deployed.retrain.fn(run=str(tmp_path))
    deployed.retrain.fn(run=str(tmp_path), arms=("original", "random-3"), seeds=5, epochs=9, lr=0.01)
    (_, plain, out), (last, *_), (_, changed, _), _ = flows.calls
    assert (plain, out, last) == (tiny(), str(tmp_path), "report")
    wanted = {"arms": ("original", "random-3"), "seeds": 5, "train.epochs": 9, "train.lr": 0.01}
    assert changed == tiny(wanted)


def test_retrain_of_no_run_folder_says_so(flows: Pipeline, tmp_path: Path) -> None:
    state = deployed.retrain.fn(run=str(tmp_path / "none"))
    assert state.type == StateType.FAILED
    assert "is no run folder" in state.message


def test_runs_are_named_by_data_set_generator_and_seed(monkeypatch: pytest.MonkeyPatch) -> None:
    given: dict[str, Any] = {"source": "/data/birds", "generator": "s3://models/sd15", "seed": 3}
    monkeypatch.setattr(deployed, "runtime", SimpleNamespace(flow_run=SimpleNamespace(parameters=given)))
    assert deployed._name() == "birds by sd15 seed 3"
    given.update(generator={"steps": 10}, source="digits")  # the group of fit-generator
    assert deployed._name() == "digits seed 3"
    given["run"] = "runs/nightly"
    assert deployed._name() == "nightly"
    given["numbers"] = [3, 4]
    assert deployed._name() == "nightly parts 3, 4"
