"""What the validation split says: errors and their curves, time to a given error, and which arms were chosen by it."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

from latebloom.flows.report.results import ArmResult, Report, ValidationResult, in_percent, mean_and_std

if TYPE_CHECKING:
    from latebloom.flows.run.records import RetrainFacts

__all__ = ["as_arms", "is_reported", "sentences", "validation_results", "validation_table"]

Name = tuple[str, str]  # arm, optimizer

HEADER = [
    *("arm", "optimizer", "validation error, %", "test error, %", "epochs to original's", "seconds to it"),
    "test error",
]
STATUS = {"named": "named in advance", "chosen": "chosen by validation error", "other": "not reported"}


def validation_results(facts: "dict[Name, RetrainFacts]", named: Sequence[str]) -> list[ValidationResult]:
    """One result per arm and optimizer; none without a validation split.

    Args:
        facts: by (arm, optimizer), what the retraining stage recorded.
        named: the arms that were named in advance; none: all were.
    """
    if not all(fact.validation_errors for fact in facts.values()):
        return []
    means = {name: float(np.mean(fact.validation_errors)) for name, fact in facts.items()}
    best = {
        optimizer: min((name for name in means if name[1] == optimizer), key=means.__getitem__)
        for optimizer in dict.fromkeys(optimizer for _, optimizer in means)
    }
    results = []
    for (arm, optimizer), fact in facts.items():
        mean, std = mean_and_std(fact.validation_errors)
        curve = _mean_curve(fact.validation_by_epoch)
        epochs = _first_at_most(curve, means.get(("original", optimizer)))
        seconds = None
        if epochs is not None:
            seconds = float(np.mean([sum(own[:epochs]) for own in fact.epoch_seconds]))
        status = "named" if not named or arm in named else "other"
        if status == "other" and best[optimizer] == (arm, optimizer):
            status = "chosen"
        results.append(
            ValidationResult(arm, optimizer, fact.validation_errors, mean, std, curve, epochs, seconds, status)
        )
    return results


def is_reported(name: Name, results: Sequence[ValidationResult]) -> bool:
    """Whether the report has the test error of an arm with an optimizer."""
    return all(one.status != "other" for one in results if (one.arm, one.optimizer) == name)


def sentences(results: Sequence[ValidationResult]) -> list[str]:
    """Which test errors may be compared freely, and which belong to what was chosen."""
    if not results:
        return []
    chosen = [one for one in results if one.status == "chosen"]
    others = [one for one in results if one.status == "other"]
    named = list(dict.fromkeys(one.arm for one in results if one.status == "named"))
    if not chosen and not others:
        return [
            "All arms count as named in advance: their test errors may be compared freely. To choose one of them, go "
            "by validation error: a test error that something was chosen by is too good."
        ]
    lines = [f"Named in advance, so that their test errors may be compared freely: {', '.join(named)}."]
    for one in chosen:
        among = sum(other.optimizer == one.optimizer for other in results)
        lines.append(
            f"{one.arm} with {one.optimizer} was chosen among {among} arms by its validation error, "
            f"{in_percent(one.mean, one.std)} %, which is therefore too good; its test error had no part in it."
        )
    if others:
        lines.append(f"Test errors of the other {len(others)} are not reported, so that none can be chosen by them.")
    return lines


def validation_table(report: Report) -> list[list[str]]:
    """Validation and test errors as text: a row of headings with units, then one row per optimizer and arm."""
    tested = {(arm.arm, arm.optimizer): in_percent(arm.mean, arm.std) for arm in report.arms}
    rows = [HEADER]
    for optimizer in dict.fromkeys(one.optimizer for one in report.validation):
        for one in (one for one in report.validation if one.optimizer == optimizer):
            rows.append(
                [
                    *(one.arm, one.optimizer, in_percent(one.mean, one.std)),
                    tested.get((one.arm, one.optimizer), "–"),
                    "–" if one.epochs_to_original is None else f"{one.epochs_to_original:,}",
                    "–" if one.seconds_to_original is None else f"{one.seconds_to_original:,.1f}",
                    STATUS[one.status],
                ]
            )
    return rows


def as_arms(results: Sequence[ValidationResult]) -> list[ArmResult]:
    """The same as arms whose errors are validation errors, and whose training error by epoch is the mean curve."""
    return [
        ArmResult(one.arm, one.optimizer, one.errors, one.mean, one.std, 0.0, 0.0, 0.0, 0.0, one.by_epoch)
        for one in results
    ]


def _mean_curve(by_seed: Sequence[Sequence[float]]) -> list[float]:
    """Mean over seeds by epoch, as far as all of them have epochs."""
    length = min(map(len, by_seed), default=0)
    return [float(np.mean([own[epoch] for own in by_seed])) for epoch in range(length)]


def _first_at_most(curve: Sequence[float], goal: float | None) -> int | None:
    """The first epoch (from 1) at which a curve is at most the goal; None where there is no goal or none is."""
    if goal is None:
        return None
    return next((epoch for epoch, error in enumerate(curve, 1) if error <= goal + 1e-12), None)
