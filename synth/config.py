"""What can be set of generation: plan, sampling, generator, sizes, prompts, scores. Light to import: pydantic alone."""

from typing import Annotated, Literal

import pydantic
from pydantic import Field, StringConstraints

__all__ = [
    "RELEASED_PROMPTS",
    "DiffuseMixConfig",
    "Filter",
    "GenerateConfig",
    "GeneratorConfig",
    "Kind",
    "Match",
    "PlanConfig",
    "PromptConfig",
    "QualityConfig",
    "SampleConfig",
    "Sampler",
    "ScoreConfig",
    "SizeConfig",
    "paper_levels",
]


# Denoising steps of 100 in the order in which they join as k grows. The first 1, 3 and 4 are those of paper 2505.21574
# (App. F.1, Table 4) for k = 2, 4 and 5. It names none for other k.
_LEVEL_ORDER = (50, 70, 80, 40)


def paper_levels(k: int, grid: int) -> tuple[int, ...]:
    """k - 1 levels, ascending, on a grid of `grid` steps: (40, 50, 70, 80) of 100 for k = 5, (8, 10, 14, 16) of 20.

    The paper's for k = 2, 4 and 5. The rule for every k: levels join in the order 50, 70, 80, 40 of 100, and then again
    from the start, each time as another variant. So k = 3 has 50 and 70, k = 6 has 40, 50 twice, 70 and 80.

    Raises:
        ValueError: they do not fall on this grid.
    """
    levels = tuple(sorted(_LEVEL_ORDER[place % len(_LEVEL_ORDER)] for place in range(k - 1)))
    if any(level * grid % 100 for level in levels):
        raise ValueError(
            f"levels {levels} of 100 do not fall on a grid of {grid} steps (a multiple of 10 does); "
            "name the levels yourself"
        )
    return tuple(level * grid // 100 for level in levels)


class PlanConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How many variants of each reference are made, and at which levels."""

    k: int = Field(
        5, ge=2, le=1000, description="Images per slow example, the real one counted: k - 1 variants, k 2 to 1000"
    )
    levels: tuple[int, ...] = Field(
        (),
        max_length=999,
        description="k - 1 levels in steps of the grid, each 1 to grid; empty: 50 for k = 2, 50 70 for k = 3, 50 70 "
        "80 for k = 4, 40 50 70 80 for k = 5 (of 100, scaled to the grid), then again from 50. A repeated level makes "
        "another variant",
    )
    part_size: int = Field(
        512, ge=1, le=1_000_000, description="Images a part: what an interruption can cost, 1 to 1,000,000"
    )

    @pydantic.model_validator(mode="after")
    def _levels_fit_k(self) -> "PlanConfig":
        if self.levels and len(self.levels) != self.k - 1:
            raise ValueError(
                f"k = {self.k} needs {self.k - 1} levels (k counts the real image), got {len(self.levels)}"
            )
        return self

    def steps(self, grid: int) -> tuple[int, ...]:
        """The k - 1 levels in steps of a grid; ValueError where one does not exist."""
        levels = self.levels or paper_levels(self.k, grid)
        for level in levels:
            if not 1 <= level <= grid:
                raise ValueError(f"level {level} of {grid} does not exist: levels go from 1 to {grid}")
        return levels


Match = Literal["snr", "steps", "strength"]


Sampler = Literal["ddpm", "ddim", "euler", "heun", "dpm++2m", "lcm"]


class SampleConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How references are noised and denoised. The defaults are the paper's (2505.21574, section 5)."""

    sampler: Sampler = Field(
        "ddpm",
        description="ddpm: ancestral, fresh noise at each step; ddim, euler, heun, dpm++2m: deterministic after the "
        "start, heun with two calls a step; lcm: for few-step models (LCM, Turbo). Generators of kind pipeline and "
        "diffusemix bring their own",
    )
    grid: int = Field(100, ge=1, le=1000, description="S: steps of the noise grid that levels count in, 1 to 1000")
    steps: int = Field(
        0,
        ge=0,
        le=1000,
        description="Steps from pure noise, at most the grid; level R of S then takes R / S of them, rounded up. 0: "
        "those of the grid, so level R takes R. A step is one denoiser call; with heun two, and one in the last step",
    )
    match: Match = Field(
        "snr",
        description="What makes level R of S the same for every generator. snr: the noise (log-SNR of GLIDE's grid); "
        "steps: the R-th of S of the model's own timesteps; strength: R / S as diffusers' strength",
    )
    guidance_scale: float = Field(
        3.0,
        ge=0,
        le=50,
        description="Classifier-free guidance, 0 to 50; 1 switches it off and halves the work. A model that takes "
        "guidance as an input (LCM) gets it there; 1 then means its usual 8.5",
    )

    deterministic: int = Field(
        0,
        ge=0,
        le=4096,
        description="Images in every call of the networks, to the bit: 0 to 4096. Short calls are filled up with "
        "repeats, and a CPU computes on one thread, so that an image depends neither on the batch, the part nor the "
        "number of processes. 0: off; these then change the rounding",
    )

    @pydantic.model_validator(mode="after")
    def _steps_on_grid(self) -> "SampleConfig":
        if self.steps > self.grid:
            raise ValueError(f"{self.steps} steps are more than the {self.grid} of the grid; raise sample.grid too")
        return self

    @property
    def calls_a_step(self) -> int:
        """Network evaluations of one image in one step: guidance makes an unconditional one too."""
        return 1 if self.guidance_scale == 1 else 2

    def solver_steps(self, level: int) -> int:
        """Steps of the sampler from level `level` of the grid."""
        return -(-level * (self.steps or self.grid) // self.grid)

    def calls(self, level: int) -> int:
        """Denoiser calls from level `level` of the grid: one a step; heun makes two, but for its last step."""
        steps = self.solver_steps(level)
        return 2 * steps - 1 if self.sampler == "heun" else steps


Kind = Literal["pixel", "latent", "transformer", "pipeline", "diffusemix"]


class GenerateConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Which generator makes the images, and how it is run."""

    generator: str = Field(
        "",
        description="The path or URL of a diffusers folder or of a checkpoint in one .safetensors file, a hub id "
        "(owner/name), or digits, shipped and taken by the data set digits; empty: none, and a command that makes "
        "images lists the choices",
    )
    kind: Literal["auto", Kind] = Field(
        "auto",
        description="pixel: UNet2DModel; latent: Stable Diffusion 1.x, 2.x, SDXL in our own loop; transformer: DiT, "
        "PixArt, Sana and the like in our own loop; pipeline: any other image-to-image model with a strength; "
        "diffusemix: InstructPix2Pix and DiffuseMix. auto: what the folder holds",
    )
    revision: str = Field("", description="Of a hub id: commit, tag or branch; empty: the newest")
    base: str = Field(
        "",
        description="For a generator in one file: the diffusers folder or hub id of the model it was made from, whose "
        "configs and tokenizers are taken, and, for a file with a UNet or transformer alone, the other weights; empty: "
        "configs of plain Stable Diffusion 1.x, 2.x or SDXL, by the file",
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto", description="auto: bfloat16 on a GPU that has it, else float32"
    )
    loras: tuple[str, ...] = Field((), description="LoRA weights as PATH or PATH@SCALE, fused into the model")
    textual_inversions: tuple[str, ...] = Field((), description="Textual inversion embeddings by path")
    classes: str = Field(
        "",
        description="Which of a class-conditional generator's classes each class of the data is: the path of a map of "
        "class to its name or number there, in the formats of prompts.names; or order: class i is class i. Empty, and "
        "for classes that the map leaves out: the one of the same name",
    )
    compile: bool = Field(False, description="torch.compile: minutes once per size, faster then; changes no image much")
    fuse_qkv: bool = Field(False, description="One matrix product for query, key and value")
    batch_size: int = Field(
        256,
        ge=1,
        le=65_536,
        description="Images denoised together, at most, 1 to 65,536; halved and remembered where memory does not "
        "suffice. Changes no image, but for rounding (sample.deterministic)",
    )
    leave_out_failed: bool = Field(
        False,
        description="Finish the data set without images that could not be made; the manifest names them, and the next "
        "command tries them again",
    )
    processes: int = Field(
        0,
        ge=0,
        le=256,
        description="Processes that generate, 0 to 256; 0: one a GPU, one on the CPU. Changes no image, but for "
        "rounding (sample.deterministic)",
    )


Filter = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


_MIN_WORK_SIZE = 8


class SizeConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """The size of references in the generator, and of variants in the end."""

    work_size: int = Field(
        0,
        ge=0,
        le=4096,
        description="Shorter side in pixels that the generator sees, 8 to 4096; 0: the size it was trained at",
    )
    filter: Filter = Field(
        "bicubic",
        description="Resampling of Pillow, to the work size and back; antialiased when it shrinks (not nearest). A "
        "32-pixel photo that is resized to 512 and back changes by about 2 grey levels with lanczos, which leaves "
        "halos at edges, 3 with bicubic or hamming, 5.5 with bilinear, and none with box or nearest, which show the "
        "generator square blocks. bicubic is Real-Guidance's",
    )
    stretch: bool = Field(
        False, description="Stretch images to squares for the generator, instead of keeping their shape"
    )
    returned: Literal["training", "source"] = Field(
        "training",
        description="training: references are images as the classifier sees them, cut to the image size; source: the "
        "whole images as they are stored. Variants come back in the size of their reference",
    )

    @pydantic.field_validator("work_size")
    @classmethod
    def _not_tiny(cls, size: int) -> int:
        if 0 < size < _MIN_WORK_SIZE:
            raise ValueError(
                f"work size {size} is too small; give {_MIN_WORK_SIZE} to 4096, or 0 for the generator's own"
            )
        return size


class PromptConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How prompts are made. Class-conditional generators use the label and ignore prompts."""

    templates: tuple[str, ...] = Field(
        ("a photo of a {name}",),
        min_length=1,
        max_length=1000,
        description="Each has {name} in place of the class's name; of several, each image's seed draws one",
    )
    names: str = Field(
        "",
        description="Path of a class-name map: a .json object of class to name, or a table of the columns class and "
        "name, .csv by commas, .tsv or .txt by tabs. Classes that it leaves out keep their own name; empty: all do",
    )
    negative: str = Field("", description="Negative prompt, which guidance leads away from; empty: the empty prompt")

    @pydantic.field_validator("templates")
    @classmethod
    def _only_name_in_braces(cls, templates: tuple[str, ...]) -> tuple[str, ...]:
        for template in templates:
            rest = template.replace("{name}", "")
            if rest == template or "{" in rest or "}" in rest:
                raise ValueError(
                    f"template {template!r} must have {{name}} where the class's name goes, and no other braces; "
                    "such as 'a photo of a {name}'"
                )
        return templates


# The README of the released code (khawar-islam/diffuseMix).
RELEASED_PROMPTS = (
    "Autumn",
    "snowy",
    "watercolor art",
    "sunset",
    "rainbow",
    "aurora",
    "mosaic",
    "ukiyo-e",
    "a sketch with crayon",
)


class DiffuseMixConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How references are edited and mixed. The defaults are the released code's, with the one prompt of 2505.21574."""

    prompts: tuple[Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)], ...] = Field(
        ("Autumn",),
        min_length=1,
        description="Edits; each image's seed draws one, {name} is its class. The released code lists "
        + ", ".join(RELEASED_PROMPTS),
    )
    masks: Literal["code", "paper"] = Field(
        "code",
        description="Which half stays the original. code: left or top, over 20 pixels into the edit; paper: left, top, "
        "right or bottom, a hard edge",
    )
    fractal_alpha: float = Field(0.2, ge=0, lt=1, description="Share of the fractal in the image, 0 (none) to 1")
    fractals: str = Field(
        "", description="Folder of fractal images, each drawn by an image's seed; empty: 32 Julia sets made here"
    )
    steps: int = Field(
        100, ge=2, le=1000, description="Denoising steps of the edit, 2 to 1000, three network calls each"
    )
    guidance_scale: float = Field(4.0, gt=1, le=50, description="Guidance by the prompt, above 1 to 50")
    image_guidance_scale: float = Field(1.5, ge=1, le=50, description="Guidance by the reference, 1 to 50")


class ScoreConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """What images are scored with. Scores alone keep no image out; the thresholds of `quality` do."""

    reference_classifier: str = Field(
        "",
        description="Gives the probability of the label: weights of classifier.model, a .safetensors file as a run "
        "writes it (retrained/.../seed-0.safetensors); or any classifier as a .pt2 file of torch.export.save, which "
        "takes float32 (n, C, H, W) from 0 to 1 and gives logits (n, classes); empty: the early classifiers, or none "
        "where early outputs are given",
    )
    clip: str = Field("", description="Folder of a CLIP model for CLIP scores; empty: none")
    safety: bool = Field(False, description="Run the generator's own safety checker, as a score: it blanks no image")


class QualityConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """Thresholds that keep an image out of training. The scores are kept, so these move without generating again."""

    min_contrast: float = Field(
        2.0,
        ge=0,
        le=128,
        description="flat below: standard deviation of the pixels of the channel that varies most, in grey levels, 0 "
        "to 128",
    )
    drop_unsafe: bool = Field(
        False,
        description="unsafe: drop what the generator's own safety checker flags. Needs a generator that ships one; "
        "it gives many false alarms on small images",
    )
    min_label_ratio: float = Field(
        0.1,
        ge=0,
        le=1,
        description="off_label below: probability of the label under the reference classifier, divided by that of the "
        "reference itself, 0 (off) to 1. So a variant of a slow example may be as doubtful as that example",
    )
    min_label_probability: float = Field(
        0.0,
        ge=0,
        le=1,
        description="off_label below: the same probability by itself, 0 (off) to 1. It drops variants of the slowest "
        "examples first, since these have a low probability too",
    )
    min_clip_score: float = Field(
        -1.0,
        ge=-1,
        le=1,
        description="off_label below: cosine of image and class text under CLIP, -1 (off) to 1; 0.2 is common. "
        "Needs a CLIP model",
    )
    min_clip_margin: float = Field(
        -2.0,
        ge=-2,
        le=2,
        description="off_label below: CLIP score of the own class less that of the next best, -2 (off) to 2; 0 asks "
        "that no class fits better. Needs a CLIP model",
    )
    min_distance: float = Field(
        1.0, ge=0, le=255, description="near_reference below: root-mean-square distance to the reference in grey levels"
    )
    max_distance_ratio: float = Field(
        4.5,
        ge=0,
        le=1000,
        description="far_from_reference above: distance to the reference by the distance that the noise of the level "
        "explains, at most about 1 for a perfect generator; 0 (off) to 1000",
    )
    min_real_distance: float = Field(
        0.0,
        ge=0,
        le=2,
        description="near_real below: cosine distance to the nearest training image that is not the reference, in the "
        "early classifier's features, 0 (off) to 2",
    )
    min_duplicate_distance: float = Field(
        0.0,
        ge=0,
        le=255,
        description="duplicate below: distance to the nearest earlier image of the same class in the synthetic set, "
        "root-mean-square grey levels of 8x8 averages, 0 (off) to 255",
    )


