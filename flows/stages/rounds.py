"""Which examples each round of a training selected, by image: kept while it trains, then written as one file a seed.

A round is written when it is made, in a file of its own: checkpoints do not grow, and an interrupted run that makes a
round once more writes the same file again.
"""

import contextlib
import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from latebloom.data.store import is_remote, local_file, write_arrays
from latebloom.train.augment.mixing import Mixer
from latebloom.train.selection.coreset import Coreset

__all__ = ["Rounds", "keep_rounds", "read_rounds", "write_rounds"]


@dataclasses.dataclass(frozen=True)
class Rounds:
    """The selections of one seed's training, as its file selections-seed-N.npz has them.

    Attributes:
        epochs: int64 (R,), in which each was made, from 0, ascending.
        indices: int32 (L,), rows of the arm's training set, round after round; row i is training image i, behind the
            real images come those that the arm added.
        offsets: int64 (R + 1,): round r selected indices[offsets[r] : offsets[r + 1]].
        gamma: float32 (L,), how many examples each one stands for.
        owner: int32 (n,), for each row of the training set the selected row that stood for it in the last round, -1
            for none; empty for selectors without facility location.
    """

    epochs: np.ndarray
    indices: np.ndarray
    offsets: np.ndarray
    gamma: np.ndarray
    owner: np.ndarray

    @property
    def sets(self) -> list[np.ndarray]:
        """The rows that each round selected."""
        return np.split(self.indices, self.offsets[1:-1]) if len(self.epochs) else []

    def last(self, epoch: int) -> np.ndarray:
        """What was selected last, up to an epoch that is not before the first."""
        place = int(np.searchsorted(self.epochs, epoch, side="right"))
        return self.indices[self.offsets[place - 1] : self.offsets[place]]


def keep_rounds(mixers: Sequence[Mixer], place: Path, digest: str) -> None:
    """Have the mixers of all seeds write each selection below `place` when it is made.

    Args:
        digest: of the stage; what another one left there is not taken for its own.
    """
    for number, mixer in enumerate(mixers):
        if mixer.config.selector not in ("none", "all"):  # which select nothing
            mixer.on_selection = _Keeper(place, number, digest)


def write_rounds(mixers: Sequence[Mixer], place: Path, digest: str) -> list[Path]:
    """Write selections-seed-N.npz of each seed from what `keep_rounds` kept, which is removed; the files."""
    files = []
    for number, mixer in enumerate(mixers):
        if mixer.on_selection is None:
            continue
        rounds = []
        for part in sorted(_folder(place).glob(f"{_name(digest, number)}-*.npz")):
            with local_file(part) as local, np.load(local) as arrays:
                rounds.append(dict(arrays))
        files.append(_file(place, number))
        write_arrays(
            files[-1],
            epochs=np.array([one["epoch"] for one in rounds], np.int64),
            indices=np.concatenate([np.zeros(0, np.int32), *(one["indices"] for one in rounds)]),
            offsets=np.cumsum([0, *(len(one["indices"]) for one in rounds)], dtype=np.int64),
            gamma=np.concatenate([np.zeros(0, np.float32), *(one["gamma"] for one in rounds)]),
            owner=rounds[-1]["owner"] if rounds else np.zeros(0, np.int32),
        )
    for part in _folder(place).glob("*.npz"):
        part.unlink(missing_ok=True)
    if not is_remote(place):
        with contextlib.suppress(OSError):  # there is none, or it has a file of somebody else
            _folder(place).rmdir()
    return files


def read_rounds(place: Path, number: int) -> Rounds | None:
    """The selections of seed `number` of an arm whose folder is `place`; None where nothing is selected."""
    file = _file(place, number)
    if not file.is_file():
        return None
    with local_file(file) as local, np.load(local) as arrays:
        return Rounds(**arrays)


class _Keeper:
    """Writes the selections of one seed."""

    def __init__(self, place: Path, number: int, digest: str) -> None:
        self.place, self.name = place, _name(digest, number)

    def __call__(self, epoch: int, coreset: Coreset) -> None:
        owner = np.zeros(0) if coreset.owner is None else coreset.owner
        write_arrays(
            _folder(self.place) / f"{self.name}-{epoch:06d}.npz",
            epoch=np.array(epoch),
            indices=coreset.indices.astype(np.int32),
            gamma=coreset.weights.astype(np.float32),
            owner=owner.astype(np.int32),
        )


def _file(place: Path, number: int) -> Path:
    """Where the selections of a seed are."""
    return place / f"selections-seed-{number}.npz"


def _folder(place: Path) -> Path:
    """Where rounds are kept until the training is done."""
    return place / "rounds"


def _name(digest: str, number: int) -> str:
    return f"{digest[:16]}-seed-{number}"
