"""From options, files and run folders to the config of a command."""

import json
import os
import tomllib
from pathlib import Path
from typing import Any

import typer

from data.store import as_path

__all__ = [
    "RUN_ENVIRONMENT",
    "merge",
    "named_preset",
    "named_source",
    "names",
    "nested",
    "numbers",
    "one_line",
    "prepare_prefect",
    "put",
    "resolve",
    "runs_root",
]

# What every process that runs flows has in its environment, where the person has not set it.
RUN_ENVIRONMENT = {
    "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "30",  # the automation for lost runs waits for three of them
    "PREFECT_CLIENT_MAX_RETRIES": "9",  # a server that is away for a quarter of an hour costs no night's work
    "OMP_WAIT_POLICY": "PASSIVE",  # on busy cores, threads that spin cost small networks a factor of ten
}


def nested(file: str | None, given: dict[str, Any], assignments: list[str] | None) -> dict[str, Any]:
    """Nested settings: a file's, over them the options that were given, over them the `--set` ones."""
    settings = _read_settings(as_path(file)) if file else {}
    for key, value in given.items():
        if value is not None:
            put(settings, key, value)
    for assignment in assignments or []:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise typer.BadParameter(f"--set takes KEY=VALUE, got {assignment!r}")
        try:
            value = json.loads(text)
        except ValueError:
            # A shell takes the quotation marks away: [ok,flat] is meant as ["ok", "flat"].
            listed = text.startswith("[") and text.endswith("]") and '"' not in text
            value = names(text[1:-1]) if listed else text
        put(settings, key, value)
    return settings


def _read_settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise ValueError(f"there is no config file at {file}")
    if file.suffix not in (".toml", ".json"):
        raise ValueError(f"{file} is neither .toml nor .json")
    try:
        settings = tomllib.loads(file.read_text()) if file.suffix == ".toml" else json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise ValueError(f"{file} holds a {type(settings).__name__}, expected settings by name")
    return settings


def put(settings: dict[str, Any], key: str, value: Any) -> None:
    """Set the setting that a dotted key names, such as train.lr."""
    *path, last = key.split(".")
    for name in path:
        settings = settings.setdefault(name, {})
        if not isinstance(settings, dict):
            raise ValueError(f"{key} is no setting: {name} has no settings of its own")
    settings[last] = value


