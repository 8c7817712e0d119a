"""DiffuseMix: an edit of the reference beside half of the reference itself, with a fractal over both.

Islam et al., arXiv 2405.14881, on InstructPix2Pix (arXiv 2211.09800). "Ours+DifMx" of Table 2 of paper 2505.21574 is
this generator on the slow images, k = 2.
"""

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from latebloom.data.images import decode
from latebloom.data.seeds import numpy_rng, torch_rng
from latebloom.data.store import as_path, digest_file, digest_json, local_folder
from latebloom.synth.config import DiffuseMixConfig
from latebloom.synth.generators.diffusers_folder import licence, load_pipeline
from latebloom.synth.generators.folder import digest_files, read_index
from latebloom.synth.sampling.calls import in_calls, on_one_thread
from latebloom.synth.sampling.denoiser import Made, Wanted, to_pixels
from latebloom.synth.sampling.levels import Level
from latebloom.synth.sampling.loop import mean_seconds
from latebloom.synth.sampling.steps import step_done

__all__ = ["DiffuseMixGenerator", "Side", "blend", "concatenate", "julia_set"]


Side = Literal["left", "top", "right", "bottom"]
_SIDES: dict[str, tuple[Side, ...]] = {"code": ("left", "top"), "paper": ("left", "top", "right", "bottom")}
_RAMPS = {"code": 20, "paper": 0}  # pixels; the released code has 20, at 256 pixels and, in another version, at 512

_FLAT = 2.0  # grey levels, as QualityConfig.min_contrast
_IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".tif", ".tiff")
_JULIA_SETS = 32
_JULIA_VERSION = 1  # part of the digest: to be raised with any change of `julia_set`

_PIPELINE = "StableDiffusionInstructPix2PixPipeline"