class GeneratorConfig(pydantic.BaseModel, frozen=True, extra="forbid"):
    """How a pixel generator is trained. The defaults make the shipped digits generator."""

    steps: int = Field(1000, ge=1, le=10_000_000, description="Optimizer steps, 1 to 10 million")
    batch_size: int = Field(128, ge=1, le=65_536, description="Images a step, 1 to 65,536")
    lr: float = Field(2e-3, gt=0, le=1, description="Peak learning rate of AdamW, above 0 to 1; cosine to zero")
    channels: tuple[int, ...] = Field(
        (16, 32),
        min_length=1,
        max_length=6,
        description="Channels of each UNet level, multiples of 8; size halves between",
    )
    layers_per_block: int = Field(1, ge=1, le=4, description="Residual blocks a UNet level, 1 to 4")
    size: int = Field(0, ge=0, le=512, description="Side in pixels the model works at; 0: that of the images")
    label_dropout: float = Field(0.1, ge=0, le=0.5, description="Share of labels hidden, for guidance; 0 to 0.5")
    ema_decay: float = Field(0.995, ge=0, lt=1, description="Decay of the averaged weights that are kept, 0 to below 1")
    flip: bool = Field(False, description="Random horizontal flip; wrong for digits and letters")

    @pydantic.field_validator("channels")
    @classmethod
    def _multiples_of_eight(cls, channels: tuple[int, ...]) -> tuple[int, ...]:
        if any(c < 8 or c % 8 for c in channels):
            raise ValueError(f"channels are positive multiples of 8 (for GroupNorm), got {channels}")
        return channels
