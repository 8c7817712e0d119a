"""Tiny checkpoints of several families through diffusers' own pipelines."""

import contextlib
import functools
import json
import shutil
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_pipelines import save_tiny_sd3

from latebloom.data.seeds import child_seed
from latebloom.synth.generators import pipeline
from latebloom.synth.generators.pipeline import PipelineGenerator
from latebloom.synth.sampling.denoiser import Made, Wanted
from latebloom.synth.sampling.steps import counted_steps

# NumPy about diffusers' own schedulers.
pytestmark = pytest.mark.filterwarnings("ignore:__array_:DeprecationWarning")

FAMILIES = ("sd3", "flux", "schnell", "if", "kandinsky22", "sd", "sdxl", "lcm")
CPU = torch.device("cpu")
Folders = Callable[[str], Path]
Ready = Callable[[str], PipelineGenerator]
PROMPTS = ("a photo of top", "a photo of the digit", "a photo of top")


def load(folder: Path, **changes: Any) -> PipelineGenerator:
    settings: dict[str, Any] = {
        "dtype": torch.float32,
        "grid": 100,
        "steps": 8,
        "match": "snr",
        "guidance_scale": 3.0,
    }
    return PipelineGenerator.load(folder, CPU, **settings | changes)


@pytest.fixture(scope="module")
def ready(checkpoint: Folders) -> Callable[[str], PipelineGenerator]:
    """The generator of a family, loaded once, with all prompts; a test puts back what it changes."""

    @functools.cache
    def generator(family: str) -> PipelineGenerator:
        generator = load(checkpoint(family))
        generator.prepare(PROMPTS)
        return generator

    return generator


def images(height: int, width: int, n: int = 3) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (n, height, width, 3), dtype=np.uint8)


def wanted(levels: tuple[int, ...] = (40, 80, 80), prompts: tuple[str, ...] = PROMPTS) -> Wanted:
    seeds = [1, 2, 2**62 + 2]  # the last two are one seed in their low 32 bits
    return Wanted(np.arange(len(levels)), prompts[: len(levels)], np.array(levels), seeds[: len(levels)])


def difference(made: np.ndarray, other: np.ndarray) -> int:
    return int(np.abs(made.astype(int) - other.astype(int)).max())


@contextlib.contextmanager
def counted(generator: PipelineGenerator) -> Iterator[list[int]]:
    """Images in each call of the network within the block."""
    calls: list[int] = []
    network = generator.pipeline.components.get("transformer") or generator.pipeline.unet
    hook = network.register_forward_hook(lambda *seen: calls.append(len(seen[2][0])))
    yield calls
    hook.remove()


@pytest.mark.parametrize("family", FAMILIES)
def test_a_family_from_disk_to_images(ready: Ready, family: str) -> None:
    generator = ready(family)
    generator.check(("top", "digit"))
    side = generator.multiple * 4
    references = generator.encode(images(side, 2 * side))
    assert len(references) == 3
    request = wanted()
    with counted(generator) as calls:
        made = generator.make(references, request)
    assert made.images.shape == (3, side, 2 * side, 3)
    assert made.images.dtype == np.uint8
    assert made.finite.tolist() == [True] * 3
    assert min(image.std() for image in made.images) > 2

    evaluations = sum(generator.level(int(level)).calls for level in request.levels) * generator.calls_a_step
    assert sum(calls) == evaluations
    assert generator.calls_a_step == (1 if family in ("flux", "lcm") else 2)

    # Alone and in another order an image is what it was; other kernels for other batch sizes may round otherwise.
    alone = generator.make(references[2:], request.take(np.array([2])))
    assert difference(alone.images[0], made.images[2]) <= 1
    turned = generator.make(references.flip(0), request.take(np.array([2, 1, 0])))
    assert difference(turned.images[::-1], made.images) <= 1
    assert difference(made.images[1], made.images[2]) > 20


@pytest.mark.parametrize("family", ["sd3", "lcm"])
def test_every_level_makes_the_steps_it_says(checkpoint: Folders, family: str) -> None:
    generator = load(checkpoint(family), match="steps", grid=8)
    generator.prepare(PROMPTS)
    references = generator.encode(images(16, 16, 1))
    for level in (1, 3, 8):
        with counted(generator) as calls:
            generator.make(references, wanted((level,)))
        assert len(calls) == generator.level(level).calls == level


