"""The model families, each with a tiny checkpoint, from the command line; docs/generators.md has what comes of each.

`PYTHONPATH=tests/support python tests/synth/generators/test_families.py` prints that part of the page again.
"""

import contextlib
import dataclasses
import functools
import importlib.util
import inspect
import io
import json
import os
import shutil
import sys
import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pyarrow.parquet as pq
import pytest
import tiny_checkpoints
import tiny_families
import tiny_pipelines
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from single_files import save_network_alone, save_sd3_file, save_single_file
from tiny_instruct import save_tiny_instruct
from tiny_transformers import save_tiny_transformer

from latebloom.data.seeds import child_seed
from latebloom.synth.config import GenerateConfig
from latebloom.synth.generators.find import kind_of
from latebloom.synth.generators.pipeline import PipelineGenerator
from latebloom.synth.sampling.denoiser import Wanted

PAGE = Path(__file__).parents[3] / "docs" / "generators.md"
Folders = Callable[[str], Path]
Save = Callable[[Path], object]


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of models of which some can be run.

    Attributes:
        save: makes a tiny checkpoint in a folder that is not there yet.
        single: makes a file of such a folder, as model sites have it; None: they have none.
        work_size: the side that it is tried at.
        settings: of the command, beside those of all.
    """

    name: str
    save: Save
    single: Callable[[Path, Path], object] | None = None
    work_size: int = 16
    settings: tuple[str, ...] = ()


def save_tiny_pixel(folder: Path) -> None:
    """A class-conditional UNet for the two classes of `pictures`."""
    from diffusers import DDPMPipeline, DDPMScheduler, UNet2DModel

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        unet = UNet2DModel(
            sample_size=16,
            layers_per_block=1,
            block_out_channels=(16, 32),
            down_block_types=("DownBlock2D", "DownBlock2D"),
            up_block_types=("UpBlock2D", "UpBlock2D"),
            norm_num_groups=8,
            add_attention=False,
            num_class_embeds=3,
        )
    DDPMPipeline(unet, DDPMScheduler()).save_pretrained(folder)
    (folder / "latebloom.json").write_text(json.dumps({"class_names": ["cat", "dog"]}))


def transformer(family: str) -> Save:
    return functools.partial(save_tiny_transformer, family=family)


FAMILIES = (
    Family("`UNet2DModel` with classes", save_tiny_pixel),
    Family("Stable Diffusion 1.x", tiny_checkpoints.save_tiny_sd, save_single_file),
    Family(
        "Stable Diffusion 2.x (v-prediction)",
        functools.partial(tiny_checkpoints.save_tiny_sd, prediction_type="v_prediction"),
        functools.partial(save_single_file, open_clip=True),
    ),
    # diffusers tells the text encoders of a file apart by their widths
    Family("SDXL, SDXL-Turbo", functools.partial(tiny_checkpoints.save_tiny_sdxl, width=24), save_single_file),
    Family("LCM", tiny_checkpoints.save_tiny_lcm, settings=("--sampling", "fast")),
    Family("InstructPix2Pix", save_tiny_instruct, save_single_file),
    Family("DiT", transformer("dit"), settings=("--set", "generate.classes=order")),
    *(
        Family(name, transformer(key), save_network_alone if key in ("sana", "auraflow", "lumina2") else None)
        for name, key in {
            "PixArt-α": "pixart-alpha",
            "PixArt-Σ": "pixart-sigma",
            "Sana": "sana",
            "AuraFlow": "auraflow",
            "Lumina 2": "lumina2",
            "CogView 3 Plus": "cogview3",
            "HunyuanDiT": "hunyuan",
        }.items()
    ),
    Family("Stable Diffusion 3", functools.partial(tiny_pipelines.save_tiny_sd3, t5=True, width=24), save_sd3_file),
    Family("Stable Diffusion 3 without T5", functools.partial(tiny_pipelines.save_tiny_sd3, width=24), save_sd3_file),
    Family("Flux dev", tiny_pipelines.save_tiny_flux, save_network_alone),
    Family("Flux schnell", functools.partial(tiny_pipelines.save_tiny_flux, guidance_embeds=False), save_network_alone),
    Family("Chroma", tiny_families.save_tiny_chroma, save_network_alone),
    Family("Qwen-Image", tiny_families.save_tiny_qwen_image, save_network_alone),
    Family("Z-Image", tiny_families.save_tiny_z_image, save_network_alone),
    Family("Sana-Sprint", tiny_families.save_tiny_sana_sprint, save_network_alone, work_size=32),
    Family("Kolors", tiny_families.save_tiny_kolors),
    Family("Kandinsky 2.2, prior and decoder", tiny_pipelines.save_tiny_kandinsky22),
    Family("Kandinsky 3", tiny_families.save_tiny_kandinsky3),
    Family("DeepFloyd IF, first stage", tiny_pipelines.save_tiny_if),
)


def index_alone(name: str, **index: Any) -> Save:
    """A folder that is refused by its model_index.json."""

    def save(folder: Path) -> None:
        folder.mkdir()
        (folder / "model_index.json").write_text(json.dumps({"_class_name": name} | index))

    return save


def changed_sd(name: str, *, channels: int = 4, **parts: str) -> Save:
    """A folder of Stable Diffusion whose UNet has more inputs, or that has more parts."""

    def save(folder: Path) -> None:
        tiny_checkpoints.save_tiny_sd(folder)
        for file, changes in (
            ("model_index.json", {"_class_name": name} | {part: ["diffusers", kind] for part, kind in parts.items()}),
            ("unet/config.json", {"in_channels": channels}),
        ):
            (folder / file).write_text(json.dumps(json.loads((folder / file).read_text()) | changes))

    return save


# Each with the name of its pipeline where the message has that.
REFUSED: dict[str, tuple[Save, str]] = {
    name: (index_alone(kind), kind)
    for name, kind in {
        "Flux Kontext": "FluxKontextPipeline",
        "Flux Fill": "FluxFillPipeline",
        "Flux 2": "Flux2Pipeline",
        "Flux 2 Klein": "Flux2KleinPipeline",
        "Qwen-Image-Edit": "QwenImageEditPipeline",
        "DeepFloyd IF, second stage": "IFSuperResolutionPipeline",
        "CogView 4": "CogView4Pipeline",
        "Lumina 1": "LuminaPipeline",
        "Stable Cascade": "StableCascadeCombinedPipeline",
        "Würstchen": "WuerstchenCombinedPipeline",
        "HiDream": "HiDreamImagePipeline",
        "OmniGen": "OmniGenPipeline",
        "Kandinsky 2.1": "KandinskyCombinedPipeline",
        "Kandinsky 2.2, decoder alone": "KandinskyV22Pipeline",
        "unCLIP of Stable Diffusion 2.1": "StableUnCLIPPipeline",
        "aMUSEd": "AmusedPipeline",
    }.items()
} | {
    "SDXL refiner": (
        index_alone(
            "StableDiffusionXLImg2ImgPipeline",
            requires_aesthetics_score=True,
            unet=["diffusers", "UNet2DConditionModel"],
        ),
        "",
    ),
    "inpainting": (changed_sd("StableDiffusionInpaintPipeline", channels=9), ""),
    "depth to image": (changed_sd("StableDiffusionDepth2ImgPipeline", channels=5, depth_estimator="X"), ""),
    "ControlNet": (changed_sd("StableDiffusionControlNetPipeline", controlnet="ControlNetModel"), ""),
    "x4 upscaler": (changed_sd("StableDiffusionUpscalePipeline", channels=7, low_res_scheduler="DDPMScheduler"), ""),
}


def pictures(folder: Path) -> Path:
    """Two classes of three training pictures and one test picture, of 16x16."""
    rng = np.random.default_rng(0)
    for label in ("cat", "dog"):
        for name in ("train/{}/a", "train/{}/b", "train/{}/c", "test/{}/d"):
            file = folder / f"{name.format(label)}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(rng.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    return folder


def command(home: Path, *words: str | Path) -> tuple[int, str]:
    """`latebloom WORDS...` in this process: its exit code and what it wrote to standard error.

    Args:
        home: where it keeps what it converts.
    """
    from latebloom.flows.cli import app

    said = io.StringIO()
    with (
        mock.patch.object(app, "prepare_prefect"),  # it changes the environment
        mock.patch.object(sys, "argv", ["latebloom", *map(str, words)]),
        mock.patch.dict(os.environ, {"COLUMNS": "200", "HOME": str(home)}),
        contextlib.redirect_stderr(said),
        contextlib.redirect_stdout(io.StringIO()),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            app.main()
        except SystemExit as end:
            return int(end.code or 0), said.getvalue()
    return 0, said.getvalue()


def outcome(generator: Path, root: Path, work_size: int = 16, settings: tuple[str, ...] = ()) -> str:
    """What comes of generating with a folder or a file: empty where it works, or the line that refuses it."""
    source = pictures(root / "pictures")
    (root / "slow.txt").write_text("0\n4\n")
    run = Path(tempfile.mkdtemp(dir=root))
    words: list[str | Path] = ["generate", source, "--out", run, "--indices", root / "slow.txt", "--k", "2"]
    words += ["--generator", generator, "--model", "small-cnn", "--set", "sample.steps=8"]
    code, said = command(root, *words, "--work-size", str(work_size), *settings)
    if code:
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        what = "FILE" if generator.is_file() else "FOLDER"
        return line.removeprefix("error: ").replace(str(generator), what).replace(str(root / "generator"), "FOLDER")
    states = pq.read_table(run / "synthetic" / "part-00000.parquet", columns=["state"])["state"].to_pylist()
    assert len(states) == 2
    assert not {"nan", "flat"} & set(states)
    return ""


def half_only(folder: Path, to: Path) -> Path:
    """A copy of a folder that has its weights as fp16 files alone, as `save_pretrained(..., variant="fp16")` writes."""
    shutil.copytree(folder, to)
    for file in to.glob("*/*.safetensors"):
        weights = {key: value.half() if value.is_floating_point() else value for key, value in load_file(file).items()}
        save_file(weights, file.with_name(f"{file.stem}.fp16.safetensors"), metadata={"format": "pt"})
        file.unlink()
    return to


def described(family: Family, root: Path) -> tuple[str, dict[str, str]]:
    """The line of the page about a family, which is made in `root`; and what is refused of it, with the line."""
    folder = root / "generator"
    family.save(folder)
    kind = kind_of(GenerateConfig(generator=str(folder)))
    driver = "its diffusers pipeline" if kind in ("pipeline", "diffusemix") else "our loop"
    cells = []
    refused = {}
    forms = [(folder, family.settings, ""), (half_only(folder, root / "half"), family.settings, " in fp16 alone")]
    if family.single:
        family.single(folder, root / "model.safetensors")
        base = ("--set", f"generate.base={folder}")
        forms.append((root / "model.safetensors", (*family.settings, *base), " as one file"))
    for generator, settings, form in forms:
        line = outcome(generator, root, family.work_size, settings)
        cells.append("refused" if line else "works")
        if line:
            refused[family.name + form] = line
    cells += ["–" for _ in range(3 - len(cells))]
    return f"| {family.name} | `{kind}` | {driver} | {' | '.join(cells)} |", refused


def refusal(name: str, root: Path) -> str:
    """The line that refuses a family."""
    save, kind = REFUSED[name]
    save(root / "generator")
    return outcome(root / "generator", root).replace(f"a {kind}:", "a NAME:")


def lines_about(name: str) -> list[str]:
    """The lines of the page's second table that have a name in their first column."""
    rows = [line.strip("|").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    return [row[1].strip() for row in rows if len(row) == 2 and name in row[0].strip().split("; ")]


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_a_family_does_what_its_row_says(family: Family, tmp_path: Path) -> None:
    line, refused = described(family, tmp_path)
    assert line in PAGE.read_text().splitlines()
    for what, why in refused.items():
        assert lines_about(what) == [why]


@pytest.mark.slow
@pytest.mark.parametrize("name", REFUSED)
def test_a_family_is_refused_with_its_line(name: str, tmp_path: Path) -> None:
    assert lines_about(name) == [refusal(name, tmp_path)]


def test_the_page_has_these_families_and_no_others() -> None:
    rows = [line.strip("|").split(" | ") for line in PAGE.read_text().splitlines() if line.startswith("| ")]
    named = [row[0].strip() for row in rows if len(row) == 6]
    assert named[1:] == [family.name for family in FAMILIES]
    for name in REFUSED:
        assert len(lines_about(name)) == 1


def load(folder: Path) -> PipelineGenerator:
    return PipelineGenerator.load(
        folder, torch.device("cpu"), dtype=torch.float32, grid=100, steps=8, match="steps", guidance_scale=3.0
    )


# Tokenizers that SentencePiece wrote


@pytest.mark.parametrize(
    ("family", "part", "end"), [("if", "tokenizer", [1]), ("flux", "tokenizer_2", [1]), ("kolors", "tokenizer", [])]
)
def test_tokens_are_those_of_sentencepiece(checkpoint: Folders, family: str, part: str, end: list[int]) -> None:
    import sentencepiece

    (file,) = (checkpoint(family) / part).glob("*.model")
    oracle = sentencepiece.SentencePieceProcessor(model_file=str(file))
    tokenizer = getattr(load(checkpoint(family)).pipeline, part)
    for text in ("a photo of the digit", "A  Photo", "top", "ß, bottom!"):
        assert tokenizer(text, add_special_tokens=bool(end)).input_ids == oracle.encode(text) + end


def test_t5s_tokenizer_is_the_same_from_either_of_its_files(checkpoint: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("flux"), tmp_path / "flux")
    made = []
    for left_out in ("spiece.model", "tokenizer.json"):
        shutil.copytree(checkpoint("flux") / "tokenizer_2", folder / "tokenizer_2", dirs_exist_ok=True)
        (folder / "tokenizer_2" / left_out).unlink()
        made.append(load(folder).pipeline.tokenizer_2("a photo of the bottom", padding="max_length", max_length=40))
    assert made[0] == made[1]


@pytest.mark.parametrize(
    ("family", "module", "package"),
    [
        ("if", "sentencepiece", "sentencepiece"),
        ("if", "google.protobuf", "protobuf"),
        ("kolors", "sentencepiece", "sentencepiece"),
    ],
)
def test_a_package_that_is_not_there_is_named(
    checkpoint: Folders, family: str, module: str, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = checkpoint(family)
    find = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == module else find(name))
    with pytest.raises(ValueError, match=rf"/{family}/tokenizer/\w+.model needs .*; pip install {package}$"):
        load(folder)


# Parts that a folder does not have


def changed_index(folder: Path, to: Path, changes: dict[str, Any], gone: tuple[str, ...] = ()) -> Path:
    """A copy of a folder with another model_index.json, without some keys."""
    shutil.copytree(folder, to)
    index = json.loads((to / "model_index.json").read_text()) | changes
    (to / "model_index.json").write_text(json.dumps({key: index[key] for key in index if key not in gone}))
    return to


def test_stable_diffusion_3_does_without_t5_where_its_index_does_not_name_it(
    checkpoint: Folders, tmp_path: Path
) -> None:
    folder = changed_index(checkpoint("sd3"), tmp_path / "gone", {}, ("text_encoder_3", "tokenizer_3"))
    assert load(folder).digest == load(checkpoint("sd3")).digest


def test_a_part_that_a_pipeline_needs_is_named(checkpoint: Folders, tmp_path: Path) -> None:
    folder = changed_index(checkpoint("flux"), tmp_path / "flux", {"text_encoder_2": [None, None]}, ("tokenizer_2",))
    with pytest.raises(ValueError, match=r"json names no text_encoder_2, tokenizer_2, which FluxIm"):
        load(folder)
    folder = changed_index(checkpoint("sd3"), tmp_path / "sd3", {"text_encoder_3": None})
    with pytest.raises(ValueError, match=r"model_index.json has null for its text_encoder_3, expected \[null, null\]"):
        load(folder)


def test_an_autoencoder_may_have_no_size(checkpoint: Folders, tmp_path: Path) -> None:
    folder = shutil.copytree(checkpoint("flux"), tmp_path / "flux")
    config = json.loads((folder / "vae" / "config.json").read_text())
    (folder / "vae" / "config.json").write_text(json.dumps(config | {"sample_size": None}))
    assert load(folder).size == load(checkpoint("flux")).size


# The same images as from diffusers

SLOW = [pytest.param(name, marks=pytest.mark.slow) for name in ("sd3-t5", "chroma", "qwen-image", "z-image")]
SLOW += [pytest.param(name, marks=pytest.mark.slow) for name in ("sana-sprint", "kandinsky22", "kandinsky3", "if")]
IMAGE_TO_IMAGE = {
    "kolors": "KolorsImg2ImgPipeline",
    "sd3-t5": "StableDiffusion3Img2ImgPipeline",
    "chroma": "ChromaImg2ImgPipeline",
    "qwen-image": "QwenImageImg2ImgPipeline",
    "z-image": "ZImageImg2ImgPipeline",
    "sana-sprint": "SanaSprintImg2ImgPipeline",
    "kandinsky22": "KandinskyV22Img2ImgCombinedPipeline",
    "kandinsky3": "Kandinsky3Img2ImgPipeline",
    "if": "IFImg2ImgPipeline",
}
# Whose steps are strength * steps rounded down; the others round up.
ROUNDED_DOWN = ("kolors", "kandinsky22", "kandinsky3", "if")
# How a guidance of 3 is asked for, where not by its name.
GUIDANCE = {
    "z-image": {"guidance_scale": 2.0},
    "qwen-image": {"true_cfg_scale": 3.0, "negative_prompt": [" "] * 3},
}
ARGUMENTS = {
    "sana-sprint": {"use_resolution_binning": False, "clean_caption": False, "intermediate_timesteps": None},
    "if": {"clean_caption": False},
}


@pytest.mark.filterwarnings("ignore:.callback_steps:FutureWarning")  # Kandinsky's combined pipeline of its own parts
@pytest.mark.parametrize("family", ["kolors", *SLOW])
def test_images_are_those_of_the_diffusers_pipeline_that_is_given_the_texts(checkpoint: Folders, family: str) -> None:
    import diffusers

    prompts = ("a photo of top", "the digit", "a photo of top")
    if family == "kandinsky3":  # its images depend on the longest text of the call
        prompts = prompts[:1] * 3
    pixels = np.random.default_rng(0).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
    seeds = [1, 2, 2**62 + 2]
    generator = load(checkpoint(family))
    generator.prepare(prompts)
    references = generator.encode(pixels)
    made = generator.make(references, Wanted(np.arange(3), prompts, np.array([80] * 3), seeds)).images
    assert generator.level(80).calls == 6

    cls: Any = getattr(diffusers, IMAGE_TO_IMAGE[family])
    pipeline = cls.from_pretrained(checkpoint(family), dtype=torch.float32)
    pipeline.set_progress_bar_config(disable=True)
    image = references if references.is_floating_point() else references / 255
    accepted = inspect.signature(cls.__call__).parameters
    sides = {name: 32 for name in ("height", "width") if name in accepted}
    expected = pipeline(
        prompt=list(prompts),
        image=image * 2 - 1 if family == "if" else image,
        strength=6.5 / 8 if family in ROUNDED_DOWN else 5.5 / 8,
        num_inference_steps=8,
        generator=[torch.Generator().manual_seed(child_seed(seed, "torch")) for seed in seeds],
        output_type="np",
        **GUIDANCE.get(family, {"guidance_scale": 3.0}),
        **ARGUMENTS.get(family, {}),
        **sides,
    )[0]
    assert np.abs(made - np.rint(expected * 255)).max() <= 1


def print_page() -> None:
    """What the page has between its headings "What loads" and the next."""
    torch.set_num_threads(1)
    print("| family | kind | driven by | folder | fp16 alone | one file |\n|---|---|---|---|---|---|")
    refused: dict[str, str] = {}
    for family in FAMILIES:
        with tempfile.TemporaryDirectory() as root:
            line, more = described(family, Path(root))
        print(line)
        refused |= more
    for name in REFUSED:
        with tempfile.TemporaryDirectory() as root:
            refused[name] = refusal(name, Path(root))
    print("\n| refused | with the line |\n|---|---|")
    for line in dict.fromkeys(refused.values()):
        print(f"| {'; '.join(name for name, own in refused.items() if own == line)} | {line} |")


if __name__ == "__main__":
    print_page()
