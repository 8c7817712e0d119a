"""Folders that are damaged, odd or hostile: each is one line that names the file, whatever the kind of generator."""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from latebloom.synth.config import GenerateConfig, SampleConfig
from latebloom.synth.generators.find import kind_of
from latebloom.synth.generators.load import load_generator

Damage = Callable[[Path, str], object]  # of a folder, whose network is in the folder of that name

INDEX, SCHEDULER, VAE = "model_index.json", "scheduler/scheduler_config.json", "vae/config.json"
WEIGHTS = "diffusion_pytorch_model.safetensors"
# Of each kind, a family and the folder of its network.
KINDS = {
    "pixel": ("pixel", "unet"),
    "latent": ("sd", "unet"),
    "pipeline": ("sd3", "transformer"),
    "diffusemix": ("instruct", "unet"),
}
EVERY, PROMPTED = tuple(KINDS), ("latent", "pipeline", "diffusemix")


def write(name: str, content: str | bytes) -> Damage:
    data = content if isinstance(content, bytes) else content.encode()
    return lambda folder, net: (folder / name.replace("NET", net)).write_bytes(data)


def edit(name: str, **changes: Any) -> Damage:
    def change(folder: Path, net: str) -> None:
        file = folder / name.replace("NET", net)
        file.write_text(json.dumps(json.loads(file.read_text()) | changes))

    return change


# What is wrong, where NET is the folder of the network; a part of the message; the kinds that it concerns.
FOLDERS: list[tuple[Damage, str, tuple[str, ...]]] = [
    (write(INDEX, '["StableDiffusionPipeline"]'), f"{INDEX} holds a list, expected an object", EVERY),
    (write(INDEX, '"StableDiffusionPipeline"'), f"{INDEX} holds a str, expected an object", EVERY),
    (write(INDEX, "{}"), f"{INDEX} holds nothing", EVERY),
    (write(INDEX, '{"_class_name": '), f"{INDEX} is not valid JSON", EVERY),
    (write(INDEX, b"\xff\xfe\x00"), f"{INDEX} is not valid JSON", EVERY),
    (write(INDEX, "[" * 100_000), f"{INDEX} is not valid JSON", EVERY),
    (edit(INDEX, vae="AutoencoderKL", _class_name=7), "holds 7, which is no pipeline", ("pipeline",)),
    (edit(INDEX, scheduler=["diffusers"]), f'{INDEX} has ["diffusers"] for its scheduler, expected [library', EVERY),
    (edit(INDEX, scheduler=["diffusers", None]), f"{INDEX} has", EVERY),
    (edit(INDEX, scheduler=[1, 2]), f"{INDEX} has [1, 2] for its scheduler", EVERY),
    (edit(INDEX, vae=["diffusers", "NoSuchVAE"]), "NoSuchVAE", PROMPTED),
    (edit(INDEX, vae=["my_pipeline", "MyVAE"]), "MyVAE", PROMPTED),
    (edit(INDEX, scheduler=["os", "system"]), "os.system for its scheduler, expected a class of", ("pipeline",)),
    (edit(INDEX, vae=["diffusers", "OnnxRuntimeModel"]), "needs onnxruntime, not installed", ("pipeline",)),
    (edit(INDEX, vae=[None, None]), "no", PROMPTED),
    (edit(INDEX, transformer=[None, None]), "names no transformer", ("pipeline",)),
    (write("NET/config.json", ""), "NET/config.json is not valid JSON", EVERY),
    (write("NET/config.json", "{}"), "NET/config.json holds nothing", EVERY),
    (write("NET/config.json", "[1]"), "NET/config.json holds a list", EVERY),
    (edit("NET/config.json", sample_size="64"), 'NET/config.json has sample_size "64", expected a number', EVERY),
    (edit("NET/config.json", sample_size=[8, 8, 8]), "NET/config.json has sample_size [8, 8, 8]", EVERY),
    (edit("NET/config.json", in_channels="4"), 'NET/config.json has in_channels "4", expected', EVERY),
    (edit("NET/config.json", num_class_embeds="4"), "NET/config.json has num_class_embeds", ("pixel",)),
    (edit("NET/config.json", norm_num_groups=0, num_layers="one"), "NET cannot be loaded", EVERY),
    (write(SCHEDULER, "{"), f"{SCHEDULER} is not valid JSON", EVERY),
    (write(SCHEDULER, "{}"), f"{SCHEDULER} holds nothing", EVERY),
    (edit(SCHEDULER, trained_betas="0.1"), "scheduler cannot be loaded", ("pixel", "latent", "diffusemix")),
    (edit(SCHEDULER, trained_betas=[2.0, 3.0]), "its betas are not between 0 and 1", ("pixel", "latent", "diffusemix")),
    (edit(SCHEDULER, shift="3"), f"{SCHEDULER} has shift", ("pipeline",)),
    (edit(SCHEDULER, num_train_timesteps="1000"), f"{SCHEDULER} has num_train_timesteps", EVERY),
    (edit(SCHEDULER, prediction_type=["epsilon"]), f"{SCHEDULER} has prediction_type", EVERY),
    (edit(VAE, scaling_factor="0.18"), f"{VAE} has scaling_factor", PROMPTED),
    (edit(VAE, latent_channels="4"), f"{VAE} has latent_channels", PROMPTED),
    (write("text_encoder/config.json", "{"), "text_encoder/config.json", PROMPTED),
    (edit("text_encoder/config.json", hidden_size="32"), "text_encoder", PROMPTED),
    (write("tokenizer/tokenizer.json", "["), "tokenizer cannot be loaded", PROMPTED),
    (write("tokenizer/tokenizer_config.json", "[]"), "tokenizer_config.json", PROMPTED),
    (edit("NET/config.json", quantization_config="4 bits"), "NET/config.json has quantization_config", EVERY),
    (
        edit("NET/config.json", quantization_config={"quant_method": "zigzag"}),
        "NET needs zigzag, not installed; pip install zigzag, or give the model without quantisation",
        EVERY,
    ),
    (write(f"NET/{WEIGHTS}", b"\xff" * 64), "NET", EVERY),
    (write(f"NET/{WEIGHTS}.index.json", '{"weight_map": [1]}'), f"{WEIGHTS}.index.json has no weight_map", EVERY),
    (write("latebloom.json", '{"class_names": 5}'), "latebloom.json has class_names 5", ("pixel", "latent")),
    (write("README.md", "---\na: [b\n---\n"), "README.md cannot be loaded", EVERY),
]


