"""From options, files and run folders to the config of a command."""

import json
import tomllib
from pathlib import Path
from typing import Any

import typer

from latebloom.data.store import as_path
from latebloom.flows.config.merge import put

__all__ = [
    "names",
    "nested",
    "numbers",
]


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
