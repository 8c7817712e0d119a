"""Strength in diffusers' image-to-image pipelines: which have it, at which timestep it starts, how noisy that is."""

import contextlib
import dataclasses
import functools
import inspect
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from latebloom.synth.config import Match
from latebloom.synth.sampling.levels import Level, glide_log_snr
from latebloom.synth.sampling.steps import step_done

__all__ = ["Start", "choose", "image_to_image_class", "level_of", "recorded", "settle_scheduler", "starts"]

# Images that some pipelines need besides the reference.
_MORE_IMAGES = ("control_image", "hint", "mask_image", "original_image", "depth_map")
# How many more step counts than `steps` are tried: N + 1, N + 2, ... steps fill the gaps between the places k / N of N
# steps. N / k of them fill the gap below k / N, so 20 fill all gaps from 1 / 20 of the schedule on.
_MORE_STEPS = 20
_NEAR = 0.05  # of log-SNR: about half a level of 100


# Models that neither diffusers can start from a noised image nor our own loop, and why.
_CASCADE = "the image is decoded by a second diffusion, from latents that no reference can be encoded to"
_OUT_OF_REACH = {
    "CogView4Pipeline": "its prompts have no mask and many lengths, so images of one batch would change each other",
    "LuminaPipeline": "it guides three channels alone, and its positions change with the timestep; give Lumina 2",
    "StableCascadeCombinedPipeline": _CASCADE,
    "StableCascadeDecoderPipeline": _CASCADE,
    "StableCascadePriorPipeline": _CASCADE,
    "WuerstchenCombinedPipeline": _CASCADE,
    "WuerstchenDecoderPipeline": _CASCADE,
    "WuerstchenPriorPipeline": _CASCADE,
}


@dataclasses.dataclass(frozen=True)
class Start:
    """A place where a pipeline can begin to denoise.

    Attributes:
        calls: denoising steps from there to the image.
        steps: `num_inference_steps` to ask the pipeline for.
        strength: the float to pass to the pipeline, which rounds it. Nothing is computed from it.
        seen: the first timestep that the scheduler gets, in its own unit.
        timestep: the same in training timesteps (flow models: 1000 sigma).
        log_snr: log(signal variance / noise variance) there; -inf for pure noise.
        share: of the schedule that lies below, 0 to 1.
    """

    calls: int
    steps: int
    strength: float
    seen: float
    timestep: float
    log_snr: float
    share: float


def image_to_image_class(folder: Path, name: Any) -> type:
    """The diffusers class that runs a model from a noised image.

    Args:
        folder: where the model is, for messages.
        name: of the pipeline's class, as model_index.json has it.

    Raises:
        ValueError: there is none, or it has no noise level. The message says why.
    """
    import diffusers

    own = getattr(diffusers, name, None) if isinstance(name, str) else None
    if not (inspect.isclass(own) and issubclass(own, diffusers.DiffusionPipeline)):
        raise ValueError(
            f"{folder} holds {name!r}, which is no pipeline of diffusers {diffusers.__version__}; expected a model "
            "that noises a reference by a strength"
        )
    # KandinskyV22CombinedPipeline -> KandinskyV22Img2ImgCombinedPipeline, FluxPipeline -> FluxImg2ImgPipeline
    derived = name if "Img2Img" in name else re.sub(r"(Combined)?Pipeline$", r"Img2Img\1Pipeline", name)
    if derived in ("KandinskyV22Img2ImgPipeline", "KandinskyImg2ImgPipeline"):
        derived = derived.replace("Pipeline", "CombinedPipeline")
    cls: type | None = getattr(diffusers, derived, None)
    if cls is None and "image" in _arguments(own):
        raise _refusal(
            folder, name, "it takes the reference as a condition and starts from pure noise, so it has no noise level"
        )
    if cls is None:
        raise _refusal(folder, name, _OUT_OF_REACH.get(name, "diffusers has no image-to-image pipeline for it"))
    if cls.__module__.endswith("dummy_objects") or not hasattr(cls, "_get_signature_keys"):
        raise _refusal(folder, name, f"{derived} needs packages that are not installed")
    arguments = _arguments(cls)
    if "strength" not in arguments:
        raise _refusal(folder, name, f"{derived} takes no strength, so it has no noise level")
    for argument in _MORE_IMAGES:
        if argument in arguments:
            raise _refusal(folder, name, f"{derived} needs a {argument} besides the reference")
    if "pag_scale" in arguments:
        raise _refusal(folder, name, "perturbed-attention guidance is not offered; give the plain pipeline")
    if "Amused" in derived:
        raise _refusal(folder, name, "it masks tokens and adds no noise, so it has no noise level")
    if derived == "KandinskyImg2ImgCombinedPipeline":
        raise _refusal(folder, name, "Kandinsky 2.1 noises to another timestep than it denoises from; use 2.2 or 3")
    if "Combined" in derived and "Combined" not in name:
        raise _refusal(
            folder, name, "this is the decoder alone; save the combined pipeline, prior and decoder, instead"
        )
    return cls


