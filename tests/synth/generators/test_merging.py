"""Adapters of every kind make of every base the weights that a sum by hand makes."""

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_adapters import ADAPTER_KINDS, merge_by_hand, save_tiny_adapter, weights_of

from latebloom.synth.config import GenerateConfig, SampleConfig
from latebloom.synth.generators.adapters import merge_loras
from latebloom.synth.generators.diffusers_folder import quiet
from latebloom.synth.generators.load import load_generator
from latebloom.synth.sampling.denoiser import Wanted

Folders = Callable[[str], Path]
PARTS = ("unet", "transformer", "text_encoder", "text_encoder_2")


@pytest.fixture(scope="module")
def pipelines(checkpoint: Folders) -> Callable[[str], Any]:
    """A fresh pipeline of a family each time, with its networks to be changed."""
    from diffusers import DiffusionPipeline

    loaded: dict[str, Any] = {}

    def fresh(family: str) -> Any:
        if family not in loaded:
            with quiet():
                without = {"text_encoder_3": None, "tokenizer_3": None} if family == "sd3" else {}
                loaded[family] = DiffusionPipeline.from_pretrained(checkpoint(family), **without)
        return copy.deepcopy(loaded[family])

    return fresh


def changed(pipeline: Any, base: Path, expected: Path) -> int:
    """How many weights of a pipeline differ from a base's; all must be those of the folder `expected`."""
    count = 0
    for part in PARTS:
        if not (base / part).is_dir() or not hasattr(pipeline, part):
            continue
        now = {name.removeprefix("text_model."): weight for name, weight in getattr(pipeline, part).named_parameters()}
        before = weights_of(base, part)
        for name, weight in weights_of(expected, part).items():
            if (own := name.removeprefix("text_model.")) in now:  # else a buffer
                torch.testing.assert_close(now[own], weight, rtol=1e-4, atol=1e-5, msg=lambda text: f"{own}: {text}")
                count += not torch.equal(weight, before[name])
    return count


CASES = [
    *(("sd", kind, "kohya", PARTS) for kind in ADAPTER_KINDS),
    ("sd", "lora", "kohya", ("text_encoder",)),
    ("sd", "loha", "lycoris", ("unet",)),
    ("sd", "lora", "diffusers", PARTS),
    ("sd", "dora", "diffusers", PARTS),
    *(("sdxl", kind, "kohya", PARTS) for kind in ("locon", "loha", "lokr", "dora")),
    ("sdxl", "lora", "kohya", ("text_encoder_2",)),
    ("sd3", "lora", "diffusers", ("transformer",)),
    ("sd3", "dora", "diffusers", ("transformer",)),
    ("sd3", "loha", "lycoris", ("transformer",)),
    ("flux", "lora", "diffusers", ("transformer",)),
    ("flux", "lokr-products", "lycoris", ("transformer",)),
]


