"""Which classifiers there are, by the files of torchvision and timm. Light to import: a wrong name costs no second."""

import difflib
import functools
import importlib.util
import re
from pathlib import Path

__all__ = ["OWN", "check_name", "no_such_classifier"]

OWN = ("small-cnn", "preact-resnet18", "resnet18", "resnet20", "resnet32", "wrn-28-10", "vit-s4")

# A function below the decorator that makes a model of it, with others between.
_REGISTERED = re.compile(r"^@register_model(?:\(\))?\n(?:@.*\n|[ )].*\n)*def (\w+)", re.MULTILINE)
_NAMED = re.compile(r"^@register_model\(\s*[\"'](\w+)|^@register_model\(name=[\"'](\w+)", re.MULTILINE)


def check_name(name: str) -> None:
    """Refuse a name that is none of ours and is in no file of torchvision's or timm's models.

    Raises:
        ValueError: with the nearest names.
    """
    library, rest = _parted(name)
    if name in OWN:
        return
    if library not in ("", "torchvision", "timm"):
        raise no_such_classifier(name)
    texts = [text for one in ((library,) if library else ("torchvision", "timm")) for text in _texts(one)]
    if not texts:
        return  # the library is not installed, or is no source: the one who builds the model says so
    model = re.escape(rest.partition(".")[0])  # timm's name.weights
    # A function or a text, registered or not: what builds the model refuses what this lets pass.
    written = re.compile(rf"def {model}\b|[\"']{model}[\"'.]")
    if not model or not any(written.search(text) for text in texts):
        raise no_such_classifier(name)


def _parted(name: str) -> tuple[str, str]:
    """The library, empty where a name has none, and the name in it."""
    library, colon, rest = name.partition(":")
    return (library, rest) if colon else ("", name)


def no_such_classifier(name: str) -> ValueError:
    """The error for a name of no classifier, with the nearest names."""
    library, rest = _parted(name)
    if library == "torchvision":
        known = _names("torchvision")
        near = ", ".join(difflib.get_close_matches(rest, known, 3)) or ", ".join(known[:8]) + ", ..."
        return ValueError(f"torchvision has no classifier called {rest!r}; near to it: {near}")
    if library == "timm":
        near = ", ".join(difflib.get_close_matches(rest, _names("timm"), 3)) or "none; see timm.list_models()"
        return ValueError(f"timm has no classifier called {rest!r}; near to it: {near}")
    found = difflib.get_close_matches(name, [*OWN, *_names("torchvision")], 3, cutoff=0.75)
    right = [one if one in OWN else f"torchvision:{one}" for one in found]
    hint = f"; near to it: {', '.join(right)}" if right else ""
    return ValueError(
        f"no classifier is called {name!r}; use {', '.join(OWN)}, torchvision:<name> or timm:<name>{hint}"
    )


@functools.cache
def _names(library: str) -> list[str]:
    """The models of a library, sorted."""
    found = {name for text in _texts(library) for name in _REGISTERED.findall(text)}
    found |= {name for text in _texts(library) for pair in _NAMED.findall(text) for name in pair if name}
    return sorted(found)


@functools.cache
def _texts(library: str) -> list[str]:
    """The files in which a library has its models of images; none where it is not installed."""
    spec = importlib.util.find_spec(library)
    folders = [Path(folder, "models") for folder in (spec and spec.submodule_search_locations) or []]
    return [file.read_text(errors="replace") for folder in folders for file in sorted(folder.glob("*.py"))]
