"""Ctrl-C and SIGTERM end a command: in good order where that is possible, and after five seconds in any case."""

import multiprocessing
import os
import signal
import socket
import sys
import threading
from types import TracebackType
from typing import Any

__all__ = ["Interruption"]

SECONDS = 5.0
_SIGNALS = (signal.SIGINT, signal.SIGTERM)


class Interruption:
    """For a with block around a command: the first signal raises KeyboardInterrupt in it, and it ends by SystemExit.

    What is written is whole at any moment, so nothing is lost where the process has to be ended: five seconds after
    the signal, or at once at a Ctrl-C after it. Prefect makes that needful: Ctrl-C in a terminal ends its server
    too, which it then calls again and again. Outside of the main thread nothing is caught.
    """

    def __init__(self) -> None:
        self._signal = 0
        self._raised = self._announced = self._installed = False

    def __enter__(self) -> "Interruption":
        if threading.current_thread() is not threading.main_thread():
            return self
        # A thread that Python's own handler of signals writes to: it hears of them also while Prefect has put another
        # handler in the place of ours, and while the main thread is inside of a library.
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        # What is ignored (nohup, a job in the background) stays so.
        caught = [number for number in _SIGNALS if signal.getsignal(number) is not signal.SIG_IGN]
        self._handlers = {number: signal.signal(number, self._interrupt) for number in caught}
        self._wakeup = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        self._installed = True
        threading.Thread(target=self._listen, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, _traceback: TracebackType | None
    ) -> None:
        # Typer makes 130 of Ctrl-C.
        if self._signal or isinstance(error, KeyboardInterrupt) or (kind is SystemExit and _code(error) == 130):
            self._announce()
            # The thread keeps listening: the end of the process may hang as well.
            raise SystemExit(128 + (self._signal or signal.SIGINT)) from None
        if self._installed:
            signal.set_wakeup_fd(self._wakeup)
            for number, handler in self._handlers.items():
                signal.signal(number, handler)
            self._writer.close()

    def _interrupt(self, number: int, _frame: Any) -> None:
        self._signal = self._signal or number
        if not self._raised:
            self._raised = True
            raise KeyboardInterrupt

    def _listen(self) -> None:
        timer = None
        while received := self._reader.recv(1):
            if received[0] in _SIGNALS and timer is None:
                self._signal = self._signal or received[0]
                timer = threading.Timer(SECONDS, self._end_now)
                timer.daemon = True
                timer.start()
            elif received[0] == signal.SIGINT:  # not SIGTERM: Prefect sends one to its own process after the first
                self._end_now()
        self._reader.close()

    def _end_now(self) -> None:
        try:
            for process in multiprocessing.active_children():
                process.kill()
            prefect: Any = sys.modules.get("prefect.server.api.server")
            for server in list(prefect.SubprocessASGIServer._instances.values()) if prefect else []:
                if server.server_process:
                    server.server_process.kill()
            self._announce()
        finally:
            os._exit(128 + self._signal)

    def _announce(self) -> None:
        if not self._announced:
            self._announced = True
            shown = "\033[?25h" if sys.stderr.isatty() else ""  # a bar hides the cursor
            print(f"{shown}interrupted; the same command goes on where this one stopped", file=sys.stderr, flush=True)


def _code(error: BaseException | None) -> Any:
    return getattr(error, "code", None)
