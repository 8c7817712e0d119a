"""What several stages need, read again where it is needed and kept while the process lives."""

import dataclasses
import functools
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import nn

from latebloom.data.images import LabeledImages
from latebloom.data.perturb import PerturbConfig, Perturbed, perturb
from latebloom.data.seeds import child_seed
from latebloom.data.sources.load import DataConfig, Splits, load
from latebloom.data.store import as_path, local_file, local_folder
from latebloom.data.synthetic.folder import State, SyntheticFolder
from latebloom.flows.config.compare import ClassifierConfig, CompareConfig, RunConfig
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.processes import team_size
from latebloom.synth.generate import Scorers
from latebloom.synth.generators.diffusemix import DiffuseMixConfig
from latebloom.synth.generators.load import GenerateConfig, generator_folder, load_generator
from latebloom.synth.prompts import names_of
from latebloom.synth.sampling.denoiser import Generator
from latebloom.synth.sampling.sample import SampleConfig
from latebloom.synth.scoring.clip import ClipScorer, SafetyScorer
from latebloom.synth.scoring.quality import RealFeatures
from latebloom.train.evaluate import features_of
from latebloom.train.loop.checkpoint import load_model
from latebloom.train.models.build import build
from latebloom.train.selection.slow import Method

__all__ = [
    "classifier_of",
    "classifier_seeds",
    "clip_prompts",
    "device_of",
    "early_classifiers",
    "early_folder",
    "forget_generator",
    "generator_of",
    "images_of",
    "judges",
    "named_scorers",
    "new_classifiers",
    "perturbed",
    "scorers_of",
    "selected",
    "selection_path",
    "usable_rows",
]


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
    if perturb_config.noise == perturb_config.imbalance == "none":
        return splits, None
    done = perturb(splits.train, perturb_config, seed)
    return dataclasses.replace(splits, train=done.data), done


_generator_lock = threading.Lock()


@functools.lru_cache(maxsize=1)
def _generator(
    generate: GenerateConfig, sample: SampleConfig, diffusemix: DiffuseMixConfig, negative: str, device: str
) -> Generator:
    return load_generator(generate, sample, diffusemix, negative, torch.device(device))


def generator_of(config: CompareConfig) -> Generator:
    """The generator of a config, loaded once a process."""
    with _generator_lock:
        device = str(device_of(config.device))
        # What changes neither the model nor how it is called must not load it twice.
        generate = config.generate.model_copy(update={"batch_size": 1, "processes": 0})
        return _generator(generate, config.sample, config.diffusemix, config.prompts.negative, device)


def forget_generator() -> None:
    """Free the generator and the scorers of this process, before others load theirs."""
    with _generator_lock:
        _generator.cache_clear()
        _scorers.cache_clear()
        named_scorers.cache_clear()
        torch.cuda.empty_cache()


def device_of(wanted: Literal["auto", "cpu", "cuda"]) -> torch.device:
    """The device that a config's `device` asks for.

    Raises:
        ValueError: cuda was asked for and there is none.
    """
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("device cuda was asked for, but torch sees no GPU; use --device auto or cpu")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # Of several processes that train together each has a GPU; by number, since the current one is a thread's own.
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0"))) if team_size() > 1 else torch.device("cuda")


def classifier_seeds(config: CompareConfig) -> list[int]:
    """One root seed a classifier. Arms with the same one start from the same weights, which pairs them."""
    return [child_seed(config.seed, "classifier", number) for number in range(config.seeds)]


def new_classifiers(config: CompareConfig, data: LabeledImages) -> list[nn.Module]:
    """A fresh classifier for every seed, on the CPU."""
    return [classifier_of(config.classifier, data, seed) for seed in classifier_seeds(config)]


def classifier_of(config: ClassifierConfig, data: LabeledImages, seed: int) -> nn.Module:
    """A fresh classifier for these images, on the CPU."""
    return build(config.model, data.num_classes, data.image_shape, seed, config.width, config.weights)


def early_folder(run: RunFolder, number: int) -> Path:
    """Where the early classifier of seed `number` and its outputs are."""
    return run.path / "early" / f"seed-{number}"


