"""Stable Diffusion 1.x, 2.x, SDXL and their LCM and Turbo children as a `Denoiser`, from a diffusers folder."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latebloom.data.store import digest_file, digest_json
from latebloom.synth.generators.adapters import (
    Lora,
    TextualInversion,
    add_textual_inversion,
    find_lora,
    find_textual_inversion,
    merge_loras,
)
from latebloom.synth.generators.card import read_card
from latebloom.synth.generators.checkpoint import Checkpoint
from latebloom.synth.generators.diffusers_folder import (
    compile_network,
    fuse_projections,
    licence,
    limit_tokens,
    quiet,
    whole,
)
from latebloom.synth.generators.latent_space import LatentSpace, autoencoder_dtype
from latebloom.synth.generators.prompt_table import PromptTable, check_class_names, warn_of_cut
from latebloom.synth.generators.schedule import Schedule
from latebloom.synth.sampling.calls import fixed_shapes

__all__ = ["USUAL_GUIDANCE", "LatentDenoiser"]

USUAL_GUIDANCE = 8.5  # of diffusers' LCM pipelines


class LatentDenoiser:
    """A `UNet2DConditionModel` in the latents of an `AutoencoderKL`, conditioned on prompts through CLIP.

    Text encoders are in memory only inside `prepare`; afterwards a condition is a row of a table of prompt embeddings.
    `encode`, `decode` and `predict` return float32, whatever the dtype of the weights.
    """

    clip = 0.0
    largest = 0
    channels = 3

    def __init__(
        self,
        checkpoint: Checkpoint,
        unet: Any,
        vae: Any,
        *,
        digest: str,
        dtype: torch.dtype,
        negative_prompt: str,
        loras: Sequence[Lora],
        textual_inversions: Sequence[TextualInversion],
        embedded_guidance: float,
        compiled: bool,
    ) -> None:
        from diffusers.models.embeddings import get_timestep_embedding

        self._checkpoint = checkpoint
        self._unet = unet.eval()
        self._space = LatentSpace(vae)
        self._loras = loras
        self._textual_inversions = textual_inversions
        self._negative_prompt = negative_prompt
        self._prompts = PromptTable()
        self._compiled = compiled
        self.dtype = dtype
        self.device = next(unet.parameters()).device
        self.digest = digest
        self.name = checkpoint.folder.name
        self.licence = licence(checkpoint.folder)
        card = read_card(checkpoint.folder)
        self.trained_on: frozenset[str] = frozenset(card.get("trained_on_sha256", ()))
        self.trained_on_words: str = card.get("trained_on", "")

        settings = checkpoint.configs["scheduler"]
        schedule = Schedule.of(checkpoint.folder, settings)
        self.alphas_cumprod = schedule.alphas_cumprod
        self.prediction_type = schedule.prediction_type
        self.ends_at_first = schedule.ends_at_first
        # A consistency model distilled with guidance takes the scale as an embedding and has no "none".
        width = self._unet.config["time_cond_proj_dim"]
        self.unconditional = width is None
        consistency = width is not None or settings.get("_class_name") == "LCMScheduler"
        self.timestep_scaling = float(settings.get("timestep_scaling", 10)) if consistency else 0.0
        self.embedded_guidance = 0.0 if width is None else embedded_guidance
        self._guidance: Tensor | None = None  # (1, width)
        if width is not None:  # of 1000 (scale - 1), as diffusers' LCM pipelines have it
            scale = torch.tensor([1000 * (embedded_guidance - 1)])
            self._guidance = get_timestep_embedding(scale, width, downscale_freq_shift=1).to(self.device, dtype)

        self.size = int(self._unet.config["sample_size"]) * self._space.factor
        # Every level of the UNet must halve evenly, too.
        self.multiple = self._space.factor * 2 ** (len(self._unet.config["block_out_channels"]) - 1)

    @classmethod
    def load(
        cls,
        folder: Path,
        device: torch.device,
        *,
        dtype: torch.dtype,
        negative_prompt: str = "",
        loras: Sequence[str] = (),
        textual_inversions: Sequence[str] = (),
        embedded_guidance: float = USUAL_GUIDANCE,
        compile: bool = False,
        fuse_qkv: bool = False,
    ) -> "LatentDenoiser":
        """Load the UNet and VAE of a diffusers folder; weights from safetensors only, pickles are refused.

        Args:
            dtype: of the UNet and text encoders; for the VAE see `autoencoder_dtype`.
            negative_prompt: what "none" (-1) means to `predict`.
            loras: "path" or "path@scale" of safetensors files or folders; merged into the weights in this order.
            textual_inversions: safetensors files or folders of embeddings of new words for prompts.
            embedded_guidance: guidance scale for a model that takes it as an embedding (LCM); others ignore it.
            compile: `torch.compile` the UNet's repeated blocks, at the first call and for each new shape; no part of
                the digest.
            fuse_qkv: one matrix product for query, key and value; no part of the digest.

        Raises:
            ValueError: another kind of model, missing or pickled files, an adapter that does not fit.
        """
        from diffusers import AutoencoderKL, UNet2DConditionModel

        checkpoint = Checkpoint.read(folder)
        embeds_guidance = checkpoint.configs["unet"].get("time_cond_proj_dim") is not None
        if negative_prompt and embeds_guidance:
            raise ValueError(
                f"generator {folder.name} cannot use a negative prompt: its guidance is embedded in the network; leave "
                "prompts.negative empty"
            )
        encoders = [config for part, config in checkpoint.configs.items() if part.startswith("text_encoder")]
        widths = [config.get("hidden_size", 512) for config in encoders]  # transformers' default
        lora_files = [find_lora(text) for text in loras]
        words = [find_textual_inversion(path, widths) for path in textual_inversions]
        digest = digest_json(
            {
                "model": checkpoint.contents(),
                "loras": [(digest_file(file), scale) for file, scale in lora_files],
                "textual_inversions": [(digest_file(file), token) for file, token in words],
                "negative_prompt": negative_prompt,
                "embedded_guidance": embedded_guidance if embeds_guidance else None,
                "dtype": str(dtype),
            }
        )
        # Merged in float32, so that a weight is rounded only once, after the change is added.
        unet = checkpoint.load(UNet2DConditionModel, "unet", torch.float32 if loras else dtype)
        if loras:
            merge_loras(_pipeline(checkpoint, unet=unet), lora_files, unet.config)
            torch.nn.Module.to(unet, dtype)  # diffusers' own `to` warns of layers to keep in float32; there are none
        vae = checkpoint.load(AutoencoderKL, "vae", autoencoder_dtype(checkpoint.configs["vae"], dtype))
        layout = torch.channels_last if device.type == "cuda" else torch.preserve_format
        unet.to(device, memory_format=layout)
        vae.to(device, memory_format=layout)
        if fuse_qkv:
            fuse_projections(unet)
        if compile:
            compile_network(unet)
        return cls(
            checkpoint,
            unet,
            vae,
            digest=digest,
            dtype=dtype,
            negative_prompt=negative_prompt,
            loras=lora_files,
            textual_inversions=words,
            embedded_guidance=embedded_guidance,
            compiled=compile,
        )

    def check(self, class_names: tuple[str, ...]) -> None:
        """Raise ValueError where a class has no name for its prompt."""
        check_class_names(class_names)

    def labels_of(self, class_names: tuple[str, ...]) -> None:
        """None: it goes by the prompt."""

    @torch.inference_mode()
    def prepare(self, prompts: Sequence[str]) -> None:
        """Embed the prompts that are new, one at a time so that none depends on the others; then free the encoders.

        Warns of every prompt that is longer than the text encoder reads, with the part that is cut off.

        Raises:
            ValueError: broken text encoders, or a LoRA or textual inversion that does not fit them.
        """
        new = self._prompts.missing(prompts)
        if not new:
            return
        first = not self._prompts
        with quiet():
            encoders = self._text_encoders()
        rows = [_embed(text, encoders, self._checkpoint.sdxl) for text in [self._negative_prompt] * first + new]
        if first and self._checkpoint.zeros_for_none and not self._negative_prompt:
            rows[0] = {name: torch.zeros_like(tensor) for name, tensor in rows[0].items()}
        self._prompts.add(new, rows)
        del encoders
        if self.device.type == "cuda":
            torch.cuda.empty_cache()

    def conditions(self, labels: np.ndarray, prompts: Sequence[str]) -> Tensor:
        """int64 (n,) on `device`: the row of each prompt; labels are ignored.

        Raises:
            ValueError: a prompt that was not prepared.
        """
        return self._prompts.conditions(prompts, self.device)

    def encode(self, images: np.ndarray) -> Tensor:
        """As `LatentSpace.encode`."""
        return self._space.encode(images)

    def decode(self, x0: Tensor) -> Tensor:
        """As `LatentSpace.decode`."""
        return self._space.decode(x0)

    @torch.inference_mode()
    def predict(self, x: Tensor, timesteps: Tensor, conditions: Tensor) -> Tensor:
        """The UNet's output, float32 like x (n, c', h', w'), at timesteps int64 (n,); a condition of -1 is "none"."""
        count = len(x)
        if self._compiled:
            x, timesteps, conditions = fixed_shapes(x, timesteps, conditions)
        text = self._prompts.take(conditions)
        added = None
        if self._checkpoint.sdxl:
            height, width = (side * self._space.factor for side in x.shape[2:])
            # Original size, corner of the crop, target size (arXiv 2307.01952, section 2.2): not resized, not cropped.
            sizes = torch.tensor([height, width, 0, 0, height, width], device=x.device).expand(len(x), -1)
            added = {"text_embeds": text["pooled"], "time_ids": sizes}
        output: Tensor = self._unet(
            x.to(self.dtype),
            timesteps,
            encoder_hidden_states=text["hidden"],
            timestep_cond=None if self._guidance is None else self._guidance.expand(len(x), -1),
            added_cond_kwargs=added,
            return_dict=False,
        )[0]
        return output[:count].float()

    def _text_encoders(self) -> Any:
        """A diffusers pipeline of tokenizers and text encoders alone, on `device`, with all adapters in them."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

        checkpoint = self._checkpoint
        dtype = torch.float32 if self._loras else self.dtype
        parts = {"text_encoder": checkpoint.load(CLIPTextModel, "text_encoder", dtype)}
        if checkpoint.sdxl:
            parts["text_encoder_2"] = checkpoint.load(CLIPTextModelWithProjection, "text_encoder_2", dtype)
        tokenizers = {}
        for part in checkpoint.configs:
            if part.startswith("tokenizer"):
                with whole(checkpoint.folder / part):
                    tokenizers[part] = CLIPTokenizer.from_pretrained(checkpoint.folder / part, local_files_only=True)
                limit_tokens(tokenizers[part], parts[part.replace("tokenizer", "text_encoder")])
        pipeline = _pipeline(checkpoint, **parts, **tokenizers)
        merge_loras(pipeline, self._loras, self._unet.config)
        for inversion in self._textual_inversions:
            add_textual_inversion(pipeline, inversion)
        for part in parts.values():
            part.to(self.device, self.dtype).eval()
        return pipeline


