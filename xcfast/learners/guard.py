"""The guard around an update: it happens as a whole, or leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import Lock
from typing import Any

from xcfast.errors import NonFiniteError


class UpdateGuard:
    """Runs a learner's updates, one at a time, and undoes those that fail.

    Args:
        snapshot: Function that returns a copy of all that an update changes.
        restore: Function that writes such a copy back.
    """

    def __init__(self, snapshot: Callable[[], Any], restore: Callable[[Any], None]) -> None:
        self._snapshot, self._restore = snapshot, restore
        self._busy = Lock()

    def run(self, update: Callable[[], dict[str, float]], iteration: int) -> dict[str, float]:
        """Calls ``update`` and returns its metrics. After any exception, Ctrl-C too, all is as before the call.

        Raises:
            NonFiniteError: A metric is NaN or infinite; the message names the iteration and the metrics.
            RuntimeError: Another thread is in this call.
        """
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("another thread is in an update of this learner")
        try:
            before = self._snapshot()
            try:
                metrics = update()
                bad = [f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value)]
                if bad:
                    raise NonFiniteError(f"update of iteration {iteration}: {', '.join(bad)}")
            except BaseException:
                self._restore(before)
                raise
            return metrics
        finally:
            self._busy.release()
