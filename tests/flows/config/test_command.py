import shlex
from typing import Any

import pytest
from typer.testing import CliRunner

from latebloom.flows.cli import app as cli
from latebloom.flows.config.command import command_of
from latebloom.flows.config.compare import CompareConfig, RunConfig, demo_config, one_setting, preset
from latebloom.flows.config.merge import merge
from latebloom.flows.config.presets import PRESETS
from latebloom.flows.run.resolve import resolve


def understood(command: str, monkeypatch: pytest.MonkeyPatch) -> CompareConfig:
    """The config that a command line gives."""
    found: list[CompareConfig] = []
    monkeypatch.setattr(cli, "_run_flow", lambda _, config, *__: found.append(config))
    program, *words = shlex.split(command)
    assert program == "latebloom"
    done = CliRunner().invoke(cli.app, words)
    assert done.exit_code == 0, done.output
    return found[0]


def config_of(source: str, settings: dict[str, Any]) -> CompareConfig:
    return CompareConfig(**merge(merge(preset(source), {"data": {"source": source}}), settings))


@pytest.mark.parametrize(
    "config",
    [
        demo_config(),
        config_of("digits", {}),
        config_of("cifar10", {"train": {"lr": 0.1, "milestones": [0.5, 0.75]}, "optimizers": ["sam"], "seed": 7}),
        config_of("a folder/of it's own", {"plan": {"k": 3, "levels": [40, 60]}, "quality": {"min_distance": 0.0}}),
        config_of(
            "digits", {"data": {"source": "digits"}, "sample": {"guidance_scale": 3.0}, "slow": {"separating_epoch": 0}}
        ),
        config_of(
            "x", {"prompts": {"templates": ["a photo, of {name}", "[1,2] {name}"]}, "classifier": {"weights": "12"}}
        ),
        config_of(
            "x", {"classifier": {"weights": "[a].safetensors"}, "arms": ["original", "ours-2:L50", "ours-3:L50-70"]}
        ),
        one_setting(RunConfig(**merge(preset("digits"), {"train": {"optimizer": "sam"}}))),
    ],
    ids=lambda config: config.data.source,
)
def test_the_command_gives_the_same_config(config: CompareConfig, monkeypatch: pytest.MonkeyPatch) -> None:
    assert understood(command_of(config), monkeypatch) == config


@pytest.mark.parametrize("name", list(PRESETS))
def test_the_command_gives_each_preset_without_naming_it(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    source = PRESETS[name].settings.get("data", {}).get("source", "cifar10")
    try:
        config, _ = resolve(None, {"data": {"source": source}}, "compare", None, name)
    except ValueError as refused:
        pytest.skip(str(refused))
    assert understood(command_of(config), monkeypatch) == config


def test_a_default_is_not_named() -> None:
    assert command_of(config_of("digits", {})) == "latebloom compare digits"
    assert command_of(config_of("digits", {"seeds": 10})) == "latebloom compare digits --set seeds=10"
