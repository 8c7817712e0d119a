import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from single_files import ldm_tensors, original_flux, save_network_alone, save_sd3_file, save_single_file
from tiny_checkpoints import save_tiny_sd, save_tiny_sdxl
from tiny_pipelines import save_tiny_flux, save_tiny_sd3
from torch import nn

from latebloom.data.store import read_json, write_json
from latebloom.synth.config import DiffuseMixConfig, GenerateConfig, SampleConfig
from latebloom.synth.generators.checkpoint import Checkpoint
from latebloom.synth.generators.find import generator_folder, kind_of
from latebloom.synth.generators.folder import digest_files
from latebloom.synth.generators.load import load_generator
from latebloom.synth.generators.single_file import converted, lay_out_shipped
from latebloom.synth.sampling.denoiser import Wanted

CONFIGS = Path(generator_folder.__code__.co_filename).parent / "configs"


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Converted folders are kept in the home of a person."""
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path / "home"


@pytest.fixture(scope="module")
def sd(checkpoint: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The folder of a tiny Stable Diffusion, and the same in one file."""
    return checkpoint("sd"), save_single_file(checkpoint("sd"), tmp_path_factory.mktemp("sd") / "sd.safetensors")


def config(file: Path, base: Path | str = "") -> GenerateConfig:
    return GenerateConfig(generator=str(file), base=str(base))


def tensors_of(folder: Path, part: str) -> dict[str, torch.Tensor]:
    (weights,) = (folder / part).glob("*.safetensors")
    return load_file(weights)


def images_of(generate: GenerateConfig) -> tuple[np.ndarray, str]:
    """Two images by a generator, and its digest."""
    generator = load_generator(generate, SampleConfig(sampler="ddim", grid=10), DiffuseMixConfig())
    prompts = ["a photo of a top", "a photo of a bottom"]
    generator.prepare(prompts)
    references = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3), dtype=np.uint8)
    wanted = Wanted(np.array([0, 1]), prompts, np.array([5, 8]), [1, 2])
    return generator.make(generator.encode(references), wanted).images, generator.digest


def test_a_file_makes_the_images_of_its_folder(sd: tuple[Path, Path]) -> None:
    folder, file = sd
    expected, digest = images_of(GenerateConfig(generator=str(folder)))
    images, same = images_of(config(file, folder))
    np.testing.assert_array_equal(images, expected)
    assert same == digest  # so a run that was begun with the one goes on with the other
    assert load_generator(config(file, folder)).name == "sd.safetensors"
    assert kind_of(config(file, folder)) == "latent"


@pytest.mark.parametrize("family", ["2.x", "sdxl"])
def test_other_families_are_converted_to_what_they_were(family: str, tmp_path: Path) -> None:
    if family == "2.x":
        folder = save_tiny_sd(tmp_path / "folder", prediction_type="v_prediction")
    else:  # diffusers tells the text encoders of a file apart by their widths
        folder = save_tiny_sdxl(tmp_path / "folder", width=24)
    file = save_single_file(folder, tmp_path / "a.safetensors", open_clip=family == "2.x")
    assert Checkpoint.read(converted(file, folder)).contents() == Checkpoint.read(folder).contents()


def test_tensors_keep_their_precision(sd: tuple[Path, Path], tmp_path: Path) -> None:
    folder, file = sd
    tensors = load_file(file)
    for vae, rest, kept in [
        (torch.float16, torch.float16, torch.float16),
        (torch.float32, torch.float16, torch.float16),
        (torch.bfloat16, torch.float8_e4m3fn, torch.float16),  # float16 has all values of such float8
    ]:
        mixed = {k: t.to(vae if k.startswith("first_stage_model.") else rest) for k, t in tensors.items()}
        mixed["alphas_cumprod"] = torch.ones(1000)  # of no network
        mixed["cond_stage_model.transformer.text_model.embeddings.position_ids"] = torch.arange(16)[None]
        save_file(mixed, tmp_path / "a.safetensors")
        out = converted(tmp_path / "a.safetensors", folder)
        assert {t.dtype for t in tensors_of(out, "unet").values()} == {kept}
        assert {t.dtype for t in tensors_of(out, "vae").values()} == {vae}
        in_file = mixed["model.diffusion_model.out.2.weight"].float()
        assert torch.equal(tensors_of(out, "unet")["conv_out.weight"].float(), in_file)


