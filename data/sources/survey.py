"""Looks at every image of a data set, and lists all that is wrong with it at once."""

import dataclasses
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np

from latebloom.data.config import DataConfig
from latebloom.data.decoding import Header, read
from latebloom.data.depth import BadImage, Decoding
from latebloom.data.images import digest_pixels
from latebloom.data.sources.found import Files, Problem, Problems, Split
from latebloom.data.sources.load import Splits, find, splits_of
from latebloom.data.sources.repeated import Pictures, repeated
from latebloom.data.sources.uniform import check_classes, check_names, common_shape, eight_bits, scaled, uniform

__all__ = ["Survey", "spread", "survey"]

_FEW = 100  # images of a split: with fewer, each is more than a point of error
_CHUNK = 64  # files that a thread decodes at once
_ADVISED = (32, 64, 96, 128, 224)  # image sizes, up to what networks for photographs are made for
_LARGE = 320  # a side beyond which training at the full size is advised against

Sizes = Mapping[tuple[int, int], int]


@dataclasses.dataclass(frozen=True)
class Survey:
    """What a data set holds and all that is wrong with it.

    Attributes:
        source: as it was given.
        counts: images by class, by split: as a run would use them where that can be said, else as they lie there.
        sizes: of how many images each (width, height) is, upright.
        modes: of how many images each pixel mode or type is, such as RGB, I;16 or uint8.
        shape: (H, W, C) that all images become; None where that cannot be said.
        image_size: the `--image-size` that the images call for; 0: none, they are alike and not large.
        problems: errors first. An error keeps the data set from being loaded, a warning does not.
        notes: what was assumed, and what is worth knowing, in a sentence each.
        splits: the data set as a run would load it; None where it cannot.
    """

    source: str
    counts: dict[str, dict[str, int]]
    sizes: dict[tuple[int, int], int]
    modes: dict[str, int]
    shape: tuple[int, int, int] | None
    image_size: int
    problems: list[Problem]
    notes: list[str]
    splits: Splits | None

    def of(self, severity: str) -> list[Problem]:
        """The problems that are an "error", or a "warning"."""
        return [problem for problem in self.problems if problem.severity == severity]

    def as_json(self) -> dict[str, Any]:
        """All but the images, for json.dumps."""
        splits = {name: {"images": sum(classes.values()), "classes": classes} for name, classes in self.counts.items()}
        return {
            "source": self.source,
            "splits": splits,
            "sizes": spread(self.sizes) if self.sizes else None,
            "modes": self.modes,
            "shape": self.shape,
            "image_size": self.image_size,
            "errors": len(self.of("error")),
            "warnings": len(self.of("warning")),
            "problems": [dataclasses.asdict(problem) for problem in self.problems],
            "notes": self.notes,
        }


