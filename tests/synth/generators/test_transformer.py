import functools
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import diffusers
import numpy as np
import pytest
import torch
from tiny_transformers import FAMILIES
from torch import Tensor

from latebloom.synth.config import GenerateConfig, SampleConfig, Sampler
from latebloom.synth.generators.find import reads_prompts
from latebloom.synth.generators.load import load_generator
from latebloom.synth.sampling.denoiser import Wanted
from latebloom.synth.sampling.levels import glide_log_snr
from latebloom.synth.sampling.loop import LoopGenerator
from latebloom.synth.sampling.sample import denoise

CPU = torch.device("cpu")
TOP, BOTTOM = "a photo of a top", "a photo of a bottom"
CALLS = 4
Folders = Callable[[str], Path]
Ready = Callable[[str], Any]


def load(folder: Path, *, negative: str = "", sample: SampleConfig | None = None, **settings: Any) -> Any:
    """The generator as every command loads it, with both prompts."""
    config = GenerateConfig(generator=str(folder), **{"dtype": "float32"} | settings)
    generator = load_generator(config, sample or SAMPLE, negative_prompt=negative, device=CPU)
    generator.prepare([TOP, BOTTOM])
    return generator


# The steps that diffusers' schedulers take with "trailing" timesteps.
SAMPLE = SampleConfig(sampler="ddim", grid=CALLS, match="strength", guidance_scale=2)


@pytest.fixture(scope="module")
def ready(checkpoint: Folders) -> Ready:
    """The generator of a family with the settings above, loaded once."""
    return functools.cache(lambda family: load(checkpoint(family)))


def wanted(levels: list[int], prompts: list[str] | None = None, seeds: list[int] | None = None) -> Wanted:
    n = len(levels)
    return Wanted(np.full(n, 207), prompts or [BOTTOM] * n, np.array(levels), seeds or list(range(n)))


def pictures(n: int = 2, height: int = 16, width: int = 16) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), np.uint8)


def edit(file: Path, **changes: Any) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


# The same as diffusers


def by_diffusers(folder: Path, start: Tensor, monkeypatch: pytest.MonkeyPatch) -> Tensor:
    """What the family's own pipeline makes of this noise for both prompts, float32 (2, 3, h, w), -1 to 1."""
    family = folder.name
    pipe: Any = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True)
    pipe.set_progress_bar_config(disable=True)
    arguments: dict[str, Any] = {"guidance_scale": 2.0, "num_inference_steps": CALLS, "output_type": "pt"}
    if family in ("sana", "auraflow", "lumina2"):
        shift = {"sana": 3.0, "auraflow": 1.73, "lumina2": 6.0}[family]
        pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=shift)
        arguments["sigmas"] = np.linspace(1, 1 / CALLS, CALLS).tolist()
    elif family == "hunyuan":
        pipe.scheduler = diffusers.DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing="trailing")
        arguments |= {"use_resolution_binning": False, "target_size": (16, 16)}
    elif family != "cogview3":
        pipe.scheduler = diffusers.DDIMScheduler(
            beta_schedule="linear", clip_sample=False, timestep_spacing="trailing", set_alpha_to_one=True
        )
    if family == "lumina2":
        arguments["cfg_normalization"] = False
    if family in ("pixart-alpha", "pixart-sigma", "sana"):
        arguments |= {"use_resolution_binning": False, "clean_caption": False}
    if family == "dit":  # takes no latents
        monkeypatch.setattr("diffusers.pipelines.dit.pipeline_dit.randn_tensor", lambda **_: start)
        arguments["class_labels"] = [281, 207]
    else:
        # Some pipelines count on 32 or 8 pixels a latent, and take the latents as they are.
        side = {"sana": 32, "hunyuan": 64}.get(family, 16)
        arguments |= {"prompt": [TOP, BOTTOM], "latents": start, "height": side, "width": side}
    with torch.no_grad():
        images: Tensor = pipe(**arguments, return_dict=False)[0]
    return images * 2 - 1


