import functools
import json
import re
import shutil
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_checkpoints as tiny
import torch
from torch import Tensor

from latebloom.synth.generators import latent
from latebloom.synth.generators.latent import LatentDenoiser

CPU = torch.device("cpu")
TOP, BOTTOM = "a photo of a top", "a photo of a bottom"
MINUS_ONE = torch.tensor([-1])


Folders = Callable[[str], Path]
Ready = Callable[[str], LatentDenoiser]


@pytest.fixture
def sd(checkpoint: Folders, tmp_path: Path) -> Path:
    """A copy of the small Stable Diffusion, to be damaged."""
    return Path(shutil.copytree(checkpoint("sd"), tmp_path / "sd"))


def load(folder: Path, *, dtype: torch.dtype = torch.float32, **settings: Any) -> LatentDenoiser:
    denoiser = LatentDenoiser.load(folder, CPU, dtype=dtype, **settings)
    denoiser.prepare([TOP, BOTTOM])
    return denoiser


@pytest.fixture(scope="module")
def ready(checkpoint: Folders) -> Ready:
    """The denoiser of a family, loaded once, with both prompts."""
    return functools.cache(lambda family: load(checkpoint(family)))


def pipeline(folder: Path) -> Any:
    """The same folder as diffusers' image-to-image pipeline of that family."""
    import diffusers

    name = {"sd": "StableDiffusion", "sdxl": "StableDiffusionXL", "lcm": "LatentConsistencyModel"}[folder.name]
    kind = getattr(diffusers, f"{name}Img2ImgPipeline")
    pipe = kind.from_pretrained(folder, use_safetensors=True, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    return pipe


def edit(file: Path, **changes: Any) -> None:
    """Change keys of a JSON file; None removes one."""
    content = json.loads(file.read_text()) | changes
    file.write_text(json.dumps({name: value for name, value in content.items() if changes.get(name, 0) is not None}))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def said(pipe: Any, x: Tensor, timesteps: Tensor, prompts: list[str], negative: str | None = None) -> Tensor:
    """The UNet's output by hand for prompts and, after them, as many times for "none"."""
    with torch.no_grad():
        if not hasattr(pipe, "text_encoder_2"):
            text, none = pipe.encode_prompt(prompts, CPU, 1, True, None if negative is None else [negative] * len(x))
            states, added = torch.cat([text, none]), None
        else:
            text, none, pooled, none_pooled = pipe.encode_prompt(
                prompts, device=CPU, negative_prompt=None if negative is None else [negative] * len(x)
            )
            sizes = torch.tensor([[2 * x.shape[2], 2 * x.shape[3], 0, 0, 2 * x.shape[2], 2 * x.shape[3]]])
            added = {"text_embeds": torch.cat([pooled, none_pooled]), "time_ids": sizes.repeat(2 * len(x), 1)}
            states = torch.cat([text, none])
        output = pipe.unet(torch.cat([x, x]), torch.cat([timesteps] * 2), states, added_cond_kwargs=added)
    return output.sample


# The network


@pytest.mark.parametrize(("kind", "negative"), [("sd", "the digit"), ("sdxl", "")])
def test_it_says_what_the_unet_says_with_the_pipelines_prompts(checkpoint: Folders, kind: str, negative: str) -> None:
    denoiser = load(checkpoint(kind), negative_prompt=negative)
    x = noise(2, 4, 8, 12)
    timesteps = torch.tensor([500, 20])
    rows = denoiser.conditions(np.zeros(2, np.int64), [BOTTOM, TOP])
    assert rows.dtype == torch.int64
    assert rows.tolist() == [1, 0]
    output = denoiser.predict(torch.cat([x, x]), timesteps.repeat(2), torch.cat([rows, torch.full_like(rows, -1)]))
    expected = said(pipeline(checkpoint(kind)), x, timesteps, [BOTTOM, TOP], negative or None)
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    assert output.dtype == torch.float32
    assert float((output[:2] - output[2:]).abs().max()) > 0.01  # or no prompt would matter


def test_prompts_and_sizes_matter_to_sdxl(checkpoint: Folders, ready: Ready) -> None:
    denoiser = ready("sdxl")
    x = noise(1, 4, 8, 8)
    top, bottom = (denoiser.predict(x, torch.tensor([500]), torch.tensor([row])) for row in (0, 1))
    assert float((top - bottom).abs().max()) > 1e-3
    pipe = pipeline(checkpoint("sdxl"))
    assert pipe._get_add_time_ids((16, 24), (0, 0), (16, 24), 6, 2.5, (16, 24), (0, 0), (16, 24), torch.float32, 32)[
        0
    ].tolist() == [[16, 24, 0, 0, 16, 24]]  # height before width, as `said` has it


def test_the_guidance_of_a_consistency_model_is_embedded(checkpoint: Folders) -> None:
    denoiser = load(checkpoint("lcm"), embedded_guidance=4)
    assert (denoiser.unconditional, denoiser.timestep_scaling) == (False, 10)
    pipe = pipeline(checkpoint("lcm"))
    x, timesteps = noise(1, 4, 8, 8), torch.tensor([499])
    with torch.no_grad():
        text, _ = pipe.encode_prompt([TOP], CPU, 1, False)
        w = pipe.get_guidance_scale_embedding(torch.tensor([3.0]), embedding_dim=32)
        expected = pipe.unet(x, timesteps, text, timestep_cond=w).sample
    output = denoiser.predict(x, timesteps, torch.tensor([0]))
    torch.testing.assert_close(output, expected, rtol=0, atol=1e-5)
    other = load(checkpoint("lcm"))
    assert float((other.predict(x, timesteps, torch.tensor([0])) - output).abs().max()) > 1e-3
    assert other.digest != denoiser.digest
    with pytest.raises(ValueError, match="lcm cannot use a negative prompt: its guidance is embedded"):
        load(checkpoint("lcm"), negative_prompt="blurry")


def test_only_consistency_models_have_a_boundary_condition(checkpoint: Folders, ready: Ready, sd: Path) -> None:
    plain = load(checkpoint("sd"), embedded_guidance=4)
    assert (plain.unconditional, plain.timestep_scaling) == (True, 0)
    assert plain.digest == ready("sd").digest  # it takes no embedded guidance
    edit(sd / "scheduler" / "scheduler_config.json", _class_name="LCMScheduler")  # one with an LCM LoRA merged in
    merged = load(sd)
    assert (merged.unconditional, merged.timestep_scaling) == (True, 10)


def test_neither_batch_mates_nor_fused_projections_change_much(checkpoint: Folders, ready: Ready) -> None:
    denoiser = ready("sdxl")
    fused = load(checkpoint("sdxl"), fuse_qkv=True)
    x, timesteps, rows = noise(3, 4, 8, 8), torch.tensor([900, 500, 20]), torch.tensor([0, -1, 1])
    together = denoiser.predict(x, timesteps, rows)
    for i in range(3):
        alone = denoiser.predict(x[i : i + 1], timesteps[i : i + 1], rows[i : i + 1])
        torch.testing.assert_close(alone, together[i : i + 1], rtol=0, atol=1e-5)
    torch.testing.assert_close(fused.predict(x, timesteps, rows), together, rtol=0, atol=1e-5)
    assert fused.digest == denoiser.digest


def test_the_unet_is_compiled_if_set(checkpoint: Folders, ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    monkeypatch.setattr(latent, "compile_network", asked.append)  # compiling itself takes minutes
    compiled = load(checkpoint("sd"), compile=True)
    assert asked == [compiled._unet]
    assert ready("sd").digest == compiled.digest


# The schedule


def test_schedule_and_prediction_are_those_of_the_folder(ready: Ready, sd: Path) -> None:
    denoiser = ready("sd")
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2  # scaled_linear
    np.testing.assert_allclose(denoiser.alphas_cumprod, np.cumprod(1 - betas), rtol=1e-5)
    assert (denoiser.alphas_cumprod.dtype, denoiser.prediction_type) == (np.float64, "epsilon")
    assert denoiser.ends_at_first == {"ddim"}  # set_alpha_to_one is false, as Stable Diffusion has it
    changes = {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True}  # as 2.x has them
    changes |= {"set_alpha_to_one": True, "final_sigmas_type": "sigma_min"}
    edit(sd / "scheduler" / "scheduler_config.json", **changes)
    other = load(sd)
    assert (other.alphas_cumprod[-1], other.prediction_type) == (0, "v_prediction")
    assert other.ends_at_first == {"euler", "dpm++2m"}


def test_ddim_by_hand_ends_where_the_pipeline_ends(checkpoint: Folders) -> None:
    from diffusers import DDIMScheduler

    kind = "sdxl"

    pipe = pipeline(checkpoint(kind))
    settings = {"clip_sample": False, "set_alpha_to_one": False, "timestep_spacing": "leading", "steps_offset": 1}
    pipe.scheduler = DDIMScheduler.from_config(pipe.scheduler.config, **settings)
    denoiser = load(checkpoint(kind), negative_prompt="the digit")
    latents = denoiser.encode(np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8))
    made = pipe(
        [TOP, BOTTOM],
        image=latents,
        negative_prompt=["the digit"] * 2,
        strength=0.65,  # 6 of 10 steps
        num_inference_steps=10,
        guidance_scale=3.0,
        generator=torch.Generator().manual_seed(5),
        output_type="latent",
    ).images

    steps = pipe.scheduler.timesteps[-6:].tolist()
    alphas = [*(float(denoiser.alphas_cumprod[t]) for t in steps), float(denoiser.alphas_cumprod[0])]
    rows = torch.cat([denoiser.conditions(np.zeros(2, np.int64), [TOP, BOTTOM]), torch.tensor([-1, -1])])
    x = alphas[0] ** 0.5 * latents + (1 - alphas[0]) ** 0.5 * noise(*latents.shape, seed=5)
    for t, now, after in zip(steps, alphas[:-1], alphas[1:], strict=True):
        text, none = denoiser.predict(torch.cat([x, x]), torch.full((4,), t), rows).chunk(2)
        eps = none + 3.0 * (text - none)
        x = after**0.5 * (x - (1 - now) ** 0.5 * eps) / now**0.5 + (1 - after) ** 0.5 * eps
    torch.testing.assert_close(x, made, rtol=0, atol=1e-4)
    assert float((made - latents).abs().max()) > 0.1


# Pixels and latents


def test_encoding_is_the_mode_and_decoding_its_inverse_scale(checkpoint: Folders, ready: Ready) -> None:
    denoiser = ready("sd")
    vae = pipeline(checkpoint("sd")).vae
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 24, 3), np.uint8)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        mode = vae.encode(pixels).latent_dist.mode() * 0.18215
        decoded = vae.decode(mode / 0.18215).sample
    latents = denoiser.encode(images)
    assert (latents.shape, latents.dtype) == ((2, 4, 8, 12), torch.float32)
    torch.testing.assert_close(latents, mode, rtol=0, atol=1e-6)
    assert torch.equal(latents, denoiser.encode(images))
    assert torch.equal(latents[1:], denoiser.encode(images[1:]))
    torch.testing.assert_close(denoiser.decode(latents), decoded, rtol=0, atol=1e-5)


