"""Histograms of scores as SVG in the colours of the page."""

from collections.abc import Sequence

from markupsafe import Markup, escape

from latebloom.flows.report.results import ScoreHistogram

__all__ = ["histogram_svg"]

_WIDTH, _HEIGHT = 300, 130
_LEFT, _RIGHT, _TOP, _BOTTOM = 6, 294, 24, 112


def histogram_svg(found: ScoreHistogram, states: Sequence[str]) -> Markup:
    """Bars stacked by state, those that are not ok below, and a dashed line at each threshold that is on.

    Args:
        states: in the order of the page's colours `--s0`, `--s1`, ...
    """
    low, high = found.edges[0], found.edges[-1]

    def x(value: float) -> float:
        return _LEFT + (_RIGHT - _LEFT) * (value - low) / (high - low)

    most = max(map(sum, zip(*found.counts.values(), strict=True))) or 1
    order = sorted(found.counts, key=lambda state: state == "ok")
    bars = []
    for place in range(len(found.edges) - 1):
        left, right, base = x(found.edges[place]), x(found.edges[place + 1]), float(_BOTTOM)
        for state in order:
            images = found.counts[state][place]
            if images:
                height = max(1.0, (_BOTTOM - _TOP) * images / most)  # one image of thousands is still there
                base -= height
                bars.append(
                    Markup('<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" style="fill: {}"/>').format(
                        left, base, right - left - 0.6, height, f"var(--s{states.index(state)})"
                    )
                )
    lines = [
        Markup(
            '<path d="M{0:.1f} {1}V{2}" style="stroke: var(--ink); stroke-dasharray: 4 3"/>'
            '<text x="{3:.1f}" y="{4}" text-anchor="{5}">{6:.4g}</text>'
        ).format(x(limit.value), _TOP - 6, _BOTTOM, *_beside(x(limit.value)), limit.value)
        for limit in found.limits
        if limit.on
    ]
    ends = Markup('<path d="M{} {}H{}" style="stroke: var(--muted)"/>').format(_LEFT, _BOTTOM, _RIGHT)
    above = "≥ " if found.beyond else ""
    for at, anchor, text in ((_LEFT, "start", f"{low:.3g}"), (_RIGHT, "end", f"{above}{high:.3g}")):
        ends += Markup('<text x="{}" y="{}" text-anchor="{}">{}</text>').format(at, _BOTTOM + 14, anchor, text)
    head = f'<svg class="histogram" viewBox="0 0 {_WIDTH} {_HEIGHT}" role="img" aria-label="{escape(found.score)}">'
    return Markup(head) + Markup("").join([*bars, *lines]) + ends + Markup("</svg>")


def _beside(at: float) -> tuple[float, float, str]:
    """Where the number of a line at `at` is written: inside of the picture."""
    if at < _WIDTH / 4:
        return max(at, _LEFT), _TOP - 10, "start"
    return (min(at, _RIGHT), _TOP - 10, "end") if at > 3 * _WIDTH / 4 else (at, _TOP - 10, "middle")
