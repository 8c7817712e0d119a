"""Which arms are compared, what each comparison shows, and the sentences that follow.

Verdicts are made on one family of comparisons: every arm with `original` of its optimizer, as the table shows them, and
the pairs of the sentences, each pair once. A verdict (lower, higher, a star) takes a p value below 0.05 after Holm's
correction for that family, and at least five seeds. It is about training seeds on this split and test set.
"""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from latebloom.data.seeds import numpy_rng
from latebloom.flows.config.arms import METHODS, parse_arm
from latebloom.flows.report.results import ArmResult, Comparison, Name, in_percent, interval, p_value
from latebloom.flows.report.statistics import LEAST_SEEDS, SIGNIFICANCE, holm, image_interval, mcnemar, paired_t

__all__ = ["compare", "family", "leading", "sentences"]


@dataclasses.dataclass(frozen=True)
class _Claim:
    """A pair that has a sentence; `words` say what the rival is."""

    arm: Name
    rival: Name
    words: str


def family(names: Sequence[Name]) -> list[tuple[Name, Name]]:
    """The pairs (arm, rival) that a report of these arms makes a verdict on, each pair once."""
    known = set(names)
    table = [(name, ("original", name[1])) for name in names if name[0] != "original"]
    pairs = [*(pair for pair in table if pair[1] in known), *((claim.arm, claim.rival) for claim in _claims(names))]
    return list(dict.fromkeys(pairs))


def compare(errors: Mapping[Name, Sequence[float]], wrong: Mapping[Name, np.ndarray], seed: int) -> list[Comparison]:
    """The whole family: differences with their intervals over seeds and over test images, and the verdicts.

    Args:
        errors: by (arm, optimizer), test error of each seed.
        wrong: likewise bool (seeds, T), whether a test image is misclassified; arms without have no interval over test
            images.
        seed: root of the draws of test images, of which each pair has its own.
    """
    pairs = family(list(errors))
    if not pairs:
        return []
    tests = paired_t(np.array([np.subtract(errors[arm], errors[rival]) for arm, rival in pairs]))
    n = len(errors[pairs[0][0]])
    judged = n >= LEAST_SEEDS
    adjusted = holm(tests.p) if judged else np.full(len(pairs), np.nan)
    made = []
    for place, (arm, rival) in enumerate(pairs):
        seen = arm in wrong and rival in wrong
        rng = numpy_rng(seed, "test images", *arm, *rival)
        spread = image_interval(wrong[arm], wrong[rival], rng) if seen else (None, None, None)
        made.append(
            Comparison(
                arm=arm[0],
                optimizer=arm[1],
                rival=rival[0],
                rival_optimizer=rival[1],
                n=n,
                difference=float(tests.mean[place]),
                standard_error=_known(tests.standard_error[place]),
                ci_low=_known(tests.low[place]),
                ci_high=_known(tests.high[place]),
                p=_known(tests.p[place]) if judged else None,
                p_holm=_known(adjusted[place]),
                significant=bool(adjusted[place] < SIGNIFICANCE) if judged else None,
                images_error=spread[0],
                images_low=spread[1],
                images_high=spread[2],
                mcnemar=mcnemar(wrong[arm][0], wrong[rival][0]) if seen and n == 1 else None,
            )
        )
    return made


def _known(value: float) -> float | None:
    """A number, or None for NaN."""
    return None if np.isnan(value) else float(value)


# ------------------------------------------------------------------------------------------------- which pairs


def leading(arms: Sequence[str]) -> str | None:
    """The arm of ours that the sentences are about: that with the largest k, of these the first named.

    No test error has a say in it.
    """
    parsed = [parse_arm(name) for name in arms if name.startswith("ours-")]
    plain = [arm for arm in parsed if arm.selector == "none" and not arm.equal_steps_of]
    return max(plain, key=lambda arm: arm.k).name if plain else None


