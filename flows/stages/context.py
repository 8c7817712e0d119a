"""What a stage knows of its run: settings, images, records, selections, the plan and its parts, each read once.

Light to import: what needs torch or a model is imported where it is asked for.
"""

import threading
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa

from latebloom.data.sources.load import Splits
from latebloom.data.store import digest_json, local_file, read_table
from latebloom.data.synthetic.folder import SyntheticFolder
from latebloom.flows.config.arms import Arm
from latebloom.flows.config.compare import CompareConfig
from latebloom.flows.run.folder import Record, RunFolder
from latebloom.flows.run.origin import check_there
from latebloom.flows.run.records import EARLY, PLAN, SELECT, EarlyFacts, PlanFacts, SelectFacts
from latebloom.flows.stages import loaders
from latebloom.synth.config import QualityConfig
from latebloom.synth.plan import PLAN_SCHEMA, deciding
from latebloom.train.config import SlowMethod as Method

if TYPE_CHECKING:
    from torch import nn

    from latebloom.synth.generate import Scorers

__all__ = ["RunContext", "forget_models", "has_reference", "kept_context", "selection_path", "thresholds_of"]


class RunContext:
    """A run as one stage sees it. A stage opens one at its start, and it never leaves the process.

    What it has read it keeps: a stage that writes a file reads that file from the folder, not from here.

    Attributes:
        folder: the run folder.
        config: what was asked for.
    """

    def __init__(self, folder: RunFolder, config: CompareConfig) -> None:
        self.folder, self.config = folder, config
        self._selections: dict[Path, dict[str, np.ndarray]] = {}
        self._keys: dict[int, str] = {}

    @property
    def path(self) -> Path:
        return self.folder.path

    @cached_property
    def splits(self) -> Splits:
        """The images, as the settings make them."""
        check_there(self.path, self.config.data.source)
        return loaders.images_of(self.config)

    @cached_property
    def early(self) -> Record[EarlyFacts]:
        return self.folder.record(EARLY)

    @cached_property
    def select(self) -> Record[SelectFacts]:
        return self.folder.record(SELECT)

    @cached_property
    def planned(self) -> Record[PlanFacts]:
        return self.folder.record(PLAN)

    @property
    def has_logits(self) -> bool:
        """Whether the outputs of early classifiers are known, and with them what they take an image for."""
        return self.early.facts.given in ("", "logits")

    @property
    def one_selection(self) -> bool:
        """Whether one selection serves all seeds: as asked for, or since one early model, or one choice, was given."""
        facts = self.early.facts
        return self.config.slow.shared or (facts.given != "" and facts.given_seeds == 1)

    def early_arrays(self, number: int, *names: str) -> list[np.ndarray]:
        """Outputs of the early classifier of a seed: logits (N, C), labels (N,), losses (N,). Large, so not kept.

        Those that are not known, since others were given, are NaN.
        """
        from latebloom.flows.stages.classifiers import early_folder

        facts = self.early.facts
        if facts.given and facts.given_seeds == 1:
            number = 0
        with local_file(early_folder(self.folder, number) / "outputs.npz") as file, np.load(file) as arrays:
            found = {name: arrays[name] for name in names if name in arrays.files}
        train = self.splits.train
        shapes = {"logits": (len(train), train.num_classes), "losses": (len(train),)}
        return [found[name] if name in found else np.broadcast_to(np.float32(np.nan), shapes[name]) for name in names]

    def selection(self, method: Method, number: int) -> dict[str, np.ndarray]:
        """The choice of a method and seed: indices (S,) ascending, cluster (N,), mean_loss (C, 2)."""
        path = selection_path(self.folder, method, number)
        if path not in self._selections:
            with local_file(path) as file, np.load(file) as arrays:
                self._selections[path] = dict(arrays)
        return self._selections[path]

    def selected(self, method: Method, number: int) -> np.ndarray:
        """The indices that a method selected for a seed, int64 ascending."""
        return self.selection(method, number)["indices"]

    # -------------------------------------------------------------------------------------- synthetic images

    @cached_property
    def synthetic(self) -> SyntheticFolder:
        return SyntheticFolder(self.path / "synthetic")

    @cached_property
    def plan(self) -> pa.Table:
        """The plan, `PLAN_SCHEMA`."""
        _ = self.planned  # which says what to do where there is none
        return read_table(self.path / "plan.parquet", schema=PLAN_SCHEMA)

    def calls_of(self, arm: Arm) -> int:
        """Denoiser calls of the variants that an arm has of one image."""
        return sum(self.planned.facts.calls[level] for level in self.config.levels(arm))

    @cached_property
    def parts(self) -> list[pa.Table]:
        """The rows of the plan that each part has."""
        size = self.config.plan.part_size
        return [self.plan.slice(start, size) for start in range(0, self.plan.num_rows, size)]

    @cached_property
    def made(self) -> str:
        """Digest of what decides an image beside its own row of the plan."""
        return digest_json(
            {
                "version": 3,
                "generator": self.planned.facts.generator.digest,
                "sample": self.config.sample.model_dump(mode="json"),
                "sizes": self.config.sizes.model_dump(mode="json"),
            }
        )

    @cached_property
    def plan_digest(self) -> str:
        """Digest of the plan but for the names of its references, which decide no image."""
        return digest_json(deciding(self.plan))

    def part_key(self, number: int) -> str:
        """Digest of all that decides the images of a part and their scores; the states follow from the scores."""
        if number not in self._keys:
            rows = deciding(self.parts[number])
            scored = {"scores": 2, "scorers": self.scorer_digests}
            self._keys[number] = digest_json({"made": self.made, "rows": rows, **scored})
        return self._keys[number]

    @cached_property
    def scorer_digests(self) -> dict[str, str]:
        """Digests of all that score images; empty for those that do not."""
        from latebloom.flows.stages import scorers

        return scorers.scorer_digests(self.config, "" if self.config.slow.given else self.early.digest)

    @cached_property
    def reference(self) -> "Sequence[nn.Module]":
        """The reference classifiers: the one that the settings name, or the early ones of this run; none of either."""
        from latebloom.flows.stages import scorers
        from latebloom.flows.stages.classifiers import early_weights, loaded_classifiers

        if self.config.scores.reference_classifier:
            return [scorers.named_reference(self.config)]
        if self.config.slow.given:
            return []
        return loaded_classifiers(self.config, self.splits.train, early_weights(self.folder, self.config.seeds))

    @property
    def quality(self) -> QualityConfig:
        """The thresholds, those off by default that need a reference classifier where there is none."""
        return thresholds_of(self.config)

    @cached_property
    def scorers(self) -> "Scorers":
        """What scores the images of this run."""
        from latebloom.flows.stages import scorers

        return scorers.scorers_of(self.config, self.reference)

    def look_again(self) -> None:
        """Let scorers go that were made while some images could not be read."""
        made: Scorers | None = vars(self).get("scorers")
        if made and made.unreadable:
            del self.scorers


