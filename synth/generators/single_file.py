"""A checkpoint in one safetensors file, converted once into a diffusers folder that is kept.

From there every other part sees a folder. Light to import, and quick where the folder is there already.
"""

import contextlib
import functools
import gzip
import json
import math
import os
import shutil
import sys
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock
from rich.filesize import decimal

from latebloom.data.store import atomic_folder, check_space, digest_file, digest_json, read_json, write_json
from latebloom.synth.generators.card import CARD_FILE
from latebloom.synth.generators.folder import LEFT_OUT, parts_of, read_config, read_index, weights_of
from latebloom.synth.generators.hub import NETWORKS, is_settings

if TYPE_CHECKING:
    import torch

__all__ = ["converted", "lay_out_shipped", "network_alone"]

_FOLDERS = "~/.cache/latebloom/converted"
_CONFIGS = Path(__file__).parent / "configs"
_INDEX = "model_index.json"
_RACY_NS = 2_000_000_000  # a younger file may change and keep its size and time
_NAMED = 200  # characters of a library's reason that an error repeats

# The prefixes of the tensors of each network, in the layouts of LDM and of ComfyUI.
_DENOISER = ("model.diffusion_model.",)
_VAE = ("first_stage_model.", "vae.")
_TEXT = ("cond_stage_model.", "conditioner.", "text_encoders.")
_LORA = (
    ".lora_down.weight",
    ".lora_A.weight",
    ".lora.down.weight",
    ".hada_w1_a",
    ".lokr_w1",
    ".lokr_w1_a",
    ".dora_scale",
)
# How the tensors of a file of one network begin.
_ALONE = {
    "a VAE": ("encoder.", "decoder."),
    "a UNet or transformer": ("input_", "down_", "double_", "joint_", "transformer_"),
    "a text encoder": ("text_model.", "shared."),
}
# Of fp8 tensors all values are values of float16, too.
_DTYPES = {"F64": "float32", "F8_E4M3": "float16", "F8_E5M2": "float16"}
_DTYPES |= {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}

# What diffusers calls a family: where its configs are shipped.
_SHIPPED = {"v1": "sd1", "v2": "sd2", "xl_base": "sdxl"}
# How the names of other families begin that can be generated with: the pipeline that converts them.
_PIPELINES = {
    "playground": "StableDiffusionXLPipeline",
    "instruct-pix2pix": "StableDiffusionInstructPix2PixPipeline",
    "sd3": "StableDiffusion3Pipeline",
    "flux-dev": "FluxPipeline",
    "flux-schnell": "FluxPipeline",
    "chroma": "ChromaPipeline",
    "z-image-turbo": "ZImagePipeline",
}


def converted(file: Path, base: Path | None) -> Path:
    """The diffusers folder of a checkpoint in one safetensors file, made when it is first asked for.

    Networks keep the precision that they have in the file. Of a file that has averaged weights (EMA) beside the others,
    these are taken, as the folders of the hub have them.

    Args:
        base: a diffusers folder of the same family, for configs and tokenizers and, where the file holds a UNet or
            transformer alone, for the weights of all other parts; None: configs shipped with Latebloom.

    Raises:
        ValueError: no whole checkpoint and no base with the rest, of a family whose configs are not shipped, or `base`
            is of another.
        OSError: the disk has no room.
    """
    root = Path(_FOLDERS).expanduser()
    stat = file.stat()
    header, _ = _read_header(file)
    others = _other_weights(file, base) if base and network_alone(file) else None
    if others is None:
        _check_whole(file, header)
    configs = _settings_of(base) if base else [path for path in sorted(_CONFIGS.rglob("*")) if path.is_file()]
    by = digest_json([(str(path.relative_to(base or _CONFIGS)), digest_file(path)) for path in configs])
    times = [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns, stat.st_ino]
    beside = [path.stat() for path in others or ()]
    times += [fact for one in beside for fact in (one.st_size, one.st_mtime_ns, one.st_ino)]  # links change the ctime
    note = root / "files" / f"{digest_json([str(file.resolve()), *times, by])}.json"
    if note.is_file() and (root / read_json(note)).is_dir():
        return root / str(read_json(note))
    if not base:
        _shipped_family(file, header)
    folder = root / digest_json([digest_file(file), by, *map(digest_file, others or ())])
    root.mkdir(parents=True, exist_ok=True)
    with FileLock(root / f"{folder.name}.lock"):
        if not folder.is_dir():
            for partial in root.glob(f".{folder.name}.*"):  # of a process that was killed
                shutil.rmtree(partial)
            with atomic_folder(folder, _INDEX) as temporary:
                _convert(file, base, configs, others, temporary, folder)
    if max(stat.st_ctime_ns, *(one.st_mtime_ns for one in (stat, *beside))) < time.time_ns() - _RACY_NS:
        write_json(note, folder.name)
    return folder


