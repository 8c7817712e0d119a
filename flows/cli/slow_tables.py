"""What `latebloom select` prints: which images are slow, by class and by name, and what cleanlab says of them."""

import json
from typing import Any

import numpy as np
from rich.console import Console

from latebloom.flows.cli.tables import print_whole, table
from latebloom.flows.run.folder import RunFolder, read_config
from latebloom.flows.run.records import SLOW_LIST, LabelIssueFacts
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.slow_list import SlowList, slow_list, slow_list_path

__all__ = ["print_slow"]

_MOST_CLASSES = 40
_SLOWEST = 10


def print_slow(folder: RunFolder, result: str, as_json: bool) -> None:
    """The slow images of a run: counts by class, the slowest by name, and their overlap with label issues.

    Args:
        result: what the flow returned, for JSON.
    """
    issues = folder.record(SLOW_LIST).facts.label_issues
    found = slow_list(RunContext(folder, read_config(folder.path)))
    if as_json:
        print(
            json.dumps(
                {"result": result, "slow_list": _json(folder, found, issues), "stages": folder.records()}, indent=2
            )
        )
        return
    console = Console()
    rows = _by_class(found)
    header = ("class", "images", "slow", "share", "loss of slow", "loss of fast")
    print_whole(console, table("", header, rows[:_MOST_CLASSES]))
    if len(rows) > _MOST_CLASSES:
        console.print(f"... and {len(rows) - _MOST_CLASSES:,} more classes", style="dim")
    console.print()
    header = ("file", "class", "predicted", "loss", "probability", "votes")
    print_whole(console, table("The slowest images", header, _slowest(found)))
    console.print()
    for line in _compared(found, issues):
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)
    print(slow_list_path(folder.path))


def _json(folder: RunFolder, found: SlowList, issues: LabelIssueFacts | None) -> dict[str, Any]:
    return {
        "file": str(slow_list_path(folder.path)),
        "images": len(found.labels),
        "slow": int(found.slow.sum()),
        "label_issues": issues.model_dump() if issues else None,
    }


def _by_class(found: SlowList) -> list[list[str]]:
    rows = []
    for label, name in enumerate(found.class_names):
        own = found.labels == label
        slow, fast = found.losses[own & found.slow], found.losses[own & ~found.slow]
        share = len(slow) / own.sum() if own.any() else 0.0
        rows.append([name, f"{own.sum():,}", f"{len(slow):,}", f"{share:.0%}", _mean(slow), _mean(fast)])
    return rows


def _mean(losses: np.ndarray) -> str:
    return _shown(losses.mean(), ".3g") if len(losses) else "-"


def _shown(value: float, spec: str) -> str:
    """A number, or a dash where it is not known."""
    return "-" if np.isnan(value) else format(value, spec)


def _slowest(found: SlowList) -> list[list[str]]:
    predicted = found.predicted
    return [
        [
            found.names[row],
            found.class_names[found.labels[row]],
            found.class_names[predicted[row]] if predicted[row] >= 0 else "-",
            _shown(found.losses[row], ".3g"),
            _shown(found.probabilities[row, found.labels[row]], ".3f"),
            f"{found.counts[row]} of {len(found.voters)}",
        ]
        for row in found.order[:_SLOWEST].tolist()
    ]


def _compared(found: SlowList, common: LabelIssueFacts | None) -> list[str]:
    lines = [f"slow: at least half of the {len(found.voters)} seeds say so"] if len(found.voters) > 1 else []
    if common is None and np.isnan(found.probabilities[0, 0]):
        return [*lines, "label issues: not looked for, since cleanlab needs probabilities and none were given"]
    if common is None:
        return [*lines, "label issues: cleanlab is not installed; the extra label-errors (README, Install) adds it"]
    return [
        *lines,
        f"label issues by cleanlab: {common.issues:,}, {common.both:,} of them slow ({common.by_chance:.1f} "
        f"expected at random; Jaccard {common.jaccard:.2f})",
    ]
