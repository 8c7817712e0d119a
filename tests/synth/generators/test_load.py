import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch

from latebloom.synth.config import DiffuseMixConfig, GenerateConfig, SampleConfig
from latebloom.synth.generators import load as load_module
from latebloom.synth.generators.diffusemix import DiffuseMixGenerator
from latebloom.synth.generators.find import generator_folder, kind_of
from latebloom.synth.generators.latent import LatentDenoiser
from latebloom.synth.generators.load import load_generator
from latebloom.synth.generators.pipeline import PipelineGenerator
from latebloom.synth.generators.pixel import PixelDenoiser
from latebloom.synth.sampling.loop import LoopGenerator

CPU = torch.device("cpu")
Save = Callable[..., Path]


def index_of(folder: Path, **index: Any) -> Path:
    """A folder that only says what it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def folder_of(name: str, **settings: Any) -> Path:
    return generator_folder(GenerateConfig(generator=name, **settings))


def load(config: GenerateConfig, sample: SampleConfig | None = None, negative: str = "") -> Any:
    return load_generator(config, sample or SampleConfig(), DiffuseMixConfig(), negative, CPU)


@pytest.fixture
def shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A stand-in for the folder of shipped generators, with `digits` and `toys` in it."""
    folder = tmp_path / "shipped"
    for name in ("toys", "digits"):
        index_of(folder / name)
    monkeypatch.setattr("latebloom.synth.generators.find._SHIPPED", folder)
    return folder


# Where a generator is


def test_a_generator_is_found_by_the_name_of_a_shipped_one(shipped: Path) -> None:
    assert folder_of("digits") == shipped / "digits"


