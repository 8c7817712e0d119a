"""What the tests of synth share: fakes behind the real interfaces, small images, a tiny real UNet."""

import functools
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import tiny_checkpoints
import tiny_families
import tiny_pipelines
import tiny_transformers
import torch
from tiny_instruct import save_tiny_instruct
from torch import Tensor

from latebloom.data.images import LabeledImages
from latebloom.synth.config import Sampler
from latebloom.synth.sampling.denoiser import Made, PredictionType, Wanted
from latebloom.synth.sampling.levels import Level, NoiseGrid

# (x, abar, labels) -> the clean image that a denoiser believes in. abar is float64 (n, 1, 1, 1), one an image.
Belief = Callable[[Tensor, Tensor, Tensor], Tensor]
# (references uint8 (n, h, w, c), what is wanted) -> images uint8 (n, h, w, c), all finite, or what was made.
Change = Callable[[np.ndarray, Wanted], np.ndarray | Made]


def cosine_alphas_cumprod(steps: int) -> np.ndarray:
    """The schedule squaredcos_cap_v2 of `steps` steps, by hand (arXiv 2102.09672, Eq. 17; betas at most 0.999)."""

    def f(t: float) -> float:
        return math.cos((t + 0.008) / 1.008 * math.pi / 2) ** 2

    betas = [min(1 - f((i + 1) / steps) / f(i / steps), 0.999) for i in range(steps)]
    return np.cumprod(1 - np.array(betas))


