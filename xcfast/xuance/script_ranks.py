"""Scripts that torchrun has started several times: their processes train together, as those of the command line do."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from xcfast.ranks.group import ALONE, Ranks, launched
from xcfast.xuance.arguments import set_device

_joined: Ranks | None = None
_sharing = True


def script_ranks(device: Any = None) -> Ranks:
    """This process's place among those of the script; alone where nothing has started several. Joins them once.

    Args:
        device: the arguments' device, at the first call: with CUDA each process takes a GPU.
    """
    global _joined
    if _joined is None:
        if not launched():
            return ALONE
        _joined = Ranks.start(cuda=set_device(device).type == "cuda")
        atexit.register(_leave, _joined)
    return _joined


def share(total: int, device: Any = None) -> tuple[range, int]:
    """Returns which of ``total`` environments this process makes, and how many processes share its CPUs."""
    ranks = script_ranks(device)
    return (ranks.rows(total), ranks.sharing) if _sharing else (range(total), 1)


@contextmanager
def undivided() -> Iterator[None]:
    """Makes environments whole for this process alone, such as those of a test, while active."""
    global _sharing
    before, _sharing = _sharing, False
    try:
        yield
    finally:
        _sharing = before


def _leave(ranks: Ranks) -> None:
    error = getattr(sys, "last_value", None)  # what has ended the script, if anything has
    with suppress(RuntimeError):  # others may have ended before
        ranks.close(None if error is None else f"{type(error).__name__}: {error}")
