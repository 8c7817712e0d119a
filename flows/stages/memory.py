"""Whether a training step, and the weights of a generator, will fit into the device's memory: said before either."""

import torch
from torch import nn

from latebloom.data.batches import RESIDENT_BYTES
from latebloom.data.images import LabeledImages
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.config.presets import PHOTO_SIDE, PHOTOS
from latebloom.flows.run.machine import free_ram
from latebloom.flows.run.progress import warn
from latebloom.flows.stages.loaders import device_of
from latebloom.synth.generators.find import generator_folder
from latebloom.synth.generators.folder import loaded_bytes
from latebloom.train.memory import step_memory

__all__ = ["check_generator_memory", "check_step_memory"]

_GIB = 1 << 30
_NEAR = 0.8
_NEAR_STEP = 0.7  # a step was measured at up to 1 / 0.7 of its estimate (docs/benchmarks.md)
_OURS = ("preact-resnet18", "resnet18", "resnet20", "resnet32", "wrn-28-10", "vit-s4")


def check_step_memory(config: CompareConfig, train: LabeledImages, model: nn.Module) -> None:
    """Estimate what training takes, and refuse it where the device has not as much free.

    Args:
        model: of the config, on the CPU.

    Raises:
        ValueError: with the batch size that would fit.
    """
    device = device_of(config.device)
    free = torch.cuda.mem_get_info(device)[0] if device.type == "cuda" else free_ram()
    if not free:
        return
    optimizers = [config.train.model_copy(update={"optimizer": optimizer}) for optimizer in config.optimizers]
    step = max((step_memory(model, train.image_shape, one) for one in optimizers), key=lambda one: one.of(1))
    side_by_side = config.seeds if config.classifier.model == "small-cnn" else 1  # trained as one network
    side_by_side *= min(config.workers, len(config.arms) * len(config.optimizers))
    height, width, channels = train.image_shape
    images = len(train) * height * width * channels
    images = images if images <= RESIDENT_BYTES else 0
    batch = min(config.train.batch_size, len(train))
    micro = -(-batch // config.train.accumulate)
    needed = side_by_side * step.of(micro) + images
    if needed <= _NEAR_STEP * free:
        return
    where = "the GPU" if device.type == "cuda" else "this machine"
    what = (
        f"training {config.classifier.model} on images of {width}x{height} in batches of {micro} takes about "
        f"{needed / _GIB:.1f} GiB ({side_by_side * micro * step.per_image / _GIB:.1f} of activations), and {where} has "
        f"{free / _GIB:.1f} GiB free"
    )
    if needed <= free:
        warn(f"{what}; a smaller --batch-size leaves room for others")
        return
    fits = step.fitting((_NEAR_STEP * free - images) / side_by_side)
    ways = []
    if min(height, width) >= PHOTO_SIDE and config.classifier.model in _OURS:
        ways.append(f"--preset {PHOTOS} (this network is for small images)")
    if fits:
        fits = 1 << (fits.bit_length() - 1) if fits > 8 else fits
        ways.append(f"--batch-size {fits}, or --set train.accumulate={-(-batch // fits)} for steps of {batch} still")
    ways += ["fewer --workers"] * (config.workers > 1) + ["a smaller --image-size or --model"] * (not ways)
    raise ValueError(f"{what}; give {', or '.join(ways)}")


def check_generator_memory(config: CompareConfig) -> None:
    """Warn of a generator whose weights alone nearly fill the device, before it is loaded; batches fit themselves."""
    device = device_of(config.device)
    cuda = device.type == "cuda"
    free = torch.cuda.mem_get_info(device)[0] if cuda else free_ram()
    wide = config.generate.dtype == "float32" or (config.generate.dtype == "auto" and not cuda)
    needed = loaded_bytes(generator_folder(config.generate), 4 if wide else 2)
    if free and needed > _NEAR * free:
        warn(
            f"the weights of {config.generate.generator} take {needed / _GIB:.1f} GiB, and "
            f"{'the GPU' if cuda else 'this machine'} has {free / _GIB:.1f} GiB free"
            + ("; --set generate.dtype=bfloat16 halves them" if wide else "")
        )
