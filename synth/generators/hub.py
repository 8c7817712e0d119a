"""A generator from the hub: which of a repository's files are needed, and their download. Light to import."""

import contextlib
import functools
import glob
import re
import sys
from collections import defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Literal

from rich.filesize import decimal

from latebloom.data.store import check_space
from latebloom.synth.generators.folder import LEFT_OUT, parts_of, read_index

__all__ = ["NETWORKS", "fetch", "is_settings", "wanted_files"]

NETWORKS = ("unet", "transformer")  # what a part that denoises is called
_TOP = ("model_index.json", "README.md", "latebloom.json")
# diffusion_pytorch_model.fp16-00001-of-00002.safetensors, or in an older layout -00001-of-00002.fp16.safetensors
_WEIGHTS = re.compile(
    r"(?:diffusion_pytorch_)?model(?:\.(?P<variant>\w+))?(?:-\d{5}-of-(?P<shards>\d{5}))?(?:\.(?P<old>\w+))?\.safetensors"
)
_INDEX = re.compile(r".+\.index(?:\.\w+)?\.json")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


@functools.cache
def fetch(
    name: str, revision: str = "", *, safety: bool = False, weights: Literal["all", "others", "none"] = "all"
) -> Path:
    """The folder of a repository of the hub, called by its commit, with what is not in the hub's cache downloaded.

    Says before it begins how many files and bytes it will download. A lost connection is taken up where it broke; where
    the process ended, whole files are kept.

    Args:
        revision: commit, tag or branch; empty: the newest.
        safety: the safety checker too.
        weights: those of all parts, of all others than the UNet or transformer, or only configs and tokenizers.

    Raises:
        ValueError: no such repository or revision, no connection and not all in the cache, or no diffusers folder.
        OSError: the disk has no room.
    """
    from huggingface_hub import get_cached_repo_tree, snapshot_download
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    with _asking(name), _no_bars():
        # Resolves the revision, or without a connection takes what it was at last.
        folder = Path(snapshot_download(name, revision=revision or None, allow_patterns=list(_TOP)))
    commit = folder.name
    try:
        files = {file.path: file.size for file in get_cached_repo_tree(name, revision=commit)}
    except CachedRepoTreeNotFoundError:  # without a connection, of a copy that an older version of it made
        files = {file.relative_to(folder).as_posix(): 0 for file in folder.rglob("*") if file.is_file()}
    if "model_index.json" not in files:
        raise ValueError(_no_folder(name, files))
    left_out = [part for part in LEFT_OUT if safety and read_index(folder).get(part, [None])[0]]
    parts = [*parts_of(folder), *left_out]
    wanted = wanted_files(name, files, parts, weights=weights)
    if missing := [file for file in wanted if not (folder / file).is_file()]:
        size = sum(files[file] for file in missing)
        check_space(folder, size, f"the download of {name}")
        print(
            f"downloading {len(missing)} of {len(files)} files, {decimal(size)}, of {name} at {commit} to {folder}",
            file=sys.stderr,
            flush=True,
        )
        with _asking(name):
            snapshot_download(name, revision=commit, allow_patterns=[glob.escape(file) for file in missing])
    return folder


@contextlib.contextmanager
def _asking(name: str) -> Iterator[None]:
    """Ask the hub in this block; whatever goes wrong becomes one line."""
    try:
        yield
    except Exception as error:  # of the hub, of its HTTP client, of the disk, of the network: each has its own kinds
        raise ValueError(
            f"generator {name!r} is no folder here and could not be fetched from the hub "
            f"({' '.join(str(error).split())[:200]}); check its id and revision, or download it and give the path"
        ) from error


@contextlib.contextmanager
def _no_bars() -> Iterator[None]:
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    before = are_progress_bars_disabled()
    disable_progress_bars()
    try:
        yield
    finally:
        if not before:
            enable_progress_bars()


def wanted_files(
    name: str, files: Mapping[str, int], parts: list[str], *, weights: Literal["all", "others", "none"] = "all"
) -> list[str]:
    """The files that make a diffusers folder of these parts: of each one format, safetensors, in one precision.

    Full precision where there is one, else fp16, else the only one. A GPU rounds either to bfloat16 and differs in the
    last bit, so what an image is would depend on the machine that downloaded the model first.

    Raises:
        ValueError: a part has its weights only as a pickle, or in several other precisions, or lacks some of them.
    """
    wanted = [file for file in _TOP if file in files]
    for part in parts:
        inside = [PurePosixPath(file) for file in files if file.startswith(f"{part}/") and file.count("/") == 1]
        wanted += [str(file) for file in inside if is_settings(file.name)]
        if weights == "all" or (weights == "others" and part not in NETWORKS):
            wanted += _weights(name, part, [file.name for file in inside])
    return wanted


def is_settings(name: str) -> bool:
    """Whether a file of a part is a config or of a tokenizer: no weights, no index of weights, no code."""
    return name.endswith((".json", ".txt", ".model", ".jinja")) and not _INDEX.fullmatch(name)


def _weights(name: str, part: str, files: list[str]) -> list[str]:
    """The weights of a part, with their index where they are in shards."""
    found: dict[tuple[str, int], list[str]] = defaultdict(list)
    for file in files:
        if match := _WEIGHTS.fullmatch(file):
            variant = match["variant"] or match["old"] or ""
            found[variant, int(match["shards"] or 1)].append(file)
    whole: dict[str, list[str]] = {}
    for (variant, shards), weights in sorted(found.items()):
        if len(weights) == shards:
            mark = f".{variant}" if variant else ""
            index = [file for file in files if shards > 1 and file.endswith(f".safetensors.index{mark}.json")]
            whole.setdefault(variant, [*weights, *index])
    for variant in ("", "fp16", *(whole if len(whole) == 1 else ())):
        if variant in whole:
            return [f"{part}/{file}" for file in sorted(whole[variant])]
    if found:
        names = ", ".join(sorted(file for weights in found.values() for file in weights))
        raise ValueError(
            f"{name} has of its {part} only {names}, expected all weights in full precision, in fp16 or in one other; "
            "give another repository"
        )
    pickles = [file for file in files if file.endswith(_PICKLES) and "model" in file]
    if pickles:
        raise ValueError(
            f"{name} has its {part} only as a pickle ({pickles[0]}), which is refused; give a repository or a revision "
            "with safetensors"
        )
    return []


def _no_folder(name: str, files: Mapping[str, int]) -> str:
    """What to say of a repository without model_index.json."""
    single = [file for file in files if file.endswith(".safetensors")]
    if not single:
        return f"{name} holds no diffusers folder (no model_index.json) and no safetensors; give another repository"
    some = ", ".join(f"{file} ({decimal(files[file])})" for file in single[:5]) + ", ..." * (len(single) > 5)
    return (
        f"{name} holds no diffusers folder (no model_index.json) but files of weights: {some}; download one with `hf "
        f"download {name} {single[0]}` and give the path that it prints"
    )
