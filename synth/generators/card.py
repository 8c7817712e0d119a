"""What latebloom.json says of a generator that was fitted here. Light to import."""

from pathlib import Path
from typing import Any

from latebloom.synth.generators.folder import read_config

__all__ = ["CARD_FILE", "read_card"]

CARD_FILE = "latebloom.json"
# The keys that are read here; fit.py writes more.
_KEYS: dict[str, tuple[type[list[str]] | type[str], str]] = {
    "class_names": (list, "a list of names"),
    "trained_on_sha256": (list, "a list of digests"),
    "trained_on": (str, "a text"),
    "licence": (str, "a text"),
}


def read_card(folder: Path) -> dict[str, Any]:
    """The content of the folder's latebloom.json; empty where there is none; ValueError where it is damaged."""
    file = folder / CARD_FILE
    if not file.is_file():
        return {}
    card = read_config(file)
    for name, (kind, expected) in _KEYS.items():
        value = card.get(name, kind())
        if not isinstance(value, kind) or not all(isinstance(text, str) for text in value):
            raise ValueError(f"{file} has {name} {str(value)[:60]}, expected {expected}; give it as it was written")
    return card