def test_a_vae_with_mean_and_deviation_is_normalised_by_them(ready: Ready, sd: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (1, 16, 16, 3), np.uint8)
    plain = ready("sd")
    mean, std = [0.1, 0.2, 0.3, 0.4], [1.0, 2.0, 4.0, 0.5]
    edit(sd / "vae" / "config.json", latents_mean=mean, latents_std=std, scaling_factor=0.5)
    denoiser = load(sd)
    raw = plain.encode(images) / 0.18215
    expected = (raw - torch.tensor(mean).view(1, 4, 1, 1)) * 0.5 / torch.tensor(std).view(1, 4, 1, 1)
    torch.testing.assert_close(denoiser.encode(images), expected, rtol=0, atol=1e-5)
    torch.testing.assert_close(denoiser.decode(expected), plain.decode(raw * 0.18215), rtol=0, atol=1e-4)


def test_what_is_not_finite_stays_so_and_spoils_no_other(ready: Ready) -> None:
    denoiser = ready("sd")
    x0 = noise(3, 4, 8, 8)
    clean = denoiser.decode(x0)
    x0[1, 0, 0, 0] = torch.nan
    spoilt = denoiser.decode(x0)
    assert not torch.isfinite(spoilt[1]).all()
    assert torch.equal(spoilt[[0, 2]], clean[[0, 2]])
    assert denoiser.decode(1e4 * x0[:1]).abs().max() > 1  # not clipped


