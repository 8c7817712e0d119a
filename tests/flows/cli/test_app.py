import functools
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.filesize import decimal

import latebloom
from latebloom.flows.cli import app, slow_tables, tables
from latebloom.flows.cli.parse import nested
from latebloom.flows.config.compare import SAMPLING, CompareConfig, RunConfig, demo_config, one_setting
from latebloom.flows.config.presets import PRESETS, RECIPES, Preset
from latebloom.flows.run.budget import Budget
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.progress import duration
from latebloom.flows.run.receipt import Receipt
from latebloom.flows.run.records import PLAN
from latebloom.flows.stages import checks, fit_generator
from latebloom.flows.stages.fit_generator import FitGeneratorConfig
from latebloom.synth.config import GeneratorConfig, PlanConfig, SampleConfig
from latebloom.train.config import FitConfig, SlowConfig

Tiny = Callable[..., CompareConfig]
RunCommand = Callable[..., Any]

STAGES = ["run", "compare", "select", "plan", "generate", "retrain", "report"]
FLOWS = ["augment_and_retrain", *STAGES[1:]]


@pytest.fixture
def asked(fake_flows: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[SimpleNamespace]:
    """The flows that were called, with what: nothing is checked, run or printed. The current folder is empty."""
    calls: list[SimpleNamespace] = []

    def record(name: str, config: Any, out: str, *more: Any) -> None:
        calls.append(SimpleNamespace(name=name, config=config, out=out, more=more))

    for name in FLOWS:
        setattr(fake_flows, name, functools.partial(record, name))
    monkeypatch.setattr(app, "_check", lambda *_: None)
    monkeypatch.setattr(Receipt, "holds", lambda *_: False)
    monkeypatch.setattr(Receipt, "write", lambda *_: None)
    monkeypatch.setattr(tables, "print_report", lambda *_: None)
    monkeypatch.setattr(tables, "print_forecast", lambda *_: None)
    monkeypatch.setattr(tables, "print_errors", lambda *_: None)
    monkeypatch.setattr(slow_tables, "print_slow", lambda *_: None)
    monkeypatch.setattr(
        RunFolder, "record", lambda *_: SimpleNamespace(facts=SimpleNamespace(forecast=SimpleNamespace()))
    )
    monkeypatch.chdir(tmp_path)
    return calls


@pytest.fixture
def ask(run_command: RunCommand, asked: list[SimpleNamespace]) -> Callable[..., SimpleNamespace]:
    """Runs a command; which flow it would have called, with which config and folder."""

    def call(*words: str | Path) -> SimpleNamespace:
        outcome = run_command(*words)
        assert outcome.code == 0, outcome.err
        return asked.pop()

    return call


def setting(config: Any, key: str) -> Any:
    for name in key.split("."):
        config = getattr(config, name)
    return config


# ------------------------------------------------------------------------------------------------- help


# Of each command some options that it has, and some that its stages do not read.
@pytest.mark.parametrize(
    ("command", "has", "lacks"),
    [
        ("run", "--generator --sampling --k --epochs --strong --seed --preset --set --json", "--arms --seeds --until"),
        ("compare", "--generator --k --epochs --arms --optimizers --seeds --workers --policy", "--optimizer --strong"),
        ("select", "--train-limit --epochs --separating-epoch --seeds --seed", "--generator --arms --k --optimizer"),
        ("plan", "--epochs --generator --levels --prompt --arms --processes", "--until --optimizers --strong"),
        ("generate", "--epochs --generator --levels --until --max-seconds", "--optimizer --policy"),
        ("retrain", "--epochs --optimizer --coreset --arms --seeds", "--generator --separating-epoch --levels"),
        ("report", "--out --arms --seeds --json", "--epochs --generator --device --seed"),
        ("coreset", "--method --fraction --checkpoint --with-synthetic --epochs --seeds", "--arms --generator"),
        ("demo", "--out --seeds --workers --json", "--epochs --set"),
        ("fit-generator", "--steps --channels --size --split --seed --config --set", "--out --epochs"),
    ],
)
def test_help_names_the_options_that_a_command_uses(
    command: str, has: str, lacks: str, run_command: RunCommand
) -> None:
    outcome = run_command(command, "--help")
    assert outcome.code == 0
    named = {word.strip(",") for word in outcome.out.split() if word.startswith("--")}
    assert named >= set(has.split())
    assert not named & set(lacks.split())


def test_help_is_in_groups_and_shows_descriptions_and_defaults_of_the_settings(run_command: RunCommand) -> None:
    text = run_command("run", "--help").out
    groups = [line.removesuffix(":") for line in text.splitlines() if re.fullmatch(r"[A-Z][a-z ]+:", line)]
    assert groups == [
        *("Arguments", "Data", "Early training and selection", "Synthetic images", "Training"),
        *("Strong augmentation", "Options"),
    ]
    words = " ".join(text.split())
    assert f"--epochs INTEGER {FitConfig.model_fields['epochs'].description} [default: 200]" in words
    assert "--device auto|cpu|cuda" in words
    assert "[default: 10]" in " ".join(run_command("demo", "--help").out.split())  # its own, not that of compare


def test_every_command_and_the_version(run_command: RunCommand) -> None:
    outcome = run_command("--help")
    assert outcome.code == 0
    commands = (*STAGES, "coreset", "demo", "fit-generator", "settings", "presets", "export", "inspect", "up")
    assert all(f"  {command} " in outcome.out for command in commands)
    assert run_command("--version") == (0, f"latebloom {latebloom.__version__}\n", "")
    bare = run_command()
    assert (bare.code, bare.out) == (2, "")
    assert bare.err.startswith("Usage: latebloom")


def test_help_waits_for_no_heavy_package() -> None:
    script = """
import sys
from latebloom.flows.cli import app
for words in ("--help", "run --help", "fit-generator --help", "settings", "presets", "run digits --k 1"):
    sys.argv = ["latebloom", *words.split()]
    try:
        app.main()
    except SystemExit as end:
        assert end.code == 2 * words.endswith("1")
heavy = {"torch", "prefect", "diffusers", "sklearn", "pyarrow", "matplotlib", "numpy"} & set(sys.modules)
assert not heavy, heavy
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


# ------------------------------------------------------------------------------------------------- settings


def test_settings_are_listed_with_type_range_default_and_description(run_command: RunCommand) -> None:
    whole = run_command("settings").out
    heads = [line.split()[0] for line in whole.splitlines() if not line.startswith(" ")]
    assert heads[0] == "data.source"
    assert {"train.lr", "strong.coreset.fraction", "sample.guidance_scale", "seed", "arms"} <= set(heads)
    assert "strong.coreset.method" not in heads  # it is strong.selector
    assert run_command("settings", "plan.k").out.splitlines() == [
        "plan.k  (integer, 2 to 1,000)  [default: 5]",
        f"    {PlanConfig.model_fields['k'].description}",
    ]
    listed = [line for line in run_command("settings", "slow").out.splitlines() if line[0] != " "]
    assert [line.split()[0] for line in listed] == [f"slow.{name}" for name in SlowConfig.model_fields]
    assert 'slow.space  (softmax or logits)  [default: "softmax"]' in listed
    assert "slow.separating_epoch  (integer, 0 to 100,000)  [default: 0]" in listed


def test_settings_of_another_command_and_as_json(run_command: RunCommand) -> None:
    (one,) = json.loads(run_command("settings", "train.epochs", "--of", "coreset", "--json").out)
    about = FitConfig.model_fields["epochs"].description
    assert one == {"name": "train.epochs", "type": "integer", "default": 10, "range": "1 to 100,000", "about": about}
    listed = json.loads(run_command("settings", "generator", "--of", "fit-generator", "--json").out)
    assert {one["name"] for one in listed} == {f"generator.{name}" for name in GeneratorConfig.model_fields}


# ------------------------------------------------------------------------------------------------- options


@pytest.mark.parametrize(
    ("words", "key", "value"),
    [
        ("-g /some/where", "generate.generator", "/some/where"),
        ("--k 2", "plan.k", 2),
        ("--levels 1,2,3,4", "plan.levels", (1, 2, 3, 4)),
        ("--prompt {name} --prompt a,{name}", "prompts.templates", ("{name}", "a,{name}")),
        ("--sampling balanced", "sample.steps", 25),
        ("--separating-epoch 0", "slow.separating_epoch", 0),
        ("--strong-fraction 0.3", "strong.coreset.fraction", 0.3),
        ("--arms original,ours-2", "arms", ("original", "ours-2")),
        ("--optimizers sgd,sam", "optimizers", ("sgd", "sam")),
        ("--seeds 4", "seeds", 4),
        ("--device cpu", "device", "cpu"),
        ("-s train.lr=0.25", "train.lr", 0.25),
        ("--set plan.levels=[1,2,3,4]", "plan.levels", (1, 2, 3, 4)),
        ("--set train.flip=true", "train.flip", True),
        ("--set train_states=[ok,flat]", "train_states", ("ok", "flat")),
        ("--set quality.min_contrast=5 --set quality.min_distance=6", "quality.min_distance", 6),
        ("--set data.root=a=b", "data.root", "a=b"),
    ],
)
def test_an_option_becomes_its_setting(words: str, key: str, value: Any, ask: Callable[..., SimpleNamespace]) -> None:
    assert setting(ask("compare", "digits", *words.split()).config, key) == value


@pytest.mark.parametrize("command", STAGES)
def test_a_command_calls_its_flow_with_config_and_folder(command: str, ask: Callable[..., SimpleNamespace]) -> None:
    call = ask(command, "digits", "--out", "here", "--set", "seed=4")
    assert call.name == {"run": "augment_and_retrain"}.get(command, command)
    assert type(call.config) is (RunConfig if command == "run" else CompareConfig)
    assert call.out == "here"
    assert call.config.seed == 4


def test_only_generate_takes_a_time_budget(ask: Callable[..., SimpleNamespace]) -> None:
    call = ask("generate", "digits", "--max-seconds", "60", "--until", "22:00-07:00 UTC")
    assert call.more == (Budget(max_seconds=60, until="22:00-07:00 UTC"),)
    assert ask("select", "digits").more == ()


def test_a_stage_alone_is_that_of_run_unless_a_comparison_is_asked_for(ask: Callable[..., SimpleNamespace]) -> None:
    alone = one_setting(ask("run", "digits", "--set", "plan.k=2").config)
    comparison = ask("compare", "digits", "--seeds", "4").config
    for command in ("select", "plan", "generate", "retrain", "report"):
        assert ask(command, "digits", "--set", "plan.k=2").config == alone
        assert ask(command, "digits", "--seeds", "4").config == comparison


def test_the_demo_is_its_config_with_the_seeds_and_workers_asked_for(ask: Callable[..., SimpleNamespace]) -> None:
    call = ask("demo")
    assert (call.name, call.config, call.out) == ("compare", demo_config(), str(Path("runs/demo")))
    call = ask("demo", "--seeds", "3", "--workers", "1", "--out", "here")
    assert (call.config.seeds, call.config.workers, call.out) == (3, 1, "here")


def test_the_demo_is_among_the_runs(ask: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LATEBLOOM_RUNS", "elsewhere")
    assert ask("demo").out == str(Path("elsewhere/demo"))


# ------------------------------------------------------------------------------------------------- sources, folders


def test_a_source_starts_from_its_preset(ask: Callable[..., SimpleNamespace]) -> None:
    digits = ask("run", "digits").config
    assert (digits.data.source, digits.classifier.model, digits.sample.grid) == ("digits", "small-cnn", 100)
    other = ask("run", "/some/folder").config
    assert (other.data.source, other.classifier.model, other.sample.grid) == ("/some/folder", "preact-resnet18", 100)


@pytest.mark.parametrize(
    ("source", "folder"),
    [
        ("digits", "digits"),
        ("fgvc-aircraft", "fgvc-aircraft"),
        ("/data/blood.npz", "blood"),
        ("/data/flowers", "flowers"),
        ("/data/flowers/", "flowers"),
        ("./digits", "digits"),
    ],
)
def test_a_run_folder_is_called_after_its_source(source: str, folder: str, ask: Callable[..., SimpleNamespace]) -> None:
    assert Path(ask("compare", source).out) == Path("runs") / folder


def test_a_run_folder_may_lie_at_home(ask: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/somebody")
    assert ask("compare", "digits", "--out", "~/run").out == "/home/somebody/run"


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("c.toml", 'seed = 1\n[train]\nepochs = 11\nlr = 0.5\n[data]\ntrain_limit = 20\nsource = "elsewhere"\n'),
        (
            "c.json",
            '{"seed": 1, "train": {"epochs": 11, "lr": 0.5}, "data": {"train_limit": 20, "source": "elsewhere"}}',
        ),
    ],
)
def test_set_goes_over_options_over_the_file_over_the_preset(
    name: str, text: str, ask: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    (tmp_path / name).write_text(text)
    plain = ask("run", "digits").config
    config = ask(
        "run", "digits", "-c", name, "--epochs", "12", "--batch-size", "8", "--set", "train.batch_size=9"
    ).config
    assert config.train.batch_size == 9  # --set over the option
    assert config.train.epochs == 12  # the option over the file
    assert (config.train.lr, config.seed, config.data.train_limit) == (0.5, 1, 20)  # the file over the preset
    assert config.data.source == "digits"  # the argument over the file
    assert config.train.rho == plain.train.rho == 0.05  # the preset, where nobody says anything
    assert config.classifier == plain.classifier


def test_a_row_of_the_papers_goes_over_the_sources_preset_and_all_else_over_it(
    ask: Callable[..., SimpleNamespace], monkeypatch: pytest.MonkeyPatch
) -> None:
    row = {
        "data": {"source": "cifar10", "train_limit": 100},
        "classifier": {"model": "resnet20", "width": 0},
        "train": {"lr": 0.3, "epochs": 7, "rho": 0.7, "optimizer": "sam"},
        "arms": ["original", "original+dea"],
    }
    monkeypatch.setitem(PRESETS, "row", Preset("of the tests", row))
    Path("c.toml").write_text("[train]\nlr = 0.2\nepochs = 8\n")
    config = ask("retrain", "digits", "--preset", "row", "-c", "c.toml", "--epochs", "9").config
    assert config.data.source == "digits"  # the SOURCE of the command
    assert config.data.train_limit == 100
    assert (config.train.lr, config.train.epochs, config.train.rho) == (0.2, 9, 0.7)
    assert config.train.batch_size == 32  # of the digits' own preset, where nobody says anything
    assert config.arms == ("original", "original+dea")
    assert config.optimizers == ("sam",)
    assert ask("retrain", "--preset", "row").config.data.source == "cifar10"
    one = ask("run", "digits", "--preset", "row").config  # its arms are its own
    assert (one.train.rho, isinstance(one, CompareConfig)) == (0.7, False)


def test_a_row_of_the_papers_in_a_run_folder_keeps_the_runs_data(
    ask: Callable[..., SimpleNamespace], pristine: RunFolder
) -> None:
    config = ask("retrain", "--out", pristine.path, "--preset", "dea-cifar10-table4").config
    assert (config.data.source, config.data.train_limit) == ("digits", 60)
    assert config.strong.every == PRESETS["dea-cifar10-table4"].settings["strong"]["every"]


def test_presets_are_listed_a_line_each(run_command: RunCommand) -> None:
    lines = run_command("presets").out.splitlines()
    known = RECIPES | PRESETS
    assert [line.split()[0] for line in lines] == list(known)
    assert all(one.about in line for one, line in zip(known.values(), lines, strict=True))


def test_strong_copies_are_asked_for_by_three_options(ask: Callable[..., SimpleNamespace]) -> None:
    strong = ask("run", "digits", "--strong", "dea", "--strong-fraction", "0.3", "--policy", "augmix").config.strong
    assert (strong.selector, strong.coreset.fraction, strong.policy.policy) == ("dea", 0.3, "augmix")
    config = ask("retrain", "digits", "--strong", "random").config
    assert config.arms == ("original", "original@ours-5+random", "ours-5", "ours-5+random")


@pytest.mark.parametrize("name", SAMPLING)
def test_a_sampling_goes_over_the_preset_and_single_settings_over_the_sampling(
    name: str, ask: Callable[..., SimpleNamespace], tmp_path: Path
) -> None:
    assert ask("run", "digits", "--sampling", name).config.sample == SampleConfig(**SAMPLING[name])
    (tmp_path / "c.toml").write_text('[sample]\nmatch = "steps"\nguidance_scale = 2.0\n')
    words = ("--sampling", name, "-c", "c.toml", "--set", "sample.steps=10")
    changed = {"steps": 10, "match": "steps", "guidance_scale": 2.0}
    assert ask("run", "digits", *words).config.sample == SampleConfig(**SAMPLING[name] | changed)


def test_a_file_may_name_the_source(ask: Callable[..., SimpleNamespace], tmp_path: Path) -> None:
    (tmp_path / "c.toml").write_text('[data]\nsource = "digits"\n')
    call = ask("run", "--config", "c.toml")
    assert call.config == ask("run", "digits").config
    assert Path(call.out) == Path("runs/digits")


def test_settings_are_nested_by_their_dots() -> None:
    assert nested(None, {"seed": 1, "train.lr": 2, "train.rho": 3}, None) == {"seed": 1, "train": {"lr": 2, "rho": 3}}


def test_a_value_of_set_is_json_and_else_a_word() -> None:
    words = ["a=1", "b=1.5", "c=true", "d=[1,2]", "e=null", "f=word", 'g="1"', "h=", "i=x=y"]
    assert nested(None, {}, words) == {
        "a": 1,
        "b": 1.5,
        "c": True,
        "d": [1, 2],
        "e": None,
        "f": "word",
        "g": "1",
        "h": "",
        "i": "x=y",
    }


def test_an_option_that_is_not_given_sets_nothing() -> None:
    assert nested(None, {"seed": None, "train.lr": 0.0}, None) == {"train": {"lr": 0.0}}


# ------------------------------------------------------------------------------------------------- going on


def test_without_a_source_a_command_goes_on_with_what_the_folder_was_asked_before(
    ask: Callable[..., SimpleNamespace], pristine: RunFolder, tiny: Tiny
) -> None:
    for command in STAGES[1:]:
        call = ask(command, "--out", pristine.path)
        assert (call.config, call.out) == (tiny(), str(pristine.path))


def test_going_on_may_change_a_setting(ask: Callable[..., SimpleNamespace], pristine: RunFolder, tiny: Tiny) -> None:
    words = ("--out", pristine.path, "--seeds", "3", "--set", "train.rho=1", "--arms", "original")
    call = ask("compare", *words)
    assert call.config == tiny({"seeds": 3, "train.rho": 1, "arms": ("original",)})


@pytest.fixture
def one(tmp_path: Path, tiny: Tiny) -> tuple[Path, RunConfig]:
    """A run folder that `latebloom run` has begun, and its setting."""
    fields = {name: value for name, value in dict(tiny()).items() if name in RunConfig.model_fields}
    checks.open_run(one_setting(RunConfig(**fields)), str(tmp_path / "one"))
    return tmp_path / "one", RunConfig(**fields)


def test_a_run_of_one_setting_goes_on(ask: Callable[..., SimpleNamespace], one: tuple[Path, RunConfig]) -> None:
    folder, before = one
    call = ask("run", "--out", folder)
    assert (call.name, call.config, call.out) == ("augment_and_retrain", before, str(folder))


@pytest.mark.parametrize("command", ["select", "retrain"])
def test_a_stage_of_one_setting_that_is_changed_is_that_of_the_changed_setting(
    command: str, ask: Callable[..., SimpleNamespace], one: tuple[Path, RunConfig]
) -> None:
    folder, before = one
    changes = ("plan.k=2", "plan.levels=[4]", "train.optimizer=sam")
    config = ask(command, "--out", folder, *(f"-s{change}" for change in changes), "--workers", "2").config
    # Not ours-3 at its old levels with SGD: the arms follow from the setting.
    assert config.arms == ("original", "original@ours-2", "ours-2")
    assert (config.optimizers, config.seeds, config.workers) == (("sam",), 1, 2)
    assert config.plan.levels == (4,)
    assert config.train == before.train.model_copy(update={"optimizer": "sam"})


def test_one_setting_may_become_a_comparison(ask: Callable[..., SimpleNamespace], one: tuple[Path, RunConfig]) -> None:
    folder, before = one
    config = ask("compare", "--out", folder, "--seeds", "5").config
    assert config == one_setting(before).model_copy(update={"seeds": 5})


# ------------------------------------------------------------------------------------------------- results


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is checked, and every flow is started, also where a command before left nothing to do."""
    monkeypatch.setattr(app, "_check", lambda *_: None)
    monkeypatch.setattr(Receipt, "holds", lambda *_: False)
    monkeypatch.setattr(Receipt, "write", lambda *_: None)


def test_the_report_as_json_is_report_json(
    run_command: RunCommand, fake_flows: Any, unchecked: None, pristine: RunFolder
) -> None:
    fake_flows.compare = lambda *_: "report.html"
    outcome = run_command("compare", "--out", pristine.path, "--json")
    assert outcome.code == 0
    assert outcome.out == (pristine.path / "report.json").read_text()
    assert {arm["arm"] for arm in json.loads(outcome.out)["arms"]} == {"original", "ours-3"}
    assert outcome.err == f"compare: digits in {pristine.path}\n"  # and nothing else between


def test_a_stage_as_json_is_its_result_and_the_records(
    run_command: RunCommand, fake_flows: Any, unchecked: None, pristine: RunFolder
) -> None:
    fake_flows.generate = lambda _, out, *_more: f"{out}/thing"
    outcome = run_command("generate", "--out", pristine.path, "--json")
    value = json.loads(outcome.out)
    assert value["result"] == f"{pristine.path}/thing"
    assert value["stages"] == pristine.records()


def test_a_report_for_people_has_the_table_the_sentences_and_where_the_page_is(
    run_command: RunCommand, fake_flows: Any, unchecked: None, pristine: RunFolder
) -> None:
    fake_flows.compare = lambda *_: "report.html"
    out = run_command("compare", "--out", pristine.path).out
    report = json.loads((pristine.path / "report.json").read_text())
    text = " ".join(out.split())
    assert "ours-3" in text
    for sentence in report["sentences"]:
        assert f"- {sentence}" in text
    for warning in report["warnings"]:
        assert f"! {warning}" in text
    overlap = f"overlap by {report['jaccard']:.2f} (Jaccard, mean over pairs); random sets would by "
    assert overlap + f"{report['jaccard_chance']:.2f}." in text
    assert out.splitlines()[-1] == str(pristine.path / "report.html")


def test_a_plan_for_people_has_the_forecast(
    run_command: RunCommand, fake_flows: Any, unchecked: None, pristine: RunFolder
) -> None:
    fake_flows.plan = lambda _, out: f"{out}/plan.parquet"
    out = run_command("plan", "--out", pristine.path).out
    forecast = pristine.record(PLAN).facts.forecast
    lines = [line.split() for line in out.splitlines()]
    for level, count in forecast.per_level.items():
        assert ["level", *level.split(), str(count)] in lines
    for name, count in forecast.per_class.items():
        assert ["class", name, str(count)] in lines
    assert ["in", "all", str(forecast.images)] in lines
    cost = f"{forecast.denoiser_calls:,} denoiser calls, about {duration(forecast.seconds)} on this device and "
    assert out.splitlines()[-2] == cost + decimal(forecast.bytes)
    assert len(lines) == 5 + len(forecast.per_level) + len(forecast.per_class)  # title, head, total, cost, path
    assert out.splitlines()[-1] == f"{pristine.path}/plan.parquet"


# ------------------------------------------------------------------------------------------------- fit-generator


@pytest.fixture
def fitted(fake_flows: Any, monkeypatch: pytest.MonkeyPatch) -> list[FitGeneratorConfig]:
    configs: list[FitGeneratorConfig] = []

    def flow(config: FitGeneratorConfig, out: str) -> str:
        configs.append(config)
        return out

    fake_flows.fit_generator = flow
    monkeypatch.setattr(fit_generator, "check_fit", lambda *_: None)
    return configs


def test_fit_generator_options_become_settings(
    run_command: RunCommand, fitted: list[FitGeneratorConfig], tmp_path: Path
) -> None:
    words = "--steps 5 --channels 8,16 --size 16 --batch-size 4 --image-size 24 --train-limit 30 --seed 2 --device cpu"
    outcome = run_command("fit-generator", "digits", tmp_path / "new", *words.split(), "--set", "generator.lr=0.5")
    assert outcome == (0, f"{tmp_path / 'new'}\n", "")
    (config,) = fitted
    assert config == FitGeneratorConfig(
        data={"source": "digits", "image_size": 24, "train_limit": 30},
        split="generator",
        generator={"steps": 5, "channels": (8, 16), "size": 16, "batch_size": 4, "lr": 0.5},
        seed=2,
        device="cpu",
    )


def test_only_digits_have_images_kept_for_a_generator(
    run_command: RunCommand, fitted: list[FitGeneratorConfig], tmp_path: Path
) -> None:
    (tmp_path / "c.toml").write_text('split = "train"\n')
    for words in (["digits"], ["/some/folder"], ["digits", "--split", "train"], ["digits", "-c", tmp_path / "c.toml"]):
        assert run_command("fit-generator", words[0], tmp_path / "new", *words[1:]).code == 0
    assert [config.split for config in fitted] == ["generator", "train", "train", "train"]


# ------------------------------------------------------------------------------------------------- around it


def test_ctrl_c_says_that_the_same_command_goes_on(
    run_command: RunCommand, fake_flows: Any, unchecked: None, pristine: RunFolder
) -> None:
    def select(*_: object) -> None:
        raise KeyboardInterrupt

    fake_flows.select = select
    outcome = run_command("select", "--out", pristine.path)
    assert outcome.code == 130
    assert outcome.err.splitlines()[-1] == "interrupted; the same command goes on where this one stopped"
    assert "Traceback" not in outcome.err


def test_prefect_is_quiet_and_patient_unless_the_person_says_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "environ", environment := {"DO_NOT_TRACK": "0"})
    app.prepare_prefect()
    assert environment["DO_NOT_TRACK"] == "0"
    assert environment["PREFECT_SERVER_ANALYTICS_ENABLED"] == "false"
    assert int(environment["PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS"]) >= 60
    assert environment["PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL"] == "CRITICAL"
    assert environment["PREFECT_LOGGING_TO_API_ENABLED"] == "false"
    monkeypatch.setattr(os, "environ", environment := {"PREFECT_API_URL": "http://prefect.example/api"})
    app.prepare_prefect()
    assert "PREFECT_LOGGING_TO_API_ENABLED" not in environment
