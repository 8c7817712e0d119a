"""`latebloom settings` and `latebloom presets`: what can be set, and to what."""

import dataclasses
import json
import shutil
import textwrap
from typing import Annotated

import pydantic
import typer

from latebloom.data.store import json_text
from latebloom.flows.cli.options import Command
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.config.presets import PRESETS, RECIPES
from latebloom.flows.config.settings import Setting, describe, no_such_setting
from latebloom.flows.config.tools import CoresetRunConfig, FitGeneratorConfig
from latebloom.flows.run.errors import UsageError

__all__ = ["add_describing_commands"]

_CONFIGS: dict[str, type[pydantic.BaseModel]] = {
    "run": CompareConfig,
    "coreset": CoresetRunConfig,
    "fit-generator": FitGeneratorConfig,
}


def add_describing_commands(app: typer.Typer) -> None:
    """Register `settings` and `presets`."""
    app.command("settings", cls=Command)(_settings)
    app.command("presets", cls=Command)(_presets)


def _settings(
    prefix: Annotated[
        str, typer.Argument(help="Only those below it, such as train or train.lr", metavar="PREFIX")
    ] = "",
    of: Annotated[
        str, typer.Option("--of", help="Of which command: run (and all its stages), coreset or fit-generator")
    ] = "run",
    as_json: Annotated[bool, typer.Option("--json", help="Print them as JSON")] = False,
) -> None:
    """List every setting with its type, range, default and description: what --set, --config and the forms take."""
    if of not in _CONFIGS:
        raise UsageError(f"--of got {of!r}, expected one of {', '.join(_CONFIGS)}")
    listed = [one for one in describe(_CONFIGS[of]) if f"{one.name}.".startswith(f"{prefix.rstrip('.')}.".lstrip("."))]
    if not listed:
        raise UsageError(
            no_such_setting(_CONFIGS[of], prefix, "latebloom settings" + ("" if of == "run" else f" --of {of}"))
        )
    if as_json:
        print(json_text([dataclasses.asdict(one) for one in listed]))
        return
    width = min(shutil.get_terminal_size().columns, 120)
    for one in listed:
        print(_heading(one))
        print(textwrap.fill(one.about, width, initial_indent="    ", subsequent_indent="    "))


def _heading(setting: Setting) -> str:
    kind = f"{setting.type}, {setting.range}" if setting.range else setting.type
    return f"{setting.name}  ({kind})  [default: {json.dumps(setting.default)}]"


def _presets() -> None:
    """List what --preset takes: recipes for photos, and the settings of the papers' rows."""
    width = max(map(len, PRESETS))
    for name, one in (RECIPES | PRESETS).items():
        print(f"{name:{width}}  {one.about}")