@pytest.mark.parametrize(
    ("dtype", "force_upcast", "expected"),
    [
        (torch.bfloat16, True, torch.float32),
        (torch.float16, False, torch.float32),
    ],
)
def test_half_precision_gives_finite_float32(
    ready: Ready, sd: Path, dtype: torch.dtype, force_upcast: bool, expected: torch.dtype
) -> None:
    edit(sd / "vae" / "config.json", force_upcast=force_upcast)
    denoiser = load(sd, dtype=dtype)
    assert (denoiser._unet.dtype, denoiser._space._vae.dtype) == (dtype, expected)
    whole = ready("sd")
    x, timesteps, rows = noise(2, 4, 8, 8), torch.tensor([500, 20]), torch.tensor([0, -1])
    images = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), np.uint8)
    for value, exact in (
        (denoiser.predict(x, timesteps, rows), whole.predict(x, timesteps, rows)),
        (denoiser.encode(images), whole.encode(images)),
        (denoiser.decode(x), whole.decode(x)),
    ):
        assert value.dtype == torch.float32
        assert torch.isfinite(value).all()
        assert float((value - exact).abs().max()) < 0.05 * float(exact.abs().max())


def test_sizes_are_in_pixels(ready: Ready) -> None:
    denoiser = ready("sd")
    # 8 latents of 2 pixels; the UNet halves once more.
    assert (denoiser.size, denoiser.multiple, denoiser.channels, denoiser.clip) == (16, 4, 3, False)


