"""Train a pixel generator: a small class-conditional UNet, saved as an ordinary diffusers folder."""

import contextlib
import dataclasses
import math
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from latebloom.data.batches import Pixels
from latebloom.data.images import LabeledImages
from latebloom.data.seeds import torch_rng, torch_stream
from latebloom.data.store import write_bytes, write_json
from latebloom.synth.config import GeneratorConfig
from latebloom.synth.generators.card import CARD_FILE
from latebloom.synth.generators.samples import sample_sheet

if TYPE_CHECKING:
    from diffusers.training_utils import EMAModel

__all__ = ["FitMoment", "GeneratorFit", "draw_samples", "fit_generator", "save_generator"]

TRAIN_TIMESTEPS = 1000


@dataclasses.dataclass(frozen=True)
class GeneratorFit:
    """A trained UNet (averaged weights, on the CPU) and the loss of each step, float (steps,)."""

    unet: nn.Module
    losses: np.ndarray


@dataclasses.dataclass
class FitMoment:
    """An unfinished fit between two steps; what `fit_generator` needs to go on from there.

    Attributes:
        step: optimizer steps done.
        losses: of all steps, float32 (steps,), 0 for those to come; on the device, as the rest.
        unet: with the weights that are trained.
        draws: the generator of all random numbers, whose state goes with a checkpoint.
    """

    step: int
    losses: Tensor
    unet: nn.Module
    ema: "EMAModel"
    optimizer: torch.optim.Optimizer
    draws: torch.Generator

    def loss(self) -> float:
        """Mean loss of the last 100 steps."""
        return float(self.losses[max(0, self.step - 100) : self.step].mean())

    def tensors(self) -> dict[str, Tensor]:
        """All that decides the steps to come, on the CPU, by name: copies."""
        found = {"losses": self.losses, "draws": self.draws.get_state(), "step": torch.tensor(self.step)}
        for (name, weight), averaged in zip(self.unet.named_parameters(), self.ema.shadow_params, strict=True):
            found |= {f"weight/{name}": weight.detach(), f"averaged/{name}": averaged}
            found |= {f"{slot}/{name}": value for slot, value in self.optimizer.state[weight].items()}
        return {name: tensor.to("cpu", copy=True).contiguous() for name, tensor in found.items()}

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Go back to the moment whose `tensors` these are; the config, the images and the seed must be the same."""
        self.step = self.ema.optimization_step = int(tensors["step"])
        self.losses.copy_(tensors["losses"])
        self.draws.set_state(tensors["draws"])
        for (name, weight), averaged in zip(self.unet.named_parameters(), self.ema.shadow_params, strict=True):
            weight.data.copy_(tensors[f"weight/{name}"])
            averaged.data.copy_(tensors[f"averaged/{name}"])
            slots = {key.split("/")[0]: value for key, value in tensors.items() if key.endswith(f"/{name}")}
            self.optimizer.state[weight] = {
                slot: value.clone() if slot == "step" else value.to(weight.device, copy=True)
                for slot, value in slots.items()
                if slot not in ("weight", "averaged")
            }

    @contextlib.contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The UNet with its averaged weights, in eval mode, for the block."""
        self.ema.store(self.unet.parameters())
        self.ema.copy_to(self.unet.parameters())
        try:
            yield self.unet.eval()
        finally:
            self.ema.restore(self.unet.parameters())
            self.unet.train()


