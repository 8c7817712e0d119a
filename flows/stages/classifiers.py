"""The classifiers of a run: their seeds, fresh ones, and those with weights from a file.

Light to import: torch comes with the first network.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from latebloom.data.images import LabeledImages
from latebloom.data.seeds import child_seed
from latebloom.flows.config.compare import ClassifierConfig, CompareConfig
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.stages.loaders import device_of

if TYPE_CHECKING:
    from torch import nn

__all__ = ["classifier_seeds", "early_folder", "early_weights", "loaded_classifiers", "new_classifiers"]


def classifier_seeds(config: CompareConfig) -> list[int]:
    """One root seed a classifier. Arms with the same one start from the same weights, which pairs them."""
    return [child_seed(config.seed, "classifier", number) for number in range(config.seeds)]


def new_classifiers(config: CompareConfig, data: LabeledImages, count: int | None = None) -> "list[nn.Module]":
    """A fresh classifier for these images, on the CPU, for every seed or the first `count`."""
    return [_new(config.classifier, data, seed) for seed in classifier_seeds(config)[:count]]


def _new(config: ClassifierConfig, data: LabeledImages, seed: int) -> "nn.Module":
    from latebloom.train.models.build import build

    return build(config.model, data.num_classes, data.image_shape, seed, config.width, config.weights)


def loaded_classifiers(config: CompareConfig, data: LabeledImages, files: Sequence[Path]) -> "list[nn.Module]":
    """Classifiers with the weights in these files, in eval mode on the run's device.

    Raises:
        ValueError: a file that does not hold the weights of this classifier.
    """
    from latebloom.train.loop.checkpoint import load_model

    models = [_new(config.classifier, data, config.seed) for _ in files]
    for model, file in zip(models, files, strict=True):
        load_model(file, model)
        model.to(device_of(config.device)).eval()
    return models


def early_folder(run: RunFolder, number: int) -> Path:
    """Where the early classifier of seed `number` and its outputs are."""
    return run.path / "early" / f"seed-{number}"


def early_weights(run: RunFolder, seeds: int) -> list[Path]:
    """The files with the weights of the early classifiers."""
    return [early_folder(run, number) / "model.safetensors" for number in range(seeds)]
