"""An autoencoder as the way from pixels to latents and back: `AutoencoderKL` or DC-AE (`AutoencoderDC`)."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["LatentSpace", "autoencoder_dtype"]


class LatentSpace:
    """`encode` and `decode` of a `Denoiser` that works in the latents of an autoencoder.

    Images go through it one at a time: memory is bounded, and no image depends on its batch.

    Args:
        vae: a loaded autoencoder of diffusers, on its device.

    Attributes:
        factor: pixels a latent, in each direction.
        channels: of the latents.
    """

    def __init__(self, vae: Any) -> None:
        self._vae = vae.eval()
        vae.enable_slicing()
        config = vae.config
        blocks = config.get("block_out_channels") or config["encoder_block_out_channels"]
        self.factor: int = 2 ** (len(blocks) - 1)
        self.channels: int = config["latent_channels"]
        mean = torch.tensor(config.get("latents_mean") or config.get("shift_factor") or 0.0)
        scale = config["scaling_factor"] / torch.tensor(config.get("latents_std") or 1.0)
        device = next(vae.parameters()).device
        self._mean: Tensor = mean.view(1, -1, 1, 1).to(device)
        self._scale: Tensor = scale.view(1, -1, 1, 1).to(device)

    @torch.inference_mode()
    def encode(self, images: np.ndarray) -> Tensor:
        """uint8 (n, h, w, 3) to latents float32 (n, c', h / factor, w / factor), the same every time.

        Of a distribution (`AutoencoderKL`) it is the mode.
        """
        x = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))).to(self._mean.device)
        found = self._vae.encode((x.float() / 127.5 - 1).to(self._vae.dtype), return_dict=False)[0]
        latents: Tensor = found if isinstance(found, Tensor) else found.mode()
        return (latents.float() - self._mean) * self._scale

    @torch.inference_mode()
    def decode(self, x0: Tensor) -> Tensor:
        """Latents to pixels, float32 (n, 3, h, w), -1 black to 1 white; not clipped, and perhaps not finite."""
        latents = (x0 / self._scale + self._mean).to(self._vae.dtype)
        pixels: Tensor = self._vae.decode(latents, return_dict=False)[0]
        return pixels.float()


def autoencoder_dtype(config: Mapping[str, Any], dtype: torch.dtype) -> torch.dtype:
    """The dtype of an autoencoder beside a network of `dtype`.

    float32 where its config says `force_upcast` (SDXL), and always instead of float16, in which it sometimes overflows
    to black images.
    """
    return torch.float32 if dtype == torch.float16 or config.get("force_upcast") else dtype
