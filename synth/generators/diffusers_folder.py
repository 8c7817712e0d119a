"""Loading the parts of a diffusers folder, its licence, and what makes a loaded network faster."""

import contextlib
import importlib.util
import inspect
import warnings
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from latebloom.synth.generators.card import read_card
from latebloom.synth.generators.folder import network_weights, parts_of, read_config, trained_side
from latebloom.synth.memory import out_of_memory

__all__ = [
    "check_betas",
    "check_packages",
    "compile_network",
    "fuse_projections",
    "licence",
    "limit_tokens",
    "load_part",
    "load_pipeline",
    "quiet",
    "whole",
]

_AGAIN = "copy or download it again"
_UNQUANTISED = "give the model without quantisation"
# Packages that some parts need, and the module of each.
_PACKAGES = {
    "accelerate": "accelerate",
    "auto-round": "auto_round",
    "bitsandbytes": "bitsandbytes",
    "ftfy": "ftfy",
    "gguf": "gguf",
    "nvidia-modelopt": "modelopt",
    "onnxruntime": "onnxruntime",
    "optimum-quanto": "optimum.quanto",
    "protobuf": "google.protobuf",
    "scipy": "scipy",
    "sdnq": "sdnq",
    "sentencepiece": "sentencepiece",
    "tiktoken": "tiktoken",
    "torchao": "torchao",
    "torchsde": "torchsde",
}
# The package of a `quant_method`, where it has another name.
_QUANTISERS = {"quanto": "optimum-quanto", "modelopt": "nvidia-modelopt"}
# Packages without which a tokenizer of these files is not read.
_TOKENIZERS = {"spiece.model": ("sentencepiece", "protobuf"), "tokenizer.model": ("sentencepiece",)}


def check_packages(folder: Path) -> None:
    """Raise ValueError where a folder's tokenizers need packages that are not installed; the message names them.

    Without them, diffusers has no Kolors, and transformers asks for a package that is of no use.
    """
    for part in parts_of(folder):
        if (folder / part / "tokenizer.json").is_file():  # needs none
            continue
        for file, packages in _TOKENIZERS.items():
            missing = [package for package in packages if not _installed(package)]
            if missing and (folder / part / file).is_file():
                raise ValueError(_needs(folder / part / file, *missing))


def load_part(kind: Any, folder: Path, part: str, dtype: torch.dtype) -> Any:
    """One network of a folder as an instance of the class `kind`; on the CPU, a quantised one where its package wants.

    Raises:
        ValueError: its files are broken, or lack weights, which the libraries would leave random; it is quantised by a
            package that is not installed or does not work here.
    """
    variant = network_weights(folder, part).variant
    remedy = _AGAIN
    config = folder / part / "config.json"
    settings = read_config(config) if config.is_file() else {}
    changes = {}
    if (
        part == "vae"
        and settings.get("sample_size", 0) is None
        and "sample_size" in inspect.signature(kind.__init__).parameters
    ):
        changes["sample_size"] = 32  # autoencoders compute the size of tiles with it, which are not used
    if quantised := settings.get("quantization_config"):
        package = _quantiser(quantised)
        remedy = f"it is quantised by {package}: {_UNQUANTISED}, or use a device that {package} supports"
        if not _installed(package):
            raise ValueError(f"{_needs(folder / part, package)}, or {_UNQUANTISED}")
        if package == "bitsandbytes" and not torch.cuda.is_available():  # on a CPU, its layers are of another dtype
            raise ValueError(f"{folder / part} is quantised by bitsandbytes, which needs a GPU; {_UNQUANTISED}")
    with whole(folder / part, remedy):
        network, report = kind.from_pretrained(
            folder,
            subfolder=part,
            variant=variant,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            **changes,
        )
        if missing := sorted(report["missing_keys"]):
            raise ValueError(f"it lacks {len(missing)} weights, such as {missing[0]}")
        if part in ("unet", "transformer") and "sample_size" in network.config:  # one number, as pipelines expect
            network.register_to_config(sample_size=trained_side(network.config))
    return network


def load_pipeline(kind: Any, folder: Path, dtype: torch.dtype, **without: Any) -> Any:
    """A folder as the diffusers pipeline `kind`, on the CPU.

    Args:
        without: parts to leave out, as None, and settings of the pipeline.

    Raises:
        ValueError: a part is of an unknown class, its files are broken, or lack weights.
    """
    check_packages(folder)
    taken = inspect.signature(kind.__init__).parameters.keys() - without.keys()
    kinds = {part: _class_of(folder, part, *source) for part, source in parts_of(folder).items() if part in taken}
    parts = {}
    for part, cls in kinds.items():
        if issubclass(cls, nn.Module):
            parts[part] = load_part(cls, folder, part, dtype)
        else:
            with whole(folder / part):
                parts[part] = cls.from_pretrained(folder / part, local_files_only=True)
                check_betas(parts[part])
    for part in parts:
        if part.startswith("tokenizer"):
            limit_tokens(parts[part], parts.get(part.replace("tokenizer", "text_encoder")))
    with whole(folder):
        return kind.from_pretrained(folder, dtype=dtype, local_files_only=True, **parts, **without)


