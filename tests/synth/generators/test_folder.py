import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from latebloom.synth.config import GenerateConfig, SampleConfig
from latebloom.synth.generators.folder import digest_files, loaded_bytes, trained_side, weights_of
from latebloom.synth.generators.load import load_generator

Checkpoint = Callable[[str], Path]
Save = Callable[..., Path]

D, T = "diffusion_pytorch_model", "model"


def lay(folder: Path, *names: str) -> Path:
    """A folder with a part of these empty files; an index names two shards of its variant."""
    (folder / "part").mkdir(parents=True)
    for name in names:
        stem, _, mark = name.removesuffix(".json").partition(".safetensors.index")
        shards = {str(k): f"{stem}{mark}-0000{k}-of-00002.safetensors" for k in (1, 2)}
        (folder / "part" / name).write_text(json.dumps({"weight_map": shards}) if name.endswith(".json") else "")
    return folder


def shards(stem: str) -> tuple[str, str]:
    return f"{stem}-00001-of-00002.safetensors", f"{stem}-00002-of-00002.safetensors"


def test_the_weights_of_a_part_are_found_by_name(tmp_path: Path) -> None:
    for number, (names, variant, files) in enumerate(
        [
            ([f"{D}.safetensors"], None, [f"{D}.safetensors"]),
            ([f"{T}.safetensors", "pytorch_model.bin"], None, [f"{T}.safetensors"]),
            ([f"{D}.safetensors", f"{D}.fp16.safetensors"], None, [f"{D}.safetensors"]),
            ([f"{D}.non_ema.safetensors", f"{D}.fp16.safetensors"], "fp16", [f"{D}.fp16.safetensors"]),
            ([f"{D}.bf16.safetensors"], "bf16", [f"{D}.bf16.safetensors"]),
            ([f"{D}.safetensors.index.json", *shards(D)], None, [*shards(D)]),
            ([f"{T}.safetensors.index.fp16.json", *shards(f"{T}.fp16")], "fp16", [*shards(f"{T}.fp16")]),
            # Where there are both, diffusers takes the shards and transformers the whole file.
            ([f"{D}.safetensors", f"{D}.safetensors.index.json", *shards(D)], None, [*shards(D)]),
            ([f"{T}.safetensors", f"{T}.safetensors.index.json", *shards(T)], None, [f"{T}.safetensors"]),
            # A shard went missing, and the half-precision file is whole.
            ([f"{D}.safetensors.index.json", shards(D)[0], f"{D}.fp16.safetensors"], "fp16", [f"{D}.fp16.safetensors"]),
        ]
    ):
        folder = lay(tmp_path / str(number), *names)
        weights = weights_of(folder, "part")
        assert weights is not None
        assert (weights.variant, weights.files) == (variant, [folder / "part" / name for name in files])
    assert weights_of(lay(tmp_path / "none", "scheduler_config.json"), "part") is None


def test_weights_that_cannot_be_loaded_are_refused_by_name(tmp_path: Path) -> None:
    for number, (names, message) in enumerate(
        [
            ([f"{D}.bin"], rf"has part only as a pickle \({D}\.bin\), which is refused; give it as safetensors"),
            (["flux-Q4.gguf"], r"has part only as GGUF \(flux-Q4\.gguf\), which is refused; give it as safetensors"),
            (["flux.safetensors"], r"has part only as a file of another name \(flux\.safetensors\), which is refused"),
            ([f"{D}.safetensors.index.json", shards(D)[1]], rf"part lacks {shards(D)[0]}, which its index names; copy"),
            ([f"{D}.bf16.safetensors", f"{D}.ema.safetensors"], "part has its weights as bf16, ema, expected one of"),
        ]
    ):
        with pytest.raises(ValueError, match=message):
            weights_of(lay(tmp_path / str(number), *names), "part")


def to_half(folder: Path, *, parts: str = "*", mark: str = "fp16") -> None:
    """Save the weights of some parts once more, in half precision and as this variant alone."""
    for file in folder.glob(f"{parts}/*.safetensors"):
        half = {name: tensor.half() for name, tensor in load_file(file).items()}
        save_file(half, file.with_suffix(f".{mark}.safetensors"), {"format": "pt"})
        file.unlink()


