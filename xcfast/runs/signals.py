"""Stopping on request: the first SIGINT, SIGTERM or SIGHUP lets a run save and end; a second SIGINT ends it at once."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any


class StopRequest:
    """Notes SIGINT, SIGTERM and SIGHUP while it is active, instead of letting them end the process.

    It does nothing outside the main thread.

    Attributes:
        signal_name: Name of the first signal that came, or None.
        number: Number of that signal.
    """

    def __init__(self) -> None:
        self.signal_name: str | None = None
        self.number: int | None = None
        self._previous: dict[int, Any] = {}

    @property
    def requested(self) -> bool:
        """Whether a signal has come."""
        return self.signal_name is not None

    def __enter__(self) -> StopRequest:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if signal.getsignal(number) is signal.SIG_IGN:  # nohup, or a shell's background job
                    continue
                self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            # None: C code, as of a program that embeds Python, installed the handler, which Python cannot restore.
            signal.signal(number, signal.SIG_DFL if handler is None else handler)

    def take_effect(self) -> None:
        """Gives the signal that came its usual effect. Call it after the context has ended."""
        if self.number is not None:
            signal.raise_signal(self.number)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.signal_name, self.number = signal.Signals(number).name, number
        message = f"\n{self.signal_name}: stopping after this iteration"
        if signal.SIGINT in self._previous:  # else it is ignored, and stays so
            signal.signal(signal.SIGINT, signal.default_int_handler)
            message += "; Ctrl-C once more stops at once"
        with suppress(OSError):  # not print: the signal may have come in the middle of one
            os.write(2, f"{message}\n".encode())
