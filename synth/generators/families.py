"""The families of transformers that our own loop drives: what their networks differ in. Light to import."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from latebloom.synth.generators.folder import read_config, read_index

__all__ = ["FAMILIES", "Family", "transformer_classes"]


@dataclasses.dataclass(frozen=True)
class Family:
    """How the network of one pipeline of diffusers is called.

    Attributes:
        network, autoencoder: their classes in diffusers.
        embeddings: the arguments of the network that the first values of `encode_prompt` are; "" for one that it does
            not take. Empty where the network takes a class label.
        velocity: of a flow model, what the network's output is times eps - x0: 1, or -1. 0: the model is none, and its
            scheduler says what it predicts.
        timestep: of a flow model, what the network is given for noise level s, 0 to 1.
    """

    network: str
    embeddings: tuple[str, ...] = ()
    autoencoder: str = "AutoencoderKL"
    velocity: int = 0
    timestep: Callable[[np.ndarray], np.ndarray] = lambda s: 1000 * s


_TEXT = "encoder_hidden_states"
_MASKED = (_TEXT, "encoder_attention_mask")

# By the class that model_index.json names.
FAMILIES: dict[str, Family] = {
    "DiTPipeline": Family("DiTTransformer2DModel"),
    "PixArtAlphaPipeline": Family("PixArtTransformer2DModel", _MASKED),
    "PixArtSigmaPipeline": Family("PixArtTransformer2DModel", _MASKED),
    "SanaPipeline": Family("SanaTransformer2DModel", _MASKED, "AutoencoderDC", velocity=1),
    "AuraFlowPipeline": Family("AuraFlowTransformer2DModel", (_TEXT, ""), velocity=1, timestep=lambda s: s),
    "Lumina2Pipeline": Family("Lumina2Transformer2DModel", _MASKED, velocity=-1, timestep=lambda s: 1 - s),
    "CogView3PlusPipeline": Family("CogView3PlusTransformer2DModel", (_TEXT,)),
    "HunyuanDiTPipeline": Family(
        "HunyuanDiT2DModel",
        (_TEXT, "text_embedding_mask", f"{_TEXT}_t5", "text_embedding_mask_t5"),
    ),
}
FAMILIES["Lumina2Text2ImgPipeline"] = FAMILIES["Lumina2Pipeline"]  # its name in older folders


def transformer_classes(folder: Path) -> tuple[tuple[str, ...], int] | None:
    """The names of a transformer's classes by label, and how many there are; None: it goes by prompts.

    No names where model_index.json has no id2label. A class may have several names, with commas between.
    """
    index = read_index(folder)
    if FAMILIES[index["_class_name"]].embeddings:
        return None
    count = read_config(folder / "transformer" / "config.json").get("num_embeds_ada_norm", 1000)
    names = index.get("id2label") or {}
    return tuple(names.get(str(label), "") for label in range(count)) if names else (), count