def test_the_memory_is_that_of_what_is_loaded(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("sd"), tmp_path / "sd"))
    numbers = sum(
        tensor.numel()
        for part in ("unet", "vae", "text_encoder")
        for tensor in load_file(*_files(folder / part)).values()
    )
    assert loaded_bytes(folder, 4) == 4 * numbers
    shutil.copytree(folder / "vae", folder / "safety_checker")
    for name in ("fp16", "non_ema"):  # copies of the same weights are not loaded
        shutil.copy(folder / "unet" / f"{D}.safetensors", folder / "unet" / f"{D}.{name}.safetensors")
    assert loaded_bytes(folder, 2) == 2 * numbers
    to_half(folder, parts="vae")
    assert loaded_bytes(folder, 4) == 4 * numbers
    save_file({"packed": torch.zeros(10, dtype=torch.uint8)}, folder / "vae" / f"{D}.fp16.safetensors")
    save_file({"packed": torch.zeros(10, dtype=torch.uint8)}, *_files(folder / "text_encoder"))
    unet = sum(tensor.numel() for tensor in load_file(folder / "unet" / f"{D}.safetensors").values())
    assert loaded_bytes(folder, 4) == 4 * unet + 20
    (folder / "vae" / f"{D}.fp16.safetensors").write_bytes(b"\xff" * 64)
    with pytest.raises(ValueError, match=r"fp16\.safetensors is no safetensors file \(.*\); copy or download"):
        loaded_bytes(folder, 4)


def _files(folder: Path) -> list[Path]:
    return list(folder.glob("*.safetensors"))


@pytest.mark.parametrize(
    ("family", "mark"), [("pixel", "fp16"), ("pixel", "bf16"), ("sd", "fp16"), ("sd3", "fp16"), ("instruct", "fp16")]
)
def test_half_precision_folders_are_the_same_model(
    checkpoint: Checkpoint, save_tiny: Save, tmp_path: Path, family: str, mark: str
) -> None:
    """Every part, or a single one, has only files of a variant; the weights are those of the whole folder, rounded."""
    whole = tmp_path / "whole"
    if family == "pixel":
        save_tiny(whole)
    else:
        shutil.copytree(checkpoint(family), whole)
    some = Path(shutil.copytree(whole, tmp_path / "some"))
    to_half(some, parts="[ut][nr]*", mark=mark)  # unet or transformer
    to_half(whole, mark=mark)
    digests = set()
    for folder in (some, whole):
        generator = load_generator(GenerateConfig(generator=str(folder)), SampleConfig(guidance_scale=1))
        network = _network(generator)
        (file,) = _files(folder / ("transformer" if family == "sd3" else "unet"))
        for name, tensor in load_file(file).items():
            assert torch.equal(network.state_dict()[name], tensor.float()), name
        digests.add(generator.digest)
    assert len(digests) == (1 if family == "pixel" else 2)  # a pixel model has no other part


def _network(generator: Any) -> Any:
    if hasattr(generator, "pipeline"):
        return generator.pipeline.components.get("transformer") or generator.pipeline.unet
    return getattr(generator.denoiser, "unet", None) or generator.denoiser._unet


def test_what_is_loaded_is_digested_and_nothing_else(checkpoint: Checkpoint, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(checkpoint("sd3"), tmp_path / "sd3"))
    before = digest_files(folder)
    assert f"transformer/{D}.safetensors" in before
    for name in (f"{D}.fp16.safetensors", f"{D}.safetensors.index.fp16.json", f"{D}.bin", "other.gguf"):
        (folder / "transformer" / name).write_text("{}")
    assert digest_files(folder) == before
    (folder / "transformer" / f"{D}.safetensors").write_bytes(b"other")
    assert digest_files(folder) != before


# The size that a model was trained at


def test_the_size_is_the_shorter_side_of_sample_size() -> None:
    unet: dict[str, Any] = {"down_block_types": []}
    for config, side in [
        ({"sample_size": 64}, 64),
        ({"sample_size": [64, 48]}, 48),
        ({"sample_size": None}, 128),
        (unet, 0),  # of pixels: not known
        (unet | {"cross_attention_dim": 768}, 64),
        (unet | {"cross_attention_dim": 2048, "addition_embed_type": "text_time"}, 128),
    ]:
        assert trained_side(config) == side


@pytest.mark.parametrize(
    ("family", "kind", "usual"),
    [("sd", "latent", 128), ("sdxl", "latent", 256), ("sd", "pipeline", 128), ("if", "pipeline", 64)],
)
def test_a_size_that_is_a_pair_or_missing_is_understood(
    checkpoint: Checkpoint, tmp_path: Path, family: str, kind: str, usual: int
) -> None:
    folder = Path(shutil.copytree(checkpoint(family), tmp_path / family))
    file = folder / "unet" / "config.json"
    config = json.loads(file.read_text())
    for size, pixels in [([8, 6], 6 if family == "if" else 12), (None, usual)]:
        file.write_text(json.dumps(config | {"sample_size": size}))
        assert load(folder, kind).size == pixels
    del config["sample_size"]
    file.write_text(json.dumps(config))
    assert load(folder, kind).size == usual


def load(folder: Path, kind: Any = "auto") -> Any:
    return load_generator(GenerateConfig(generator=str(folder), kind=kind), SampleConfig(guidance_scale=1))