# Prompts


@pytest.fixture
def encoders(checkpoint: Folders, monkeypatch: pytest.MonkeyPatch) -> list[weakref.ref]:
    """The text encoders that were loaded so far, if they are still there."""
    checkpoint("sd-lora")
    from transformers import CLIPTextModel, CLIPTextModelWithProjection

    loaded: list[weakref.ref] = []

    def watch(kind: Any) -> None:
        original = kind.from_pretrained.__func__

        def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
            result = original(cls, *args, **kwargs)
            loaded.append(weakref.ref(result[0]))
            return result

        monkeypatch.setattr(kind, "from_pretrained", classmethod(from_pretrained))

    watch(CLIPTextModel)
    watch(CLIPTextModelWithProjection)
    return loaded


@pytest.mark.parametrize(("kind", "lora", "count"), [("sd", "sd-lora", 1), ("sdxl", "", 2)])
def test_text_encoders_live_only_while_there_are_new_prompts(
    checkpoint: Folders, encoders: list[weakref.ref], kind: str, lora: str, count: int
) -> None:
    loras = [str(checkpoint(lora))] if lora else []
    denoiser = LatentDenoiser.load(checkpoint(kind), CPU, dtype=torch.float32, loras=loras)
    denoiser.prepare([])
    assert encoders == []
    denoiser.prepare([TOP, BOTTOM, TOP])
    assert [encoder() for encoder in encoders] == [None] * count
    denoiser.prepare([BOTTOM, TOP])  # known
    assert len(encoders) == count
    x, timesteps = noise(3, 4, 8, 8), torch.tensor([500, 500, 500])
    before = denoiser.predict(x, timesteps, torch.tensor([-1, 0, 1]))
    denoiser.prepare([TOP, "the digit"])
    assert len(encoders) == 2 * count
    assert denoiser.conditions(np.zeros(3, np.int64), [TOP, BOTTOM, "the digit"]).tolist() == [0, 1, 2]
    assert torch.equal(denoiser.predict(x, timesteps, torch.tensor([-1, 0, 1])), before)
    # The same to the last bit as if all had been known from the start, in any order.
    other = LatentDenoiser.load(checkpoint(kind), CPU, dtype=torch.float32, loras=loras)
    other.prepare(["the digit", BOTTOM, TOP])
    swapped = other.predict(x, timesteps, torch.tensor([-1, 2, 0]))
    assert torch.equal(swapped, denoiser.predict(x, timesteps, torch.tensor([-1, 0, 2])))


