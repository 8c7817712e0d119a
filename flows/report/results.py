"""What a run found: the values behind report.json, and the honest sentences that follow from them."""

import dataclasses
import re
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # the values of a report need no torch
    from latebloom.flows.run.records import RetrainFacts

__all__ = [
    "ArmResult",
    "LevelResult",
    "Report",
    "SeedSelection",
    "StageCost",
    "arm_results",
    "in_percent",
    "mean_and_std",
    "paired",
    "sentences",
]


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
    difference: float | None
    standard_error: float | None
    images_added: float
    steps: float
    train_seconds: float
    generation_seconds: float
    train_error: list[float]
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

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> "Report":
        """The report that report.json holds."""
        nested = {"selections": SeedSelection, "levels": LevelResult, "arms": ArmResult, "stages": StageCost}
        made = {name: [kind(**item) for item in value[name]] for name, kind in nested.items()}
        return cls(**{**value, **made})


def mean_and_std(values: Sequence[float]) -> tuple[float, float | None]:
    """Mean and standard deviation over seeds (ddof 1); None for the deviation of a single value."""
    return float(np.mean(values)), float(np.std(values, ddof=1)) if len(values) > 1 else None


def in_percent(share: float, spread: float | None = None, signed: bool = False) -> str:
    """A share, and its spread where there is one, in percent: `4.20 ± 0.31`, or `+4.20 ± 0.31`."""
    shown = f"{round(100 * share, 2) + 0.0:{'+' if signed else ''}.2f}"  # + 0.0: no -0.00
    return shown if spread is None else f"{shown} ± {100 * spread:.2f}"


def paired(errors: Sequence[float], base: Sequence[float]) -> tuple[float | None, float | None]:
    """Mean of errors - base, seed by seed, and its standard error; (mean, None) for one seed."""
    differences = np.subtract(errors, base)
    if len(differences) < 2:
        return float(differences.mean()), None
    return float(differences.mean()), float(differences.std(ddof=1) / np.sqrt(len(differences)))


def arm_results(facts: dict[tuple[str, str], "RetrainFacts"], seconds_per_call: float) -> list[ArmResult]:
    """One result per arm and optimizer.

    Args:
        facts: by (arm, optimizer), what the retraining stage recorded.
        seconds_per_call: measured seconds of generation per denoiser call.
    """
    results = []
    for (arm, optimizer), fact in facts.items():
        errors = fact.errors
        mean, std = mean_and_std(errors)
        base = facts.get(("original", optimizer))
        difference, standard_error = paired(errors, base.errors) if base else (None, None)
        results.append(
            ArmResult(
                arm=arm,
                optimizer=optimizer,
                errors=errors,
                mean=mean,
                std=std,
                difference=difference,
                standard_error=standard_error,
                images_added=float(np.mean(fact.images_added)),
                steps=float(np.mean(fact.steps)),
                train_seconds=fact.seconds,
                generation_seconds=float(np.mean(fact.denoiser_calls)) * seconds_per_call,
                train_error=fact.train_error,
                **(fact.strong.model_dump() if fact.strong else {}),
            )
        )
    return results


def sentences(results: Sequence[ArmResult], test_images: int) -> list[str]:
    """What the numbers say, for or against. A difference counts from two standard errors."""
    by_name = {(result.arm, result.optimizer): result for result in results}
    lines = []
    for optimizer in dict.fromkeys(result.optimizer for result in results):
        lines += _strong_sentences(results, optimizer)
        ours = [r for r in results if r.optimizer == optimizer and re.fullmatch(r"ours-\d+", r.arm)]
        if not ours:
            continue
        best = max(ours, key=lambda result: int(result.arm.removeprefix("ours-")))
        k = best.arm.removeprefix("ours-")
        rivals = [
            ("original", "the real images alone"),
            (f"original@{best.arm}", "the real images alone at the same optimizer steps"),
            ("upsample-2", "duplicating the slow images"),
            (f"random-{k}", "augmenting as many random images"),
            (f"all-{k}", "augmenting every image"),
        ]
        for arm, words in rivals:
            rival = by_name.get((arm, optimizer))
            if rival is not None:
                lines.append(_versus(best, rival, words))
    lines += _cost(results)
    if results and results[0].n == 1:
        lines.append("One seed cannot tell a difference from chance: run `latebloom compare` with several.")
    elif results:
        lines.append(
            f"The ± is the standard error over {results[0].n} training seeds on one split and one synthetic set; "
            f"it does not cover the choice of the {test_images:,} test images, of which one is "
            f"{100 / test_images:.2f} points."
        )
    return lines


def _strong_sentences(results: Sequence[ArmResult], optimizer: str) -> list[str]:
    """Each arm with strong copies against the same without, at equal epochs and steps, and a random selection."""
    by_name = {result.arm: result for result in results if result.optimizer == optimizer}
    lines = []
    for name, strong in by_name.items():
        base, plus, selector = name.partition("+")
        if not plus or "@" in name:
            continue
        rivals = {
            base: "the same images without strong copies",
            f"{base}@{name}": "the same images without strong copies at the same optimizer steps",
            f"original@{name}": "the real images alone at the same optimizer steps",
        }
        if selector != "random":
            rivals[f"{base}+random"] = "strong copies of images selected at random"
        if selector != "all":
            rivals[f"{base}+all"] = "strong copies of every image"
        lines += [_versus(strong, by_name[arm], words) for arm, words in rivals.items() if arm in by_name]
        if selector != "all":
            lines.append(_selected(strong))
    return lines


def _selected(strong: ArmResult) -> str:
    """How many images got strong copies, what share of them is synthetic, and what selecting them took."""
    share = ""
    if strong.selected_synthetic is not None and strong.pool_synthetic is not None:
        share = (
            f", of which {strong.selected_synthetic:.0%} are synthetic, as are {strong.pool_synthetic:.0%} of the "
            "images it selects from"
        )
    return (
        f"{strong.optimizer.upper()}: {strong.arm} selects {strong.selected:,.0f} images{share}, "
        f"{strong.selections:,.0f} times in {strong.selection_seconds:.1f} s of a training that takes "
        f"{strong.train_seconds:.1f} s."
    )


def _cost(results: Sequence[ArmResult]) -> list[str]:
    """How much more generation augmenting everything takes; the optimizers share the images."""
    first = {result.arm: result for result in reversed(results)}
    lines = []
    for arm, everything in first.items():
        ours = first.get(arm.replace("all-", "ours-"))
        if re.fullmatch(r"all-\d+", arm) and ours is not None and ours.images_added > 0:
            lines.append(
                f"{arm} makes {everything.images_added:.0f} images where {ours.arm} makes {ours.images_added:.0f}: "
                f"{everything.images_added / ours.images_added:.1f} times the generation."
            )
    return lines


def _versus(ours: ArmResult, rival: ArmResult, words: str) -> str:
    difference, standard_error = paired(ours.errors, rival.errors)
    assert difference is not None
    head = f"{ours.optimizer.upper()}: {ours.arm} against {words} ({rival.arm})"
    numbers = f"{in_percent(ours.mean)} % against {in_percent(rival.mean)} % test error"
    if standard_error is None:
        return f"{head}: {numbers}, one seed each."
    measured = f"{in_percent(difference, standard_error, signed=True)} points, n = {ours.n}"
    if abs(difference) <= 2 * standard_error or difference == 0:
        verdict = "no difference that these seeds can show"
    else:
        verdict = "lower" if difference < 0 else "higher"
    return f"{head}: {verdict}; {numbers} ({measured})."