def _claims(names: Sequence[Name]) -> list[_Claim]:
    """The pairs that have a sentence, in its order, each pair once."""
    optimizers = list(dict.fromkeys(optimizer for _, optimizer in names))
    found = [claim for optimizer in optimizers for claim in _of_optimizer(names, optimizer)]
    ours = leading([arm for arm, optimizer in names if optimizer == "sgd"])
    if ours:
        found.append(_Claim((ours, "sgd"), ("original", "sam"), "the real images alone with SAM"))
    known, once = set(names), dict[frozenset[Name], _Claim]()
    for claim in found:
        if claim.rival in known:
            once.setdefault(frozenset((claim.arm, claim.rival)), claim)
    return list(once.values())


def _of_optimizer(names: Sequence[Name], optimizer: str) -> Iterator[_Claim]:
    arms = [arm for arm, used in names if used == optimizer]
    for arm in arms:
        for rival, words in _rivals_of_strong(arm).items():
            yield _Claim((arm, optimizer), (rival, optimizer), words)
    ours = leading(arms)
    if ours:
        for rival, words in _rivals_of_ours(ours, arms).items():
            yield _Claim((ours, optimizer), (rival, optimizer), words)


def _rivals_of_strong(name: str) -> dict[str, str]:
    """Of an arm with strong copies: the same without, at equal epochs and steps, and other selectors."""
    base, plus, _ = name.partition("+")
    if not plus or "@" in name:
        return {}
    rivals = {
        base: "the same images without strong copies",
        f"{base}@{name}": "the same images without strong copies at the same optimizer steps",
        f"original@{name}": "the real images alone at the same optimizer steps",
        f"{base}+random": "strong copies of images selected at random",
        f"{base}+all": "strong copies of every image",
    }
    return {rival: words for rival, words in rivals.items() if rival != name}


def _rivals_of_ours(ours: str, arms: Sequence[str]) -> dict[str, str]:
    """Of ours: the real images alone, and each other choice of images at the same k, and levels where it has them."""
    rivals = {
        "original": "the real images alone",
        f"original@{ours}": "the real images alone at the same optimizer steps",
        "upsample-2": "duplicating the slow images",
    }
    words = {
        "random": "augmenting as many random images",
        "high_loss": "augmenting as many images of the highest loss",
        "misclassified": "augmenting all misclassified images",
        "misclassified_matched": "augmenting as many images, misclassified ones at random",
        "noise": "images of the same classes made from pure noise",
        "all": "augmenting every image",
    }
    own = ours.removeprefix("ours")  # -5, or -5:L40-50
    for method in METHODS:
        if method in words:
            same, any_level = f"{method}{own}", f"{method}{own.partition(':')[0]}"
            rivals[same if same in arms else any_level] = words[method]
    return rivals


# ------------------------------------------------------------------------------------------------- in words


def sentences(results: Sequence[ArmResult], comparisons: Sequence[Comparison], test_images: int) -> list[str]:
    """What the numbers say, for or against: a line for each pair of arms, with all optimizers in it."""
    by_name = {(result.arm, result.optimizer): result for result in results}
    by_pair = {(one.name, one.rival_name): one for one in comparisons}
    claims = _claims(list(by_name))

    def said(own: Sequence[_Claim]) -> list[str]:
        lines: dict[str, list[str]] = {}
        for claim in own:
            found = by_pair[claim.arm, claim.rival]
            numbers = _numbers(found, by_name[claim.arm], by_name[claim.rival], len(comparisons))
            lines.setdefault(_head(claim), []).append(numbers)
        return [" ".join([head, *numbers]) for head, numbers in lines.items()]

    lines = []
    within = [claim for claim in claims if claim.arm[1] == claim.rival[1]]
    for arm in dict.fromkeys(arm for arm, _ in by_name):
        parsed = parse_arm(arm)
        if parsed.selector != "none" and not parsed.equal_steps_of:
            lines += said([claim for claim in within if claim.arm[0] == arm])
            if parsed.selector != "all":
                lines += [_selected(result) for name, result in by_name.items() if name[0] == arm]
    lines += said([claim for claim in within if "+" not in claim.arm[0]])
    lines += said([claim for claim in claims if claim.arm[1] != claim.rival[1]])
    return lines + _how_to_read(comparisons, test_images)


