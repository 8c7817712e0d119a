"""What can be refused before torch is imported: images that cannot be read, a run folder that lacks a stage.

Light to import (docs/architecture.md, Start), so that a wrong input ends a command at once.
"""

import shlex

from latebloom.data.depth import BadImages
from latebloom.data.sources.repeated import TWO_SPLITS, Pictures, repeated
from latebloom.data.store import as_path, is_remote
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import RunFolder
from latebloom.flows.run.progress import warn
from latebloom.flows.run.records import GENERATE, PLAN, SELECT, retrain_key
from latebloom.flows.stages.choosing import check_generator_chosen
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.given import check_given
from latebloom.flows.stages.loaders import images_of
from latebloom.flows.stages.run_source import check_source
from latebloom.synth.generators.find import kind_of
from latebloom.train.models.names import check_name

__all__ = ["GENERATING", "check_data", "check_folder"]

# The flows that make images, and so need the generator.
GENERATING = ("run", "compare", "plan", "generate")


def check_data(config: CompareConfig, kind: str = "compare") -> None:
    """Read every image, and find the classifier, and the generator where images will be made.

    Args:
        kind: the name of the flow.

    Raises:
        ValueError: the first thing that is wrong.
    """
    check_name(config.classifier.model)
    splits = images_of(config)
    if config.named and not splits.validation:  # it may be a part of the data set, so the config cannot know
        raise ValueError(
            "named needs a validation split to choose the other arms by; give data.validation_fraction too"
        )
    epochs = config.train.total_epochs(len(splits.train))
    early = config.wants_slow or kind not in ("retrain", "report")  # which need no early classifier without slow arms
    if config.slow.given and early:
        check_given(config)
    elif early and config.slow.separating_epoch > epochs:
        raise ValueError(f"separating epoch {config.slow.separating_epoch} lies beyond the {epochs} epochs of training")
    if config.wants_synthetic and kind in GENERATING:
        check_generator_chosen(config, splits.train)
        kind_of(config.generate)
    # It decodes every image, as the stages will anyway (it is kept): a damaged one is named now.
    parts = {"train": splits.train, "validation": splits.validation, "test": splits.test}
    pictures, bad = {}, dict[str, str]()
    for name, part in parts.items():
        try:
            if part:
                pictures[name] = Pictures(part.names, part.labels, part.sha256)
        except BadImages as error:
            bad |= error.found
    if bad:
        raise BadImages(bad)
    problems, _ = repeated(pictures, splits.train.class_names)
    if twice := [problem for problem in problems if problem.kind == TWO_SPLITS]:
        words = f"{len(twice):,} images are in two splits" if len(twice) > 1 else "an image is in two splits"
        warn(f"{words}; `latebloom check {shlex.quote(config.data.source)}` lists them. {twice[0].message}")


def check_folder(config: CompareConfig, out: str, kind: str) -> None:
    """What a flow of this kind would miss in its run folder, or find in its place; nothing is written.

    Args:
        kind: the name of the flow, such as `retrain`.

    Raises:
        ValueError: the first thing that is wrong.
    """
    folder = RunFolder(as_path(out))
    above = () if is_remote(folder.path) else folder.path.absolute().parents  # storage needs no folder above
    for path in (folder.path, *above):
        if path.exists() and not path.is_dir():
            raise ValueError(f"{path} is a file, so {folder.path} cannot be a run folder; give another one with --out")
    check_source(folder.path, config)
    if kind in ("plan", "generate") and not config.wants_synthetic:
        raise ValueError(f"none of the arms ({', '.join(config.arms)}) needs images to be made; name one like ours-5")
    if kind in ("retrain", "report") and config.wants_slow:  # the others train from the real images as they are
        _check_earlier_stages(RunContext(folder, config), kind)
    if kind == "report":
        for arm in config.arms:
            for optimizer in config.optimizers:
                folder.record(retrain_key(arm, optimizer))


def _check_earlier_stages(run: RunContext, kind: str) -> None:
    """What retraining and the report need of the stages before them."""
    config = run.config
    _ = run.early  # which says what to do where there is none
    for key in (SELECT, *((PLAN, GENERATE) if config.wants_synthetic else ())):
        run.folder.record(key)
    made = len(run.select.facts.slow)
    if config.seeds > made:
        raise ValueError(
            f"{run.path} was made for {made} seeds, not {config.seeds}; run `latebloom compare` in it first"
        )
    if config.wants_synthetic:
        from latebloom.flows.stages.synthesis import check_made

        check_made(run)
        if kind == "retrain":
            from latebloom.flows.stages.training_sets import check_coreset_file

            check_coreset_file(run)
