"""Diffusion transformers without an image-to-image pipeline (DiT, PixArt, Sana, ...) as a `Denoiser`."""

import inspect
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latebloom.data.store import digest_file, digest_json
from latebloom.synth.config import Sampler
from latebloom.synth.generators.adapters import find_lora, merge_loras
from latebloom.synth.generators.classes import class_labels, mapping_of
from latebloom.synth.generators.diffusers_folder import (
    compile_network,
    fuse_projections,
    licence,
    load_part,
    load_pipeline,
    quiet,
)
from latebloom.synth.generators.families import FAMILIES, Family, transformer_classes
from latebloom.synth.generators.folder import digest_files, read_config, read_index
from latebloom.synth.generators.latent_space import LatentSpace, autoencoder_dtype
from latebloom.synth.generators.prompt_table import PromptTable, check_class_names, warn_of_cut
from latebloom.synth.generators.schedule import Schedule
from latebloom.synth.sampling.calls import fixed_shapes
from latebloom.synth.sampling.denoiser import PredictionType

__all__ = ["TransformerDenoiser"]


_LEFT_OUT = (
    "transformer",
    "vae",
    "safety_checker",
    "feature_extractor",
    "requires_safety_checker",
)  # to embed a prompt
_BERT_TOKENS, _T5_TOKENS = 77, 256  # of HunyuanDiT's two text encoders


