import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from latebloom.synth.generators.checkpoint import Checkpoint
from latebloom.synth.generators.diffusers_folder import licence as licence_of

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def sd(checkpoint: Callable[[str], Path], tmp_path: Path) -> Path:
    """A copy of the small Stable Diffusion, to be damaged."""
    return Path(shutil.copytree(checkpoint("sd"), tmp_path / "sd"))


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in content.items() if changes.get(name, 0) is not None}))


def edit_weights(file: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(file)
    change(weights)
    save_file(weights, file, metadata={"format": "pt"})


def load_unet(folder: Path) -> dict[str, torch.Tensor]:
    from diffusers import UNet2DConditionModel

    return Checkpoint.read(folder).load(UNet2DConditionModel, "unet", torch.float32).state_dict()


def test_the_two_families_are_recognised(checkpoint: Callable[[str], Path]) -> None:
    sd, sdxl = Checkpoint.read(checkpoint("sd")), Checkpoint.read(checkpoint("sdxl"))
    assert (sd.sdxl, sd.zeros_for_none, sdxl.sdxl, sdxl.zeros_for_none) == (False, False, True, True)
    assert list(sd.weights) == ["unet", "vae", "text_encoder"]
    assert list(sdxl.weights) == ["unet", "vae", "text_encoder", "text_encoder_2"]


# What a digest is made of


def test_the_contents_are_not_of_place_nor_version(checkpoint: Callable[[str], Path], sd: Path) -> None:
    contents = Checkpoint.read(sd).contents()
    edit(sd / "unet" / "config.json", _diffusers_version="0.30.0", _name_or_path="elsewhere")
    edit(sd / "text_encoder" / "config.json", transformers_version="4.0")
    (sd / "README.md").write_text("# A model\n")
    assert Checkpoint.read(sd).contents() == contents == Checkpoint.read(checkpoint("sd")).contents()
    json.dumps(contents)


def one_bit(weights: dict[str, torch.Tensor]) -> None:
    next(iter(weights.values())).view(-1).view(torch.int32)[0] ^= 1


def test_whatever_changes_images_changes_the_contents(sd: Path) -> None:
    changes: list[Callable[[Path], None]] = [
        lambda folder: edit_weights(folder / UNET, one_bit),
        lambda folder: edit_weights(folder / "text_encoder" / "model.safetensors", one_bit),
        lambda folder: edit(folder / "scheduler" / "scheduler_config.json", beta_end=0.011),
        lambda folder: edit(folder / "vae" / "config.json", scaling_factor=0.2),
        lambda folder: edit(folder / "tokenizer" / "tokenizer.json", version="2.0"),
        lambda folder: edit(folder / "tokenizer" / "tokenizer_config.json", pad_token="!"),
    ]
    for change in changes:
        contents = Checkpoint.read(sd).contents()
        change(sd)
        assert Checkpoint.read(sd).contents() != contents


def test_the_licence_is_in_the_header_of_the_readme(tmp_path: Path) -> None:
    for text, licence in (
        ("", ""),
        ("---\nlicense: openrail++\ntags: [art]\n---\n# A model\nlicense: no\n", "openrail++"),
        ("---\ntags: [art]\n---\n", ""),
        ("# A model\nlicense: no\n", ""),
    ):
        (tmp_path / "README.md").write_text(text)
        assert licence_of(tmp_path) == licence


# Weights


def test_half_precision_files_are_taken_where_there_are_no_others(checkpoint: Callable[[str], Path], sd: Path) -> None:
    assert {weights.variant for weights in Checkpoint.read(sd).weights.values()} == {None}
    file = (sd / UNET).rename(sd / "unet" / "diffusion_pytorch_model.fp16.safetensors")
    half = Checkpoint.read(sd)
    variants = {part: weights.variant for part, weights in half.weights.items()}
    assert variants == {"unet": "fp16", "vae": None, "text_encoder": None}
    assert half.weights["unet"].files == [file]
    weights, expected = load_unet(sd), load_unet(checkpoint("sd"))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    shutil.copy(checkpoint("sd") / UNET, sd / UNET)
    assert Checkpoint.read(sd).weights["unet"].files == [sd / UNET]


def test_weights_in_shards_are_the_same_weights(checkpoint: Callable[[str], Path], sd: Path) -> None:
    from diffusers import UNet2DConditionModel

    (sd / UNET).unlink()
    UNet2DConditionModel.from_pretrained(checkpoint("sd"), subfolder="unet").save_pretrained(
        sd / "unet", max_shard_size="300KB"
    )
    shards = sorted((sd / "unet").glob("*.safetensors"))
    assert len(shards) > 2
    assert Checkpoint.read(sd).weights["unet"].files == shards
    weights, expected = load_unet(sd), load_unet(checkpoint("sd"))
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    shards[1].unlink()
    with pytest.raises(ValueError, match=rf"sd/unet lacks {shards[1].name}, which its index names; copy or download"):
        Checkpoint.read(sd)


def test_a_pickle_beside_safetensors_is_left_alone(sd: Path) -> None:
    contents = Checkpoint.read(sd).contents()
    (sd / UNET).with_suffix(".bin").write_bytes(b"not even a pickle")
    assert Checkpoint.read(sd).contents() == contents


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file: file.write_bytes(file.read_bytes()[:-100]), r"sd/unet cannot be loaded \(.*\); copy or download"),
        (
            lambda file: edit_weights(file, lambda weights: weights.pop("conv_out.weight")),
            r"sd/unet cannot be loaded \(it lacks 1 weights, such as conv_out\.weight\); copy or download it again",
        ),
        (
            lambda file: edit_weights(file, lambda weights: weights.update({"conv_out.bias": torch.zeros(3)})),
            "sd/unet cannot be loaded .*conv_out.bias",
        ),
    ],
)
def test_broken_weights_are_refused_when_loaded(sd: Path, damage: Callable[[Path], None], message: str) -> None:
    damage(sd / UNET)
    with pytest.raises(ValueError, match=message):
        load_unet(sd)


