"""How often a report of arms that do not differ says that some do, and how large a difference it finds.

    python tests/benchmarks/null_verdicts.py

Twelve arms have the same true error on 797 test images, of which 80 are hard: each is misclassified with a probability
that the seed shares among its arms, so that errors are counts and are paired. Every table has the comparisons of a real
report of these arms. The new rule is that of `flows/report/verdicts.py`.
"""

import enum

import numpy as np

from latebloom.data.seeds import numpy_rng
from latebloom.flows.report.statistics import LEAST_SEEDS, SIGNIFICANCE, holm, paired_t
from latebloom.flows.report.verdicts import family

ARMS = (
    *("original", "original@ours-5", "upsample-2", "random-5", "all-5", "ours-2", "ours-5", "noise-5"),
    *("high_loss-5", "misclassified-5", "misclassified_matched-5", "random-2"),
)
IMAGES, HARD = 797, 80
PAIRS = np.array(
    [[ARMS.index(arm), ARMS.index(rival)] for (arm, _), (rival, _) in family([(arm, "sgd") for arm in ARMS])]
)


class Rule(enum.Enum):
    """What makes a difference count."""

    BEFORE = "two standard errors"
    NOW = "paired t, Holm, five seeds or more"


def simulated(tables: int, n: int, rng: np.random.Generator, better: float = 0.0) -> np.ndarray:
    """Test errors of the arms of many tables, float (tables, arms, n).

    Args:
        better: how much lower the true error of `ours-5` is than that of all others, 0..1.
    """
    of_seed = 0.45 + 0.06 * rng.standard_normal((tables, 1, n))  # shared by the arms of a seed
    of_arm = np.zeros((len(ARMS), 1))
    of_arm[ARMS.index("ours-5")] = better * IMAGES / HARD
    chance = of_seed + 0.03 * rng.standard_normal((tables, len(ARMS), n)) - of_arm
    return rng.binomial(HARD, np.clip(chance, 0, 1)) / IMAGES


def counts(errors: np.ndarray, rule: Rule) -> np.ndarray:
    """Which comparisons of each table count: bool (tables, comparisons)."""
    found = paired_t(errors[:, PAIRS[:, 0]] - errors[:, PAIRS[:, 1]])
    if rule is Rule.BEFORE:
        return np.abs(found.mean) > 2 * found.standard_error
    if errors.shape[-1] < LEAST_SEEDS:
        return np.zeros(found.mean.shape, bool)
    return holm(found.p) < SIGNIFICANCE


def false_tables(errors: np.ndarray, rule: Rule) -> float:
    """Share of the tables of equal arms in which any comparison counts."""
    return float(counts(errors, rule).any(1).mean())


def power(errors: np.ndarray) -> float:
    """Share of the tables that find ours-5 better than the original."""
    pair = [ARMS.index("ours-5"), ARMS.index("original")]
    place = PAIRS.tolist().index(pair)
    below = errors[:, pair[0]].mean(-1) < errors[:, pair[1]].mean(-1)
    return float((counts(errors, Rule.NOW)[:, place] & below).mean())


def main() -> None:
    tables = 10_000
    print(f"{len(ARMS)} equal arms, {len(PAIRS)} comparisons a table, {tables:,} tables")
    print("seeds  one comparison, before  any of a table, before  any of a table, now")
    for n in (2, 3, 5, 10, 20):
        errors = simulated(tables, n, numpy_rng(0, "null verdicts", n))
        one = counts(errors, Rule.BEFORE)[:, 0].mean()
        print(f"{n:5}  {one:22.1%}  {false_tables(errors, Rule.BEFORE):22.1%}  {false_tables(errors, Rule.NOW):19.2%}")
    apart = simulated(tables, 10, numpy_rng(0, "spread"))
    print(f"a paired difference has a standard deviation of {100 * (apart[:, 0] - apart[:, 1]).std():.2f} points")
    print("a true difference of ours-5, points: how many tables find it, by seeds")
    for better in (0.0025, 0.005, 0.0075, 0.01, 0.015, 0.02):
        found = [power(simulated(2_000, n, numpy_rng(0, "power", n), better)) for n in (5, 10, 20)]
        print(
            f"{100 * better:5.2f}  "
            + "  ".join(f"{n} seeds {share:4.0%}" for n, share in zip((5, 10, 20), found, strict=True))
        )


if __name__ == "__main__":
    main()
