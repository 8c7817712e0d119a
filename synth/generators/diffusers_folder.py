"""A diffusers folder: its digest, its weights, its cards; and what makes a loaded network faster."""

import contextlib
import importlib.util
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn

from latebloom.data.store import digest_file, digest_json, read_json
from latebloom.synth.generators.card import read_card

__all__ = [
    "check_packages",
    "compile_network",
    "digest_files",
    "fuse_projections",
    "licence",
    "load_part",
    "load_pipeline",
    "quiet",
]

# Class names and the images that the model was trained on, for which diffusers has no place.
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_LEFT_OUT = ("safety_checker", "watermarker")  # change no image that is kept
# Modules, and the packages that have them, without which a tokenizer of these files is not read.
_TOKENIZERS = {
    "spiece.model": {"sentencepiece": "sentencepiece", "google.protobuf": "protobuf"},
    "tokenizer.model": {"sentencepiece": "sentencepiece"},
}


def digest_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that the images depend on, by its path in the folder: weights, configs, tokenizers.

    Keys of configs that begin with an underscore are left out: they name the version of diffusers and a path. Variants
    of the weights (`model.fp16.safetensors`) are left out too, since they are not loaded.

    Raises:
        ValueError: a part is missing or has its weights as pickles only.
    """
    digests = {}
    for part in _parts(folder):
        if not (folder / part).is_dir():
            raise ValueError(f"{folder} has no {part}/; copy or save the whole diffusers folder")
        files = sorted(file for file in (folder / part).iterdir() if file.is_file())
        weights = [file for file in files if file.suffix == ".safetensors"]
        pickles = [file.name for file in files if file.suffix in _PICKLES]
        if pickles and not weights:
            raise ValueError(
                f"{folder} has {part} only as a pickle ({pickles[0]}), which is refused; save it as safetensors"
            )
        for file in files:
            if file.name.endswith("config.json"):
                config = {key: value for key, value in read_json(file).items() if not key.startswith("_")}
                digests[f"{part}/{file.name}"] = digest_json(config)
            elif file.suffix not in _PICKLES and (file.suffix != ".safetensors" or "." not in file.stem):
                digests[f"{part}/{file.name}"] = digest_file(file)
    return digests


def check_packages(folder: Path) -> None:
    """Raise ValueError where a folder's tokenizers need packages that are not installed; the message names them.

    Without them, diffusers has no Kolors, and transformers asks for a package that is of no use.
    """
    for part in _parts(folder):
        if (folder / part / "tokenizer.json").is_file():  # needs none
            continue
        for file, modules in _TOKENIZERS.items():
            missing = [package for module, package in modules.items() if not _installed(module)]
            if missing and (folder / part / file).is_file():
                raise ValueError(f"{folder} has {part}/{file}, which needs a package: pip install {' '.join(missing)}")


def _installed(module: str) -> bool:
    try:
        return importlib.util.find_spec(module) is not None
    except ModuleNotFoundError:  # the package that it is a part of
        return False


def _parts(folder: Path) -> dict[str, list[str]]:
    """The library and class of each part that makes images, as model_index.json has them."""
    index = read_json(folder / "model_index.json")
    return {
        part: source
        for part, source in index.items()
        if isinstance(source, list) and source[0] is not None and part not in _LEFT_OUT
    }


def load_part(kind: Any, folder: Path, part: str, dtype: torch.dtype, variant: str | None = None) -> Any:
    """One network of a folder as an instance of the class `kind`, on the CPU.

    Raises:
        ValueError: its files are broken, or lack weights, which the libraries would leave random.
    """
    with _whole(folder / part):
        network, report = kind.from_pretrained(
            folder,
            subfolder=part,
            variant=variant,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"it lacks {len(missing)} weights, such as {missing[0]}")
    return network


def load_pipeline(kind: Any, folder: Path, dtype: torch.dtype, **without: Any) -> Any:
    """A folder as the diffusers pipeline `kind`, on the CPU.

    Args:
        without: parts to leave out, as None, and settings of the pipeline.

    Raises:
        ValueError: its files are broken, or lack weights.
    """
    from diffusers.pipelines.pipeline_loading_utils import simple_get_class_obj

    kinds = {part: simple_get_class_obj(*source) for part, source in _parts(folder).items() if part not in without}
    networks = {
        part: load_part(network, folder, part, dtype)
        for part, network in kinds.items()
        if issubclass(network, nn.Module)
    }
    with _whole(folder):
        return kind.from_pretrained(folder, dtype=dtype, local_files_only=True, **networks, **without)


@contextlib.contextmanager
def _whole(path: Path) -> Iterator[None]:
    """Load without messages; one kind of error for whatever is wrong with the files at `path`."""
    from safetensors import SafetensorError

    try:
        # Some weights are drawn, before they are filled, from torch's global stream, which must not change.
        with quiet(), torch.random.fork_rng(devices=[]):
            yield
    except (OSError, SafetensorError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"{path} cannot be loaded ({reason}); copy or download it again") from error


def fuse_projections(network: Any) -> None:
    """One matrix product for query, key and value.

    Raises:
        ValueError: the network has no such method.
    """
    if not hasattr(network, "fuse_qkv_projections"):
        raise ValueError(f"{type(network).__name__} cannot fuse its projections; set generate.fuse_qkv to false")
    with torch.random.fork_rng(devices=[]):  # the new layers are drawn before they are filled
        network.fuse_qkv_projections()


def compile_network(network: Any) -> None:
    """torch.compile a network at its first call of each shape; only its repeated blocks where it has them."""
    torch._dynamo.config.recompile_limit = 64  # a graph a width and batch size; the default of 8 is soon used up
    repeated = getattr(network, "_repeated_blocks", None) or ()
    if any(type(module).__name__ in repeated for module in network.modules()):
        network.compile_repeated_blocks(fullgraph=True, dynamic=False)
    else:
        network.compile(dynamic=False)


def licence(folder: Path) -> str:
    """The licence that latebloom.json or the header of README.md names; empty where neither does."""
    from huggingface_hub.repocard import metadata_load

    readme = folder / "README.md"
    header = (metadata_load(readme) if readme.is_file() else None) or {}
    return str(read_card(folder).get("licence") or header.get("license", ""))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of the libraries while weights are loaded; their settings are put back."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries: Any = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # diffusers about itself
            yield
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()
