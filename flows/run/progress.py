"""Progress on the terminal: a bar where there is one, a plain line every few seconds where there is not."""

import functools
import multiprocessing
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar

from latebloom.flows.run.processes import leads

__all__ = ["Meter", "duration", "meter", "say", "shown_by", "warn"]

PLAIN_INTERVAL = 5.0


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
        in_parts: whether it is done in parts of minutes, whose counts come at their end.
    """

    def __init__(self, title: str, total: int, unit: str, done: int = 0, in_parts: bool = False) -> None:
        self.title, self.total, self.unit, self.in_parts = title, total, unit, in_parts
        self.done = self.before = done
        self.counts: dict[str, int] = {}
        self.begin = self.last = time.monotonic()
        self.lock = threading.Lock()

    def add(self, n: int, counts: dict[str, int] | None = None) -> None:
        """Count n more. From any thread."""
        with self.lock:
            self.done += n
            for name, count in (counts or {}).items():
                self.counts[name] = self.counts.get(name, 0) + count
            self.refresh()

    def refresh(self) -> None:
        now = time.monotonic()
        if now - self.last >= PLAIN_INTERVAL and self.done < self.total:  # the last line is that of `close`
            self.last = now
            say(self.line())

    def line(self) -> str:
        """`generate  512/800 images  64%  208 images/s  1 s to go  ok 510, off_label 2`"""
        seconds = time.monotonic() - self.begin
        rate = (self.done - self.before) / seconds if seconds > 0 else 0.0
        parts = [self.title, f"{self.done:,}/{self.total:,} {self.unit}", f"{self.done / max(self.total, 1):.0%}"]
        if rate > 0:
            parts += [f"{rate:,.{0 if rate >= 10 else 2}f} {self.unit}/s"]
            if self.done < self.total:
                parts += [f"{duration((self.total - self.done) / rate)} to go"]
            else:
                parts += [f"in {duration(seconds)}"]
        if self.counts:
            parts += [", ".join(f"{name} {count:,}" for name, count in self.counts.items())]
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
        self.bar.start()

    def refresh(self) -> None:
        self.bar.update(self.task, completed=self.done, description=self.line())

    def close(self) -> None:
        self.bar.stop()
        super().close()


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
    made = (_BarMeter if live else _plain.get())(title, total, unit, done, in_parts)
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
