"""Where the generator that a config names is, and of which kind. Light to import: a wrong name costs no second."""

from pathlib import Path

from latebloom.data.store import as_path, kept_file, list_folder, local_folder
from latebloom.synth.config import GenerateConfig, Kind
from latebloom.synth.generators.families import FAMILIES, transformer_classes
from latebloom.synth.generators.folder import parts_of, read_config, read_index
from latebloom.synth.generators.hub import fetch

__all__ = ["generator_folder", "generator_name", "kind_of", "reads_prompts"]

_SHIPPED = Path(__file__).parents[1] / "shipped"
_INDEX = "model_index.json"
_SINGLE = ".safetensors"
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def generator_folder(config: GenerateConfig, *, safety: bool = False) -> Path:
    """The local diffusers folder of a generator, downloaded or converted first where it is not one.

    Args:
        safety: of a hub id, whether the safety checker is wanted too.

    Raises:
        ValueError: none is named, or none is there, or it is something else; the message says what to give.
        OSError: the disk has no room for it.
    """
    name = config.generator
    if not name:
        raise ValueError("no generator is named; set generate.generator to a diffusers folder or a hub id")
    if _single_file(name):
        from latebloom.synth.generators.single_file import converted

        if not as_path(name).is_file():
            raise ValueError(f"there is no file {name}; give the path of a checkpoint")
        file = kept_file(as_path(name))
        return converted(file, _base(config, file))
    if config.base:
        raise ValueError(
            f"generate.base is {config.base}, which completes a single file of weights, and {name} is none; "
            "leave it empty"
        )
    for folder in (_SHIPPED / name, as_path(name)):
        if (folder / _INDEX).is_file():
            return local_folder(folder)
    if _is_hub_id(name):
        return fetch(name, config.revision, safety=safety)
    raise ValueError(_no_generator(name))


def generator_name(config: GenerateConfig, folder: Path) -> str:
    """What a generator in this folder is called: by its folder or file, or by its hub id and commit."""
    name = config.generator
    if _single_file(name):
        return as_path(name).name
    return f"{name}@{folder.name}" if _is_hub_id(name) else folder.name


def kind_of(config: GenerateConfig) -> Kind:
    """The kind that a config names or, with `auto`, that of the folder by its model_index.json."""
    if config.kind != "auto":
        return config.kind
    folder = generator_folder(config)
    pipeline = str(read_index(folder).get("_class_name", ""))
    unet = parts_of(folder).get("unet", ("", ""))[1]
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
    return transformer_classes(generator_folder(config)) is None


def _single_file(name: str) -> bool:
    return name.lower().endswith(_SINGLE) and not as_path(name).is_dir()


def _is_hub_id(name: str) -> bool:
    """Whether a name is that of a repository of the hub: owner/name, and no path that exists."""
    plain = name.count("/") == 1 and not name.startswith((".", "/", "~"))
    return plain and not name.lower().endswith((*_PICKLES, ".gguf")) and not as_path(name).exists()


def _base(config: GenerateConfig, file: Path) -> Path | None:
    """The folder with what a single file lacks, configs or other networks, too; None where none is named."""
    if not config.base:
        return None
    folder = as_path(config.base)
    if (folder / _INDEX).is_file():
        return local_folder(folder)
    if _is_hub_id(config.base):
        from latebloom.synth.generators.single_file import network_alone

        return fetch(config.base, config.revision, weights="others" if network_alone(file) else "none")
    raise ValueError(
        f"generate.base is {config.base}, expected a diffusers folder (with {_INDEX}) or a hub id (owner/name); give "
        "one of the same family as the file"
    )


def _no_generator(name: str) -> str:
    """What to say where nothing can be loaded: what is there, and what to give instead."""
    path = as_path(name)
    suffix = path.suffix.lower()
    if suffix in _PICKLES:
        return (
            f"{name} is a pickle, which can run code when it is loaded and is refused; give the model as safetensors, "
            "or convert it where you trust it: safetensors.torch.save_file(torch.load(FILE, weights_only=True)"
            '["state_dict"], "model.safetensors")'
        )
    if suffix == ".gguf":
        return f"{name} is a GGUF file, which is not read here; give the model as safetensors"
    if path.is_dir():
        entries = list_folder(path)
        here = [entry.name for entry, is_folder in entries if not is_folder and entry.suffix == _SINGLE]
        below = [entry.name for entry, is_folder in entries if is_folder and (entry / _INDEX).is_file()]
        if (path.parent / _INDEX).is_file():
            return f"{name} is one part of a diffusers folder; give the whole folder, {path.parent}"
        if below:
            return f"{name} has no {_INDEX}, but a folder below has: give {path / below[0]}"
        if here and not (path / "config.json").is_file():
            return f"{name} has no {_INDEX} but files of weights: {', '.join(here[:5])}; give one, {path / here[0]}"
        if here:
            return (
                f"{name} is one network, {_class_of(path)}, expected a whole diffusers folder (with {_INDEX}); give a "
                "folder as a pipeline's save_pretrained writes it"
            )
    shipped = ", ".join(sorted(p.name for p in _SHIPPED.iterdir())) if _SHIPPED.is_dir() else "none"
    return (
        f"no generator at {name!r}: expected a diffusers folder (with {_INDEX}), a {_SINGLE} file, a hub id "
        f"(owner/name) or one of those shipped ({shipped}); `latebloom fit-generator` makes one from your images"
    )


def _class_of(part: Path) -> str:
    config = read_config(part / "config.json")
    return str(config.get("_class_name") or next(iter(config.get("architectures") or ["of an unknown kind"])))