def _arguments(pipeline: type) -> frozenset[str]:
    return frozenset(inspect.signature(pipeline.__call__).parameters)


def _refusal(folder: Path, name: str, reason: str) -> ValueError:
    return ValueError(f"{folder} holds a {name}: {reason}; expected a model that noises a reference by a strength")


def settle_scheduler(scheduler: Any, tokens: int) -> Any:
    """A scheduler with which k steps are k network calls from one noise level: the given one, or one much like it.

    - Some schedulers of epsilon and v models call the network twice a step (Heun, KDPM2) or once too often (PNDM, the
      default of Stable Diffusion 1.x). DDIM on the same schedule replaces them.
    - A shift that depends on the size of the image is fixed at its value for `tokens`, so that a level is the same
      noise at every work size.

    Args:
        tokens: length of the image sequence at the size that the model was trained at.

    Raises:
        ValueError: a scheduler whose noise level is not known, or that draws noise which belongs to no image's seed.
    """
    from diffusers import DDIMScheduler
    from diffusers.pipelines.flux.pipeline_flux_img2img import calculate_shift

    name = type(scheduler).__name__
    if name == "FlowMatchEulerDiscreteScheduler" and not scheduler.config["stochastic_sampling"]:
        if not scheduler.config["use_dynamic_shifting"]:
            return scheduler
        bounds = ("base_image_seq_len", "max_image_seq_len", "base_shift", "max_shift")
        shift = calculate_shift(tokens, *(scheduler.config[bound] for bound in bounds))
        return type(scheduler).from_config(scheduler.config, base_shift=shift, max_shift=shift)
    if name == "SCMScheduler":
        return scheduler
    if hasattr(scheduler, "alphas_cumprod") and not scheduler.config.get("use_flow_sigmas"):
        if scheduler.order != 1 or name == "PNDMScheduler":
            return DDIMScheduler.from_config(scheduler.config)
        return scheduler
    raise ValueError(
        f"scheduler {name} is not understood: it hides its noise level, calls the network twice a step, or draws noise "
        "that does not depend on the image's seed; save the model with FlowMatchEulerDiscreteScheduler (flow models) "
        "or DDIMScheduler"
    )


def starts(pipeline: Any, steps: int) -> tuple[tuple[Start, ...], ...]:
    """The places where `pipeline` can begin, in groups; in each group the noisiest place is the last.

    Most pipelines leave out the first steps: of N steps from pure noise they make the last k. So N steps are a group of
    N places. The first group is that of N = `steps`. With few steps its places lie far apart (8 steps of Flux: sigma
    3/8, 1/2, 5/8, ...); groups of a few more steps fill the gaps.

    A latent consistency model respaces its steps below the start instead. It has one group, with each timestep that it
    was distilled on (50); its steps are in proportion, at least one.

    Raises:
        ValueError: more steps than the model can take.
        RuntimeError: for some number of steps no strength is found.
    """
    scheduler = pipeline.scheduler
    if type(pipeline).__name__ == "LatentConsistencyModelImg2ImgPipeline":
        return (_consistency_starts(scheduler, steps),)
    total = scheduler.config["num_train_timesteps"]
    if steps > total:
        raise ValueError(f"got {steps} steps, expected at most the model's {total} timesteps; lower sample.steps")
    return tuple(_group(pipeline, n) for n in range(steps, min(2 * steps, steps + _MORE_STEPS, total + 1)))


