"""Where the generator that a config names is, and of which kind. Light to import: a wrong name costs no second."""

import functools
from pathlib import Path

from latebloom.data.store import as_path, local_folder, read_json
from latebloom.synth.config import GenerateConfig, Kind
from latebloom.synth.generators.families import FAMILIES, transformer_classes

__all__ = ["generator_folder", "is_hub_id", "kind_of", "reads_prompts"]

_SHIPPED = Path(__file__).parents[1] / "shipped"


def generator_folder(name: str, revision: str = "") -> Path:
    """The local folder of a generator: a shipped one by name, a path, or a URL or hub id, which is downloaded.

    Raises:
        ValueError: none is named, or it is none of these; the message lists the shipped ones.
    """
    if not name:
        raise ValueError("no generator is named; set generate.generator to a diffusers folder or a hub id")
    for folder in (_SHIPPED / name, as_path(name)):
        if (folder / "model_index.json").is_file():
            return local_folder(folder)
    if is_hub_id(name):
        folder = _from_hub(name, revision)
        if (folder / "model_index.json").is_file():
            return folder
    shipped = ", ".join(sorted(p.name for p in _SHIPPED.iterdir())) if _SHIPPED.is_dir() else "none"
    raise ValueError(
        f"no generator at {name!r}: expected a diffusers folder (with model_index.json), a hub id (owner/name) or one "
        f"of those shipped ({shipped}); `latebloom fit-generator` makes one from your images"
    )


def is_hub_id(name: str) -> bool:
    """Whether a name is that of a repository of the hub: owner/name, and no path that exists."""
    return name.count("/") == 1 and not name.startswith((".", "/", "~")) and not Path(name).exists()


@functools.cache
def _from_hub(name: str, revision: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError

    try:
        # No pickles and no single-file copies of the same weights; text, since tokenizers are.
        wanted = ["*.json", "*.txt", "*.md", "*.model", "*.jinja", "*/*.safetensors"]
        return Path(snapshot_download(name, revision=revision or None, allow_patterns=wanted))
    except (HfHubHTTPError, LocalEntryNotFoundError, OSError, ValueError) as error:
        raise ValueError(
            f"generator {name!r} is no folder here and could not be fetched from the hub "
            f"({' '.join(str(error).split())[:200]}); check its id and revision, or download it and give the path"
        ) from error


def kind_of(config: GenerateConfig) -> Kind:
    """The kind that a config names or, with `auto`, that of the folder by its model_index.json."""
    if config.kind != "auto":
        return config.kind
    index = read_json(generator_folder(config.generator, config.revision) / "model_index.json")
    pipeline = str(index.get("_class_name", ""))
    unet = (index.get("unet") or [None, None])[1]
    if unet == "UNet2DModel":
        return "pixel"
    if pipeline == "StableDiffusionInstructPix2PixPipeline":
        return "diffusemix"
    if unet == "UNet2DConditionModel" and pipeline.startswith(("StableDiffusion", "LatentConsistency")):
        return "latent"
    return "transformer" if pipeline in FAMILIES else "pipeline"


def reads_prompts(config: GenerateConfig) -> bool:
    """Whether the generator is told by a prompt of the class what to make: not by its label, as DiT, or by an edit."""
    kind = kind_of(config)
    if kind != "transformer":
        return kind in ("latent", "pipeline")
    return transformer_classes(generator_folder(config.generator, config.revision)) is None