def _settings_of(base: Path) -> list[Path]:
    """The configs and tokenizers of the parts of a diffusers folder."""
    inside = (path for part in sorted(parts_of(base)) for path in sorted(base.glob(f"{part}/*")))
    return [base / _INDEX, *(path for path in inside if is_settings(path.name) and path.is_file())]


def _other_weights(file: Path, base: Path) -> list[Path]:
    """The weights of all parts of a diffusers folder but its UNet or transformer, with the indexes of their shards.

    Raises:
        ValueError: it has none of a part, or no UNet or transformer, or such as cannot be read.
    """
    parts = parts_of(base)
    if not set(parts) & set(NETWORKS):
        raise ValueError(
            f"{base / _INDEX} names no {' or '.join(NETWORKS)}; set generate.base to a folder that has one"
        )
    found = []
    for part in parts:
        if part not in NETWORKS and (base / part / "config.json").is_file():
            weights = weights_of(base, part)
            if not weights:
                raise ValueError(
                    f"{file} holds only a UNet or transformer, and generate.base, {base}, has none of its {part}'s "
                    "weights; set it to a diffusers folder that has them, or give the whole checkpoint"
                )
            found += [*weights.files, *filter(None, [weights.index])]
    return found


def _convert(
    file: Path, base: Path | None, configs: Sequence[Path], others: Sequence[Path] | None, folder: Path, target: Path
) -> None:
    """Fill a temporary folder, which then becomes `target`.

    Args:
        others: of a file with a UNet or transformer alone, the weights of the base for the other parts. They are
            linked, or on another disk copied.
    """
    header, metadata = _read_header(file)
    kept = {name: one for name, one in header.items() if name.startswith((*_DENOISER, *_VAE, *_TEXT))}
    if others is not None:
        kept = _denoiser(header)
    vae = _dtype(one for name, one in kept.items() if name.startswith(_VAE))
    rest = _dtype(one for name, one in kept.items() if not name.startswith(_VAE))
    size = sum(math.prod(one["shape"]) * (vae if k.startswith(_VAE) else rest).itemsize for k, one in kept.items())
    copied = [path for path in others or () if base and not _linked(path, folder / path.relative_to(base))]
    more = sum(path.stat().st_size for path in copied)
    check_space(folder, size + more, f"{file.name} as a diffusers folder")
    beside = f", with {decimal(more)} of {base}" if more else ""
    print(f"converting {file} ({decimal(size)}){beside}, once, to {target}", file=sys.stderr, flush=True)
    if base:
        configs = [*configs, *copied]
        for path in configs:
            place = folder / path.relative_to(base)
            place.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, place)
    else:
        lay_out_shipped(file, folder)
    index = read_index(folder)
    unused = [*LEFT_OUT]
    if str(index.get("_class_name")).startswith("StableDiffusion3") and not any(".t5xxl." in name for name in header):
        unused += ["text_encoder_3", "tokenizer_3"]  # which such a model can do without
    index |= {part: [None, None] for part in unused if part in index}
    write_json(folder / _INDEX, index)
    if licence := metadata.get("modelspec.license"):
        write_json(folder / CARD_FILE, {"licence": licence})
    with _one_line(file, base):
        if others is not None:
            _save_alone(file, folder, index, rest)
        else:
            _save_networks(file, folder, index, vae, rest)