class DiffuseMixGenerator:
    """InstructPix2Pix and DiffuseMix behind the `Generator` interface.

    An edit starts from pure noise, and the reference is an input of the network. So there is no noise level: all levels
    make the same kind of image, and a plan with k = 2 is the right one. Prompts come from the plan, whose templates
    should be the config's prompts. The seed alone decides half, fractal and noise.

    An edit that is flat (each channel within a standard deviation of 2 grey levels: black, white or any one colour)
    counts as not finite: beside half of the original and under a fractal, nobody would see that it failed.

    Halves are those of the work size. The released code stretches all images to squares of 256 pixels, as
    `sizes.stretch` does here. Otherwise, what synth/sizes.py pads belongs to the half it lies in.
    """

    size = 256  # InstructPix2Pix was trained at this size, and the released code resizes to it
    largest = 0
    channels = 3
    sampler = "euler-ancestral"
    calls_a_step = 3  # with prompt and image, with the image, with neither (arXiv 2211.09800, Eq. 3)
    trained_on: frozenset[str] = frozenset()
    trained_on_words = ""

    def __init__(
        self,
        pipeline: Any,
        folder: Path,
        fractals: Sequence[Path | int],
        config: DiffuseMixConfig,
        *,
        grid: int,
        deterministic: int = 0,
        digest: str,
    ) -> None:
        self.pipeline = pipeline  # without its text encoder
        self.fractals = fractals  # files, or numbers of `julia_set`
        self.config = config
        self.guidance_scale = config.guidance_scale
        self.grid = grid
        self.deterministic = deterministic
        self.digest = digest
        self.name = folder.name
        self.licence = licence(folder)
        self.device: torch.device = pipeline.device
        self._folder = folder
        self._embeddings: dict[str, Tensor] = {}  # of each prompt and of "", (tokens, width)
        self._factor: int = pipeline.vae_scale_factor  # pixels of a latent's side
        self.multiple = self._factor * 2 ** (len(pipeline.unet.config.block_out_channels) - 1)
        pipeline.scheduler.set_timesteps(config.steps)
        self._start = float(pipeline.scheduler.timesteps[0])

    @classmethod
    def load(
        cls,
        folder: Path,
        device: torch.device,
        *,
        dtype: torch.dtype,
        config: DiffuseMixConfig,
        grid: int,
        deterministic: int = 0,
    ) -> "DiffuseMixGenerator":
        """Load an InstructPix2Pix folder as diffusers saves it.

        Args:
            grid: levels that a plan may name, 1..grid; they all mean the same here.
            deterministic: images in every call; 0: as many as are wanted.

        Raises:
            ValueError: another kind of model, missing, broken or pickled files, fractals that are missing or
                cannot be read.
        """
        kind = read_index(folder).get("_class_name")
        if kind != _PIPELINE:
            raise ValueError(
                f"{folder} holds a {kind}; DiffuseMix edits with InstructPix2Pix, so give it a {_PIPELINE}, such as "
                "timbrooks/instruct-pix2pix"
            )
        parts = digest_files(folder)
        fractals = _fractal_files(config.fractals)
        pipeline = _pipeline(folder, dtype, text_encoder=None, tokenizer=None).to(device)
        if device.type == "cuda":
            pipeline.unet.to(memory_format=torch.channels_last)
        settings = {
            "parts": parts,
            "dtype": str(dtype),
            "config": config.model_dump(exclude={"prompts", "fractals"}),
            "fractals": [digest_file(file) for file in fractals] or _JULIA_VERSION,
        }
        return cls(
            pipeline,
            folder,
            fractals or range(_JULIA_SETS),
            config,
            grid=grid,
            deterministic=deterministic,
            digest=digest_json(settings),
        )

    def check(self, class_names: tuple[str, ...]) -> None:
        """Nothing: an edit needs no class."""

    def labels_of(self, class_names: tuple[str, ...]) -> None:
        """None: it goes by the prompt."""

    def level(self, steps: int) -> Level:
        """Pure noise and `config.steps` steps, whatever the level; ValueError where the grid does not have it."""
        if not 1 <= steps <= self.grid:
            raise ValueError(f"level {steps} of {self.grid} does not exist: levels go from 1 to {self.grid}")
        return Level(steps, self.grid, self.config.steps, self._start, -np.inf, 1.0)

    @on_one_thread
    @torch.inference_mode()
    def prepare(self, prompts: Sequence[str]) -> None:
        """Embed prompts, once each; the text encoder is then freed.

        Raises:
            ValueError: a prompt that the text encoder would cut off, or broken files.
        """
        new = [text for text in ("", *prompts) if text not in self._embeddings]
        if not new:
            return
        text = _pipeline(self._folder, self.pipeline.dtype, unet=None, vae=None).to(self.device)
        length = text.tokenizer.model_max_length
        for prompt in new:
            tokens = text.tokenizer(prompt, padding="max_length", max_length=length).input_ids
            if len(tokens) > length:
                raise ValueError(
                    f"prompt {prompt!r} has {len(tokens)} tokens, the text encoder reads {length}; shorten it"
                )
            self._embeddings[prompt] = text.text_encoder(torch.tensor([tokens], device=self.device))[0][0]
        del text
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def encode(self, images: np.ndarray) -> Tensor:
        """The images themselves, uint8 (n, h, w, 3), on the CPU: the edit and the mixing both need the pixels."""
        return torch.from_numpy(np.ascontiguousarray(images))

    @on_one_thread
    @torch.inference_mode()
    def make(self, references: Tensor, wanted: Wanted) -> Made:
        """Edit all references in one batch, then mix each with its own edit and a fractal."""

        def edit(rows: Tensor) -> Tensor:
            return self._edit(references[rows], wanted.take(rows.numpy()), len(rows.unique()))

        edits = to_pixels(in_calls(edit, torch.arange(len(wanted)), size=self.deterministic))
        images = [
            self._mix(reference, edit, seed)
            for reference, edit, seed in zip(references.cpu().numpy(), edits.images, wanted.seeds, strict=True)
        ]
        contrast = edits.images.std((1, 2)).max(1)  # (n,), of the liveliest channel
        return Made(np.stack(images), edits.finite & (contrast >= _FLAT))

    @on_one_thread
    @torch.inference_mode()
    def seconds_per_call(self, references: Tensor, wanted: Wanted) -> float:
        """Times the network alone for about a second, after one call to warm up."""
        _, height, width, _ = references.shape
        prompts, nothing = self._conditions(wanted.prompts)
        conditions = torch.cat([prompts, nothing, nothing])  # (3n, tokens, width), as the pipeline lays them
        unet = self.pipeline.unet
        x = conditions.new_zeros(
            len(conditions), unet.config.in_channels, height // self._factor, width // self._factor
        )

        def network(x: Tensor, conditions: Tensor) -> Tensor:
            output: Tensor = unet(x, self._start, conditions).sample
            return output

        size = self.calls_a_step * self.deterministic
        return mean_seconds(lambda: in_calls(network, x, conditions, size=size)) / len(x)

    def _edit(self, references: Tensor, wanted: Wanted, images: int) -> Tensor:
        """The edits by InstructPix2Pix of uint8 (n, h, w, 3): float (n, 3, h, w), -1 black to 1 white, not clipped.

        Args:
            images: how many of the n count as made; the others are repeats.
        """
        pipeline, seeds = self.pipeline, wanted.seeds
        _, height, width, _ = references.shape
        prompts, nothing = self._conditions(wanted.prompts)
        shape = (pipeline.vae.config.latent_channels, height // self._factor, width // self._factor)
        noise = [np.random.Generator(np.random.Philox(int(seed))).standard_normal(shape, np.float32) for seed in seeds]

        def counted(_pipeline: Any, _step: int, _timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
            step_done(images)
            return tensors

        latents = pipeline(
            image=references.permute(0, 3, 1, 2) / 255,
            prompt_embeds=prompts,
            negative_prompt_embeds=nothing,
            latents=torch.from_numpy(np.stack(noise)).to(prompts.dtype),
            # The noise of the steps. A torch generator keeps 32 bits of its seed; the first noise above uses all 63.
            generator=[torch_rng(seed, "steps") for seed in seeds],
            num_inference_steps=self.config.steps,
            guidance_scale=self.config.guidance_scale,
            image_guidance_scale=self.config.image_guidance_scale,
            callback_on_step_end=counted,
            output_type="latent",  # the pipeline's own decoding clips: infinite pixels would become white ones
        ).images
        edits: Tensor = pipeline.vae.decode(latents / pipeline.vae.config.scaling_factor, return_dict=False)[0]
        return edits

    def _conditions(self, prompts: Sequence[str]) -> tuple[Tensor, Tensor]:
        """The embedded prompts, and as many of the empty one, each (n, tokens, width)."""
        embedded = torch.stack([self._embeddings[prompt] for prompt in prompts])
        return embedded, self._embeddings[""].expand_as(embedded)

    def _mix(self, reference: np.ndarray, edit: np.ndarray, seed: int) -> np.ndarray:
        sides = _SIDES[self.config.masks]
        side = sides[numpy_rng(seed, "mask").integers(len(sides))]
        fractal = self.fractals[int(numpy_rng(seed, "fractal").integers(len(self.fractals)))]
        pattern = decode(fractal, str(fractal), channels=3) if isinstance(fractal, Path) else julia_set(fractal)
        height, width, _ = reference.shape
        overlay = np.asarray(Image.fromarray(pattern).resize((width, height), Image.Resampling.BICUBIC))
        return blend(concatenate(reference, edit, side, _RAMPS[self.config.masks]), overlay, self.config.fractal_alpha)


def concatenate(original: np.ndarray, edit: np.ndarray, side: Side, ramp: int) -> np.ndarray:
    """Half of the original beside the other half of its edit (arXiv 2405.14881, section 3).

    Args:
        original, edit: uint8 (h, w, c).
        side: where the original stays.
        ramp: pixels of linear transition across the middle: the first is all original, the last all edit. 0 and 1 make
            a hard edge.

    Returns:
        float64 (h, w, c), 0..255, not rounded.
    """
    axis = 1 if side in ("left", "right") else 0
    size = original.shape[axis]
    place = np.arange(size) - (size // 2 - ramp // 2)  # 0 where the ramp begins
    share = np.clip(place / (ramp - 1), 0, 1) if ramp > 1 else (place >= 0).astype(np.float64)
    if side in ("right", "bottom"):
        share = share[::-1]
    share = share[None, :, None] if axis == 1 else share[:, None, None]  # of the edit, (1, w, 1) or (h, 1, 1)
    return np.asarray((1 - share) * original + share * edit)


def blend(mixed: np.ndarray, fractal: np.ndarray, alpha: float) -> np.ndarray:
    """(1 - alpha) mixed + alpha fractal (arXiv 2405.14881, section 3), rounded: uint8 (h, w, c).

    The released code cuts fractions off, here and after the concatenation.
    """
    return np.rint((1 - alpha) * mixed + alpha * fractal).astype(np.uint8)


@functools.cache
def julia_set(index: int, size: int = 256) -> np.ndarray:
    """A coloured Julia set of z -> z^2 + c, read-only uint8 (size, size, 3); always the same for an index.

    Stands in for the collected fractals of the paper. c lies just outside the main cardioid of the Mandelbrot set,
    where Julia sets are neither dust nor discs.
    """
    rng = numpy_rng(0, "diffusemix", "julia", index)
    mu = rng.uniform(1.01, 1.08) * np.exp(2j * np.pi * rng.uniform())
    c = mu / 2 - mu**2 / 4
    axis = np.linspace(-1, 1, size) * rng.uniform(0.5, 1.2)
    centre = complex(*rng.uniform(-0.4, 0.4, 2))
    z = (axis + 1j * axis[:, None]) * np.exp(2j * np.pi * rng.uniform()) + centre  # (size, size)
    x, y = z.real, z.imag
    stay = np.zeros((size, size))  # large where the orbit of a point stays near 0; smooth, unlike a count of steps
    for _ in range(32):
        xx, yy = x * x, y * y
        stay += np.exp(-xx - yy)
        # Escaped points stay at the bound, where exp is 0.
        x, y = np.clip(xx - yy + c.real, -1e3, 1e3), np.clip(2 * x * y + c.imag, -1e3, 1e3)
    turns = 3 * rng.uniform(0.5, 2, 3) * (stay / stay.max())[..., None] + rng.uniform(0, 1, 3)  # (size, size, 3)
    image: np.ndarray = np.rint(127.5 + 127.5 * np.cos(2 * np.pi * turns)).astype(np.uint8)
    image.setflags(write=False)  # the cache returns this very array
    return image


def _fractal_files(folder: str) -> list[Path]:
    """The images of a folder, each read once as a check; none for an empty name."""
    if not folder:
        return []
    path = as_path(folder)
    if not path.is_dir():
        raise ValueError(
            f"there is no folder at {folder!r}, expected one with fractals; correct diffusemix.fractals, or leave it "
            "empty for Julia sets"
        )
    files = sorted(file for file in local_folder(path).iterdir() if file.suffix.lower() in _IMAGE_SUFFIXES)
    if not files:
        raise ValueError(f"{path} holds no fractals, expected images ({', '.join(_IMAGE_SUFFIXES)}); put some into it")
    for file in files:
        decode(file, str(file), channels=3)
    return files


def _pipeline(folder: Path, dtype: torch.dtype, **absent: None) -> Any:
    """The pipeline as the released code builds it (ancestral Euler steps, no safety checker), without some parts."""
    from diffusers import EulerAncestralDiscreteScheduler, StableDiffusionInstructPix2PixPipeline

    pipeline = load_pipeline(
        StableDiffusionInstructPix2PixPipeline,
        folder,
        dtype,
        safety_checker=None,  # it blackens images; images are scored in synth/scoring
        requires_safety_checker=False,
        feature_extractor=None,
        image_encoder=None,
        **absent,
    )
    if pipeline.vae is not None:
        pipeline.vae.enable_slicing()  # one image at a time: bounded memory
    pipeline.scheduler = EulerAncestralDiscreteScheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline
