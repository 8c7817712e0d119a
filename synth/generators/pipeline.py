"""Every image-to-image model of diffusers that takes a strength: SD3, Flux, Kandinsky, IF, LCM, Z-Image, ..."""

import functools
import inspect
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latebloom.data.seeds import child_seed
from latebloom.data.store import digest_file, digest_json
from latebloom.synth.config import Match
from latebloom.synth.generators.adapters import Lora, find_lora, merge_loras
from latebloom.synth.generators.diffusers_folder import (
    check_packages,
    compile_network,
    fuse_projections,
    licence,
    load_pipeline,
)
from latebloom.synth.generators.folder import digest_files, read_index
from latebloom.synth.generators.pipeline_prompts import PipelinePrompts
from latebloom.synth.sampling.calls import fixed_shapes, in_calls, on_one_thread
from latebloom.synth.sampling.denoiser import Made, Wanted, to_pixels
from latebloom.synth.sampling.levels import Level
from latebloom.synth.sampling.strength import (
    Start,
    choose,
    image_to_image_class,
    level_of,
    recorded,
    settle_scheduler,
    starts,
)

__all__ = ["PipelineGenerator"]

# These take latents in place of `image` and use them unchanged.
_TAKES_LATENTS = frozenset(
    {
        "StableDiffusionImg2ImgPipeline",
        "StableDiffusionXLImg2ImgPipeline",
        "KolorsImg2ImgPipeline",
        "StableDiffusion3Img2ImgPipeline",
        "LatentConsistencyModelImg2ImgPipeline",
        "FluxImg2ImgPipeline",
    }
)
# Not loaded: what would stamp or blank images. Images are scored in synth/scoring.
_LEFT_OUT = {"safety_checker": None, "requires_safety_checker": False, "watermarker": None, "add_watermarker": False}
# T5 of Stable Diffusion 3, which diffusers can leave out though it does not say so.
_UNNEEDED = ("text_encoder_3", "tokenizer_3")
# Switched off: what would change prompts by installed packages, sizes by a table, noise levels by a special case.
_PLAIN = {"clean_caption": False, "use_resolution_binning": False, "intermediate_timesteps": None}