def spread(sizes: Sizes) -> dict[str, Any]:
    """The smallest, the median and the largest (width, height) by area, and how many there are."""
    ordered = sorted(sizes, key=lambda size: (size[0] * size[1], size))
    counts = np.cumsum([sizes[size] for size in ordered])
    median = ordered[int(np.searchsorted(counts, (counts[-1] + 1) // 2))]
    return {"min": ordered[0], "median": median, "max": ordered[-1], "distinct": len(ordered)}


def survey(config: DataConfig, decoded: Callable[[int, int], None] | None = None) -> Survey:
    """Look at every image of a data set; each file is decoded, in threads.

    Args:
        decoded: called with how many files are decoded, and of how many.
    """
    problems = Problems()
    try:
        class_names, found = find(config, problems)
    except ValueError as error:  # no layout, part or column that can be read at all
        problems.add("not a data set", config.source, str(error))
        return Survey(config.source, {}, {}, {}, None, 0, problems.found, problems.notes, None)
    rules = Decoding.of(config)
    try:
        rules = scaled(found, rules)
    except BadImage as error:
        problems.add(error.kind, config.source, str(error))
    eight = eight_bits(found, rules, problems)
    headers, digests = _decoded(found, dataclasses.replace(rules, size=0), problems, decoded)
    shape = common_shape(eight, headers, rules, problems)
    check_classes(class_names, eight, problems)
    check_names(eight, problems)
    splits = None
    if not problems.errors():
        try:
            splits = splits_of(config, class_names, eight, uniform(eight, shape, rules), problems)
        except ValueError as error:  # limits and hold-outs that these images do not allow
            problems.add("settings", config.source, str(error))
    parts = _pictures(eight, splits, digests)
    repeats, copies = repeated(parts, class_names)
    problems.found += repeats
    counts = {
        name: np.bincount(_valid(part.labels, class_names), minlength=len(class_names)) for name, part in parts.items()
    }
    _check_counts(counts, class_names, problems)
    sizes, modes = _measured(found, headers)
    advised = _advised(sizes) if not config.image_size else 0
    return Survey(
        source=config.source,
        counts={name: dict(zip(class_names, count.tolist(), strict=True)) for name, count in counts.items()},
        sizes=dict(sizes),
        modes=dict(modes),
        shape=shape if splits else None,
        image_size=advised,
        problems=sorted(problems.found, key=lambda problem: problem.severity),
        notes=[*problems.notes, *copies, *_of_images(sizes, modes, config.image_size or advised)],
        splits=splits,
    )


def _decoded(
    found: Mapping[str, Split], rules: Decoding, problems: Problems, decoded: Callable[[int, int], None] | None
) -> tuple[dict[str, list[Header | None]], dict[str, str]]:
    """Decode every image.

    Returns:
        What each file is, by split; and by the image's name the SHA-256 of its pixels, "" where they cannot be decoded.
    """
    headers: dict[str, list[Header | None]] = {}
    digests: dict[str, str] = {}
    done, total = 0, sum(len(part.images) for part in found.values() if isinstance(part.images, Files))
    with ThreadPoolExecutor() as pool:
        for split, part in found.items():
            if isinstance(part.images, np.ndarray):
                digests |= {name: digest_pixels(one) for name, one in zip(part.names, part.images, strict=True)}
                continue
            files, read_here = part.images, headers.setdefault(split, [])
            starts = range(0, len(files), _CHUNK)
            for chunk in pool.map(lambda start, files=files: _chunk(files, start, rules), starts):
                for header, digest, problem in chunk:
                    digests[part.names[len(read_here)]] = digest
                    read_here.append(header)
                    problems.found += [problem] if problem else []
                done += len(chunk)
                if decoded:
                    decoded(done, total)
    return headers, digests


def _chunk(files: Files, start: int, rules: Decoding) -> list[tuple[Header | None, str, Problem | None]]:
    found: list[tuple[Header | None, str, Problem | None]] = []
    for row in range(start, min(start + _CHUNK, len(files))):
        name = files.names[row]
        try:
            header, pixels = read(files.blobs[row], name, decoding=rules)
            found.append((header, digest_pixels(pixels), None))
        except BadImage as error:
            found.append((None, "", Problem(error.kind, name, str(error))))
    return found


def _pictures(found: Mapping[str, Split], splits: Splits | None, digests: Mapping[str, str]) -> dict[str, Pictures]:
    """The images of each split: as a run would load them where it can, else as they lie there."""
    parts: dict[str, Any] = dict(found)
    if splits:
        loaded = {name: getattr(splits, name) for name in ("train", "validation", "test", "generator")}
        parts = {name: part for name, part in loaded.items() if part}
    return {
        name: Pictures(part.names, part.labels, [digests.get(one, "") for one in part.names])
        for name, part in parts.items()
    }


def _valid(labels: np.ndarray, class_names: Sequence[str]) -> np.ndarray:
    return labels[(labels >= 0) & (labels < len(class_names))]


def _check_counts(counts: Mapping[str, np.ndarray], class_names: Sequence[str], problems: Problems) -> None:
    """Warn of classes and splits that are too small to learn or to measure."""
    for label in np.flatnonzero(counts["train"] == 1):
        name = class_names[int(label)]
        words = f"class {name} has a single training image; add some or remove the class"
        problems.add("class with one image", name, words, "warning")
    for split in ("validation", "test"):
        if split not in counts:
            continue
        for label in np.flatnonzero((counts[split] == 0) & (counts["train"] > 0)):
            name = class_names[int(label)]
            words = f"class {name} has no {split} image, so its errors are not seen; add some"
            problems.add(f"class not in {split}", name, words, "warning")
        images = int(counts[split].sum())
        if 0 < images < _FEW:
            words = f"{split} has {images} images, so one of them is {100 / images:.1f} points of error; add some"
            problems.add("small split", split, words, "warning")


def _measured(
    found: Mapping[str, Split], headers: Mapping[str, Sequence[Header | None]]
) -> tuple[Counter[tuple[int, int]], Counter[str]]:
    """Of how many images each (width, height) is, and of how many each mode or type."""
    sizes: Counter[tuple[int, int]] = Counter()
    modes: Counter[str] = Counter()
    for split, part in found.items():
        if isinstance(part.images, np.ndarray):
            sizes[part.images.shape[2], part.images.shape[1]] += len(part.images)
            modes[str(part.images.dtype)] += len(part.images)
        else:
            sizes.update((one.width, one.height) for one in headers[split] if one)
            modes.update(one.mode for one in headers[split] if one)
    return sizes, modes


def _advised(sizes: Sizes) -> int:
    """The image size that images of several sizes need, and that large ones are better trained at; 0: none."""
    if not sizes or (len(sizes) == 1 and max(next(iter(sizes))) <= _LARGE):
        return 0
    median = min(spread(sizes)["median"])
    return next((size for size in reversed(_ADVISED) if size <= median), max(median, 8))


def _of_images(sizes: Sizes, modes: Mapping[str, int], size: int) -> list[str]:
    """What is worth knowing of the sizes and modes of images that become squares of `size`; 0: stay as they are."""
    notes = []
    enlarged = sum(count for (width, height), count in sizes.items() if 2 * min(width, height) < size)
    if enlarged:
        notes.append(f"{_images(enlarged)} with a shorter side below {size // 2} pixels would be enlarged to {size}")
    cut = sum(
        count for (width, height), count in sizes.items() if size and max(width, height) > 1.5 * min(width, height)
    )
    if cut:
        notes.append(f"{_images(cut)} longer than 3:2: the centre square leaves out more than a third")
    grey = sum(modes.get(mode, 0) for mode in ("1", "L", "I", "F")) + sum(
        n for mode, n in modes.items() if mode[:4] == "I;16"
    )
    if 0 < grey < sum(modes.values()) and not any(mode.startswith(("uint", "int", "float")) for mode in modes):
        notes.append(f"{_images(grey)} in grey become colour, as the others are")
    return notes


def _images(count: int) -> str:
    return f"{count:,} image{'s' * (count != 1)}"
