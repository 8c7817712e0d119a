"""What lies in a diffusers folder: its index, configs and weight files, checked. Light to import; nothing is loaded."""

import dataclasses
import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from latebloom.data.store import digest_file, digest_json, read_json

__all__ = [
    "LEFT_OUT",
    "Weights",
    "digest_files",
    "loaded_bytes",
    "network_weights",
    "parts_of",
    "read_config",
    "read_index",
    "trained_side",
    "weight_files",
    "weights_of",
]

_AGAIN = "copy or download the folder again"
LEFT_OUT = ("safety_checker", "watermarker")  # parts that change no image that is kept
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
# File names of weights without suffix, as diffusers and transformers write them.
_DIFFUSERS, _TRANSFORMERS = "diffusion_pytorch_model", "model"
_WEIGHTS = re.compile(r"\.(safetensors(\.index.*\.json)?|bin|ckpt|pt|pth|gguf)$")
_SHARD = re.compile(r"-\d{5}-of-\d{5}")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _are_numbers(value: Any) -> bool:
    return isinstance(value, list) and all(map(_is_number, value))


def _are_sides(value: Any) -> bool:
    return _is_count(value) or (isinstance(value, list) and len(value) == 2 and all(map(_is_count, value)))


def _one_of(*values: str) -> tuple[Callable[[Any], bool], str]:
    return lambda value: value in values, f"one of {', '.join(values)}"


# Keys that the libraries take as they are, whatever they hold, and trip over later: what they may be, beside null.
_VALUES: dict[str, tuple[Callable[[Any], bool], str]] = {
    "sample_size": (_are_sides, "a number of pixels or latents, or [height, width]"),
    "in_channels": (_is_count, "a number of channels"),
    "out_channels": (_is_count, "a number of channels"),
    "num_class_embeds": (_is_count, "a number of classes"),
    "latent_channels": (_is_count, "a number of channels"),
    "scaling_factor": (_is_number, "a number"),
    "shift_factor": (_is_number, "a number"),
    "clip_sample_range": (_is_number, "a number"),
    "shift": (_is_number, "a number"),
    "flow_shift": (_is_number, "a number"),
    "timestep_scale": (_is_number, "a number"),
    "timestep_scaling": (_is_number, "a number"),
    "latents_mean": (_are_numbers, "a list of numbers"),
    "latents_std": (_are_numbers, "a list of numbers"),
    "num_train_timesteps": (lambda value: _is_count(value) and value <= 1_000_000, "a number of steps"),
    "model_max_length": (lambda value: _is_number(value) and value > 0, "a number of tokens"),
    "prediction_type": _one_of("epsilon", "sample", "v_prediction", "flow_prediction", "trigflow"),
    "timestep_spacing": _one_of("linspace", "leading", "trailing"),
    "quantization_config": (lambda value: isinstance(value, dict), "an object"),
}
_NEVER_NULL = {"scaling_factor", "prediction_type"}


@dataclasses.dataclass(frozen=True)
class Weights:
    """The files that a network is loaded from.

    Attributes:
        files: safetensors, all shards.
        index: which shard holds what; None where there is one file.
        variant: what diffusers calls the mark in their names, such as "fp16"; None without one.
    """

    files: list[Path]
    index: Path | None
    variant: str | None


def read_config(file: Path) -> dict[str, Any]:
    """The object in a JSON file of a checkpoint.

    Raises:
        ValueError: it is not JSON, no object or an empty one, or a value that is used is of another type.
    """
    config = read_json(file, _AGAIN)
    if not isinstance(config, dict) or not config:
        what = f"a {type(config).__name__}" if config else "nothing"
        raise ValueError(f"{file} holds {what}, expected an object with settings; {_AGAIN}")
    for name, (fits, expected) in _VALUES.items():
        value = config.get(name)
        if not (fits(value) if value is not None else name not in config or name not in _NEVER_NULL):
            raise ValueError(
                f"{file} has {name} {json.dumps(value)[:60]}, expected {expected}; correct it, or {_AGAIN}"
            )
    return config


def read_index(folder: Path) -> dict[str, Any]:
    """The content of model_index.json: the pipeline's class, its parts ([library, class]) and its settings.

    Raises:
        ValueError: there is none, as `read_config`, or a part is not of that form.
    """
    file = folder / "model_index.json"
    if not file.is_file():
        raise ValueError(
            f"{folder} has no model_index.json; give a folder as diffusers' save_pretrained writes it, not one file"
        )
    index = read_config(file)
    for part, source in index.items():
        if isinstance(source, list) and not part.startswith("_"):
            named = len(source) == 2 and all(isinstance(name, str) and name for name in source)
            if not named and source != [None, None]:
                raise ValueError(
                    f"{file} has {json.dumps(source)[:60]} for its {part}, expected [library, class]; {_AGAIN}"
                )
    return index


def parts_of(folder: Path) -> dict[str, tuple[str, str]]:
    """The library and class of each part that makes images, as model_index.json has them; ValueError as there."""
    return {
        part: (source[0], source[1])
        for part, source in read_index(folder).items()
        if isinstance(source, list) and not part.startswith("_") and source[0] is not None and part not in LEFT_OUT
    }


def network_weights(folder: Path, part: str) -> Weights:
    """As `weights_of`, of a part that is a network; ValueError where it has none."""
    if (weights := weights_of(folder, part)) is None:
        raise ValueError(f"{folder} has no weights in {part}/; copy or save the whole diffusers folder")
    return weights


