"""Which data set a run folder is of, and where the files are that its settings name: `origin.json` in the folder.

A run folder belongs to one data set: the one at the same place, however it has grown, or the same images at another
place. Settings keep the text that was typed; the place that it meant is kept beside it, and how to get there from the
run folder. So a run is found again that was moved, with its data or without them, and from any working directory.
"""

import os
from pathlib import Path
from typing import Any

import pydantic

from latebloom import synth
from latebloom.data.config import NAMES, DataConfig
from latebloom.data.store import as_path, is_remote, read_json, write_json
from latebloom.flows.config.merge import put
from latebloom.flows.run.environment import runs_root
from latebloom.flows.run.errors import UsageError, one_line
from latebloom.flows.run.progress import say

__all__ = [
    "ORIGIN",
    "Origin",
    "check_there",
    "free_folder",
    "lies_in",
    "place_of",
    "read_origin",
    "remember",
    "usual_folder",
    "with_places",
]

_DATA_SUFFIXES = (".npz", ".csv", ".parquet", ".tar")
ORIGIN = "origin.json"
# The settings that may name a file or folder.
_PATHS = (
    *("data.source", "data.root", "classifier.weights", "generate.generator", "generate.base", "generate.classes"),
    *("prompts.names", "diffusemix.fractals", "strong.file", "scores.reference_classifier", "scores.clip"),
    *("slow.outputs", "slow.indices"),
)


