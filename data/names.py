"""Names of images, as their owner knows them: finding one, and showing a long one."""

import difflib
from collections.abc import Sequence

__all__ = ["base_name", "listed", "place_of", "shortened"]


def place_of(wanted: str, names: Sequence[str], others: Sequence[str] = ()) -> int:
    """The place of a name: the one that is equal, the only one that ends so after a `/`, or the end of a path.

    `big cat/004.png` and `/data/pets/train/big cat/004.png`, as a shell completes it, both find
    `train/big cat/004.png`; neither finds `train/not big cat/004.png`.

    Args:
        others: what else could have been meant, for the message.

    Raises:
        ValueError: there is none, or there are several; the message lists them.
    """
    places = [place for place, name in enumerate(names) if name == wanted]
    places = places or [place for place, name in enumerate(names) if name.endswith(f"/{wanted}")] if wanted else []
    if not places:
        longest = max((name for name in names if wanted.endswith(f"/{name}")), key=len, default=None)
        places = [] if longest is None else [names.index(longest)]
    if len(places) == 1:
        return places[0]
    if places:
        found = listed([names[place] for place in places])
        raise ValueError(f"{wanted!r} names {len(places)} images: {found}; give more of the name")
    # By the last part of a path too: a name without its folder is compared with names without theirs.
    depth = wanted.count("/") + 1
    ends = {"/".join(name.split("/")[-depth:]): name for name in reversed(names)}
    close = [ends[end] for end in difflib.get_close_matches(wanted, list(ends), 3, 0.6)]
    close += difflib.get_close_matches(wanted, others, 3, 0.6)
    known = [*others, *names]
    hint = f"did you mean {' or '.join(close[:3])}?" if close else f"the first of {len(known):,} names is {known[0]}"
    raise ValueError(f"no image is called {wanted!r}; {hint}")


def base_name(name: str) -> str:
    """What follows the last `/`."""
    return name.rpartition("/")[2]


def listed(names: Sequence[str], most: int = 5) -> str:
    """The first names, and how many more."""
    return ", ".join(names[:most]) + (f" and {len(names) - most:,} more" if len(names) > most else "")


def shortened(text: str, most: int) -> str:
    """At most so many characters, where a long text has its middle replaced by one: both ends tell images apart."""
    if len(text) <= most:
        return text
    front = (most - 1) // 2
    return f"{text[:front]}…{text[len(text) - (most - 1 - front) :]}"