def fit_generator(
    data: LabeledImages,
    config: GeneratorConfig,
    seed: int,
    device: torch.device,
    on_step: Callable[[int, float], None] | None = None,
    *,
    on_moment: Callable[[FitMoment], None] | None = None,
    start: Mapping[str, Tensor] | None = None,
) -> GeneratorFit:
    """Train a class-conditional `UNet2DModel` with v-prediction on the cosine schedule.

    v-prediction: arXiv 2202.00512, App. D. Cosine schedule: arXiv 2102.09672, Eq. 17. Labels are hidden at random
    for guidance (arXiv 2207.12598).

    Args:
        on_step: called with the number of steps done and the loss of the last, every ten steps and at the end.
        on_moment: called then too, with what a checkpoint is made of; it must not change it.
        start: the `FitMoment.tensors` of the same fit: it goes on from there and ends with the same weights.

    Raises:
        ValueError: images that are not square, or a size the UNet's levels cannot halve.
        FloatingPointError: the loss became NaN or infinite.
    """
    from diffusers.training_utils import EMAModel

    height, width, channels = data.image_shape
    size = config.size or height
    if height != width:
        raise ValueError(f"{data.origin}: images are {width}x{height}; give an image size to cut them square")
    halvings = 2 ** (len(config.channels) - 1)
    if size % halvings:
        raise ValueError(
            f"{len(config.channels)} UNet levels need a side that {halvings} divides, got {size} px; change size or "
            "channels"
        )
    unet = _new_unet(config, size, channels, data.num_classes, seed).to(device).train()
    signal, noise_scale = _schedule(device)
    pixels = Pixels(data, device)
    labels = torch.from_numpy(data.labels)
    optimizer = torch.optim.AdamW(unet.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=1e-4, foreach=True)
    ema = EMAModel(unet.parameters(), decay=config.ema_decay, use_ema_warmup=True, inv_gamma=1.0, power=0.75)
    generator = torch_rng(seed, "fit-generator")
    losses = torch.zeros(config.steps, device=device)
    moment = FitMoment(0, losses, unet, ema, optimizer, generator)
    if start is not None:
        moment.restore(start)
    for step in range(moment.step, config.steps):
        rows = torch.randint(len(data), (config.batch_size,), generator=generator)
        x0 = _prepare(pixels[rows.numpy()], size, config.flip, generator)  # (B, C, h, w) in [-1, 1]
        noise = torch.randn(x0.shape, generator=generator).to(device)
        timestep = torch.randint(TRAIN_TIMESTEPS, (config.batch_size,), generator=generator)
        hidden = torch.rand(config.batch_size, generator=generator) < config.label_dropout
        label = torch.where(hidden, data.num_classes, labels[rows]).to(device)
        timestep = timestep.to(device)
        a, b = signal[timestep], noise_scale[timestep]  # (B, 1, 1, 1)
        output = unet(a * x0 + b * noise, timestep, class_labels=label, return_dict=False)[0]
        loss = F.mse_loss(output, a * noise - b * x0)
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / 50) * 0.5 * (1 + math.cos(math.pi * step / config.steps))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimizer.step()
        ema.step(unet.parameters())
        losses[step] = loss.detach()
        if (step + 1) % 10 == 0 or step + 1 == config.steps:
            value = float(losses[step])
            if not math.isfinite(value):
                raise FloatingPointError(
                    f"the generator's loss became {value} at step {step + 1}; lower lr ({config.lr})"
                )
            moment.step = step + 1
            if on_step:
                on_step(step + 1, value)
            if on_moment:
                on_moment(moment)
    ema.copy_to(unet.parameters())
    return GeneratorFit(unet.cpu().eval(), losses.cpu().numpy())


