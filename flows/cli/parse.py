"""What is typed: options, `--set` assignments and a settings file, as nested settings."""

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from latebloom.data.store import as_path
from latebloom.flows.config.merge import put
from latebloom.flows.run.errors import UsageError

__all__ = ["names", "nested", "numbers"]


def nested(file: str | None, given: Mapping[str, Any], assignments: list[str] | None) -> dict[str, Any]:
    """Nested settings: a file's, over them the options that were given, over them the `--set` ones.

    Args:
        given: values by dotted setting; None: not given.

    Raises:
        UsageError: a file that cannot be read, or an assignment that is none.
    """
    settings = _read_settings(as_path(file)) if file else {}
    assigned = {key: value for key, value in given.items() if value is not None}
    for assignment in assignments or []:
        key, equals, text = assignment.partition("=")
        if not equals or not key:
            raise UsageError(f"--set got {assignment!r}, expected KEY=VALUE, such as train.lr=0.05")
        assigned[key] = _value(text)
    for key, value in assigned.items():
        try:
            put(settings, key, value)
        except ValueError as error:
            raise UsageError(str(error)) from error
    return settings


def _value(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        # A shell takes the quotation marks away: [ok,flat] is meant as ["ok", "flat"].
        listed = text.startswith("[") and text.endswith("]") and '"' not in text
        return names(text[1:-1]) if listed else text


def _read_settings(file: Path) -> dict[str, Any]:
    if not file.is_file():
        raise UsageError(f"there is no config file at {file}; give the path of a .toml or .json file")
    if file.suffix not in (".toml", ".json"):
        raise UsageError(f"{file} is neither .toml nor .json; write the settings as one of these")
    try:
        settings = tomllib.loads(file.read_text()) if file.suffix == ".toml" else json.loads(file.read_text())
    except ValueError as error:
        raise UsageError(f"{file} cannot be read: {error}") from error
    if not isinstance(settings, dict):
        raise UsageError(f"{file} holds a {type(settings).__name__}, expected settings by name")
    return settings


def names(text: str) -> list[str]:
    """`a, b` as a list."""
    return [name.strip() for name in text.split(",") if name.strip()]


def numbers(text: str) -> list[int]:
    """`1,2` as a list.

    Raises:
        UsageError: something in it is no whole number.
    """
    try:
        return [int(word) for word in names(text)]
    except ValueError:
        raise UsageError(f"got {text!r}, expected whole numbers with commas between, such as 40,50") from None
