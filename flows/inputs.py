"""What several stages need, read again where it is needed and kept while the process lives."""

import functools
import threading
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import nn

from data.images import LabeledImages
from data.seeds import child_seed
from data.sources import DataConfig, Splits, load
from flows.config import CompareConfig
from flows.run import RunFolder
from synth.denoiser import Denoiser, load_denoiser
from train.checkpoint import load_model
from train.models import build
from train.slow import Method

__all__ = [
    "classifier_seeds",
    "denoiser_of",
    "device_of",
    "early_classifiers",
    "early_folder",
    "images_of",
    "new_classifiers",
    "selected",
    "selection_path",
]


@functools.lru_cache(maxsize=2)
def images_of(config: DataConfig) -> Splits:
    """The splits of a data config."""
    return load(config)


_denoiser_lock = threading.Lock()


@functools.lru_cache(maxsize=1)
def _denoiser(name_or_path: str, device: str) -> Denoiser:
    return load_denoiser(name_or_path, torch.device(device))


def denoiser_of(config: CompareConfig) -> Denoiser:
    """The generator of a config, loaded once a process."""
    with _denoiser_lock:
        return _denoiser(config.generate.generator, str(device_of(config.device)))


def device_of(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device that a config's `device` asks for.

    Raises:
        ValueError: cuda was asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch sees no GPU; use --device auto or cpu")
    return torch.device("cuda" if wanted != "cpu" and torch.cuda.is_available() else "cpu")


def classifier_seeds(config: CompareConfig) -> list[int]:
    """One root seed a classifier. Arms with the same one start from the same weights, which pairs them."""
    return [child_seed(config.seed, "classifier", number) for number in range(config.seeds)]


def new_classifiers(config: CompareConfig, data: LabeledImages) -> list[nn.Module]:
    """A fresh classifier for every seed, on the CPU."""
    model, width = config.classifier.model, config.classifier.width
    return [build(model, data.num_classes, data.image_shape, seed, width) for seed in classifier_seeds(config)]


def early_folder(run: RunFolder, number: int) -> Path:
    """Where the early classifier of seed `number` and its outputs are."""
    return run.path / "early" / f"seed-{number}"


def early_classifiers(run: RunFolder, config: CompareConfig) -> list[nn.Module]:
    """The early classifiers of all seeds, in eval mode on the run's device."""
    models = new_classifiers(config, images_of(config.data).train)
    for number, model in enumerate(models):
        load_model(early_folder(run, number) / "model.safetensors", model)
        model.to(device_of(config.device)).eval()
    return models


def selection_path(run: RunFolder, method: Method, number: int) -> Path:
    """Where the selection of a method and seed is."""
    return run.path / "selection" / method / f"seed-{number}.npz"


def selected(run: RunFolder, method: Method, number: int) -> np.ndarray:
    """The indices that a method selected for a seed, int64 ascending."""
    with np.load(selection_path(run, method, number)) as arrays:
        return arrays["indices"]