def limit_tokens(tokenizer: Any, encoder: Any) -> None:
    """Let a tokenizer give no more tokens than its encoder has places for; some configs do not say how many."""
    places = getattr(getattr(encoder, "config", None), "max_position_embeddings", tokenizer.model_max_length)
    tokenizer.model_max_length = min(tokenizer.model_max_length, places)


def check_betas(scheduler: Any) -> None:
    """Raise ValueError where a scheduler has betas, and they are not in [0, 1]: its noise levels have no logarithm."""
    alphas_cumprod = getattr(scheduler, "alphas_cumprod", None)
    if alphas_cumprod is not None and not ((alphas_cumprod >= 0) & (alphas_cumprod <= 1)).all():
        raise ValueError("its betas are not between 0 and 1")


def _class_of(folder: Path, part: str, library: str, name: str) -> Any:
    """The class of a part in diffusers, one of its pipelines, or transformers; no other code is ever imported."""
    import diffusers
    import transformers
    from diffusers.pipelines.pipeline_loading_utils import simple_get_class_obj

    modules = {"diffusers": diffusers, "transformers": transformers}
    module = modules.get(library) or getattr(diffusers.pipelines, library, None)
    if not isinstance(module, ModuleType):
        raise ValueError(
            f"{folder / 'model_index.json'} has {library}.{name} for its {part}, expected a class of diffusers or "
            "transformers: other code is never run; give a model that needs none"
        )
    with whole(folder / part):
        # transformers has given some classes other names, which diffusers knows.
        cls: Any = simple_get_class_obj(library, name) if library == "transformers" else getattr(module, name, None)
        if hasattr(cls, "_backends"):  # what stands for a class whose packages are missing: it says which
            cls.from_pretrained(folder / part)
    if not inspect.isclass(cls) or not hasattr(cls, "from_pretrained"):
        versions = f"diffusers {diffusers.__version__} and transformers {transformers.__version__}"
        raise ValueError(
            f"{folder / 'model_index.json'} has {library}.{name} for its {part}, which is no class of {versions}; "
            "install a newer version, or give another model"
        )
    return cls


@contextlib.contextmanager
def whole(path: Path, remedy: str = _AGAIN) -> Iterator[None]:
    """Load without messages; one kind of error for whatever is wrong with the files at `path`.

    The libraries answer odd files with any exception. So nothing but their loading may stand inside.

    Raises:
        MemoryError: they do not fit.
        ValueError: on leaving, on one line: the package that is missing, or what they said and the remedy.
    """
    try:
        # Some weights are drawn, before they are filled, from torch's global stream, which must not change.
        with quiet(), torch.random.fork_rng(devices=[]):
            yield
    except Exception as error:
        said, missing = " ".join(str(error).split()), _missing_packages(error)
        if "tiktoken" in said and (models := sorted(path.glob("*.model"))):
            # What transformers tries on a SentencePiece model that it could not read.
            said, missing = f"{models[0].name} is no SentencePiece model", []
        if missing:
            raise ValueError(_needs(path, *missing)) from error
        if out_of_memory(error):
            raise MemoryError(
                f"{path} does not fit into the memory ({said[:160]}); set generate.dtype to bfloat16"
            ) from error
        reason = said if isinstance(error, OSError | ValueError) else f"{type(error).__name__}: {said}"
        raise ValueError(f"{path} cannot be loaded ({reason[:160]}); {remedy}") from error


def _missing_packages(error: Exception) -> list[str]:
    """The packages that an error is about and that are not installed."""
    if isinstance(error, ModuleNotFoundError) and error.name:
        return [next((name for name, module in _PACKAGES.items() if module == error.name), error.name)]
    said = str(error).lower()
    return [name for name in _PACKAGES if name in said and not _installed(name)]


def _installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(_PACKAGES.get(package, package)) is not None
    except (ImportError, ValueError):  # optimum.quanto without optimum
        return False


def _needs(path: Path, *packages: str) -> str:
    return f"{path} needs {' and '.join(packages)}, not installed; pip install {' '.join(packages)}"


def _quantiser(settings: dict[str, Any]) -> str:
    """The package of a `quantization_config`."""
    if settings.get("load_in_4bit") or settings.get("load_in_8bit"):  # older ones have no quant_method
        return "bitsandbytes"
    method = str(settings.get("quant_method"))
    return _QUANTISERS.get(method, method)


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
    header = {}
    if readme.is_file():
        with whole(readme, "correct the header between its --- lines, or remove it"):
            header = metadata_load(readme) or {}
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