def _pipeline(checkpoint: Checkpoint, **parts: Any) -> Any:
    """A diffusers pipeline of some parts only, whose methods load adapters."""
    from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline

    every = dict.fromkeys(checkpoint.configs) | parts
    if checkpoint.sdxl:
        return StableDiffusionXLPipeline(**every, add_watermarker=False)
    return StableDiffusionPipeline(**every, safety_checker=None, feature_extractor=None, requires_safety_checker=False)


def _embed(prompt: str, pipeline: Any, sdxl: bool) -> dict[str, Tensor]:
    """Hidden states (1, L, D) of a prompt and, for SDXL, pooled text (1, D'): those of `pipeline.encode_prompt`.

    With one encoder, its last hidden state. With SDXL's two, the last but one of both, side by side, and the pooled
    text of the second.
    """
    hidden = []
    for suffix in ("", "_2") if sdxl else ("",):
        tokenizer, encoder = getattr(pipeline, f"tokenizer{suffix}"), getattr(pipeline, f"text_encoder{suffix}")
        text = pipeline.maybe_convert_prompt(prompt, tokenizer)  # an inversion of several vectors is several words
        limit = tokenizer.model_max_length
        if not suffix:
            warn_of_cut(prompt, text, tokenizer, limit)
        tokens = tokenizer(text, padding="max_length", max_length=limit, truncation=True, return_tensors="pt")
        output = encoder(tokens.input_ids.to(encoder.device), output_hidden_states=True)
        hidden.append(output.hidden_states[-2] if sdxl else output.last_hidden_state)
    pooled = {"pooled": output.text_embeds} if sdxl else {}
    return {"hidden": torch.cat(hidden, -1), **pooled}
