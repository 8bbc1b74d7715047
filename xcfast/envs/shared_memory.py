"""The arrays that environments and their user exchange at every step, laid out in one block of memory."""

import mmap
import os
import tempfile
from typing import Any, NamedTuple

import numpy as np
from gymnasium import Space
from numpy.typing import NDArray

ALIGNMENT = 64  # a cache line, so that two processes do not write to the same one


class Buffers(NamedTuple):
    """The arrays of one vector step of N environments."""

    obs: NDArray[Any]  # [N, *obs_shape], the env's dtype
    final_obs: NDArray[Any]  # like obs; row i is valid where the episode of env i ended in this step
    actions: NDArray[Any]  # [N, *action_shape], the action space's dtype
    rewards: NDArray[np.float64]  # [N]
    terminated: NDArray[np.bool_]  # [N]
    truncated: NDArray[np.bool_]  # [N]
    action_masks: NDArray[np.bool_] | None  # [N, number of actions], of obs; None without action masks

    def rows(self, start: int, stop: int) -> "Buffers":
        """Returns the views of environments start to stop - 1."""
        return Buffers._make(None if array is None else array[start:stop] for array in self)


def buffers_in(
    memory: Any,
    offset: int,
    num_envs: int,
    observation_space: Space[Any],
    action_space: Space[Any],
    action_masks: bool = False,
) -> tuple[Buffers, int]:
    """Lays out the buffers in `memory`, from byte `offset` on.

    Args:
        memory: A writable buffer, or None to compute only the size.
        offset: First byte to use.
        num_envs: The number of environments, N.
        observation_space: Space of one environment's observations, with a shape and a dtype.
        action_space: Space of one environment's actions, likewise.
        action_masks: Whether there is room for action masks. The action space is then Discrete.

    Returns:
        The buffers (empty arrays of size 0 without memory) and the first byte behind them.
    """
    obs = (num_envs, *_shape(observation_space)), observation_space.dtype
    actions = (num_envs, *_shape(action_space)), action_space.dtype
    flags = (num_envs,), np.dtype(np.bool_)
    arrays: list[NDArray[Any] | None] = []
    for shape, dtype in (obs, obs, actions, ((num_envs,), np.dtype(np.float64)), flags, flags):
        array, offset = array_in(memory, offset, shape, dtype)
        arrays.append(array)
    masks = None
    if action_masks:
        masks, offset = array_in(memory, offset, (num_envs, int(getattr(action_space, "n"))), np.bool_)  # noqa: B009
    arrays.append(masks)
    return Buffers._make(arrays), offset


def array_in(memory: Any, offset: int, shape: tuple[int, ...], dtype: Any) -> tuple[NDArray[Any], int]:
    """Returns an aligned array in `memory` at or behind byte `offset`, and the first byte behind it."""
    dtype = np.dtype(dtype)
    start = -(-offset // ALIGNMENT) * ALIGNMENT
    count = int(np.prod(shape, dtype=np.int64))
    array = np.empty(0, dtype) if memory is None else np.frombuffer(memory, dtype, count, start).reshape(shape)
    return array, start + count * dtype.itemsize


def create_memory() -> int:
    """Returns a descriptor of new, empty, anonymous shared memory. It has no name, so it never has to be removed."""
    if hasattr(os, "memfd_create"):
        return os.memfd_create("xcfast", os.MFD_CLOEXEC)
    with tempfile.TemporaryFile() as file:
        return os.dup(file.fileno())


def map_memory(fd: int) -> mmap.mmap:
    """Maps all of the shared memory behind `fd`. It stays mapped as long as an array in it lives."""
    return mmap.mmap(fd, os.fstat(fd).st_size)


def _shape(space: Space[Any]) -> tuple[int, ...]:
    if space.shape is None:
        raise TypeError(f"space must have a shape; got {space}")
    return space.shape