def _head(claim: _Claim) -> str:
    """What is compared with what; the optimizer is named with the numbers, unless the two have not the same."""
    (arm, optimizer), (rival, other) = claim.arm, claim.rival
    if optimizer == other:
        return f"{arm} against {claim.words} ({rival})."
    return f"{arm} with {optimizer.upper()} against {claim.words} ({rival} {other.upper()}):"


def _numbers(found: Comparison, ours: ArmResult, rival: ArmResult, comparisons: int) -> str:
    """The verdict where there is one, the difference of both errors, and what it may be off by."""
    head = f"{ours.optimizer.upper()}: " if ours.optimizer == rival.optimizer else ""
    numbers = f"{in_percent(ours.mean)} % against {in_percent(rival.mean)} % test error"
    off = []
    if found.ci_low is not None:
        off.append(f"{interval(found.ci_low, found.ci_high)} over {found.n} seeds")
    elif found.n > 1:
        off.append(f"the same for all {found.n} seeds")
    if found.images_low is not None:
        off.append(f"{interval(found.images_low, found.images_high)} over test images")
    by = f"{in_percent(found.difference, signed=True)} points" + (f" (95 %: {', '.join(off)})" if off else "")
    tail = ""
    if found.p is not None and found.p_holm is not None:
        tail = f", p {p_value(found.p)}, adjusted {p_value(found.p_holm)}"
    elif found.n == 1:
        tail = ", one seed each"
    if found.mcnemar is not None:
        tail += f", McNemar's test of these two classifiers p {p_value(found.mcnemar)}"
    return f"{head}{_verdict(found, comparisons)}{numbers}, {by}{tail}.{_other_test_set(found)}"


def _verdict(found: Comparison, comparisons: int) -> str:
    if found.significant is None or found.p is None:
        return ""
    if found.significant:
        return "lower; " if found.difference < 0 else "higher; "
    if found.p < SIGNIFICANCE:  # its interval leaves out zero
        return f"no difference that holds among {comparisons} comparisons; "
    return "no difference that these seeds can show; "


def _other_test_set(found: Comparison) -> str:
    if not found.significant or found.images_low is None or found.images_high is None:
        return ""
    if found.images_low <= 0 <= found.images_high:
        return " Another test set of this size could show the opposite."
    return ""


def _selected(strong: ArmResult) -> str:
    """How many images got strong copies, what share of them is synthetic, and what selecting them took."""
    share = ""
    if strong.selected_synthetic is not None and strong.pool_synthetic is not None:
        share = (
            f", of which {strong.selected_synthetic:.0%} are synthetic, as are {strong.pool_synthetic:.0%} of the "
            "images it selects from"
        )
    times = "once" if strong.selections == 1 else f"{strong.selections:,.0f} times"
    return (
        f"{strong.optimizer.upper()}: {strong.arm} selects {strong.selected:,.0f} images{share}, "
        f"{times} in {strong.selection_seconds:.1f} s of a training that takes "
        f"{strong.train_seconds:.1f} s."
    )


def _how_to_read(comparisons: Sequence[Comparison], test_images: int) -> list[str]:
    """What the verdicts rest on, or why there are none."""
    if not comparisons:
        return []
    n = comparisons[0].n
    if n < LEAST_SEEDS:
        few = "One seed cannot" if n == 1 else f"{n} seeds can hardly"
        return [
            f"{few} tell a difference from chance: there is no verdict below {LEAST_SEEDS} seeds. Run `latebloom "
            "compare` with more."
        ]
    return [
        f"A verdict is a p below {SIGNIFICANCE} by paired t tests over {n} training seeds, adjusted by Holm's "
        f"correction for all comparisons of this report, {len(comparisons)}; each interval and the first p are for "
        "their own comparison alone. "
        f"A verdict holds for this split, this synthetic set and these {test_images:,} test images, of which one is "
        f"{100 / test_images:.2f} points."
    ]
