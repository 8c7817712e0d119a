"""The tables of a report as text: the arms, and every comparison."""

from typing import NamedTuple

from latebloom.flows.report.charts import ORIGINAL, by_optimizer
from latebloom.flows.report.results import ArmResult, Report, in_percent, interval, p_value
from latebloom.flows.report.statistics import LEAST_SEEDS

__all__ = ["comparison_table", "errors_by_class", "how_to_read", "in_order", "percent", "report_table", "seconds"]


class ClassCell(NamedTuple):
    """Test error of an arm on a class in percent, and its difference to that of `original` in points; None: none."""

    error: str
    difference: float | None

    @property
    def shade(self) -> int:
        """How strongly the cell is coloured, 0 to 60 %: fully at 10 points."""
        return min(60, round(6 * abs(self.difference or 0)))


HEADER = [
    *("arm", "optimizer", "test error, %", "n, seeds", "difference, points", "95 %, over seeds", "p, adjusted"),
    *("images added", "steps", "training, s", "generation, s"),
]
STRONG_HEADER = [  # where an arm has strong copies
    *("gain, % of all's", "selected", "of them synthetic, %", "strong copies", "selection, s"),
]
COMPARISON_HEADER = [
    *("arm", "against", "difference, points", "95 %, over seeds", "95 %, over test images", "p", "p, adjusted"),
]


def report_table(report: Report) -> list[list[str]]:
    """The results as text: a row of headings with units, then one row per optimizer and arm, as `in_order` has them.

    The difference is marked with a * where it is significant: `how_to_read` says by what.
    """
    strong = any(arm.selections for arm in report.arms)
    return [HEADER + (STRONG_HEADER if strong else []), *(_row(arm, strong) for arm in in_order(report))]


def in_order(report: Report) -> list[ArmResult]:
    """The arms of the first optimizer, then those of the next."""
    return [arm for arms in by_optimizer(report.arms).values() for arm in arms]


def comparison_table(report: Report) -> list[list[str]]:
    """Every comparison as text: a row of headings with units, then one row each."""
    rows = [COMPARISON_HEADER]
    for one in report.comparisons:
        ends = [interval(one.ci_low, one.ci_high), interval(one.images_low, one.images_high)]
        names = [f"{one.arm} {one.optimizer}", f"{one.rival} {one.rival_optimizer}"]
        rows.append([*names, _marked(one.difference, one.significant), *ends, _p(one.p), _p(one.p_holm)])
    return rows


def errors_by_class(report: Report) -> list[tuple[str, list[str], list[list[ClassCell]]]]:
    """By optimizer: the arms that kept their predictions, and for each class the cells of these arms."""
    tables = []
    for optimizer, arms in by_optimizer([arm for arm in report.arms if arm.class_errors]).items():
        original = next((arm.class_errors for arm in arms if arm.arm == ORIGINAL), None)
        rows = [
            [
                ClassCell(
                    error=percent(arm.class_errors[label]),
                    difference=_class_difference(arm.class_errors[label], original[label])
                    if original and arm.arm != ORIGINAL
                    else None,
                )
                for arm in arms
            ]
            for label in range(len(arms[0].class_errors))
        ]
        tables.append((optimizer, [arm.arm for arm in arms], rows))
    return tables


def _class_difference(error: float | None, original: float | None) -> float | None:
    return None if error is None or original is None else round(100 * (error - original), 2) + 0.0


def how_to_read(report: Report) -> str:
    """What a difference and its mark mean, or why nothing is marked; empty where nothing is compared."""
    if not report.comparisons:
        return ""
    words = "Difference: mean over seeds to original, with the 95 % interval of a paired t test."
    if report.comparisons[0].n < LEAST_SEEDS:
        return f"{words} No p and no *: below {LEAST_SEEDS} seeds chance looks like a difference too often."
    return (
        f"{words} *: p below 0.05 after Holm's correction for the {len(report.comparisons)} comparisons of this "
        "report, so that chance alone marks anything in fewer than one report of 20."
    )


def _row(arm: ArmResult, strong: bool) -> list[str]:
    difference = "reference" if arm.arm == ORIGINAL else "–"
    if arm.difference is not None:
        difference = _marked(arm.difference, arm.significant)
    cells = [arm.arm, arm.optimizer, in_percent(arm.mean, arm.std), str(arm.n)]
    cells += [difference, interval(arm.ci_low, arm.ci_high), _p(arm.p_holm)]
    cells += [f"{arm.images_added:,.0f}", f"{arm.steps:,.0f}"]
    cells += [seconds(arm.train_seconds), seconds(arm.generation_seconds)]
    if strong and arm.selections:
        gain = "–"
        if arm.gain is not None:
            gain = f"{percent(arm.gain, 0)} ({percent(arm.gain_low, 0)} to {percent(arm.gain_high, 0)})"
        cells += [gain, f"{arm.selected:,.0f}", percent(arm.selected_synthetic, 0), f"{arm.strong_copies:,.0f}"]
        cells.append(seconds(arm.selection_seconds))
    elif strong:
        cells += ["–"] * len(STRONG_HEADER)
    return cells


def _marked(difference: float, significant: bool | None) -> str:
    return in_percent(difference, signed=True) + (" *" if significant else "")


def _p(p: float | None) -> str:
    return "–" if p is None else p_value(p)


def percent(share: float | None, decimals: int = 2) -> str:
    """A share in percent; a dash where there is none."""
    return "–" if share is None else f"{100 * share:.{decimals}f}"


def seconds(value: float | None) -> str:
    """Seconds in about three digits; a dash where there are none."""
    if value is None:
        return "–"
    return f"{value:.1f}" if value < 100 else f"{value:,.0f}"