# Folders that cannot be used: each with its one clear message


def without(name: str) -> Callable[[Path], None]:
    return lambda folder: (folder / name).unlink()


def with_index(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "model_index.json", **changes)


def with_unet(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "unet" / "config.json", **changes)


def with_scheduler(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit(folder / "scheduler" / "scheduler_config.json", **changes)


def pickled(folder: Path) -> None:
    (folder / UNET).rename((folder / UNET).with_suffix(".bin"))


def without_words(folder: Path) -> None:
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "merges.txt").unlink()


def test_a_folder_that_cannot_be_used_is_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    for damage, message in [
        (
            without("model_index.json"),
            "sd has no model_index.json; give a folder as diffusers' save_pretrained writes it",
        ),
        (pickled, r"sd has unet only as a pickle \(diffusion_pytorch_model\.bin\), which is refused; give it as safet"),
        (without("vae/config.json"), "sd has no vae/config.json; copy or save the whole diffusers folder"),
        (without("scheduler/scheduler_config.json"), "sd has no scheduler/scheduler_config.json; copy or save"),
        (without("text_encoder/model.safetensors"), "sd has no weights in text_encoder/; copy or save the whole"),
        (without_words, "sd has no tokenizer/vocab.json and merges.txt; copy or save"),
        (
            with_index(unet=["diffusers", "UNet2DModel"]),
            "sd is a StableDiffusionPipeline with UNet2DModel for its unet, expected UNet2DConditionModel, as Stable "
            "Diffusion 1.x, 2.x and SDXL have; set generate.kind to pipeline",
        ),
        (with_index(unet=None, transformer=["diffusers", "SD3Transformer2DModel"]), "with nothing for its unet"),
        (with_index(vae=["diffusers", "VQModel"]), "with VQModel for its vae, expected AutoencoderKL, as"),
        (with_index(scheduler=[None, None]), "with nothing for its scheduler, expected one, as"),
        (with_index(controlnet=["diffusers", "ControlNetModel"]), "sd needs its controlnet, too; give a plain text-to"),
        (with_index(requires_aesthetics_score=True), "sd is the SDXL refiner, which .*; give the base model"),
        (with_unet(in_channels=9), "sd has a UNet from 9 to 4 channels, expected 4, those of its latents; it may be"),
        (with_unet(class_embed_type="projection"), r"sd has a UNet that takes more than a prompt \(class_embed_type\)"),
        (with_unet(addition_embed_type="text_time"), r"takes more than a prompt \(addition_embed_type\)"),
        (
            with_scheduler(beta_schedule=None, _class_name="EDMEulerScheduler"),
            "sd has a EDMEulerScheduler, expected a schedule",
        ),
        (
            with_scheduler(prediction_type="flow_prediction"),
            "sd predicts 'flow_prediction', expected one of epsilon, v_prediction, sample",
        ),
    ]:
        shutil.rmtree(tmp_path / "sd", ignore_errors=True)
        sd = Path(shutil.copytree(checkpoint("sd"), tmp_path / "sd"))
        damage(sd)
        with pytest.raises(ValueError, match=message):
            Checkpoint.read(sd)


def test_what_changes_no_image_is_let_pass(sd: Path) -> None:
    unused = {"safety_checker": ["diffusers", "StableDiffusionSafetyChecker"], "image_encoder": ["x", "y"]}
    edit(sd / "model_index.json", tokenizer=["transformers", "CLIPTokenizerFast"], **unused)
    assert "safety_checker" not in Checkpoint.read(sd).configs