@pytest.mark.parametrize("family", ["sd3", "flux"])
def test_images_are_those_of_the_diffusers_pipeline(checkpoint: Folders, family: str) -> None:
    import diffusers

    generator = load(checkpoint(family), match="steps")
    generator.prepare(PROMPTS)
    made = generator.make(generator.encode(images(16, 16)), wanted((80, 80, 80)))

    cls = {"sd3": diffusers.StableDiffusion3Img2ImgPipeline, "flux": diffusers.FluxImg2ImgPipeline}[family]
    missing = {"text_encoder_3": None, "tokenizer_3": None} if family == "sd3" else {}
    pipeline = cls.from_pretrained(checkpoint(family), dtype=torch.float32, **missing)
    pipeline.set_progress_bar_config(disable=True)
    if family == "flux":  # whose shift follows the image; ours stays as it is at the size of training, 256 pixels
        shift = 0.5 + (1.15 - 0.5) * (64**2 - 256) / (4096 - 256)
        changes = {"base_shift": shift, "max_shift": shift}
        pipeline.scheduler = type(pipeline.scheduler).from_config(pipeline.scheduler.config, **changes)
    x = torch.from_numpy(images(16, 16)).permute(0, 3, 1, 2) / 127.5 - 1
    latents = pipeline.vae.encode(x).latent_dist.mode()
    calls = generator.level(80).calls
    expected = pipeline(
        prompt=list(PROMPTS),
        image=(latents.detach() - pipeline.vae.config.shift_factor) * pipeline.vae.config.scaling_factor,
        height=16,
        width=16,
        strength=(calls - 0.5) / 8,
        num_inference_steps=8,
        guidance_scale=3.0,
        generator=[torch.Generator().manual_seed(child_seed(seed, "torch")) for seed in wanted().seeds],
        output_type="np",
    ).images
    assert difference(made.images, np.rint(expected * 255).astype(np.uint8)) <= 1


def test_flow_from_pure_noise_forgets_the_reference(ready: Ready) -> None:
    generator = ready("sd3")
    references = generator.encode(images(16, 16))
    request = Wanted(np.zeros(2), PROMPTS[:1] * 2, np.array([100, 100]), [7, 7])
    one, other = generator.make(references[:2], request).images
    assert difference(one, other) <= 1
    request = Wanted(np.zeros(2), PROMPTS[:1] * 2, np.array([80, 80]), [7, 7])
    one, other = generator.make(references[:2], request).images
    assert difference(one, other) > 5


def test_a_level_is_one_noise_at_every_work_size(ready: Ready) -> None:
    generator = ready("flux")
    for side in (8, 16, 32):  # each call would fail if it started at another timestep
        made = generator.make(generator.encode(images(side, side)), wanted())
        assert made.images.shape == (3, side, side, 3)


def test_latents_are_the_mode_of_the_posterior_scaled(ready: Ready) -> None:
    generator = ready("sd3")
    vae = generator.pipeline.vae
    latents = generator.encode(images(16, 16))
    mode = (latents / vae.config.scaling_factor) + vae.config.shift_factor  # as the pipeline undoes it
    x = torch.from_numpy(images(16, 16)).permute(0, 3, 1, 2) / 127.5 - 1
    torch.testing.assert_close(mode, vae.encode(x).latent_dist.mean)
    assert torch.equal(latents, generator.encode(images(16, 16)))


def test_text_encoders_run_once_a_prompt_and_go(checkpoint: Folders) -> None:
    generator = load(checkpoint("flux"))
    seen: list[Any] = []
    generator.pipeline.text_encoder_2.register_forward_hook(lambda *_: seen.append(1))
    encoders = [weakref.ref(generator.pipeline.text_encoder), weakref.ref(generator.pipeline.text_encoder_2)]
    alive: list[Any] = []
    to = generator.pipeline.to

    def noted(device: torch.device) -> None:
        alive.extend(encoder() for encoder in encoders)
        to(device)

    generator.pipeline.to = noted
    generator.prepare(PROMPTS)
    assert len(seen) == 2  # of three prompts two are different
    assert alive == [None, None]  # when the network went to the device
    generator.prepare(PROMPTS)  # nothing new
    references = generator.encode(images(16, 16))
    with pytest.raises(ValueError, match="prompt 'a photo of bottom' was not prepared; give `prepare`"):
        generator.make(references, wanted(prompts=("a photo of bottom",) * 3))


def test_prompts_may_come_later(checkpoint: Folders) -> None:
    made = []
    for first in (PROMPTS[:1], PROMPTS):
        generator = load(checkpoint("sd"), loras=(str(checkpoint("sd-lora")),))
        generator.prepare(first)
        generator.prepare(PROMPTS)
        assert generator.pipeline.text_encoder is None
        made.append(generator.make(generator.encode(images(16, 16)), wanted((80, 80, 80))).images)
    np.testing.assert_array_equal(*made)


