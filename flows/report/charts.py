"""The charts of the report: inline SVG in the colours of the page, light, dark and printed."""

import contextlib
import io
import re
import textwrap
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from markupsafe import Markup, escape

from latebloom.flows.config.arms import Arm, parse_arm
from latebloom.flows.report.results import ArmResult, LevelResult
from latebloom.flows.report.statistics import paired_t

if TYPE_CHECKING:
    from matplotlib.axes import Axes

__all__ = [
    "ORIGINAL",
    "arm_charts",
    "by_optimizer",
    "cluster_svg",
    "early_chart",
    "final_charts",
    "sweep_charts",
]

ORIGINAL = "original"  # the arm that the others are compared with

# Charts are drawn in stand-in colours, which then become the CSS variables of the page: light, dark and print.
SERIES = 8
COLOURS = {f"c{number}": f"#0101{number:02x}" for number in range(SERIES)} | {
    "ink": "#010110",
    "muted": "#010111",
    "line": "#010112",
}
CHART_STYLE: dict[Any, Any] = {
    "svg.fonttype": "none",  # text stays text
    "text.parse_math": False,  # a $ in a name is a $
    "font.size": 12,
    "text.color": COLOURS["ink"],
    "axes.labelcolor": COLOURS["muted"],
    "axes.edgecolor": COLOURS["line"],
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "axes.grid": True,
    "axes.formatter.useoffset": False,
    "grid.color": COLOURS["line"],
    "grid.linewidth": 0.6,
    "xtick.color": COLOURS["line"],
    "ytick.color": COLOURS["line"],
    "xtick.labelcolor": COLOURS["muted"],
    "ytick.labelcolor": COLOURS["ink"],
}
CHART_WIDTH = 440  # CSS pixels; a chart is stretched to its column, on a phone to the page


def arm_charts(arms: Sequence[ArmResult]) -> list[tuple[str, bool, Markup]]:
    """(optimizer, whether compared, chart): differences to `original` where there are any, else errors.

    Charts of a kind have one scale.
    """
    found = [(optimizer, *_spreads(own)) for optimizer, own in by_optimizer(arms).items()]
    charts = []
    for optimizer, compared, spreads in found:
        reach = [
            end
            for _, other, lines in found
            if other == compared
            for _, seeds, centre, bar, _ in lines
            for end in (*seeds, centre - bar, centre + bar)
        ]
        margin = max(0.1, 0.06 * (max(reach) - min(reach)))
        limits = (min(reach) - margin, max(reach) + margin)
        charts.append((optimizer, compared, _arm_chart(optimizer, compared, spreads, limits)))
    return charts


def by_optimizer(arms: Sequence[ArmResult]) -> dict[str, list[ArmResult]]:
    """The arms of each optimizer, both in the order they come."""
    return {name: [arm for arm in arms if arm.optimizer == name] for name in dict.fromkeys(a.optimizer for a in arms)}


# arm, one value per seed, mean, half of its 95 % interval over seeds (0: none), whether marked; in percent or points
Spread = tuple[str, list[float], float, float, bool]


def _spreads(arms: Sequence[ArmResult]) -> tuple[bool, list[Spread]]:
    """Whether the arms of one optimizer are compared with `original`, and what to draw of each."""
    original = next((arm for arm in arms if arm.arm == ORIGINAL), None)
    if original is None or len(arms) == 1:
        return False, [
            (arm.arm, [100 * error for error in arm.errors], 100 * arm.mean, _half_interval(arm.errors), False)
            for arm in arms
        ]
    spreads = []
    for arm in arms:
        assert arm.n == original.n, (
            f"{arm.arm} has {arm.n} seeds, original has {original.n}; they are compared in pairs"
        )
        apart = [error - base for error, base in zip(arm.errors, original.errors, strict=True)]
        seeds = [100 * one for one in apart]
        spreads.append((arm.arm, seeds, float(np.mean(seeds)), _half_interval(apart), bool(arm.significant)))
    return True, spreads


def _half_interval(values: Sequence[float]) -> float:
    """Half of the 95 % t interval of the mean over seeds, in percent; 0 where there is none."""
    found = paired_t(np.array(values))
    return 0.0 if np.isnan(found.high) else 100 * float(found.high - found.mean)