class PipelineGenerator:
    """A diffusers pipeline behind the `Generator` interface.

    Rows of one level are made in one call of the pipeline, each with its own prompt and random generator, all with one
    strength. A level is the same noise at every work size: where a model shifts its schedule by the image's size, the
    shift for `size` is used for all. After each call, the noise it started from and its steps are checked.

    The pipeline draws the noise in its own dtype, from torch generators on the CPU. These keep only 32 bits of a seed:
    among 100,000 images about one pair shares its noise.
    """

    channels = 3
    trained_on: frozenset[str] = frozenset()
    trained_on_words = ""

    def __init__(
        self,
        pipeline: Any,
        device: torch.device,
        *,
        grid: int,
        steps: int,
        match: Match,
        guidance_scale: float,
        deterministic: int = 0,
        negative_prompt: str = "",
        name: str,
        digest: str,
        licence: str = "",
        reload: Callable[[], Any],
        compiled: bool = False,
    ) -> None:
        # Kandinsky 2.2: a prior turns the prompt into an image embedding, a pipeline of its own.
        self.prior = getattr(pipeline, "prior_pipe", None)
        self.pipeline = getattr(pipeline, "decoder_pipe", pipeline)
        self.device = device
        self.grid = grid
        self.match: Match = match
        self.deterministic = deterministic
        self.name = name
        self.digest = digest
        self.licence = licence
        self._compiled = compiled
        for part in filter(None, (self.prior, self.pipeline)):
            part.set_progress_bar_config(disable=True)
        self._kind = type(self.pipeline).__name__
        self._network = _network(self.pipeline)
        self._arguments = frozenset(inspect.signature(type(self.pipeline).__call__).parameters)
        self.size, self.multiple = _sizes(self.pipeline)
        # Stable Diffusion 3 has a table of positions, so many patches to a side.
        table = getattr(self._network, "pos_embed", None)
        self.largest: int = (getattr(table, "pos_embed_max_size", None) or 0) * self.multiple
        self.pipeline.scheduler = settle_scheduler(self.pipeline.scheduler, (self.size // self.multiple) ** 2)
        self.sampler: str = type(self.pipeline.scheduler).__name__
        self._starts = starts(self.pipeline, steps)

        config = self._network.config
        self._embedded = bool(config.get("guidance_embeds") or config.get("time_cond_proj_dim"))
        guided = guidance_scale > 1 and not self._embedded
        if negative_prompt and self._embedded:
            raise ValueError(
                f"generator {name} cannot use a negative prompt: its guidance is embedded in the network; leave "
                "prompts.negative empty"
            )
        self.calls_a_step = 2 if guided else 1
        self.guidance_scale = guidance_scale
        self._second_pass = guided and "true_cfg_scale" in self._arguments  # guidance as an addition to the pipeline
        self._prompts = PipelinePrompts(
            self.pipeline,
            self.prior,
            reload,
            device,
            negative=negative_prompt,
            guided=guided,
            second_pass=self._second_pass,
        )
        vae: Any = getattr(self.pipeline, "vae", None)
        self._vae_dtype: torch.dtype | None = getattr(vae, "dtype", None)
        if hasattr(vae, "enable_slicing"):
            vae.enable_slicing()  # one image at a time: bounded memory
        self._latents = self._kind in _TAKES_LATENTS and vae is not None and not vae.config.get("latents_mean")

    @classmethod
    def load(
        cls,
        folder: Path,
        device: torch.device,
        *,
        dtype: torch.dtype,
        grid: int,
        steps: int,
        match: Match,
        guidance_scale: float,
        deterministic: int = 0,
        negative_prompt: str = "",
        loras: Sequence[str] = (),
        fuse_qkv: bool = False,
        compile: bool = False,
    ) -> "PipelineGenerator":
        """Load a diffusers folder as its image-to-image pipeline; weights stay in host memory until `prepare`.

        Args:
            grid: S, the steps of GLIDE's grid that levels count in.
            steps: solver steps from pure noise, 1..grid.
            match: see `strength.choose`.
            guidance_scale: 1 or less switches guidance off; an input of the network for distilled models (Flux, LCM).
            deterministic: images in every call; 0: as many of a level as are wanted.
            loras: PATH or PATH@SCALE of .safetensors files, fused into the weights.
            fuse_qkv: one matrix product for query, key and value.
            compile: torch.compile the network's repeated blocks at the first call of each shape.

        Raises:
            ValueError: a model without a noise level, weights that are pickled, broken or missing, a scheduler that is
                not understood, steps or LoRAs that do not fit.
        """
        if not 1 <= steps <= grid:
            raise ValueError(
                f"got {steps} steps, expected 1 to {grid} for a grid of {grid}; change sample.steps or sample.grid"
            )
        check_packages(folder)
        kind = image_to_image_class(folder, read_index(folder).get("_class_name"))
        files = digest_files(folder)
        adapters = [find_lora(spec) for spec in loras]
        reload = functools.partial(_load, kind, folder, dtype, adapters)
        pipeline = reload()
        network = _network(getattr(pipeline, "decoder_pipe", pipeline))
        if device.type == "cuda" and _is_unet(network):
            network.to(memory_format=torch.channels_last)
        if fuse_qkv:
            fuse_projections(network)
        if compile:
            compile_network(network)
        settings = {
            "kind": kind.__name__,
            "files": files,
            "loras": [(digest_file(file), scale) for file, scale in adapters],
            "dtype": str(dtype),
            "steps": steps,
            "grid": grid,
            "match": match,
            "guidance_scale": guidance_scale,
            "negative_prompt": negative_prompt,
        }
        return cls(
            pipeline,
            device,
            grid=grid,
            steps=steps,
            match=match,
            guidance_scale=guidance_scale,
            deterministic=deterministic,
            negative_prompt=negative_prompt,
            name=folder.name,
            digest=digest_json(settings),
            licence=licence(folder),
            reload=reload,
            compiled=compile,
        )

    def check(self, class_names: tuple[str, ...]) -> None:
        """Nothing: a class is known by its prompt alone."""

    def labels_of(self, class_names: tuple[str, ...]) -> None:
        """None: it goes by the prompt."""

    def level(self, steps: int) -> Level:
        """Where level `steps` of the grid starts on this pipeline's own schedule.

        Level S starts at the noisiest timestep, which may keep a trace of the reference: with "leading" timesteps
        (Stable Diffusion) 10 steps begin at 901 of 1000, not in pure noise. `log_snr` says how much noise it is.
        """
        return level_of(choose(self._starts, steps, self.grid, self.match), steps, self.grid)

    @on_one_thread
    @torch.inference_mode()
    def prepare(self, prompts: Sequence[str]) -> None:
        """Embed new prompts, free the text encoders, and only then bring the network to the device.

        Pipelines that are given texts (`PipelinePrompts`) keep their encoders. The others read the whole folder again
        where new prompts come later.
        """
        self._prompts.prepare(prompts)
        if self.device.type == "cuda":
            torch.cuda.empty_cache()
        with torch.inference_mode(False):  # torchao's tensors cannot move inside it
            for part in filter(None, (self.prior, self.pipeline)):
                part.to(self.device)

    @on_one_thread
    def encode(self, images: np.ndarray) -> Tensor:
        """uint8 (n, h, w, 3) to latents float32 (n, c', h', w'), the mode of the posterior, or to uint8 (n, 3, h, w).

        Some pipelines take no latents: they get the pixels and encode them in every call.
        """
        pixels = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2)))
        if not self._latents:
            return pixels
        vae = self.pipeline.vae.to(self.device)
        # SDXL's VAE overflows in half precision; diffusers upcasts it too.
        upcast = self._vae_dtype == torch.float16 and vae.config.get("force_upcast")
        nn.Module.to(vae, torch.float32 if upcast else self._vae_dtype)

        def encode(rows: Tensor) -> Tensor:
            scaled = (rows.to(self.device).float() / 127.5 - 1).to(vae.dtype)
            mode: Tensor = vae.encode(scaled).latent_dist.mode().float()
            return mode

        with torch.inference_mode():
            latents = in_calls(encode, pixels, size=self.deterministic)
        return (latents - (vae.config.get("shift_factor") or 0.0)) * float(vae.config["scaling_factor"])

    @on_one_thread
    def make(self, references: Tensor, wanted: Wanted) -> Made:
        """One variant of each reference: one call of the pipeline for each level; for Kandinsky 3 also each prompt."""
        places = {level: choose(self._starts, level, self.grid, self.match) for level in set(wanted.levels.tolist())}
        calls: dict[tuple[Start, str], list[int]] = {}
        for row, level in enumerate(wanted.levels.tolist()):
            # Kandinsky 3 averages over the longest text of a call: with several prompts, images would depend on others.
            alone = self._kind == "Kandinsky3Img2ImgPipeline"
            calls.setdefault((places[level], wanted.prompts[row] if alone else ""), []).append(row)
        images: list[np.ndarray] = [np.empty(0)] * len(wanted)
        finite, denoised = np.zeros(len(wanted), bool), np.zeros(len(wanted), bool)
        for (place, _), every in calls.items():
            for some in torch.tensor(every).split(self.deterministic or len(every)):
                rows = some
                if self.deterministic or self._compiled:
                    (rows,) = fixed_shapes(some, size=self.deterministic)
                made = self._make(references[rows.to(references.device)], wanted.take(rows.numpy()), place, len(some))
                finite[some] = made.finite[: len(some)]
                denoised[some] = made.denoised is not None and made.denoised[: len(some)]
                for row, image in zip(some.tolist(), made.images, strict=False):
                    images[row] = image
        return Made(np.stack(images), finite, denoised)

    def seconds_per_call(self, references: Tensor, wanted: Wanted) -> float:
        """Times a call at the shallowest level, decoding included, after one call to warm up."""
        rows = np.full(len(wanted), np.argmin(wanted.levels))
        shallow = Wanted(wanted.labels, wanted.prompts, wanted.levels[rows], wanted.seeds)
        self.make(references, shallow)
        begin = time.perf_counter()
        self.make(references, shallow)
        seconds = time.perf_counter() - begin
        return seconds / (len(wanted) * self.level(int(shallow.levels[0])).calls * self.calls_a_step)

    @torch.inference_mode()
    def _make(self, references: Tensor, wanted: Wanted, place: Start, counted: int) -> Made:
        """One call of the pipeline; the first `counted` rows count as images made."""
        image = references if self._latents else references.float() / 255
        if self._kind == "IFImg2ImgPipeline":  # the only one whose images are -1 to 1
            image = image * 2 - 1
        factor = self.pipeline.vae_scale_factor if self._latents else 1
        height, width = (side * factor for side in image.shape[-2:])
        if self._kind == "KandinskyV22Img2ImgPipeline":  # it swaps them inside
            height, width = width, height
        # A torch generator keeps 32 of a seed's 63 bits, but no pipeline can be given the noise of its steps.
        generators = [torch.Generator().manual_seed(child_seed(seed, "torch")) for seed in wanted.seeds]
        offered: dict[str, Any] = {
            **_PLAIN,
            **self._guidance(),
            **self._prompts.arguments(wanted.prompts, generators),
            "height": height,
            "width": width,
        }
        if self._vae_dtype is not None:
            # SDXL's VAE is float32 after `encode`, and after a decoding that ran out of memory. diffusers' `to` warns.
            nn.Module.to(self.pipeline.vae, self._vae_dtype)
        with recorded(self.pipeline, place, counted) as record:
            x = self.pipeline(
                image=image.to(self.device),
                strength=place.strength,
                num_inference_steps=place.steps,
                generator=generators,
                output_type="pt",
                return_dict=False,
                **{key: value for key, value in offered.items() if key in self._arguments},
            )[0]
        made = to_pixels(x if self._kind == "IFImg2ImgPipeline" else x.float() * 2 - 1)
        denoised = torch.cat(record.denoised).cpu().numpy() if record.denoised else None
        return Made(made.images, made.finite & record.finite(len(wanted)), denoised)

    def _guidance(self) -> dict[str, Any]:
        if self._kind == "ZImageImg2ImgPipeline":  # takes w of arXiv 2207.12598, Eq. 6; all others take w + 1
            return {"guidance_scale": max(self.guidance_scale - 1, 0.0)}
        if "true_cfg_scale" not in self._arguments:
            return {"guidance_scale": self.guidance_scale}
        return {
            "true_cfg_scale": self.guidance_scale if self._second_pass else 1.0,
            "guidance_scale": self.guidance_scale if self._embedded else None,
        }