def test_averaged_weights_are_taken_where_a_file_has_both(sd: tuple[Path, Path], tmp_path: Path) -> None:
    folder, file = sd
    tensors = load_file(file)
    unet = {name: tensor for name, tensor in tensors.items() if name.startswith("model.diffusion_model.")}
    averaged = {"model_ema." + "".join(name.split(".")[1:]): tensor / 2 for name, tensor in unet.items()}
    save_file(tensors | averaged, tmp_path / "a.safetensors")
    out, halved = tensors_of(converted(tmp_path / "a.safetensors", folder), "unet"), tensors_of(folder, "unet")
    assert len(averaged) > 100
    assert all(torch.equal(out[name], tensor / 2) for name, tensor in halved.items())


def test_a_file_is_converted_once(
    sd: tuple[Path, Path], tmp_path: Path, home: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    folder, file = sd
    mine = tmp_path / "mine.safetensors"
    shutil.copyfile(file, mine)
    os.utime(mine, (1, 1))
    out = converted(mine, folder)
    assert out.parent == home / ".cache" / "latebloom" / "converted"
    assert capfd.readouterr().err == f"converting {mine} (1.1 MB), once, to {out}\n"
    # The same under another name, and with a base that says the same elsewhere.
    shutil.copytree(folder, tmp_path / "copy")
    assert converted(file, tmp_path / "copy") == out
    assert capfd.readouterr().err == ""
    # Another base, other content.
    scheduler = tmp_path / "copy" / "scheduler" / "scheduler_config.json"
    write_json(scheduler, read_json(scheduler) | {"prediction_type": "v_prediction"})
    other = converted(mine, tmp_path / "copy")
    assert other != out
    assert Checkpoint.read(other).configs["scheduler"]["prediction_type"] == "v_prediction"
    content = bytearray(mine.read_bytes())
    content[-1] ^= 1
    mine.write_bytes(content)
    assert converted(mine, folder) not in (out, other)


def test_what_a_killed_process_left_is_made_again(sd: tuple[Path, Path]) -> None:
    folder, file = sd
    out = converted(file, folder)
    partial = out.with_name(f".{out.name}.abc")
    out.rename(partial)
    shutil.rmtree(partial / "unet")
    assert converted(file, folder) == out
    assert (out / "unet").is_dir()
    assert not partial.exists()


def test_a_full_disk_is_said_before_the_conversion(sd: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda _: SimpleNamespace(free=10))
    with pytest.raises(
        OSError, match=r"no room for sd.safetensors as a diffusers folder: it needs about 1\.1 MB, 10 byt"
    ):
        converted(sd[1], sd[0])


def test_what_is_no_whole_checkpoint_is_refused_by_name(sd: tuple[Path, Path], tmp_path: Path) -> None:
    folder, file = sd
    tensors = load_file(file)
    unet = {name: tensor for name, tensor in tensors.items() if name.startswith("model.")}
    vae = {name: tensor for name, tensor in tensors.items() if name.startswith("first_stage_model.")}
    text = {name: tensor for name, tensor in tensors.items() if name.startswith("cond_stage_model.")}
    whole = "expected UNet or transformer, VAE and text encoders in one file; give the whole checkpoint"
    for found, message in [
        ({"lora_unet_x.lora_up.weight": torch.ones(1)}, "is a LoRA; give it as generate.loras"),
        ({"unet.x.lora_A.weight": torch.ones(1)}, "is a LoRA; give it as generate.loras"),
        (unet | text, f"holds a checkpoint without its VAE, {whole}"),
        (vae | text, f"holds a checkpoint without its UNet or transformer, {whole}"),
        ({k.removeprefix("first_stage_model."): t for k, t in vae.items()}, f"holds only a VAE, {whole}"),
        (tensors | {"model.x.scale_weight": torch.ones(1)}, "is quantised with scales of its own"),
    ]:
        save_file(found, tmp_path / "a.safetensors")
        with pytest.raises(ValueError, match=f"^{tmp_path}/a.safetensors {message}"):
            converted(tmp_path / "a.safetensors", folder)
    # Without a base; with one, the file may be all of its network.
    for found, message in [
        (unet, "a checkpoint without its VAE and text encoders"),
        ({k.removeprefix("model.diffusion_model."): t for k, t in unet.items()}, "only a UNet or transformer"),
        ({"double_blocks.0.x": torch.ones(1)}, "only a UNet or transformer"),
        ({"x": torch.ones(1)}, "no checkpoint that is known here"),
    ]:
        save_file(found, tmp_path / "a.safetensors")
        with pytest.raises(
            ValueError, match=f"holds {message}, {whole}, or set generate.base to the diffusers folder, "
        ):
            converted(tmp_path / "a.safetensors", None)
    for content in (b"", b"{}", b"\x02\0\0\0\0\0\0\0{]", b"\x02\0\0\0\0\0\0\0[]", b"PK\x03\x04" + bytes(999)):
        (tmp_path / "a.safetensors").write_bytes(content)
        with pytest.raises(ValueError, match=r"is no safetensors file, whatever its name; download it again$"):
            converted(tmp_path / "a.safetensors", folder)
    (tmp_path / "a.safetensors").write_bytes(file.read_bytes()[:-1])
    size = file.stat().st_size
    with pytest.raises(ValueError, match=f"has {size - 1} bytes, expected {size}; download it again$"):
        converted(tmp_path / "a.safetensors", folder)


def test_a_base_of_another_model_is_refused_in_one_line(
    sd: tuple[Path, Path], checkpoint: Callable[[str], Path]
) -> None:
    for base in (checkpoint("sdxl"), checkpoint("sd3")):
        with pytest.raises(ValueError, match=f"{sd[1]} cannot be read with the configs of {base} ") as caught:
            converted(sd[1], base)
        assert len(str(caught.value)) < 700
        assert "\n" not in str(caught.value)


# A UNet or transformer alone, and a base with the rest


def without_network(folder: Path, to: Path) -> Path:
    """A copy of a folder that has all weights but those of its UNet or transformer, as they come from the hub."""
    shutil.copytree(folder, to)
    for part in ("unet", "transformer"):
        for file in to.glob(f"{part}/*.safetensors"):
            file.unlink()
    return to


QUICK = (("sd", ""), ("sd3", "model.diffusion_model."))


@pytest.mark.parametrize(
    ("family", "prefix"),
    [
        pytest.param(family, prefix, marks=[] if (family, prefix) in QUICK else pytest.mark.slow)
        for family in ("sd", "sdxl", "sd3", "flux", "schnell", "chroma", "qwen-image", "z-image", "lumina2")
        for prefix in ("", "model.diffusion_model.")
    ],
)
def test_a_network_alone_goes_into_its_base(
    family: str, prefix: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    file = save_network_alone(checkpoint(family), tmp_path / "a.safetensors", prefix=prefix)
    out = converted(file, without_network(checkpoint(family), tmp_path / "base"))
    assert digest_files(out) == digest_files(checkpoint(family))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["sd", "sd3", "flux", "qwen-image", "lumina2"])
def test_a_network_alone_makes_the_images_of_its_folder(
    family: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    file = save_network_alone(checkpoint(family), tmp_path / "a.safetensors")
    expected, digest = images_of(GenerateConfig(generator=str(checkpoint(family))))
    images, same = images_of(config(file, without_network(checkpoint(family), tmp_path / "base")))
    np.testing.assert_array_equal(images, expected)
    assert same == digest


def test_a_network_alone_has_its_own_precision_and_the_rest_takes_no_room(
    sd: tuple[Path, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    base = without_network(sd[0], tmp_path / "base")
    write_json(
        base / "unet" / "config.json", read_json(base / "unet" / "config.json") | {"quantization_config": {"x": 1}}
    )
    file = save_network_alone(sd[0], tmp_path / "a.safetensors")
    save_file({name: tensor.half() for name, tensor in load_file(file).items()}, file)
    out = converted(file, base)
    assert {tensor.dtype for tensor in tensors_of(out, "unet").values()} == {torch.float16}
    assert "quantization_config" not in read_json(out / "unet" / "config.json")  # it was of the other weights
    (vae,) = (out / "vae").glob("*.safetensors")
    assert vae.samefile(base / "vae" / vae.name)
    # Where there can be no link: on another disk.
    shutil.rmtree(out)
    capfd.readouterr()
    monkeypatch.setattr("os.link", lambda *_: (_ for _ in ()).throw(OSError("on another device")))
    assert converted(file, base) == out
    assert not vae.samefile(base / "vae" / vae.name)
    assert vae.read_bytes() == (base / "vae" / vae.name).read_bytes()
    size = sum(path.stat().st_size for part in ("vae", "text_encoder") for path in base.glob(f"{part}/*.safetensors"))
    assert f", with {size / 1000:.1f} kB of {base}, once, to {out}\n" in capfd.readouterr().err


def test_a_base_of_other_weights_is_another_generator(sd: tuple[Path, Path], tmp_path: Path) -> None:
    base = without_network(sd[0], tmp_path / "base")
    file = save_network_alone(sd[0], tmp_path / "a.safetensors")
    out = converted(file, base)
    vae = base / "vae" / "diffusion_pytorch_model.safetensors"
    halved = {name: tensor / 2 for name, tensor in load_file(vae).items()}
    vae.unlink()  # what a link leads to stays
    save_file(halved, vae, metadata={"format": "pt"})
    other = converted(file, base)
    assert digest_files(out) == digest_files(sd[0])
    assert all(torch.equal(tensor, halved[name]) for name, tensor in tensors_of(other, "vae").items())


def test_a_base_that_does_not_fit_a_network_is_refused(checkpoint: Callable[[str], Path], tmp_path: Path) -> None:
    file = tmp_path / "a.safetensors"
    for of, base, message in [
        ("flux", "schnell", r"\(has other 4 weights, such as time_text_embed.guidance_embedder.linear_1.bias"),
        ("schnell", "flux", r"\(lacks 4 weights, such as time_text_embed.guidance_embedder.linear_1.bias"),
        ("sd", "sd3", r"\(lacks "),
        ("sd3", "sd", r"\(lacks "),
        ("sd", "pixart-alpha", r"\(diffusers reads no PixArtTransformer2DModel from one file"),
    ]:
        save_network_alone(checkpoint(of), file)
        with pytest.raises(ValueError, match=f"^{file} cannot be read with the configs of .*{message}") as caught:
            converted(file, checkpoint(base))
        assert "\n" not in str(caught.value)
    bare = shutil.copytree(checkpoint("schnell"), tmp_path / "bare", ignore=shutil.ignore_patterns("*.safetensors"))
    save_network_alone(checkpoint("schnell"), file)
    with pytest.raises(
        ValueError, match=rf"holds only a UNet or transformer, and generate\.base, {bare}, has none of its"
    ):
        converted(file, bare)


@pytest.mark.slow
def test_flux_is_read_in_the_layout_of_its_authors(tmp_path: Path) -> None:
    from diffusers import FluxTransformer2DModel

    base = save_tiny_flux(tmp_path / "base")
    settings = {"num_attention_heads": 24, "attention_head_dim": 128, "axes_dims_rope": [16, 56, 56]}
    settings = read_json(base / "transformer" / "config.json") | settings
    write_json(base / "transformer" / "config.json", settings)
    with torch.device("meta"):
        shapes = FluxTransformer2DModel.from_config(settings).state_dict()
    state = {name: (torch.arange(t.numel()) % 251).reshape(t.shape).bfloat16() for name, t in shapes.items()}
    tensors = {f"model.diffusion_model.{name}": tensor for name, tensor in original_flux(state).items()}
    save_file(tensors, tmp_path / "a.safetensors")
    found = tensors_of(converted(tmp_path / "a.safetensors", base), "transformer")
    assert found.keys() == state.keys()
    assert all(torch.equal(found[name], tensor) for name, tensor in state.items())


# A whole Stable Diffusion 3


@pytest.mark.parametrize("t5", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_sd3_is_converted_to_what_it_was(t5: bool, tmp_path: Path) -> None:
    folder = save_tiny_sd3(tmp_path / "folder", t5=t5, width=24)
    encoder = folder / "text_encoder" / "model.safetensors"
    # The projection of CLIP-L is in no such file: diffusers takes the identity.
    save_file(load_file(encoder) | {"text_projection.weight": torch.eye(24)}, encoder, metadata={"format": "pt"})
    out = converted(save_sd3_file(folder, tmp_path / "a.safetensors"), folder)
    assert digest_files(out) == digest_files(folder)


# Without a base: the shipped configs


def networks(family: str) -> dict[str, nn.Module]:
    """The networks of shipped configs, without memory for their weights."""
    import diffusers
    import transformers

    found = {}
    for part, source in read_json(CONFIGS / family / "model_index.json").items():
        settings = CONFIGS / family / part / "config.json"
        if settings.is_file():
            kind = getattr(diffusers if source[0] == "diffusers" else transformers, source[1])
            with torch.device("meta"):
                if source[0] == "diffusers":
                    found[part] = kind.from_config(read_json(settings))
                else:
                    found[part] = kind(kind.config_class.from_json_file(settings))
    return found


def sparse_file(file: Path, tensors: dict[str, torch.Tensor], filled: dict[str, np.ndarray], **metadata: str) -> Path:
    """A file of float16 tensors of these shapes, all zero but some: it takes no room on a disk."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, tensor in tensors.items():
        begin, end = end, end + 2 * tensor.numel()
        header[name] = {"dtype": "F16", "shape": list(tensor.shape), "data_offsets": [begin, end]}
    text = json.dumps(header).encode()
    with file.open("wb") as opened:
        opened.write(len(text).to_bytes(8, "little") + text)
        opened.truncate(8 + len(text) + end)
        for name, values in filled.items():
            opened.seek(8 + len(text) + header[name]["data_offsets"][0])
            opened.write(values.astype(np.float16).tobytes())
    return file


# How many weights the models have as they were published.
VAE = 83_653_863
WEIGHTS = {
    "sd1": {"unet": 859_520_964, "vae": VAE, "text_encoder": 123_060_480},
    "sd2": {"unet": 865_910_724, "vae": VAE, "text_encoder": 340_387_840},
    "sdxl": {"unet": 2_567_463_684, "vae": VAE, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840},
}
NORM = "model.diffusion_model.output_blocks.11.1.transformer_blocks.0.norm1.bias"


@pytest.mark.parametrize(
    "family", ["sd1", pytest.param("sd2", marks=pytest.mark.slow), pytest.param("sdxl", marks=pytest.mark.slow)]
)
def test_shipped_configs_are_of_the_published_models(family: str, tmp_path: Path) -> None:
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint, convert_ldm_vae_checkpoint

    made = networks(family)
    assert {part: sum(p.numel() for p in network.parameters()) for part, network in made.items()} == WEIGHTS[family]
    parts = {part: network.state_dict() for part, network in made.items()}
    configs = {part: dict(network.config) if part in ("unet", "vae") else {} for part, network in made.items()}
    tensors = ldm_tensors(parts, configs, open_clip=family == "sd2")
    # diffusers finds in such a file just what the networks hold.
    for part, convert in [("unet", convert_ldm_unet_checkpoint), ("vae", convert_ldm_vae_checkpoint)]:
        found = convert(dict(tensors), configs[part])
        assert {name: t.shape for name, t in found.items()} == {name: t.shape for name, t in parts[part].items()}

    def scheduler(filled: dict[str, np.ndarray], marks: tuple[str, ...] = (), **metadata: str) -> tuple[Any, ...]:
        marked = tensors | dict.fromkeys(marks, torch.empty(1))
        file = sparse_file(tmp_path / "a.safetensors", marked, filled, **metadata)
        out = tmp_path / f"out-{len(list(tmp_path.iterdir()))}"
        lay_out_shipped(file, out)
        found = read_json(out / "scheduler" / "scheduler_config.json")
        size = read_json(out / "unet" / "config.json")["sample_size"]
        return found["prediction_type"], found.get("rescale_betas_zero_snr", False), size

    size = {"sd1": 64, "sd2": 64, "sdxl": 128}[family]
    at_768 = 96 if family == "sd2" else size
    assert scheduler({}) == ("epsilon", False, size)
    assert scheduler({}, **{"modelspec.prediction_type": "v"}) == ("v_prediction", False, at_768)
    assert scheduler({}, ("v_pred", "ztsnr"))[:2] == (("epsilon", False) if family == "sd2" else ("v_prediction", True))
    if family == "sd2":
        wide = np.tile([0.1, -0.1], tensors[NORM].numel() // 2)  # a standard deviation of 0.1
        assert scheduler({NORM: wide}) == ("v_prediction", False, 96)
        assert scheduler({NORM: wide}, **{"modelspec.prediction_type": "epsilon"}) == ("epsilon", False, 64)


@pytest.mark.parametrize("family", WEIGHTS)
def test_the_shipped_words_are_those_of_clip(family: str, tmp_path: Path) -> None:
    from transformers import CLIPTokenizer

    marks = {
        "sd1": {"output_blocks.11.0.skip_connection.weight": (1,)},
        "sd2": {"input_blocks.2.1.transformer_blocks.0.attn2.to_k.weight": (1, 1024)},
        "sdxl": {},
    }[family]
    tensors = {f"model.diffusion_model.{name}": torch.empty(shape) for name, shape in marks.items()}
    if family == "sdxl":
        tensors["conditioner.embedders.1.model.transformer.resblocks.9.mlp.c_proj.bias"] = torch.empty(1)
    lay_out_shipped(sparse_file(tmp_path / "a.safetensors", tensors, {}), tmp_path / "out")
    for part in ("tokenizer", "tokenizer_2") if family == "sdxl" else ("tokenizer",):
        tokenizer = CLIPTokenizer.from_pretrained(tmp_path / "out" / part)
        ids = tokenizer("a photo of a cat", padding="max_length", max_length=tokenizer.model_max_length).input_ids
        assert ids[:7] == [49406, 320, 1125, 539, 320, 2368, 49407]
        padding = 0 if family == "sd2" or part == "tokenizer_2" else 49407  # OpenCLIP pads with 0, which is "!"
        assert ids[7:] == [padding] * 70
        assert len(tokenizer) == 49408
        # A letter outside of ASCII is two bytes.
        assert tokenizer.decode(tokenizer("naïve café", add_special_tokens=False).input_ids) == "naïve café"


def test_a_family_without_shipped_configs_is_named_with_what_converts_it(tmp_path: Path) -> None:
    rest = {"first_stage_model.x": torch.empty(1), "cond_stage_model.x": torch.empty(1)}
    flux = {
        f"model.diffusion_model.{name}": torch.empty(1)
        for name in ("double_blocks.0.img_attn.norm.key_norm.scale", "img_in.weight")
    }
    file = tmp_path / "it's.safetensors"
    save_file(flux | rest, file)
    with pytest.raises(ValueError, match="is of the family flux-schnell, whose configs are not shipped") as caught:
        converted(file, None)
    lines = str(caught.value).rpartition("or convert it: ")[2]
    assert (
        lines
        == f"from diffusers import FluxPipeline; FluxPipeline.from_single_file({str(file)!r}).save_pretrained('FOLDER')"
    )
    compile(lines, "lines", "exec")
    assert "generate.base" in str(caught.value)
    upscale = {"model.diffusion_model.input_blocks.10.0.skip_connection.bias": torch.empty(1)}
    save_file(upscale | rest, file)
    with pytest.raises(ValueError, match="is of the family upscale, expected a text-to-image model"):
        converted(file, None)
    save_file({"model.diffusion_model.x": torch.empty(1)} | rest, file)
    with pytest.raises(ValueError, match=r"is of no family that diffusers recognises; set generate\.base"):
        converted(file, None)
