"""What a run found: the values behind report.json."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from latebloom.flows.report.statistics import ratio_of_means

if TYPE_CHECKING:  # the values of a report need no torch
    from latebloom.flows.run.records import RetrainFacts

__all__ = [
    "ArmResult",
    "Comparison",
    "Confusion",
    "GenerationCost",
    "LevelResult",
    "Limit",
    "Name",
    "Report",
    "ScoreHistogram",
    "SeedSelection",
    "StageCost",
    "ValidationResult",
    "arm_results",
    "in_percent",
    "interval",
    "mean_and_std",
    "p_value",
]

Name = tuple[str, str]  # arm, optimizer


@dataclasses.dataclass(frozen=True)
class SeedSelection:
    """What one seed's early classifier called slow. Errors are of the early classifier on training images, 0..1."""

    seed: int
    count: int
    fraction: float
    slow_error: float | None  # None: not known, since no logits were given
    fast_error: float | None


@dataclasses.dataclass(frozen=True)
class LevelResult:
    """The synthetic images of one level."""

    level: str  # "8 of 20"
    log_snr: float | None  # None: pure noise
    images: int
    states: dict[str, int]
    label_probability: float | None  # mean; None: no classifier scored the images
    reference_distance: float  # mean, in grey levels
    frechet: float | None = None  # distance to the training images in the reference classifier; None: too few images
    fid: float | None = None  # the same in Inception's features, where it was measured


@dataclasses.dataclass(frozen=True)
class Limit:
    """A threshold at a score: its setting in `quality`, its value, and whether it is on."""

    name: str
    value: float
    on: bool