class FakeDenoiser:
    """A `Denoiser` without weights: `believe` says which clean image it sees in a noisy one.

    Its output is that belief as its `prediction_type`. As long as `believe` works pixel by pixel with + - * /
    alone, an image gives the same bits whoever shares its batch.

    Attributes:
        calls: (timesteps, conditions) of each call of `predict`.
        prepared: the prompts of each call of `prepare`.
    """

    name = "fake"
    digest = "f" * 64
    licence = "mit"
    embedded_guidance = 0.0
    device = torch.device("cpu")
    trained_on: frozenset[str] = frozenset()
    trained_on_words = ""
    size = 8
    multiple = 1
    largest = 0
    channels = 1

    def __init__(
        self,
        believe: Belief,
        *,
        prediction_type: PredictionType = "sample",
        clip: float = 0.0,
        ends_at_first: frozenset[Sampler] = frozenset(),
        unconditional: bool = True,
        timestep_scaling: float = 0.0,
        alphas_cumprod: np.ndarray | None = None,
    ) -> None:
        self.believe = believe
        self.prediction_type = prediction_type
        self.clip = clip
        self.ends_at_first = ends_at_first
        self.unconditional = unconditional
        self.timestep_scaling = timestep_scaling
        self.alphas_cumprod = cosine_alphas_cumprod(1000) if alphas_cumprod is None else alphas_cumprod
        self.calls: list[tuple[list[int], list[int]]] = []
        self.prepared: list[list[str]] = []

    def check(self, class_names: tuple[str, ...]) -> None:
        """Anything goes."""

    def labels_of(self, class_names: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(range(len(class_names)))

    def prepare(self, prompts: Sequence[str]) -> None:
        self.prepared.append(list(prompts))

    def conditions(self, labels: np.ndarray, prompts: Sequence[str]) -> Tensor:
        return torch.from_numpy(labels)

    def encode(self, images: np.ndarray) -> Tensor:
        return torch.from_numpy(images).permute(0, 3, 1, 2).float() / 127.5 - 1

    def decode(self, x0: Tensor) -> Tensor:
        return x0

    def predict(self, x: Tensor, timesteps: Tensor, conditions: Tensor) -> Tensor:
        self.calls.append((timesteps.tolist(), conditions.tolist()))
        abar = torch.from_numpy(self.alphas_cumprod)[timesteps.cpu()][:, None, None, None].to(x.device)
        x0 = self.believe(x, abar, conditions)
        if self.prediction_type == "sample":
            return x0
        signal, noise = abar.sqrt().float(), (1 - abar).sqrt().float()
        eps = (x - signal * x0) / noise
        return eps if self.prediction_type == "epsilon" else signal * eps - noise * x0


class FakeGenerator:
    """A `Generator` without a model: `change` makes images of references; by default it leaves them as they are.

    Levels are of a grid of ten steps on the cosine schedule.

    Attributes:
        fits: more images than this in one call of `make` or `seconds_per_call` run out of memory.
        encoded: images of each call of `encode`, their (n, h, w, c).
        made: the wanted images of each call of `make`.
        timed: images of each call of `seconds_per_call`.
    """

    name = "fake"
    digest = "f" * 64
    licence = "mit"
    device = torch.device("cpu")
    trained_on: frozenset[str] = frozenset()
    trained_on_words = ""
    largest = 0
    calls_a_step = 1
    sampler = "fake steps"
    guidance_scale = 1.5

    def __init__(
        self,
        change: Change = lambda references, _: references,
        *,
        size: int = 8,
        multiple: int = 1,
        channels: int = 1,
        fits: int = 10**6,
    ) -> None:
        self.change = change
        self.size = size
        self.multiple = multiple
        self.channels = channels
        self.fits = fits
        self.encoded: list[tuple[int, ...]] = []
        self.made: list[Wanted] = []
        self.timed: list[int] = []

    def check(self, class_names: tuple[str, ...]) -> None:
        """Anything goes."""

    def labels_of(self, class_names: tuple[str, ...]) -> tuple[int, ...]:
        return tuple(range(len(class_names)))

    def level(self, steps: int) -> Level:
        return NoiseGrid.of(cosine_alphas_cumprod(1000), 10).level(steps, steps)

    def prepare(self, prompts: Sequence[str]) -> None:
        """Nothing to prepare."""

    def encode(self, images: np.ndarray) -> Tensor:
        self.encoded.append(images.shape)
        return torch.from_numpy(images.copy())

    def make(self, references: Tensor, wanted: Wanted) -> Made:
        self.made.append(wanted)
        self._fit(len(references))
        made = self.change(references.numpy().copy(), wanted)
        return made if isinstance(made, Made) else Made(made, np.ones(len(made), bool))

    def seconds_per_call(self, references: Tensor, wanted: Wanted) -> float:
        self.timed.append(len(references))
        self._fit(len(references))
        return 1 / len(references)

    def _fit(self, images: int) -> None:
        if images > self.fits:
            raise torch.OutOfMemoryError(f"{images} images")


def constant(values: Sequence[float]) -> Belief:
    """Sees the grey `values[label]` in anything; the last value is for label -1."""

    def believe(x: Tensor, abar: Tensor, labels: Tensor) -> Tensor:
        return torch.tensor(values)[labels][:, None, None, None].expand_as(x)

    return believe


def picture(x0: Tensor) -> Belief:
    """Sees `x0[label]`, (c, h, w), in anything."""

    def believe(x: Tensor, abar: Tensor, labels: Tensor) -> Tensor:
        return x0[labels]

    return believe


def gaussian(mu: Sequence[float], s: float) -> Belief:
    """E[x0 | x] where each pixel is N(mu[label], s^2): the perfect denoiser of that prior. The last mu is label -1's.

    x = sqrt(a) x0 + sqrt(1 - a) eps, so x0 and x are jointly normal and the regression of x0 on x is
    mu + K (x - sqrt(a) mu) with K = s^2 sqrt(a) / (a s^2 + 1 - a).
    """

    def believe(x: Tensor, abar: Tensor, labels: Tensor) -> Tensor:
        gain = (s**2 * abar.sqrt() / (abar * s**2 + 1 - abar)).float()
        mean = torch.tensor(mu)[labels][:, None, None, None]
        return mean + gain * (x - abar.sqrt().float() * mean)

    return believe


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    """One thread: small tensors are quicker so, and sums always have one order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    """The folder of a tiny checkpoint of a family, saved when it is first needed. A test that changes it copies it."""
    root = tmp_path_factory.mktemp("checkpoints")
    save: dict[str, Callable[[Path], Path]] = {
        "sd": tiny_checkpoints.save_tiny_sd,
        "sdxl": tiny_checkpoints.save_tiny_sdxl,
        "lcm": tiny_checkpoints.save_tiny_lcm,
        "sd-lora": lambda folder: tiny_checkpoints.save_tiny_lora(folder, get("sd")),
        "sdxl-lora": lambda folder: tiny_checkpoints.save_tiny_lora(folder, get("sdxl")),
        "sd3": tiny_pipelines.save_tiny_sd3,
        "sd3-t5": lambda folder: tiny_pipelines.save_tiny_sd3(folder, t5=True),
        "flux": tiny_pipelines.save_tiny_flux,
        "schnell": lambda folder: tiny_pipelines.save_tiny_flux(folder, guidance_embeds=False),
        "if": tiny_pipelines.save_tiny_if,
        "kandinsky22": tiny_pipelines.save_tiny_kandinsky22,
        "kandinsky3": tiny_families.save_tiny_kandinsky3,
        "kolors": tiny_families.save_tiny_kolors,
        "chroma": tiny_families.save_tiny_chroma,
        "qwen-image": tiny_families.save_tiny_qwen_image,
        "z-image": tiny_families.save_tiny_z_image,
        "sana-sprint": tiny_families.save_tiny_sana_sprint,
        "instruct": save_tiny_instruct,
        **{
            family: functools.partial(tiny_transformers.save_tiny_transformer, family=family)
            for family in tiny_transformers.FAMILIES
        },
    }

    def get(family: str) -> Path:
        if not (root / family).is_dir():
            save[family](root / family)
        return root / family

    return get


@pytest.fixture(scope="session")
def fakes() -> SimpleNamespace:
    """The fake `Denoiser`, what it can believe in and its schedule, and the fake `Generator`."""
    return SimpleNamespace(
        Denoiser=FakeDenoiser,
        Generator=FakeGenerator,
        constant=constant,
        picture=picture,
        gaussian=gaussian,
        cosine_alphas_cumprod=cosine_alphas_cumprod,
    )


@pytest.fixture(scope="session")
def tiny_images() -> LabeledImages:
    """16 grey 8x8 images of 3 classes: a bright row at 1, 3 or 5 on dim noise."""
    rng = np.random.default_rng(0)
    labels = np.arange(16) % 3
    images = rng.integers(20, 60, (16, 8, 8, 1), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        image[1 + 2 * label] += 160
    return LabeledImages(images, labels, ("top", "middle", "bottom"), "rows of light")


@pytest.fixture(scope="session")
def tiny_unet() -> Callable[..., Any]:
    """Makes a `UNet2DModel` for 8x8 grey images of 3 classes and "no label", with weights of its own seed."""

    def make(seed: int = 0, **changes: Any) -> Any:
        from diffusers import UNet2DModel

        settings: dict[str, Any] = {
            "sample_size": 8,
            "in_channels": 1,
            "out_channels": 1,
            "layers_per_block": 1,
            "block_out_channels": (16, 32),
            "down_block_types": ("DownBlock2D", "DownBlock2D"),
            "up_block_types": ("UpBlock2D", "UpBlock2D"),
            "norm_num_groups": 8,
            "add_attention": False,
            "num_class_embeds": 4,
        }
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            return UNet2DModel(**settings | changes)

    return make


@pytest.fixture(scope="session")
def save_tiny(tiny_unet: Callable[..., Any]) -> Callable[..., Path]:
    """Saves a tiny UNet with `DDPMPipeline.save_pretrained`, as any user of diffusers would, and its class names."""

    def save(folder: Path, seed: int = 0, *, card: bool = True, scheduler: Any = None, **changes: Any) -> Path:
        import json

        from diffusers import DDPMPipeline, DDPMScheduler

        settings = {"beta_schedule": "squaredcos_cap_v2", "prediction_type": "v_prediction"} | (scheduler or {})
        DDPMPipeline(tiny_unet(seed, **changes), DDPMScheduler(**settings)).save_pretrained(folder)
        if card:
            (folder / "latebloom.json").write_text(json.dumps({"class_names": ["top", "middle", "bottom"]}))
        return folder

    return save
