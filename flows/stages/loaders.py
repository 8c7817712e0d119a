"""What a process loads once, whichever stage asks: the images, the generator, the device.

Light to import (docs/architecture.md, Start): the images are read and checked before torch is imported.
"""

import dataclasses
import functools
import multiprocessing
import os
import threading
import time
from typing import TYPE_CHECKING, Any, Literal

from latebloom.data.config import DataConfig, PerturbConfig
from latebloom.data.perturb import Perturbed, perturb
from latebloom.data.seeds import child_seed
from latebloom.data.sources.load import Splits, load
from latebloom.flows.config.compare import CompareConfig, RunConfig
from latebloom.flows.run.file_state import FileState, files_below, path_named, texts_of
from latebloom.flows.run.processes import team_size
from latebloom.flows.run.progress import say
from latebloom.synth.config import DiffuseMixConfig, GenerateConfig, SampleConfig
from latebloom.synth.generators.find import generator_folder

if TYPE_CHECKING:
    import torch

    from latebloom.synth.sampling.denoiser import Generator

__all__ = ["device_of", "forget_generator", "generator_files", "generator_of", "images_of", "perturbed"]


def images_of(config: RunConfig) -> Splits:
    """The splits of a run: as its data config names them, the training images as its `perturb` makes them."""
    return _images(config.data, config.perturb, _perturb_seed(config))[0]


def perturbed(config: RunConfig) -> Perturbed | None:
    """What was done to the training images of a run; None where nothing was asked for."""
    return _images(config.data, config.perturb, _perturb_seed(config))[1]


def _perturb_seed(config: RunConfig) -> int:
    return 0 if config.perturb == PerturbConfig() else child_seed(config.seed, "perturb")  # one entry in the cache


@functools.lru_cache(maxsize=2)
def _images(data: DataConfig, perturb_config: PerturbConfig, seed: int) -> tuple[Splits, Perturbed | None]:
    splits = load(data)
    if multiprocessing.parent_process() is None:  # once: the processes that make parts read the images too
        for note in splits.notes:
            say(note)
    if perturb_config.noise == perturb_config.imbalance == "none":
        return splits, None
    done = perturb(splits.train, perturb_config, seed)
    return dataclasses.replace(splits, train=done.data), done


_generator_lock = threading.Lock()


def generator_of(config: CompareConfig) -> "Generator":
    """The generator of a config."""
    with _generator_lock:
        return _generator_asked(config).loaded


def generator_files(config: CompareConfig, at: int | None = None) -> dict[str, Any] | None:
    """The state of the files that a generator is loaded from; None: some are in storage.

    Args:
        at: of an earlier state that this one is compared with; None: the state before the generator was loaded, or now.
    """
    with _generator_lock:
        asked = _generator_asked(config)
        return asked.before if at is None else asked.files(at)


def _generator_asked(config: CompareConfig) -> "_Generator":
    # What changes neither the model nor how it is called must not load it twice.
    generate = config.generate.model_copy(update={"batch_size": 1, "processes": 0})
    device = str(device_of(config.device))
    return _generator(generate, config.sample, config.diffusemix, config.prompts.negative, device)


class _Generator:
    """A generator that is loaded when it is asked for, and the state that its files had before."""

    def __init__(
        self, generate: GenerateConfig, sample: SampleConfig, diffusemix: DiffuseMixConfig, negative: str, device: str
    ) -> None:
        self._generate, self._sample, self._diffusemix = generate, sample, diffusemix
        self._negative, self._device = negative, device

    @functools.cached_property
    def loaded(self) -> "Generator":
        import torch

        from latebloom.synth.generators.load import load_generator

        _ = self.before  # before any is read: what changes later is not what was read
        device = torch.device(self._device)
        return load_generator(self._generate, self._sample, self._diffusemix, self._negative, device)

    @functools.cached_property
    def before(self) -> dict[str, Any] | None:
        return self.files(time.time_ns())

    def files(self, at: int) -> dict[str, Any] | None:
        settings = [self._generate.model_dump(mode="json"), self._diffusemix.model_dump(mode="json")]
        texts = sorted(set(texts_of(settings)))
        if any("://" in text for text in texts):
            return None
        folder = generator_folder(self._generate)
        paths = [folder, *(path for path in map(path_named, texts) if path)]
        return FileState((found for path in paths for found in files_below(str(path), path)), at).content


@functools.lru_cache(maxsize=1)
def _generator(
    generate: GenerateConfig, sample: SampleConfig, diffusemix: DiffuseMixConfig, negative: str, device: str
) -> _Generator:
    return _Generator(generate, sample, diffusemix, negative, device)


def forget_generator() -> None:
    """Let the generator of this process go; the next one that asks loads it again."""
    with _generator_lock:
        _generator.cache_clear()


def device_of(wanted: Literal["auto", "cpu", "cuda"]) -> "torch.device":
    """The device that a config's `device` asks for.

    Raises:
        ValueError: cuda was asked for and there is none.
    """
    import torch

    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch sees no GPU; use --device auto or cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # Of several processes that train together each has a GPU; by number, since the current one is a thread's own.
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if team_size() > 1 else torch.device("cuda")
