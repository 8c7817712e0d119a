"""`latebloom check`: all that is wrong with a data set, in one list, before anything is trained."""

import contextlib
import dataclasses
import json
import re
import shlex
import shutil
import textwrap
import warnings
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

import typer

from latebloom.flows.cli.options import CONFIG, JSON, SET, Command, Options, command_line, source
from latebloom.flows.cli.parse import nested
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.config.settings import short
from latebloom.flows.run.progress import meter
from latebloom.flows.run.resolve import resolve

if TYPE_CHECKING:  # they load numpy, for which --help does not wait
    from latebloom.data.images import LabeledImages
    from latebloom.data.sources.found import Problem
    from latebloom.data.sources.survey import Survey

__all__ = ["add_check_command"]

_SHOWN = 10  # problems of a kind on the terminal; all in JSON
_ROWS = 20  # classes in the table
_METERED = 5_000  # files from which their number is shown while they are decoded
_OPTIONS = Options(CompareConfig, short("image_size", "generator"))
# What a setting resolves, by kind of problem; an image size resolves several sizes.
_SETTINGS = {"more than 8 bits": "data.depth=type", "several frames": "data.animated=first"}


def add_check_command(app: typer.Typer) -> None:
    """Register `check`."""
    app.command("check", cls=Command)(_check)


@command_line([source(CompareConfig, needed=True), *_OPTIONS.parameters, CONFIG, SET, JSON])
def _check(**given: Any) -> None:
    """Look at every image of a data set and list all that is wrong with it; with --generator, whether that fits it.

    Exit code 1 if there are errors, 0 if there are warnings only. Nothing is trained or written.
    """
    from latebloom.data.sources.survey import survey

    settings = nested(given["config"], {"data.source": given["source"], **_OPTIONS.given(given)}, given["set"])
    config, _ = resolve(None, settings, "compare")
    # A file with too many pixels is one of the problems; Pillow would warn of it in its own words too.
    with warnings.catch_warnings(), _metered() as decoded:
        warnings.simplefilter("ignore")
        found = survey(config.data, decoded)
    about: dict[str, str] = {}
    if given["generator"]:
        about, problem = _generator(config, found)
        if problem:
            found = dataclasses.replace(found, problems=[problem, *found.problems])
    following = _next(found, given)
    if given["json"]:
        print(json.dumps({**found.as_json(), "generator": about or None, "next": following or None}, indent=2))
    else:
        width = min(shutil.get_terminal_size().columns, 120)
        print("\n".join(_lines(found, about, following, width)))
    if found.of("error"):
        raise typer.Exit(1)


@contextlib.contextmanager
def _metered() -> Iterator[Callable[[int, int], None]]:
    """Shows how many files are decoded, where they are many."""
    with contextlib.ExitStack() as stack:
        bars: list[Any] = []

        def decoded(done: int, total: int) -> None:
            if total < _METERED:
                return
            if not bars:
                bars.append(stack.enter_context(meter("check", total, "images")))
            bars[0].add(done - bars[0].done)

        yield decoded


def _generator(config: CompareConfig, found: "Survey") -> "tuple[dict[str, str], Problem | None]":
    """What is worth knowing of the generator beside these images, or what is wrong with it."""
    from latebloom.data.sources.found import Problem
    from latebloom.synth.generators.find import kind_of

    name = config.generate.generator
    try:
        kind = kind_of(config.generate)
        if not found.splits:
            return {"generator": f"{name}, {kind}; compared with the images once these have no errors"}, None
        from latebloom.flows.stages.checks import check_generator
        from latebloom.flows.stages.choosing import check_generator_chosen

        check_generator_chosen(config, found.splits.train)
        check_generator(config, found.splits.train)
    except (ValueError, OSError) as error:
        return {}, Problem("generator", name, str(error))
    return _beside(config, kind, found.splits.train), None


def _beside(config: CompareConfig, kind: str, train: "LabeledImages") -> dict[str, str]:
    """How a generator that fits these images takes them."""
    from rich.filesize import decimal

    from latebloom.data.sources.found import listed
    from latebloom.flows.run.machine import machine
    from latebloom.flows.stages.loaders import generator_of
    from latebloom.synth.generators.find import generator_folder
    from latebloom.synth.generators.folder import weight_files
    from latebloom.synth.prompts import names_of

    generator = generator_of(config)
    height, width, channels = train.image_shape
    work = config.sizes.work_size or generator.size or min(height, width)
    said = f"{config.generate.generator}, {kind}, works at {work} pixels"
    if min(height, width) != work:
        said += f"; images of {width}x{height} are {'enlarged' if min(height, width) < work else 'made smaller'} for it"
    if channels != generator.channels:
        said += "; it makes colour, and the images are grey"
    labels = generator.labels_of(train.class_names)
    if labels is not None:
        pairs = [f"{name} is {label}" for name, label in zip(train.class_names, labels, strict=True)]
        classes = f"by label: {listed(pairs, 3)}"
    else:
        shown = names_of(config.prompts, train.class_names)[:3]
        template = config.prompts.templates[0]
        classes = "by prompts: " + ", ".join(f'"{template.replace("{name}", name)}"' for name in shown)
        classes += ", ..." if train.num_classes > len(shown) else ""
    folder = generator_folder(config.generate)
    weights = sum(file.stat().st_size for file in weight_files(folder))
    here = machine(config.device)
    free = f", {decimal(here.free)} of memory free ({here.name})" if here.free else ""
    return {"generator": said, "classes": classes, "memory": f"{decimal(weights)} of weights{free}"}


