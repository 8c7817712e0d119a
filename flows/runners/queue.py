"""The queue of parts: which part is begun next, and whether there is time for it. No Prefect in here."""

from collections.abc import Callable, Generator, Sequence
from math import isinf

from latebloom.data.synthetic.folder import PartRecord
from latebloom.flows.run.budget import Deadline

__all__ = ["Made", "PartQueue"]

# A part's number, and what gives its record or raises what went wrong.
Made = Generator[tuple[int, Callable[[], PartRecord]], None, None]


class PartQueue:
    """The parts that nobody has begun yet. It gives out none that would not end before the deadline.

    Attributes:
        left: their numbers, ascending.
    """

    def __init__(self, parts: Sequence[int], deadline: Deadline | None = None) -> None:
        self.left = sorted(parts)
        self._deadline, self._longest = deadline, 0.0

    @property
    def is_over(self) -> bool:
        """Whether there is no time for another, where each takes as long as the longest so far."""
        return self._deadline is not None and not self._deadline.allows(self._longest)

    @property
    def seconds_left(self) -> float | None:
        """Until the deadline; None: there is none."""
        return None if self._deadline is None or isinf(self._deadline.end) else self._deadline.left()

    def take(self, block: int = 1) -> list[int]:
        """The next part, with those of its block that are left too; empty: nothing is to be begun any more.

        Args:
            block: parts a block, 1 or more. Blocks begin at its multiples, so they are the same ones after a restart.
        """
        if not self.left or self.is_over:
            return []
        first = self.left[0] // block
        taken = [number for number in self.left if number // block == first]
        self.left = self.left[len(taken) :]
        return taken

    def give_back(self, numbers: Sequence[int]) -> None:
        """Put back parts that were taken and not begun."""
        self.left = sorted([*self.left, *numbers])

    def took(self, seconds: float) -> None:
        """Note the seconds of work that parts taken together took, without the wait for a slot or a worker."""
        self._longest = max(self._longest, seconds)