def _load(kind: type, folder: Path, dtype: torch.dtype, adapters: Sequence[Lora]) -> Any:
    """The pipeline on the CPU, LoRAs in its weights."""
    accepted = inspect.signature(kind).parameters
    unwanted = {key: value for key, value in _LEFT_OUT.items() if key in accepted}
    unwanted |= dict.fromkeys(_absent(kind, folder))
    pipeline = load_pipeline(kind, folder, dtype, **unwanted)
    merge_loras(pipeline, adapters)
    return pipeline


def _absent(kind: Any, folder: Path) -> list[str]:
    """The parts that a pipeline takes and a folder does not have.

    Raises:
        ValueError: the pipeline cannot do without one, or it is left out in a way that diffusers does not read.
    """
    saved = read_index(folder)
    parts, _ = kind._get_signature_keys(kind)
    if nulls := sorted(part for part in parts if part in saved and saved[part] is None):
        raise ValueError(
            f"{folder / 'model_index.json'} has null for its {', '.join(nulls)}, expected [null, null] for a part that "
            "is left out; correct it"
        )
    absent = sorted(part for part in parts if not (saved.get(part) or [None])[0])
    if needed := [part for part in absent if part not in {*kind._optional_components, *_LEFT_OUT, *_UNNEEDED}]:
        raise ValueError(
            f"{folder / 'model_index.json'} names no {', '.join(needed)}, which {kind.__name__} needs; copy or save "
            "the whole diffusers folder"
        )
    return absent


def _network(pipeline: Any) -> Any:
    return pipeline.components.get("transformer") or pipeline.components["unet"]


def _is_unet(network: Any) -> bool:
    return hasattr(network, "down_blocks")


def _sizes(pipeline: Any) -> tuple[int, int]:
    """The side a pipeline's model was trained at, and what both sides of an image are multiples of."""
    processor = getattr(pipeline, "image_processor", None)
    multiple: int = processor.config["vae_scale_factor"] if processor else 8
    factor: int = getattr(pipeline, "vae_scale_factor", multiple) if processor else 1  # pixels a latent, to a side
    multiple *= getattr(pipeline, "patch_size", 1)
    usual = getattr(pipeline, "default_sample_size", 1024 // factor)
    return int(_network(pipeline).config.get("sample_size") or usual) * factor, multiple
