"""Several processes (ranks) that train one policy together: which share is whose, and what passes between them.

Every method does nothing, at no cost, where there is one rank. CPU tensors and numpy arrays travel by gloo, CUDA
tensors by NCCL. Every rank must make the same calls in the same order.
"""

from __future__ import annotations

import os
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, ClassVar, TypeVar

import numpy as np
import torch
import torch.distributed as dist

from xcfast.errors import ConfigError, RankError, RankLostError
from xcfast.ranks.heartbeat import Heartbeat
from xcfast.resources import check_gpus

# A collective may wait for hours, say for an evaluation. Connections and Heartbeat notice that a rank has died.
_TIMEOUT = timedelta(days=7)
_MEETING_TIMEOUT = timedelta(minutes=10)

Array = TypeVar("Array", np.ndarray, torch.Tensor)
T = TypeVar("T")


class Ranks:
    """This process's place among the ranks, and their collective operations.

    Attributes:
        rank: of this process, from 0, over all nodes.
        world_size: number of ranks.
        local_rank: of this process on its node.
        local_world_size: ranks on its node.
        sharing: ranks that run on the same CPUs as this one, itself included.
    """

    _meetings: ClassVar[Counter[str]] = Counter()  # groups made so far at a store; each has a name of its own in it

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0, local_world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.local_rank, self.local_world_size = local_rank, local_world_size
        self.sharing = 1
        self._heartbeat: Heartbeat | None = None
        self._deferred: Exception | None = None

    @classmethod
    def start(cls, cuda: bool) -> Ranks:
        """Join the ranks that torchrun, or whoever set its variables, has started; alone without them.

        Args:
            cuda: whether the weights are on GPUs; this process then takes GPU number ``local_rank``.

        Raises:
            ConfigError: there are fewer GPUs than ranks on this node, or a process group exists already.
        """
        if not launched():
            return cls()
        number = {name: int(os.environ.get(name, default)) for name, default in _VARIABLES.items()}
        ranks = cls(number["RANK"], number["WORLD_SIZE"], number["LOCAL_RANK"], number["LOCAL_WORLD_SIZE"])
        if cuda:
            check_gpus(ranks.local_world_size)
            torch.cuda.set_device(ranks.local_rank)
        if dist.is_initialized():
            raise ConfigError("torch.distributed has a process group already; several ranks need one of their own")
        # A store that torchrun hosts, or else rank 0; a second connection for the heartbeat.
        store, beats = (next(dist.rendezvous("env://", timeout=_MEETING_TIMEOUT))[0] for _ in range(2))
        place = f"{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        name = f"xcfast{cls._meetings[place]}"
        cls._meetings[place] += 1
        ranks._heartbeat = Heartbeat(dist.PrefixStore(f"{name}/heartbeat", beats), ranks.rank, ranks.world_size)
        try:
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=dist.PrefixStore(name, store),
                rank=ranks.rank,
                world_size=ranks.world_size,
                timeout=_TIMEOUT,
            )
        except BaseException:
            ranks._heartbeat.stop()
            raise
        mine = (socket.gethostname(), sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None)
        places: list[Any] = [None] * ranks.world_size
        dist.all_gather_object(places, mine)
        ranks.sharing = places.count(mine)
        return ranks

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which evaluates, logs and saves."""
        return self.rank == 0

    def rows(self, total: int) -> range:
        """This rank's contiguous share of ``total`` things, such as the envs; shares differ by at most one."""
        return range(total * self.rank // self.world_size, total * (self.rank + 1) // self.world_size)

    def sum_(self, x: Array) -> Array:
        """Replace an array, C-contiguous, by its sum over the ranks, the same bits on each; returns it.

        Raises:
            RankLostError: as all operations do.
        """
        if self.world_size > 1:
            with _others():
                dist.all_reduce(_tensor(x))
        return x

    def broadcast_(self, x: Array) -> Array:
        """Replace an array, C-contiguous, by rank 0's; returns it."""
        if self.world_size > 1:
            with _others():
                dist.broadcast(_tensor(x), 0)
        return x

    def join(self, part: Array, rows: range, total: int) -> Array:
        """All ranks' parts of an array [total, ...], of which this rank has ``rows``; exact, the same on each."""
        if self.world_size == 1:
            return part
        shape = (total, *part.shape[1:])
        whole = np.zeros(shape, part.dtype) if isinstance(part, np.ndarray) else part.new_zeros(shape)
        whole[rows.start : rows.stop] = part
        return self.sum_(whole)

    def gather(self, item: Any) -> list[Any] | None:
        """Every rank's item in their order on rank 0, None elsewhere; anything that can be pickled."""
        if self.world_size == 1:
            return [item]
        items: list[Any] | None = [None] * self.world_size if self.is_main else None
        with _others():
            dist.gather_object(item, items)
        return items

    def broadcast(self, item: Any) -> Any:
        """Rank 0's item; anything that can be pickled."""
        if self.world_size == 1:
            return item
        items = [item]
        with _others():
            dist.broadcast_object_list(items, 0)
        return items[0]

    def any_(self, flag: bool) -> bool:
        """Whether the flag is set on any rank."""
        return flag if self.world_size == 1 else bool(self.sum_(np.array([flag], np.int64))[0])

    def barrier(self) -> None:
        """Wait until every rank is here."""
        self.any_(False)

    def agree(self, place: str) -> None:
        """Check that all ranks are at the same place of a script, whose calls ours have to be.

        Raises:
            RankError: they are not; each hears who is where.
        """
        if self.world_size == 1:
            return
        places: list[str] = [""] * self.world_size
        with _others():
            dist.all_gather_object(places, place)
        if len(set(places)) > 1:
            listed = ", ".join(f"rank {rank} calls {one}" for rank, one in enumerate(places))
            raise RankError(f"all processes must make the same calls: {listed}")

    @contextmanager
    def together(self) -> Iterator[None]:
        """A block without collective operations that may fail on some ranks; then all of them raise.

        Raises:
            RankError: where there are several ranks; its cause is this rank's own exception, if it had one.
        """
        if self.world_size == 1:
            yield
            return
        error, self._deferred = self._deferred, None
        try:
            if error is None:
                yield
        except Exception as caught:
            error = caught
        if not self.any_(error is not None):
            return
        mine = None if error is None else f"rank {self.rank}: {type(error).__name__}: {error}"
        reports: list[str | None] = [None] * self.world_size
        with _others():
            dist.all_gather_object(reports, mine)
        raise RankError("\n".join(report for report in reports if report is not None)) from error

    def from_main(self, compute: Callable[[], T]) -> T:
        """Rank 0 computes; all ranks return its value, or fail with it."""
        value: Any = None
        with self.together():
            if self.is_main:
                value = compute()
        return self.broadcast(value)

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """A block without collective operations that may fail on some ranks; the next ``together`` raises it on all.

        So it costs no collective operation of its own. Where there is one rank, it raises at once.
        """
        try:
            yield
        except Exception as error:
            if self.world_size == 1:
                raise
            self._deferred = self._deferred or error

    def close(self, failure: str | None = None) -> None:
        """Leave the other ranks: together with them or, after a failure that they do not know of, by telling them."""
        if self._heartbeat is None:
            return
        heartbeat, self._heartbeat = self._heartbeat, None
        try:
            if failure is not None:
                heartbeat.report(f"rank {self.rank} failed: {failure}")
                dist.destroy_process_group()  # should it get stuck, the heartbeat ends this process too
            else:
                self.barrier()
        finally:
            heartbeat.stop()
        if failure is None:
            dist.destroy_process_group()


ALONE = Ranks()

_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def launched() -> bool:
    """Whether this process was started as one of several ranks, by torchrun or by something that sets its variables.

    ``WORLD_SIZE`` alone does not say so: some clusters set it for other purposes.
    """
    return int(os.environ.get("WORLD_SIZE", "1")) > 1 and {"RANK", "MASTER_ADDR", "MASTER_PORT"} <= os.environ.keys()


def merged_moments(sums: np.ndarray) -> np.ndarray:
    """Number, mean and sum of squared deviations of parts put together, by Chan's formula in the order of the parts.

    Args:
        sums: float64 [parts, ..., 3]; parts may be empty, all zeros.

    Returns:
        float64 [..., 3].
    """
    merged = np.zeros(sums.shape[1:])
    for part in sums:
        count, delta = merged[..., 0] + part[..., 0], part[..., 1] - merged[..., 1]
        weight = np.divide(part[..., 0], count, out=np.zeros_like(count), where=count > 0)
        merged[..., 2] += part[..., 2] + delta**2 * merged[..., 0] * weight
        merged[..., 1] += delta * weight
        merged[..., 0] = count
    return merged


@contextmanager
def _others() -> Iterator[None]:
    try:
        yield
    except RuntimeError as error:
        raise RankLostError(f"another rank cannot be reached; has it ended? {str(error).splitlines()[0]}") from None


def _tensor(x: np.ndarray | torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x