@pytest.mark.parametrize("family", FAMILIES)
def test_from_pure_noise_it_makes_what_the_familys_pipeline_makes(
    checkpoint: Folders, ready: Ready, monkeypatch: pytest.MonkeyPatch, family: str
) -> None:
    denoiser = ready(family).denoiser
    streams = [np.random.Generator(np.random.Philox(seed)) for seed in (3, 4)]
    start = torch.from_numpy(np.stack([stream.standard_normal((4, 8, 8), np.float32) for stream in streams]))
    rows = denoiser.conditions(np.array([281, 207]), [TOP, BOTTOM])
    made = denoiser.decode(denoise(denoiser, torch.zeros_like(start), rows, np.array([CALLS] * 2), [3, 4], SAMPLE))
    expected = by_diffusers(checkpoint(family), start, monkeypatch)
    torch.testing.assert_close(made.clamp(-1, 1), expected, rtol=0, atol=1e-5)
    assert float(expected.abs().max()) > 0.1
    assert float((expected[0] - expected[1]).abs().max()) > 0.01


# The schedule of a flow


@pytest.mark.parametrize(("family", "sigma"), [("sana", 0.75), ("auraflow", 1.73 / 2.73), ("lumina2", 6 / 7)])
def test_a_flow_is_a_schedule_that_preserves_variance(ready: Ready, family: str, sigma: float) -> None:
    """At the middle of the training timesteps s = 1/2, which the shift moves to shift / (1 + shift)."""
    denoiser = ready(family).denoiser
    assert len(denoiser.alphas_cumprod) == 1000
    assert denoiser.alphas_cumprod[499] == pytest.approx((1 - sigma) ** 2 / ((1 - sigma) ** 2 + sigma**2))
    assert denoiser.alphas_cumprod[-1] == 0  # pure noise
    assert (np.diff(denoiser.alphas_cumprod) < 0).all()


@pytest.mark.parametrize("sampler", get_args(Sampler))
def test_every_sampler_takes_a_flow(ready: Ready, sampler: Any) -> None:
    sample = SampleConfig(sampler=sampler, grid=20, steps=5, guidance_scale=2)
    generator = LoopGenerator(ready("sana").denoiser, sample)
    level, wanted_snr = generator.level(10), glide_log_snr(20)[9]
    assert level.log_snr == pytest.approx(wanted_snr, abs=0.006)  # half of what lies between two timesteps there
    sigma = 1 / (1 + np.exp(wanted_snr / 2))  # and 3 s / (1 + 2 s) of the training timestep s
    assert level.timestep == pytest.approx(1000 * sigma / (3 - 2 * sigma) - 1, abs=0.6)
    made = generator.make(generator.encode(pictures(3)), wanted([20, 10, 1]))
    assert made.finite.all()


# What decides a picture


@pytest.mark.parametrize("family", ["dit", "pixart-sigma", "sana"])
def test_a_picture_is_decided_by_its_reference_level_prompt_and_seed_alone(ready: Ready, family: str) -> None:
    generator = LoopGenerator(ready(family).denoiser, SampleConfig(grid=10, steps=5))
    assert (generator.size, generator.multiple) == (16, 2 if family == "sana" else 4)
    references = generator.encode(pictures(4))
    assert references.shape == (4, 4, 8, 8)
    asked = wanted([2, 10, 5, 10], [TOP, BOTTOM, TOP, BOTTOM], [1, 2, 3, 2])
    together = generator.make(references, asked).images.astype(int)
    for row in range(4):
        alone = generator.make(references[row : row + 1], asked.take(np.array([row]))).images.astype(int)
        assert abs(alone[0] - together[row]).max() <= 1
    assert abs(together[1] - together[3]).max() <= 1  # pure noise: the reference plays no part, the seed does
    other = wanted([2, 10, 5, 10], [TOP, BOTTOM, TOP, BOTTOM], [1, 2, 3, 9])
    assert abs(generator.make(references, other).images.astype(int)[3] - together[3]).max() > 3


@pytest.mark.parametrize("family", ["pixart-sigma", "sana"])
def test_prompts_guidance_and_the_negative_prompt_matter(checkpoint: Folders, ready: Ready, family: str) -> None:
    def made(prompt: str, guidance: float, denoiser: Any) -> np.ndarray:
        generator = LoopGenerator(denoiser, SAMPLE.model_copy(update={"guidance_scale": guidance}))
        return generator.make(generator.encode(pictures(1)), wanted([CALLS], [prompt])).images.astype(int)

    usual, negative = ready(family).denoiser, load(checkpoint(family), negative="blurry").denoiser
    plain = made(TOP, 4, usual)
    for other in (made(BOTTOM, 4, usual), made(TOP, 1, usual), made(TOP, 4, negative)):
        assert abs(plain - other).max() >= 2
    assert usual.digest != negative.digest