@dataclasses.dataclass(frozen=True)
class ScoreHistogram:
    """How a score of the synthetic images is distributed.

    Attributes:
        score: its column, or two as a ratio, `a / b`.
        edges: of the bins, one more than there are.
        counts: by state, images in each bin; the last has all above too.
        missing: images that have no such score.
        beyond: images above the last edge.
    """

    score: str
    edges: list[float]
    counts: dict[str, list[int]]
    limits: list[Limit]
    missing: int
    beyond: int


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Two arms, paired by seed. Differences are shares 0..1 of test error: arm minus rival.

    Attributes:
        difference, standard_error: mean over seeds and its standard error; None for one seed.
        ci_low, ci_high: 95 % t interval over training seeds; None for one seed, or where all differ by the same.
        p: two-sided, of the paired t test; None below five seeds. p_holm: adjusted for all comparisons of the report.
        significant: whether p_holm is below 0.05; None below five seeds, where there is no verdict.
        images_error, images_low, images_high: standard error and 95 % interval of the difference over the choice of
            test images, by a paired bootstrap; None in a run that kept no predictions.
        mcnemar: p value of McNemar's exact test of the two classifiers; with one seed only.
    """

    arm: str
    optimizer: str
    rival: str
    rival_optimizer: str
    n: int
    difference: float
    standard_error: float | None
    ci_low: float | None
    ci_high: float | None
    p: float | None
    p_holm: float | None
    significant: bool | None
    images_error: float | None = None
    images_low: float | None = None
    images_high: float | None = None
    mcnemar: float | None = None

    @property
    def name(self) -> Name:
        return self.arm, self.optimizer

    @property
    def rival_name(self) -> Name:
        return self.rival, self.rival_optimizer


# The fields of a comparison with `original` that are fields of the arm too.
_OF_COMPARISON = (
    *("difference", "standard_error", "ci_low", "ci_high", "p", "p_holm", "significant"),
    *("images_error", "images_low", "images_high"),
)


@dataclasses.dataclass(frozen=True)
class ArmResult:
    """One arm with one optimizer over all seeds.

    Attributes:
        errors: test error of each seed, 0..1, in the order of the seeds; likewise the other lists.
        difference ... images_high: of the `Comparison` with `original` of the same optimizer; None for `original` and
            where there is none.
        class_errors: test error of each class, mean over seeds; None for a class without test images; empty in a run
            that kept no predictions.
        gain, gain_low, gain_high: of an arm with a selector, the share of what strong copies of every image gain that
            it reaches, 100 (a - weak) / (full - weak) of arXiv 2210.08363 as a share, from means over seeds, with its
            95 % interval by Fieller's theorem; None where the seeds do not show that full gains anything.
        images_added: synthetic or duplicated images beside the real ones, mean over seeds.
        steps: optimizer steps, mean over seeds.
        train_seconds: of one classifier, mean.
        generation_seconds: share of the measured generation, by denoiser calls of the images used, mean over seeds.
        train_error: training error by epoch, of the first seed.
        selected: examples that got strong copies after one selection, mean over selections and seeds; 0 without.
        selected_synthetic, pool_synthetic: share 0..1 of synthetic images among them, and among all they were chosen
            from; None where there are none.
        selections: how often they were selected, mean over seeds.
        selection_seconds: of all selections of one classifier with their forward passes, mean; within `train_seconds`.
        strong_copies: strongly augmented images that were trained on, over the whole run, mean over seeds.
    """

    arm: str
    optimizer: str
    errors: list[float]
    mean: float
    std: float | None
    images_added: float
    steps: float
    train_seconds: float
    generation_seconds: float
    train_error: list[float]
    difference: float | None = None
    standard_error: float | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    p: float | None = None
    p_holm: float | None = None
    significant: bool | None = None
    images_error: float | None = None
    images_low: float | None = None
    images_high: float | None = None
    class_errors: list[float | None] = dataclasses.field(default_factory=list)
    gain: float | None = None
    gain_low: float | None = None
    gain_high: float | None = None
    selected: float = 0.0
    selected_synthetic: float | None = None
    pool_synthetic: float | None = None
    selections: float = 0.0
    selection_seconds: float = 0.0
    strong_copies: float = 0.0

    @property
    def n(self) -> int:
        return len(self.errors)


@dataclasses.dataclass(frozen=True)
class ValidationResult:
    """One arm with one optimizer on the validation split.

    Attributes:
        errors: error 0..1 of each seed at the end of training; `mean` and `std` over them.
        by_epoch: error after each epoch, mean over seeds.
        epochs_to_original, seconds_to_original: of training, until `by_epoch` is first at most the error of `original`
            at its end, with the same optimizer; None where it never is. Seconds are a mean over seeds.
        status: "named" in advance; "chosen" by the least validation error of its optimizer; "other", whose test error
            is not reported.
    """

    arm: str
    optimizer: str
    errors: list[float]
    mean: float
    std: float | None
    by_epoch: list[float]
    epochs_to_original: int | None
    seconds_to_original: float | None
    status: str


@dataclasses.dataclass(frozen=True)
class StageCost:
    """What a stage cost when it was really run."""

    stage: str
    seconds: float
    peak_memory_mb: float
    skipped: bool  # this time: its digest said it was done


@dataclasses.dataclass(frozen=True)
class Confusion:
    """What an arm takes for what; test images, mean over seeds.

    Attributes:
        matrix: by class (row) and the class it is taken for (column); empty where there are too many classes.
        pairs: [class, the class it is taken for, images], the wrong ones, most first.
    """

    arm: str
    optimizer: str
    matrix: list[list[float]]
    pairs: list[list[Any]]


@dataclasses.dataclass(frozen=True)
class GenerationCost:
    """The synthetic images an arm takes: for one seed (mean), and for all, each made once. Seconds are its share."""

    arm: str
    images: float
    seconds: float
    images_of_all_seeds: int
    seconds_of_all_seeds: float


@dataclasses.dataclass(frozen=True)
class Report:
    """Everything report.json holds; report.html shows the same with pictures.

    Attributes:
        generator_seen: how many of the training images the generator was trained on, None where it does not say.
        early_errors: per seed, training error by epoch of early training, as far as it went.
        early_share: early epochs that were trained over those of one training, mean over seeds; None without.
        jaccard: mean overlap of the slow sets of two seeds, None with one seed or a shared set; `jaccard_chance` the
            same for random sets of their sizes.
        selectors: what methods selected and by how much they agree: `Selected` of selections.py, as plain values.
        changed: of each setting that is not its default, [dotted name, value, default].
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
    comparisons: list[Comparison]  # all that a verdict is made on, those with `original` among them
    sentences: list[str]
    warnings: list[str]
    stages: list[StageCost]
    confusions: list[Confusion]
    generation: list[GenerationCost]
    command: str  # makes this again, with every setting that is not a default
    config: dict[str, Any]
    versions: dict[str, str]
    selectors: dict[str, Any] = dataclasses.field(default_factory=dict)
    early_share: float | None = None
    validation: list[ValidationResult] = dataclasses.field(default_factory=list)
    scores: list[ScoreHistogram] = dataclasses.field(default_factory=list)
    changed: list[list[Any]] = dataclasses.field(default_factory=list)

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Report":
        """The report that report.json holds."""
        nested = {
            "selections": SeedSelection,
            "levels": LevelResult,
            "arms": ArmResult,
            "comparisons": Comparison,
            "stages": StageCost,
            "confusions": Confusion,
            "generation": GenerationCost,
            "validation": ValidationResult,
        }
        made = {name: [kind(**item) for item in value.get(name, [])] for name, kind in nested.items()}
        scores = [
            ScoreHistogram(**{**item, "limits": [Limit(**limit) for limit in item["limits"]]})
            for item in value.get("scores", [])
        ]
        return cls(**{**value, **made, "scores": scores})


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation over seeds (ddof 1); None for the deviation of a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def in_percent(share: float, spread: float | None = None, signed: bool = False) -> str:
    """A share, and its spread where there is one, in percent: `4.20 ± 0.31`, or `+4.20 ± 0.31`."""
    shown = f"{round(100 * share, 2) + 0.0:{'+' if signed else ''}.2f}"  # + 0.0: no -0.00
    return shown if spread is None else f"{shown} ± {100 * spread:.2f}"


