"""Fit a generator on a data set and keep it as a diffusers folder."""

import time
from pathlib import Path
from typing import Any

from latebloom.data.images import LabeledImages
from latebloom.data.sources.load import load
from latebloom.data.store import atomic_folder
from latebloom.flows.config.tools import FitGeneratorConfig
from latebloom.flows.run.progress import meter, say
from latebloom.flows.stages.loaders import device_of
from latebloom.flows.stages.run_source import check_outside
from latebloom.synth.fit import fit_generator, save_generator
from latebloom.synth.generators.diffusers_folder import read_card

__all__ = ["FitGeneratorConfig", "check_fit", "fit_and_save"]


def check_fit(config: FitGeneratorConfig, out: Path) -> tuple[LabeledImages, bool]:
    """The images to train on, and whether `out` holds this generator already.

    Raises:
        ValueError: `out` holds something else, the split does not exist, or there is no GPU where one is asked for.
    """
    device_of(config.device)
    check_outside(out, config.data.source)
    splits = load(config.data)
    for note in splits.notes:
        say(note)
    data = splits.generator if config.split == "generator" else splits.train
    if data is None:
        raise ValueError(f"{config.data.source} has no images kept apart for a generator; use --split train")
    if out.exists() and not out.is_dir():
        raise ValueError(f"{out} is a file; give a folder that is new or empty")
    if not out.exists() or not any(out.iterdir()):
        return data, False
    settings: dict[str, Any] = {"config": config.generator.model_dump(mode="json"), "seed": config.seed}
    card = read_card(out)
    same = card.get("trained_on_sha256") == sorted(data.sha256)
    if same and {name: card.get(name) for name in settings} == settings:
        return data, True
    raise ValueError(f"{out} is not empty and holds something else; give another folder")


def fit_and_save(config: FitGeneratorConfig, out: Path) -> str:
    """Train a pixel generator and write it to `out`; skip where the same one is there already.

    Raises:
        ValueError: as `check_fit`, or images that a UNet of these levels cannot take.
    """
    data, there = check_fit(config, out)
    if there:
        say(f"{out} holds this generator already")
        return str(out)
    device = device_of(config.device)
    begin = time.perf_counter()
    with meter("fit generator", config.generator.steps, "steps") as bar:
        fit = fit_generator(data, config.generator, config.seed, device, lambda step, _: bar.add(step - bar.done))
    with atomic_folder(out, "model_index.json") as temporary:
        save_generator(temporary, fit, data, config.generator, config.seed)
    loss = float(fit.losses[-100:].mean())
    say(f"{out}: trained on {len(data):,} images in {time.perf_counter() - begin:.0f} s, mean loss {loss:.4f}")
    return str(out)