def test_a_prompt_that_was_not_prepared_is_refused(ready: Ready) -> None:
    with pytest.raises(ValueError, match="prompt 'the digit' was not prepared; give `prepare` every prompt"):
        ready("sd").conditions(np.zeros(2, np.int64), [TOP, "the digit"])


def test_a_prompt_that_is_too_long_is_cut_with_a_warning(checkpoint: Folders) -> None:
    denoiser = LatentDenoiser.load(checkpoint("sdxl"), CPU, dtype=torch.float32)
    fits, long = " ".join(["photo"] * 14), " ".join(["photo"] * 14 + ["of", "top"])  # 16 with start and end
    denoiser.prepare([fits])  # warnings are errors
    with pytest.warns(UserWarning, match="has more than 16 tokens: 'of top' is cut off") as caught:
        denoiser.prepare([long])
    assert len(caught) == 1
    assert str(caught[0].message).startswith(f"prompt {long!r}")
    x, timesteps = noise(1, 4, 8, 8), torch.tensor([500])
    assert torch.equal(*(denoiser.predict(x, timesteps, torch.tensor([row])) for row in (0, 1)))


def test_every_class_needs_a_name(ready: Ready) -> None:
    ready("sd").check(("any", "name at all"))
    with pytest.raises(ValueError, match="class 1 has no name, which its prompt needs"):
        ready("sd").check(("top", " "))


# LoRA and textual inversion


def test_a_merged_lora_is_that_of_the_pipeline(checkpoint: Folders, ready: Ready) -> None:
    kind = "sdxl"
    lora = checkpoint(f"{kind}-lora") / "pytorch_lora_weights.safetensors"
    pipe = pipeline(checkpoint(kind))
    x, timesteps, rows = noise(1, 4, 8, 8), torch.tensor([500]), torch.tensor([0, -1])
    plain = said(pipe, x, timesteps, [TOP])
    pipe.load_lora_weights(lora)
    expected = said(pipe, x, timesteps, [TOP])
    assert float((expected - plain)[0].abs().max()) > 0.01
    assert float((expected - plain)[1].abs().max()) > 0.001

    denoiser = load(checkpoint(kind), loras=[str(lora)])
    twice = torch.cat([x, x]), timesteps.repeat(2), rows
    torch.testing.assert_close(denoiser.predict(*twice), expected, rtol=0, atol=1e-5)
    assert not [name for name, _ in denoiser._unet.named_modules() if "lora" in name]
    denoiser.prepare(["the digit"])  # text encoders loaded anew have it, too
    again = denoiser.predict(x, timesteps, denoiser.conditions(np.zeros(1, np.int64), ["the digit"]))
    torch.testing.assert_close(again, said(pipe, x, timesteps, ["the digit"])[:1], rtol=0, atol=1e-5)

    nothing = load(checkpoint(kind), loras=[f"{lora.parent}@0"])
    assert torch.equal(nothing.predict(*twice), ready(kind).predict(*twice))
    assert nothing.digest != denoiser.digest


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")  # of diffusers with two LoRAs side by side
def test_several_loras_add_up_by_their_scales(checkpoint: Folders, tmp_path: Path) -> None:
    first = checkpoint("sd-lora") / "pytorch_lora_weights.safetensors"
    second = tiny.save_tiny_lora(tmp_path / "se@cond", checkpoint("sd"), seed=7)
    pipe = pipeline(checkpoint("sd"))
    pipe.load_lora_weights(first, adapter_name="first")
    pipe.load_lora_weights(second, adapter_name="second")
    pipe.set_adapters(["first", "second"], [0.8, -0.5])
    x, timesteps = noise(1, 4, 8, 8), torch.tensor([500])
    denoiser = load(checkpoint("sd"), loras=[f"{first}@0.8", f"{second}@-0.5"])
    output = denoiser.predict(torch.cat([x, x]), timesteps.repeat(2), torch.tensor([0, -1]))
    torch.testing.assert_close(output, said(pipe, x, timesteps, [TOP]), rtol=0, atol=1e-5)