def _arm_chart(optimizer: str, compared: bool, spreads: Sequence[Spread], limits: tuple[float, float]) -> Markup:
    def draw(axes: "Axes") -> None:
        if compared:
            axes.axvline(0, color=COLOURS["muted"], linewidth=1, linestyle=(0, (3, 3)))
        for place, (arm, seeds, centre, bar, marked) in enumerate(spreads):
            if compared and arm == ORIGINAL:
                axes.plot([0], [place], "|", color=COLOURS["ink"], markersize=12, markeredgewidth=2)
                continue
            axes.plot(
                seeds,
                [place + 0.24] * len(seeds),
                "o",
                color=COLOURS["c1"],
                alpha=0.65,
                markersize=4,
                markeredgewidth=0,
            )
            axes.errorbar(
                [centre],
                [place - 0.08],
                xerr=[bar] if bar else None,
                fmt="o",
                color=COLOURS["ink"],
                markerfacecolor=COLOURS["ink"] if marked or not compared else "none",
                markersize=6,
                elinewidth=2,
                capsize=3,
            )
        axes.set_yticks(range(len(spreads)), [_wrapped(arm) for arm, *_ in spreads])
        axes.set_ylim(len(spreads) - 0.5, -0.5)
        axes.set_xlim(*limits)
        axes.locator_params(axis="x", nbins=6)
        axes.grid(axis="y", visible=False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("difference to original, percentage points" if compared else "test error, %")

    lines = sum(max(1, _wrapped(arm).count("\n") + 0.6) for arm, *_ in spreads)
    what = "Difference to original" if compared else "Test error"
    return _chart(f"{what} of each arm with {optimizer}", 62 + 30 * lines, draw)


def _wrapped(arm: str) -> str:
    """An arm's name in lines of about 22 letters, broken before its @ and + first."""
    pieces = re.sub(r"([@+])", r"\n\1", arm).split("\n") if len(arm) > 22 else [arm]
    return "\n".join(line for piece in pieces for line in textwrap.wrap(piece, 24))


Legend = list[tuple[str, str, str, str]]  # name, CSS colour, dashes, words


def sweep_charts(
    arms: Sequence[ArmResult], levels: Sequence[LevelResult], images: str = "test"
) -> list[tuple[str, str, Markup, Legend]]:
    """(what, optimizer, chart, legend) of the error on `images` against level, and k, where arms differ in that alone.

    A line joins the arms of one method. Against level: those of k = 2 that name their level, such as ours-2:L50.
    Against k: those with the levels that follow from k; k = 1 is the original. Bars are 95 % t intervals over seeds.
    """
    log_snr = {int(level.level.split()[0]): level.log_snr for level in levels}
    charts = []
    for optimizer, own in by_optimizer(arms).items():
        original = next((arm for arm in own if arm.arm == ORIGINAL), None)
        for what, lines in (("level", _by_level(own)), ("k", _by_k(own, original))):
            if not any(len(line) > 1 + (what == "k" and original is not None) for line in lines.values()):
                continue
            legend = [(name, f"var(--c{1 + place % (SERIES - 1)})", "none", "") for place, name in enumerate(lines)]
            base = original if what == "level" else None
            if base:
                legend.append((ORIGINAL, "var(--muted)", "3 3", ""))
            charts.append((what, optimizer, _sweep_chart(what, optimizer, lines, base, log_snr, images), legend))
    return charts


def _plain(arms: Sequence[ArmResult]) -> list[tuple[ArmResult, Arm]]:
    """The arms without strong copies, at their own steps, with what their names say."""
    found = []
    for result in arms:
        with contextlib.suppress(ValueError):  # an arm of another version
            arm = parse_arm(result.arm)
            if arm.selector == "none" and not arm.equal_steps_of:
                found.append((result, arm))
    return found


def _by_level(arms: Sequence[ArmResult]) -> dict[str, dict[int, ArmResult]]:
    """By method, the arms of k = 2 by the one level that their names give."""
    found: dict[str, dict[int, ArmResult]] = {}
    for result, arm in _plain(arms):
        if arm.k == 2 and arm.levels:
            found.setdefault(result.arm.split("-")[0], {})[arm.levels[0]] = result
    return {name: dict(sorted(line.items())) for name, line in found.items()}


def _by_k(arms: Sequence[ArmResult], original: ArmResult | None) -> dict[str, dict[int, ArmResult]]:
    """By method, the arms by k, whose levels follow from k; with the original as k = 1."""
    found: dict[str, dict[int, ArmResult]] = {}
    for result, arm in _plain(arms):
        if arm.k > 1 and not arm.levels:
            found.setdefault(result.arm.split("-")[0], {1: original} if original else {})[arm.k] = result
    return {name: dict(sorted(line.items())) for name, line in found.items()}


def _sweep_chart(
    what: str,
    optimizer: str,
    lines: dict[str, dict[int, ArmResult]],
    original: ArmResult | None,
    log_snr: dict[int, float | None],
    images: str,
) -> Markup:
    def draw(axes: "Axes") -> None:
        if original:
            axes.axhline(100 * original.mean, color=COLOURS["muted"], linewidth=1.2, linestyle=(0, (3, 3)))
        for place, line in enumerate(lines.values()):
            shift = 0.01 * (place - (len(lines) - 1) / 2) * (max(ticks) - min(ticks))  # bars beside each other
            axes.errorbar(
                [x + shift for x in line],
                [100 * arm.mean for arm in line.values()],
                yerr=[_half_interval(arm.errors) for arm in line.values()],
                fmt="o-",
                color=COLOURS[f"c{1 + place % (SERIES - 1)}"],
                markersize=5,
                linewidth=1.6,
                elinewidth=1.4,
                capsize=3,
            )
        axes.set_xticks(ticks, [_level_label(tick, log_snr) if what == "level" else str(tick) for tick in ticks])
        axes.grid(axis="x", visible=False)
        axes.set_ylabel(f"{images} error, %")
        axes.set_xlabel("level, steps of the grid (below: log-SNR)" if what == "level" else "k, the real image counted")

    ticks = sorted({x for line in lines.values() for x in line})
    return _chart(f"{images.capitalize()} error by {what} with {optimizer}", 270, draw)


def _level_label(level: int, log_snr: dict[int, float | None]) -> str:
    if level not in log_snr:
        return str(level)
    value = log_snr[level]
    return f"{level}\n" + ("noise" if value is None else f"{value:+.1f}")


def early_chart(early_errors: Sequence[Sequence[float]], separating_epoch: int) -> Markup | None:
    """Training error by epoch of early training, one line a seed."""
    curves = [[100 * error for error in errors] for errors in early_errors if len(errors)]
    if not curves:
        return None

    def draw(axes: "Axes") -> None:
        for curve in curves:
            _curve(axes, curve, color=COLOURS["c1"], alpha=0.5 if len(curves) > 1 else 1)
        longest = max(map(len, curves))
        axes.axvline(separating_epoch, color=COLOURS["c2"], linewidth=1.5, linestyle=(0, (4, 3)))
        side = "left" if separating_epoch <= (longest + 1) / 2 else "right"
        axes.text(
            separating_epoch,
            1.02,
            f"separating epoch {separating_epoch}",
            transform=axes.get_xaxis_transform(),
            ha=side,
            va="bottom",
            color=COLOURS["c2"],
        )
        axes.set_ylim(0, 1.05 * max(map(max, curves)) or 1)
        axes.set_ylabel("training error, %")

    return _chart("Training error by epoch of early training", 260, draw)


def final_charts(
    arms: Sequence[ArmResult], images: str = "training"
) -> list[tuple[str, Markup, list[tuple[str, str, str, str]]]]:
    """(optimizer, chart, legend) of `train_error`, errors on `images` by epoch.

    A legend row is arm, CSS colour, dashes, last error.
    """
    names = list(dict.fromkeys(arm.arm for arm in arms))
    dashes = ["none", "5 3", "1.5 2.5"]
    highest = max((max(arm.train_error) for arm in arms if arm.train_error), default=0.0)
    charts = []
    for optimizer, own in by_optimizer(arms).items():
        drawn = [(arm, divmod(names.index(arm.arm), SERIES)) for arm in own if arm.train_error]
        if not drawn:
            continue

        def draw(axes: "Axes", drawn: list[tuple[ArmResult, tuple[int, int]]] = drawn) -> None:
            for arm, (turn, number) in drawn:
                style = ["-", (0, (3, 2)), (0, (1, 1.5))][turn % 3]
                _curve(axes, [100 * error for error in arm.train_error], color=COLOURS[f"c{number}"], linestyle=style)
            axes.set_yscale("symlog", linthresh=1, linscale=0.5)  # the interesting end is the small one
            axes.set_yticks([0, 1, 2, 5, 10, 20, 50, 100], labels=["0", "1", "2", "5", "10", "20", "50", "100"])
            axes.set_yticks([], minor=True)
            axes.set_ylim(0, max(1.0, 105 * highest))
            axes.set_ylabel(f"{images} error, % (log above 1)")

        legend = [
            (arm.arm, f"var(--c{number})", dashes[turn % 3], f"{100 * arm.train_error[-1]:.2f}")
            for arm, (turn, number) in drawn
        ]
        charts.append((optimizer, _chart(f"{images.capitalize()} error by epoch with {optimizer}", 260, draw), legend))
    return charts


def _curve(axes: "Axes", curve: Sequence[float], **style: Any) -> None:
    """A curve over epochs 1, 2, ...; a dot where it has only one."""
    from matplotlib.ticker import MaxNLocator

    epochs = range(1, len(curve) + 1)
    axes.plot(epochs, curve, linewidth=1.6, marker="o" if len(curve) == 1 else "", clip_on=False, zorder=3, **style)
    axes.margins(x=0.03)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set_xlabel("epoch")


def _chart(title: str, height: float, draw: Callable[["Axes"], None]) -> Markup:
    """Inline SVG of what `draw` puts on the axes it is given, in the colours of the page."""
    import matplotlib
    from matplotlib.figure import Figure

    buffer = io.StringIO()
    with matplotlib.rc_context():
        matplotlib.rcdefaults()  # not what the user's matplotlibrc says
        matplotlib.rcParams.update(CHART_STYLE | {"svg.hashsalt": title})
        figure = Figure((CHART_WIDTH / 72, height / 72), dpi=72, layout="constrained")
        draw(figure.add_subplot())
        figure.savefig(
            buffer, format="svg", transparent=True, metadata=dict.fromkeys(("Creator", "Date", "Format", "Type"))
        )
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<style.*?</style>", "", svg)  # it would hold for the whole page
    svg = re.sub(r'<g id="[^"]*">', "<g>", svg)  # the same in every chart, and nothing refers to them
    svg = re.sub(r"font-family: [^;\"]*(; )?", "", svg)
    head = f'<svg viewBox="0 0 {CHART_WIDTH} {height:g}" role="img" aria-label="{escape(title)}">'
    svg = head + svg[svg.index(">") + 1 :]
    for name, colour in COLOURS.items():
        svg = svg.replace(colour, f"var(--{name})")
    return Markup(svg)


def cluster_svg(class_name: str, points: np.ndarray, slow: np.ndarray, most: int) -> Markup:
    """At most `most` of the points float (n, 2), evenly taken, as dots: slow (bool (n,)) ones square and on top.

    Both axes have one scale, so that distances look as they are.
    """
    points, slow = np.asarray(points, np.float64).reshape(-1, 2), np.asarray(slow, bool)
    assert np.isfinite(points).all(), f"class {class_name!r} has points that are not finite"
    assert len(points) == len(slow), f"class {class_name!r} has {len(points)} points but {len(slow)} flags"
    rows = np.linspace(0, max(0, len(points) - 1), min(most, len(points))).round().astype(int)
    points, slow = points[rows], slow[rows]
    low, high = (points.min(0), points.max(0)) if len(points) else (np.zeros(2), np.zeros(2))
    scale = 90 / (float((high - low).max()) or 1)
    placed = 50 + (points - (low + high) / 2) * (scale, -scale)  # SVG counts downwards
    paths = [
        Markup('<path class="{}" d="{}"/>').format(name, "".join(f"M{x:.1f} {y:.1f}h.01" for x, y in placed[own]))
        for name, own in (("fast", ~slow), ("slow", slow))
        if own.any()
    ]
    head = Markup('<svg class="cluster" viewBox="0 0 100 100" role="img" aria-label="Outputs of class {}">')
    return head.format(class_name) + Markup("").join(paths) + Markup("</svg>")
