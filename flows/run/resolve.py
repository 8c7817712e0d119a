"""From settings, presets and the run folder to the config of a run. Whatever is wrong with them is a `UsageError`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar, get_args

import pydantic

from latebloom.data.config import DataConfig
from latebloom.flows.config.compare import SAMPLING, CompareConfig, RunConfig, one_setting, preset, setting_of
from latebloom.flows.config.merge import differences, merge
from latebloom.flows.config.presets import PHOTO_SIDE, PHOTOS, PRESETS, RECIPES, photo_settings
from latebloom.flows.config.settings import no_such_setting, unknown
from latebloom.flows.config.tools import CoresetRunConfig, FitGeneratorConfig
from latebloom.flows.run.errors import UsageError, one_line
from latebloom.flows.run.folder import read_config
from latebloom.flows.run.origin import check_there, place_of, read_origin, usual_folder
from latebloom.flows.run.progress import say
from latebloom.train.config import CoresetMethod

__all__ = ["check_names", "made", "resolve", "resolve_coreset", "resolve_generator"]

Config = TypeVar("Config", bound=pydantic.BaseModel)
_NONE = "none"
_OF_COMPARISON = {"arms", "optimizers", "seeds", "workers"}


def resolve(
    out: Path | None, settings: dict[str, Any], kind: str, sampling: str | None = None, row: str | None = None
) -> tuple[Any, Path]:
    """The config of a command and its run folder.

    A source starts from its preset, and one of photos from the recipe for these. Without one, the run folder says what
    was asked before; so it does where its data are gone and the source says where they are now.

    Args:
        kind: the command: a RunConfig for run, a CompareConfig for the others.
        sampling: name of a preset of how images are sampled; single settings go before it.
        row: name of a preset of a row of the papers, or a recipe; it goes before those, and single settings before it.
            "none": none of these, whatever the images.

    Raises:
        UsageError: a name or value that does not exist, or settings that do not go together.
        ValueError: the run folder is none, or holds a comparison where one setting is asked for.
    """
    check_names(CompareConfig, settings)
    row, plain = (None, True) if row == _NONE else (row, row is not None)
    if sampling is not None:
        if sampling not in SAMPLING:
            raise UsageError(f"no sampling is called {sampling!r}; there are {', '.join(SAMPLING)}")
        settings = merge({"sample": SAMPLING[sampling]}, settings)
    settings = _with_coreset(settings, kind, row)
    many = sorted(_OF_COMPARISON & set(settings))
    if kind == "run" and many:
        raise UsageError(f"run is one setting and one seed; {', '.join(many)} can be given to compare")
    if row is not None:
        settings = merge(_published(row, kind, _goes_on(out, settings)), settings)
    compares = kind == "compare" or bool(_OF_COMPARISON & set(settings) - {"workers"})
    if row is not None and compares and "optimizer" in _part(settings, "train"):
        settings = {"optimizers": [settings["train"]["optimizer"]], **settings}  # a row has one, not our default two
    source = _named_source(settings)
    if source is not None and not _says_where(out, source):
        base = merge(preset(source), {"data": {"source": source}})
        base = base if plain else _suited(base, settings, RunConfig)
        folder = out or usual_folder(str(source))
    else:
        folder = _given_folder(out)
        before = read_config(folder)
        if source is None:
            check_there(folder, before.data.source)
        setting = None if compares else setting_of(before)
        if kind == "run" and setting is None:
            raise ValueError(f"{out} holds a comparison; go on with `latebloom compare --out {out}`")
        compares = setting is None
        base = (before if setting is None else setting).model_dump(mode="json")
        base |= {} if kind == "run" else {"workers": before.workers}
    merged = merge(base, settings)
    if compares:
        found = made(CompareConfig, merged)
    else:
        workers = merged.pop("workers", 1)
        asked = made(RunConfig, merged)
        found = made(CompareConfig, {**dict(one_setting(asked)), "workers": workers})
    if "file" in _part(settings, "strong") and found.strong.file and not found.wants_file:
        raise UsageError(
            f"a coreset is named ({found.strong.file}), but no arm trains on it; give --arms one such as original+file"
        )
    return (asked if kind == "run" else found), folder


def resolve_coreset(
    out: Path | None, settings: dict[str, Any], row: str | None = None
) -> tuple[CoresetRunConfig, Path]:
    """The config of `latebloom coreset` and the folder it writes to.

    A source starts from its preset. Without one, the data and the early classifiers are those of the run folder.

    Args:
        row: name of a preset of a row of the papers: its data, its classifier, how that is trained but for the epochs,
            and how the examples are selected. A run folder without a source takes the last of these alone.

    Raises:
        UsageError, ValueError: as `resolve`.
    """
    check_names(CoresetRunConfig, settings, "coreset")
    ten = {"train": {"epochs": 10}}
    row, plain = (None, True) if row == _NONE else (row, row is not None)
    if row is not None:
        settings = merge(_published_coreset(row, _goes_on(out, settings)), settings)
    source = _named_source(settings)
    if source is not None:
        known = {name: value for name, value in preset(source).items() if name in CoresetRunConfig.model_fields}
        base = merge(known, {"data": {"source": source}})
        base = merge(base if plain else _suited(base, settings, CoresetRunConfig), ten)
        folder = out or usual_folder(str(source))
    else:
        folder = _given_folder(out)
        before = read_config(folder).model_dump(mode="json")
        check_there(folder, before["data"]["source"])
        taken = {name: before[name] for name in ("data", "perturb", "classifier", "train", "seed", "device")}
        base = merge(taken, {**ten, "run": str(folder)})
        base["train"]["optimizer"] = "sgd"
    return made(CoresetRunConfig, merge(base, settings)), folder


def resolve_generator(settings: dict[str, Any]) -> FitGeneratorConfig:
    """The config of `latebloom fit-generator`: on the images that digits keeps apart, or on the training images.

    Raises:
        UsageError: as `resolve`.
    """
    check_names(FitGeneratorConfig, settings, "fit-generator")
    split = "generator" if _named_source(settings) == "digits" else "train"
    return made(FitGeneratorConfig, {"split": split, **settings})


def made(config: type[Config], settings: dict[str, Any]) -> Config:
    """A config of settings.

    Raises:
        UsageError: they are refused; the message names each setting with what it got.
    """
    try:
        return config(**settings)
    except pydantic.ValidationError as error:
        raise UsageError(one_line(error)) from error


def check_names(config: type[pydantic.BaseModel], settings: Mapping[str, Any], command: str = "") -> None:
    """Refuse names that are no settings of a config.

    Raises:
        UsageError: with the nearest names, and the command that lists all.
    """
    listing = f"latebloom settings --of {command}" if command else "latebloom settings"
    if names := unknown(config, settings):
        raise UsageError(no_such_setting(config, names[0], listing))


def _part(settings: dict[str, Any], name: str) -> dict[str, Any]:
    """The settings below a name; empty where none are, or where something else was given."""
    part = settings.get(name)
    return part if isinstance(part, dict) else {}


def _named_source(settings: dict[str, Any]) -> Any:
    """The data source that settings name; None where they name none."""
    data = settings.get("data")
    return data.get("source") if isinstance(data, dict) else data


def _suited(base: dict[str, Any], settings: dict[str, Any], config: type[pydantic.BaseModel]) -> dict[str, Any]:
    """The settings that a source starts from; those of the recipe for photos where its images are as large."""
    from latebloom.data.sources.peek import image_side  # reads images, and most commands name none anew

    try:
        side = image_side(DataConfig(**_part(merge(base, settings), "data")))
    except pydantic.ValidationError:  # refused with the other settings
        return base
    if side < PHOTO_SIDE:
        return base
    recipe = {name: part for name, part in photo_settings(side).items() if name in config.model_fields}
    if differences(merge(recipe, settings), settings):  # a config that says everything takes nothing of it
        say(
            f"images of {side} px a side: settings start from preset {PHOTOS} ({recipe['classifier']['model']}, "
            f"lr {recipe['train']['lr']}, batch {recipe['train']['batch_size']}, random resized crops); "
            f"what you give goes before it, and --preset {_NONE} starts from the settings for small images"
        )
    return merge(base, recipe)


def _given_folder(out: Path | None) -> Path:
    if out is None:
        raise UsageError("neither a data source nor a run folder is named; give a SOURCE, or --out of an earlier run")
    return out


def _says_where(out: Path | None, source: Any) -> bool:
    """Whether a source is named to say where the data of a run folder are now, which are gone from their old place."""
    origin = read_origin(out) if out is not None else None
    return out is not None and origin is not None and origin.is_gone(out) and place_of(str(source)) != origin.place


def _goes_on(out: Path | None, settings: dict[str, Any]) -> bool:
    """Whether the data are those of a run folder."""
    return out is not None and (out / "config.json").is_file() and _named_source(settings) is None


# ------------------------------------------------------------------------------------------------- rows of the papers


def _row(name: str) -> dict[str, Any]:
    known = PRESETS | RECIPES
    if name not in known:
        raise UsageError(f"no preset is called {name!r}; there are {', '.join([*known, _NONE])}")
    return dict(known[name].settings)


def _published(row: str, kind: str, goes_on: bool) -> dict[str, Any]:
    """The settings of a row of the papers, as far as the command takes them."""
    published = _row(row)
    if kind == "run":  # its arms are its own
        published = {name: value for name, value in published.items() if name in RunConfig.model_fields}
    if goes_on:
        published["data"] = {name: value for name, value in published.get("data", {}).items() if name != "source"}
    return published


def _published_coreset(row: str, goes_on: bool) -> dict[str, Any]:
    """How a row of the papers selects a coreset and, unless a run folder has these, its data and classifier."""
    published = _row(row)
    strong = published.get("strong", {})
    selector = strong.get("selector")
    if selector not in get_args(CoresetMethod):
        raise UsageError(f"preset {row} selects no coreset; give --method and --fraction")
    taken = {"coreset": {**strong.get("coreset", {}), "method": selector}}
    if not goes_on:
        taken |= {name: published[name] for name in ("data", "perturb", "classifier", "train") if name in published}
        taken["train"] = {name: value for name, value in taken.get("train", {}).items() if name != "epochs"}
    return taken


def _with_coreset(settings: dict[str, Any], kind: str, row: str | None) -> dict[str, Any]:
    """The settings; where they name a coreset's file and no arm, with who trains on it.

    `retrain` trains the original on the selected examples alone, unless something says how they are mixed; the others
    give them strong copies beside what they make.
    """
    strong = _part(settings, "strong")
    if not strong.get("file") or "arms" in settings or "selector" in strong:
        return settings
    if kind != "retrain":
        return merge(settings, {"strong": {"selector": "file"}})
    says = row is not None or {"main", "copies", "where"} & set(strong)
    return merge(settings, {"arms": ["original+file"], "strong": {} if says else {"main": "coreset", "copies": 0}})
