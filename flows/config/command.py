"""The command that makes a comparison again."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from latebloom.flows.config.compare import CompareConfig, preset
from latebloom.flows.config.merge import differences, merge
from latebloom.flows.config.presets import PHOTO_SIDE, PHOTOS, RECIPES

__all__ = ["command_of"]

_SMALL = ("digits", "cifar10", "cifar100", "svhn", "tiny-imagenet")


def command_of(config: CompareConfig) -> str:
    """The command line of `latebloom compare` with the source and every setting that differs from the defaults."""
    source = config.data.source
    base = merge(preset(source), {"data": {"source": source}})
    words = ["latebloom", "compare", source]
    if source not in _SMALL or config.data.image_size >= PHOTO_SIDE:  # else the images decide what it starts from
        recipe = RECIPES[PHOTOS].settings
        photos = config.classifier.model == recipe["classifier"]["model"]
        base = merge(base, recipe) if photos else base
        words += ["--preset", PHOTOS if photos else "none"]
    changed = differences(config.model_dump(mode="json"), CompareConfig(**base).model_dump(mode="json"))
    for name, value in _dotted(changed):
        words += ["--set", f"{name}={_text(value)}"]
    return shlex.join(words)


def _dotted(settings: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{place}{name}.")
        else:
            yield f"{place}{name}", value


def _text(value: Any) -> str:
    """A value as `--set` reads it: JSON, and text as it is where that is no JSON."""
    if isinstance(value, str) and not value.startswith("["):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