def _save_networks(file: Path, folder: Path, index: dict[str, Any], vae: "torch.dtype", rest: "torch.dtype") -> None:
    """The weights of the file into the folder of their configs, which stay as they are."""
    import diffusers
    from torch import nn

    options = {"config": str(folder), "local_files_only": True}
    # A part that a pipeline can do without, but not by its signature, as SD3's T5, must be given as None.
    given: dict[str, Any] = {part: None for part, source in index.items() if source == [None, None]}
    if vae != rest and index.get("vae"):
        kind = getattr(diffusers, index["vae"][1])
        given["vae"] = kind.from_single_file(str(file), subfolder="vae", dtype=vae, **options)
    kind = getattr(diffusers, index["_class_name"])
    # A UNet takes `extract_ema`; others ignore it.
    pipeline = kind.from_single_file(str(file), dtype=rest, extract_ema=True, **options, **given)
    networks: dict[str, Any] = {k: part for k, part in pipeline.components.items() if isinstance(part, nn.Module)}
    for part, network in networks.items():
        if hasattr(network, "tie_weights"):  # T5's embeddings, which a file has once and diffusers fills once
            network.tie_weights()
        if missing := [name for name, tensor in network.state_dict().items() if tensor.is_meta]:
            raise ValueError(f"{part} lacks {len(missing)} weights, such as {missing[0]}")
        _save(network, folder / part)


def _save(network: Any, place: Path) -> None:
    config = (place / "config.json").read_bytes()
    network.save_pretrained(place)
    (place / "config.json").write_bytes(config)


def _save_alone(file: Path, folder: Path, index: dict[str, Any], dtype: "torch.dtype") -> None:
    """The network that is all of a file into the folder of its config."""
    import diffusers
    import torch
    from diffusers.loaders.single_file_model import SINGLE_FILE_LOADABLE_CLASSES
    from safetensors.torch import load_file

    part = next(part for part in NETWORKS if part in index)
    name = index[part][1]
    if name not in SINGLE_FILE_LOADABLE_CLASSES:
        raise ValueError(f"diffusers reads no {name} from one file")
    kind = getattr(diffusers, name)
    config = read_config(folder / part / "config.json")
    if config.pop("quantization_config", None):  # of the weights that are replaced
        write_json(folder / part / "config.json", config)
    with torch.device("meta"):
        expected = kind.from_config(config).state_dict().keys()
        found = _as_read({name: torch.empty(one["shape"]) for name, one in _read_header(file)[0].items()})
    if found.keys() != expected:
        with contextlib.suppress(LookupError):  # what is not there is said below
            found = SINGLE_FILE_LOADABLE_CLASSES[name]["checkpoint_mapping_fn"](checkpoint=dict(found), config=config)
    there = {key for key, tensor in found.items() if tensor is not None}
    for names, what in ((expected - there, "lacks"), (there - expected, "has other")):
        if names:
            raise ValueError(f"{what} {len(names)} weights, such as {min(names)}, for {name} of that config")
    # A UNet takes `extract_ema`; others ignore it.
    options = {"subfolder": part, "local_files_only": True, "dtype": dtype, "extract_ema": True}
    _save(kind.from_single_file(_as_read(load_file(file)), config=str(folder), **options), folder / part)


