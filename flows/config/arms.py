"""An arm, one row of a comparison, as it is read from its name."""

import re
from typing import Literal, get_args

import pydantic

from latebloom.train.config import Budget, CoresetMethod, Selector, SlowMethod

__all__ = ["METHODS", "Arm", "parse_arm"]


class Arm(pydantic.BaseModel, frozen=True):
    """One row of a comparison, as `parse_arm` reads it from its name."""

    name: str
    kind: Literal["original", "upsample", "synthetic"]
    method: SlowMethod = "cluster"  # which examples are duplicated or augmented
    k: int = 1
    levels: tuple[int, ...] = ()  # k - 1 steps of the grid; empty: as the comparison says
    from_noise: bool = False
    selector: Selector = "none"  # which selected examples get strong copies
    budget: Budget | None = None  # the selector's own shares of the classes; None: as `strong.coreset.budget` says
    equal_steps_of: str = ""


METHODS: dict[str, SlowMethod] = {
    "ours": "cluster",
    "noise": "cluster",
    "random": "random",
    "high_loss": "high_loss",
    "misclassified": "misclassified",
    "misclassified_matched": "misclassified_matched",
    "all": "all",
}


_SELECTORS: tuple[Selector, ...] = ("all", *get_args(CoresetMethod), "file")


def parse_arm(name: str) -> Arm:
    """Read an arm's name, such as `ours-5`, `upsample-2`, `ours-3:L50-70`, `ours-5+craig` or `original@ours-5`.

    Raises:
        ValueError: no such arm; the message lists the forms.
    """
    whole_base, at, other = name.partition("@")
    base, plus, word = whole_base.partition("+")
    whole = bool(at) == bool(other) and "@" not in other
    word, colon, share = word.partition(":")
    selector: Selector = next((known for known in _SELECTORS if known == word), "none")
    if plus and selector == "none":
        raise ValueError(f"arm {name!r}: no selector is called {word!r}; there are {', '.join(_SELECTORS)}")
    budget: Budget | None = next((known for known in get_args(Budget) if known == share), None)
    if colon and (budget is None or selector in ("all", "file")):
        raise ValueError(
            f"arm {name!r}: {share!r} is no budget of {selector}; "
            + ("leave it out" if selector in ("all", "file") else f"give one of {', '.join(get_args(Budget))}")
        )
    match = re.fullmatch(r"([a-z_]+)-([1-9]\d{0,3})(?::L([1-9]\d{0,3}(?:-[1-9]\d{0,3})*))?", base)
    if whole and base == "original":
        return Arm(name=name, kind="original", selector=selector, budget=budget, equal_steps_of=other)
    if whole and match and 2 <= int(match[2]) <= 1000 and (match[1] == "upsample" or match[1] in METHODS):
        kind: Literal["upsample", "synthetic"] = "upsample" if match[1] == "upsample" else "synthetic"
        method = METHODS.get(match[1], "cluster")
        levels = tuple(map(int, match[3].split("-"))) if match[3] else ()
        if levels and match[1] in ("upsample", "noise"):
            raise ValueError(f"arm {name!r}: {match[1]} has no levels; leave :L{match[3]} out")
        if levels and len(levels) != int(match[2]) - 1:
            raise ValueError(
                f"arm {name!r} names {len(levels)} levels, and k = {match[2]} needs {int(match[2]) - 1}: k counts the "
                "real image"
            )
        return Arm(
            name=name,
            kind=kind,
            method=method,
            k=int(match[2]),
            levels=levels,
            from_noise=match[1] == "noise",
            selector=selector,
            budget=budget,
            equal_steps_of=other,
        )
    forms = ", ".join(["original", "upsample-K", *(f"{method}-K" for method in METHODS)])
    raise ValueError(
        f"no arm is called {name!r}; an arm is one of {forms} with K from 2 to 1000, ARM:L50-70 at these levels, "
        "ARM+SELECTOR or ARM+SELECTOR:BUDGET with strong copies, or ARM@OTHER for equal steps"
    )
