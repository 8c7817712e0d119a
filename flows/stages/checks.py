"""What every run begins with: the run folder, and the check of its inputs. No Prefect in here."""

import re

import numpy as np

from latebloom.data.depth import BadImages
from latebloom.data.images import LabeledImages
from latebloom.data.store import as_path, is_remote, write_arrays
from latebloom.flows.config.arms import Arm
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder, write_config
from latebloom.flows.run.progress import warn
from latebloom.flows.stages.classifiers import new_classifiers
from latebloom.flows.stages.context import has_reference, thresholds_of
from latebloom.flows.stages.coreset_file import as_coreset, on_images, read_selected
from latebloom.flows.stages.inputs import GENERATING, check_data, check_folder
from latebloom.flows.stages.known_generator import known_generator, reference_sizes
from latebloom.flows.stages.loaders import device_of, generator_of, images_of, perturbed
from latebloom.flows.stages.memory import check_generator_memory, check_step_memory
from latebloom.flows.stages.scorers import check_named
from latebloom.flows.stages.scout import check_scout
from latebloom.synth.config import PromptConfig
from latebloom.synth.generators.find import kind_of, reads_prompts
from latebloom.synth.prompts import lint, names_of
from latebloom.synth.sampling.denoiser import Generator
from latebloom.synth.scoring.quality import check_scorers
from latebloom.synth.sizes import Frame, check_channels, work_size_warning
from latebloom.train.augment.mixing import Mixer
from latebloom.train.selection.coreset import Coreset

__all__ = ["check_folder", "check_generator", "check_inputs", "open_run"]


_OWN_TREES = [f"{name}/**/.*" for name in ("stages", "early", "selection", "retrained")]
_STRAY = re.compile(r"\..+\.[a-z0-9_]{8}\.tmp")  # as `atomic_path` names them


def open_run(config: CompareConfig, out: str) -> RunFolder:
    """Make the run folder, remove what a killed command left half-written in it, and write down what was asked.

    Whoever calls it holds the lock of the folder (`RunFolder.locked`): what lies half-written is nobody's.
    """
    run = RunFolder(as_path(out))
    if not is_remote(run.path):  # storage has no half-written files
        for pattern in (".*", "synthetic/.*", "synthetic/.parts/.*", "synthetic/.cache/.*", *_OWN_TREES):
            for stray in run.path.glob(f"{pattern}.tmp"):
                if _STRAY.fullmatch(stray.name):  # other files may be a person's
                    stray.unlink(missing_ok=True)
    write_config(run.path, config, images_of(config).train.digest)
    done = perturbed(config)
    if done is not None:
        write_arrays(run.path / "perturbed.npz", kept=done.kept, flipped=done.flipped)
    elif (run.path / "perturbed.npz").exists():
        (run.path / "perturbed.npz").unlink()  # of other settings
    return run


def check_inputs(config: CompareConfig, kind: str = "compare", out: str = "") -> None:
    """Everything that can be wrong with data, classifier and generator, before anything is trained or written.

    Args:
        kind: the name of the flow: the generator is checked where images will be made.
        out: the run folder, which may know the generator from before; empty: there is none.

    Raises:
        ValueError: the first thing that is.
    """
    check_data(config, kind)
    train = images_of(config).train
    device_of(config.device)
    (model,) = new_classifiers(config, train, count=1)
    if kind != "report":
        check_step_memory(config, train, model)
    check_scout(config, train)
    for arm in config.parsed_arms:
        if arm.selector != "none":  # its budget or its coreset, and its policy
            coreset = _coreset_of(config, arm, train) if arm.selector == "file" else None
            Mixer(config.strong_of(arm), train.labels, train.num_classes, train.image_shape, config.seed, coreset)
    if config.wants_synthetic and kind in GENERATING:
        check_generator(config, train, RunFolder(as_path(out)) if out else None)


def _coreset_of(config: CompareConfig, arm: Arm, train: LabeledImages) -> Coreset:
    """What an arm has of the coreset in its file; the synthetic images of an arm are not made yet."""
    selected = on_images(read_selected(config.strong.file), train)
    items: dict[str, int] | None = None if arm.kind == "synthetic" else {}
    return as_coreset(f"arm {arm.name}", selected, train.labels, np.arange(len(train)), len(train), items)


def check_generator(config: CompareConfig, train: LabeledImages, folder: RunFolder | None = None) -> None:
    """Everything that can be wrong with the generator and these images, before any is made.

    Args:
        folder: of the run; where it knows the generator from before, that is not loaded.

    Raises:
        ValueError: the first thing that is.
    """
    if not (folder and known_generator(folder, config, train)):
        _load_and_check(config, train)
    scored = has_reference(config)
    check_scorers(thresholds_of(config), clip=bool(config.scores.clip), safety=config.scores.safety, classifier=scored)
    if not scored:
        warn(
            "no classifier scores the images, since none of ours is trained first, so quality.min_label_ratio "
            "is off; --reference-classifier names one"
        )
    check_named(config)
    names = names_of(config.prompts, train.class_names)
    kind = kind_of(config.generate)
    if kind == "diffusemix" and config.prompts != PromptConfig():
        raise ValueError("DiffuseMix edits by diffusemix.prompts; leave prompts.* at their defaults")
    if kind == "diffusemix" and any(len(config.levels(arm)) > 1 for arm in config.parsed_arms):
        warn("DiffuseMix has no noise level: the variants of a reference differ by their seed alone; --k 2 makes one")
    if reads_prompts(config.generate):
        for line in lint(train.class_names, names):
            warn(line)


def _load_and_check(config: CompareConfig, train: LabeledImages) -> None:
    """What only the generator itself can say: its classes, channels, levels and sizes."""
    check_generator_memory(config)
    generator = generator_of(config)
    generator.check(train.class_names)
    check_channels(train.image_shape[2], generator.channels)
    for arm in config.parsed_arms:
        for level in config.levels(arm):
            generator.level(level)
    _check_shapes(config, train, generator)
    warning = work_size_warning(config.sizes.work_size or generator.size, generator.size)
    if warning:
        warn(warning)


def _check_shapes(config: CompareConfig, train: LabeledImages, generator: Generator) -> None:
    """Warn of images whose shape the generator cannot take, and refuse where that is all of them."""
    bad: dict[str, str] = {}
    for (height, width), names in reference_sizes(config, train).items():
        try:
            Frame.of(
                height,
                width,
                size=generator.size,
                multiple=generator.multiple,
                largest=generator.largest,
                config=config.sizes,
            )
        except ValueError as error:
            if len(names) == len(train):
                raise
            bad |= dict.fromkeys(names, f"{names[0]}: {error}")
    if len(bad) == len(train):
        raise BadImages(bad)
    if bad:
        warn(f"variants of {len(bad):,} images cannot be made, where they are selected: {BadImages(bad)}")
