"""What a run found: the values behind report.json, and the honest sentences that follow from them."""

import dataclasses
import math
from typing import Any

import numpy as np

__all__ = ["ArmResult", "LevelResult", "Report", "SeedSelection", "StageCost", "arm_results", "sentences"]


@dataclasses.dataclass(frozen=True)
class SeedSelection:
    """What one seed's early classifier called slow. Errors are of the early classifier on training images, 0..1."""

    seed: int
    count: int
    fraction: float
    slow_error: float
    fast_error: float


@dataclasses.dataclass(frozen=True)
class LevelResult:
    """The synthetic images of one level."""

    level: str  # "8 of 20"
    log_snr: float | None  # None: pure noise
    images: int
    states: dict[str, int]
    label_probability: float  # mean
    reference_distance: float  # mean, in grey levels


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """One arm with one optimizer over all seeds.

    Attributes:
        errors: test error of each seed, 0..1, in the order of the seeds; likewise the other lists.
        difference, standard_error: mean over seeds of error - error of `original` with the same optimizer and seed,
            and its standard error; 0 and 0 for `original` itself, NaN-free: None where n < 2 or there is no original.
        images_added: synthetic or duplicated images beside the real ones, mean over seeds.
        steps: optimizer steps, mean over seeds.
        train_seconds: of one classifier, mean.
        generation_seconds: share of the measured generation, by denoiser calls of the images used, mean over seeds.
        train_error: training error by epoch, of the first seed.
    """

    arm: str
    optimizer: str
    errors: list[float]
    mean: float
    std: float | None
    difference: float | None
    standard_error: float | None
    images_added: float
    steps: float
    train_seconds: float
    generation_seconds: float
    train_error: list[float]

    @property
    def n(self) -> int:
        return len(self.errors)


@dataclasses.dataclass(frozen=True)
class StageCost:
    """What a stage cost when it was really run."""

    stage: str
    seconds: float
    peak_memory_mb: float
    skipped: bool  # this time: its digest said it was done


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything report.json holds; report.html shows the same with pictures.

    Attributes:
        generator_seen: how many of the training images the generator was trained on, None where it does not say.
        early_errors: per seed, training error by epoch of early training.
        jaccard: mean overlap of the slow sets of two seeds, None with one seed; `jaccard_chance` the same for random
            sets of their sizes.
        class_slow: per class, [name, images, slow images (mean over seeds), mean loss fast, mean loss slow].
    """

    title: str
    created: str
    data: dict[str, Any]  # source, train, test, classes, image_shape
    generator: dict[str, Any]  # name, digest, trained_on
    generator_seen: int | None
    separating_epoch: int
    separating_epoch_chosen: bool  # by the knee rule; False: given
    early_errors: list[list[float]]
    selections: list[SeedSelection]
    jaccard: float | None
    jaccard_chance: float | None
    class_slow: list[list[Any]]
    synthetic: dict[str, Any]  # rows, states, digest, bytes, denoiser_calls, seconds
    levels: list[LevelResult]
    arms: list[ArmResult]
    sentences: list[str]
    warnings: list[str]
    stages: list[StageCost]
    config: dict[str, Any]
    versions: dict[str, str]