def test_prompts_may_come_later_and_must_come_before_they_are_used(checkpoint: Folders) -> None:
    denoiser = load(checkpoint("pixart-sigma")).denoiser
    with pytest.raises(ValueError, match="prompt 'new' was not prepared"):
        denoiser.conditions(np.zeros(1, np.int64), ["new"])
    denoiser.prepare(["new"])
    assert denoiser.conditions(np.zeros(2, np.int64), ["new", TOP]).tolist() == [2, 0]
    with pytest.warns(UserWarning, match=r"has more than 300 tokens: '.*end' is cut off"):
        denoiser.prepare(["x" * 300 + "end"])


def test_dit_takes_images_that_are_not_square(ready: Ready) -> None:
    """diffusers puts patches together as a square, so 2 x 8 patches as 4 x 4; 3 x 4 are no square number."""
    denoiser = ready("dit").denoiser
    tokens: list[Tensor] = []
    denoiser._network.norm_out.register_forward_hook(lambda _m, _i, out: tokens.append(out))
    rows = torch.tensor([207])
    for height, width in ((4, 16), (6, 8)):
        x = torch.randn(1, 4, height, width, generator=torch.Generator().manual_seed(0))
        output = denoiser.predict(x, torch.tensor([500]), rows)
        assert output.shape == x.shape
        # The last layers by hand, then each token to its place.
        network, latents = denoiser._network, torch.zeros(1, 8, height, width)
        with torch.no_grad():
            emb = network.transformer_blocks[0].norm1.emb(torch.tensor([500]), rows, hidden_dtype=torch.float32)
            shift, scale = network.proj_out_1(torch.nn.functional.silu(emb)).chunk(2, 1)
            flat = torch.nn.functional.linear(
                tokens[-1] * (1 + scale[:, None]) + shift[:, None], network.proj_out_2.weight, network.proj_out_2.bias
            )
        for place, token in enumerate(flat[0]):
            row, column = divmod(place, width // 2)
            patch = token.view(2, 2, 8).permute(2, 0, 1)
            latents[0, :, 2 * row : 2 * row + 2, 2 * column : 2 * column + 2] = patch
        torch.testing.assert_close(output, latents[:, :4], rtol=0, atol=1e-5)


def test_the_classes_of_dit_go_by_name_or_by_the_setting(checkpoint: Folders, ready: Ready) -> None:
    """Its class 207 is "bottom, lower": each of the two is a name of it."""
    generator = ready("dit")
    assert generator.labels_of(("Lower", "top")) == (207, 281)
    generator.check(("Lower", "top"))
    with pytest.raises(ValueError, match=r"class 'wombat' of the data is none of the generator's 1000 classes"):
        generator.check(("wombat",))
    assert load(checkpoint("dit"), classes="order").labels_of(("wombat",)) == (0,)
    with pytest.raises(
        ValueError, match=r"goes by prompts and has no classes of its own; leave generate\.classes empty"
    ):
        load(checkpoint("sana"), classes="order")
    for family, by_prompt in (("dit", False), ("sana", True), ("sd", True), ("instruct", False)):
        assert reads_prompts(GenerateConfig(generator=str(checkpoint(family)))) == by_prompt


# Weights


@pytest.mark.parametrize(("dtype", "autoencoder"), [("bfloat16", torch.bfloat16), ("float16", torch.float32)])
def test_half_precision_stays_near_float32(
    checkpoint: Folders, ready: Ready, dtype: str, autoencoder: torch.dtype
) -> None:
    whole, half = ready("sana").denoiser, load(checkpoint("sana"), dtype=dtype).denoiser
    assert half._space._vae.dtype == autoencoder
    x, timesteps, rows = torch.ones(2, 4, 8, 8), torch.tensor([999, 20]), torch.tensor([0, -1])
    output = half.predict(x, timesteps, rows)
    assert output.dtype == half.encode(pictures()).dtype == half.decode(x).dtype == torch.float32
    torch.testing.assert_close(output, whole.predict(x, timesteps, rows), rtol=0, atol=0.05)
    assert half.digest != whole.digest


def test_fused_projections_change_nothing_but_the_speed(checkpoint: Folders) -> None:
    plain, fused = (load(checkpoint("pixart-sigma"), fuse_qkv=on).denoiser for on in (False, True))
    x, timesteps, rows = torch.ones(2, 4, 8, 8), torch.tensor([999, 20]), torch.tensor([0, -1])
    torch.testing.assert_close(plain.predict(x, timesteps, rows), fused.predict(x, timesteps, rows), rtol=0, atol=1e-5)
    assert plain.digest == fused.digest
    with pytest.raises(ValueError, match="DiTTransformer2DModel cannot fuse its projections"):
        load(checkpoint("dit"), fuse_qkv=True)


def test_loras_are_fused_where_the_familys_pipeline_takes_them(
    checkpoint: Folders, ready: Ready, tmp_path: Path
) -> None:
    whole = ready("sana").denoiser
    generator = torch.Generator().manual_seed(0)
    layers = {}
    for name, module in whole._network.named_modules():
        if name.endswith(("to_q", "to_v")):
            layers[f"{name}.lora_A.weight"] = torch.randn(2, module.in_features, generator=generator)
            layers[f"{name}.lora_B.weight"] = torch.randn(module.out_features, 2, generator=generator)
    diffusers.SanaPipeline.save_lora_weights(tmp_path, transformer_lora_layers=layers)
    weight = whole._network.transformer_blocks[0].attn1.to_q.weight
    changed = load(checkpoint("sana"), loras=(f"{tmp_path}@0.5",)).denoiser
    a, b = (layers[f"transformer_blocks.0.attn1.to_q.lora_{part}.weight"] for part in "AB")
    torch.testing.assert_close(
        changed._network.transformer_blocks[0].attn1.to_q.weight, weight + 0.5 * b @ a, rtol=0, atol=1e-6
    )
    assert changed.digest != whole.digest
    with pytest.raises(ValueError, match=r"PixArtSigmaPipeline takes no LoRA; leave generate.loras empty"):
        load(checkpoint("pixart-sigma"), loras=(str(tmp_path),))


def test_older_folders_call_the_network_a_transformer_2d_model(checkpoint: Folders, tmp_path: Path) -> None:
    """PixArt alpha and DiT were published so, with settings that the newer classes do not have."""
    for family, norm in (("dit", "ada_norm_zero"), ("pixart-sigma", "ada_norm_single")):
        folder = Path(shutil.copytree(checkpoint(family), tmp_path / family))
        edit(folder / "model_index.json", transformer=["diffusers", "Transformer2DModel"])
        old = {"_class_name": "Transformer2DModel", "norm_type": norm, "num_vector_embeds": None}
        edit(folder / "transformer" / "config.json", **old)
        x, timesteps, rows = torch.ones(1, 4, 8, 8), torch.tensor([500]), torch.tensor([0])
        plain, older = (load(path).denoiser.predict(x, timesteps, rows) for path in (checkpoint(family), folder))
        assert torch.equal(plain, older)


# Refusals


def test_what_does_not_fit_is_refused_in_words(checkpoint: Folders, ready: Ready, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"holds a StableDiffusionPipeline, expected one of DiTPipeline, .*kind to au"):
        load(checkpoint("sd"), kind="transformer")
    with pytest.raises(ValueError, match=r"cannot use a negative prompt: it goes by classes"):
        load(checkpoint("dit"), negative="blurry")
    folder = Path(shutil.copytree(checkpoint("sana"), tmp_path / "sana"))
    edit(folder / "scheduler" / "scheduler_config.json", use_flow_sigmas=False)
    with pytest.raises(ValueError, match="DPMSolverMultistepScheduler, expected the schedule of a flow; save the mode"):
        load(folder)
    with pytest.raises(ValueError, match="class 1 has no name, which its prompt needs"):
        ready("sana").check(("cat", " "))


# Sizes


@pytest.mark.parametrize(("family", "largest"), [("auraflow", 32), ("cogview3", 64), ("lumina2", 64), ("dit", 0)])
def test_a_table_of_positions_bounds_the_work_size(ready: Ready, family: str, largest: int) -> None:
    generator = ready(family)
    assert generator.largest == largest
    side = largest or 80
    made = generator.make(generator.encode(pictures(1, side, side)), wanted([1]))
    assert made.images.shape == (1, side, side, 3)
    assert made.finite.all()