def _denoiser(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of the network in a file of nothing else, by their names without a prefix."""
    (prefix,) = _DENOISER
    inside = {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}
    return inside or dict(tensors)


def _as_read(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The tensors of a network alone, by the names that diffusers' readers expect: only LDM's UNet with its prefix."""
    bare = _denoiser(tensors)
    if not any(name.startswith("input_blocks.") for name in bare):
        return bare
    averaged = {name: tensor for name, tensor in tensors.items() if name.startswith("model_ema.")}
    return {f"{_DENOISER[0]}{name}": tensor for name, tensor in bare.items() if name not in averaged} | averaged


def _linked(source: Path, link: Path) -> bool:
    """Whether a hard link to a file could be made: not where it is on another disk or somebody else's."""
    link.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source.resolve(), link)
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _one_line(file: Path, base: Path | None) -> Iterator[None]:
    """Load without messages and without drawing from torch's global stream; what is raised becomes one line."""
    import torch
    from diffusers.loaders.single_file_utils import SingleFileComponentError
    from safetensors import SafetensorError

    from latebloom.synth.generators.diffusers_folder import quiet

    try:
        with quiet(), torch.random.fork_rng(devices=[]):
            yield
    except (ValueError, RuntimeError, LookupError, AttributeError, SafetensorError, SingleFileComponentError) as error:
        reason = " ".join(str(error).split())[:_NAMED]
        raise ValueError(
            f"{file} cannot be read with the configs of {base or 'the plain model of its family'} ({reason}); set "
            "generate.base to a diffusers folder of the very model that it was made from"
        ) from error


def _read_header(file: Path) -> tuple[dict[str, Any], dict[str, str]]:
    """The dtype and shape of every tensor of a safetensors file, and its metadata."""
    try:
        with file.open("rb") as opened:
            length = int.from_bytes(opened.read(8), "little")
            header: dict[str, Any] = json.loads(opened.read(length) if length <= file.stat().st_size else b"")
        metadata = header.pop("__metadata__", {})
        end = 8 + length + max((entry["data_offsets"][1] for entry in header.values()), default=0)
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(f"{file} is no safetensors file, whatever its name; download it again") from error
    if end != file.stat().st_size:
        raise ValueError(f"{file} has {file.stat().st_size} bytes, expected {end}; download it again")
    return header, metadata


def network_alone(file: Path) -> bool:
    """Whether all that a safetensors file holds is a UNet or transformer, or something that is not known.

    Raises:
        ValueError: it is a LoRA, or quantised with scales, or no safetensors file.
    """
    header, _ = _read_header(file)
    _check_plain(file, header)
    others = tuple(mark for kind in ("a VAE", "a text encoder") for mark in _ALONE[kind])
    return not any(name.startswith((*_VAE, *_TEXT, *others)) for name in header)


def _check_plain(file: Path, header: dict[str, Any]) -> None:
    """Raise ValueError where a file is a LoRA, or quantised."""
    if any(name.endswith(_LORA) or name.startswith("lora_") for name in header):
        raise ValueError(
            f"{file} is a LoRA; give it as generate.loras, and the model it was made for as generate.generator"
        )
    if any(name.endswith((".scale_weight", ".weight_scale", "scaled_fp8", ".absmax")) for name in header):
        raise ValueError(f"{file} is quantised with scales of its own, which is not read here; give it in fp16 or bf16")


def _check_whole(file: Path, header: dict[str, Any]) -> None:
    """Raise ValueError where a file is no whole checkpoint."""
    _check_plain(file, header)
    found = {
        "UNet or transformer": any(name.startswith(_DENOISER) for name in header),
        "VAE": any(name.startswith(_VAE) for name in header),
        "text encoders": any(name.startswith(_TEXT) for name in header),
    }
    missing = [part for part, there in found.items() if not there]
    if not missing:
        return
    if len(missing) == len(found):
        what = next((kind for kind, marks in _ALONE.items() if any(name.startswith(marks) for name in header)), "")
        what = f"only {what}" if what else "no checkpoint that is known here"
    else:
        what = f"a checkpoint without its {' and '.join(missing)}"
    remedy = "put it into the diffusers folder of the model it was made for, and give that"
    if network_alone(file):
        remedy = "set generate.base to the diffusers folder, with weights, or hub id of the model it was made from"
    raise ValueError(
        f"{file} holds {what}, expected UNet or transformer, VAE and text encoders in one file; give the whole "
        f"checkpoint, or {remedy}"
    )


def _dtype(entries: Iterable[Mapping[str, Any]]) -> "torch.dtype":
    """The precision that holds every one of some tensors of a header."""
    import torch

    names = {_DTYPES.get(one["dtype"]) for one in entries} - {None}
    found: list[torch.dtype] = [getattr(torch, str(name)) for name in names] or [torch.float32]
    return functools.reduce(torch.promote_types, found)