def test_a_lora_in_kohyas_layout_is_read_with_its_alpha(checkpoint: Folders, ready: Ready, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    weights = {}
    for key, value in load_file(checkpoint("sd-lora") / "pytorch_lora_weights.safetensors").items():
        part, module, kind = re.fullmatch(r"(unet|text_encoder)\.(.*)\.lora_([AB])\.weight", key).groups()
        module = module if part == "unet" else f"text_model.{module}"
        name = f"lora_{'unet' if part == 'unet' else 'te'}_{module.replace('.', '_')}"
        weights[f"{name}.lora_{'down' if kind == 'A' else 'up'}.weight"] = value
        weights[f"{name}.alpha"] = torch.tensor(1.0)  # of rank 2: half
    save_file(weights, tmp_path / "kohya.safetensors")
    kohya = load(checkpoint("sd"), loras=[str(tmp_path)])
    half = load(checkpoint("sd"), loras=[f"{checkpoint('sd-lora')}@0.5"])
    arguments = noise(2, 4, 8, 8), torch.tensor([500, 20]), torch.tensor([0, -1])
    torch.testing.assert_close(kohya.predict(*arguments), half.predict(*arguments), rtol=0, atol=1e-5)
    assert not torch.allclose(kohya.predict(*arguments), ready("sd").predict(*arguments), atol=1e-3)


def test_a_learned_word_means_what_it_means_to_the_pipeline(checkpoint: Folders, ready: Ready, tmp_path: Path) -> None:
    file = tiny.save_tiny_textual_inversion(tmp_path / "any.safetensors", "<blob>", vectors=3)
    denoiser = load(checkpoint("sd"), textual_inversions=[str(file)])
    prompt = "a photo of a <blob>"
    denoiser.prepare([prompt])
    pipe = pipeline(checkpoint("sd"))
    x, timesteps = noise(1, 4, 8, 8), torch.tensor([500])
    spelt = said(pipe, x, timesteps, [prompt])[:1]
    pipe.load_textual_inversion(file)
    output = denoiser.predict(x, timesteps, torch.tensor([2]))
    torch.testing.assert_close(output, said(pipe, x, timesteps, [prompt])[:1], rtol=0, atol=1e-5)
    assert float((output - spelt).abs().max()) > 0.001
    assert denoiser.digest != ready("sd").digest


def test_a_learned_word_of_sdxl_has_an_embedding_for_each_encoder(
    checkpoint: Folders, ready: Ready, tmp_path: Path
) -> None:
    from safetensors.torch import save_file

    clip_l, clip_g = noise(2, 32), noise(2, 32, seed=1)
    save_file({"clip_l": clip_l, "clip_g": clip_g}, tmp_path / "blob.safetensors")
    denoiser = load(checkpoint("sdxl"), textual_inversions=[str(tmp_path)])
    prompt = "a photo of a blob"
    denoiser.prepare([prompt])
    pipe = pipeline(checkpoint("sdxl"))
    x, timesteps = noise(1, 4, 8, 8), torch.tensor([500])
    spelt = said(pipe, x, timesteps, [prompt])[:1]
    pipe.load_textual_inversion(clip_l, token="blob", text_encoder=pipe.text_encoder, tokenizer=pipe.tokenizer)
    pipe.load_textual_inversion(clip_g, token="blob", text_encoder=pipe.text_encoder_2, tokenizer=pipe.tokenizer_2)
    output = denoiser.predict(x, timesteps, torch.tensor([2]))
    torch.testing.assert_close(output, said(pipe, x, timesteps, [prompt])[:1], rtol=0, atol=1e-5)
    assert float((output - spelt).abs().max()) > 0.001


def test_automatic1111_calls_a_word_by_its_file(checkpoint: Folders, tmp_path: Path) -> None:
    file = tiny.save_tiny_textual_inversion(tmp_path / "blobby.safetensors", "emb_params")
    tiny.save_tiny_textual_inversion(tmp_path / "same" / "learned_embeds.safetensors", "blobby")
    x, timesteps = noise(1, 4, 8, 8), torch.tensor([500])
    outputs = []
    for path in (file, tmp_path / "same"):
        denoiser = load(checkpoint("sd"), textual_inversions=[str(path)])
        denoiser.prepare(["a photo of a blobby"])
        outputs.append(denoiser.predict(x, timesteps, torch.tensor([2])))
    assert torch.equal(*outputs)


def test_loading_leaves_the_global_random_stream_alone(checkpoint: Folders, tmp_path: Path) -> None:
    file = tiny.save_tiny_textual_inversion(tmp_path / "blob.safetensors")
    before = torch.get_rng_state()
    load(checkpoint("sd"), loras=[str(checkpoint("sd-lora"))], textual_inversions=[str(file)], fuse_qkv=True)
    assert torch.equal(torch.get_rng_state(), before)


# The folder


def test_every_setting_that_changes_images_changes_the_digest(checkpoint: Folders, ready: Ready) -> None:
    def digest(**settings: Any) -> str:
        return LatentDenoiser.load(checkpoint("sd"), CPU, **{"dtype": torch.float32} | settings).digest

    lora = str(checkpoint("sd-lora"))
    digests = [
        digest(),
        digest(negative_prompt="blurry"),
        digest(dtype=torch.bfloat16),
        digest(loras=[lora]),
        digest(loras=[f"{lora}@0.5"]),
        ready("sdxl").digest,
    ]
    assert len(set(digests)) == len(digests)
    assert all(re.fullmatch("[0-9a-f]{64}", digest) for digest in digests)
    assert ready("sd").digest == digests[0]


def test_card_and_licence_are_read_from_the_folder(ready: Ready, sd: Path) -> None:
    plain = ready("sd")
    assert (plain.name, plain.licence, plain.trained_on, plain.trained_on_words) == ("sd", "", frozenset(), "")
    (sd / "README.md").write_text("---\nlicense: openrail++\n---\n# A model\n")
    (sd / "latebloom.json").write_text(json.dumps({"trained_on_sha256": ["a", "b"], "trained_on": "digits"}))
    denoiser = load(sd)
    assert (denoiser.licence, denoiser.trained_on, denoiser.trained_on_words) == ("openrail++", {"a", "b"}, "digits")
    assert denoiser.digest == plain.digest


def test_a_folder_of_another_kind_is_refused(sd: Path) -> None:
    edit(sd / "model_index.json", unet=["diffusers", "UNet2DModel"])
    with pytest.raises(ValueError, match="with UNet2DModel for its unet"):
        load(sd)