def has_reference(config: CompareConfig) -> bool:
    """Whether a classifier scores images: one that is named, or the early ones, unless their outputs are given."""
    return bool(config.scores.reference_classifier) or not config.slow.given


def thresholds_of(config: CompareConfig) -> QualityConfig:
    """The thresholds of a run: without a reference classifier, the one that is on by default is off."""
    usual = QualityConfig().min_label_ratio
    if has_reference(config) or config.quality.min_label_ratio != usual:
        return config.quality
    return config.quality.model_copy(update={"min_label_ratio": 0.0})


def selection_path(run: RunFolder, method: Method, number: int) -> Path:
    """Where the selection of a method and seed is."""
    return run.path / "selection" / method / f"seed-{number}.npz"


_kept: RunContext | None = None
_lock = threading.Lock()


def kept_context(folder: RunFolder, config: CompareConfig) -> RunContext:
    """The context by which this process makes parts: the one before, unless what it was read from has changed.

    So a process reads the plan and makes the scorers once, however many parts it makes. What has changed shows in the
    records of the plan and of the early classifiers, and in the weights of a reference classifier that is named.
    """
    global _kept
    now = RunContext(folder, config)
    with _lock:
        if _kept is None or _identity(_kept) != _identity(now):
            _kept = now
        return _kept


def _identity(context: RunContext) -> tuple[Any, ...]:
    return context.folder, context.config, context.early, context.planned, context.scorer_digests


def forget_models() -> None:
    """Free the generator and the scorers of this process, before other processes load theirs."""
    import torch

    from latebloom.flows.stages import scorers

    global _kept
    with _lock:
        _kept = None
    loaders.forget_generator()
    scorers.forget_named()
    torch.cuda.empty_cache()