def _group(pipeline: Any, steps: int) -> tuple[Start, ...]:
    """The places of a trajectory of `steps` steps."""
    _set_timesteps(pipeline, steps)
    scheduler = pipeline.scheduler
    seen = scheduler.timesteps.double().cpu().numpy()[:steps][::-1]  # ascending; SCM has the 0 at the end too
    result = []
    for k, timestep in enumerate(seen, 1):
        strength = _strength(pipeline, k, steps)
        result.append(Start(k, steps, strength, float(timestep), *_noise(scheduler, float(timestep)), k / steps))
    return tuple(result)


def _set_timesteps(pipeline: Any, steps: int) -> None:
    """Set the scheduler's timesteps as the pipeline's own call does."""
    scheduler = pipeline.scheduler
    kind = type(scheduler).__name__
    if kind == "SCMScheduler":
        highest = inspect.signature(type(pipeline).__call__).parameters["max_timesteps"].default
        scheduler.set_timesteps(steps, max_timesteps=highest, intermediate_timesteps=None)
    elif kind == "FlowMatchEulerDiscreteScheduler":
        own: dict[str, Any] = {}
        if not type(pipeline).__name__.startswith("StableDiffusion3"):  # SD3 lets the scheduler choose the sigmas
            own["sigmas"] = np.linspace(1.0, 1 / steps, steps)
        if scheduler.config["use_dynamic_shifting"]:
            own["mu"] = scheduler.config["base_shift"]  # the same at every size, see settle_scheduler
        scheduler.set_timesteps(steps, **own)
    else:
        scheduler.set_timesteps(steps)


def _strength(pipeline: Any, k: int, steps: int) -> float:
    """The strength at which the pipeline makes k of its steps, as `get_timesteps` of the pipeline says.

    One family rounds steps * strength down (Stable Diffusion, IF, Kandinsky), the other up (SD3, Flux, Z-Image, ...).
    The middle of the interval avoids rounding errors such as 100 * 0.29 = 28.999....
    """
    device = {"device": None} if "device" in inspect.signature(pipeline.get_timesteps).parameters else {}
    for strength in (min((k + 0.5) / steps, 1.0), (k - 0.5) / steps):
        if pipeline.get_timesteps(steps, strength, **device)[1] == k:
            return strength
    raise RuntimeError(f"{type(pipeline).__name__} makes {k} of {steps} steps at no strength that was tried")


def _consistency_starts(scheduler: Any, steps: int) -> tuple[Start, ...]:
    if type(scheduler).__name__ != "LCMScheduler":
        raise ValueError(
            f"got a {type(scheduler).__name__}, expected the LCMScheduler of a latent consistency model; save the "
            "model with it"
        )
    places = scheduler.config["original_inference_steps"]
    if steps > places:
        raise ValueError(
            f"got {steps} steps, expected at most the {places} the model was distilled on; lower sample.steps"
        )
    result = []
    for j in range(1, places + 1):
        calls = max(1, round(steps * j / places))
        strength = min((j + 0.5) / places, 1.0)  # rounded down
        scheduler.set_timesteps(calls, strength=strength)
        timestep = float(scheduler.timesteps[0])
        result.append(Start(calls, calls, strength, timestep, *_noise(scheduler, timestep), j / places))
    return tuple(result)


def _noise(scheduler: Any, seen: float) -> tuple[float, float]:
    """Training timestep and log-SNR at a timestep in the scheduler's own unit."""
    kind = type(scheduler).__name__
    if kind == "FlowMatchEulerDiscreteScheduler":  # x = (1 - sigma) x0 + sigma eps (arXiv 2403.03206, Eq. 13)
        sigma = seen / scheduler.config["num_train_timesteps"]
        return 1000 * sigma, 2 * _log_ratio(1 - sigma, sigma)
    if kind == "SCMScheduler":  # x = cos(t) x0 + sin(t) eps (arXiv 2410.11081, Eq. 3); pi/2 is written as 1.5708
        cos, sin = max(math.cos(seen), 0.0), math.sin(seen)
        return 1000 * sin / (sin + cos), 2 * _log_ratio(cos, sin)
    alphas_cumprod = scheduler.alphas_cumprod.double().cpu().numpy()
    # Some schedulers (Karras sigmas) go between the timesteps.
    alpha = float(np.interp(seen, np.arange(len(alphas_cumprod)), alphas_cumprod))
    return seen, _log_ratio(alpha, 1 - alpha)


