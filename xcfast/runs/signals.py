"""Stopping on request: the first SIGINT, SIGTERM or SIGHUP ends the run soon, saved; a second SIGINT at once."""

from __future__ import annotations

import os
import signal
import threading
from contextlib import suppress
from types import FrameType
from typing import Any


class StopRequest:
    """While active, SIGINT, SIGTERM and SIGHUP are noted and do not kill; inert outside the main thread.

    Attributes:
        signal_name: of the first one that came, or None.
        number: its number.
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
            signal.signal(number, handler)

    def take_effect(self) -> None:
        """Once inactive again: give the signal that came the effect that it would have had."""
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