class TransformerDenoiser:
    """A transformer in the latents of an autoencoder, conditioned on prompts or, for DiT, on class labels.

    Of a network that predicts a variance too (DiT, PixArt), that half is left out, as diffusers' pipelines do: the
    ancestral sampler has the posterior's own.

    A flow model has x = (1 - s) x0 + s eps, and its network gives v = eps - x0. The loop sees it divided by
    n = sqrt((1 - s)^2 + s^2), as a schedule that preserves variance: alphas_cumprod = (1 - s)^2 / n^2. `predict` gives
    x0 = x - s v. A DDIM step from s to r is then the Euler step of the flow, since eps = x + (1 - s) v:
    (1 - r) x0 + r eps = x + (r - s) v.

    Text encoders are in memory only inside `prepare`. `encode`, `decode` and `predict` return float32, whatever the
    dtype of the weights.
    """

    clip = 0.0
    channels = 3
    unconditional = True
    embedded_guidance = 0.0
    trained_on: frozenset[str] = frozenset()
    trained_on_words = ""

    def __init__(
        self,
        folder: Path,
        network: Any,
        vae: Any,
        *,
        family: Family,
        digest: str,
        dtype: torch.dtype,
        classes: str,
        negative_prompt: str,
        compiled: bool,
    ) -> None:
        self._folder = folder
        self._network = network.eval()
        self._space = LatentSpace(vae)
        self._family = family
        self._negative_prompt = negative_prompt
        self._prompts = PromptTable()
        self._compiled = compiled
        self.dtype = dtype
        self.device = next(network.parameters()).device
        self.digest = digest
        self.name = folder.name
        self.licence = licence(folder)

        config, schedule = network.config, read_config(folder / "scheduler" / "scheduler_config.json")
        self._flow: Tensor | None = None  # (2, T), of a flow model alone: s and n of each timestep
        self._times: Tensor  # (T,), what the network gets
        if family.velocity:
            sigmas = _flow_sigmas(schedule)
            norms = np.hypot(1 - sigmas, sigmas)
            self.alphas_cumprod: np.ndarray = ((1 - sigmas) / norms) ** 2
            self.prediction_type: PredictionType = "sample"
            self.ends_at_first: frozenset[Sampler] = frozenset()
            self._flow = torch.from_numpy(np.stack([sigmas, norms])).float().to(self.device)
            times = torch.from_numpy(family.timestep(sigmas)).float() * config.get("timestep_scale", 1.0)
        else:
            training = Schedule.of(folder, schedule)
            self.alphas_cumprod, self.prediction_type = training.alphas_cumprod, training.prediction_type
            self.ends_at_first = training.ends_at_first
            times = torch.arange(len(self.alphas_cumprod))
        self._times = times.to(self.device)
        consistency = schedule.get("_class_name") == "LCMScheduler"
        self.timestep_scaling = float(schedule.get("timestep_scaling", 10)) if consistency else 0.0
        self.size = config["sample_size"] * self._space.factor
        self.multiple = self._space.factor * config["patch_size"]
        self.largest = _patches(network) * self.multiple
        self._classes = classes
        self._class_names, self._num_classes = transformer_classes(folder) or ((), 0)
        if not family.embeddings:
            network.proj_out_2.register_forward_hook(_fill_square)

    @classmethod
    def load(
        cls,
        folder: Path,
        device: torch.device,
        *,
        dtype: torch.dtype,
        classes: str = "",
        negative_prompt: str = "",
        loras: Sequence[str] = (),
        compile: bool = False,
        fuse_qkv: bool = False,
    ) -> "TransformerDenoiser":
        """Load the network and autoencoder of a diffusers folder; weights from safetensors only.

        Args:
            dtype: of the network and text encoders; for the autoencoder see `autoencoder_dtype`.
            classes: as the setting `generate.classes`; no part of the digest, since the plan has the labels.
            negative_prompt: what "none" (-1) means to `predict`; empty: what the family's pipeline takes.
            loras: PATH or PATH@SCALE of .safetensors files, fused into the weights in this order.
            compile: torch.compile the network, at the first call and for each new shape; no part of the digest.
            fuse_qkv: one matrix product for query, key and value; no part of the digest.

        Raises:
            ValueError: another kind of model, missing or pickled files, a schedule that is not understood, a LoRA that
                does not fit.
        """
        import diffusers

        index = read_index(folder)
        name = str(index.get("_class_name"))
        if name not in FAMILIES:
            raise ValueError(
                f"{folder} holds a {name}, expected one of {', '.join(FAMILIES)}; set generate.kind to auto"
            )
        family = FAMILIES[name]
        if negative_prompt and not family.embeddings:
            raise ValueError(
                f"generator {folder.name} cannot use a negative prompt: it goes by classes; leave prompts.negative "
                "empty"
            )
        if classes and family.embeddings:
            raise ValueError(f"{folder} goes by prompts and has no classes of its own; leave generate.classes empty")
        adapters = [find_lora(spec) for spec in loras]
        digest = digest_json(
            {
                "family": name,
                "files": digest_files(folder),
                "loras": [(digest_file(file), scale) for file, scale in adapters],
                "negative_prompt": negative_prompt,
                "dtype": str(dtype),
            }
        )
        if adapters:  # fused in float32, so that a weight is rounded only once, after the change is added
            parts = [key for key, value in index.items() if isinstance(value, list)]
            without = dict.fromkeys(part for part in parts if part not in ("transformer", "scheduler"))
            pipeline = load_pipeline(getattr(diffusers, name), folder, torch.float32, **without)
            merge_loras(pipeline, adapters)
            network = pipeline.transformer.to(dtype)
        else:
            network = load_part(getattr(diffusers, family.network), folder, "transformer", dtype)
        vae_dtype = autoencoder_dtype(read_config(folder / "vae" / "config.json"), dtype)
        vae = load_part(getattr(diffusers, family.autoencoder), folder, "vae", vae_dtype)
        network.to(device)
        vae.to(device)
        if fuse_qkv:
            fuse_projections(network)
        if compile:
            compile_network(network)
        return cls(
            folder,
            network,
            vae,
            family=family,
            digest=digest,
            dtype=dtype,
            classes=classes,
            negative_prompt=negative_prompt,
            compiled=compile,
        )

    def check(self, class_names: tuple[str, ...]) -> None:
        """Raise ValueError where a class has no name for its prompt, or no partner among the model's classes."""
        if self._family.embeddings:
            check_class_names(class_names)
        else:
            self.labels_of(class_names)

    def labels_of(self, class_names: tuple[str, ...]) -> tuple[int, ...] | None:
        """DiT's class of each class, as `class_labels` finds it; None where it goes by the prompt."""
        if self._family.embeddings:
            return None
        labels = class_labels(class_names, self._class_names, self._num_classes, mapping_of(self._classes))
        return tuple(labels.tolist())

    @torch.inference_mode()
    def prepare(self, prompts: Sequence[str]) -> None:
        """Embed the prompts that are new, one at a time so that none depends on the others; then free the encoders.

        Warns of every prompt that is longer than the text encoder reads, with the part that is cut off.

        Raises:
            ValueError: broken text encoders.
        """
        new = self._prompts.missing(prompts)
        if not new or not self._family.embeddings:
            return
        import diffusers

        kind = getattr(diffusers, read_index(self._folder)["_class_name"])
        others = dict.fromkeys(part for part in _LEFT_OUT if part in inspect.signature(kind).parameters)
        pipeline = load_pipeline(kind, self._folder, self.dtype, **others)
        for part in pipeline.components.values():
            if isinstance(part, nn.Module):
                part.to(self.device)
        with quiet():  # of what is cut off, too: diffusers says it of the text that it makes of a prompt
            rows = [] if self._prompts else [self._embed(None, pipeline)]
            rows += [self._embed(prompt, pipeline) for prompt in new]
        self._prompts.add(new, rows)
        del pipeline, part
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def _embed(self, prompt: str | None, pipeline: Any) -> dict[str, Tensor]:
        """What the network is given for a prompt, as the family's own pipeline makes it; None: for "none"."""
        usual = {name: value.default for name, value in inspect.signature(type(pipeline).__call__).parameters.items()}
        offered = usual | {
            "prompt": prompt or "",
            "negative_prompt": self._negative_prompt or usual["negative_prompt"],
            "do_classifier_free_guidance": prompt is None,
            "device": self.device,
            "clean_caption": False,  # it would change prompts by installed packages
        }
        accepted = inspect.signature(pipeline.encode_prompt).parameters
        if prompt is not None:
            # Lumina puts a text of its own before each prompt.
            own = getattr(pipeline, "system_prompt", "")
            text = f"{own} <Prompt Start> {prompt}" if own else prompt
            shared = bool(usual.get("complex_human_instruction"))  # of Sana, whose start token counts twice
            warn_of_cut(prompt, text, pipeline.tokenizer, usual.get("max_sequence_length", _BERT_TOKENS) - shared)
        offered = {name: value for name, value in offered.items() if name in accepted}
        if "text_encoder_index" in accepted:  # HunyuanDiT: Bert and T5, each of prompt and "none" in turn
            both = [(0, _BERT_TOKENS), (1, _T5_TOKENS)]
            found = [
                pipeline.encode_prompt(**offered, text_encoder_index=index, max_sequence_length=most, dtype=self.dtype)
                for index, most in both
            ]
            chosen = [value for values in found for value in values[prompt is None :: 2]]
        else:
            values = pipeline.encode_prompt(**offered)
            half = len(self._family.embeddings)  # first those of the prompt, then those of "none"
            chosen = values[half:] if prompt is None else values[:half]
        return {name: value for name, value in zip(self._family.embeddings, chosen, strict=True) if name}

    def conditions(self, labels: np.ndarray, prompts: Sequence[str]) -> Tensor:
        """int64 (n,) on `device`: the row of each prompt or, for DiT, the labels.

        Raises:
            ValueError: a prompt that was not prepared.
        """
        if self._family.embeddings:
            return self._prompts.conditions(prompts, self.device)
        return torch.tensor(labels, dtype=torch.int64, device=self.device)

    def encode(self, images: np.ndarray) -> Tensor:
        """As `LatentSpace.encode`."""
        return self._space.encode(images)

    def decode(self, x0: Tensor) -> Tensor:
        """As `LatentSpace.decode`."""
        return self._space.decode(x0)

    @torch.inference_mode()
    def predict(self, x: Tensor, timesteps: Tensor, conditions: Tensor) -> Tensor:
        """What `prediction_type` says, float32 like x (n, c', h', w'), at timesteps int64 (n,); -1 is "none"."""
        count = len(x)
        if self._compiled:
            x, timesteps, conditions = fixed_shapes(x, timesteps, conditions)
        if self._flow is None:
            return self._call(x, timesteps, conditions)[:count]
        sigmas, norms = self._flow[:, timesteps, None, None, None]
        x = norms * x
        velocity = self._family.velocity * self._call(x, timesteps, conditions)
        x0: Tensor = x - sigmas * velocity
        return x0[:count]

    def _call(self, x: Tensor, timesteps: Tensor, conditions: Tensor) -> Tensor:
        """The network's output without the variance, float32 like x."""
        height, width = x.shape[2:]
        times = self._times[timesteps]
        arguments: dict[str, Any]
        if self._family.embeddings:
            arguments = self._prompts.take(conditions) | {"timestep": times} | self._sizes(x, times)
        else:
            arguments = {"timestep": times, "class_labels": torch.where(conditions < 0, self._num_classes, conditions)}
        # By name: families disagree about the order.
        output: Tensor = self._network(hidden_states=x.to(self.dtype), return_dict=False, **arguments)[0].float()
        if output.shape[2:] != x.shape[2:]:
            output = _unfilled(output, height, width, self._network.config["patch_size"])
        return output[:, : x.shape[1]]

    def _sizes(self, x: Tensor, times: Tensor) -> dict[str, Any]:
        """What else a network of prompts is told: the size of the image, neither resized nor cropped."""
        height, width = (side * self._space.factor for side in x.shape[2:])
        size = torch.tensor([[height, width]], device=x.device, dtype=self.dtype).expand(len(x), -1)
        if self._family.network == "PixArtTransformer2DModel":
            if self._network.config["sample_size"] != 128:
                return {"added_cond_kwargs": {"resolution": None, "aspect_ratio": None}}
            ratio = torch.full_like(size[:, :1], height / width)
            return {"added_cond_kwargs": {"resolution": size, "aspect_ratio": ratio}}
        if self._family.network == "CogView3PlusTransformer2DModel":
            return {"original_size": size, "target_size": size, "crop_coords": torch.zeros_like(size)}
        if self._family.network == "HunyuanDiT2DModel":
            square = torch.tensor([[1024, 1024]], device=x.device, dtype=self.dtype).expand(len(x), -1)
            return {
                "timestep": times.to(self.dtype),  # whose dtype its first layers take for theirs
                "image_meta_size": torch.cat([square, size, torch.zeros_like(size)], 1),  # as its pipeline has it
                "style": torch.zeros(len(x), dtype=torch.int64, device=x.device),
                "image_rotary_emb": self._rotary(*x.shape[2:]),
            }
        return {}

    def _rotary(self, height: int, width: int) -> Any:
        """HunyuanDiT's position embedding of latents of this size."""
        from diffusers.models.embeddings import get_2d_rotary_pos_embed
        from diffusers.pipelines.hunyuandit.pipeline_hunyuandit import get_resize_crop_region_for_grid

        patch = self._network.config["patch_size"]
        grid = height // patch, width // patch
        region = get_resize_crop_region_for_grid(grid, 64 // patch)  # trained at 512 pixels first
        width_of_head = self._network.inner_dim // self._network.num_heads
        return get_2d_rotary_pos_embed(width_of_head, region, grid, device=self.device, output_type="pt")


def _patches(network: Any) -> int:
    """How many patches its table of positions has, to a side; 0: they are computed for any number."""
    config, name = network.config, type(network).__name__
    if name == "AuraFlowTransformer2DModel":
        return math.isqrt(config["pos_embed_max_size"])  # of all patches
    if name == "CogView3PlusTransformer2DModel":
        return int(config["pos_embed_max_size"])
    return int(min(config["axes_lens"][1:])) if name == "Lumina2Transformer2DModel" else 0


def _flow_sigmas(settings: dict[str, Any]) -> np.ndarray:
    """The noise level of each training timestep, float64 (T,), ascending to 1.

    A shift that depends on the image's size is left out: it would space the levels of `steps` and `strength` alone.

    Raises:
        ValueError: the scheduler is none of a flow.
    """
    if settings.get("use_flow_sigmas"):
        shift = settings.get("flow_shift", 1.0)
    elif str(settings["_class_name"]).startswith("FlowMatch"):
        shift = 1.0 if settings.get("use_dynamic_shifting") else settings.get("shift", 1.0)
    else:
        raise ValueError(
            f"got a {settings['_class_name']}, expected the schedule of a flow; save the model with "
            "FlowMatchEulerDiscreteScheduler"
        )
    total = settings.get("num_train_timesteps", 1000)
    sigmas = np.arange(1, total + 1) / total
    return np.asarray(shift * sigmas / (1 + (shift - 1) * sigmas))  # arXiv 2403.03206, Eq. 23


def _fill_square(_module: nn.Module, _inputs: Any, tokens: Tensor) -> Tensor:
    """Tokens (n, t, d) filled up to a square number: DiT puts its patches together as a square, whatever came in."""
    side = math.isqrt(tokens.shape[1] - 1) + 1
    return nn.functional.pad(tokens, (0, 0, 0, side**2 - tokens.shape[1]))


def _unfilled(square: Tensor, height: int, width: int, patch: int) -> Tensor:
    """The patches of `_fill_square`, from the square (n, c, s, s) back in their own shape, (n, c, height, width)."""
    patches = nn.functional.unfold(square, patch, stride=patch)
    count = height * width // patch**2
    return nn.functional.fold(patches[:, :, :count], (height, width), patch, stride=patch)
