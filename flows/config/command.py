"""The command that makes a comparison again."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from latebloom.flows.config.compare import CompareConfig, preset
from latebloom.flows.config.merge import differences, merge
from latebloom.flows.config.presets import PHOTO_SIDE, PHOTOS, RECIPES

__all__ = ["changed_settings", "command_of", "dotted"]

_SMALL = ("digits", "cifar10", "cifar100", "svhn", "tiny-imagenet")


def command_of(config: CompareConfig) -> str:
    """The command line of `latebloom compare` with the source and every setting that differs from the defaults."""
    words, base = _start(config)
    words = ["latebloom", "compare", config.data.source, *words]
    for name, value, _ in _changed(config, base):
        words += ["--set", f"{name}={_text(value)}"]
    return shlex.join(words)


def changed_settings(config: CompareConfig) -> list[tuple[str, Any, Any]]:
    """Every setting that `command_of` names: dotted name, value, and the default of this source and preset."""
    return _changed(config, _start(config)[1])


def _start(config: CompareConfig) -> tuple[list[str], dict[str, Any]]:
    """The words that name a preset, if one is to be named, and the settings that a comparison then starts from."""
    source = config.data.source
    words: list[str] = []
    base = merge(preset(source), {"data": {"source": source}})
    if source not in _SMALL or config.data.image_size >= PHOTO_SIDE:  # else the images decide what it starts from
        recipe = RECIPES[PHOTOS].settings
        photos = config.classifier.model == recipe["classifier"]["model"]
        base = merge(base, recipe) if photos else base
        words += ["--preset", PHOTOS if photos else "none"]
    return words, base


def _changed(config: CompareConfig, base: dict[str, Any]) -> list[tuple[str, Any, Any]]:
    values, defaults = config.model_dump(mode="json"), CompareConfig(**base).model_dump(mode="json")
    before = dict(dotted(defaults))
    return [(name, value, before.get(name)) for name, value in dotted(differences(values, defaults))]


def dotted(settings: Mapping[str, Any], place: str = "") -> Iterator[tuple[str, Any]]:
    """Nested settings by their dotted names, such as train.lr."""
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from dotted(value, f"{place}{name}.")
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