def test_the_default_generator_is_shipped() -> None:
    folder = folder_of("digits")
    assert folder.name == "digits"
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_a_generator_is_found_by_path(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = index_of(tmp_path / "home" / "some" / "mine")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home")
    assert folder_of(str(mine)) == mine
    assert folder_of("~/some/mine") == mine
    assert folder_of("some/mine").resolve() == mine  # a folder that is here is no hub id
    assert folder_of("./some/mine").resolve() == mine


def test_a_shipped_name_wins_over_a_folder_of_that_name_here(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_of(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert folder_of("digits") == shipped / "digits"


@pytest.fixture
def no_hub(monkeypatch: pytest.MonkeyPatch) -> None:
    def asked(*_: Any, **__: Any) -> None:
        raise AssertionError("the hub was asked")

    monkeypatch.setattr("huggingface_hub.snapshot_download", asked)


def test_an_unknown_generator_is_refused_without_asking_the_hub(
    shipped: Path, no_hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty" / "sub").mkdir(parents=True)  # folders, but not of diffusers
    for name in ["digit", f"{tmp_path}/empty", "a/b/c", "~/a", "empty/sub"]:
        message = (
            rf"^no generator at '{name}': expected a diffusers folder \(with model_index\.json\), a \.safetensors "
            r"file, a hub id \(owner/name\) or one of those shipped \(digits, toys\); `latebloom fit-generator` makes "
            r"one from your images$"
        )
        with pytest.raises(ValueError, match=message):
            folder_of(name)
        with pytest.raises(ValueError, match=message):
            load(GenerateConfig(generator=name))


def test_what_is_no_whole_folder_is_refused_with_what_to_give(
    no_hub: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    index_of(tmp_path / "models" / "mine", unet=["diffusers", "UNet2DModel"])
    for file in ("models/mine/unet/config.json", "lone/config.json"):
        (tmp_path / file).parent.mkdir()
        (tmp_path / file).write_text('{"_class_name": "UNet2DModel"}')
    for file in ("lone/w.safetensors", "files/a.safetensors", "a.ckpt", "a.gguf"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        (tmp_path / file).touch()
    for name, message in [
        (
            "models/mine/unet",
            "^models/mine/unet is one part of a diffusers folder; give the whole folder, models/mine$",
        ),
        ("models", r"^models has no model_index\.json, but a folder below has: give models/mine$"),
        ("files", r"^files has no model_index\.json but files of weights: a\.saf.*; give one, files/a\.safetensors$"),
        ("lone", "^lone is one network, UNet2DModel, expected a whole diffusers folder"),
        ("none/x.safetensors", r"^there is no file none/x\.safetensors; give the path of a checkpoint$"),
        ("none/x.ckpt", "^none/x.ckpt is a pickle, .* is refused; give the model as safetensors, or convert it"),
        ("a.ckpt", "^a.ckpt is a pickle"),
        ("a.gguf", "^a.gguf is a GGUF file, which is not read here; give the model as safetensors$"),
    ]:
        with pytest.raises(ValueError, match=message):
            folder_of(name)


def test_a_base_is_of_single_files_alone(tmp_path: Path, no_hub: None) -> None:
    mine = index_of(tmp_path / "mine")
    with pytest.raises(ValueError, match=r"^generate\.base is x, which completes a single file.*leave it empty$"):
        folder_of(str(mine), base="x")
    file = tmp_path / "a.safetensors"
    file.touch()
    with pytest.raises(ValueError, match=r"^generate\.base is \./x, expected a diffusers folder .* or a hub id"):
        folder_of(str(file), base="./x")


def test_where_none_is_shipped_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latebloom.synth.generators.find._SHIPPED", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"one of those shipped \(none\)"):
        folder_of("digits")


# What a generator is


def test_the_kind_is_what_the_folder_says_it_holds(tmp_path: Path) -> None:
    for pipeline, unet, kind in (
        ("DDPMPipeline", "UNet2DModel", "pixel"),
        ("StableDiffusionPipeline", "UNet2DConditionModel", "latent"),
        ("StableDiffusionXLPipeline", "UNet2DConditionModel", "latent"),
        ("LatentConsistencyModelPipeline", "UNet2DConditionModel", "latent"),
        ("StableDiffusionInstructPix2PixPipeline", "UNet2DConditionModel", "diffusemix"),
        ("DiTPipeline", None, "transformer"),
        ("PixArtSigmaPipeline", None, "transformer"),
        ("SanaPipeline", None, "transformer"),
        ("SanaSprintPipeline", None, "pipeline"),
        ("StableDiffusion3Pipeline", None, "pipeline"),
        ("FluxPipeline", None, "pipeline"),
        ("KandinskyV22Pipeline", "UNet2DConditionModel", "pipeline"),
        ("IFPipeline", "UNet2DConditionModel", "pipeline"),
        (None, None, "pipeline"),
    ):
        index: dict[str, Any] = {"_class_name": pipeline}
        if unet:
            index["unet"] = ["diffusers", unet]
        folder = str(index_of(tmp_path / "x", **index))
        assert kind_of(GenerateConfig(generator=folder)) == kind
        assert kind_of(GenerateConfig(generator=folder, kind="latent")) == "latent"  # or what the config says


def test_a_pixel_folder_is_loaded_into_the_loop(save_tiny: Save, tmp_path: Path) -> None:
    folder = save_tiny(tmp_path / "rows")
    sample = SampleConfig(sampler="ddim", guidance_scale=2)
    generator = load(GenerateConfig(generator=str(folder)), sample)
    assert isinstance(generator, LoopGenerator)
    assert isinstance(generator.denoiser, PixelDenoiser)
    assert (generator.name, generator.config, generator.device) == ("rows", sample, CPU)
    assert generator.digest == PixelDenoiser.load(folder, CPU).digest
    assert generator.denoiser.dtype == torch.float32  # on a CPU


def test_a_generator_is_called_by_its_folder(save_tiny: Save, tmp_path: Path) -> None:
    assert load(GenerateConfig(generator=str(save_tiny(tmp_path / "rows")))).name == "rows"
    assert load(GenerateConfig(generator="digits")).name == "digits"


def test_a_consistency_model_gets_guidance_as_its_input(checkpoint: Callable[[str], Path]) -> None:
    folder = checkpoint("lcm")
    loaded = {}
    for scale in (1.0, 4.0):
        sample = SampleConfig(sampler="lcm", steps=4, guidance_scale=scale)
        generator = load(GenerateConfig(generator=str(folder)), sample)
        assert isinstance(generator.denoiser, LatentDenoiser)
        assert (generator.calls_a_step, generator.guidance_scale) == (1, 8.5 if scale == 1 else scale)
        assert generator.level(50).calls == 2
        loaded[scale] = generator.digest
    usual = LatentDenoiser.load(folder, CPU, dtype=torch.float32, embedded_guidance=8.5)
    assert loaded[1.0] == usual.digest
    assert loaded[4.0] != usual.digest


FULL = {
    "dtype": "bfloat16",
    "loras": ("a.safetensors@0.5",),
    "compile": True,
    "fuse_qkv": True,
}


@pytest.fixture
def loaders(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Each kind's `load`, which takes what the real one takes and loads nothing."""
    found = {}
    for kind in (PixelDenoiser, LatentDenoiser, PipelineGenerator, DiffuseMixGenerator):
        fake = create_autospec(kind.load)
        monkeypatch.setattr(kind, "load", fake)
        found[kind.__name__] = fake
    monkeypatch.setattr(
        load_module, "LoopGenerator", lambda denoiser, config: SimpleNamespace(denoiser=denoiser, config=config)
    )
    return found


def test_a_latent_generator_gets_what_was_asked_for(loaders: dict[str, Any], tmp_path: Path) -> None:
    folder = index_of(tmp_path / "x", _class_name="StableDiffusionPipeline", unet=["diffusers", "UNet2DConditionModel"])
    config = GenerateConfig(generator=str(folder), textual_inversions=("b.safetensors",), **FULL)
    sample = SampleConfig(guidance_scale=5)
    generator = load(config, sample, "ugly")
    loaders["LatentDenoiser"].assert_called_once_with(
        folder,
        CPU,
        dtype=torch.bfloat16,
        negative_prompt="ugly",
        loras=("a.safetensors@0.5",),
        textual_inversions=("b.safetensors",),
        embedded_guidance=5,
        compile=True,
        fuse_qkv=True,
    )
    assert generator.denoiser is loaders["LatentDenoiser"].return_value
    assert (generator.config, generator.name) == (sample, "x")


@pytest.mark.parametrize(("steps", "asked"), [(28, 28), (0, 100)])
def test_a_pipeline_generator_gets_what_was_asked_for(
    loaders: dict[str, Any], tmp_path: Path, steps: int, asked: int
) -> None:
    folder = index_of(tmp_path / "x", _class_name="FluxPipeline")
    sample = SampleConfig(guidance_scale=5, steps=steps, match="strength", deterministic=4)
    generator = load(GenerateConfig(generator=str(folder), **FULL), sample, "ugly")
    loaders["PipelineGenerator"].assert_called_once_with(
        folder,
        CPU,
        dtype=torch.bfloat16,
        grid=100,
        steps=asked,
        match="strength",
        guidance_scale=5,
        deterministic=4,
        negative_prompt="ugly",
        loras=("a.safetensors@0.5",),
        compile=True,
        fuse_qkv=True,
    )
    assert generator is loaders["PipelineGenerator"].return_value


def test_a_diffusemix_generator_gets_what_was_asked_for(loaders: dict[str, Any], tmp_path: Path) -> None:
    folder = index_of(tmp_path / "x", _class_name="StableDiffusionInstructPix2PixPipeline")
    mix = DiffuseMixConfig()
    config = GenerateConfig(generator=str(folder), dtype="float16")
    generator = load_generator(config, SampleConfig(grid=20, deterministic=4), mix, "", CPU)
    loaders["DiffuseMixGenerator"].assert_called_once_with(
        folder, CPU, dtype=torch.float16, config=mix, grid=20, deterministic=4
    )
    assert generator is loaders["DiffuseMixGenerator"].return_value


def test_settings_that_a_kind_does_not_know_are_refused_before_anything_is_loaded(
    loaders: dict[str, Any], tmp_path: Path
) -> None:
    for kind, setting in [
        ("pixel", {"loras": ("a",)}),
        ("pixel", {"fuse_qkv": True}),
        ("diffusemix", {"loras": ("a",)}),
        ("diffusemix", {"compile": True}),
        ("pipeline", {"textual_inversions": ("a",)}),
        ("transformer", {"textual_inversions": ("a",)}),
    ]:
        name = next(iter(setting))
        config = GenerateConfig(generator=str(index_of(tmp_path / "x")), kind=kind, **setting)
        message = f"^a {kind} generator takes no {name}; leave generate.{name} at its default$"
        with pytest.raises(ValueError, match=message):
            load(config)
        assert not any(loader.called for loader in loaders.values())


def test_a_pixel_generator_refuses_a_negative_prompt(tmp_path: Path) -> None:
    config = GenerateConfig(generator=str(index_of(tmp_path / "x")), kind="pixel")
    for kind, scale, why in [
        ("pixel", 3, "it goes by classes"),
        ("diffusemix", 3, "it edits by diffusemix.prompts"),
        *((kind, 1, r"guidance is off \(sample.guidance_scale 1\)") for kind in ("latent", "pipeline", "transformer")),
        ("pipeline", 0.5, r"guidance is off \(sample.guidance_scale 0.5\)"),
    ]:
        config = GenerateConfig(generator=str(index_of(tmp_path / "x")), kind=kind)
        message = f"^a {kind} generator cannot use a negative prompt: {why}; leave prompts.negative empty$"
        with pytest.raises(ValueError, match=message):
            load_generator(config, SampleConfig(guidance_scale=scale), negative_prompt="blurry")


@pytest.mark.parametrize(("kind", "family"), [("latent", "lcm"), ("pipeline", "lcm"), ("pipeline", "flux")])
@pytest.mark.parametrize("scale", [1, 3])
def test_where_guidance_is_an_input_of_the_network_it_is_never_off(
    checkpoint: Callable[[str], Path], kind: Any, family: str, scale: float
) -> None:
    config = GenerateConfig(generator=str(checkpoint(family)), kind=kind)
    message = "^generator .* cannot use a negative prompt: its guidance is embedded in the network; leave"
    with pytest.raises(ValueError, match=message):
        load_generator(config, SampleConfig(steps=10, guidance_scale=scale), negative_prompt="blurry")


@pytest.mark.parametrize(
    ("device", "has_bfloat16", "expected"),
    [("cpu", True, torch.float32), ("cuda", True, torch.bfloat16), ("cuda", False, torch.float32)],
)
def test_the_precision_is_what_the_device_has(
    loaders: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    device: str,
    has_bfloat16: bool,
    expected: torch.dtype,
) -> None:
    monkeypatch.setattr("torch.cuda.is_bf16_supported", lambda: has_bfloat16)
    folder = index_of(tmp_path / "x", unet=["diffusers", "UNet2DModel"])
    arguments = SampleConfig(), DiffuseMixConfig(), "", torch.device(device)
    load_generator(GenerateConfig(generator=str(folder)), *arguments)
    loaders["PixelDenoiser"].assert_called_once_with(folder, torch.device(device), expected, False, "")
    load_generator(GenerateConfig(generator=str(folder), dtype="float16", compile=True), *arguments)
    loaders["PixelDenoiser"].assert_called_with(folder, torch.device(device), torch.float16, True, "")