def weights_of(folder: Path, part: str) -> Weights | None:
    """The files that a part is loaded from: those without a variant, else fp16, else those of the only variant.

    Returns:
        None: the part has no weights, as tokenizers and schedulers.

    Raises:
        ValueError: a shard is missing, or there are only pickles, GGUF files, files of other names or several variants
            of which none is fp16.
    """
    place = folder / part
    names = sorted(file.name for file in place.iterdir() if file.is_file()) if place.is_dir() else []
    others: list[Weights] = []
    missing = ""
    for stem in (_DIFFUSERS, _TRANSFORMERS):
        for mark in sorted(_variants(stem, names), key=lambda mark: (mark != "", mark != "fp16", mark)):
            weights = _located(place, stem, mark)
            absent = [file.name for file in weights.files if file.name not in names]
            missing = missing or "".join(absent[:1])
            if not absent and mark in ("", "fp16"):
                return weights
            others += [] if absent else [weights]
    if len(others) == 1:
        return others[0]
    if others:
        variants = ", ".join(str(weights.variant) for weights in others)
        raise ValueError(f"{place} has its weights as {variants}, expected one of them; remove or rename the others")
    if missing:
        raise ValueError(f"{place} lacks {missing}, which its index names; {_AGAIN}")
    for suffixes, what in ((_PICKLES, "a pickle"), ((".gguf",), "GGUF"), ((".safetensors",), "a file of another name")):
        for name in names:
            if name.endswith(suffixes):
                raise ValueError(
                    f"{folder} has {part} only as {what} ({name}), which is refused; give it as safetensors, as "
                    "diffusers' save_pretrained writes it"
                )
    return None


def _variants(stem: str, names: Sequence[str]) -> set[str]:
    """The marks of whole files and of indexes of shards; "" for those without one."""
    whole = re.compile(rf"{stem}(?:\.([^.]+))?\.safetensors")
    index = re.compile(rf"{stem}\.safetensors\.index(?:\.([^.]+))?\.json")
    found = {match[1] or "" for name in names for form in (whole, index) if (match := form.fullmatch(name))}
    return {mark for mark in found if not _SHARD.search(mark)}


def _located(place: Path, stem: str, mark: str) -> Weights:
    """The files of one variant, there or not: the shards where there is an index."""
    dotted = f".{mark}" if mark else ""
    whole = place / f"{stem}{dotted}.safetensors"
    index = place / f"{stem}.safetensors.index{dotted}.json"
    # Where there are both, transformers takes the whole file and diffusers the shards.
    if not index.is_file() or (stem == _TRANSFORMERS and whole.is_file()):
        return Weights([whole], None, mark or None)
    shards = read_config(index).get("weight_map")
    if not isinstance(shards, dict) or not all(isinstance(name, str) for name in shards.values()):
        raise ValueError(f"{index} has no weight_map of names to files; {_AGAIN}")
    return Weights([place / name for name in sorted(set(shards.values()))], index, mark or None)


def digest_files(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that the images depend on, by its path in the folder: weights, configs, tokenizers.

    Keys of configs that begin with an underscore are left out: they name the version of diffusers and a path. Of the
    weights, those that are loaded count.

    Raises:
        ValueError: a part is missing, or has no weights that can be loaded; a config is damaged.
    """
    digests = {}
    for part in parts_of(folder):
        if not (folder / part).is_dir():
            raise ValueError(f"{folder} has no {part}/; copy or save the whole diffusers folder")
        weights = weights_of(folder, part)
        loaded = [*weights.files, weights.index] if weights else []
        for file in sorted(file for file in (folder / part).iterdir() if file.is_file()):
            if file.name.endswith("config.json"):
                config = {key: value for key, value in read_config(file).items() if not key.startswith("_")}
                digests[f"{part}/{file.name}"] = digest_json(config)
            elif file in loaded or not _WEIGHTS.search(file.name):
                digests[f"{part}/{file.name}"] = digest_file(file)
    return digests


def weight_files(folder: Path) -> list[Path]:
    """The files with the weights of all parts that make images; ValueError as `weights_of`."""
    found = [weights_of(folder, part) for part in parts_of(folder)]
    return [file for weights in found if weights for file in weights.files]


def loaded_bytes(folder: Path, float_bytes: int) -> int:
    """The memory that the weights of a folder take once they are loaded, by the headers of their files.

    Args:
        float_bytes: of each number that is a float in the files, whatever its size there.

    Raises:
        ValueError: as `weights_of`, or a file is no safetensors file.
    """
    return sum(_loaded_bytes(file, float_bytes) for file in weight_files(folder))


def _loaded_bytes(file: Path, float_bytes: int) -> int:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, "numpy") as opened:
            slices = [opened.get_slice(name) for name in opened.keys()]  # noqa: SIM118 (it is no dict)
            return sum(math.prod(part.get_shape()) * _bytes(part.get_dtype(), float_bytes) for part in slices)
    except (SafetensorError, OSError) as error:
        raise ValueError(f"{file} is no safetensors file ({error}); {_AGAIN}") from error


def _bytes(dtype: str, float_bytes: int) -> int:
    """Of one number of a dtype such as BF16, I8 or BOOL; integers, as quantised weights are, stay as they are."""
    return float_bytes if "F" in dtype else int(dtype[1:]) // 8 if dtype[1:].isdigit() else 1


def trained_side(config: Mapping[str, Any]) -> int:
    """The side that a network was trained at, by the `sample_size` of its config: of [height, width], the shorter.

    Without one it is what diffusers' pipelines take: 64 latents for the UNet of Stable Diffusion, 128 for that of SDXL
    and for transformers. For a `UNet2DModel`, of pixels, it is 0: not known.
    """
    size = config.get("sample_size")
    if size is not None:
        return int(min(size)) if isinstance(size, list | tuple) else int(size)
    if "down_block_types" not in config or config.get("addition_embed_type") == "text_time":
        return 128
    return 64 if "cross_attention_dim" in config else 0
