"""From settings, presets and the run folder to the config of a run."""

from pathlib import Path
from typing import Any

from latebloom.flows.config.merge import merge
from latebloom.flows.run.errors import UsageError
from latebloom.flows.run.folder import read_config

__all__ = ["named_preset", "named_source", "resolve"]


def named_preset(name: str) -> dict[str, Any]:
    """The settings of a row of the papers, as nested keys; wrong usage where there is no such row."""
    from latebloom.flows.config.presets import PRESETS

    if name not in PRESETS:
        raise UsageError(f"no preset is called {name!r}; there are {', '.join(PRESETS)}")
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
    from latebloom.flows.config.compare import (
        SAMPLING,
        CompareConfig,
        RunConfig,
        one_setting,
        preset,
        setting_of,
    )

    if sampling is not None:
        if sampling not in SAMPLING:
            raise UsageError(f"no sampling is called {sampling!r}; there are {', '.join(SAMPLING)}")
        settings = merge({"sample": SAMPLING[sampling]}, settings)

    settings = _with_coreset(settings, kind, row)
    many = sorted({"arms", "optimizers", "seeds", "workers"} & set(settings))
    if kind == "run" and many:
        raise UsageError(f"run is one setting and one seed; {', '.join(many)} can be given to compare")
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
            raise ValueError(f"{out} holds a comparison; go on with `latebloom compare --out {out}`")
        compares = setting is None
        base = (before if setting is None else setting).model_dump(mode="json")
        base |= {} if kind == "run" else {"workers": before.workers}
    else:
        raise UsageError("name a data source, or the run folder of an earlier command with --out")
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
