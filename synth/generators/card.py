"""What latebloom.json says of a generator that was fitted here. Light to import."""

from pathlib import Path
from typing import Any

from latebloom.data.store import read_json

__all__ = ["CARD_FILE", "read_card"]

CARD_FILE = "latebloom.json"


def read_card(folder: Path) -> dict[str, Any]:
    """The content of the folder's latebloom.json; empty where there is none."""
    return read_json(folder / CARD_FILE) if (folder / CARD_FILE).is_file() else {}
