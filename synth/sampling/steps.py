"""The steps of a call of a generator, for whoever shows progress. No generator has to pass a callback on."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

__all__ = ["counted_steps", "step_done"]

_listener: ContextVar[Callable[[int], None] | None] = ContextVar("listener", default=None)


@contextmanager
def counted_steps(on_step: Callable[[int], None]) -> Iterator[None]:
    """Within the block `on_step` gets, after each denoiser step, how many images made it."""
    before = _listener.set(on_step)
    try:
        yield
    finally:
        _listener.reset(before)


def step_done(images: int) -> None:
    """Say that so many images have made one step."""
    listener = _listener.get()
    if listener is not None:
        listener(images)
