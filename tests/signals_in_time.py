"""Signals that come after a while, to see whether a call lets Python handle them."""

import contextlib
import signal


class Interrupted(Exception):
    """What the handler of the signal raises."""


@contextlib.contextmanager
def interrupted_after(seconds):
    """Runs a signal handler that raises Interrupted, in the main thread and `seconds` from now."""

    def interrupt(number, frame):
        raise Interrupted

    previous = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, previous)
