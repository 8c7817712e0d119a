"""Prompts as a diffusers pipeline takes them: as embeddings that are made once, or as texts."""

import functools
import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch

from latebloom.data.names import shortened
from latebloom.synth.memory import device_lost, out_of_memory, words

__all__ = ["PipelinePrompts"]

_CLIP = ("prompt_embeds", "negative_prompt_embeds")
_CLIP_POOLED = (*_CLIP, "pooled_prompt_embeds", "negative_pooled_prompt_embeds")
# What `encode_prompt` gives, by the names under which `__call__` takes it back; "" for what it makes anew. Only where
# embeddings of single prompts can be put together; others are given the texts, and mask what they pad.
_EMBEDDINGS = {
    "StableDiffusionImg2ImgPipeline": _CLIP,
    "StableDiffusionXLImg2ImgPipeline": _CLIP_POOLED,
    "KolorsImg2ImgPipeline": _CLIP_POOLED,
    "StableDiffusion3Img2ImgPipeline": _CLIP_POOLED,
    "LatentConsistencyModelImg2ImgPipeline": _CLIP,
    "IFImg2ImgPipeline": _CLIP,
    "ZImageImg2ImgPipeline": _CLIP,
    "FluxImg2ImgPipeline": ("prompt_embeds", "pooled_prompt_embeds", ""),
    "ChromaImg2ImgPipeline": (
        "prompt_embeds",
        "",
        "prompt_attention_mask",
        "negative_prompt_embeds",
        "",
        "negative_prompt_attention_mask",
    ),
}


class PipelinePrompts:
    """What a pipeline is given for its prompts, and the text encoders that are needed for it.

    Embeddings are made in `prepare`, one prompt at a time, and kept on the CPU: 4 MB each for T5, and there may be
    thousands. Pipelines whose embeddings cannot be put together (Kandinsky, Qwen-Image, Sana-Sprint) get the texts.

    Args:
        pipeline: the image-to-image pipeline.
        prior: of Kandinsky 2.2, the pipeline that turns a prompt into an image embedding; None for all others.
        reload: loads the whole pipeline again, for its text encoders.
        negative: the negative prompt; empty: none.
        guided: whether the pipeline itself makes the unconditional call of each step.
        second_pass: whether guidance is an addition to the pipeline, which needs negative embeddings of its own.
    """

    def __init__(
        self,
        pipeline: Any,
        prior: Any,
        reload: Callable[[], Any],
        device: torch.device,
        *,
        negative: str,
        guided: bool,
        second_pass: bool,
    ) -> None:
        self._pipeline = pipeline
        self._prior = prior
        self._reload = reload
        self._device = device
        self._negative = negative or None
        self._guided = guided
        self._second_pass = second_pass
        self._names = _EMBEDDINGS.get(type(pipeline).__name__)
        self._embeddings: dict[str, dict[str, Any]] = {}

    def prepare(self, prompts: Sequence[str]) -> None:
        """Embed the prompts that are new, then free the text encoders.

        No other method may hold the encoders: they are gone before the network comes to the device.

        Raises:
            ValueError: the pipeline cannot use these encoders.
        """
        if self._names is None:
            return
        new = [prompt for prompt in dict.fromkeys(prompts) if prompt not in self._embeddings]
        encoders = [key for key in self._pipeline.components if key.startswith("text_encoder")]
        if new and all(getattr(self._pipeline, key) is None for key in encoders):
            fresh = self._reload()
            for key in encoders:
                setattr(self._pipeline, key, getattr(fresh, key))
        for encoder in (getattr(self._pipeline, key) for key in encoders):
            if encoder is not None:
                encoder.to(self._device)
        for prompt in new:
            try:
                self._embeddings[prompt] = self._embed(prompt)
            except Exception as error:  # of the libraries, which answer parts of another model with any of them
                if out_of_memory(error) or device_lost(error):
                    raise
                raise ValueError(
                    f"{type(self._pipeline).__name__} cannot embed {prompt!r} with the text encoders of its folder "
                    f"({shortened(words(error), 200)}); give a folder whose model_index.json names the pipeline that "
                    "its parts are of"
                ) from error
        for key in encoders:
            setattr(self._pipeline, key, None)

    def arguments(self, prompts: Sequence[str], generators: list[torch.Generator]) -> dict[str, Any]:
        """The arguments of the pipeline's call for these prompts.

        Raises:
            ValueError: a prompt that was not prepared.
        """
        # Qwen-Image guides only where it is given a negative prompt; its authors give a blank for none.
        negative = self._negative or (" " if self._second_pass else None)
        negatives = {"negative_prompt": [negative] * len(prompts)} if negative else {}
        if self._prior is not None:
            # With negative prompts it makes twice as many embeddings, each image's second from the same generator.
            drawn = generators * 2 if negatives else generators
            found = self._prior(prompt=list(prompts), generator=drawn, output_type="pt", return_dict=False, **negatives)
            return {"image_embeds": found[0], "negative_image_embeds": found[1]}
        if self._names is None:
            return {"prompt": list(prompts), **negatives}
        for prompt in prompts:
            if prompt not in self._embeddings:
                raise ValueError(f"prompt {prompt!r} was not prepared; give `prepare` every prompt before it is used")
        rows = [self._embeddings[prompt] for prompt in prompts]
        found = {key: self._stack([row[key] for row in rows]) for key in rows[0]}
        if type(self._pipeline).__name__ == "KolorsImg2ImgPipeline":
            # Its call encodes anew what it is given, and forgets the pooled embeddings there (diffusers 0.42).
            given = tuple(found.get(name) for name in self._names)
            self._pipeline.encode_prompt = lambda **_: given
        return found

    def _stack(self, values: list[Any]) -> Any:
        if isinstance(values[0], list):  # Z-Image: a tensor a prompt, each of its own length
            return [tensor.to(self._device) for value in values for tensor in value]
        return torch.cat(values).to(self._device)

    def _embed(self, prompt: str) -> dict[str, Any]:
        found = self._encode(prompt, self._negative)
        if self._second_pass and "negative_prompt_embeds" not in found:
            negative = self._encode(self._negative or "", None)
            found |= {f"negative_{key}": value for key, value in negative.items()}
        return found

    def _encode(self, prompt: str, negative: str | None) -> dict[str, Any]:
        encode = functools.partial(type(self._pipeline).encode_prompt, self._pipeline)
        offered = {
            "prompt": [prompt],
            "prompt_2": None,
            "prompt_3": None,
            "negative_prompt": [negative] if negative else None,
            "device": self._device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": self._guided,
        }
        accepted = inspect.signature(encode).parameters
        values = encode(**{key: value for key, value in offered.items() if key in accepted})
        assert self._names is not None
        named = zip(self._names, values, strict=True)
        return {key: _to_cpu(value) for key, value in named if key and value is not None}


def _to_cpu(value: Any) -> Any:
    return [tensor.cpu() for tensor in value] if isinstance(value, list) else value.cpu()