def early_classifiers(run: RunFolder, config: CompareConfig) -> list[nn.Module]:
    """The early classifiers of all seeds, in eval mode on the run's device."""
    models = new_classifiers(config, images_of(config).train)
    for number, model in enumerate(models):
        load_model(early_folder(run, number) / "model.safetensors", model)
        model.to(device_of(config.device)).eval()
    return models


def scorers_of(run: RunFolder, config: CompareConfig) -> Scorers:
    """Who scores the images of a run, made once a process.

    The judge is the mean of the early classifiers' probabilities and the features of the first of them, or the one
    classifier that the config names.
    """
    return _scorers(run, config, run.record("early")["digest"])


@functools.lru_cache(maxsize=1)
def _scorers(run: RunFolder, config: CompareConfig, _early: str) -> Scorers:  # new early classifiers, new scorers
    train = images_of(config).train
    _, clip, safety = named_scorers(config)
    models = judges(run, config)

    def judge(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batch = LabeledImages(images, np.zeros(len(images), np.int64), train.class_names, "a part")
        seen = [features_of(model, batch) for model in models]
        return np.mean([torch.from_numpy(logits).softmax(1).numpy() for logits, _ in seen], 0), seen[0][1]

    return Scorers(judge, RealFeatures.of(features_of(models[0], train)[1]), clip, safety)


def judges(run: RunFolder, config: CompareConfig) -> list[nn.Module]:
    """The early classifiers, or the one classifier that the config names; in eval mode on the run's device."""
    named = named_scorers(config)[0]
    return [named] if named else early_classifiers(run, config)


@functools.lru_cache(maxsize=1)
def named_scorers(config: CompareConfig) -> tuple[nn.Module | None, ClipScorer | None, SafetyScorer | None]:
    """The judge, the CLIP model and the safety checker where a config names them, loaded once a process.

    Raises:
        ValueError: one of them is not there, or is something else.
    """
    train, device = images_of(config).train, device_of(config.device)
    judge = clip = safety = None
    if config.scores.judge:
        file = as_path(config.scores.judge)
        if not file.is_file():
            raise ValueError(f"there is no judge at {file}; give a .safetensors file that a run wrote, or none")
        judge = new_classifiers(config.model_copy(update={"seeds": 1}), train)[0]
        load_model(file, judge)
        judge.to(device).eval()
    if config.scores.clip:
        clip = ClipScorer.load(local_folder(as_path(config.scores.clip)), clip_prompts(config), device)
    if config.scores.safety:
        folder = generator_folder(config.generate.generator, config.generate.revision)
        safety = SafetyScorer.load(folder, device)
        if safety is None:
            raise ValueError(f"generator {folder.name} ships no safety checker; turn scores.safety off")
    return judge, clip, safety


def clip_prompts(config: CompareConfig) -> list[str]:
    """What CLIP is told of each class: the first template with its name."""
    names = names_of(config.prompts, images_of(config).train.class_names)
    return [config.prompts.templates[0].replace("{name}", name) for name in names]


def selection_path(run: RunFolder, method: Method, number: int) -> Path:
    """Where the selection of a method and seed is."""
    return run.path / "selection" / method / f"seed-{number}.npz"


def selected(run: RunFolder, method: Method, number: int) -> np.ndarray:
    """The indices that a method selected for a seed, int64 ascending."""
    with local_file(selection_path(run, method, number)) as file, np.load(file) as arrays:
        return arrays["indices"]


def usable_rows(folder: SyntheticFolder, table: pa.Table, states: Sequence[State]) -> pa.Table:
    """The rows of a synthetic data set's `table` that have one of these states, in their order.

    Raises:
        ValueError: none has.
    """
    usable = table.filter(pc.is_in(table["state"], pa.array(states)))
    if usable.num_rows == 0:
        raise ValueError(
            f"none of the {table.num_rows} images in {folder.path} is {' or '.join(states)}; look at their states and "
            "scores with `latebloom inspect`"
        )
    return usable