@pytest.fixture(scope="module")
def folders(checkpoint: Callable[[str], Path], save_tiny: Callable[..., Path], tmp_path_factory: Any) -> Any:
    """The sound folder of each kind."""
    pixel = save_tiny(tmp_path_factory.mktemp("odd") / "pixel")
    return {kind: pixel if kind == "pixel" else checkpoint(family) for kind, (family, _) in KINDS.items()}


def load(folder: Path, kind: Any) -> Any:
    """All that a run loads: the generator, and the text encoders, which come with the prompts."""
    config = GenerateConfig(generator=str(folder), kind=kind)
    assert kind_of(config)
    generator = load_generator(config, SampleConfig(steps=4, guidance_scale=1))
    generator.prepare(["a photo"])
    return generator


@pytest.mark.parametrize("chosen", [FOLDERS[::5], pytest.param(FOLDERS, marks=pytest.mark.slow)], ids=["some", "all"])
@pytest.mark.parametrize("kind", KINDS)
def test_an_odd_folder_is_one_line_that_names_it(folders: Any, tmp_path: Path, kind: str, chosen: Any) -> None:
    net = KINDS[kind][1]
    for number, (damage, message, kinds) in enumerate(chosen):
        if kind not in kinds:
            continue
        folder = Path(shutil.copytree(folders[kind], tmp_path / str(number)))
        damage(folder, net)
        for asked in (kind, "auto"):
            with pytest.raises(ValueError) as caught:
                load(folder, asked)
            said = str(caught.value)
            assert str(folder) in said
            assert "\n" not in said
            assert len(said) < 400
            if asked == kind:
                assert message.replace("NET", net) in said
            assert "delete" not in said


def test_code_beside_a_model_is_never_imported(folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = Path(shutil.copytree(folders["pipeline"], tmp_path / "model"))
    for place in (folder, folder / "vae", tmp_path):
        (place / "my_pipeline.py").write_text("raise SystemExit('it ran')")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(folder))
    for source in (["my_pipeline", "MyVAE"], ["diffusers", "my_pipeline"]):
        edit(INDEX, vae=source)(folder, "")
        with pytest.raises(ValueError, match=r"model_index\.json has .*my_pipeline.* for its vae, "):
            load(folder, "pipeline")
    assert "my_pipeline" not in sys.modules


def test_a_missing_package_is_named(folders: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where a part needs a package, the line says so, and not that the folder should be copied again."""
    folder = Path(shutil.copytree(folders["pipeline"], tmp_path / "model"))
    find = importlib.util.find_spec
    absent = {"bitsandbytes", "torchao", "optimum", "optimum.quanto"}
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in absent else find(name))
    for settings, package in [
        ({"load_in_4bit": True}, "bitsandbytes"),
        ({"quant_method": "bitsandbytes", "load_in_8bit": True}, "bitsandbytes"),
        ({"quant_method": "torchao"}, "torchao"),
        ({"quant_method": "quanto"}, "optimum-quanto"),
    ]:
        edit("transformer/config.json", quantization_config=settings)(folder, "")
        message = f"transformer needs {package}, not installed; pip install {package}, or give the model without quant"
        with pytest.raises(ValueError, match=message):
            load(folder, "pipeline")
    edit("transformer/config.json", quantization_config=None)(folder, "")


def test_a_damaged_sentencepiece_model_is_named(folders: Any, tmp_path: Path) -> None:
    """transformers says that tiktoken is missing, which would not help."""
    folder = Path(shutil.copytree(folders["pipeline"], tmp_path / "model"))
    (folder / "tokenizer" / "tokenizer.json").unlink()
    (folder / "tokenizer" / "spiece.model").write_bytes(b"a model")
    edit(INDEX, tokenizer=["transformers", "T5Tokenizer"])(folder, "")
    with pytest.raises(ValueError, match=r"tokenizer cannot be loaded \(spiece.model is no SentencePiece model\)"):
        load(folder, "pipeline")


@pytest.mark.parametrize("kind", KINDS)
def test_infinite_settings_of_a_sampler_are_no_fault(folders: Any, tmp_path: Path, kind: str) -> None:
    """diffusers writes `lambda_min_clipped: -Infinity` with DPM-Solver, and a conversion to PNDM keeps it."""
    folder = Path(shutil.copytree(folders[kind], tmp_path / "model"))
    digests = {load(folder, kind).digest}
    for value in (float("-inf"), float("nan")):
        edit(SCHEDULER, lambda_min_clipped=value)(folder, "")
        digests.add(load(folder, kind).digest)
    assert len(digests) == 3
