"""The process group of the ranks that train one policy: each rank's share of the work, and what the ranks exchange.

A single rank exchanges nothing, so every method then costs next to nothing. CPU tensors and numpy arrays travel by
gloo, CUDA tensors by NCCL. Every rank must make the same calls in the same order.

A rank that dies closes its connections. The ranks that wait for it over gloo then fail at once, and so do those that
wait for them. Time-outs help where no connection closes: if a rank hangs, a machine loses power, or NCCL waits.
"""

from __future__ import annotations

import os
import pickle
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import Any, TypeVar
from uuid import uuid4

import numpy as np
import torch
import torch.distributed as dist

from xcfast.errors import ConfigError, RankError, RankLostError
from xcfast.resources import check_gpus, launched

# Every rank does the same work between two collective operations, so ranks come to them at most minutes apart: one may
# have slower environments, or compile its update. If a rank is half an hour late, it hangs or its machine is gone.
TIMEOUT = timedelta(minutes=30)
# An evaluation, a checkpoint on a slow disk, or a user's script may take any time. Only a lost connection ends the wait
# for it. torch needs a limit nevertheless.
PATIENCE = timedelta(days=7)
_MEETING_TIMEOUT = timedelta(minutes=10)
_POLL_SECONDS = 0.01  # between two looks at who has come
_FAILURE_KEY = "failure"
# A rank reports its failure in the store before it closes its connections. So the report is there when they break.
_FAILURE_WAIT = timedelta(seconds=1)

Array = TypeVar("Array", np.ndarray, torch.Tensor)
T = TypeVar("T")


