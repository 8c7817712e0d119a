"""Prompts for a text-to-image model: templates, names for classes, and a check of such names."""

import csv
import difflib
import io
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from latebloom.data.seeds import child_seed
from latebloom.data.sources.found import listed
from latebloom.data.store import as_path
from latebloom.synth.config import PromptConfig

__all__ = ["check_classes", "lint", "names_of", "prompt_of", "read_map"]


def names_of(config: PromptConfig, class_names: Sequence[str]) -> tuple[str, ...]:
    """The name of each class in prompts: its name in the map, unchanged, else its own with spaces for underscores.

    Text models were trained on captions, which say "maple tree"; `lint` reports each name that was changed. A map may
    name more classes than there are (all of WordNet, say) as long as it names all of these.

    Raises:
        ValueError: the map cannot be read, or it lacks a class of the data and names one that does not exist.
    """
    named = read_map(as_path(config.names)) if config.names else {}
    check_classes(named, class_names, config.names)
    return tuple(named[name] if name in named else name.replace("_", " ") for name in class_names)


def check_classes(named: Mapping[str, str], class_names: Sequence[str], what: str) -> None:
    """Refuse a map that lacks a class of the data and names one that does not exist: a misspelt one, most likely.

    Args:
        named: class to name or number, of `read_map`.
        what: the map's path or setting.

    Raises:
        ValueError: it is one.
    """
    missing = [name for name in class_names if name not in named]
    unknown = [name for name in named if name not in class_names] if missing else []
    if unknown:
        close = [difflib.get_close_matches(name, missing, 1) for name in unknown[:5]]
        guesses = [f"{name} ({match[0]}?)" if match else name for name, match in zip(unknown, close, strict=False)]
        raise ValueError(
            f"{what} names classes that do not exist, {listed([*guesses, *unknown[5:]])}, while "
            f"{listed(missing)} have no name in it; correct them, or remove them to let the others keep their own names"
        )


def prompt_of(config: PromptConfig, name: str, seed: int) -> str:
    """The prompt of one image: a template, drawn by the image's seed, with the name in it.

    Args:
        name: of its class, from `names_of`.
        seed: the image's own, 0 <= seed < 2**63.
    """
    template = config.templates[child_seed(seed, "prompt") % len(config.templates)]
    return template.replace("{name}", name)


# Faults of a name, with the condition for each. For each name only the first fault that holds is reported.
_FAULTS: dict[str, Callable[[str], bool]] = {
    "have control characters, or were read in a wrong encoding": lambda name: any(
        unicodedata.category(letter)[0] == "C" or letter == "\ufffd" for letter in name
    ),
    "are WordNet ids, which text models do not know (their words come with most data sets, as words.txt or the like)": (
        lambda name: re.match(r"n\d{8}(?!\d)", name) is not None
    ),
    "have no letters, from which a text model learns almost nothing": lambda name: not any(map(str.isalpha, name)),
    "begin with a number, which is then part of the prompt": lambda name: re.match(r"\d+[. -]+\D", name) is not None,
    "have one or two letters, perhaps an abbreviation that a text model does not know": (
        lambda name: name.isascii() and sum(map(str.isalpha, name)) <= 2
    ),
    "are longer than 200 characters, while CLIP reads 75 tokens, about 300 characters, and drops the rest": (
        lambda name: len(name) > 200
    ),
    "are not in Latin letters, while most text models were trained on English": lambda name: any(
        letter.isalpha() and "LATIN" not in unicodedata.name(letter, "") for letter in name
    ),
    "run words together": lambda name: re.search(r"[a-z][A-Z]", name) is not None,
    "come out of the class-name map with underscores, where captions have spaces": lambda name: "_" in name,
}


def lint(class_names: Sequence[str], names: Sequence[str]) -> list[str]:
    """Names that a text-to-image model will not understand, one line for each kind of fault.

    Args:
        class_names: (num_classes,), as the data has them.
        names: (num_classes,), as prompts have them (`names_of`).
    """
    called = [own if own == name else f"{own} ({name})" for own, name in zip(class_names, names, strict=True)]
    found: dict[str, list[str]] = {fault: [] for fault in _FAULTS}
    for name, words in zip(names, called, strict=True):
        fault = next((fault for fault, holds in _FAULTS.items() if holds(name)), None)
        if fault:
            found[fault].append(words)
    # CLIP lower-cases its input, and "t-shirt" and "t shirt" are nearly the same to it.
    alike = [" ".join(re.split(r"[\s_-]+", name.casefold())).strip() for name in names]
    counts = Counter(alike)
    twins = sorted((key, words) for key, words in zip(alike, called, strict=True) if counts[key] > 1)
    found["belong to several classes, which the generator cannot distinguish"] = [words for _, words in twins]
    lines = [
        f"{len(words)} of {len(names)} class names {fault}: {listed(words)}; give better ones in a class-name map "
        "(prompts.names)"
        for fault, words in found.items()
        if words
    ]
    spaced = [own for own, name in zip(class_names, names, strict=True) if own != name == own.replace("_", " ")]
    if spaced:
        lines.append(
            f"{len(spaced)} of {len(names)} class names have underscores, which prompts show as spaces: "
            f"{listed(spaced)}"
        )
    return lines


def read_map(path: Path) -> dict[str, str]:
    """Class to name, or to number as text, from a file.

    Raises:
        ValueError: no such file, of another kind, damaged, or a line that is not one class and its name.
    """
    suffix = path.suffix.lower()
    if suffix not in (".json", ".csv", ".tsv", ".txt"):
        raise ValueError(f"class-name map {path} is no .json, .csv, .tsv or .txt file; expected one of these")
    if not path.is_file():
        raise ValueError(f"class-name map {path} does not exist; give the path of a file, or none")
    try:
        text = path.read_text("utf-8-sig")
        pairs = _json_pairs(text) if suffix == ".json" else _table_pairs(text, "," if suffix == ".csv" else "\t")
    except (OSError, ValueError, csv.Error) as error:  # UnicodeDecodeError and JSONDecodeError are ValueErrors
        raise ValueError(f"class-name map {path} cannot be read: {error}") from error
    named: dict[str, str] = {}
    for own, name in pairs:
        if own in named:
            raise ValueError(f"class-name map {path} names {own!r} twice, {named[own]!r} and {name!r}; keep one")
        if not name.strip():
            raise ValueError(f"class-name map {path} has an empty name for {own!r}; fill it in or remove the class")
        named[own] = name.strip()
    return named


def _json_pairs(text: str) -> list[tuple[str, str]]:
    # An object becomes a tuple of pairs: so keys given twice are found, and lists are refused.
    pairs = json.loads(text, object_pairs_hook=tuple)
    if not isinstance(pairs, tuple) or not all(type(name) in (str, int) for _, name in pairs):
        raise ValueError('expected one object of strings, such as {"n01440764": "tench"}')
    return [(own, str(name)) for own, name in pairs]


_HEADINGS = (["class", "name"], ["class", "number"])


def _table_pairs(text: str, delimiter: str) -> list[tuple[str, str]]:
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=True)
    pairs = []
    for row in reader:
        heading = reader.line_num == 1 and [cell.casefold() for cell in row] in _HEADINGS
        if heading or not row:
            continue
        if len(row) != 2:
            raise ValueError(
                f"line {reader.line_num} has {len(row)} columns, expected 2, a class and its name divided by a "
                f"{'comma (quote names that have commas)' if delimiter == ',' else 'tab'}"
            )
        pairs.append((row[0], row[1]))
    return pairs
