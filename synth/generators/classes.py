"""Which class of a class-conditional generator each class of the data is. Light to import."""

import difflib
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from latebloom.data.sources.found import listed
from latebloom.data.store import as_path
from latebloom.synth.generators.card import CARD_FILE, read_card
from latebloom.synth.generators.folder import read_config
from latebloom.synth.prompts import check_classes, read_map

__all__ = ["class_labels", "mapping_of", "pixel_classes"]

# Names of a model by label: as they stand; in plain letters; each of several alone, in plain letters.
_Names = tuple[dict[str, set[int]], dict[str, set[int]], dict[str, set[int]]]


def class_labels(
    class_names: Sequence[str], model_names: Sequence[str], count: int, mapping: str | dict[str, str] = ""
) -> np.ndarray:
    """The label that a class-conditional model has for each class of the data.

    A model's class may have several names with commas between ("goldfish, Carassius auratus"): each of them is its
    name, and all together; with capitals or without, with spaces or underscores. Their order is of no account.

    Args:
        class_names: of the data.
        model_names: (count,), of the model; empty: it names none.
        count: of the model's classes.
        mapping: "order": class i of the data is class i of the model. Or class of the data to name or number of the
            model's; classes that it leaves out, and all where it is empty, go by their own names. Where the model
            has no names, data whose classes are the numbers 0 to n - 1 need none.

    Returns:
        int64 (len(class_names),), each 0 to count - 1.

    Raises:
        ValueError: a class has no label, or several; the first such class is named, with near names. Or the mapping
            leaves a class out and names one that does not exist.
    """
    if mapping == "order":
        if len(class_names) > count:
            raise ValueError(
                f"generate.classes=order needs a class of the generator for each of the {len(class_names)} of the "
                f"data, and it has {count}; give the path of a map of class to the generator's class"
            )
        return np.arange(len(class_names))
    given = mapping if isinstance(mapping, dict) else {}
    check_classes(given, class_names, "the map of generate.classes")
    if not model_names and not given:
        numbers = [int(name) if _is_number(name) else -1 for name in class_names]
        if sorted(numbers) == list(range(len(numbers))) and len(numbers) <= count:
            return np.array(numbers, np.int64)
    names: _Names = defaultdict(set), defaultdict(set), defaultdict(set)
    for label, name in enumerate(model_names):
        names[0][name].add(label)
        names[1][_plain(name)].add(label)
        for one in name.split(","):
            names[2][_plain(one)].add(label)
    return np.array([_label(name, given.get(name), names, count) for name in class_names], np.int64)


def _label(own: str, wanted: str | None, names: _Names, count: int) -> int:
    """The label of one class; `wanted` is what the mapping says of it, or None."""
    name = own if wanted is None else wanted
    found = names[0].get(name) or names[1].get(_plain(name)) or names[2].get(_plain(name)) or set()
    if len(found) == 1:
        return next(iter(found))
    if wanted is not None and _is_number(wanted) and not found:
        if int(wanted) < count:
            return int(wanted)
        raise ValueError(
            f"generate.classes gives {own!r} the number {wanted}, and the generator's are 0 to {count - 1}; correct it"
        )
    if not names[0]:
        raise ValueError(
            f"the generator names none of its {count} classes, so which of them is {own!r} is not known; set "
            "generate.classes=order (class i of the data is class i of the generator), or to the path of a map of "
            "class and number"
        )
    said = f"class {own!r} of the data is" if wanted is None else f"generate.classes says {wanted!r} of {own!r},"
    if found:
        what = f"{said} {len(found)} of the generator's classes ({', '.join(map(str, sorted(found)))})"
    else:
        near = difflib.get_close_matches(_plain(name), names[2], 3)
        what = f"{said} none of the generator's {count} classes "
        what += f"(near: {', '.join(near)})" if near else f"({listed(list(names[0]))})"
    raise ValueError(
        f"{what}; set generate.classes to the path of a .csv file with a line for it: {own}, a comma, and the "
        "generator's class by name or number"
    )


def _plain(name: str) -> str:
    return " ".join(name.replace("_", " ").casefold().split())


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()


def mapping_of(setting: str) -> str | dict[str, str]:
    """What `generate.classes` says, as `class_labels` takes it: "", "order", or the content of its file.

    Raises:
        ValueError: the file cannot be read.
    """
    return setting if setting in ("", "order") else read_map(as_path(setting))


def pixel_classes(folder: Path) -> tuple[tuple[str, ...], int]:
    """The names of a pixel generator's classes, as its card has them, and how many there are; 0: it has none.

    Without names, every embedding counts as a class; with names, one more is "no label".

    Raises:
        ValueError: more names than embeddings.
    """
    names = tuple(read_card(folder).get("class_names", ()))
    embeddings = read_config(folder / "unet" / "config.json").get("num_class_embeds") or 0
    if len(names) > embeddings:
        raise ValueError(
            f"{folder / CARD_FILE} names {len(names)} classes, the model has {embeddings} embeddings; give the folder "
            "as it was written"
        )
    return names, len(names) or embeddings
