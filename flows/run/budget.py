"""How long a generation may work: for some seconds, until a time of day, only within hours. No Prefect in here.

Nothing is cut off: no new part is begun that would not fit, and what is begun is finished.
"""

import dataclasses
import re
import time
from collections.abc import Callable
from datetime import datetime, timedelta
from datetime import time as Clock
from zoneinfo import ZoneInfo

from pydantic import BaseModel, ConfigDict, Field, field_validator

from latebloom.flows.run.folder import Partial

__all__ = ["Budget", "Deadline", "Unfinished"]


class Unfinished(Partial):
    """The time was over before all was made; what is made is kept, and the next run goes on."""


class Budget(BaseModel):
    """When a generation that is not done stops at the end of a part; the next run of it goes on."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    max_seconds: int = Field(0, ge=0, description="Begin nothing that would not end within so many seconds; 0: no end")
    until: str = Field(
        "",
        description="07:00: stop at the next 07:00. 22:00-07:00: work only within these hours. A time zone may follow, "
        "such as 22:00-07:00 Europe/Berlin; else it is the machine's. Empty: no end",
    )

    @field_validator("until")
    @classmethod
    def _is_readable(cls, until: str) -> str:
        _Hours.read(until)
        return until.strip()


@dataclasses.dataclass(frozen=True)
class Deadline:
    """The moment by which work should have ended, in seconds since 1970; infinity: none."""

    end: float
    clock: Callable[[], float] = time.time

    @classmethod
    def of(cls, budget: Budget, begin: datetime | None = None, clock: Callable[[], float] = time.time) -> "Deadline":
        """The end that a budget sets to a run that starts now.

        Args:
            begin: when the run was to start, with a time zone: it is the 07:00 after this one that counts, so a run
                that had to wait longer ends at once. None: now.
        """
        now, hours = clock(), _Hours.read(budget.until)
        ends = [now + budget.max_seconds] if budget.max_seconds else []
        if hours:
            ends.append(hours.end(now, now if begin is None else begin.timestamp()))
        return cls(min(ends, default=float("inf")), clock)

    def allows(self, seconds: float) -> bool:
        """Whether work that takes about so many seconds still fits."""
        return self.clock() + seconds < self.end

    def left(self) -> float:
        """Seconds until then; 0: it has passed."""
        return max(0.0, self.end - self.clock())


@dataclasses.dataclass(frozen=True)
class _Hours:
    """From `start`, or from any time where that is None, to `stop`, by the clocks of a zone, or of this machine."""

    start: Clock | None
    stop: Clock
    zone: ZoneInfo | None

    @classmethod
    def read(cls, text: str) -> "_Hours | None":
        """What a person wrote; None for nothing.

        Raises:
            ValueError: it cannot be understood.
        """
        if not text.strip():
            return None
        found = re.fullmatch(r"\s*(?:(\d\d?:\d\d)\s*-\s*)?(\d\d?:\d\d)(?:\s+(\S+))?\s*", text)
        if not found:
            raise ValueError(f"{_EXPECTED}, got {text!r}")
        start, stop, zone = found.groups()
        hours = cls(_clock(start) if start else None, _clock(stop), _zone(zone) if zone else None)
        if hours.start == hours.stop:
            raise ValueError(f"the hours of {text!r} end when they begin; {_EXPECTED}")
        return hours

    def end(self, now: float, begin: float) -> float:
        """When work has to end; not after `now` where it is not to begin."""
        if self.start is None:
            return self._next_stop(begin)
        here = datetime.fromtimestamp(now, self.zone).time()
        if self.start < self.stop:
            within = self.start <= here < self.stop
        else:  # over midnight
            within = self.start <= here or here < self.stop
        return self._next_stop(now) if within else now

    def _next_stop(self, after: float) -> float:
        today = datetime.fromtimestamp(after, self.zone).date()
        moments = [moment for days in (0, 1) for moment in self._moments(datetime.combine(today, self.stop), days)]
        return min(moment for moment in moments if moment > after)

    def _moments(self, first: datetime, days: int) -> tuple[float, float]:
        """When the clocks show a time: twice, where they are put back over it.

        A time that they skip is when they would show it had they not been put forward.
        """
        local = (first + timedelta(days)).replace(tzinfo=self.zone)
        once, again = (local.replace(fold=fold).timestamp() for fold in (0, 1))
        return once, max(once, again)


_EXPECTED = "expected a time such as 07:00, or hours such as 22:00-07:00 or 22:00-07:00 Europe/Berlin"


def _clock(text: str) -> Clock:
    try:
        return Clock.fromisoformat(text.zfill(5))
    except ValueError:
        raise ValueError(f"there is no time {text}; {_EXPECTED}") from None


def _zone(name: str) -> ZoneInfo:
    try:
        return ZoneInfo(name)
    except (KeyError, ValueError, OSError):  # unknown; no name at all; a folder of names
        raise ValueError(f"there is no time zone {name}; {_EXPECTED}") from None
