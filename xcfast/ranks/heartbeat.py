"""Notices that another rank of a job has died, where the network does not say so, and ends this process."""

from __future__ import annotations

import os
import sys
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Protocol

INTERVAL = 5.0  #: seconds between two beats
LOST = 9  #: beats without a sign of life after which a rank counts as dead
GRACE = 2  #: beats that this process is left to end by itself after another rank reported a failure
START = 120  #: beats that another rank may take to begin


class Store(Protocol):
    """What is needed of ``torch.distributed.Store``; each call may fail or block where the store's host is gone."""

    def set(self, key: str, value: str) -> None: ...  # noqa: D102
    def get(self, key: str) -> bytes: ...  # noqa: D102
    def check(self, keys: list[str]) -> bool: ...  # noqa: D102


class Heartbeat:
    """Each rank writes a counter into the store and watches that of the next rank, and whether any reported a failure.

    Beats are counted, not timed, so that a job which is suspended as a whole goes on when it is continued. One thread
    talks to the store; another counts, since the first may be stuck in a connection that nobody answers any more.

    Args:
        store: a connection of its own: calls from several threads would wait for each other.
        rank: of this process.
        world_size: number of ranks, at least 2.
        interval: seconds between two beats.
        end: called with the reason from a thread; default: print it and end the process at once, with status 1.
    """

    def __init__(
        self,
        store: Store,
        rank: int,
        world_size: int,
        interval: float = INTERVAL,
        end: Callable[[str], None] | None = None,
    ) -> None:
        self._store, self._rank, self._next = store, rank, (rank + 1) % world_size
        self._interval, self._end = interval, end or _end
        self._stop = threading.Event()
        self._silent = LOST - START  # beats since the last sign of life; the first one may take longer
        self._reason = ""
        self._threads = [threading.Thread(target=work, daemon=True) for work in (self._exchange, self._count)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """No more beats: this rank is done."""
        self._stop.set()
        for thread in self._threads:  # one that is in a call of the store must not meet the interpreter's end there
            thread.join(timeout=self._interval)

    def report(self, reason: str) -> None:
        """Tell the other ranks that this one has failed, and that they are to end."""
        with suppress(Exception):  # without a store they find out by the silence
            self._store.set("failed", reason)

    def _exchange(self) -> None:
        beat, seen = 0, b""
        while not self._stop.wait(self._interval):
            with suppress(Exception):  # the store is gone: silence
                beat += 1
                self._store.set(f"beat/{self._rank}", str(beat))
                if not self._reason and self._store.check(["failed"]):
                    self._silent, self._reason = LOST - GRACE, self._store.get("failed").decode()
                if self._reason or not self._store.check([f"beat/{self._next}"]):
                    continue
                now = self._store.get(f"beat/{self._next}")
                if now != seen:
                    seen, self._silent = now, 0

    def _count(self) -> None:
        while not self._stop.wait(self._interval):
            self._silent += 1
            if self._silent > LOST:
                lost = f"no sign of life from rank {self._next}, or from the host of the store, for {LOST} beats"
                self._end(f"rank {self._rank}: {self._reason or lost}; ending")
                return


def _end(reason: str) -> None:
    print(f"xcfast: failed: {reason}", file=sys.stderr, flush=True)
    os._exit(1)
