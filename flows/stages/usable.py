"""What to say, and to change, where images come out that cannot be used: not finite, flat, or kept out of training."""

from collections.abc import Mapping
from traceback import format_exception
from typing import Literal

import numpy as np
import pyarrow as pa
import torch

from latebloom.data.names import listed, shortened
from latebloom.data.states import THRESHOLDS
from latebloom.data.store import write_json
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder, Unusable
from latebloom.flows.stages.context import has_reference
from latebloom.flows.stages.loaders import device_of
from latebloom.synth.config import GenerateConfig, QualityConfig
from latebloom.synth.generate import UnusableGenerator
from latebloom.synth.sampling.denoiser import Made
from latebloom.synth.scoring.quality import contrast

__all__ = ["of_states", "unmeasured", "unusable", "unusable_in_words", "warning_of_trial", "warning_of_unusable"]


Device = Literal["auto", "cpu", "cuda"]


def unusable(folder: RunFolder, config: CompareConfig, error: UnusableGenerator) -> Unusable:
    """What a command ends with; the traceback of what the generator raised goes into synthetic/failures.json."""
    line = unusable_in_words(config.generate, config.device, error)
    if error.__cause__:
        file = folder.path / "synthetic" / "failures.json"
        write_json(file, {"generator": "".join(format_exception(error.__cause__))})
        line += f"; the traceback is in {file}"
    return Unusable(line)


def unusable_in_words(config: GenerateConfig, device: Device, error: UnusableGenerator) -> str:
    """That a generator makes nothing that can be used, why, and which setting to change; one line."""
    if error.raised:
        return (
            f"generator {config.generator} makes no image: at work size {listed(error.work_sizes)} it raises "
            f"{shortened(error.raised, 200)} (references tried: {error.tried}); set another size (--work-size), or "
            "name another generator"
        )
    flat = error.tried - error.nan
    counts = [f"{error.nan} not finite (NaN)"] * bool(error.nan) + [f"{flat} flat (one colour)"] * bool(flat)
    remedy = _remedy(config, device, error.nan, error.overflowed, flat)
    return (
        f"generator {config.generator} makes no image that can be used: of {error.tried} references from all "
        f"over the plan, each tried twice, {' and '.join(counts)}; {remedy}"
    )


def warning_of_trial(config: GenerateConfig, device: Device, trial: Made | None) -> str:
    """A warning where the one image that a probe made is not finite or flat; else empty."""
    if trial is None or (trial.finite[0] and contrast(trial.images)[0] >= QualityConfig().min_contrast):
        return ""
    nan = not trial.finite[0]
    overflowed = nan and trial.denoised is not None and trial.denoised[0]
    what = "not finite (NaN)" if nan else "flat (one colour)"
    return f"a trial image is {what}: {_remedy(config, device, int(nan), int(overflowed), int(not nan))}"


def warning_of_unusable(states: Mapping[str, int], config: GenerateConfig, device: Device) -> str:
    """A warning where more than half of some images are not finite or flat, by how many have each state; else empty."""
    nan, flat, images = states.get("nan", 0), states.get("flat", 0), sum(states.values())
    if 2 * (nan + flat) <= images:
        return ""
    return f"{nan + flat:,} of {images:,} images are not finite (NaN) or flat: {_remedy(config, device, nan, 0, flat)}"


def _remedy(config: GenerateConfig, device: Device, nan: int, overflowed: int, flat: int) -> str:
    """What to do about a generator that makes such images."""
    if flat > nan:
        return (
            "the checkpoint does not fit its settings: `--sampling fast` is for LCM and Turbo models alone; try "
            "`--sampling paper`, another sample.guidance_scale, or another generator"
        )
    from latebloom.synth.generators.load import dtype_of  # imports diffusers

    dtype = dtype_of(config.dtype, device_of(device))
    part = "its VAE overflows" if 2 * overflowed > nan else "it overflows"
    if dtype == torch.float32:
        what = "VAE" if 2 * overflowed > nan else "network"
        return f"its {what} gives NaN in float32 too: its weights are damaged, so get them again or name another one"
    others = "bfloat16 or float32" if dtype == torch.float16 else "float32"
    return f"{part} in {str(dtype).removeprefix('torch.')}: set generate.dtype to {others}"


# By state, what else helps than the threshold.
_ADVICE = {
    "off_label": "look at them with `latebloom inspect RUN --sheet state`",
    "far_from_reference": "name shallower levels in plan.levels",
    "near_reference": "the generator hardly changes its references, so name deeper levels in plan.levels",
}


def of_states(states: Mapping[str, int], config: CompareConfig) -> list[str]:
    """Whether none, or less than half, of the images may be trained on, and what to do about the commonest state."""
    images, kept = sum(states.values()), sum(states.get(state, 0) for state in config.train_states)
    if not images or 2 * kept > images:
        return []
    left = {name: count for name, count in states.items() if name not in config.train_states}
    counts = ", ".join(f"{name} {count:,}" for name, count in sorted(left.items(), key=lambda item: -item[1]))
    words = f"{'None' if not kept else f'Only {kept:,}'} of {images:,} images may be trained on ({counts})"
    if line := warning_of_unusable(states, config.generate, config.device):
        return [f"{words}: {line.partition(': ')[2]}"]
    most = max(left, key=lambda name: left[name])
    limits = [
        f"quality.{name}"
        for name, (limit, state) in THRESHOLDS.items()
        if state == most and getattr(config.quality, name) != limit.off
    ]
    advice = [_ADVICE[most]] if most in _ADVICE else []
    return [f"{words}: {', or '.join([*advice, 'change ' + ', '.join(limits) + ' with `latebloom filter`'])}"]


def unmeasured(config: CompareConfig, table: pa.Table) -> list[str]:
    """The scores that were asked for and are NaN for every image."""
    asked = {
        "clip_score": ("scores.clip", bool(config.scores.clip)),
        "unsafe": ("scores.safety", config.scores.safety),
        "label_probability": ("the reference classifier", has_reference(config)),
    }
    return [
        f"{name} is NaN for all {table.num_rows:,} images: the model of {what} is damaged; name another one"
        for name, (what, wanted) in asked.items()
        if wanted and table.num_rows and np.isnan(table[name].to_numpy()).all()
    ]
