"""What the scores of synthetic images decided: how each is distributed beside its thresholds, and what fell out."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from latebloom.data.states import STATES, THRESHOLDS
from latebloom.flows.report.results import Limit, ScoreHistogram

__all__ = ["flagged_rows", "score_histograms"]

_BINS = 30
_FREE = ("brightness",)  # shown, though no threshold is at it


def score_histograms(table: pa.Table, quality: Mapping[str, Any]) -> list[ScoreHistogram]:
    """The distribution by state of every score that was measured, with the thresholds at it.

    Args:
        table: the synthetic data set; its images are not needed.
        quality: the thresholds that its states are by.
    """
    by_score: dict[tuple[str, str], list[str]] = {(name, ""): [] for name in _FREE}
    for name, (threshold, _) in THRESHOLDS.items():
        if name in quality and not isinstance(quality[name], bool):  # a switch is no place on an axis
            by_score.setdefault((threshold.score, threshold.times), []).append(name)
    found = []
    states = np.array(table["state"].to_pylist())
    for (score, times), names in by_score.items():
        values = _values(table, score, times)
        known = np.isfinite(values)
        if not known.any():
            continue
        limits = [Limit(name, float(quality[name]), quality[name] != THRESHOLDS[name][0].off) for name in names]
        edges = _edges(values[known], [limit.value for limit in limits if limit.on])
        counts = {
            state: np.histogram(np.clip(values[known & (states == state)], edges[0], edges[-1]), edges)[0].tolist()
            for state in (*(name for name in STATES if name in states), *sorted(set(states.tolist()) - set(STATES)))
        }
        found.append(
            ScoreHistogram(
                score=f"{score} / {times}" if times else score,
                edges=edges.tolist(),
                counts=counts,
                limits=limits,
                missing=int((~known).sum()),
                beyond=int((values[known] > edges[-1]).sum()),
            )
        )
    return found


def flagged_rows(table: pa.Table, quality: Mapping[str, Any], most: int) -> dict[str, list[tuple[int, str]]]:
    """By state that is not ok, the rows that miss its thresholds by most, and for each which one, and its score.

    Where no threshold decides a state, the first rows.

    Args:
        most: rows of a state.
    """
    states = np.array(table["state"].to_pylist())
    found: dict[str, list[tuple[int, str]]] = {}
    for state in (*STATES, *sorted(set(states.tolist()) - set(STATES))):
        rows = np.flatnonzero(states == state)
        if state == "ok" or not len(rows):
            continue
        names = [name for name, (_, of) in THRESHOLDS.items() if of == state and name in quality]
        # How far above its limit a score may go, or below: 1 is at the limit, 0 is far on the wrong side.
        margins = np.stack([_margins(table, name, quality[name])[rows] for name in names] or [np.ones(len(rows))])
        worst = np.argsort(margins.min(0), kind="stable")[:most]
        missed = [names[margins[:, place].argmin()] if names else "" for place in worst]
        found[state] = [
            (row, _missed(table, quality, name, row) if name else "")
            for row, name in zip(rows[worst].tolist(), missed, strict=True)
        ]
    return found


def _values(table: pa.Table, score: str, times: str) -> np.ndarray:
    values = np.asarray(table[score].to_numpy(), np.float64)
    if not times:
        return values
    other = np.asarray(table[times].to_numpy(), np.float64)
    ratio: np.ndarray = np.divide(values, other, out=np.full(len(values), np.nan), where=other > 0)
    return ratio


def _edges(values: np.ndarray, limits: Sequence[float]) -> np.ndarray:
    """Bins over the values and the limits; a few values far above all others are left to the last bin."""
    low, high = min([values.min(), *limits]), max([values.max(), *limits])
    usual = 1.25 * max([float(np.quantile(values, 0.98)), *limits])
    if 0 < usual < high:
        high = usual
    if high <= low:
        low, high = low - 0.5, low + 0.5
    return np.linspace(low, high, _BINS + 1)


def _margins(table: pa.Table, name: str, limit: float) -> np.ndarray:
    threshold, _ = THRESHOLDS[name]
    values = _values(table, threshold.score, threshold.times)
    if isinstance(limit, bool):  # an image fails above 0
        return np.where(values > 0, 0.0, np.inf) if limit else np.full(len(values), np.inf)
    if limit == threshold.off:
        return np.full(len(values), np.inf)
    with np.errstate(divide="ignore", invalid="ignore"):
        margins = limit / values if threshold.ceiling else 1 + (values - limit) / max(abs(limit), 1e-12)
    return np.where(np.isnan(margins), np.inf, margins)


def _missed(table: pa.Table, quality: Mapping[str, Any], name: str, row: int) -> str:
    threshold, _ = THRESHOLDS[name]
    value = _values(table.slice(row, 1), threshold.score, threshold.times)[0]
    limit = "on" if isinstance(quality[name], bool) else f"{quality[name]:g}"
    return f"{name} {limit}, here {value:.3g}"