def lay_out_shipped(file: Path, folder: Path) -> None:
    """Write the shipped configs of a file's family into a folder, with what the file itself says of how it predicts.

    Raises:
        ValueError: of a family whose configs are not shipped.
    """
    header, metadata = _read_header(file)
    family = _shipped_family(file, header)
    shutil.copytree(_CONFIGS / _SHIPPED[family], folder, dirs_exist_ok=True)
    vocabulary, merges = _clip_words()
    for tokenizer in folder.glob("tokenizer*"):
        (tokenizer / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
        (tokenizer / "merges.txt").write_text("\n".join(["#version: 0.2", *merges, ""]), encoding="utf-8")
    if _predicts_v(file, family, header, metadata):
        scheduler = folder / "scheduler" / "scheduler_config.json"
        zero_snr = {"rescale_betas_zero_snr": True} if "ztsnr" in header else {}
        write_json(scheduler, read_json(scheduler) | {"prediction_type": "v_prediction"} | zero_snr)
        if family == "v2":  # the model that was trained at 768 pixels
            unet = folder / "unet" / "config.json"
            write_json(unet, read_json(unet) | {"sample_size": 96})


def _shipped_family(file: Path, header: dict[str, Any]) -> str:
    """What diffusers calls the family of a checkpoint; ValueError where its configs are not shipped."""
    import torch
    from diffusers.loaders import single_file_utils as known

    tensors = {name: torch.empty(entry["shape"], device="meta") for name, entry in header.items()}
    family: str = known.infer_diffusers_model_type(tensors)
    if family == "v1" and known.CHECKPOINT_KEY_NAMES["v1"] not in tensors:  # it is the last resort, too
        raise ValueError(
            f"{file} is of no family that diffusers recognises; set generate.base to a diffusers folder of the model "
            "that it was made from"
        )
    if family in _SHIPPED:
        return family
    pipeline = next((kind for begin, kind in _PIPELINES.items() if family.startswith(begin)), "")
    if not pipeline:
        raise ValueError(
            f"{file} is of the family {family}, expected a text-to-image model; give one of Stable Diffusion 1.x, 2.x "
            "or SDXL, or the diffusers folder of another"
        )
    repository = known.DIFFUSERS_DEFAULT_PIPELINE_PATHS[family]["pretrained_model_name_or_path"]
    raise ValueError(
        f"{file} is of the family {family}, whose configs are not shipped; set generate.base to a diffusers folder of "
        f"it or its hub id ({repository}, of which only configs are downloaded), or convert it: from diffusers import "
        f"{pipeline}; {pipeline}.from_single_file({str(file)!r}).save_pretrained('FOLDER')"
    )


def _predicts_v(file: Path, family: str, header: dict[str, Any], metadata: dict[str, str]) -> bool:
    """Whether a checkpoint predicts v: by its metadata (ModelSpec), its mark `v_pred`, or for 2.x by one layer."""
    if stated := metadata.get("modelspec.prediction_type"):
        return stated.startswith("v")
    name = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"
    if family != "v2" or name not in header:
        return "v_pred" in header
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        # What ComfyUI goes by (its supported_models.py): the biases of this layer spread more where v was learned.
        return bool(tensors.get_tensor(name).float().std(correction=0) > 0.09)


def _clip_words() -> tuple[dict[str, int], list[str]]:
    """CLIP's 49,408 tokens with their ids, and its 48,894 merges, as openai/CLIP makes them of its word list."""
    lines = gzip.decompress((_CONFIGS / "clip" / "bpe_simple_vocab_16e6.txt.gz").read_bytes()).decode().split("\n")
    merges = lines[1 : 49152 - 256 - 2 + 1]
    # A letter for each byte: itself where it is printable, else one after the 256th.
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    letters = [chr(code) for code in [*printable, *range(256, 512 - len(printable))]]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *(merge.replace(" ", "") for merge in merges)]
    return {token: i for i, token in enumerate([*tokens, "<|startoftext|>", "<|endoftext|>"])}, merges
