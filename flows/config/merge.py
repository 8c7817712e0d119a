"""Nested settings: set one by its dotted key, put some over others, find what differs."""

from collections.abc import Mapping
from typing import Any

__all__ = ["differences", "merge", "put"]


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


def differences(values: Mapping[str, Any], others: Mapping[str, Any]) -> dict[str, Any]:
    """What of nested `values` is not the same in `others`."""
    found: dict[str, Any] = {}
    for name, value in values.items():
        other = others.get(name)
        if isinstance(value, Mapping) and isinstance(other, Mapping):
            if inner := differences(value, other):
                found[name] = inner
        elif value != other:
            found[name] = value
    return found
