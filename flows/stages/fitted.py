"""Whether a generator is fitted already. Light to import: a command with nothing to do needs no torch."""

from pathlib import Path
from typing import Any

from latebloom.data.images import LabeledImages
from latebloom.data.sources.load import load
from latebloom.flows.config.tools import FitGeneratorConfig
from latebloom.synth.generators.card import read_card

__all__ = ["images_to_fit", "is_fitted"]


def images_to_fit(config: FitGeneratorConfig) -> LabeledImages:
    """The images that a generator is trained on.

    Raises:
        ValueError: the split does not exist.
    """
    splits = load(config.data)
    data = splits.generator if config.split == "generator" else splits.train
    if data is None:
        raise ValueError(f"{config.data.source} has no images kept apart for a generator; use --split train")
    return data


def is_fitted(config: FitGeneratorConfig, out: Path, data: LabeledImages) -> bool:
    """Whether `out` holds this generator already.

    Raises:
        ValueError: it holds something else.
    """
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder that is new or empty")
    if not out.exists() or not any(out.iterdir()):
        return False
    settings: dict[str, Any] = {"config": config.generator.model_dump(mode="json"), "seed": config.seed}
    card = read_card(out)
    same = card.get("trained_on_sha256") == sorted(data.sha256)
    if same and {name: card.get(name) for name in settings} == settings:
        return True
    raise ValueError(f"{out} is not empty and holds something else; give another folder")