class Place(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Where a file or folder is that a setting names.

    Attributes:
        given: the setting.
        absolute: its path when the run folder was last written to.
        from_run: the same from the run folder; empty for a run folder at a URL.
    """

    given: str
    absolute: str
    from_run: str

    def found(self, run: Path) -> str:
        """Where it is now: at its old path, as far from the run folder as before, or as given from here.

        Found nowhere: the old path.
        """
        moved = [run.resolve() / self.from_run] if self.from_run else []
        for path in (Path(self.absolute), *moved, as_path(self.given)):
            if path.exists():
                # The setting stays as it is where it means the same here: what is derived from it stays too.
                return self.given if _absolute(self.given) == _absolute(str(path)) else _absolute(str(path))
        return self.absolute


class Origin(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Which data set a run folder is of.

    Attributes:
        source: as it was given.
        place: its absolute path or URL, or its name where it is known by one.
        digest: `LabeledImages.digest` of the training images, as the settings of the run make them; empty: not known.
        paths: by setting, where the local files and folders are that settings name.
    """

    source: str
    place: str
    digest: str = ""
    paths: dict[str, Place] = {}

    def place_now(self, run: Path) -> str:
        """Where the data set is now, as far as that can be seen without reading it."""
        place = self.paths.get("data.source")
        return place_of(place.found(run)) if place else self.place

    def is_gone(self, run: Path) -> bool:
        """Whether the data set was at a local path and is not found there, nor where the run folder has it now."""
        return "data.source" in self.paths and not Path(self.place_now(run)).exists()


def place_of(source: str) -> str:
    """A data source so that it means the same in every working directory: its name, URL or absolute path."""
    return source if source in NAMES else _absolute(source)


def lies_in(path: Path, source: str) -> bool:
    """Whether a path is in the folder of a data source, or is that folder."""
    data = as_path(place_of(source))
    if source in NAMES or is_remote(data) != is_remote(path):
        return False
    if is_remote(data):
        return f"{path}/".startswith(f"{data}/")
    folder, inner = data.resolve(), path.absolute().resolve()
    return data.is_dir() and (folder == inner or folder in inner.parents)


def read_origin(run: Path) -> Origin | None:
    """Which data set a run folder is of; None: it is no run folder yet."""
    if (file := run / ORIGIN).is_file():
        try:
            return Origin.model_validate(read_json(file))
        except ValueError as error:
            raise ValueError(
                f"{file} is damaged ({one_line(error)}); remove it, and name the data source again"
            ) from error
    file = run / "config.json"  # of a version before
    source = _at(read_json(file), "data.source") if file.is_file() else None
    return Origin(source=source, place=place_of(source)) if isinstance(source, str) else None


def remember(run: Path, config: pydantic.BaseModel, digest: str) -> None:
    """Write down which data set a run folder is of, and where its settings find their files.

    Args:
        digest: of the training images.
    """
    settings = config.model_dump(mode="json")
    source = settings["data"]["source"]
    paths = {name: _place(run, text) for name in _PATHS if _is_local(name, text := _at(settings, name))}
    origin = Origin(source=source, place=place_of(source), digest=digest, paths=paths)
    write_json(run / ORIGIN, origin.model_dump(mode="json"))


def with_places(run: Path, settings: Any) -> Any:
    """The settings of a run folder with each path replaced that means something else, or nothing, from here.

    Raises:
        ValueError: origin.json is damaged.
    """
    origin = read_origin(run)
    for name, place in origin.paths.items() if origin else ():
        if _at(settings, name) == place.given:
            put(settings, name, place.found(run))
    return settings


def check_there(run: Path, source: str) -> None:
    """Refuse a data source that a run folder had and that is not found any more.

    Raises:
        UsageError: the message says what it was, and how to say where it is now.
    """
    path = as_path(source)
    if source in NAMES or is_remote(path) or path.exists():
        return
    origin = read_origin(run)
    known = f"{origin.source} ({origin.place})" if origin else source
    raise UsageError(
        f"{run} was made of {known}, which is not there any more; say where these images are now, and all other "
        f"settings stay: latebloom select SOURCE --out {run}"
    )


def usual_folder(source: str) -> Path:
    """The run folder of a data source where none is named: `runs/NAME`, of each source its own, never in the data.

    NAME is that of the folder, or of the file without its suffix. Where another source has this folder, the names of
    the folders above go before it: `runs/NAME` is of a/NAME, `runs/b-NAME` of b/NAME. Where runs/ would lie in the
    data, it lies beside them.

    Raises:
        UsageError: there is no such place; the message says to give one.
    """
    place, root = place_of(source), runs_root()
    if lies_in(root, source):
        root = _beside(source, root)
    folders = [root / name for name in _names(source)]
    origins = [read_origin(folder) for folder in folders]
    for folder, origin in zip(folders, origins, strict=True):
        if origin and place in (origin.place, origin.place_now(folder)):
            return folder
    for folder, origin in zip(folders, origins, strict=True):
        # Of data that are gone: they may be these, at a new place. Whoever reads the images finds out.
        if origin is None or origin.is_gone(folder):
            return folder
    raise UsageError(f"{folders[0]} and {len(folders) - 1} more are of other sources than {source}; give --out")


def free_folder(source: str, taken: Path) -> Path:
    """A run folder for a data source beside one of another source: its own where it has one, else a free one."""
    folders = [taken.parent / name for name in _names(source) if taken.parent / name != taken]
    origins = [read_origin(folder) for folder in folders]
    own = [
        folder for folder, origin in zip(folders, origins, strict=True) if origin and origin.place == place_of(source)
    ]
    free = [folder for folder, origin in zip(folders, origins, strict=True) if origin is None]
    return [*own, *free, *folders][0]


def _names(source: str) -> list[str]:
    """Names for the run folder of a source, the usual one first."""
    if source in NAMES:
        above, name = [], source
    else:
        place = place_of(source)
        *above, name = [part for part in place.rpartition("://")[2].split("/") if part] or [""]
        path = as_path(place)
        if path.suffix.lower() in _DATA_SUFFIXES and (is_remote(path) or not path.is_dir()):
            name = path.stem
        if not name:
            raise UsageError(f"the data source {source} is {place}, which has no name; give the run folder with --out")
    names = ["-".join([*above[len(above) - count :], name]) for count in range(min(len(above), 3) + 1)]
    return names + [f"{names[-1]}-{number}" for number in range(2, 10)]


def _beside(source: str, root: Path) -> Path:
    """The place for run folders where the usual one lies in the data."""
    place = as_path(place_of(source))
    root_now = place.parent / "runs"
    if os.environ.get("LATEBLOOM_RUNS"):
        raise UsageError(
            f"LATEBLOOM_RUNS is {root}, which lies in the data ({place}), and a run folder there would be read as "
            "images; set it to a place outside, or give one with --out"
        )
    if lies_in(root_now, source) or not os.access(place.parent, os.W_OK):
        raise UsageError(
            f"the folder runs/ would lie in the data ({place}) and be read as images, and {place.parent} is not to be "
            "written to; give a place outside with --out"
        )
    say(f"run folders are in {root_now}: here they would lie in the data")
    return root_now


def _place(run: Path, text: str) -> Place:
    absolute = _absolute(text)
    from_run = "" if is_remote(run) else os.path.relpath(Path(absolute).resolve(), run.resolve())
    return Place(given=text, absolute=absolute, from_run=from_run)


def _is_local(name: str, text: Any) -> bool:
    """Whether a setting names a file or folder of this machine; other texts are names, hub ids and URLs."""
    if not isinstance(text, str) or not text or is_remote(as_path(text)):
        return False
    if name == "data.source":
        return text not in NAMES
    if name == "data.root" and text == DataConfig.model_fields["root"].default:
        return False  # of each user his own
    if name == "generate.generator" and (Path(synth.__file__).parent / "shipped" / text).exists():
        return False
    return as_path(text).exists()


def _absolute(text: str) -> str:
    path = as_path(text)
    # Not resolved: a link keeps the name that its owner gave it.
    return str(path) if is_remote(path) else os.path.abspath(path)  # noqa: PTH100  # which takes `..` away too


def _at(settings: Any, name: str) -> Any:
    """The setting at a dotted name; None where there is none."""
    found: Any = settings
    for part in name.split("."):
        found = found.get(part) if isinstance(found, dict) else None
    return found