def _new_unet(config: GeneratorConfig, size: int, channels: int, num_classes: int, seed: int) -> nn.Module:
    from diffusers import UNet2DModel

    levels = len(config.channels)
    with torch_stream(seed, "unet"):
        unet: nn.Module = UNet2DModel(
            sample_size=size,
            in_channels=channels,
            out_channels=channels,
            layers_per_block=config.layers_per_block,
            block_out_channels=config.channels,
            down_block_types=("DownBlock2D",) * levels,
            up_block_types=("UpBlock2D",) * levels,
            # At least two channels a group: with one, GroupNorm removes the shift by label and timestep.
            norm_num_groups=min(8, min(config.channels) // 2),
            add_attention=False,
            num_class_embeds=num_classes + 1,  # the last is "no label"
        )
    return unet


def _scheduler_settings() -> dict[str, object]:
    return {
        "num_train_timesteps": TRAIN_TIMESTEPS,
        "beta_schedule": "squaredcos_cap_v2",
        "prediction_type": "v_prediction",
        "timestep_spacing": "linspace",
    }


def _schedule(device: torch.device) -> tuple[Tensor, Tensor]:
    """sqrt(abar) and sqrt(1 - abar), each (T, 1, 1, 1)."""
    from diffusers import DDPMScheduler

    abar = DDPMScheduler(**_scheduler_settings()).alphas_cumprod.double()[:, None, None, None]
    return abar.sqrt().float().to(device), (1 - abar).sqrt().float().to(device)


def _prepare(images: Tensor, size: int, flip: bool, generator: torch.Generator) -> Tensor:
    x = images.float() / 127.5 - 1  # (B, C, H, W)
    if x.shape[2:] != (size, size):
        x = F.interpolate(x, (size, size), mode="bicubic", antialias=True).clamp(-1, 1)
    if flip:
        coin = torch.rand(len(x), generator=generator).to(x.device) < 0.5
        x = torch.where(coin[:, None, None, None], x.flip(3), x)
    return x


def draw_samples(unet: nn.Module, data: LabeledImages, seed: int) -> bytes:
    """A PNG of what the UNet of a fit makes of pure noise: a row a class, the same noise whenever it is drawn."""
    from diffusers import DDPMScheduler

    alphas_cumprod = DDPMScheduler(**_scheduler_settings()).alphas_cumprod.double().numpy()
    return sample_sheet(unet, alphas_cumprod, data.class_names, seed)


def save_generator(folder: Path, fit: GeneratorFit, data: LabeledImages, config: GeneratorConfig, seed: int) -> None:
    """Write an ordinary diffusers folder (`DDPMPipeline.from_pretrained` loads it) with a model card.

    Besides, `latebloom.json` holds the class names and the digests of the images trained on. With them a report can
    say whether the generator saw images that the classifier did not.
    """
    import diffusers
    from diffusers import DDPMPipeline, DDPMScheduler

    folder.mkdir(parents=True, exist_ok=True)
    pipeline = DDPMPipeline(unet=fit.unet, scheduler=DDPMScheduler(**_scheduler_settings()))
    pipeline.save_pretrained(folder, safe_serialization=True)
    for file in folder.rglob("*.safetensors"):
        file.chmod(0o644)  # safetensors makes files that only their owner can read
    tail = fit.losses[-min(100, len(fit.losses)) :]
    write_json(
        folder / CARD_FILE,
        {
            "class_names": list(data.class_names),
            "trained_on": data.origin,
            "trained_on_sha256": sorted(data.sha256),
            "config": config.model_dump(mode="json"),
            "seed": seed,
            "loss": round(float(tail.mean()), 5),
            "versions": {"diffusers": diffusers.__version__, "torch": torch.__version__},
        },
    )
    write_bytes(folder / "README.md", _model_card(fit, data, config, seed, float(tail.mean())).encode())


def _model_card(fit: GeneratorFit, data: LabeledImages, config: GeneratorConfig, seed: int, loss: float) -> str:
    height, width, channels = data.image_shape
    weights = sum(p.numel() for p in fit.unet.parameters())
    given = config.model_dump(exclude_defaults=True)
    settings = ", ".join(f"{name} {value}" for name, value in given.items()) or "the defaults"
    return f"""---
library_name: diffusers
pipeline_tag: unconditional-image-generation
---
# A class-conditional pixel generator

`UNet2DModel`, {weights:,} weights, v-prediction, cosine schedule, {TRAIN_TIMESTEPS} timesteps. Class label
{data.num_classes} means "no label" (for classifier-free guidance).

- Trained on: {data.origin}: {len(data):,} images of {width}x{height} with {channels} channel(s), {data.num_classes}
  classes ({", ".join(data.class_names[:20])}{", ..." if data.num_classes > 20 else ""}).
- Make it again: `latebloom fit-generator` on the same images with {settings}, seed {seed}:
  {config.steps} steps of {config.batch_size}, mean loss of the last ones {loss:.4f}.
- `{CARD_FILE}` lists the SHA-256 of every image it was trained on (of shape and pixels, as `LabeledImages.sha256`).
- Meant for noising and denoising real images of these classes in Latebloom. It knows nothing else.
"""