def merge(base: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    """Nested settings over others."""
    merged = dict(base)
    for name, value in over.items():
        old = merged.get(name)
        merged[name] = merge(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return merged


def names(text: str | None) -> list[str] | None:
    """`a, b` as a list."""
    return None if text is None else [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str | None) -> list[int] | None:
    """`1,2` as a list; wrong usage where that is no list of whole numbers."""
    words = names(text)
    try:
        return None if words is None else [int(word) for word in words]
    except ValueError:
        raise typer.BadParameter(f"expected whole numbers with commas between, got {text!r}") from None


def named_preset(name: str) -> dict[str, Any]:
    """The settings of a row of the papers, as nested keys; wrong usage where there is no such row."""
    from flows.presets import PRESETS

    if name not in PRESETS:
        raise typer.BadParameter(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
    return dict(PRESETS[name].settings)


def named_source(settings: dict[str, Any]) -> Any:
    """The data source that settings name; None where they name none."""
    data = settings.get("data")
    return data.get("source") if isinstance(data, dict) else data


def _with_coreset(settings: dict[str, Any], kind: str, row: str | None) -> dict[str, Any]:
    """The settings; where they name a coreset's file and no arm, with who trains on it.

    `retrain` trains the original on the picks alone, unless something says how they are mixed; the others give the
    picks strong copies beside what they make.
    """
    strong = settings.get("strong")
    if not isinstance(strong, dict) or not strong.get("file") or "arms" in settings or "selector" in strong:
        return settings
    if kind != "retrain":
        return merge(settings, {"strong": {"selector": "file"}})
    says = row is not None or {"main", "copies", "where"} & set(strong)
    return merge(settings, {"arms": ["original+file"], "strong": {} if says else {"main": "coreset", "copies": 0}})


def resolve(
    out: Path | None, settings: dict[str, Any], kind: str, sampling: str | None = None, row: str | None = None
) -> tuple[Any, Path]:
    """The config of a command and its run folder.

    A source starts from its preset. Without one, the run folder says what was asked before.

    Args:
        sampling: name of a preset of how images are sampled; single settings go before it.
        row: name of a preset of a row of the papers; it goes before those, and single settings before it.
    """
    from flows.config import SAMPLING, CompareConfig, RunConfig, one_setting, preset, read_config, setting_of

    if sampling is not None:
        if sampling not in SAMPLING:
            raise typer.BadParameter(f"no sampling is called {sampling!r}; there are {', '.join(SAMPLING)}")
        settings = merge({"sample": SAMPLING[sampling]}, settings)

    settings = _with_coreset(settings, kind, row)
    many = sorted({"arms", "optimizers", "seeds", "workers"} & set(settings))
    if kind == "run" and many:
        raise typer.BadParameter(f"run is one setting and one seed; {', '.join(many)} can be given to compare")
    if row is not None:
        published = named_preset(row)
        if kind == "run":  # its arms are its own
            published = {name: value for name, value in published.items() if name in RunConfig.model_fields}
        if out is not None and (out / "config.json").is_file() and named_source(settings) is None:
            published["data"] = {name: value for name, value in published.get("data", {}).items() if name != "source"}
        settings = merge(published, settings)
        many = sorted({"arms", "optimizers", "seeds", "workers"} & set(settings))
    compares = kind == "compare" or many not in ([], ["workers"])
    if row is not None and compares and "optimizer" in settings.get("train", {}):
        settings = {"optimizers": [settings["train"]["optimizer"]], **settings}  # a row has one, not our default two
    source = named_source(settings)
    if source is not None:
        base = merge(preset(source), {"data": {"source": source}})
        path = Path(str(source))
        folder = out or Path("runs") / (path.expanduser().resolve().stem if "/" in str(source) else path.stem)
    elif out is not None:
        folder, before = out, read_config(out)
        setting = None if compares else setting_of(before)
        if kind == "run" and setting is None:
            raise ValueError(f"{out} holds a comparison; go on with `slowlane compare --out {out}`")
        compares = setting is None
        base = (before if setting is None else setting).model_dump(mode="json")
        base |= {} if kind == "run" else {"workers": before.workers}
    else:
        raise typer.BadParameter("name a data source, or the run folder of an earlier command with --out")
    merged = merge(base, settings)
    if compares:
        found = CompareConfig(**merged)
    else:
        workers = merged.pop("workers", 1)
        asked = RunConfig(**merged)
        found = CompareConfig(**{**dict(one_setting(asked)), "workers": workers})
    if "file" in settings.get("strong", {}) and found.strong.file and not found.wants_file:
        raise ValueError(
            f"a coreset is named ({found.strong.file}), but no arm trains on it; give --arms one such as original+file"
        )
    return (asked if kind == "run" else found), folder


def prepare_prefect() -> None:
    """Settings that suit a terminal, where the person has not set them: our own lines instead of Prefect's."""
    os.environ.setdefault("PREFECT_LOGGING_HANDLERS_CONSOLE_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_LOGGING_INTERNAL_LEVEL", "CRITICAL")
    os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
    os.environ.setdefault("DO_NOT_TRACK", "1")
    for name, value in RUN_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    if "PREFECT_API_URL" not in os.environ:
        # The log of a server that ends with the command is for nobody, and what cannot be sent to it is complained of.
        os.environ.setdefault("PREFECT_LOGGING_TO_API_ENABLED", "false")
    # Without PREFECT_API_URL a server starts with the flow; on a busy machine that takes longer than its default.
    os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "120")


def runs_root() -> Path:
    """Where run folders lie that are named without a whole path: SLOWLANE_RUNS, a path or URL, or the folder runs/."""
    return as_path(os.environ.get("SLOWLANE_RUNS") or "runs")


def one_line(error: BaseException) -> str:
    """What a person is told of an error; of a config that was refused, each setting with what it got."""
    import pydantic

    if isinstance(error, pydantic.ValidationError):
        return "; ".join(_one_setting(one) for one in error.errors())
    return " ".join(str(error).split()) or type(error).__name__


def _one_setting(error: Any) -> str:
    place = ".".join(str(part) for part in error["loc"])
    message = error["msg"].removeprefix("Value error, ")
    if error["type"] == "extra_forbidden":
        message = "there is no such setting"
    given = "" if error["type"] in ("value_error", "extra_forbidden") else f", got {error['input']!r}"
    return f"{place}: {message}{given}" if place else f"{message}{given}"