def test_the_prompt_matters(ready: Ready) -> None:
    generator = ready("sd3")
    references = generator.encode(images(16, 16, 1))[[0, 0]]
    request = Wanted(np.zeros(2), PROMPTS[:2], np.array([80, 80]), [3, 3])
    one, other = generator.make(references, request).images
    assert difference(one, other) > 2


def nan_in_one_word(generator: PipelineGenerator) -> Made:
    """Three images, of which the second has a prompt with a word whose embedding is NaN."""
    tokens = generator.pipeline.tokenizer("digit").input_ids
    generator.pipeline.text_encoder.get_input_embeddings().weight.data[tokens[1]] = torch.nan
    generator.prepare(PROMPTS)
    return generator.make(generator.encode(images(16, 16)), wanted((80, 80, 80)))


def test_nan_is_reported_and_leaves_the_others_alone(checkpoint: Folders, ready: Ready) -> None:
    made = nan_in_one_word(load(checkpoint("sd3")))
    assert made.finite.tolist() == [True, False, True]
    assert made.denoised is not None
    assert made.denoised.tolist() == [True, False, True]
    generator = ready("sd3")
    whole = generator.make(generator.encode(images(16, 16)), wanted((80, 80, 80)))
    assert difference(made.images[[0, 2]], whole.images[[0, 2]]) <= 1
    assert made.images[1].max() == 0


def test_infinity_is_reported_though_the_pipeline_clips_it(checkpoint: Folders) -> None:
    generator = load(checkpoint("sd3"))
    generator.prepare(PROMPTS)
    references = generator.encode(images(16, 16))
    generator.pipeline.vae.decoder.conv_out.bias.data[0] = torch.inf
    made = generator.make(references, wanted())
    assert made.finite.tolist() == [False] * 3
    assert made.denoised is not None
    assert made.denoised.tolist() == [True] * 3  # it is the decoder that overflows


def test_a_negative_prompt_changes_images(checkpoint: Folders) -> None:
    for family in ("schnell", "kandinsky22"):
        made = []
        for negative in ("", "a digit"):
            generator = load(checkpoint(family), negative_prompt=negative, guidance_scale=20.0)
            generator.prepare(PROMPTS)
            made.append(generator.make(generator.encode(images(16, 16)), wanted()).images)
        assert difference(*made) > 5, family


def test_a_negative_prompt_that_would_do_nothing_is_refused(checkpoint: Folders) -> None:
    with pytest.raises(ValueError, match="generator flux cannot use a negative prompt: its guidance is embedded"):
        load(checkpoint("flux"), guidance_scale=3.0, negative_prompt="blurry")


def test_without_guidance_a_step_is_one_call(checkpoint: Folders) -> None:
    for family in ("schnell", "kandinsky22"):
        generator = load(checkpoint(family), guidance_scale=1.0)
        generator.prepare(PROMPTS)
        with counted(generator) as calls:
            generator.make(generator.encode(images(16, 16)), wanted((80, 80, 80)))
        assert generator.calls_a_step == 1
        assert sum(calls) == 3 * generator.level(80).calls, family


def test_nothing_draws_from_the_global_stream(checkpoint: Folders) -> None:
    before = torch.random.get_rng_state()
    load(checkpoint("if"))
    load(checkpoint("sd3"), fuse_qkv=True)
    generator = load(checkpoint("lcm"))  # fresh noise at each step
    generator.prepare(PROMPTS)
    generator.make(generator.encode(images(16, 16)), wanted())
    assert torch.equal(torch.random.get_rng_state(), before)


def test_no_watermark_and_no_safety_checker(ready: Ready) -> None:
    assert ready("if").pipeline.watermarker is None
    assert ready("if").pipeline.safety_checker is None
    assert ready("sd").pipeline.safety_checker is None
    assert ready("sdxl").pipeline.watermark is None


def test_half_precision(checkpoint: Folders) -> None:
    generator = load(checkpoint("sd3"), dtype=torch.bfloat16)
    generator.prepare(PROMPTS)
    assert generator.make(generator.encode(images(16, 16)), wanted()).finite.all()


def test_a_lora_changes_images_by_its_scale(checkpoint: Folders, ready: Ready) -> None:
    made = [ready("sd").make(ready("sd").encode(images(16, 16)), wanted((80, 80, 80))).images]
    for scale in ("@0", ""):
        generator = load(checkpoint("sd"), loras=(f"{checkpoint('sd-lora')}{scale}",))
        generator.prepare(PROMPTS)
        made.append(generator.make(generator.encode(images(16, 16)), wanted((80, 80, 80))).images)
    assert difference(made[0], made[1]) <= 1
    assert difference(made[0], made[2]) > 2