def interval(low: float | None, high: float | None) -> str:
    """An interval of shares in percent: `-1.20 to -0.60`; a dash where there is none."""
    return "–" if low is None or high is None else f"{in_percent(low, signed=True)} to {in_percent(high, signed=True)}"


def p_value(p: float) -> str:
    """A p value in two digits: `0.034`, `below 0.001`."""
    return "below 0.001" if p < 0.001 else f"{p:.2g}"


def arm_results(
    facts: Mapping[Name, "RetrainFacts"],
    seconds_per_call: float,
    comparisons: Sequence[Comparison],
    by_class: Mapping[Name, np.ndarray],
) -> list[ArmResult]:
    """One result per arm and optimizer.

    Args:
        facts: by (arm, optimizer), what the retraining stage recorded.
        seconds_per_call: measured seconds of generation per denoiser call.
        comparisons: among them those with `original` of the same optimizer.
        by_class: by (arm, optimizer), test error of each class, float (C,), NaN for none; of the arms that have it.
    """
    to_original = {one.name: one for one in comparisons if one.rival_name == ("original", one.optimizer)}
    results = []
    for (arm, optimizer), fact in facts.items():
        mean, std = mean_and_std(fact.errors)
        found = to_original.get((arm, optimizer))
        results.append(
            ArmResult(
                arm=arm,
                optimizer=optimizer,
                errors=fact.errors,
                mean=mean,
                std=std,
                images_added=float(np.mean(fact.images_added)),
                steps=float(np.mean(fact.steps)),
                train_seconds=fact.seconds,
                generation_seconds=float(np.mean(fact.denoiser_calls)) * seconds_per_call,
                train_error=fact.train_error,
                class_errors=[None if np.isnan(one) else float(one) for one in by_class.get((arm, optimizer), ())],
                **({name: getattr(found, name) for name in _OF_COMPARISON} if found else {}),
                **_gain(arm, optimizer, facts),
                **(fact.strong.model_dump() if fact.strong else {}),
            )
        )
    return results


def _gain(arm: str, optimizer: str, facts: Mapping[Name, "RetrainFacts"]) -> dict[str, Any]:
    """How much of the gain of strong copies of every image a selector reaches, where that can be said."""
    base, plus, selector = arm.partition("+")
    weak, full = facts.get((base, optimizer)), facts.get((f"{base}+all", optimizer))
    if not plus or selector == "all" or "@" in arm or weak is None or full is None:
        return {}
    own = facts[arm, optimizer].errors
    found = ratio_of_means(np.subtract(weak.errors, own), np.subtract(weak.errors, full.errors))
    return {} if found is None else dict(zip(("gain", "gain_low", "gain_high"), found, strict=True))
