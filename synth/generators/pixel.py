"""Class-conditional `UNet2DModel` in pixel space, from a diffusers folder; the shipped digits generator is one."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from latebloom.data.store import digest_file, digest_json
from latebloom.synth.config import Sampler
from latebloom.synth.generators.card import read_card
from latebloom.synth.generators.classes import class_labels, mapping_of, pixel_classes
from latebloom.synth.generators.diffusers_folder import compile_network, licence, load_part
from latebloom.synth.generators.folder import network_weights, parts_of, read_config, read_index
from latebloom.synth.generators.schedule import Schedule
from latebloom.synth.sampling.calls import fixed_shapes
from latebloom.synth.sampling.denoiser import PredictionType

__all__ = ["PixelDenoiser"]

_CONFIG_FILES = {"unet": "config.json", "scheduler": "scheduler_config.json"}


class PixelDenoiser:
    """A `UNet2DModel` with class embeddings behind the `Denoiser` interface.

    The last class embedding is "no label" where the model has one more than there are classes. Prompts are ignored:
    the label says what to make.
    """

    largest = 0
    embedded_guidance = 0.0
    timestep_scaling = 0.0

    def __init__(
        self,
        unet: nn.Module,
        alphas_cumprod: np.ndarray,
        prediction_type: PredictionType,
        *,
        num_classes: int,
        name: str,
        digest: str,
        class_names: tuple[str, ...] = (),
        classes: str = "",
        trained_on: frozenset[str] = frozenset(),
        trained_on_words: str = "",
        licence: str = "",
        clip: float = 1.0,
        ends_at_first: frozenset[Sampler] = frozenset(),
        compiled: bool = False,
    ) -> None:
        self.unet = unet.eval()
        self.compiled = compiled
        self.alphas_cumprod = alphas_cumprod
        self.prediction_type = prediction_type
        self.clip = clip
        self.ends_at_first = ends_at_first
        self.num_classes = num_classes
        self.name = name
        self.digest = digest
        self.class_names = class_names
        self.classes = classes
        self.trained_on = trained_on
        self.trained_on_words = trained_on_words
        self.licence = licence
        weight = next(unet.parameters())
        self.device, self.dtype = weight.device, weight.dtype
        config: Any = unet.config
        self.unconditional: bool = config["num_class_embeds"] > num_classes
        self.size = int(config["sample_size"])
        self.multiple = 2 ** (len(config["block_out_channels"]) - 1)
        self.channels = int(config["in_channels"])

    @classmethod
    def load(
        cls,
        folder: Path,
        device: torch.device,
        dtype: torch.dtype = torch.float32,
        compile: bool = False,
        classes: str = "",
    ) -> "PixelDenoiser":
        """Load `unet/` and `scheduler/` of a diffusers folder; weights from safetensors only, pickles are refused.

        Args:
            classes: as the setting `generate.classes`; no part of the digest, since the labels say what is made.

        Raises:
            ValueError: another kind of model, missing or broken files, a schedule or prediction type that is not
                understood, no class conditioning.
        """
        from diffusers import UNet2DModel

        index = read_index(folder)
        kind = parts_of(folder).get("unet", ("", ""))[1]
        if kind != "UNet2DModel":
            raise ValueError(
                f"{folder} holds a {kind or index.get('_class_name')}, expected a UNet2DModel for a pixel generator; "
                "set generate.kind to auto"
            )
        weights = network_weights(folder, "unet").files
        for part, file in _CONFIG_FILES.items():
            if not (folder / part / file).is_file():
                raise ValueError(f"{folder} has no {part}/{file}; copy or save the whole diffusers folder")
        configs = {part: read_config(folder / part / file) for part, file in _CONFIG_FILES.items()}
        schedule = Schedule.of(folder, configs["scheduler"])
        unet = load_part(UNet2DModel, folder, "unet", dtype)
        if device.type == "cuda":
            unet.to(memory_format=torch.channels_last)
        if compile:
            compile_network(unet)
        embeddings = unet.config["num_class_embeds"]
        if not embeddings:
            raise ValueError(
                f"{folder} has no class embeddings, expected one for each class, so that images keep their label; give "
                "a class-conditional model"
            )
        if unet.config["out_channels"] != unet.config["in_channels"]:
            raise ValueError(
                f"{folder} predicts a variance too (learned_range), expected the image or its noise alone; give a "
                "model without it"
            )
        card = read_card(folder)
        class_names, num_classes = pixel_classes(folder)
        # Keys with an underscore name the version of diffusers and a path; they do not change the model.
        settings = {
            part: {key: value for key, value in config.items() if not key.startswith("_")}
            for part, config in configs.items()
        }
        digests = [digest_file(file) for file in weights]
        about = {"weights": digests if len(digests) > 1 else digests[0], "settings": settings, "dtype": str(dtype)}
        return cls(
            unet.to(device),
            schedule.alphas_cumprod,
            schedule.prediction_type,
            num_classes=num_classes,
            name=folder.name,
            digest=digest_json(about),
            class_names=class_names,
            classes=classes,
            trained_on=frozenset(card.get("trained_on_sha256", ())),
            trained_on_words=card.get("trained_on", ""),
            licence=licence(folder),
            clip=schedule.clip,
            ends_at_first=schedule.ends_at_first,
            compiled=compile,
        )

    def check(self, class_names: tuple[str, ...]) -> None:
        """Raise ValueError where a class of the data has no partner among the model's."""
        self.labels_of(class_names)

    def labels_of(self, class_names: tuple[str, ...]) -> tuple[int, ...]:
        """The model's class of each class, as `class_labels` finds it."""
        labels = class_labels(class_names, self.class_names, self.num_classes, mapping_of(self.classes))
        return tuple(labels.tolist())

    def prepare(self, prompts: Sequence[str]) -> None:
        """Nothing: there is no text encoder."""

    def conditions(self, labels: np.ndarray, prompts: Sequence[str]) -> Tensor:
        """The labels."""
        return torch.tensor(labels, dtype=torch.int64, device=self.device)

    def encode(self, images: np.ndarray) -> Tensor:
        """uint8 (n, h, w, C) to float32 (n, C, h, w) in [-1, 1]."""
        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(self.device)
        return x.float() / 127.5 - 1

    def decode(self, x0: Tensor) -> Tensor:
        """The pixels, which x0 is."""
        return x0

    @torch.inference_mode()
    def predict(self, x: Tensor, timesteps: Tensor, conditions: Tensor) -> Tensor:
        """The UNet's output; a condition of -1 is the embedding after the last class."""
        count = len(x)
        if self.compiled:
            x, timesteps, conditions = fixed_shapes(x, timesteps, conditions)
        labels = torch.where(conditions < 0, self.num_classes, conditions)
        output: Tensor = self.unet(x.to(self.dtype), timesteps, class_labels=labels, return_dict=False)[0]
        return output[:count].float()