def test_fused_projections_change_no_image(checkpoint: Folders, ready: Ready) -> None:
    fused = load(checkpoint("sd3"), fuse_qkv=True)
    fused.prepare(PROMPTS)
    made = [generator.make(generator.encode(images(16, 16)), wanted()).images for generator in (ready("sd3"), fused)]
    assert difference(*made) <= 1


def test_a_compiled_network_sees_few_batch_sizes_and_the_same_comes_back(
    ready: Ready, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = ready("flux")
    made = []
    for compiled in (False, True):
        monkeypatch.setattr(generator, "_compiled", compiled)  # compiling itself takes a minute
        with counted(generator) as calls:
            made.append(generator.make(generator.encode(images(16, 16)), wanted((80, 80, 80))))
        assert set(calls) == {4 if compiled else 3}
    assert difference(made[0].images, made[1].images) <= 1
    assert made[1].finite.tolist() == [True] * 3


def test_calls_of_one_size_make_each_image_the_same_to_the_bit(checkpoint: Folders) -> None:
    generator = load(checkpoint("sd3"), deterministic=2)
    generator.prepare(PROMPTS)
    references = generator.encode(images(32, 32))
    steps: list[int] = []
    with counted(generator) as calls, counted_steps(steps.append):
        made = generator.make(references, wanted((80, 80, 80)))
    assert set(calls) == {4}  # two images, with and without the prompt
    assert sum(steps) == 3 * generator.level(80).calls
    assert torch.equal(generator.encode(images(32, 32)[2:]), references[2:])
    for row in range(3):
        alone = generator.make(references[[row]], wanted((80, 80, 80)).take(np.array([row])))
        np.testing.assert_array_equal(alone.images[0], made.images[row])


def test_the_network_is_compiled_if_set(checkpoint: Folders, ready: Ready, monkeypatch: pytest.MonkeyPatch) -> None:
    compiled: list[Any] = []
    monkeypatch.setattr(pipeline, "compile_network", compiled.append)
    generator = load(checkpoint("kandinsky22"), compile=True)
    assert compiled == [generator.pipeline.unet]
    assert generator._compiled
    assert generator.digest == ready("kandinsky22").digest


def test_the_autoencoder_sees_one_image_at_a_time(ready: Ready) -> None:
    generator = ready("sd3")
    sizes: list[int] = []
    hooks = [
        part.register_forward_pre_hook(lambda _, inputs: sizes.append(len(inputs[0])))
        for part in (generator.pipeline.vae.encoder, generator.pipeline.vae.decoder)
    ]
    generator.make(generator.encode(images(16, 16)), wanted((80, 80, 80)))
    for hook in hooks:
        hook.remove()
    assert sizes == [1] * 6


@pytest.mark.filterwarnings("ignore:.*upcast_vae")  # what diffusers' own pipeline calls
def test_running_out_of_memory_leaves_sdxls_autoencoder_as_it_was(
    checkpoint: Folders, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = load(checkpoint("sdxl"), dtype=torch.float16)
    generator.prepare(PROMPTS)
    whole = generator.make(generator.encode(images(16, 16)), wanted((80, 80, 80)))

    def full(*_: Any, **__: Any) -> None:
        raise torch.OutOfMemoryError

    for name in ("encode", "decode"):
        with monkeypatch.context() as patch:
            patch.setattr(generator.pipeline.vae, name, full)
            with pytest.raises(torch.OutOfMemoryError):
                generator.make(generator.encode(images(16, 16)), wanted((80, 80, 80)))
        again = generator.make(generator.encode(images(16, 16)), wanted((80, 80, 80)))
        np.testing.assert_array_equal(again.images, whole.images)


def test_the_digest_is_of_all_that_makes_images(
    checkpoint: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generator = load(checkpoint("sd3"))
    digest = generator.digest
    monkeypatch.setattr(pipeline, "_load", lambda *_: generator.pipeline)  # the digest is of the files
    copy = tmp_path / "other name"
    shutil.copytree(checkpoint("sd3"), copy)
    config = json.loads((copy / "transformer" / "config.json").read_text())
    (copy / "transformer" / "config.json").write_text(json.dumps(config | {"_diffusers_version": "0.0"}))
    assert load(copy).digest == digest
    changes: list[dict[str, Any]] = [
        {"steps": 9},
        {"grid": 50},
        {"match": "steps"},
        {"guidance_scale": 2.0},
        {"negative_prompt": "a digit"},
        {"dtype": torch.bfloat16},
    ]
    digests = [load(checkpoint("sd3"), **change).digest for change in changes]
    save_tiny_sd3(copy, seed=1)
    digests.append(load(copy).digest)
    save_tiny_sd3(copy, shift=2.0)
    digests.append(load(copy).digest)
    assert len({digest, *digests}) == 9


def test_name_licence_and_sizes(checkpoint: Folders, ready: Ready, tmp_path: Path) -> None:
    assert ready("sd3").licence == ""
    copy = shutil.copytree(checkpoint("sd3"), tmp_path / "copy")
    (copy / "README.md").write_text("---\nlicense: openrail++\ntags: [x]\n---\nlicense: no\n")
    generator = load(copy)
    assert (generator.name, generator.licence) == ("copy", "openrail++")
    # 16 latents of 2 pixels, patches of 2
    assert (generator.size, generator.multiple, generator.channels) == (32, 4, 3)
    assert (ready("flux").size, ready("flux").multiple) == (256, 4)
    assert (ready("sd3").largest, ready("flux").largest) == (64, 0)  # a table of 16 positions a side, 4 pixels each
    assert (ready("if").size, ready("kandinsky22").size) == (16, 16)


def test_seconds_per_call(ready: Ready) -> None:
    generator = ready("sd3")
    with counted(generator) as calls:
        assert 0 < generator.seconds_per_call(generator.encode(images(16, 16)), wanted()) < 1
    assert sum(calls) == 2 * 3 * generator.level(40).calls * 2  # twice, three images, guided: the shallowest level


def test_steps_off_the_grid_are_refused(checkpoint: Folders) -> None:
    for steps in (0, 101):
        with pytest.raises(
            ValueError, match=f"got {steps} steps, expected 1 to 100 for a grid of 100; change sample.s"
        ):
            load(checkpoint("sd3"), steps=steps)


def test_pickles_are_refused_before_anything_is_loaded(checkpoint: Folders, tmp_path: Path) -> None:
    shutil.copytree(checkpoint("sd3"), tmp_path, dirs_exist_ok=True)
    vae = tmp_path / "vae"
    (vae / "diffusion_pytorch_model.safetensors").rename(vae / "diffusion_pytorch_model.bin")
    with pytest.raises(ValueError, match=r"has vae only as a pickle \(diffusion_pytorch_model.bin\), which is refused"):
        load(tmp_path)


def test_a_missing_part_is_named(checkpoint: Folders, tmp_path: Path) -> None:
    shutil.copytree(checkpoint("sd3"), tmp_path, dirs_exist_ok=True)
    shutil.rmtree(tmp_path / "transformer")
    with pytest.raises(ValueError, match="has no transformer/; copy or save the whole diffusers folder"):
        load(tmp_path)


def test_parts_of_another_pipeline_are_refused_in_one_line(checkpoint: Folders, tmp_path: Path) -> None:
    shutil.copytree(checkpoint("sd3"), tmp_path, dirs_exist_ok=True)
    index = tmp_path / "model_index.json"
    index.write_text(index.read_text().replace('"StableDiffusion3Pipeline"', '"FluxPipeline"'))
    with pytest.raises(ValueError, match=r"^FluxImg2ImgPipeline cannot embed 'a cat' with .* names the pipeline that"):
        load(tmp_path).prepare(["a cat"])


@pytest.mark.parametrize(("family", "part"), [("flux", "text_encoder_2"), ("if", "unet")])
def test_missing_and_broken_weights_are_refused(checkpoint: Folders, tmp_path: Path, family: str, part: str) -> None:
    from safetensors.torch import load_file, save_file

    shutil.copytree(checkpoint(family), tmp_path, dirs_exist_ok=True)
    (file,) = (tmp_path / part).glob("*.safetensors")
    weights = load_file(file)
    name = sorted(weights)[-1]
    if part == "text_encoder_2":
        name = "encoder.final_layer_norm.weight"
    del weights[name]
    save_file(weights, file, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=rf"{part} cannot be loaded \(it lacks 1 weights, such as {name}\); copy or"):
        load(tmp_path)
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(ValueError, match=rf"{part} cannot be loaded \(.*\); copy or download it again"):
        load(tmp_path)


def test_a_part_without_its_files_is_refused(checkpoint: Folders, tmp_path: Path) -> None:
    shutil.copytree(checkpoint("sd3"), tmp_path, dirs_exist_ok=True)
    for file in (tmp_path / "scheduler").iterdir():
        file.unlink()
    with pytest.raises(ValueError, match=r"cannot be loaded \(.*scheduler_config\.json.*\); copy or download it again"):
        load(tmp_path)
