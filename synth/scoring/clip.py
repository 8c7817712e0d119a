"""Scores by CLIP models: how well an image fits its class, and whether a generator's safety checker flags it."""

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latebloom.data.store import digest_file, digest_json, read_json

__all__ = ["ClipScorer", "SafetyScorer", "clip_digest", "safety_digest"]

_BATCH_SIZE = 64


@dataclasses.dataclass(frozen=True)
class ClipScorer:
    """How well images fit the texts of their classes (CLIP, arXiv 2103.00020). A `quality.ClipScore`.

    Attributes:
        model: a transformers `CLIPModel` in eval mode, float32.
        processor: its image processor, which says how images are resized, cut and normalised.
        texts: float32 (K, D) on the model's device, the text of each class at length 1.
    """

    model: Any
    processor: Any
    texts: Tensor

    @classmethod
    def load(cls, folder: Path, class_prompts: Sequence[str], device: torch.device) -> "ClipScorer":
        """Load a CLIP model from a folder of transformers; nothing is downloaded. Texts are embedded here, once.

        Args:
            class_prompts: one text a class, in the order of the labels.

        Raises:
            ValueError: no CLIP folder, pickled or missing weights, a prompt that is longer than CLIP reads.
        """
        from transformers import CLIPModel, CLIPProcessor

        _check_folder(folder, "CLIPModel", "a CLIP model")
        model = _load(CLIPModel, folder).to(device).eval()
        processor = CLIPProcessor.from_pretrained(folder, local_files_only=True)
        tokens = processor.tokenizer(list(class_prompts), padding=True, return_tensors="pt")
        longest = model.config.text_config.max_position_embeddings
        too_long = np.flatnonzero(tokens["attention_mask"].sum(1).numpy() > longest)
        if len(too_long):
            raise ValueError(
                f"the prompt {class_prompts[too_long[0]]!r} is longer than the {longest} tokens CLIP reads; shorten it"
            )
        with torch.inference_mode():
            texts = _unit(model.get_text_features(**tokens.to(device)).pooler_output)
        return cls(model, processor.image_processor, texts)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The score of each image with its own class, and its margin over the best other class.

        Args:
            images: uint8 (n, H, W, 1 or 3).
            labels: int64 (n,).

        Returns:
            cosines float64 (n,), -1..1; margins float64 (n,), -2..2, inf where there is no other class.
        """
        cosines = [
            (_unit(self.model.get_image_features(pixels).pooler_output) @ self.texts.T).double().cpu()
            for pixels in _batches(self.processor, images, self.texts.device)
        ]
        cosine = torch.cat(cosines).numpy()  # (n, K)
        rows = np.arange(len(labels))
        own = cosine[rows, labels]
        cosine[rows, labels] = -np.inf
        return own, own - cosine.max(1)


@dataclasses.dataclass(frozen=True)
class SafetyScorer:
    """The safety checker that a Stable Diffusion folder ships, as a score. A `quality.SafetyFlag`.

    Attributes:
        checker: diffusers' `StableDiffusionSafetyChecker` in eval mode, float32.
        processor: its image processor.
    """

    checker: Any
    processor: Any

    @classmethod
    def load(cls, generator: Path, device: torch.device) -> "SafetyScorer | None":
        """Load `safety_checker/` and `feature_extractor/` of a diffusers folder; None where it ships no such checker.

        Raises:
            ValueError: pickled or missing weights, no feature extractor.
        """
        folder, extractor = generator / "safety_checker", generator / "feature_extractor"
        if not (folder / "config.json").is_file() or not _is_kind(folder, "StableDiffusionSafetyChecker"):
            return None
        _check_folder(folder, "StableDiffusionSafetyChecker", "a safety checker")
        if not (extractor / "preprocessor_config.json").is_file():
            raise ValueError(
                f"{generator} has a safety checker but no feature_extractor/preprocessor_config.json; copy the whole "
                "folder"
            )
        from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
        from transformers import CLIPImageProcessor

        # It would warn that a black image is returned, which is not true here: it gets no image to blank.
        logging.getLogger(StableDiffusionSafetyChecker.__module__).setLevel(logging.ERROR)
        checker = _load(StableDiffusionSafetyChecker, folder).to(device).eval()
        processor = CLIPImageProcessor.from_pretrained(extractor, local_files_only=True)
        return cls(checker, processor)

    @torch.inference_mode()
    def __call__(self, images: np.ndarray) -> np.ndarray:
        """float64 (n,): 1 where an image uint8 (n, H, W, 1 or 3) is flagged, else 0. The images stay as they are."""
        device = next(self.checker.parameters()).device
        flags: list[bool] = []
        for pixels in _batches(self.processor, images, device):
            # It blanks flagged images of the second argument, in place.
            flags += self.checker(pixels, [np.zeros(0)] * len(pixels))[1]
        return np.array(flags, np.float64)


def clip_digest(folder: Path, class_prompts: Sequence[str]) -> str:
    """SHA-256 of everything that a `ClipScorer`'s scores depend on; the model is not loaded."""
    return digest_json({"folder": _digest(folder), "prompts": list(class_prompts)})


def safety_digest(generator: Path) -> str:
    """SHA-256 of everything that a `SafetyScorer`'s flags depend on; the model is not loaded."""
    return digest_json([_digest(generator / part) for part in ("safety_checker", "feature_extractor")])


def _batches(processor: Any, images: np.ndarray, device: torch.device) -> Iterator[Tensor]:
    """float32 (b, 3, h, w): images uint8 (n, H, W, 1 or 3) as the processor prepares them; grey is repeated."""
    for start in range(0, len(images), _BATCH_SIZE):
        batch = torch.from_numpy(np.array(images[start : start + _BATCH_SIZE].transpose(0, 3, 1, 2))).to(device)
        batch = batch.expand(-1, 3, -1, -1)
        yield processor(list(batch), return_tensors="pt", input_data_format="channels_first")["pixel_values"]


def _unit(x: Tensor) -> Tensor:
    return torch.nn.functional.normalize(x.float(), dim=1)


def _is_kind(folder: Path, kind: str) -> bool:
    return kind in read_json(folder / "config.json").get("architectures", [])


def _check_folder(folder: Path, kind: str, words: str) -> None:
    """Raise ValueError where a folder holds another model, or no weights in safetensors."""
    if not (folder / "config.json").is_file():
        raise ValueError(f"{folder} has no config.json, expected the folder of {words}; give that folder")
    if not _is_kind(folder, kind):
        found = ", ".join(read_json(folder / "config.json").get("architectures", [])) or "something else"
        raise ValueError(f"{folder} holds {found}, expected {words} ({kind}); give the folder of one")
    if not list(folder.glob("*.safetensors")):
        raise ValueError(
            f"{folder} has no weights in safetensors; pickled ones (.bin) are refused: save the model as safetensors"
        )


def _load(kind: Any, folder: Path) -> Any:
    """A transformers model in float32 from a folder, all of it."""
    model, info = kind.from_pretrained(
        folder, use_safetensors=True, local_files_only=True, dtype=torch.float32, output_loading_info=True
    )
    if info["missing_keys"]:  # transformers would leave them at random values
        raise ValueError(
            f"{folder} lacks {len(info['missing_keys'])} weights, such as {min(info['missing_keys'])}; copy it again"
        )
    return model


def _digest(folder: Path) -> str:
    """SHA-256 of the settings, vocabulary and weights in a folder."""
    files = sorted(file for file in folder.iterdir() if file.suffix in (".safetensors", ".json", ".txt"))
    return digest_json({file.name: digest_file(file) for file in files})