def _log_ratio(signal: float, noise: float) -> float:
    return math.log(signal / noise) if signal > 0 else -math.inf


def choose(groups: Sequence[Sequence[Start]], level: int, grid: int, match: Match) -> Start:
    """Where level `level` of `grid` starts.

    Args:
        groups: from `starts`.
        match: snr: the place nearest in log-SNR to GLIDE's grid. The first group is preferred where its nearest place
            is at most 0.05 further away. Level `grid` is the noisiest place of the first group; no level is noisier.
            steps, strength: the place of the first group at level / grid of its places; both are the same for these
            pipelines.

    Raises:
        ValueError: the grid does not have the level.
    """
    if not 1 <= level <= grid:
        raise ValueError(f"level {level} of {grid} does not exist: levels go from 1 to {grid}")
    first = groups[0]
    if match != "snr":
        return first[max(1, round(len(first) * level / grid)) - 1]
    if level == grid:
        return first[-1]
    wanted = glide_log_snr(grid)[level - 1]

    def distance(place: Start) -> float:
        return float(abs(place.log_snr - wanted))

    deepest = first[-1].log_snr
    nearest = [min((place for place in places if place.log_snr >= deepest), key=distance) for places in groups]
    bound = min(map(distance, nearest)) + _NEAR
    return next(place for place in nearest if distance(place) <= bound)


def level_of(place: Start, level: int, grid: int) -> Level:
    """The level of a place, as every image is stored with it."""
    return Level(level, grid, place.calls, place.timestep, place.log_snr, place.share)


@dataclasses.dataclass
class Record:
    """What a call of a pipeline did.

    Attributes:
        timesteps: the timestep of each step of its scheduler.
        denoised: bool (n,), whether what the decoder was given was finite; one entry a decoder call.
        decoded: the same of its output, before it was clipped.
    """

    timesteps: list[float]
    denoised: list[Tensor]
    decoded: list[Tensor]

    def finite(self, n: int) -> np.ndarray:
        """bool (n,), whether each of n images was finite before clipping; a pipeline without decoder clips nothing."""
        return torch.cat(self.decoded).cpu().numpy() if self.decoded else np.ones(n, bool)


@contextlib.contextmanager
def recorded(pipeline: Any, place: Start, images: int) -> Iterator[Record]:
    """Record one call of `pipeline` from `place`, for so many images.

    The scheduler and the decoder are recorded themselves: some pipelines count no steps and have no callback, and
    others count their steps before they make them.

    Raises:
        RuntimeError: on leaving, where the number of steps or the first timestep is not that of `place`.
    """
    record = Record([], [], [])
    scheduler = pipeline.scheduler
    step = scheduler.step

    @functools.wraps(step)  # pipelines read its signature
    def noted(output: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        record.timesteps.append(float(torch.as_tensor(timestep).flatten()[0]))
        result = step(output, timestep, *args, **kwargs)
        step_done(images)
        return result

    def note(_module: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        record.denoised.append(torch.isfinite(inputs[0]).flatten(1).all(1))
        record.decoded.append(torch.isfinite(output).flatten(1).all(1))

    autoencoder = getattr(pipeline, "vae", None) or getattr(pipeline, "movq", None)
    hook = autoencoder.decoder.register_forward_hook(note) if autoencoder is not None else None
    scheduler.step = noted
    try:
        yield record
    finally:
        del scheduler.step
        if hook is not None:
            hook.remove()
    if len(record.timesteps) != place.calls or not math.isclose(record.timesteps[0], place.seen, abs_tol=1e-3):
        raise RuntimeError(
            f"{type(pipeline).__name__} made {len(record.timesteps)} steps from timestep {record.timesteps[:1]}, not "
            f"{place.calls} from [{place.seen}]: its images would be of another level"
        )
