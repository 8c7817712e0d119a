"""The models that score images: the reference classifier, CLIP, the safety checker; and the digests that name them."""

import functools
from collections.abc import Sequence

import numpy as np
import torch
from torch import nn

from latebloom.data.depth import BadImages
from latebloom.data.images import LabeledImages
from latebloom.data.store import as_path, digest_file, local_file, local_folder
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.stages.classifiers import loaded_classifiers
from latebloom.flows.stages.loaders import device_of, images_of
from latebloom.synth.generate import Scorers
from latebloom.synth.generators.find import generator_folder, kind_of
from latebloom.synth.prompts import names_of
from latebloom.synth.scoring.clip import ClipScorer, SafetyScorer, clip_digest, safety_digest
from latebloom.synth.scoring.quality import RealFeatures
from latebloom.synth.scoring.spread import Spread
from latebloom.train.evaluate import features_of
from latebloom.train.models.exported import load_exported

__all__ = [
    "check_named",
    "forget_named",
    "named_reference",
    "reference_digest",
    "scorer_digests",
    "scorers_by",
    "scorers_of",
]


def reference_digest(config: CompareConfig) -> str:
    """Digest of the reference classifier that a config names; empty: it names none.

    Raises:
        ValueError: there is no such file.
    """
    if not config.scores.reference_classifier:
        return ""
    file = as_path(config.scores.reference_classifier)
    if not file.is_file():
        raise ValueError(
            f"there is no reference classifier at {file}; give a .safetensors file that a run wrote, a .pt2 file of "
            "torch.export.save, or none"
        )
    if file.suffix.lower() not in (".safetensors", ".pt2"):
        raise ValueError(
            f"{file} is no reference classifier by its name; give a .safetensors file that a run wrote, or a .pt2 file "
            "of torch.export.save (docs/commands.md has the three lines)"
        )
    return digest_file(file)


def scorer_digests(config: CompareConfig, early: str) -> dict[str, str]:
    """Digests of all that score images; empty for those that do not.

    Args:
        early: digest of the early classifiers, which are the reference where none is named.
    """
    return {"reference": reference_digest(config) or early, **_clip_and_safety_digests(config)}


@functools.lru_cache(maxsize=1)
def _clip_and_safety_digests(config: CompareConfig) -> dict[str, str]:
    """Read once a process: they are gigabytes."""
    clip = safety = ""
    if config.scores.clip:
        clip = clip_digest(local_folder(as_path(config.scores.clip)), _clip_prompts(config))
    if config.scores.safety:
        safety = safety_digest(generator_folder(config.generate, safety=True))
    return {"clip": clip, "safety": safety}


def check_named(config: CompareConfig) -> None:
    """Load the models that a config names.

    Raises:
        ValueError: one of them is not there, or is something else.
    """
    _named(config, reference_digest(config))


def named_reference(config: CompareConfig) -> nn.Module:
    """The reference classifier that a config names."""
    named = _named(config, reference_digest(config))[0]
    assert named is not None
    return named


def scorers_of(config: CompareConfig, reference: Sequence[nn.Module]) -> Scorers:
    """Who scores the images of a run.

    Args:
        reference: the mean of their probabilities and the features of the first are scored by; none: what needs a
            classifier is not measured.
    """
    _, clip, safety = _named(config, reference_digest(config))
    return scorers_by(reference, images_of(config).train, kind_of(config.generate) == "pixel", clip, safety)


def scorers_by(
    reference: Sequence[nn.Module],
    train: LabeledImages,
    pixel_noise: bool,
    clip: ClipScorer | None = None,
    safety: SafetyScorer | None = None,
) -> Scorers:
    """Scorers of these models, as `Scorers` names them; `reference` as in `scorers_of`."""

    def classify(images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        batch = LabeledImages(images, np.zeros(len(images), np.int64), train.class_names, "a part")
        found = [features_of(model, batch) for model in reference]
        return np.mean([torch.from_numpy(logits).softmax(1).numpy() for logits, _ in found], 0), found[0][1]

    def measure(some: LabeledImages) -> tuple[Spread, np.ndarray | None]:
        return Spread.of(some.pixels, len(some)), features_of(reference[0], some)[1] if reference else None

    bad: dict[int, str] = {}
    try:
        spread, features = measure(train)
    except BadImages:  # since the command began; what scores by the others can be had
        bad = train.unreadable()
        if len(bad) == len(train):
            raise
        rows = np.setdiff1d(np.arange(len(train)), list(bad))
        spread, some = measure(train.subset(rows))
        features = None if some is None else np.zeros((len(train), some.shape[1]), some.dtype)
        if features is not None:
            features[rows] = some
    real = None if features is None else RealFeatures.of(features)
    unreadable = {train.names[row]: why for row, why in bad.items()}
    return Scorers(classify if reference else None, real, spread, pixel_noise, clip, safety, unreadable)


@functools.lru_cache(maxsize=1)
def _named(config: CompareConfig, _reference: str) -> tuple[nn.Module | None, ClipScorer | None, SafetyScorer | None]:
    """The reference classifier, the CLIP model and the safety checker where a config names them."""
    train, device = images_of(config).train, device_of(config.device)
    reference = clip = safety = None
    if config.scores.reference_classifier:
        file = as_path(config.scores.reference_classifier)
        if file.suffix == ".pt2":
            with local_file(file) as local:
                reference = load_exported(local, train.num_classes, train.image_shape, device, str(file))
        else:
            reference = loaded_classifiers(config, train, [file])[0]
    if config.scores.clip:
        clip = ClipScorer.load(local_folder(as_path(config.scores.clip)), _clip_prompts(config), device)
    if config.scores.safety:
        folder = generator_folder(config.generate, safety=True)
        safety = SafetyScorer.load(folder, device)
        if safety is None:
            raise ValueError(f"generator {folder.name} ships no safety checker; turn scores.safety off")
    return reference, clip, safety


def forget_named() -> None:
    """Let the models go that were loaded here."""
    _named.cache_clear()


def _clip_prompts(config: CompareConfig) -> list[str]:
    """The text of each class for CLIP: the first template with its name."""
    names = names_of(config.prompts, images_of(config).train.class_names)
    return [config.prompts.templates[0].replace("{name}", name) for name in names]