class Ranks:
    """The place of this process among the ranks, and the collective operations of the ranks.

    Attributes:
        rank: The number of this process over all nodes, from 0.
        world_size: The number of ranks.
        local_rank: The number of this process on its node, from 0.
        local_world_size: The number of ranks on this node.
        sharing: The number of ranks that run on the same CPUs as this one, itself included.
    """

    def __init__(self, rank: int = 0, world_size: int = 1, local_rank: int = 0, local_world_size: int = 1) -> None:
        self.rank, self.world_size = rank, world_size
        self.local_rank, self.local_world_size = local_rank, local_world_size
        self.sharing = 1
        self._store: dist.Store | None = None
        self._patient: dist.ProcessGroup | None = None
        self._cuda = False
        self._others_lost = False
        self._deferred: Exception | None = None

    @classmethod
    def start(cls, cuda: bool) -> Ranks:
        """Joins the ranks that torchrun has started, or a program that sets the same environment variables.

        Args:
            cuda: Whether the weights are on GPUs. This process then takes the GPU of number ``local_rank``.

        Returns:
            The place of this process. Without those environment variables it is the only rank.

        Raises:
            ConfigError: There are fewer GPUs than ranks on this node, or a process group exists already.
            RankLostError: Another rank ended while the ranks were joining.
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
        ranks._join(cuda)
        return ranks

    def _join(self, cuda: bool) -> None:
        self._cuda = cuda
        store = next(dist.rendezvous("env://", timeout=_MEETING_TIMEOUT))[0]  # torchrun hosts it, or else rank 0
        with self._reaching_others():
            self._store = dist.PrefixStore(self._agreed_name(store), store)
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if cuda else "gloo",
                store=self._store,
                rank=self.rank,
                world_size=self.world_size,
                timeout=TIMEOUT,
            )
            self._patient = dist.new_group(backend="gloo", timeout=PATIENCE)
            mine = (socket.gethostname(), sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else None)
            places: list[Any] = [None] * self.world_size
            dist.all_gather_object(places, mine)
        self.sharing = places.count(mine)

    def _agreed_name(self, store: dist.Store) -> str:
        """Returns the name of this group's entries in the store. Rank 0 chooses it and tells the others.

        The store may hold entries of earlier groups: a process may join several, and torchrun restarts processes at the
        same store. A count of groups would not do, since the processes may have joined different numbers of them. So
        each rank asks by a random ticket. The ticket that rank 0 finds may be that of a process that has ended, so rank
        0 goes on answering until all ranks have confirmed the name.
        """
        if not self.is_main:
            ticket = f"xcfast_rank_{self.rank}_waits_for_rank_0_{uuid4().hex}"
            store.set(f"xcfast_ticket_{self.rank}", ticket)
            name = store.get(ticket).decode()
            store.set(f"{name}_{self.rank}", "")
            return name
        name, missing = uuid4().hex, set(range(1, self.world_size))
        end = time.monotonic() + _MEETING_TIMEOUT.total_seconds()
        while missing:
            for rank in missing:
                if store.check([f"xcfast_ticket_{rank}"]):
                    store.set(store.get(f"xcfast_ticket_{rank}").decode(), name)
            time.sleep(_POLL_SECONDS)
            missing = {rank for rank in missing if not store.check([f"{name}_{rank}"])}
            if missing and time.monotonic() > end:
                raise RuntimeError(f"ranks {sorted(missing)} have not come within {_MEETING_TIMEOUT}")
        return name

    @property
    def is_main(self) -> bool:
        """Whether this is rank 0, which evaluates, logs and saves."""
        return self.rank == 0

    def rows(self, total: int) -> range:
        """Returns this rank's contiguous share of ``total`` items, such as environments.

        The shares of two ranks differ by at most one item.
        """
        return range(total * self.rank // self.world_size, total * (self.rank + 1) // self.world_size)

    def sum_(self, x: Array) -> Array:
        """Replaces a C-contiguous array by its sum over the ranks, which has the same bits on each, and returns it.

        Raises:
            RankLostError: Another rank has ended, or has not answered within ``TIMEOUT``. Every collective operation
                raises this. If that rank reported why it ended, then the message quotes the report.
        """
        if self.world_size > 1:
            with self._reaching_others():
                dist.all_reduce(_tensor(x))
        return x

    def broadcast_(self, x: Array) -> Array:
        """Replaces a C-contiguous array by rank 0's array, and returns it."""
        if self.world_size > 1:
            with self._reaching_others():
                dist.broadcast(_tensor(x), 0)
        return x

    def join(self, part: Array, rows: range, total: int) -> Array:
        """Joins the parts of an array. Every rank gets the same bits.

        Args:
            part: Array [len(rows), ...], this rank's part.
            rows: The indices of this rank's part in the whole array.
            total: The length of the whole array.

        Returns:
            The array [total, ...] of all ranks.
        """
        if self.world_size == 1:
            return part
        shape = (total, *part.shape[1:])
        whole = np.zeros(shape, part.dtype) if isinstance(part, np.ndarray) else part.new_zeros(shape)
        whole[rows.start : rows.stop] = part
        return self.sum_(whole)

    def gather(self, item: Any) -> list[Any] | None:
        """Returns the items of all ranks in rank order on rank 0, and None elsewhere. The items must be picklable."""
        if self.world_size == 1:
            return [item]
        items: list[Any] | None = [None] * self.world_size if self.is_main else None
        with self._reaching_others():
            dist.gather_object(item, items)
        return items

    def broadcast(self, item: Any) -> Any:
        """Returns rank 0's item on every rank. It must be picklable."""
        if self.world_size == 1:
            return item
        items = [item]
        with self._reaching_others():
            dist.broadcast_object_list(items, 0)
        return items[0]

    def any_(self, flag: bool) -> bool:
        """Returns whether the flag is set on any rank."""
        return flag if self.world_size == 1 else bool(self.sum_(np.array([flag], np.int64))[0])

    def agree(self, place: str) -> None:
        """Checks that all ranks are at the same place of a script. Waits as long as it takes.

        Args:
            place: A description of this rank's place, for the message.

        Raises:
            RankError: The ranks are in different places. The message says which rank is where.
            RankLostError: Another rank has ended.
        """
        if self.world_size == 1:
            return
        places: list[str] = [""] * self.world_size
        with self._reaching_others():
            dist.all_gather_object(places, place, group=self._patient)
        if len(set(places)) > 1:
            listed = ", ".join(f"rank {rank} is at {one}" for rank, one in enumerate(places))
            raise RankError(f"all processes must make the same calls: {listed}")

    def from_main(self, compute: Callable[[], T]) -> T:
        """Calls a function on rank 0 and returns its value on every rank. The other ranks wait as long as it takes.

        If rank 0 has deferred a failure, then that is raised and the function is not called.

        Args:
            compute: The function, which calls no collective operation. Its value must be picklable.

        Raises:
            RankError: The function has raised an exception, which is the cause on rank 0. A single rank raises the
                exception itself.
            RankLostError: Another rank has ended.
        """
        if self.world_size == 1:
            return compute()
        value: Any = None
        error: Exception | None = None
        outcome: list[Any] = [None]  # rank 0's failure as text, and its value as bytes
        if self.is_main:
            error, self._deferred = self._deferred, None
            try:
                if error is None:
                    value = compute()
                    outcome = [(None, pickle.dumps(value, pickle.HIGHEST_PROTOCOL))]
            except Exception as caught:
                error = caught
            if error is not None:
                outcome = [(self._told(error), b"")]
        with self._reaching_others():
            dist.broadcast_object_list(outcome, 0, group=self._patient)
        failure, pickled = outcome[0]
        if failure is not None:
            raise RankError(failure) from error
        return value if self.is_main else pickle.loads(pickled)

    @contextmanager
    def together(self) -> Iterator[None]:
        """Runs a block of code, and raises on all ranks if it fails on any. A single rank raises the exception itself.

        The block calls no collective operation. Long work that only rank 0 does belongs in ``from_main``.

        Raises:
            RankError: The block has failed on some ranks. The message has a line for each of them. The cause is this
                rank's own exception, if it has one.
            RankLostError: Another rank has ended.
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
        reports: list[str | None] = [None] * self.world_size
        with self._reaching_others():
            dist.all_gather_object(reports, None if error is None else self._told(error))
        raise RankError("\n".join(report for report in reports if report is not None)) from error

    @contextmanager
    def deferred(self) -> Iterator[None]:
        """Runs a block of code, and keeps its failure until the next ``together``, which raises it on all ranks.

        On rank 0, ``from_main`` raises it too. So a block on one rank costs the others no collective operation. The
        block calls none itself. A single rank raises the exception at once.
        """
        try:
            yield
        except Exception as error:
            if self.world_size == 1:
                raise
            self._deferred = self._deferred or error

    def close(self, failure: str | None = None) -> None:
        """Leaves the process group. Safe to call twice.

        Args:
            failure: An error that the other ranks do not know of, as "ErrorType: message". They raise a
                ``RankLostError`` that quotes it. None: this rank waits until the others leave as well.

        Raises:
            RankError: Another rank is at another call instead.
            RankLostError: Another rank has ended without leaving.
        """
        if self._patient is None:
            return
        failed = failure is not None or self._others_lost
        try:
            if failure is not None:
                self._report(failure)
            elif not failed:
                self.agree("its end")
        finally:
            dist.destroy_process_group(self._patient)
            self._patient = None
            # NCCL would first complete the operations under way, which may wait for a rank that never comes. NCCL's
            # connections end with this process in any case.
            if not (self._cuda and failed):
                dist.destroy_process_group()

    def _told(self, error: Exception) -> str:
        return f"rank {self.rank}: {type(error).__name__}: {error}"

    def _report(self, failure: str) -> None:
        """Writes this rank's failure into the store, unless it only follows from the loss of another rank."""
        if self._store is not None and not self._others_lost:
            with suppress(RuntimeError):  # the process that hosts the store has ended, which the others notice
                self._store.compare_set(_FAILURE_KEY, "", f"rank {self.rank}: {failure}")

    def _reported(self) -> str | None:
        """Returns the failure that another rank has written into the store, or None."""
        if self._store is None:
            return None
        try:
            self._store.wait([_FAILURE_KEY], _FAILURE_WAIT)
            return self._store.get(_FAILURE_KEY).decode()
        except RuntimeError:  # no entry, or no store any more
            return None

    @contextmanager
    def _reaching_others(self) -> Iterator[None]:
        """Raises a ``RankLostError`` if torch raises an error because another rank is out of reach."""
        try:
            yield
        except RuntimeError as error:
            self._others_lost = True
            reported = self._reported()
            if reported is not None:
                raise RankLostError(f"another rank has failed: {reported}") from None
            reason = str(error).splitlines()[0]
            raise RankLostError(f"another rank has ended without a report, or does not answer: {reason}") from None


ALONE = Ranks()

_VARIABLES = {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "1"}


def merged_moments(sums: np.ndarray) -> np.ndarray:
    """Merges the number, mean and sum of squared deviations of several parts of a sample.

    Args:
        sums: float64 [parts, ..., 3], the moments of each part. An empty part is all zeros.

    Returns:
        float64 [..., 3], the moments of the whole sample.

    Source:
        Chan, Golub and LeVeque, "Updating formulae and a pairwise algorithm for computing sample variances" (1979).
        The parts are merged in their order.
    """
    merged = np.zeros(sums.shape[1:])
    for part in sums:
        count, delta = merged[..., 0] + part[..., 0], part[..., 1] - merged[..., 1]
        weight = np.divide(part[..., 0], count, out=np.zeros_like(count), where=count > 0)
        merged[..., 2] += part[..., 2] + delta**2 * merged[..., 0] * weight
        merged[..., 1] += delta * weight
        merged[..., 0] = count
    return merged


def _tensor(x: np.ndarray | torch.Tensor) -> torch.Tensor:
    return torch.from_numpy(x) if isinstance(x, np.ndarray) else x
