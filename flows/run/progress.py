"""Progress on the terminal: a bar where there is one, a plain line every few seconds where there is not."""

import collections
import functools
import math
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from latebloom.flows.run.processes import leads, send_note, sends_notes

__all__ = ["Meter", "duration", "meter", "say", "shown_by", "warn"]

PLAIN_INTERVAL = 5.0
BAR_INTERVAL = 0.1
SENT_INTERVAL = 1.0
WINDOW = 120.0  # seconds that the rate is of, for the time to go


def say(text: str) -> None:
    """A line for the person who runs this, on standard error: standard output is for results."""
    if leads():
        with suppress(BrokenPipeError):  # nobody reads it any more: the process that serves deployments was killed
            print(text, file=sys.stderr, flush=True)


@functools.cache
def warn(text: str) -> None:
    """The same for what a person should know, once a process: a command checks its inputs, and its flow does again."""
    say(f"warning: {text}")


class Meter:
    """Counts what is done of one piece of work and says so: rate, time to go, and counts by name (states, say).

    Args:
        in_parts: whether it is done in parts of minutes, whose counts come at their end; until then the line says no
            number of things done.
    """

    def __init__(self, title: str, total: int, unit: str, done: int = 0, in_parts: bool = False) -> None:
        self.title, self.total, self.unit, self.in_parts = title, total, unit, in_parts
        self.done: float = done
        self.before = done
        self.counts: dict[str, int] = {}
        self.notes: dict[str, str] = {}
        self.begin = self.last = time.monotonic()
        self.samples: collections.deque[tuple[float, float]] = collections.deque()  # when, and done by then
        self.lock = threading.Lock()

    def add(self, n: float, counts: dict[str, int] | None = None) -> None:
        """Count n more, or a part of one. From any thread."""
        with self.lock:
            self.done += n
            for name, count in (counts or {}).items():
                self.counts[name] = self.counts.get(name, 0) + count
            if n:
                self._sample()
            self.refresh()

    def reach(self, done: float) -> None:
        """Count up to so many. From one thread."""
        self.add(done - self.done)

    def note(self, name: str, words: str) -> None:
        """Say how far something is that counts once it is done, such as an arm in another process; empty: it ended."""
        with self.lock:
            self.notes.pop(name, None)
            if words:
                self.notes[name] = words
            self.refresh()

    def _sample(self) -> None:
        now = time.monotonic()
        if self.samples and now - self.samples[-1][0] < WINDOW / 100 and len(self.samples) > 1:
            self.samples[-1] = (now, self.done)
        else:
            self.samples.append((now, self.done))
        while len(self.samples) > 2 and now - self.samples[1][0] > WINDOW:
            self.samples.popleft()

    def _rate(self) -> float:
        """Of the last minutes since the first count: what comes before it, loading and compiling, comes once."""
        now = time.monotonic()
        if self.done < self.total and len(self.samples) > 1:
            then, before = self.samples[0]
            return (self.done - before) / (now - then) if now > then else 0.0
        if self.done - self.before < 1:  # the first step of the first one: mostly start-up
            return 0.0
        return (self.done - self.before) / (now - self.begin) if now > self.begin else 0.0

    def refresh(self) -> None:
        now = time.monotonic()
        if now - self.last >= PLAIN_INTERVAL and self.done < self.total:  # the last line is that of `close`
            self.last = now
            say(self.line())

    def line(self) -> str:
        """`generate  512/800 images  64%  208 images/s  1 s to go  ok 510, off_label 2`"""
        seconds, rate = time.monotonic() - self.begin, self._rate()
        # What a process that died had made of a part is made, and counted, once more.
        done, share = min(self.total, math.floor(self.done + 1e-6)), min(1.0, self.done / max(self.total, 1))
        parts = [self.title, f"{done:,}/{self.total:,} {self.unit}", f"{share:.0%}"]
        if self.in_parts and done < self.total:  # a share of work: what is made of a batch is no image yet
            parts = [self.title, f"{share:.0%} of {self.total:,} {self.unit}"]
        if rate > 0:
            parts += [f"{rate:,.{0 if rate >= 10 else 2}f} {self.unit}/s"]
            if done < self.total:
                parts += [f"{duration((self.total - self.done) / rate)} to go"]
            else:
                parts += [f"in {duration(seconds)}"]
        if self.counts:
            parts += [", ".join(f"{name} {count:,}" for name, count in self.counts.items())]
        if self.notes:
            parts += ["; ".join(f"{name} {words}" for name, words in self.notes.items())]
        return "  ".join(parts)

    def close(self) -> None:
        say(self.line())


class _BarMeter(Meter):
    """The same on a terminal, as a live bar."""

    def __init__(self, title: str, total: int, unit: str, done: int = 0, in_parts: bool = False) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TextColumn

        super().__init__(title, total, unit, done, in_parts)
        self.bar = Progress(
            BarColumn(bar_width=20), TextColumn("{task.description}"), console=Console(stderr=True), transient=True
        )
        self.task = self.bar.add_task(self.line(), total=total, completed=done)
        self.drawn = 0.0
        self.bar.start()

    def refresh(self) -> None:
        now = time.monotonic()
        if now - self.drawn < BAR_INTERVAL and self.done < self.total:
            return  # a step may take a millisecond, and to draw the bar another
        self.drawn = now
        self.bar.update(self.task, completed=self.done, description=self.line())

    def close(self) -> None:
        self.bar.stop()
        super().close()


class _SentMeter(Meter):
    """In a process that trains beside others: says how far it is to the one that started it, which shows all."""

    def refresh(self) -> None:
        now = time.monotonic()
        if now - self.last >= SENT_INTERVAL:
            self.last = now
            send_note(self.title, f"{self.done:,.0f}/{self.total:,} {self.unit}")

    def close(self) -> None:
        send_note(self.title, "")


_plain: ContextVar[type[Meter]] = ContextVar("plain", default=Meter)


@contextmanager
def shown_by(kind: type[Meter]) -> Iterator[None]:
    """Within the block meters are of this kind where there is no terminal to draw a bar on."""
    before = _plain.set(kind)
    try:
        yield
    finally:
        _plain.reset(before)


@contextmanager
def meter(title: str, total: int, unit: str, done: int = 0, *, in_parts: bool = False) -> Iterator[Meter]:
    """A meter for the block; its last line stays on the screen."""
    # A live bar for one process only: others beside it would write over it.
    live = sys.stderr.isatty() and multiprocessing.parent_process() is None
    kind = _SentMeter if sends_notes() else _BarMeter if live else _plain.get()
    made = kind(title, total, unit, done, in_parts)
    try:
        yield made
    finally:
        made.close()


def duration(seconds: float) -> str:
    """`4.2 s`, `37 s`, `12 min`, `3.5 h`."""
    if seconds < 90:
        return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"
