import json
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest.mock import create_autospec

import pytest
import torch

from latebloom.synth.config import DiffuseMixConfig, GenerateConfig, SampleConfig
from latebloom.synth.generators import find
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


@pytest.fixture(autouse=True)
def _ask_the_hub_again() -> None:
    """A process asks once for each repository; every test has a hub of its own."""
    find._from_hub.cache_clear()


def index_of(folder: Path, **index: Any) -> Path:
    """A folder that only says what it holds."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "model_index.json").write_text(json.dumps(index))
    return folder


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


class Hub:
    """Stands for the hub: gives one folder for everything, or raises."""

    def __init__(self, folder: Path | Exception) -> None:
        self.folder = folder
        self.asked: list[tuple[str, dict[str, Any]]] = []

    def __call__(self, name: str, **options: Any) -> str:
        self.asked.append((name, options))
        if isinstance(self.folder, Exception):
            raise self.folder
        return str(self.folder)


# Where a generator is


def test_a_generator_is_found_by_the_name_of_a_shipped_one(shipped: Path) -> None:
    assert generator_folder("digits") == shipped / "digits"


def test_the_default_generator_is_shipped() -> None:
    folder = generator_folder(GenerateConfig(generator="digits").generator)
    assert folder.name == "digits"
    assert (folder / "unet" / "diffusion_pytorch_model.safetensors").is_file()


def test_a_generator_is_found_by_path(shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = index_of(tmp_path / "home" / "some" / "mine")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path / "home")
    assert generator_folder(str(mine)) == mine
    assert generator_folder("~/some/mine") == mine
    assert generator_folder("some/mine").resolve() == mine  # a folder that is here is no hub id
    assert generator_folder("./some/mine").resolve() == mine


def test_a_shipped_name_wins_over_a_folder_of_that_name_here(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    index_of(tmp_path / "digits")
    monkeypatch.chdir(tmp_path)
    assert generator_folder("digits") == shipped / "digits"


def test_an_unknown_generator_is_refused_without_asking_the_hub(
    shipped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ["digit", "{here}/empty", "a/b/c", "~/a", "empty/sub"]:
        hub = Hub(tmp_path)
        monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
        (tmp_path / "empty" / "sub").mkdir(parents=True, exist_ok=True)  # folders, but not of diffusers
        monkeypatch.chdir(tmp_path)
        message = (
            r"^no generator at '.*': expected a diffusers folder \(with model_index\.json\), a hub id \(owner/name\) "
            r"or one of those shipped \(digits, toys\); `latebloom fit-generator` makes one from your images$"
        )
        with pytest.raises(ValueError, match=message):
            generator_folder(name.format(here=tmp_path))
        with pytest.raises(ValueError, match=message):
            load(GenerateConfig(generator=name.format(here=tmp_path)))
        assert hub.asked == []


def test_where_none_is_shipped_the_error_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("latebloom.synth.generators.find._SHIPPED", tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"one of those shipped \(none\)"):
        generator_folder("digits")


# The hub


def test_a_hub_id_is_fetched_at_its_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(index_of(tmp_path / "snapshot"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    assert generator_folder("some/model", "v2") == tmp_path / "snapshot"
    assert generator_folder("some/model") == tmp_path / "snapshot"
    assert [(name, options["revision"]) for name, options in hub.asked] == [("some/model", "v2"), ("some/model", None)]


def test_of_a_hub_repository_no_pickles_and_no_copies_are_fetched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from huggingface_hub.utils import filter_repo_objects

    hub = Hub(index_of(tmp_path / "snapshot"))
    monkeypatch.setattr("huggingface_hub.snapshot_download", hub)
    generator_folder("some/model")
    wanted = [
        "model_index.json",
        "README.md",
        "unet/config.json",
        "unet/diffusion_pytorch_model.safetensors",
        "unet/diffusion_pytorch_model-00001-of-00002.safetensors",
        "unet/diffusion_pytorch_model.safetensors.index.json",
        "tokenizer/vocab.json",
        "tokenizer/merges.txt",
        "tokenizer_2/spiece.model",
    ]
    unwanted = [
        "sd-v1-5.ckpt",
        "sd-v1-5.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "text_encoder/pytorch_model.bin",
        "text_encoder/model.onnx",
        "unet/weights.pb",
        "images/cat.png",
    ]
    patterns = hub.asked[0][1]["allow_patterns"]
    assert list(filter_repo_objects(wanted + unwanted, allow_patterns=patterns)) == wanted


def test_a_generator_that_cannot_be_fetched_is_refused_with_the_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", Hub(OSError("disk full\nsecond line")))
    why = "disk full second line"
    message = (
        rf"^generator 'some/model' is no folder here and could not be fetched from the hub \({why}\); check its id and "
        "revision, or download it and give the path$"
    )
    with pytest.raises(ValueError, match=message):
        load(GenerateConfig(generator="some/model"))


def test_offline_a_hub_id_is_one_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # The hub's own code, set to offline, with nothing in its cache.
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    with pytest.raises(
        ValueError, match=r"^generator 'some/model' is no folder here and could not be fetched .*disabled"
    ):
        generator_folder("some/model")


def test_a_hub_repository_that_is_no_generator_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.snapshot_download", Hub(tmp_path))  # a LoRA, say
    with pytest.raises(
        ValueError, match=r"^no generator at 'some/model': expected a diffusers folder \(with model_inde"
    ):
        kind_of(GenerateConfig(generator="some/model"))


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
        index: dict[str, Any] = {"_class_name": pipeline} if pipeline else {}
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


def test_a_generator_is_called_by_its_folder_or_by_the_name_it_was_asked_for_by(
    save_tiny: Save, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_tiny(tmp_path / "0a1b2c")  # as a snapshot is called
    monkeypatch.setattr("huggingface_hub.snapshot_download", Hub(folder))
    assert load(GenerateConfig(generator="some/model")).name == "some/model"
    assert load(GenerateConfig(generator=str(folder))).name == "0a1b2c"
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
    monkeypatch.setattr(load_module, "LoopGenerator", lambda denoiser, sample: (denoiser, sample))
    return found


def test_a_latent_generator_gets_what_was_asked_for(loaders: dict[str, Any], tmp_path: Path) -> None:
    folder = index_of(tmp_path / "x", _class_name="StableDiffusionPipeline", unet=["diffusers", "UNet2DConditionModel"])
    config = GenerateConfig(generator=str(folder), textual_inversions=("b.safetensors",), **FULL)
    sample = SampleConfig(guidance_scale=5)
    denoiser, taken = load(config, sample, "ugly")
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
    assert denoiser is loaders["LatentDenoiser"].return_value
    assert taken == sample


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
