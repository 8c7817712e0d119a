"""Which images are slow, in the names of their owner: `slow.csv` in the run folder. No Prefect in here."""

import csv
import dataclasses
import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from latebloom.data.store import digest_json, write_bytes
from latebloom.flows.run.records import SLOW_LIST, SlowListFacts
from latebloom.flows.stages.context import RunContext
from latebloom.flows.stages.label_issues import cleanlab_version, label_issues, overlap
from latebloom.train.evaluate import softmax

__all__ = ["SlowList", "slow_list", "slow_list_path", "write_slow_list"]


@dataclasses.dataclass(frozen=True)
class SlowList:
    """How slowly each of the N training images was learned. Row i is image i.

    Attributes:
        names: of the images, as their owner knows them.
        class_names: by label.
        labels: int64 (N,).
        losses: float64 (N,), of the early classifiers, mean over seeds; NaN where the slow images alone are given.
        probabilities: float64 (N, C), of the early classifiers, mean over seeds; NaN where no logits are given.
        votes: bool (V, N): who calls an image slow. One row a seed, or one row for all with `slow.shared`.
        voters: V names: `seed_0`, `seed_1`, ... or `shared`.
    """

    names: Sequence[str]
    class_names: Sequence[str]
    labels: np.ndarray
    losses: np.ndarray
    probabilities: np.ndarray
    votes: np.ndarray
    voters: Sequence[str]

    @property
    def counts(self) -> np.ndarray:
        """int64 (N,): how many call an image slow."""
        counts: np.ndarray = self.votes.sum(0)
        return counts

    @property
    def slow(self) -> np.ndarray:
        """bool (N,): whether at least half call it slow."""
        slow: np.ndarray = 2 * self.counts >= len(self.voters)
        return slow & (self.counts > 0)

    @property
    def predicted(self) -> np.ndarray:
        """int64 (N,): the class of the highest mean probability; -1: not known."""
        return np.where(np.isnan(self.probabilities[:, 0]), -1, self.probabilities.argmax(1)).astype(np.int64)

    @property
    def order(self) -> np.ndarray:
        """int64 (N,): rows by votes, most first; then by loss, highest first; then as loaded."""
        return np.lexsort((np.arange(len(self.labels)), -self.losses, -self.counts))

    def csv(self) -> str:
        """The list as CSV, a line an image, in `order`. Names are as they are; the csv module quotes them."""
        text = io.StringIO(newline="")
        writer = csv.writer(text, lineterminator="\n")
        columns = ("file", "class", "row", "loss", "probability", "predicted", "cluster", "votes", "slow")
        writer.writerow([*columns, *self.voters])
        own = self.probabilities[np.arange(len(self.labels)), self.labels]
        slow, counts, predicted = self.slow, self.counts, self.predicted
        for row in self.order.tolist():
            writer.writerow(
                [
                    self.names[row],
                    self.class_names[self.labels[row]],
                    row,
                    _known(self.losses[row]),
                    _known(own[row]),
                    self.class_names[predicted[row]] if predicted[row] >= 0 else "",
                    f"{counts[row] / len(self.voters):.4g}",
                    counts[row],
                    "yes" if slow[row] else "no",
                    *self.votes[:, row].astype(int).tolist(),
                ]
            )
        return text.getvalue()


def _known(value: float) -> str:
    return "" if np.isnan(value) else f"{value:.6g}"


def slow_list(run: RunContext) -> SlowList:
    """The list of a run whose examples are selected: of the method `cluster`, which chooses all of the slow cluster."""
    config, train = run.config, run.splits.train
    losses, probabilities = np.zeros(len(train)), np.zeros((len(train), train.num_classes))
    if not run.has_logits:
        probabilities = np.broadcast_to(np.nan, probabilities.shape)
    for number in range(config.seeds):
        logits, own = run.early_arrays(number, "logits", "losses")
        losses += own.astype(np.float64) / config.seeds
        if run.has_logits:
            probabilities += softmax(logits) / config.seeds
    shared = run.one_selection
    votes = np.zeros((1 if shared else config.seeds, len(train)), bool)
    for number, row in enumerate(votes):
        row[run.selected("cluster", number)] = True
    voters = ["shared"] if shared else [f"seed_{number}" for number in range(config.seeds)]
    return SlowList(train.names, train.class_names, train.labels, losses, probabilities, votes, voters)


def write_slow_list(run: RunContext) -> None:
    """Write slow.csv, unless it is there for this selection and these names."""
    train = run.splits.train
    inputs = {
        "selection": run.select.digest,
        "names": digest_json([*train.names]),
        "cleanlab": cleanlab_version(),
    }
    stage = run.folder.stage(SLOW_LIST, 2, inputs)
    if stage.done():
        return
    with stage.making() as outcome:
        found = slow_list(run)
        file = slow_list_path(run.path)
        write_bytes(file, found.csv().encode())
        outcome.outputs.append(file)
        issues = label_issues(found.labels, found.probabilities)
        outcome.facts = SlowListFacts(
            images=len(train),
            slow=int(found.slow.sum()),
            label_issues=None if issues is None else overlap(found.slow, issues),
        )


def slow_list_path(run: Path) -> Path:
    """Where the slow list of a run folder is."""
    return run / "slow.csv"