def _next(found: "Survey", given: dict[str, Any]) -> str:
    """The command to run next; empty where the source cannot be read at all."""
    if not found.counts:
        return ""
    settings = [*(given["set"] or [])]
    kinds = {problem.kind for problem in found.of("error")}
    settings += [setting for kind, setting in _SETTINGS.items() if kind in kinds]
    size = given["image_size"] or (found.image_size or "")
    words = ["latebloom", "check" if kinds else "run" if given["generator"] else "select", given["source"]]
    words += ["--image-size", str(size)] if size else []
    words += ["--generator", given["generator"]] if given["generator"] else []
    words += ["--config", given["config"]] if given["config"] else []
    return shlex.join([*words, *(word for setting in settings for word in ("--set", setting))])


def _lines(found: "Survey", about: dict[str, str], following: str, width: int) -> Iterator[str]:
    if found.counts:
        yield from _table(found)
        yield ""
        for line in _facts(found, about):
            yield _filled(line, width, "", " " * 11)
        yield ""
    for severity in ("error", "warning"):
        problems = found.of(severity)
        if problems:
            yield f"{len(problems):,} {severity}{'s' * (len(problems) > 1)}"
            yield ""
        for kind, members in _by_kind(problems).items():
            yield f"  {kind}: {len(members):,}"
            for line in _shown(members, found.source):
                yield _filled(line, width, "    ", "      ")
            yield ""
    for note in found.notes:
        yield _filled(note, width, "- ", "  ")
    if found.notes:
        yield ""
    errors = found.of("error")
    if not following:
        yield "Nothing else was looked at."
        return
    if any(problem.kind not in (*_SETTINGS, "several sizes") for problem in errors):
        yield "Repair or remove what is listed, then check again:"
    else:
        yield "With these settings, check again:" if errors else "Nothing keeps this from being trained on. Next:"
    yield f"  {following}"


def _filled(text: str, width: int, first: str, others: str) -> str:
    """As lines of this width; a path or an option is never broken."""
    filled = [
        textwrap.fill(
            line,
            width,
            initial_indent=others if number else first,
            subsequent_indent=others,
            break_long_words=False,
            break_on_hyphens=False,
        )
        for number, line in enumerate(text.splitlines())
    ]
    return "\n".join(filled)


def _table(found: "Survey") -> Iterator[str]:
    """Images by class and split; of many classes, their range."""
    splits = list(found.counts)
    classes = list(found.counts[splits[0]])
    rows = [["images", *(f"{sum(found.counts[split].values()):,}" for split in splits)]]
    if len(classes) <= _ROWS:
        rows += [[name, *(f"{found.counts[split][name]:,}" for split in splits)] for name in classes]
    else:
        for word, choose in (("smallest class", min), ("largest class", max)):
            rows.append([word, *(f"{choose(found.counts[split].values()):,}" for split in splits)])
    header = [f"{len(classes)} classes", *splits]
    widths = [max(len(row[place]) for row in [header, *rows]) for place in range(len(header))]
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(size) for cell, size in zip(row[1:], widths[1:], strict=True))]
        yield "  ".join(cells)


def _facts(found: "Survey", about: dict[str, str]) -> Iterator[str]:
    from latebloom.data.sources.survey import spread

    if found.sizes:
        sizes = {name: "x".join(map(str, size)) for name, size in spread(found.sizes).items() if name != "distinct"}
        if len(found.sizes) == 1:
            yield f"sizes      {sizes['min']}"
        else:
            few = f"{sizes['min']} to {sizes['max']}, median {sizes['median']}"
            yield f"sizes      {few} ({len(found.sizes):,} sizes)"
    if found.modes:
        modes = sorted(found.modes.items(), key=lambda item: -item[1])
        yield "pixels     " + ", ".join(f"{mode} {count:,}" for mode, count in modes)
    if found.shape:
        height, width, channels = found.shape
        yield f"become     {width}x{height}, {'grey' if channels == 1 else 'colour'}"
    for word, said in about.items():
        yield f"{word:9}  {said}"


def _by_kind(problems: "Sequence[Problem]") -> "dict[str, list[Problem]]":
    kinds: dict[str, list[Problem]] = defaultdict(list)
    for problem in problems:
        kinds[problem.kind].append(problem)
    return kinds


def _shown(members: "Sequence[Problem]", root: str) -> Iterator[str]:
    """The first of a kind: in full, and those with the same words by their names alone."""
    words: dict[str, list[str]] = defaultdict(list)
    for problem in members[:_SHOWN]:
        place, message = problem.where, problem.message
        tail = message.removeprefix(place) if message.startswith(place) else ""
        words[tail or message].append(_short(place, root) if tail else "")
    for tail, places in words.items():
        first, *others = places
        yield _short(first + tail, root)
        if others:
            yield f"the same: {', '.join(others)}"
    if len(members) > _SHOWN:
        yield f"and {len(members) - _SHOWN:,} more; --json lists all"


def _short(text: str, root: str) -> str:
    """Without the path of the data set itself, but where it is a source to give."""
    return re.sub(rf"(?<!give )(?<!such as ){re.escape(root.rstrip('/'))}/", "", text)
