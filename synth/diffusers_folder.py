"""What is in a diffusers folder: weights that may be loaded, their digests and licence."""

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from data.store import digest_file, digest_json, read_json

__all__ = ["digest_files", "licence", "quiet"]

_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_LEFT_OUT = ("safety_checker", "watermarker")  # change no image that is kept


def digest_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that makes the images, by its path in the folder: weights, configs, tokenizers.

    Of configs without keys that begin with an underscore: they say which diffusers wrote the file and from where.
    Variants of the weights (`model.fp16.safetensors`) are left alone, as in loading.

    Raises:
        ValueError: a part is missing or has its weights as pickles only.
    """
    index = read_json(folder / "model_index.json")
    digests = {}
    for part, source in index.items():
        if not isinstance(source, list) or source[0] is None or part in _LEFT_OUT:
            continue
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


def licence(folder: Path) -> str:
    """As the header of the folder's README.md names it; empty where it does not."""
    from huggingface_hub.repocard import metadata_load

    card = folder / "README.md"
    header = (metadata_load(card) if card.is_file() else None) or {}
    return str(header.get("license", ""))


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no advice while weights are loaded; the libraries' own settings are put back."""
    from diffusers.utils import logging as diffusers_logging
    from transformers.utils import logging as transformers_logging

    libraries: Any = (diffusers_logging, transformers_logging)
    before = [(library.get_verbosity(), library.is_progress_bar_enabled()) for library in libraries]
    for library in libraries:
        library.set_verbosity_error()
        library.disable_progress_bar()
    try:
        yield
    finally:
        for library, (verbosity, bars) in zip(libraries, before, strict=True):
            library.set_verbosity(verbosity)
            if bars:
                library.enable_progress_bar()