@pytest.mark.parametrize(("family", "kind", "style", "parts"), CASES)
def test_an_adapter_is_merged_as_by_hand(
    family: str,
    kind: str,
    style: str,
    parts: tuple[str, ...],
    checkpoint: Folders,
    pipelines: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    base, file = checkpoint(family), tmp_path / "style.safetensors"
    changes = save_tiny_adapter(file, base, kind, style=style, parts=parts)
    assert set(changes) == {part for part in parts if (base / part).is_dir()}
    pipeline = pipelines(family)
    state = torch.get_rng_state()
    with quiet():
        merge_loras(pipeline, [(file, 0.7)])
    assert torch.equal(torch.get_rng_state(), state)
    expected = merge_by_hand(base, tmp_path / "expected", (changes, 0.7))
    assert changed(pipeline, base, expected) == sum(map(len, changes.values()))


def test_several_add_up_in_their_order_and_one_may_come_twice(
    checkpoint: Folders, pipelines: Callable[[str], Any], tmp_path: Path
) -> None:
    base, pipeline = checkpoint("sd"), pipelines("sd")
    kinds = ("loha", "lora", "dora", "lokr", "loha")
    files = {kind: tmp_path / f"{kind}.safetensors" for kind in kinds}
    changes = {kind: save_tiny_adapter(file, base, kind, seed=ord(kind[2])) for kind, file in files.items()}
    scales = (0.5, -0.3, 0.8, 0.0, 1.0)
    merge_loras(pipeline, [(files[kind], scale) for kind, scale in zip(kinds, scales, strict=True)])
    by_hand = [(changes[kind], scale) for kind, scale in zip(kinds, scales, strict=True)]
    assert changed(pipeline, base, merge_by_hand(base, tmp_path / "expected", *by_hand)) > 20


def test_a_dora_of_scale_0_changes_nothing(
    checkpoint: Folders, pipelines: Callable[[str], Any], tmp_path: Path
) -> None:
    base, pipeline = checkpoint("sd"), pipelines("sd")
    save_tiny_adapter(tmp_path / "dora.safetensors", base, "dora")
    merge_loras(pipeline, [(tmp_path / "dora.safetensors", 0.0)])
    assert changed(pipeline, base, base) == 0


def test_images_are_those_of_the_merged_weights(checkpoint: Folders, tmp_path: Path) -> None:
    references = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    prompts = ["a photo of a top", "a photo of a bottom"]
    for family, kind in [("sd", "loha"), ("sd3", "lokr-products")]:
        base, file = checkpoint(family), tmp_path / f"{family}.safetensors"
        changes = save_tiny_adapter(file, base, kind, style="lycoris", parts=("unet", "transformer"))
        merged = merge_by_hand(base, tmp_path / family, (changes, 3.0))
        images = []
        for folder, loras in [(base, (f"{file}@3",)), (merged, ()), (base, ())]:
            config = GenerateConfig(generator=str(folder), loras=loras, dtype="float32")
            generator = load_generator(config, SampleConfig(sampler="ddim", grid=10, steps=5, guidance_scale=2))
            generator.prepare(prompts)
            encoded = generator.encode(references)
            wanted = Wanted(np.zeros(2, np.int64), prompts, np.array([8, 8]), [1, 2])
            images.append(generator.make(encoded, wanted).images.astype(int))
        assert np.abs(images[0] - images[1]).max() <= 1
        assert np.abs(images[2] - images[1]).max() > 5


# What does not fit


def plain(*names: str, width: int = 8) -> dict[str, torch.Tensor]:
    return {name: torch.zeros(4, width) for name in names}


UNET_KEYS = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn2_to_k"
WRONG: list[tuple[str, str, dict[str, torch.Tensor] | str, dict[str, str], str]] = [
    ("sd", "a Kohya file", "sdxl", {}, r"the file is a LoRA for SDXL, this model is a model with prompts of width 32"),
    ("sdxl", "a Kohya file", "sd", {}, r"the file is a LoRA for a model with prompts of width 32, this model is SDXL"),
    ("sd3", "a Kohya file", "sd", {}, r"a LoRA for a model with prompts of width 32, this model is StableDiffusion3"),
    ("sd", "a trainer's file", "sdxl", {"ss_base_model_version": "sdxl_base_v1-0"}, r"a LoRA for sdxl_base_v1-0,"),
    ("sd", "one for Flux", plain("transformer.single_transformer_blocks.0.attn.to_q.lora_A.weight"), {}, r"for Flux,"),
    ("sd", "one of another width", plain(f"{UNET_KEYS}.lora_down.weight", width=2048), {}, r"a LoRA for SDXL,"),
    ("sd", "one of another width", plain(f"{UNET_KEYS}.hada_w1_b", width=768), {}, r"for Stable Diffusion 1\.x,"),
    ("sd", "a checkpoint", plain("model.diffusion_model.input_blocks.0.0.weight", "a", "b"), {}, "a whole checkpoint"),
    ("sd", "a VAE", plain("decoder.conv_in.weight", "encoder.conv_in.weight", "quant_conv.weight"), {}, "is a VAE,"),
    ("sd", "a ControlNet", plain("controlnet_cond_embedding.conv_in.weight", "a", "b"), {}, "is a ControlNet,"),
    ("sd", "a UNet", plain("down_blocks.0.resnets.0.conv1.weight", "a", "b"), {}, "is a whole network,"),
    ("sd", "an embedding", plain("<blob>"), {}, "is a textual inversion,"),
    ("sd", "anything", plain("a", "b", "c"), {}, "is another kind of file,"),
]


@pytest.mark.parametrize(("family", "what", "holds", "metadata", "words"), WRONG)
def test_a_wrong_file_is_refused_in_a_short_line_that_says_what_it_is(
    family: str,
    what: str,
    holds: dict[str, torch.Tensor] | str,
    metadata: dict[str, str],
    words: str,
    checkpoint: Folders,
    pipelines: Callable[[str], Any],
    tmp_path: Path,
) -> None:
    file = tmp_path / "wrong.safetensors"
    if isinstance(holds, str):
        save_tiny_adapter(file, checkpoint(holds), "loha", metadata=metadata)
    else:
        save_file(holds, file, metadata=metadata)
    with pytest.raises(ValueError, match=words) as caught, quiet():
        merge_loras(pipelines(family), [(file, 1.0)])
    assert str(file) in str(caught.value)
    assert len(str(caught.value)) - len(str(file)) < 250
    assert "\n" not in str(caught.value)


def test_a_damaged_file_and_one_that_fits_in_part_are_refused(
    checkpoint: Folders, pipelines: Callable[[str], Any], tmp_path: Path
) -> None:
    file, base, pipeline = tmp_path / "some.safetensors", checkpoint("sd"), pipelines("sd")
    save_tiny_adapter(file, base, "lokr", parts=("unet",))
    whole = load_file(file)
    more = {key.replace("lora_unet", "lora_unet_more"): value.clone() for key, value in whole.items()}
    narrow = {key: value[..., :1].contiguous() if "w2" in key else value for key, value in whole.items()}
    for tensors, words in [
        (whole | more, r"the model has no place for (\d+) of its \d+ layers"),
        (narrow, r"\(\d+, \d+\) for a weight of \(\d+, \d+\) in lora_unet_"),
    ]:
        save_file(tensors, file)
        with pytest.raises(ValueError, match=words):
            merge_loras(pipeline, [(file, 1.0)])
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=r"some\.safetensors is damaged or no safetensors file .*; download it again"):
        merge_loras(pipeline, [(file, 1.0)])
