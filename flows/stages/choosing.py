"""No generator named: which there are, and what each would cost here. Loads no torch where there is no GPU."""

import dataclasses
import math

from latebloom.data.images import LabeledImages
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.errors import UsageError
from latebloom.flows.run.machine import Machine, machine
from latebloom.flows.run.progress import duration
from latebloom.synth.config import SampleConfig

__all__ = ["check_generator_chosen", "choices"]

_GIB = 1 << 30
_LARGEST_OF_ONES_OWN = 64
_FIT_STEPS, _FIT_BATCH = 20_000, 64
_SMALL_FOR_TEXT = 100  # px


@dataclasses.dataclass(frozen=True)
class _Model:
    """A generator that is not there yet. Operations are of one image; tests/benchmarks/generator_sizes.py counts them.

    Attributes:
        call: operations of one denoiser call.
        coder: of encoding a reference for four variants, and of decoding a variant.
        weights: numbers that are held, with text encoders and VAE.
        work: values that are alive at once while one image is made.
    """

    call: float
    coder: float
    weights: float
    work: float


_SD = _Model(call=0.80e12, coder=2.8e12, weights=1.07e9, work=0.20e9)
_SD_TURBO = _Model(call=0.80e12, coder=2.8e12, weights=1.29e9, work=0.20e9)
_SDXL = _Model(call=6.76e12, coder=11.7e12, weights=3.47e9, work=0.81e9)
_SDXL_TURBO = _Model(call=1.59e12, coder=2.8e12, weights=3.47e9, work=0.20e9)
# Of one's own, by the side it works at: the channels to give, and the model.
_OWN = {
    8: ("16,32", _Model(7.5e6, 0, 0.16e6, 0.01e6)),
    16: ("32,64", _Model(0.12e9, 0, 0.64e6, 0.11e6)),
    32: ("64,128,128", _Model(1.9e9, 0, 4.2e6, 0.85e6)),
    64: ("64,128,256,256", _Model(11.6e9, 0, 16.2e6, 3.4e6)),
}
_FAST = SampleConfig(sampler="lcm", grid=100, steps=8, guidance_scale=1.0)
_BALANCED = SampleConfig(sampler="dpm++2m", grid=100, steps=25, guidance_scale=3.0)
# As a person gives them; the levels of 100 that the plan has keep a picture's layout with all of them.
_PUBLISHED = (
    (
        "2. SD-Turbo, a text model of photos, 512 px, few steps, no guidance",
        "--generator stabilityai/sd-turbo --sampling fast",
        _SD_TURBO,
        _FAST,
    ),
    (
        "   or SD 1.5, slower, with guidance 3 (up to 7.5 where classes come out wrong)",
        "--generator stable-diffusion-v1-5/stable-diffusion-v1-5 --sampling balanced",
        _SD,
        _BALANCED,
    ),
    (
        "3. SDXL-Turbo, a larger one, 512 px, few steps, no guidance",
        "--generator stabilityai/sdxl-turbo --sampling fast",
        _SDXL_TURBO,
        _FAST,
    ),
    (
        "   or SDXL at 1024 px, with guidance 3 to 7",
        "--generator stabilityai/stable-diffusion-xl-base-1.0 --sampling balanced",
        _SDXL,
        _BALANCED,
    ),
)


def check_generator_chosen(config: CompareConfig, train: LabeledImages) -> None:
    """Refuse a config that names no generator, or that of digits for images of other classes.

    Raises:
        UsageError: with the choices there are.
    """
    generator = config.generate.generator
    if not generator:
        raise UsageError(f"no generator is named. {choices(config, train)}")
    if generator == "digits" and set(train.class_names) - set("0123456789"):
        raise UsageError(f"generator digits makes digits, and the classes are others. {choices(config, train)}")


def choices(config: CompareConfig, train: LabeledImages) -> str:
    """What to say to who has named no generator, or one of other classes: three choices and what each costs here."""
    here = machine(config.device)
    arms = [arm for arm in config.parsed_arms if arm.kind == "synthetic"]
    every, k = any(arm.method == "all" for arm in arms), max(arm.k for arm in arms)
    references = len(train) if every else math.ceil(len(train) / 2)
    images = references * (k - 1)
    side = min(train.image_shape[:2])
    whose = f"all {len(train):,}" if every else f"about half of the {len(train):,}"
    free = f" with {here.free / _GIB:.1f} GiB free" if here.free else ""
    lines = [
        f"This would make about {images:,} images, {k - 1} variants of {whose} training images. "
        f"Choose one of three (estimates for {here.name}{free}; `latebloom plan` measures):"
    ]
    levels = [level / config.sample.grid for arm in arms for level in config.levels(arm)]
    lines += _own(config, side, here, levels, images)
    for title, option, model, sample in _PUBLISHED:
        lines += [title, f"     {option}", f"     {_cost(model, sample, levels, here, images)}"]
    if side < _SMALL_FOR_TEXT:
        lines.append(f"Images of {side} px are enlarged to 512 px for these, so each costs as much as a photo.")
    lines.append(
        "In place of a hub id (downloaded) give the path of a folder in diffusers' format. "
        "docs/choosing-a-generator.md has licences, levels, guidance, and when it will not pay."
    )
    return "\n".join(lines)


def _own(config: CompareConfig, side: int, here: Machine, levels: list[float], images: int) -> list[str]:
    command = f"     latebloom fit-generator {config.data.source} my-generator"
    large = side > 2 * _LARGEST_OF_ONES_OWN
    size = next((size for size in _OWN if size >= side), _LARGEST_OF_ONES_OWN)
    channels, model = _OWN[size]
    fitting = 3 * model.call * _FIT_STEPS * _FIT_BATCH / here.flops
    at = "" if side == size else f" --size {size}"
    return [
        f"1. Fit your own, at {size} px: "
        + ("for textures and scans, since a small UNet learns no photos" if large else "it knows your classes alone"),
        f"{command}{at} --channels {channels} --steps {_FIT_STEPS} --batch-size {_FIT_BATCH}",
        f"     {_time(fitting)} for that, then --generator my-generator: "
        + _cost(model, config.sample, levels, here, images),
    ]


def _cost(model: _Model, sample: SampleConfig, levels: list[float], here: Machine, images: int) -> str:
    calls = sum(sample.calls(max(1, round(level * sample.grid))) for level in levels) / len(levels)
    seconds = (calls * sample.calls_a_step * model.call + model.coder) / here.flops
    memory = (model.weights + model.work) * here.dtype_bytes / _GIB
    amount = f"{memory:.1f} GiB" if memory >= 0.1 else "under 0.1 GiB"
    if 0 < here.free < memory * _GIB:
        amount += f", MORE than the {here.free / _GIB:.1f} free,"
    return f"{amount} of memory, {_time(1000 * seconds)} for 1,000 images, {_time(images * seconds)} for {images:,}"


def _time(seconds: float) -> str:
    return duration(seconds) if seconds < 2 * 86_400 else f"{seconds / 86_400:,.0f} days"
