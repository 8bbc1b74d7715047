"""The ranks of a script that torchrun has started: its processes train together, like those of the command line."""

from __future__ import annotations

import atexit
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

from xcfast.ranks.group import ALONE, Ranks
from xcfast.resources import launched
from xcfast.xuance.arguments import set_device

_joined: Ranks | None = None
_sharing = True


def script_ranks(device: Any = None) -> Ranks:
    """Returns this process's place among the script's processes, which it joins at the first call.

    Args:
        device: The device that the script's arguments name. With CUDA, each process takes a GPU of its own. Only the
            first call reads it.

    Returns:
        The place of this process. It is ``ALONE`` unless torchrun has started the script.
    """
    global _joined
    if _joined is None:
        if not launched():
            return ALONE
        _joined = Ranks.start(cuda=set_device(device).type == "cuda")
        atexit.register(_leave, _joined)
    return _joined


def share(total: int, device: Any = None) -> tuple[range, int]:
    """Returns which environments this process makes, and how many processes share its CPUs.

    Args:
        total: The number of environments of all processes together.
        device: The device that the script's arguments name.

    Returns:
        The indices of this process's environments, and the number of processes on its CPUs, itself included.
    """
    ranks = script_ranks(device)
    return (ranks.rows(total), ranks.sharing) if _sharing else (range(total), 1)


@contextmanager
def undivided() -> Iterator[None]:
    """While the block runs, ``share`` gives all environments to this process, as a test needs."""
    global _sharing
    before, _sharing = _sharing, False
    try:
        yield
    finally:
        _sharing = before


def _leave(ranks: Ranks) -> None:
    error = getattr(sys, "last_value", None)  # the exception that has ended the script, if there is one
    with suppress(RuntimeError):  # the other processes may have ended already
        ranks.close(None if error is None else f"{type(error).__name__}: {error}")
