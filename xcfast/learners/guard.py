"""The guard around an update: it happens as a whole, or leaves no trace."""

from __future__ import annotations

import math
from collections.abc import Callable
from threading import Lock
from typing import TypeVar

from xcfast.errors import NonFiniteError
from xcfast.normalize import RewardNormalizer

State = TypeVar("State")


class UpdateGuard:
    """Runs a learner's updates, one at a time, and undoes those that fail.

    Args:
        reward_normalizer: Normalizer that the updates feed; the guard restores its statistics.
    """

    def __init__(self, reward_normalizer: RewardNormalizer) -> None:
        self._reward_normalizer = reward_normalizer
        self._busy = Lock()

    def run(
        self,
        update: Callable[[], dict[str, float]],
        iteration: int,
        snapshot: Callable[[], State],
        restore: Callable[[State], None],
    ) -> dict[str, float]:
        """Calls ``update`` and returns its metrics. After an exception, even Ctrl-C, everything is as before the call.

        Args:
            update: Function that does the update and returns its metrics.
            iteration: Number of the iteration, for the message.
            snapshot: Function that returns a copy of what an update changes in the learner.
            restore: Function that writes such a copy back.

        Raises:
            NonFiniteError: A metric is NaN or infinite; the message names the iteration and the metrics.
            RuntimeError: Another thread is in this call.
        """
        if not self._busy.acquire(blocking=False):
            raise RuntimeError("another thread is in an update of this learner")
        try:
            before, statistics = snapshot(), self._reward_normalizer.state_dict()
            try:
                metrics = update()
                bad = [f"{name} = {value}" for name, value in metrics.items() if not math.isfinite(value)]
                if bad:
                    raise NonFiniteError(f"update of iteration {iteration}: {', '.join(bad)}")
            except BaseException:
                restore(before)
                self._reward_normalizer.load_state_dict(statistics)
                raise
            return metrics
        finally:
            self._busy.release()
